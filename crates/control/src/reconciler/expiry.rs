//! Times to live. The store is the only memory: what is due is computed from it each time, so a
//! restart neither forgets an end nor repeats it.

use std::{sync::Arc, time::Duration};

use skerry_model::WorkspaceId;

use crate::{Error, control::Inner, store::Write};

/// How many ended workspaces are handled at a time.
const BATCH: u32 = 200;
/// How long to wait when the store could not be asked.
const RETRY: Duration = Duration::from_secs(1);

impl Inner {
    /// Returns when a time to live may be over. Never sleeps longer than the interval of the
    /// periodic comparison, so that a clock that was set is noticed.
    pub(super) async fn next_expiry(&self) {
        loop {
            let changed = self.expiry_changed.notified();
            let longest = self.config.reconcile_interval;
            let pause = match self.store.next_expiry().await {
                Ok(None) => {
                    changed.await;
                    continue;
                }
                Ok(Some(end)) => {
                    let left = end.duration_since(self.now());
                    let Ok(left) = Duration::try_from(left) else { return };
                    if left.is_zero() {
                        return;
                    }
                    left.min(longest)
                }
                Err(error) => {
                    tracing::warn!(%error, "times to live could not be read; will try again");
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = changed => {}
            }
        }
    }

    pub(super) async fn expire_or_warn(self: &Arc<Self>) {
        if let Err(error) = self.expire().await {
            tracing::warn!(%error, "ended times to live could not be handled; will try again");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn expire(self: &Arc<Self>) -> Result<(), Error> {
        loop {
            let due = self.store.expired_workspaces(self.now(), BATCH).await?;
            if due.is_empty() {
                return Ok(());
            }
            for id in due {
                self.expire_one(id).await?;
            }
        }
    }

    /// Records the wish that follows from an end. The write clears the end, so it is acted on once.
    async fn expire_one(self: &Arc<Self>, id: WorkspaceId) -> Result<(), Error> {
        loop {
            let Some(mut workspace) = self.store.workspace(id).await? else { return Ok(()) };
            let now = self.now();
            if workspace.expires_at.is_none_or(|end| end > now) {
                return Ok(());
            }
            if let Some(wish) = workspace.expired(now) {
                tracing::info!(workspace.id = %id, ?wish, "the time to live is over");
                // Refused only while it is deleted, and then nothing is left to wish for.
                let _refused = workspace.wish(wish, now);
            }
            workspace.expires_at = None;
            match self.write(&workspace, None).await? {
                Write::Done(_) => {
                    self.wake(id);
                    return Ok(());
                }
                Write::Stale | Write::Taken => {}
            }
        }
    }
}
