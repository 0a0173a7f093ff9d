//! Stopping the virtual CPUs of a VM and letting them run on, its memory resident.
//!
//! The guest's connection is held meanwhile, so that what runs in the guest, and whoever listens to
//! it, notices nothing but the time that passed. That a VM is paused is in its ledger, because a
//! server that takes it over must not find it out by waiting for an answer.

use skerry_internal_api::{NodeError, VmPhase, VmReport};
use skerry_model::Incarnation;
use skerry_vmm::Capability;

use super::{
    owner::{Cpus, Owner},
    stillness::THAWED_WITHIN,
};
use crate::{error::Error, host::StepFailed, ledger::Entry};

impl Owner {
    pub(super) async fn ensure_paused(
        &mut self,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        match self.phase_of_start(incarnation)? {
            VmPhase::Paused => return Ok(self.report()),
            VmPhase::Running => {}
            VmPhase::Starting
            | VmPhase::Suspending
            | VmPhase::Suspended
            | VmPhase::Stopping
            | VmPhase::Stopped => return Err(NodeError::NotRunning),
        }
        self.require(Capability::Pause, "pausing")?;
        match self.pause().await {
            Ok(()) => Ok(self.report()),
            Err(failed) => {
                let answer = failed.report("pausing a VM");
                self.undo_pause().await;
                Err(answer)
            }
        }
    }

    pub(super) async fn ensure_resumed(
        &mut self,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        match self.phase_of_start(incarnation)? {
            VmPhase::Running => return Ok(self.report()),
            VmPhase::Paused => {}
            VmPhase::Starting
            | VmPhase::Suspending
            | VmPhase::Suspended
            | VmPhase::Stopping
            | VmPhase::Stopped => return Err(NodeError::NotRunning),
        }
        self.resume().await.map_err(|failed| failed.report("resuming a VM"))?;
        Ok(self.report())
    }

    /// How far the VM of this start is.
    pub(super) fn phase_of_start(&self, incarnation: Incarnation) -> Result<VmPhase, NodeError> {
        let deleting = self.ledger.as_ref().is_some_and(|ledger| ledger.state().deleting);
        if !self.present || deleting || self.incarnation != incarnation {
            return Err(NodeError::NoSuchVm);
        }
        Ok(self.phase)
    }

    /// That the driver can do it here.
    pub(super) fn require(&self, capability: Capability, doing: &str) -> Result<(), NodeError> {
        if self.host.vmm.capabilities().supported.contains(&capability) {
            Ok(())
        } else {
            Err(NodeError::Unsupported(doing.to_owned()))
        }
    }

    async fn pause(&mut self) -> Result<(), StepFailed> {
        self.note("pause_noted", Entry::Paused).await?;
        self.stop_cpus("paused").await?;
        self.settle_as(Cpus::Paused);
        Ok(())
    }

    /// The VM runs as before, unless its process is gone.
    async fn undo_pause(&mut self) {
        if let Err(failed) = self.let_cpus_run("pause_undone").await {
            failed.report("letting a VM run on that could not be paused");
            // It may stand still: then that is what it is, and a resume tries again.
            self.settle_as(Cpus::Paused);
            return;
        }
        self.settle_as(Cpus::Running);
        if let Err(failed) = self.note("pause_undone", Entry::Resumed).await {
            failed.report("recording that a VM runs on");
        }
    }

    pub(super) async fn resume(&mut self) -> Result<(), StepFailed> {
        let saving = self.ledger.as_ref().and_then(|ledger| ledger.state().saving);
        if saving.is_some() {
            // A save could not be given up when it failed: it is now, before the guest runs.
            self.unsave().await?;
        }
        self.let_cpus_run("cpus_resumed").await?;
        self.settle_as(Cpus::Running);
        let link = self.reach().await;
        // The record comes after the deed: a server that dies in between takes the VM over as paused
        // and whoever resumed it, having had no answer, does so again. So both can be waited for at
        // once, and a full disk keeps nobody from going on.
        let noted = async {
            if saving.is_some() {
                self.note("suspension_ended", Entry::SaveEnded).await?;
            }
            self.note("resume_noted", Entry::Resumed).await
        };
        let answered = async {
            let link = link?;
            if saving.is_some() {
                link.thaw(THAWED_WITHIN).await.map_err(Error::Guest)?;
            }
            link.sync_clock().await.map_err(Error::Guest)
        };
        let (noted, answered) = tokio::join!(noted, answered);
        if let Err(failed) = noted {
            failed.report("recording that a VM runs on");
        }
        answered.map_err(StepFailed::at("resumed"))
    }
}
