//! A process that boots.

use super::BringUp;
use crate::{error::Error, ledger::Entry};

impl BringUp<'_> {
    pub(super) async fn boot(&mut self) -> Result<(), Error> {
        if self.vm.is_some() {
            return Ok(());
        }
        self.boots += 1;
        let spec = self.machine()?;
        let mut committed = self.recorder("boot_commit")?;
        let bound = self.bound_of_one_boot();
        // Dropping the driver's future is safe: the process is either not let go yet, and ends by
        // itself, or it is in the ledger.
        tokio::select! {
            vm = self.host.vmm.boot(&spec, &mut committed) => self.vm = Some(vm?),
            () = self.cancel.cancelled() => return Err(Error::Cancelled),
            () = tokio::time::sleep(bound) => {
                return Err(Error::Timeout { bound_seconds: bound.as_secs() });
            }
        }
        Ok(())
    }

    /// Writes a process into the ledger before it is let go.
    pub(super) fn recorder(
        &self,
        point: &'static str,
    ) -> Result<impl FnMut(&skerry_vmm::VmmRecord) -> std::io::Result<()> + Send + use<>, Error>
    {
        let ledger = self.ledger.clone().ok_or(Error::StepMissing("ledger_intent"))?;
        let faults = self.host.config.faults.clone();
        Ok(move |record: &skerry_vmm::VmmRecord| {
            ledger.append_blocking(Entry::Process { record: record.clone() })?;
            faults.after_blocking(point).map_err(std::io::Error::other)
        })
    }

    /// Undoes the boot alone: the process, its sockets and its memory.
    pub(super) async fn undo_boot(&mut self) -> Result<(), Error> {
        if let Some(vm) = self.vm.take() {
            vm.kill().await?;
        }
        Ok(())
    }
}
