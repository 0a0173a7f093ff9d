//! Making a VM run.

use std::sync::Arc;

use skerry_internal_api::{NodeError, StartFrom, StopMode, VmPhase, VmReport, VmSpec};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Cpus, Owner, Running};
use crate::{
    error::blocking,
    host::StepFailed,
    vm::bring_up::{BringUp, BroughtUp},
};

impl Owner {
    pub(super) async fn ensure_running(
        &mut self,
        spec: VmSpec,
        cancel: &CancellationToken,
    ) -> Result<VmReport, NodeError> {
        if cancel.is_cancelled() {
            return Err(NodeError::NotRunning);
        }
        if self.ledger.as_ref().is_some_and(|ledger| ledger.state().deleting)
            || spec.incarnation < self.incarnation
        {
            return Err(NodeError::NoSuchVm);
        }
        if self.running.is_some() {
            if spec.incarnation == self.incarnation {
                if self.phase == VmPhase::Paused {
                    self.resume().await.map_err(|failed| failed.report("resuming a VM"))?;
                }
                return Ok(self.report());
            }
            self.check_start_can_succeed(&spec).await?;
            let mode = StopMode::Graceful { within: self.host.config.replace_grace };
            self.stop(mode).await.map_err(|failed| failed.report("replacing a VM"))?;
        }
        if self.retry_release.is_some() {
            self.release(None).await.map_err(|failed| failed.report("releasing a VM"))?;
        }
        if self.phase == VmPhase::Suspended
            && spec.incarnation == self.incarnation
            && spec.start_from == StartFrom::Disk
        {
            // A late repetition of the start that has been suspended since: it must not cost the
            // memory. Whoever wants that starts anew.
            return Err(NodeError::NotRunning);
        }
        self.bring_up(&spec, cancel).await.map_err(|failed| failed.report("starting a VM"))?;
        Ok(self.report())
    }

    /// Nothing that runs is ended for a start that cannot succeed.
    async fn check_start_can_succeed(&self, spec: &VmSpec) -> Result<(), NodeError> {
        match spec.start_from {
            StartFrom::Disk => Ok(()),
            StartFrom::SavedMemory => {
                let reason = "the workspace was not suspended".to_owned();
                Err(NodeError::SavedStateUnusable(reason))
            }
            StartFrom::Snapshot { snapshot_id } => {
                let states = self.host.storage.states.clone();
                let place = self.host.layout.snapshot(snapshot_id);
                let found = blocking(move || states.open(&place)).await;
                match found.map_err(|error| error.public("reserve"))? {
                    Some(_) => Ok(()),
                    None => Err(NodeError::NoSuchSnapshot),
                }
            }
        }
    }

    async fn bring_up(
        &mut self,
        spec: &VmSpec,
        cancel: &CancellationToken,
    ) -> Result<(), StepFailed> {
        let began = Instant::now();
        let had_disk = self.present;
        self.incarnation = spec.incarnation;
        self.last_exit = None;
        self.ready_at = None;
        self.start_path = None;
        self.present = true;
        self.set_phase(VmPhase::Starting);
        let host = Arc::clone(&self.host);
        let paths = self.paths.clone();
        let mut bring_up = BringUp::new(&host, &paths, spec, cancel, self.ledger.take());
        let result = bring_up.run().await;
        bring_up.close_link().await;
        self.ledger = bring_up.ledger.take();
        match result {
            Ok(up) => {
                tracing::info!(
                    workspace.id = %spec.workspace_id,
                    incarnation = %spec.incarnation,
                    pid = up.vm.record().pid,
                    path = ?up.start_path,
                    took = ?began.elapsed(),
                    "VM is running"
                );
                self.took_off(up);
                Ok(())
            }
            Err(failed) => {
                let vm = bring_up.vm.take();
                self.leases = bring_up.take_leases();
                drop(bring_up);
                if self.ledger.is_none() && !had_disk {
                    // Nothing is named yet; at most the directory is there.
                    self.present = self.paths.dir.exists();
                }
                if let Err(left) = self.release(vm.as_ref()).await {
                    left.report("undoing a start");
                }
                Err(failed)
            }
        }
    }

    fn took_off(&mut self, up: BroughtUp) {
        let BroughtUp { vm, link, ready_at, start_path, leases } = up;
        self.ready_at = Some(ready_at);
        self.start_path = Some(start_path);
        self.leases = Some(leases);
        self.running = Some(Running {
            vm,
            cpus: Cpus::Running,
            link: None,
            guest: None,
            logging: None,
            connecting: None,
            contact: None,
        });
        self.phase = VmPhase::Running;
        self.attach(link);
        self.publish();
    }
}
