//! Making a guest stand still and letting it go on: what pausing, suspending and snapshots have in
//! common. Each step can be taken twice, and what stands still can be let go on from anywhere.

use std::{future::Future, sync::Arc, time::Duration};

use skerry_internal_api::NodeError;
use tokio::time::timeout;

use super::owner::{Cpus, Owner, Running, phase_of, unlocked};
use crate::{error::Error, faults::Next, guest::GuestLink, host::StepFailed, ledger::Entry};

/// Stopping CPUs waits for the disk's requests under way; letting them go waits for nothing.
pub(crate) const CPUS_WITHIN: Duration = Duration::from_secs(30);
/// How long the agent of a VM that was taken over may take to be reached.
const REACHED_WITHIN: Duration = Duration::from_secs(30);

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

    /// Writes into the ledger.
    pub(super) async fn note(&self, step: &'static str, entry: Entry) -> Result<(), StepFailed> {
        let ledger = self.ledger.clone().ok_or(Error::StepMissing("ledger_intent"));
        let ledger = ledger.map_err(StepFailed::at(step))?;
        self.step(step, || ledger.append(entry.clone())).await
    }

    /// Stops the CPUs. What the guest is asked from now on waits.
    pub(super) async fn stop_cpus(&self, step: &'static str) -> Result<(), StepFailed> {
        let running = self.process(step)?;
        let vm = &running.vm;
        self.step(step, || async { Ok(vm.pause(CPUS_WITHIN).await?) }).await
    }

    /// Lets the CPUs run, and the guest be asked.
    pub(super) async fn let_cpus_run(&self, step: &'static str) -> Result<(), StepFailed> {
        let running = self.process(step)?;
        let vm = &running.vm;
        self.step(step, || async { Ok(vm.resume(CPUS_WITHIN).await?) }).await?;
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
