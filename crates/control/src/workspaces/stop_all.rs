//! Stopping everything, for an operator who takes the machine down.

use std::{sync::Arc, time::Duration};

use skerry_model::{Wish, WorkspaceId};

use crate::{Control, Error, control::Inner, store::Write};

/// How many records are held at a time.
const BATCH: u32 = 500;

impl Control {
    /// Stops every workspace of every account and waits until none has a VM, or for `within`.
    /// Returns how many were to be stopped. [`Control::run`] must be at work.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn stop_all(&self, within: Duration) -> Result<usize, Error> {
        let mut wished = Vec::new();
        let mut after = None;
        loop {
            let batch = self.inner.store.workspaces_after(after, BATCH).await?;
            let Some(last) = batch.last() else { break };
            after = Some(last.id);
            for workspace in batch.iter().filter(|workspace| workspace.counts_as_running()) {
                self.inner.wish_stop(workspace.id).await?;
                wished.push(workspace.id);
            }
        }
        let waits = wished
            .iter()
            .map(|id| self.inner.wait_for(*id, within, |record| !record.counts_as_running()));
        futures::future::try_join_all(waits).await?;
        Ok(wished.len())
    }
}

impl Inner {
    /// Records the wish, anew when somebody else changed the record first.
    async fn wish_stop(self: &Arc<Self>, id: WorkspaceId) -> Result<(), Error> {
        loop {
            let Some(mut workspace) = self.store.workspace(id).await? else { return Ok(()) };
            // Refused only while it is deleted: then its VM goes anyway.
            if workspace.wish(Wish::Stop, self.now()).is_err() {
                return Ok(());
            }
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
