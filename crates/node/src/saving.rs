//! What can be asked of a VM beside running and stopping: pausing it, saving it, and keeping what it
//! is.

use skerry_internal_api::{
    NodeError, SnapshotContents, SnapshotInfo, StartFrom, StopMode, VmReport, VmSpec,
};
use skerry_model::{Incarnation, SnapshotId, WorkspaceId};

use crate::{
    node::Node,
    vm::{Request, Undertaking},
};

/// What is given up of older starts when this one is asked for.
pub(crate) fn replaced_by(spec: &VmSpec) -> &'static [Undertaking] {
    match spec.start_from {
        StartFrom::Disk | StartFrom::Snapshot { .. } => {
            &[Undertaking::Start, Undertaking::Suspension]
        }
        // It is what the suspension is for.
        StartFrom::SavedMemory => &[Undertaking::Start],
    }
}

/// What is given up when a stop is asked for.
pub(crate) fn ended_by(mode: StopMode) -> &'static [Undertaking] {
    match mode {
        // A snapshot that is wanted too is waited for: it ends by itself.
        StopMode::Graceful { .. } => &[Undertaking::Start, Undertaking::Suspension],
        StopMode::Kill => Undertaking::ALL,
    }
}

impl Node {
    pub(crate) async fn pause(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        self.ask_owner(workspace_id, |_, answer| Request::Pause { incarnation, answer }).await
    }

    pub(crate) async fn resume(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        self.ask_owner(workspace_id, |slot, answer| {
            slot.cancel(&[Undertaking::Suspension], |start| start == incarnation);
            Request::Resume { incarnation, answer }
        })
        .await
    }

    pub(crate) async fn suspend(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        let shutdown = self.shutdown_token();
        self.ask_owner(workspace_id, |slot, answer| {
            let cancel = slot.announce(Undertaking::Suspension, incarnation, shutdown);
            Request::Suspend { incarnation, cancel, answer }
        })
        .await
    }

    pub(crate) async fn snapshot(
        &self,
        workspace_id: WorkspaceId,
        snapshot_id: SnapshotId,
        contents: SnapshotContents,
    ) -> Result<SnapshotInfo, NodeError> {
        let shutdown = self.shutdown_token();
        self.ask_owner(workspace_id, |slot, answer| {
            let incarnation = slot.incarnation().unwrap_or_default();
            let cancel = slot.announce(Undertaking::Snapshot, incarnation, shutdown);
            Request::Snapshot { snapshot_id, contents, cancel, answer }
        })
        .await
    }
}
