//! The simulated node's pauses, suspensions and snapshots.

use std::time::Duration;

use skerry_internal_api::{NodeError, SnapshotContents, SnapshotInfo, VmPhase, VmReport};
use skerry_model::{Incarnation, SnapshotId, WorkspaceId};
use tokio::sync::watch;

use super::{Begun, Disk, Job, Memory, Point, Saved, SimNode, SimState, SimVm};

/// A snapshot on the simulated node.
pub(super) struct SimSnapshot {
    info: SnapshotInfo,
    pub(super) disk: Disk,
    pub(super) memory: Option<Memory>,
    pub(super) is_damaged: bool,
}

impl SimState {
    fn vm_of(&mut self, id: WorkspaceId, of: Incarnation) -> Result<&mut SimVm, NodeError> {
        let vm = self.vms.get_mut(&id).filter(|vm| vm.report.incarnation == of);
        vm.ok_or(NodeError::NoSuchVm)
    }
}

impl SimNode {
    /// From now on the workspace's saved memory cannot be used.
    pub fn damage_saved_memory(&self, id: WorkspaceId) {
        if let Some(saved) = self.state().vms.get_mut(&id).and_then(|vm| vm.saved.as_mut()) {
            saved.is_damaged = true;
        }
    }

    /// From now on the snapshot cannot be used.
    pub fn damage_snapshot(&self, id: SnapshotId) {
        if let Some(snapshot) = self.state().snapshots.get_mut(&id) {
            snapshot.is_damaged = true;
        }
    }

    /// The node has the snapshot no more, and says nothing.
    pub fn lose_snapshot(&self, id: SnapshotId) {
        self.state().snapshots.remove(&id);
    }

    /// The snapshot is known under another identifier too, which nobody asked for.
    pub fn grow_snapshot(&self, of: SnapshotId, unknown: SnapshotId) {
        let mut state = self.state();
        let Some(snapshot) = state.snapshots.get(&of) else { return };
        let grown = SimSnapshot {
            info: SnapshotInfo { id: unknown, ..snapshot.info.clone() },
            disk: snapshot.disk.clone(),
            memory: snapshot.memory.clone(),
            is_damaged: false,
        };
        state.snapshots.insert(unknown, grown);
    }

    /// Whether a suspension has left memory of this workspace on the node.
    #[must_use]
    pub fn has_saved_memory(&self, id: WorkspaceId) -> bool {
        self.state().vms.get(&id).is_some_and(|vm| vm.saved.is_some())
    }

    pub(super) fn snapshot_infos(&self) -> Vec<SnapshotInfo> {
        let state = self.state();
        let mut infos: Vec<_> = state.snapshots.values().map(|held| held.info.clone()).collect();
        infos.sort_by_key(|info| info.id);
        infos
    }

    pub(super) async fn pause(
        &self,
        id: WorkspaceId,
        of: Incarnation,
    ) -> Result<VmReport, NodeError> {
        self.state().called(Point::EnsurePaused, format!("ensure_paused #{of}"))?;
        self.gate(Point::EnsurePaused).await;
        let mut state = self.state();
        let vm = state.vm_of(id, of)?;
        match vm.report.phase {
            VmPhase::Running | VmPhase::Paused => vm.report.phase = VmPhase::Paused,
            VmPhase::Starting
            | VmPhase::Suspending
            | VmPhase::Suspended
            | VmPhase::Stopping
            | VmPhase::Stopped => return Err(NodeError::NotRunning),
        }
        Ok(vm.report.clone())
    }

    pub(super) async fn resume(
        &self,
        id: WorkspaceId,
        of: Incarnation,
    ) -> Result<VmReport, NodeError> {
        self.state().called(Point::EnsureResumed, format!("ensure_resumed #{of}"))?;
        self.gate(Point::EnsureResumed).await;
        let mut state = self.state();
        let vm = state.vm_of(id, of)?;
        match vm.report.phase {
            VmPhase::Running => {}
            VmPhase::Paused | VmPhase::Suspending => {
                vm.job = None;
                vm.report.phase = VmPhase::Running;
            }
            VmPhase::Starting | VmPhase::Suspended | VmPhase::Stopping | VmPhase::Stopped => {
                return Err(NodeError::NotRunning);
            }
        }
        Ok(vm.report.clone())
    }

