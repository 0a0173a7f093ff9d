//! Work that goes on beside the steps and is waited for at one of them.

use tokio::task::JoinHandle;

use crate::error::{Error, outcome_of};

/// Blocking work under way. It runs to its end, also when nobody waits for it any more.
#[derive(Debug)]
pub(super) struct Aside(JoinHandle<Result<(), Error>>);

impl Aside {
    /// Begins it.
    pub fn begin(work: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Self {
        Self(tokio::task::spawn_blocking(work))
    }

    /// Waits for it.
    ///
    /// # Errors
    /// What it failed with.
    pub async fn done(self) -> Result<(), Error> {
        outcome_of(self.0).await
    }

    /// Waits for it to be over, whatever came of it: what was begun for it is being undone.
    pub async fn wait(self) {
        if let Err(error) = self.done().await {
            tracing::debug!(%error, "work beside a start that was given up");
        }
    }
}
