//! The volumes that a start comes with.

use std::sync::Arc;

use super::{BringUp, Whose, source::Source};
use crate::{
    error::Error,
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
        if self.spec.volumes.is_empty() || self.whose == Whose::Nobody {
            return Ok(());
        }
        match self.source()? {
            // They are mounted.
            Source::SavedMemory(_) => return Ok(()),
            Source::Boot
            | Source::Template(_)
            | Source::Pool { .. }
            | Source::SnapshotMemory(_)
            | Source::SnapshotDisk(_) => {}
        }
        self.attach_volumes().await?;
        let link = Arc::clone(self.link.as_ref().ok_or(Error::StepMissing("guest_ready"))?);
        for mount in &self.spec.volumes {
            tokio::select! {
                mounted = mount_in(&link, mount) => mounted?,
                () = self.cancel.cancelled() => return Err(Error::Cancelled),
            }
        }
        Ok(())
    }
}
