//! Making a guest stand still and letting it go on: what pausing, suspending and snapshots have in
//! common. Each step can be taken twice, and [`Owner::go_on`] undoes all of them from anywhere.

use std::{future::Future, sync::Arc, time::Duration};

use skerry_internal_api::{NodeError, VmPhase};
use tokio::time::{Instant, timeout};

use super::owner::{Cpus, Owner, Running, phase_of, unlocked};
use crate::{
    error::Error,
    faults::Next,
    guest::{Frozen, GuestLink},
    host::StepFailed,
    ledger::{Entry, Ledger},
};

/// Stopping CPUs waits for the disk's requests under way; letting them go waits for nothing.
pub(crate) const CPUS_WITHIN: Duration = Duration::from_secs(30);
/// After a sync little is left to be written back; without one a slow disk takes its time.
const FROZEN_WITHIN: Duration = Duration::from_secs(60);
/// A guest that does not answer by then thaws by itself, or when it is connected again.
pub(super) const THAWED_WITHIN: Duration = Duration::from_secs(15);
/// A VM that does not run on at the first try may at the second.
const RESUME_TRIES: u32 = 2;
/// How long the agent of a VM that was taken over may take to be reached.
const REACHED_WITHIN: Duration = Duration::from_secs(30);

/// How a guest was when it went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WentOn {
    /// Whether its file systems were frozen until then.
    pub frozen: Frozen,
    /// When it could write again.
    pub at: Instant,
}

impl Owner {
    /// Takes a step until the point after it lets go on.
    pub(super) async fn step<T, F>(
        &self,
        step: &'static str,
        mut take: impl FnMut() -> F,
    ) -> Result<T, StepFailed>
    where
        F: Future<Output = Result<T, Error>>,
    {
        loop {
            let taken = take().await.map_err(StepFailed::at(step))?;
            match self.host.config.faults.after(step).await.map_err(StepFailed::at(step))? {
                Next::Proceed => return Ok(taken),
                Next::Again => {}
            }
        }
    }

    /// Passes the point after a step that cannot be taken twice.
    pub(super) async fn passed(&self, step: &'static str) -> Result<(), StepFailed> {
        let passed = self.host.config.faults.after(step).await;
        passed.map(|_| ()).map_err(StepFailed::at(step))
    }

    /// Writes into the ledger what only matters as long as the process lives: it outlives us, and the
    /// process does not outlive the host.
    pub(super) async fn note(&self, step: &'static str, entry: Entry) -> Result<(), StepFailed> {
        let ledger = self.ledger_for(step)?;
        self.step(step, || ledger.note(entry.clone())).await
    }

    /// Writes into the ledger what outlives the host.
    pub(super) async fn record(&self, step: &'static str, entry: Entry) -> Result<(), StepFailed> {
        let ledger = self.ledger_for(step)?;
        self.step(step, || ledger.append(entry.clone())).await
    }

    fn ledger_for(&self, step: &'static str) -> Result<Ledger, StepFailed> {
        let ledger = self.ledger.clone().ok_or(Error::StepMissing("ledger_intent"));
        ledger.map_err(StepFailed::at(step))
    }

    /// Stops the CPUs. What the guest is asked from now on waits.
    pub(super) async fn stop_cpus(&self, step: &'static str) -> Result<(), StepFailed> {
        let running = self.process(step)?;
        if let Some(link) = &running.link {
            link.hold();
        }
        let vm = &running.vm;
        self.step(step, || async { Ok(vm.pause(CPUS_WITHIN).await?) }).await
    }

    /// Lets the CPUs run, and the guest be asked.
    pub(super) async fn let_cpus_run(&self, step: &'static str) -> Result<(), StepFailed> {
        let running = self.process(step)?;
        let vm = &running.vm;
        self.step(step, || async { Ok(vm.resume(CPUS_WITHIN).await?) }).await?;
        if let Some(link) = &running.link {
            link.release();
        }
        Ok(())
    }

    /// The line to the guest, waiting for it if the VM was just taken over.
    pub(super) async fn reach(&mut self) -> Result<Arc<GuestLink>, Error> {
        self.connect();
        let running = self.running.as_mut().ok_or(Error::StepMissing("boot"))?;
        if let Some(link) = &running.link {
            return Ok(Arc::clone(link));
        }
        let connecting = running.connecting.as_mut().ok_or(Error::StepMissing("guest_ready"))?;
        let link = timeout(REACHED_WITHIN, unlocked(connecting))
            .await
            .map_err(|_| Error::Timeout { bound_seconds: REACHED_WITHIN.as_secs() })?;
        self.attach(Arc::clone(&link));
        Ok(link)
    }

    /// Freezes the guest's file systems, written back.
    pub(super) async fn freeze(
        &self,
        link: &GuestLink,
        step: &'static str,
    ) -> Result<(), StepFailed> {
        self.step(step, || async { link.freeze(FROZEN_WITHIN).await.map_err(Error::Guest) }).await
    }

    /// The VM goes on as it was: its CPUs run, its file systems take writes, its clock is set; and then
    /// it is paused again if it was.
    ///
    /// What the VMM cannot do is logged and tried again by the next resume. A guest that does not
    /// answer thaws when it is connected again.
    pub(super) async fn go_on(&mut self, as_before: Cpus, step: &'static str) -> WentOn {
        let mut tries = 0;
        while let Err(failed) = self.let_cpus_run(step).await {
            failed.report("letting a VM run on");
            tries += 1;
            if tries == RESUME_TRIES {
                self.settle_as(Cpus::Paused);
                return WentOn { frozen: Frozen::NoMore, at: Instant::now() };
            }
        }
        let went_on = self.thaw().await;
        match as_before {
            Cpus::Running => self.settle_as(Cpus::Running),
            Cpus::Paused => match self.stop_cpus(step).await {
                Ok(()) => self.settle_as(Cpus::Paused),
                Err(failed) => {
                    failed.report("pausing a VM again");
                    self.settle_as(Cpus::Running);
                }
            },
        }
        went_on
    }

    async fn thaw(&self) -> WentOn {
        let Some(link) = self.running.as_ref().and_then(|running| running.link.as_ref()) else {
            return WentOn { frozen: Frozen::NoMore, at: Instant::now() };
        };
        let thawed = link.thaw(THAWED_WITHIN).await;
        let at = Instant::now();
        let set = match &thawed {
            Ok(_) => link.sync_clock().await,
            Err(_) => Ok(()),
        };
        if let Some(error) = thawed.as_ref().err().or(set.as_ref().err()) {
            tracing::warn!(
                workspace.id = %self.slot.workspace_id,
                %error,
                "the guest does not answer after a standstill"
            );
        }
        WentOn { frozen: thawed.unwrap_or(Frozen::NoMore), at }
    }

    /// The VM is busy with this, and nobody is to begin anything in its guest.
    pub(super) fn withhold_guest(&mut self, phase: VmPhase) {
        self.slot.status.send_modify(|status| status.guest = None);
        self.set_phase(phase);
    }

    /// That is what the VM is from now on, for everybody.
    pub(super) fn settle_as(&mut self, cpus: Cpus) {
        let Some(running) = &mut self.running else { return };
        running.cpus = cpus;
        self.publish_guest();
        self.set_phase(phase_of(cpus));
    }

    /// The VM's process.
    pub(super) fn process(&self, step: &'static str) -> Result<&Running, StepFailed> {
        let gone = || StepFailed { step, error: Error::Guest(NodeError::NotRunning) };
        self.running.as_ref().ok_or_else(gone)
    }
}
