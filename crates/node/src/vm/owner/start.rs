//! Making a VM run.

use std::sync::Arc;

use skerry_internal_api::{NodeError, StopMode, VmPhase, VmReport, VmSpec};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Cpus, Owner, Running};
use crate::{
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
                return Ok(self.report());
            }
            let mode = StopMode::Graceful { within: self.host.config.replace_grace };
            self.stop(mode).await.map_err(|failed| failed.report("replacing a VM"))?;
        }
        if self.retry_release.is_some() {
            self.release(None).await.map_err(|failed| failed.report("releasing a VM"))?;
        }
        self.bring_up(&spec, cancel).await.map_err(|failed| failed.report("starting a VM"))?;
        Ok(self.report())
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
                    took = ?began.elapsed(),
                    "VM is running"
                );
                self.took_off(up);
                Ok(())
            }
            Err(failed) => {
                let vm = bring_up.vm.take();
                self.leases = bring_up.leases.take();
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
        let BroughtUp { vm, link, ready_at, leases } = up;
        self.ready_at = Some(ready_at);
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
