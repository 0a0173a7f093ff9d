//! Memory for what commands print, where an answer can only be given whole: bounded for the whole
//! server, because each call alone may hold as much as its API promises and a tenant may make many.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use http_body_util::BodyExt;
use skerry_control::Error;
use skerry_model::ErrorKind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// All calls together. Rendered as JSON, control characters take six times as much.
const TOTAL_BYTES: usize = 256 * 1024 * 1024;
/// Each call has so much outside of the total: ordinary commands do not suffer from large ones.
const FREE_BYTES: usize = 256 * 1024;
/// What is taken of the total at once.
const UNIT_BYTES: usize = 256 * 1024;

/// The server's memory for output. Clones are the same budget.
#[derive(Clone, Debug)]
pub(crate) struct OutputBudget(Arc<Semaphore>);

impl Default for OutputBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TOTAL_BYTES / UNIT_BYTES)))
    }
}

impl OutputBudget {
    /// A call that has printed nothing yet.
    pub(crate) fn begin(&self) -> OutputShare {
        OutputShare { budget: Arc::clone(&self.0), taken: None }
    }
}

/// What one call has taken of the budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct OutputShare {
    budget: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
}

impl OutputShare {
    /// Makes sure that `total_bytes` are covered. Does not wait: what is taken already would be
    /// held meanwhile, and two that wait for each other would never end.
    ///
    /// # Errors
    /// `Unavailable` when other calls have the rest.
    pub(crate) fn cover(&mut self, total_bytes: usize) -> Result<(), Error> {
        let wanted = total_bytes.saturating_sub(FREE_BYTES).div_ceil(UNIT_BYTES);
        let taken = self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let Some(more) = wanted.checked_sub(taken).filter(|more| *more > 0) else { return Ok(()) };
        let more = u32::try_from(more).ok();
        let more = more.and_then(|more| Arc::clone(&self.budget).try_acquire_many_owned(more).ok());
        match (more, &mut self.taken) {
            (Some(more), Some(taken)) => taken.merge(more),
            (Some(more), none) => *none = Some(more),
            (None, _) => {
                let why = "other commands' output takes all memory set aside for it; the command \
                           was ended: let it write to a file, or try again later";
                return Err(Error::new(ErrorKind::Unavailable(why.to_owned())));
            }
        }
        Ok(())
    }

    /// Gives the share back when the answer has been sent.
    pub(crate) fn carried_by(self, response: Response) -> Response {
        let Some(taken) = self.taken else { return response };
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held = &taken;
                frame
            }))
        })
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;

    fn free_units(budget: &OutputBudget) -> usize {
        budget.0.available_permits()
    }

    #[test]
    fn small_outputs_are_never_refused_and_large_ones_only_beyond_the_total() {
        let budget = OutputBudget::default();
        let mut hog = budget.begin();
        for total in [1, FREE_BYTES, FREE_BYTES + 1, TOTAL_BYTES + FREE_BYTES] {
            hog.cover(total).expect("within the total");
        }
        assert_eq!(free_units(&budget), 0);
        let mut other = budget.begin();
        other.cover(FREE_BYTES).expect("free");
        let refused = other.cover(FREE_BYTES + 1).expect_err("nothing is left");
        assert!(matches!(refused.kind(), ErrorKind::Unavailable(_)), "{refused:?}");
        drop(hog);
        other.cover(FREE_BYTES + 1).expect("free again");
    }

    #[tokio::test]
    async fn a_share_is_held_until_the_answer_is_sent() {
        let budget = OutputBudget::default();
        let all = free_units(&budget);
        let mut share = budget.begin();
        share.cover(FREE_BYTES + UNIT_BYTES).expect("within the total");
        let response = share.carried_by(Response::new(Body::from("text")));
        assert_eq!(free_units(&budget), all - 1);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(body, "text");
        assert_eq!(free_units(&budget), all);
    }
}
