//! Stopping everything, for an operator who takes the machine down.

use std::{sync::Arc, time::Duration};

use skerry_model::{Cause, Desired, Wish, Workspace, WorkspaceId};

use crate::{Control, Error, control::Inner, store::Write};

/// How many records are held at a time.
const BATCH: u32 = 500;

/// What came of stopping everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllStopped {
    /// How many workspaces have no VM and nothing under way any more that had.
    pub count: usize,
    /// Those that were not done in time. What was wished for them is recorded: the next life of
    /// control goes on with it.
    pub unfinished: Vec<WorkspaceId>,
}

impl Control {
    /// Stops every workspace of every account, and waits for at most `within` until none has a VM and
    /// every deletion under way is complete. [`Control::run`] must be at work.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn stop_all(&self, within: Duration) -> Result<AllStopped, Error> {
        let mut awaited = Vec::new();
        let mut after = None;
        loop {
            let batch = self.inner.store.workspaces_after(after, BATCH).await?;
            let Some(last) = batch.last() else { break };
            after = Some(last.id);
            for workspace in batch.iter().filter(|workspace| !is_done(workspace)) {
                self.inner.wish_stop(workspace.id).await?;
                awaited.push(workspace.id);
            }
        }
        let waits = awaited.iter().map(|id| self.inner.wait_for(*id, within, is_done));
        let found = futures::future::try_join_all(waits).await?;
        let unfinished: Vec<WorkspaceId> = found
            .into_iter()
            .flatten()
            .filter(|workspace| !is_done(workspace))
            .map(|workspace| workspace.id)
            .collect();
        Ok(AllStopped { count: awaited.len() - unfinished.len(), unfinished })
    }
}

/// Whether the node has nothing to do for it any more. A record that is being deleted never says so:
/// it goes away.
fn is_done(workspace: &Workspace) -> bool {
    !workspace.counts_as_running() && workspace.desired != Desired::Deleted
}

impl Inner {
    /// Records the wish, anew when somebody else changed the record first.
    async fn wish_stop(self: &Arc<Self>, id: WorkspaceId) -> Result<(), Error> {
        loop {
            let Some(mut workspace) = self.store.workspace(id).await? else { return Ok(()) };
            // Refused only while it is deleted: then its VM goes anyway.
            if workspace.wish(Wish::Stop, Cause::Operator, self.now()).is_err() {
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
