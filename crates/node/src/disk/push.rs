//! Putting an overlay on top of the disk of a VM that runs.
//!
//! Between the intention and its record lies a call to the VMM of which a crash may take the answer
//! away. So the new overlay is recorded before the VMM hears of it, and who finds it pending asks the
//! VMM again, or, when that is gone, looks whether anything was written to it.

use std::path::PathBuf;

use super::{
    Disk, qcow2,
    record::{DiskChain, DiskRecord},
};
use crate::{Error, layers::LayerId, layout::remove_file};

impl Disk {
    /// Whether [`Disk::begin_push`] was called and neither [`Disk::complete_push`] nor
    /// [`Disk::abort_push`] was since: after a crash of ours, only the running VMM knows which of the
    /// two is right. Once it has ended, the next use of the disk at rest decides by what was written.
    pub fn push_is_pending(&self) -> Result<bool, Error> {
        Ok(self.read()?.is_some_and(|record| record.pushing.is_some()))
    }

    /// The overlay of a push that is pending ([`Disk::push_is_pending`]): to ask the VMM again.
    pub fn pending_overlay(&self) -> Result<Option<PathBuf>, Error> {
        let pushing = self.read()?.and_then(|record| record.pushing);
        Ok(pushing.map(|id| self.overlay_path(id)))
    }

    /// Records that the disk of a VM that runs is at least so large, before the VMM makes it so; answers
    /// how large it is to be. Whoever opens it next makes it so where the VMM did not.
    ///
    /// # Errors
    /// [`Error::Disk`] when there is no disk, or an overlay is being put on top.
    pub fn intend_size(&self, wanted_bytes: u64) -> Result<u64, Error> {
        let mut record = self.read()?.ok_or_else(|| self.wrong("there is no disk"))?;
        if record.pushing.is_some() {
            return Err(self.wrong("an overlay is being put on top of it"));
        }
        let wanted_bytes = super::whole_sectors(wanted_bytes);
        if record.chain.size_bytes < wanted_bytes {
            record.chain.size_bytes = wanted_bytes;
            self.commit(&record)?;
        }
        Ok(record.chain.size_bytes)
    }

    /// Makes an empty overlay, to be given to [`skerry_vmm::Vm::push_overlay`], and records that it
    /// may be on top from now on. Follow with [`Disk::complete_push`] when the VMM has it, with
    /// [`Disk::abort_push`] when it surely has not; with neither when that is not known.
    ///
    /// # Errors
    /// [`Error::Disk`] when there is no disk, an earlier push is pending, or no further layer is
    /// permitted.
    pub fn begin_push(&self) -> Result<PathBuf, Error> {
        let mut record = self.read()?.ok_or_else(|| self.wrong("there is no disk"))?;
        if record.pushing.is_some_and(|pushing| self.overlay_path(pushing).exists()) {
            return Err(self.wrong("an overlay is being put on top of it already"));
        }
        if record.chain.overlay.is_none() {
            return Err(self.wrong("it has no overlay that could be frozen"));
        }
        self.check_depth(&record.chain)?;
        let (id, file) = self.make_overlay(record.chain.size_bytes)?;
        record.pushing = Some(id);
        self.commit_naming(&record, id, &file)?;
        self.disks.faults.after_blocking("push_intended")?;
        Ok(self.overlay_path(id))
    }

    /// The VMM writes to the new overlay: the former one becomes a layer. Takes as long as its data
    /// need to reach the disk. Repeating it, or calling it when nothing is pending, is a success.
    pub fn complete_push(&self) -> Result<DiskChain, Error> {
        let record = self.read()?.ok_or_else(|| self.wrong("there is no disk"))?;
        let (Some(pushing), Some(former)) = (record.pushing, record.chain.overlay) else {
            return Ok(record.chain);
        };
        self.disks.layers.freeze(&self.overlay_path(former), former)?;
        let mut chain = record.chain;
        chain.layers.insert(0, former);
        chain.overlay = Some(pushing);
        let record = DiskRecord { chain, pushing: None, ..record };
        self.commit(&record)?;
        self.disks.faults.after_blocking("push_recorded")?;
        Ok(record.chain)
    }

    /// The VMM surely does not have the new overlay: it is removed. A success when nothing is
    /// pending.
    pub fn abort_push(&self) -> Result<(), Error> {
        let Some(mut record) = self.read()? else { return Ok(()) };
        let Some(pushing) = record.pushing.take() else { return Ok(()) };
        self.commit(&record)?;
        remove_file(&self.overlay_path(pushing))
    }

    /// Decides whether an overlay was put on top. One that is empty reads as what is below it, so
    /// that either answer would be right; one that is not was written through.
    pub(super) fn settle_push(
        &self,
        record: &mut DiskRecord,
        pushing: LayerId,
    ) -> Result<(), Error> {
        let path = self.overlay_path(pushing);
        match record.chain.overlay {
            None if path.exists() => record.chain.overlay = Some(pushing),
            None => return Err(self.wrong(format!("its overlay {pushing} is missing"))),
            Some(former) if path.exists() => {
                let empty = qcow2::is_empty(&path, record.chain.size_bytes);
                if !empty.map_err(Error::path("reading", &path))? {
                    self.disks.layers.freeze(&self.overlay_path(former), former)?;
                    record.chain.layers.insert(0, former);
                    record.chain.overlay = Some(pushing);
                }
            }
            Some(_) => {}
        }
        Ok(())
    }
}
