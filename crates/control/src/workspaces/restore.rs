//! Restoring a workspace in place.

use std::sync::Arc;

use skerry_model::{AfterRestore, Cause, Demand, ErrorKind, Snapshot, Wish, Workspace};

use super::{Wait, WorkspaceRef, wishes::refused_in};
use crate::{Caller, Control, Error, SnapshotRef};

/// To what a workspace is restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreWorkspace {
    /// Which snapshot: any of the account's.
    pub snapshot: SnapshotRef,
    /// Whether it then runs.
    pub then: AfterRestore,
}

impl Control {
    /// Replaces a workspace's disk by a snapshot's, and with the same shape its memory. A VM that is
    /// there is stopped first, its guest asked to power off. What the workspace had is kept until a
    /// start from the snapshot has succeeded: if that fails, the workspace is failed, a start tries
    /// again, and a stop goes back to the old disk.
    ///
    /// A workspace at rest that is not to run ([`AfterRestore::AsBefore`]) is restored by its next
    /// start; until then the snapshot cannot be deleted.
    ///
    /// # Errors
    /// `NotFound` (`workspace`, `snapshot`); `Conflict` unless the snapshot is ready and fits on the
    /// workspace's disk; `Quota` (running pool); `RefusedByState` while it is deleted, and while it runs
    /// or is to run if it is to stay stopped ([`AfterRestore::StayStopped`]).
    pub async fn restore_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        request: RestoreWorkspace,
        wait: Wait,
    ) -> Result<Workspace, Error> {
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        let change = async move {
            let snapshot = inner.find_ready_snapshot(&caller, &request.snapshot).await?;
            let change = |workspace: &mut Workspace, now| {
                fits(&snapshot, workspace)?;
                let ran = workspace.counts_as_running();
                let wish = Wish::Restore { snapshot_id: snapshot.id, then: request.then };
                let state = workspace.state.name();
                let wished = workspace.wish(wish, Cause::User, now);
                wished.map_err(|refusal| refused_in(state, refusal))?;
                workspace.spec.image = snapshot.image.clone();
                workspace.spec.image_digest = snapshot.image_digest.clone();
                Ok((!ran && workspace.counts_as_running()).then_some(Demand::Start))
            };
            let restored = inner.change(&caller, &which, change).await?;
            inner.wake(restored.id);
            Ok(restored)
        };
        let wished = self.inner.to_the_end(change).await?;
        self.inner.until_settled(wished, wait).await
    }
}

fn fits(snapshot: &Snapshot, workspace: &Workspace) -> Result<(), Error> {
    let (needs, has) = (snapshot.shape.disk_mib, workspace.spec.shape.disk_mib);
    if needs <= has {
        return Ok(());
    }
    let why = format!("the snapshot's disk is {needs}, the workspace's only {has}");
    Err(ErrorKind::Conflict(why).into())
}
