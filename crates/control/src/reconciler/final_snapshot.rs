//! A worker's part in the snapshot before a deletion, and in waiting for the one a fork starts from.

use skerry_model::{
    DisplayName, Failure, FinalSnapshot, Snapshot, SnapshotContents, SnapshotId, SnapshotPurpose,
    SnapshotState, StartFrom, Workspace,
};

use super::worker::Worker;
use crate::{Error, store::Write};

/// How far the snapshot before the deletion is.
pub(super) enum FinalStep {
    /// Its own worker is at it.
    UnderWay,
    /// One more step is recorded.
    Taken,
}

impl Worker {
    /// The identifier is recorded before the snapshot, and the snapshot before it is taken, so that a
    /// death in between leads to the same one.
    pub(super) async fn take_final_snapshot(
        &self,
        mut workspace: Workspace,
    ) -> Result<FinalStep, Error> {
        let inner = &self.inner;
        let snapshot_id = match workspace.lifecycle.final_snapshot {
            FinalSnapshot::Begun { snapshot_id } => snapshot_id,
            FinalSnapshot::NotBegun | FinalSnapshot::Settled => {
                let snapshot_id = SnapshotId::from_random(inner.random());
                workspace.lifecycle.final_snapshot = FinalSnapshot::Begun { snapshot_id };
                inner.write(&workspace, None).await?;
                return Ok(FinalStep::Taken);
            }
        };
        let state = match inner.store.snapshot(snapshot_id).await? {
            Some(snapshot) => snapshot.state,
            None => {
                self.record_final_snapshot(&workspace, snapshot_id).await?;
                SnapshotState::Creating
            }
        };
        let outcome = match &state {
            SnapshotState::Creating => {
                inner.wake_snapshot(snapshot_id);
                return Ok(FinalStep::UnderWay);
            }
            // Deleting: its owner does not want it.
            SnapshotState::Ready | SnapshotState::Deleting => Ok(()),
            SnapshotState::Failed(failure) => Err(failure),
        };
        self.settle_final_snapshot(outcome).await?;
        Ok(FinalStep::Taken)
    }

    async fn record_final_snapshot(
        &self,
        workspace: &Workspace,
        snapshot_id: SnapshotId,
    ) -> Result<(), Error> {
        let inner = &self.inner;
        let Some(contents) = workspace.final_snapshot_contents() else { return Ok(()) };
        // Its volumes are not part of it, and its memory would miss them.
        let has_volumes = !inner.store.mounts_of(self.id).await?.is_empty();
        let contents = if has_volumes { SnapshotContents::Disk } else { contents };
        let asked = workspace.spec.snapshot_on_terminate.as_ref();
        let name = asked.and_then(|asked| asked.name.as_deref());
        let name = name.map(DisplayName::parse).transpose()?;
        let purpose = SnapshotPurpose::Terminate;
        let drawn = inner.new_snapshot(workspace, purpose, contents, name)?;
        let snapshot = Snapshot { id: snapshot_id, ..drawn };
        // No plan: what is to be kept must not be lost for a limit. Taken: it is recorded already.
        inner.store.insert_snapshot(&snapshot, None).await?;
        Ok(())
    }

    async fn settle_final_snapshot(&self, outcome: Result<(), &Failure>) -> Result<(), Error> {
        let inner = &self.inner;
        if let Err(failure) = outcome {
            tracing::error!(workspace.id = %self.id, why = failure.message,
                "the snapshot before a deletion could not be taken");
        }
        loop {
            let Some(mut workspace) = inner.store.workspace(self.id).await? else { return Ok(()) };
            workspace.settle_final_snapshot(outcome, inner.now());
            match inner.write(&workspace, None).await? {
                Write::Done(_) => return Ok(()),
                Write::Stale | Write::Taken => {}
            }
        }
    }

    /// Whether a start has to wait for the snapshot it begins with: a fork's is taken after the forks
    /// are recorded. That snapshot's worker wakes this one.
    pub(super) async fn waits_for_snapshot(
        &self,
        workspace: &Workspace,
        from: StartFrom,
    ) -> Result<bool, Error> {
        let Some(snapshot_id) = from.snapshot_id() else { return Ok(false) };
        let snapshot = self.inner.store.snapshot(snapshot_id).await?;
        let waits = snapshot.is_some_and(|snapshot| match snapshot.state {
            SnapshotState::Creating => true,
            // It never came about: its worker removes what depends on it.
            SnapshotState::Failed(_) => snapshot.taken_at.is_none() && !workspace.owns_disk(),
            SnapshotState::Ready | SnapshotState::Deleting => false,
        });
        if waits {
            self.inner.wake_snapshot(snapshot_id);
        }
        Ok(waits)
    }
}
