//! What all workers do alike: work until nothing is left to do, pause when it fails, and leave.

use std::{hash::Hash, sync::Arc};

use tokio::sync::Notify;

use super::{
    backoff,
    registry::{Post, Workers},
};
use crate::{Error, control::Inner};

/// What a worker is about.
pub(crate) trait Subject: Copy + Eq + Hash + std::fmt::Display + Send + Sync {
    /// `workspace` or `snapshot`, for the log.
    const WHAT: &'static str;

    /// Where its workers are listed.
    fn workers(inner: &Inner) -> &Workers<Self>;

    /// Takes steps until nothing is to be done. `bell` rings when the record should be read again.
    fn drive(
        self,
        inner: &Arc<Inner>,
        bell: &Arc<Notify>,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// A worker's place on the list, given back when dropped.
struct Place<'a, S: Subject> {
    inner: &'a Inner,
    subject: S,
    bell: Arc<Notify>,
}

impl<S: Subject> Drop for Place<'_, S> {
    fn drop(&mut self) {
        S::workers(self.inner).left(self.subject, &self.bell);
    }
}

/// Works until nothing is left to do or control ends.
pub(crate) async fn work<S: Subject>(inner: Arc<Inner>, subject: S, post: Post) {
    let place = Place { inner: &inner, subject, bell: post.bell };
    let mut failures = 0_u32;
    loop {
        let outcome = tokio::select! {
            biased;
            () = inner.ending.cancelled() => return,
            outcome = subject.drive(&inner, &place.bell) => outcome,
        };
        match outcome {
            Ok(()) if S::workers(&inner).may_leave(subject) => return,
            Ok(()) => failures = 0,
            Err(error) => {
                failures = failures.saturating_add(1);
                let pause = backoff(failures);
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(what = S::WHAT, id = %subject, %error, cause, failures, ?pause,
                    "bringing it to where it should be failed; will try again");
                tokio::select! {
                    () = inner.ending.cancelled() => return,
                    () = place.bell.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}
