//! The volumes that a start comes with.

use std::sync::Arc;

use super::{BringUp, Whose, source::Source};
use crate::{
    error::{Error, blocking},
    ledger::Entry,
    vm::volumes::{mount_in, put_in},
};

impl BringUp<'_> {
    /// Before a guest goes on that has them mounted.
    pub(super) async fn attach_volumes(&mut self) -> Result<(), Error> {
        let vm = self.vm.clone().ok_or(Error::StepMissing("park"))?;
        let ledger = self.ledger.clone().ok_or(Error::StepMissing("ledger_intent"))?;
        for mount in &self.spec.volumes {
            put_in(self.host, self.paths, &ledger, &vm, mount).await?;
        }
        Ok(())
    }

    /// Into a guest that has answered, and mounted before anybody else hears of it.
    pub(super) async fn mount_volumes(&mut self) -> Result<(), Error> {
        match self.whose {
            Whose::Workspace => {}
            Whose::Nobody => return Ok(()),
        }
        match self.source()? {
            // They are mounted.
            Source::SavedMemory(_) => return self.note_mounted().await,
            Source::Boot
            | Source::Template(_)
            | Source::Pool { .. }
            | Source::SnapshotMemory(_)
            | Source::SnapshotDisk(_) => {}
        }
        let ledger = self.ledger.as_ref().ok_or(Error::StepMissing("ledger_intent"))?;
        if ledger.state().volumes.is_empty() {
            // Of a suspended guest that did not go on.
            let (volumes, dir) = (Arc::clone(&self.host.volumes), self.paths.dir.clone());
            blocking(move || volumes.forget_scratch(&dir)).await?;
        }
        self.attach_volumes().await?;
        let link = Arc::clone(self.link.as_ref().ok_or(Error::StepMissing("guest_ready"))?);
        for mount in &self.spec.volumes {
            tokio::select! {
                mounted = mount_in(&link, mount) => mounted?,
                () = self.cancel.cancelled() => return Err(Error::Cancelled),
            }
        }
        self.note_mounted().await
    }

    async fn note_mounted(&self) -> Result<(), Error> {
        let ledger = self.ledger.as_ref().ok_or(Error::StepMissing("ledger_intent"))?;
        for mount in &self.spec.volumes {
            ledger.note(Entry::VolumeMounted { slot: mount.slot }).await?;
        }
        Ok(())
    }
}