    /// Begins a suspension, or finds the one under way.
    pub(super) fn begin_suspension(
        &self,
        id: WorkspaceId,
        of: Incarnation,
    ) -> Result<Begun, NodeError> {
        let mut state = self.state();
        match state.vm_of(id, of)? {
            vm if vm.report.phase == VmPhase::Suspended => {
                return Ok(Begun::Already(vm.report.clone()));
            }
            SimVm {
                report: VmReport { phase: VmPhase::Suspending, .. }, job: Some(job), ..
            } => {
                return Ok(Begun::UnderWay(job.outcome.clone()));
            }
            _ => {}
        }
        state.called(Point::EnsureSuspended, format!("ensure_suspended #{of}"))?;
        let vm = state.vm_of(id, of)?;
        if !matches!(vm.report.phase, VmPhase::Running | VmPhase::Paused) {
            return Err(NodeError::NotRunning);
        }
        let (report_outcome, outcome) = watch::channel(None);
        let node = self.myself.clone();
        let task = self.spawn(async move {
            let Some(node) = node.upgrade() else { return };
            node.gate(Point::EnsureSuspended).await;
            report_outcome.send_replace(Some(node.finish_suspension(id, of)));
        });
        vm.job = Some(Job { outcome: outcome.clone(), task });
        vm.report.phase = VmPhase::Suspending;
        Ok(Begun::UnderWay(outcome))
    }

    fn finish_suspension(&self, id: WorkspaceId, of: Incarnation) -> Result<VmReport, NodeError> {
        let mut state = self.state();
        let vm = state.vm_of(id, of)?;
        vm.saved = Some(Saved { memory: vm.guest.memory(), is_damaged: false });
        vm.report.phase = VmPhase::Suspended;
        vm.report.pid = None;
        vm.report.ready_at = None;
        vm.report.start_path = None;
        Ok(vm.report.clone())
    }

    pub(super) async fn snapshot(
        &self,
        workspace_id: WorkspaceId,
        id: SnapshotId,
        contents: SnapshotContents,
    ) -> Result<SnapshotInfo, NodeError> {
        {
            let mut state = self.state();
            if let Some(there) = state.snapshots.get(&id) {
                return Ok(there.info.clone());
            }
            let what = format!("take_snapshot {}", contents.as_str());
            state.called(Point::TakeSnapshot, what)?;
        }
        self.gate(Point::TakeSnapshot).await;
        let created_at = (self.now)();
        let mut state = self.state();
        let vm = state.vms.get(&workspace_id).ok_or(NodeError::NoSuchVm)?;
        let is_up = match vm.report.phase {
            VmPhase::Running | VmPhase::Paused => true,
            VmPhase::Suspended | VmPhase::Stopped => false,
            VmPhase::Starting | VmPhase::Suspending | VmPhase::Stopping => {
                return Err(NodeError::Cancelled);
            }
        };
        let memory = match contents {
            SnapshotContents::DiskAndMemory if !is_up => return Err(NodeError::NotRunning),
            SnapshotContents::DiskAndMemory => Some(vm.guest.memory()),
            SnapshotContents::Disk => None,
        };
        let disk = vm.guest.disk();
        let memory_bytes = memory.as_ref().map_or(0, |_| vm.spec.shape.memory_mib.bytes());
        let info = SnapshotInfo {
            id,
            workspace_id,
            contents,
            shape: vm.spec.shape,
            image_digest: vm.spec.image_digest.clone(),
            size_bytes: disk.bytes() + memory_bytes,
            blackout: if is_up { Duration::from_millis(1) } else { Duration::ZERO },
            created_at,
        };
        let taken = SimSnapshot { info: info.clone(), disk, memory, is_damaged: false };
        state.snapshots.insert(id, taken);
        Ok(info)
    }
}
