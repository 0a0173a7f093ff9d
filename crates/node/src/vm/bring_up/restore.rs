//! A process that loads a saved machine.

use std::{path::PathBuf, time::Duration};

use skerry_vmm::{RestoreSpec, RestoredMemory, VmmError};

use super::{
    BringUp,
    aside::Aside,
    in_words,
    shared::{Checked, SnapshotMemory},
    source::Source,
};
use crate::{error::Error, ledger::Entry, saved::STATE_FILE};

/// Letting CPUs run on is one message.
pub(crate) const RESUME_WITHIN: Duration = Duration::from_secs(30);

impl BringUp<'_> {
    pub(super) async fn park(&mut self) -> Result<(), Error> {
        if self.vm.is_some() {
            return Ok(());
        }
        let Saved { state, memory, checked } = self.saved()?;
        if !checked.is_empty() {
            // Reading all of it takes as long as loading it: both at once, and the guest does not
            // run before both are done.
            let states = self.host.storage.states.clone();
            self.before_resume = Some(Aside::begin(move || {
                checked.iter().try_for_each(|checked| checked.verify(&states))
            }));
        }
        let spec = RestoreSpec { machine: self.machine()?, state, memory };
        let mut committed = self.recorder("park_commit")?;
        let bound = self.host.restore_bound();
        tokio::select! {
            vm = self.host.vmm.park(&spec, &mut committed) => {
                self.vm = Some(vm.map_err(|error| self.explain(error))?);
            }
            () = self.cancel.cancelled() => return Err(Error::Cancelled),
            () = tokio::time::sleep(bound) => {
                return Err(Error::Timeout { bound_seconds: bound.as_secs() });
            }
        }
        Ok(())
    }

    pub(super) async fn load(&mut self) -> Result<(), Error> {
        if self.loaded {
            return Ok(());
        }
        let vm = self.vm.clone().ok_or(Error::StepMissing("park"))?;
        let bound = self.host.restore_bound();
        tokio::select! {
            loaded = vm.load(bound) => loaded.map_err(|error| self.explain(error))?,
            exit = vm.wait_exit() => return Err(Error::EndedEarly(in_words(&exit))),
            () = self.cancel.cancelled() => return Err(Error::Cancelled),
        }
        self.loaded = true;
        Ok(())
    }

    /// From here on the VM is the workspace's, though it stands still: a server that dies before it
    /// is resumed takes it over paused. Nothing is ever loaded from the saved memory again.
    pub(super) async fn spend_memory(&mut self) -> Result<(), Error> {
        if self.ready_at.is_some() {
            return Ok(());
        }
        self.checked().await?;
        let at = self.host.environment.now();
        let path = Some(self.source()?.path());
        let ledger = self.ledger.as_ref().ok_or(Error::StepMissing("ledger_intent"))?;
        let goes_on = vec![Entry::Paused, Entry::Ready { at, path }, Entry::MemoryForgotten];
        ledger.append_all(goes_on).await?;
        self.ready_at = Some(at);
        Ok(())
    }

    pub(super) async fn resume(&mut self) -> Result<(), Error> {
        self.checked().await?;
        let vm = self.vm.as_ref().ok_or(Error::StepMissing("park"))?;
        tokio::select! {
            resumed = vm.resume(RESUME_WITHIN) => resumed?,
            // What is released next is killed, whatever became of this.
            () = self.cancel.cancelled() => return Err(Error::Cancelled),
        }
        Ok(())
    }

    /// Waits until what is loaded is known to be what was saved.
    pub async fn checked(&mut self) -> Result<(), Error> {
        match self.before_resume.take() {
            Some(check) => check.done().await,
            None => Ok(()),
        }
    }

    fn saved(&self) -> Result<Saved, Error> {
        Ok(match self.source()? {
            Source::Template(template) => Saved {
                state: template.state.clone(),
                memory: RestoredMemory::CloneOf { file: template.ram.clone() },
                // In full when the node was opened; a look at each now.
                checked: vec![Checked::All(template.sealed.clone())],
            },
            Source::SavedMemory(sealed) => Saved {
                state: sealed.file(STATE_FILE).ok_or(Error::StepMissing("reserve"))?,
                memory: RestoredMemory::InState,
                checked: vec![Checked::All(sealed.clone())],
            },
            Source::SnapshotMemory(SnapshotMemory { checked, state, memory, .. }) => {
                Saved { state: state.clone(), memory: memory.clone(), checked: checked.clone() }
            }
            Source::Boot | Source::Pool { .. } | Source::SnapshotDisk(_) => {
                return Err(Error::StepMissing("reserve"));
            }
        })
    }

    /// What the driver refuses of a state is the state's fault.
    fn explain(&self, error: VmmError) -> Error {
        match (error, &self.source) {
            (
                VmmError::InvalidState(problem),
                Some(
                    Source::SavedMemory(sealed)
                    | Source::SnapshotMemory(SnapshotMemory { snapshot: sealed, .. }),
                ),
            ) => Error::SavedState { path: sealed.place().to_owned(), problem },
            (error, _) => Error::Vmm(error),
        }
    }
}

/// What is loaded.
struct Saved {
    state: PathBuf,
    memory: RestoredMemory,
    /// What has to be as it was sealed.
    checked: Vec<Checked>,
}
