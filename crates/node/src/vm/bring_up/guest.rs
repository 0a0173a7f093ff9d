//! The guest answers and becomes the workspace's; the start is complete.

use std::{sync::Arc, time::Duration};

use super::{BringUp, Whose, in_words, source::Source};
use crate::{
    error::{Error, blocking},
    ledger::{Entry, Ledger},
    vm::{forget_memory, link},
};

impl BringUp<'_> {
    pub(super) async fn wait_for_guest(&mut self) -> Result<(), Error> {
        if self.configured {
            return Ok(());
        }
        let vm = self.vm.clone().ok_or(Error::StepMissing("boot"))?;
        let bound = match self.source()? {
            Source::Boot | Source::SnapshotDisk(_) => self.bound_of_one_boot(),
            Source::Template(_)
            | Source::Pool { .. }
            | Source::SavedMemory(_)
            | Source::SnapshotMemory(_) => self.host.restore_bound(),
        };
        let environment = &self.host.environment;
        let identity = self.identity.as_ref().ok_or(Error::StepMissing("vm_directory"))?;
        let tenant = link::Tenant { spec: self.spec, identity, defaults: &self.ground()?.defaults };
        let configure = async {
            match (&self.link, self.whose) {
                (Some(link), _) => {
                    link.release();
                    link::claim(link, tenant, environment, bound).await?;
                    Ok(Arc::clone(link))
                }
                (None, Whose::Workspace) => link::open(&vm, tenant, environment, bound).await,
                (None, Whose::Nobody) => link::open_unclaimed(&vm, environment, bound).await,
            }
        };
        let link = tokio::select! {
            link = configure => link.map_err(Error::Guest)?,
            exit = vm.wait_exit() => return Err(Error::EndedEarly(in_words(&exit))),
            () = self.cancel.cancelled() => return Err(Error::Cancelled),
            // The link has the same bound; this one holds whatever the guest does to it.
            () = tokio::time::sleep(bound + Duration::from_secs(1)) => {
                return Err(Error::Timeout { bound_seconds: bound.as_secs() });
            }
        };
        self.link = Some(link);
        self.configured = true;
        Ok(())
    }

    pub(super) async fn commit(&mut self) -> Result<(), Error> {
        if let Some(writing) = self.before_ready.take() {
            writing.done().await?;
        }
        let ledger = self.ledger.clone().ok_or(Error::StepMissing("ledger_intent"))?;
        let path = Some(self.source()?.path());
        let at = *self.ready_at.get_or_insert_with(|| self.host.environment.now());
        match self.source()? {
            // It has been said before the CPUs ran.
            Source::SavedMemory(_) => {
                ledger.append(Entry::Resumed).await?;
                self.remove_saved_memory(&ledger).await
            }
            Source::Boot | Source::Template(_) => ledger.append(Entry::Ready { at, path }).await,
            // What was to be durable is; a host that goes down now takes the VM along, and then
            // nobody asks whether it was ready.
            Source::Pool { .. } => ledger.note(Entry::Ready { at, path }).await,
            Source::SnapshotDisk(_) | Source::SnapshotMemory(_) => {
                // Memory that belongs to the disk that was replaced.
                let mut entries = vec![Entry::Ready { at, path }];
                if ledger.state().memory_saved {
                    entries.insert(0, Entry::MemoryForgotten);
                }
                ledger.append_all(entries).await?;
                let disk = self.host.storage.disks.at(&self.paths.dir);
                blocking(move || disk.keep_replacement()).await?;
                self.remove_saved_memory(&ledger).await
            }
        }
    }

    /// Nothing reads it any more. Here and now: the next suspension puts its own in the same place.
    async fn remove_saved_memory(&self, ledger: &Ledger) -> Result<(), Error> {
        let removed = forget_memory(self.host, self.paths, ledger).await;
        removed.map_err(|failed| failed.error)
    }
}
