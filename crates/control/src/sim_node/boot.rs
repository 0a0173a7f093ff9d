//! The simulated node's bring-ups.

use skerry_internal_api::{NodeError, StartFrom, StartPath, VmPhase, VmReport, VmSpec};
use skerry_model::{Incarnation, WorkspaceId};
use tokio::sync::watch;

use super::{Beginning, Begun, Job, Point, SimNode, SimState, SimVm};

impl SimNode {
    /// Begins a bring-up, or finds the one under way. Answers at once when the VM runs already.
    pub(super) fn begin_boot(&self, spec: &VmSpec) -> Result<Begun, NodeError> {
        let mut state = self.state();
        if let Some(vm) = state.vms.get(&spec.workspace_id) {
            let same = vm.report.incarnation == spec.incarnation;
            if same && matches!(vm.report.phase, VmPhase::Running | VmPhase::Paused) {
                return Ok(Begun::Already(vm.report.clone()));
            }
            if same && let Some(boot) = &vm.job {
                return Ok(Begun::UnderWay(boot.outcome.clone()));
            }
            let newer_is_there = vm.report.incarnation > spec.incarnation
                && !matches!(vm.report.phase, VmPhase::Stopped | VmPhase::Suspended);
            if newer_is_there {
                return Err(NodeError::NoSuchVm);
            }
        }
        let from = match spec.start_from {
            StartFrom::Disk => "",
            StartFrom::SavedMemory => " from saved memory",
            StartFrom::Snapshot { .. } => " from a snapshot",
        };
        let what = format!("ensure_running #{}{from}", spec.incarnation);
        state.called(Point::EnsureRunning, what)?;
        if !state.images.iter().any(|image| image.digest == spec.image_digest) {
            return Err(NodeError::NoSuchImage(spec.image_digest.to_string()));
        }
        let beginning = state.beginning(spec)?;
        state.start_with_volumes(spec)?;
        let from_pool = matches!(beginning, Beginning::Pool);
        let (report_outcome, outcome) = watch::channel(None);
        let (node, id, incarnation) = (self.myself.clone(), spec.workspace_id, spec.incarnation);
        let boot_time = state.boot_time;
        let task = self.spawn(async move {
            let Some(node) = node.upgrade() else { return };
            if from_pool {
                report_outcome.send_replace(Some(node.finish_boot(id, incarnation)));
                return;
            }
            node.gate(Point::EnsureRunning).await;
            tokio::time::sleep(boot_time).await;
            report_outcome.send_replace(Some(node.finish_boot(id, incarnation)));
        });
        let job = Job { outcome: outcome.clone(), task };
        let mut vm = SimVm::new(spec.clone(), VmPhase::Starting, &self.now);
        if let Some(mut old) = state.vms.remove(&spec.workspace_id) {
            vm.guest = old.guest.clone();
            vm.saved = old.saved.take();
        }
        vm.report.private_address = state.address_of(spec.workspace_id);
        vm.is_networked = vm.report.private_address.is_some();
        vm.beginning = beginning;
        vm.job = Some(job);
        state.vms.insert(spec.workspace_id, vm);
        Ok(Begun::UnderWay(outcome))
    }

    fn finish_boot(&self, id: WorkspaceId, of: Incarnation) -> Result<VmReport, NodeError> {
        let now = (self.now)();
        let mut state = self.state();
        state.next_pid += 1;
        let pid = state.next_pid;
        let vm = state.vms.get_mut(&id).filter(|vm| vm.report.incarnation == of);
        let vm = vm.ok_or(NodeError::NoSuchVm)?;
        let saved = vm.saved.take();
        let path = match std::mem::replace(&mut vm.beginning, Beginning::Disk) {
            Beginning::Pool => {
                vm.guest.boot(&vm.spec);
                StartPath::Pool
            }
            Beginning::Disk => {
                vm.guest.boot(&vm.spec);
                StartPath::Boot
            }
            Beginning::SavedMemory => {
                if let Some(saved) = saved {
                    vm.guest.wake(&vm.spec, saved.memory);
                }
                StartPath::SavedMemory
            }
            Beginning::Snapshot(disk, memory) => {
                vm.guest.replace_disk(disk);
                match memory.filter(|memory| memory.is_of(vm.spec.shape)) {
                    Some(memory) => {
                        vm.guest.wake(&vm.spec, memory);
                        StartPath::SnapshotMemory
                    }
                    None => {
                        vm.guest.boot(&vm.spec);
                        StartPath::Boot
                    }
                }
            }
        };
        vm.report.phase = VmPhase::Running;
        vm.report.ready_at = Some(now);
        vm.report.pid = Some(pid);
        vm.report.start_path = Some(path);
        vm.console.extend_from_slice(format!("[    0.000000] start {of}\n").as_bytes());
        let report = vm.report.clone();
        match path {
            StartPath::SavedMemory | StartPath::SnapshotMemory => state.memory_restores += 1,
            StartPath::Pool => state.pool_hits += 1,
            StartPath::Template | StartPath::Boot => state.boots += 1,
        }
        Ok(report)
    }
}

impl SimState {
    fn beginning(&mut self, spec: &VmSpec) -> Result<Beginning, NodeError> {
        let unusable = |why: &str| Err(NodeError::SavedStateUnusable(why.to_owned()));
        match spec.start_from {
            StartFrom::Disk => {
                let is_first = !self.vms.contains_key(&spec.workspace_id);
                match self.pool.checked_sub(1) {
                    Some(left) if is_first => {
                        self.pool = left;
                        Ok(Beginning::Pool)
                    }
                    Some(_) | None => Ok(Beginning::Disk),
                }
            }
            StartFrom::SavedMemory => {
                match self.vms.get(&spec.workspace_id).and_then(|vm| vm.saved.as_ref()) {
                    None => unusable("no memory is saved"),
                    Some(saved) if saved.is_damaged => unusable("the saved memory is damaged"),
                    Some(_) => Ok(Beginning::SavedMemory),
                }
            }
            StartFrom::Snapshot { snapshot_id } => {
                let snapshot = self.snapshots.get(&snapshot_id);
                let snapshot = snapshot.ok_or(NodeError::NoSuchSnapshot)?;
                if snapshot.is_damaged {
                    return unusable("the snapshot is damaged");
                }
                Ok(Beginning::Snapshot(snapshot.disk.clone(), snapshot.memory.clone()))
            }
        }
    }
}
