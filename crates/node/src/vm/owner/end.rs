//! Bringing a VM down, deleting it, and what follows its own end.

use std::{sync::Arc, time::Duration};

use skerry_internal_api::{NodeError, NodeEvent, StopMode, VmPhase};
use skerry_model::Incarnation;
use skerry_vmm::{Exit, Vm};
use tokio::time::{Instant, timeout};

use super::{Cpus, Owner, RELEASE_RETRY, Running};
use crate::{
    error::{Error, blocking},
    faults::Next,
    host::{Host, StepFailed},
    layout::VmPaths,
    ledger::{Entry, Ledger},
    release::{Remains, release_all},
    vm::tear_down::{end_guest, exit_of},
};

impl Owner {
    pub(super) async fn ensure_stopped(
        &mut self,
        through: Incarnation,
        mode: StopMode,
    ) -> Result<(), NodeError> {
        if self.incarnation > through {
            // It speaks of an older start, which is gone.
            return Ok(());
        }
        if self.running.is_some() {
            return self.stop(mode).await.map_err(|failed| failed.report("stopping a VM"));
        }
        let released = match self.retry_release {
            Some(_) => self.release(None).await,
            None => Ok(()),
        };
        // A suspended workspace that is stopped is its disk.
        let forgotten = match released {
            Ok(()) if self.phase == VmPhase::Suspended => self.forget_memory().await,
            other => other,
        };
        forgotten.map_err(|failed| failed.report("stopping a VM"))?;
        self.set_phase(VmPhase::Stopped);
        Ok(())
    }

    pub(super) async fn stop(&mut self, mode: StopMode) -> Result<(), StepFailed> {
        self.withhold_guest(VmPhase::Stopping);
        if let StopMode::Graceful { within } = mode {
            self.wake_to_end(within).await;
        }
        let Some(running) = self.running.take() else { return Ok(()) };
        let ended = end_guest(&self.host, &running.vm, running.link.as_ref(), mode).await;
        let vm = self.close(running).await;
        // Whatever became of the guest, what it holds is released.
        let released = self.release(Some(&vm)).await;
        ended.and(released)
    }

    /// A guest that stands still cannot power off.
    async fn wake_to_end(&mut self, within: Duration) {
        match &self.running {
            Some(Running { cpus: Cpus::Paused, .. }) => {}
            Some(Running { cpus: Cpus::Running, .. }) | None => return,
        }
        if let Err(failed) = self.let_cpus_run("stop_woken").await {
            failed.report("waking a guest to be ended");
            return;
        }
        // Without an answer it is killed.
        if let Ok(Err(error)) = timeout(within, self.reach()).await {
            StepFailed { step: "stop_woken", error }.report("waking a guest to be ended");
        }
    }

    pub(super) async fn ensure_deleted(&mut self) -> Result<(), NodeError> {
        let outcome = self.delete().await;
        outcome.map_err(|failed| failed.report("deleting a VM"))
    }

    async fn delete(&mut self) -> Result<(), StepFailed> {
        if !self.present && self.ledger.is_none() {
            return Ok(());
        }
        if self.ledger.is_none() {
            let path = self.paths.ledger.clone();
            if self.paths.dir.exists() {
                let open = blocking(move || Ledger::open(&path)).await;
                self.ledger = Some(open.map_err(StepFailed::at("tombstone"))?);
            }
        }
        // From here on a crash leads to the end of the deletion, not back.
        if let Some(ledger) = self.ledger.clone()
            && !ledger.state().deleting
        {
            self.write_tombstone(ledger).await.map_err(StepFailed::at("tombstone"))?;
        }
        match self.running.take() {
            Some(running) => {
                self.set_phase(VmPhase::Stopping);
                let vm = self.close(running).await;
                self.release(Some(&vm)).await
            }
            None => self.release(None).await,
        }
    }

    async fn write_tombstone(&mut self, ledger: Ledger) -> Result<(), Error> {
        loop {
            ledger.append(Entry::Deleting).await?;
            match self.host.config.faults.after("tombstone").await? {
                Next::Proceed => return Ok(()),
                Next::Again => {}
            }
        }
    }

    /// The VM ended and nobody here asked it to.
    pub(super) async fn ended_by_itself(&mut self, exit: &Exit) {
        let Some(running) = self.running.take() else { return };
        let exit = exit_of(exit);
        tracing::info!(
            workspace.id = %self.slot.workspace_id,
            incarnation = %self.incarnation,
            ?exit,
            "VM ended by itself"
        );
        self.last_exit = Some(exit.clone());
        self.set_phase(VmPhase::Stopping);
        let vm = self.close(running).await;
        if let Some(ledger) = &self.ledger
            && let Err(error) = ledger.append(Entry::Exited { exit: exit.clone() }).await
        {
            StepFailed { step: "exited", error }.report("recording the end of a VM");
        }
        if let Err(failed) = self.release(Some(&vm)).await {
            failed.report("releasing a VM that ended");
        }
        // Nobody may be listening: control compares lists anyway.
        let _ = self.host.events.send(NodeEvent::Exited {
            workspace_id: self.slot.workspace_id,
            incarnation: self.incarnation,
            exit,
        });
    }

    /// Clean slate. On an error it is tried again later, and by the next request.
    pub(in crate::vm) async fn release(
        &mut self,
        vm: Option<&Arc<dyn Vm>>,
    ) -> Result<(), StepFailed> {
        let outcome = match &self.ledger {
            Some(ledger) => release_all(&self.host, &self.paths, ledger, vm).await,
            None => release_unnamed(&self.host, &self.paths).await,
        };
        match outcome {
            Ok(remains) => {
                self.retry_release = None;
                self.leases = None;
                self.ready_at = None;
                self.start_path = None;
                self.present = remains == Remains::Disk;
                if !self.present {
                    self.ledger = None;
                }
                self.set_phase(self.phase_at_rest());
                Ok(())
            }
            Err(failed) => {
                self.retry_release = Some(Instant::now() + RELEASE_RETRY);
                self.set_phase(VmPhase::Stopping);
                Err(failed)
            }
        }
    }
}

/// Without a ledger there is at most a directory that a failed start has just made.
async fn release_unnamed(host: &Host, paths: &VmPaths) -> Result<Remains, StepFailed> {
    if host.storage.disks.at(&paths.dir).exists() {
        return Ok(Remains::Disk);
    }
    let dir = paths.dir.clone();
    blocking(move || crate::layout::remove_tree(&dir))
        .await
        .map_err(StepFailed::at("release_logs"))?;
    Ok(Remains::Nothing)
}
