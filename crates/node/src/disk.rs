//! A workspace's disk: a writable qcow2 overlay on frozen layers on the image's raw base.
//!
//! ```text
//! <dir>/disk.json           the chain; the only place that says what the disk is
//! <dir>/<layer id>.qcow2    the overlay; frozen, it moves into the store of layers under this name
//! ```
//! `<dir>` is a VM's directory or a pool slot's. The file is replaced as a whole, and every operation
//! is ordered so that after a crash between any two steps the file still says what the disk is:
//! an overlay is made before it is named, and removed after it is not named any more. What the
//! directory holds beside is swept by [`Disk::settle`].
//!
//! Nothing here runs a program or reads more of an overlay than its header: whatever a VM wrote is
//! parsed by that VM's own process only.
//!
//! All of it blocks. One caller at a time for one directory (the VM's owner task).

mod push;
mod qcow2;
mod record;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::CRASH_SCRIPTS;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::lchown,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::unistd::{getegid, geteuid};
use skerry_model::spec::ImageDigest;
use skerry_vmm::DiskSpec;

use self::record::DiskRecord;
pub(crate) use self::{
    qcow2::most_file_bytes,
    record::{DiskChain, layers_named_by},
};
use crate::{
    Error, NodeEnvironment,
    faults::Faults,
    layers::{Holder, LayerId, LayerStore},
    layout::{names_in, remove_file, sync_parent},
};

const RECORD: &str = "disk.json";
/// The overlay of a disk that was made before disks had records.
const UNRECORDED: &str = "disk.qcow2";

/// Writes an empty qcow2 image for a disk of `size_bytes` (a multiple of 512, at most 4 TiB) into the
/// new, empty `file`. For whoever drives a hypervisor without a node.
///
/// # Errors
/// Another size, and what the file system says.
pub fn write_empty_overlay(file: &File, size_bytes: u64) -> io::Result<()> {
    qcow2::write_empty(file, size_bytes)
}

/// What a disk that is not there yet is made on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Foundation {
    /// The image at the bottom.
    pub image_digest: ImageDigest,
    /// Frozen layers above it, the uppermost first: a template's or a snapshot's.
    pub layers: Vec<LayerId>,
    /// The size of what stands there already; the disk is never smaller.
    pub size_bytes: u64,
}

/// The disks of a node. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Disks {
    layers: Arc<LayerStore>,
    environment: NodeEnvironment,
    faults: Faults,
}

/// One disk, there or not yet.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    disks: Disks,
}

impl Disks {
    pub fn new(layers: Arc<LayerStore>, environment: NodeEnvironment, faults: Faults) -> Self {
        Self { layers, environment, faults }
    }

    /// The disk in the directory `dir`.
    pub fn at(&self, dir: &Path) -> Disk {
        Disk { dir: dir.to_owned(), disks: self.clone() }
    }

    /// The directory `old` with a disk in it was renamed to `new`, durably.
    pub fn moved(&self, old: &Path, new: &Path) {
        self.layers.moved(&Holder(old.to_owned()), &Holder(new.to_owned()));
    }
}

impl Disk {
    /// Whether there is a disk.
    pub fn exists(&self) -> bool {
        self.record_path().exists() || self.dir.join(UNRECORDED).exists()
    }

    /// The chain as it is recorded; `None` when there is no disk. While an overlay is being put on
    /// top ([`Disk::begin_push`]) it is the chain without it.
    pub fn chain(&self) -> Result<Option<DiskChain>, Error> {
        Ok(self.read()?.map(|record| record.chain))
    }

    /// Makes the disk, or grows the one that is there, to at least `wanted_bytes`; never shrinks.
    /// `foundation` only matters when there is no disk yet. No process may have it open.
    ///
    /// # Errors
    /// [`Error::Disk`] when what is there is damaged, or a layer is missing.
    pub fn ensure(&self, foundation: &Foundation, wanted_bytes: u64) -> Result<DiskChain, Error> {
        let wanted_bytes = whole_sectors(wanted_bytes);
        let mut record = match self.settle()? {
            Some(record) => record,
            None => match self.take_unrecorded(&foundation.image_digest)? {
                Some(record) => record,
                None => DiskRecord::new(DiskChain {
                    overlay: None,
                    layers: foundation.layers.clone(),
                    image_digest: foundation.image_digest.clone(),
                    size_bytes: whole_sectors(foundation.size_bytes),
                }),
            },
        };
        let _kept = self.disks.layers.guard(&record.chain.layers)?;
        let size_bytes = record.chain.size_bytes.max(wanted_bytes);
        if let Some(overlay) = record.chain.overlay {
            if self.grow_in_place(&mut record, overlay, size_bytes)? {
                return Ok(record.chain);
            }
            // Its table of clusters is too small: it becomes a layer below a larger overlay.
            record = self.freeze_top(record, overlay)?;
        }
        record.chain.size_bytes = size_bytes;
        self.add_overlay(record)
    }

    /// Replaces the disk by a new one on `foundation`. The old one is kept until
    /// [`Disk::keep_replacement`] or [`Disk::revert_replacement`]; replacing again before that gives
    /// up the first replacement. No process may have it open.
    pub fn replace(&self, foundation: &Foundation, wanted_bytes: u64) -> Result<DiskChain, Error> {
        let before = match self.settle()? {
            Some(record) => Some(record),
            None => self.take_unrecorded(&foundation.image_digest)?,
        };
        let mut record = DiskRecord::new(DiskChain {
            overlay: None,
            layers: foundation.layers.clone(),
            image_digest: foundation.image_digest.clone(),
            size_bytes: whole_sectors(foundation.size_bytes.max(wanted_bytes)),
        });
        record.previous = before.map(|before| before.previous.unwrap_or(before.chain));
        let chain = self.add_overlay(record)?;
        self.sweep()?;
        self.disks.faults.after_blocking("disk_replaced")?;
        Ok(chain)
    }

    /// The replacement has proved itself: what the disk was before is removed. A success when there
    /// is none.
    pub fn keep_replacement(&self) -> Result<(), Error> {
        match self.read()? {
            Some(record @ DiskRecord { previous: Some(_), .. }) => {
                self.commit(&DiskRecord { previous: None, ..record })?;
                self.sweep()
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The disk is again what it was before [`Disk::replace`]. A success when it was not replaced. No
    /// process may have it open.
    pub fn revert_replacement(&self) -> Result<(), Error> {
        match self.read()? {
            Some(DiskRecord { previous: Some(previous), .. }) => {
                self.commit(&DiskRecord::new(previous))?;
                self.sweep()
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Makes everything that was written a layer, so that the chain's layers are the whole disk; the
    /// next start gets a new overlay. An overlay that nothing was written to stays where it is. No
    /// process may have it open.
    pub fn freeze(&self) -> Result<DiskChain, Error> {
        let record = self.settle()?.ok_or_else(|| self.wrong("there is no disk"))?;
        let Some(overlay) = record.chain.overlay else { return Ok(record.chain) };
        let path = self.overlay_path(overlay);
        let empty = qcow2::is_empty(&path, record.chain.size_bytes);
        if empty.map_err(Error::path("reading", &path))? {
            return Ok(record.chain);
        }
        let record = self.freeze_top(record, overlay)?;
        self.commit(&record)?;
        Ok(record.chain)
    }

    /// The VMM has copied into the top what it needed from the layers of `chain`
    /// ([`skerry_vmm::Vm::flatten_disk`]): the top stands on the image alone, and the layers go
    /// unless somebody else needs them.
    ///
    /// # Errors
    /// [`Error::Disk`] when the chain is not that one any more.
    pub fn flattened(&self, chain: &DiskChain) -> Result<DiskChain, Error> {
        match self.read()? {
            Some(mut record) if record.chain == *chain && record.pushing.is_none() => {
                record.chain.layers.clear();
                self.commit(&record)?;
                Ok(record.chain)
            }
            Some(_) | None => Err(self.wrong("it changed while it was flattened")),
        }
    }

    /// Records a disk that is the frozen layers of `foundation` and nothing else. One that is recorded
    /// already stays.
    pub fn keep(&self, foundation: &Foundation) -> Result<(), Error> {
        if self.exists() {
            return Ok(());
        }
        let _kept = self.disks.layers.guard(&foundation.layers)?;
        self.commit(&DiskRecord::new(DiskChain {
            overlay: None,
            layers: foundation.layers.clone(),
            image_digest: foundation.image_digest.clone(),
            size_bytes: whole_sectors(foundation.size_bytes),
        }))
    }

    /// Removes the disk and everything of it; a success when there is none. Layers that nobody else
    /// needs go with it.
    pub fn remove(&self) -> Result<(), Error> {
        for name in names_in(&self.dir)? {
            if LayerId::of_file_name(&name).is_some() || name == UNRECORDED {
                remove_file(&self.dir.join(name))?;
            }
        }
        self.disks.faults.after_blocking("disk_files_removed")?;
        let record = self.record_path();
        if record.exists() {
            remove_file(&record)?;
            sync_parent(&record)?;
        }
        self.disks.layers.release(&self.holder());
        Ok(())
    }

    /// The overlays belong to us again: the next VM that gets their uid has no claim on them.
    pub fn take_back(&self) -> Result<(), Error> {
        for name in names_in(&self.dir)? {
            if LayerId::of_file_name(&name).is_some() || name == UNRECORDED {
                let path = self.dir.join(name);
                lchown(&path, Some(geteuid().as_raw()), Some(getegid().as_raw()))
                    .map_err(Error::path("taking back", &path))?;
            }
        }
        Ok(())
    }

    /// The chain as the VMM is given it, on the raw `base`.
    pub fn spec(&self, chain: &DiskChain, base: PathBuf) -> Result<DiskSpec, Error> {
        let overlay = chain.overlay.ok_or_else(|| self.wrong("its overlay is not made yet"))?;
        let layers = chain.layers.iter().map(|id| self.disks.layers.path(*id)).collect();
        Ok(DiskSpec { overlay: self.overlay_path(overlay), layers, base })
    }

    /// Brings to an end what a crash interrupted, and removes overlays that nothing names. No process
    /// may have the disk open.
    ///
    /// # Errors
    /// [`Error::Disk`] when the record is damaged or names an overlay that is not there.
    fn settle(&self) -> Result<Option<DiskRecord>, Error> {
        let Some(found) = self.read()? else { return Ok(None) };
        let mut record = found.clone();
        if let Some(overlay) = record.chain.overlay
            && !self.overlay_path(overlay).exists()
        {
            let unrecorded = self.dir.join(UNRECORDED);
            if self.disks.layers.is_present(overlay) {
                // It was frozen, and the record was to follow.
                record.chain.layers.insert(0, overlay);
                record.chain.overlay = None;
            } else if unrecorded.exists() {
                self.name_unrecorded(overlay)?;
            } else {
                return Err(self.wrong(format!("its overlay {overlay} is missing")));
            }
        }
        if let Some(pushing) = record.pushing.take() {
            self.settle_push(&mut record, pushing)?;
        }
        if record != found {
            self.commit(&record)?;
        }
        self.sweep()?;
        Ok(Some(record))
    }

    /// The chain once everything is settled.
    #[cfg(test)]
    pub fn settled(&self) -> Result<Option<DiskChain>, Error> {
        Ok(self.settle()?.map(|record| record.chain))
    }

    /// Removes overlays that the record does not name. Without a record nothing is touched.
    fn sweep(&self) -> Result<(), Error> {
        let Some(record) = self.read()? else { return Ok(()) };
        let named = record.overlays();
        for name in names_in(&self.dir)? {
            if LayerId::of_file_name(&name).is_some_and(|id| !named.contains(&id)) {
                remove_file(&self.dir.join(name))?;
            }
        }
        Ok(())
    }

    /// A disk from before disks had records: recorded first, then given its overlay's name.
    fn take_unrecorded(&self, image_digest: &ImageDigest) -> Result<Option<DiskRecord>, Error> {
        let unrecorded = self.dir.join(UNRECORDED);
        if !unrecorded.exists() {
            return Ok(None);
        }
        let header = self.header(&unrecorded)?;
        let overlay = self.new_id();
        let record = DiskRecord::new(DiskChain {
            overlay: Some(overlay),
            layers: Vec::new(),
            image_digest: image_digest.clone(),
            size_bytes: header.size_bytes,
        });
        self.commit(&record)?;
        self.name_unrecorded(overlay)?;
        Ok(Some(record))
    }

    fn name_unrecorded(&self, overlay: LayerId) -> Result<(), Error> {
        let (old, new) = (self.dir.join(UNRECORDED), self.overlay_path(overlay));
        fs::rename(&old, &new).map_err(Error::path("moving", &old))?;
        sync_parent(&new)
    }

    /// False when the overlay's table of clusters is too small for that.
    fn grow_in_place(
        &self,
        record: &mut DiskRecord,
        overlay: LayerId,
        size_bytes: u64,
    ) -> Result<bool, Error> {
        let path = self.overlay_path(overlay);
        let header = self.header(&path)?;
        if header.size_bytes > record.chain.size_bytes {
            let problem = "claims a size it was never given".to_owned();
            return Err(Error::Disk { path, problem });
        }
        if header.capacity_bytes < size_bytes {
            return Ok(false);
        }
        if record.chain.size_bytes < size_bytes {
            record.chain.size_bytes = size_bytes;
            self.commit(record)?;
        }
        if header.size_bytes < size_bytes {
            qcow2::write_size(&path, size_bytes).map_err(Error::path("growing", &path))?;
        }
        Ok(true)
    }

    /// Moves the top into the store; the record that says so is still to be written.
    fn freeze_top(&self, mut record: DiskRecord, overlay: LayerId) -> Result<DiskRecord, Error> {
        self.check_depth(&record.chain)?;
        self.disks.layers.freeze(&self.overlay_path(overlay), overlay)?;
        record.chain.layers.insert(0, overlay);
        record.chain.overlay = None;
        Ok(record)
    }

    /// Gives a chain without a top its overlay, and records it.
    fn add_overlay(&self, mut record: DiskRecord) -> Result<DiskChain, Error> {
        let _kept = self.disks.layers.guard(&record.chain.layers)?;
        let (id, file) = self.make_overlay(record.chain.size_bytes)?;
        record.chain.overlay = Some(id);
        self.commit_naming(&record, id, &file)?;
        Ok(record.chain)
    }

    /// An empty overlay under a name that nothing names yet, not yet durable.
    fn make_overlay(&self, size_bytes: u64) -> Result<(LayerId, File), Error> {
        let id = self.new_id();
        let path = self.overlay_path(id);
        let make = || -> io::Result<File> {
            let file = qcow2::create(&path)?;
            qcow2::write_empty(&file, size_bytes)?;
            Ok(file)
        };
        let made = make().map_err(Error::path("making", &path)).and_then(|file| {
            self.disks.faults.after_blocking("overlay_made")?;
            Ok((id, file))
        });
        made.inspect_err(|_| self.discard(&path))
    }

    /// Removes a file that nothing names; what cannot be removed now is swept later.
    fn discard(&self, path: &Path) {
        if let Err(error) = remove_file(path) {
            tracing::warn!(file = %path.display(), %error, "overlay left behind");
        }
    }

    /// [`Disk::commit`] of a record that names a new overlay, which goes when the record does not come
    /// to name it.
    fn commit_naming(&self, record: &DiskRecord, new: LayerId, file: &File) -> Result<(), Error> {
        let write = |path: &Path| record.write_naming(path, file);
        self.commit_by(record, write).inspect_err(|_| {
            // The failure may have come after the new record was in place.
            let names_it =
                |found: Option<DiskRecord>| found.is_some_and(|found| found.ids().contains(&new));
            if self.read().is_ok_and(|found| !names_it(found)) {
                self.discard(&self.overlay_path(new));
            }
        })
    }

    /// Replaces the record.
    fn commit(&self, record: &DiskRecord) -> Result<(), Error> {
        self.commit_by(record, |path| record.write(path))
    }

    /// What the record names is held from before the file says so, and what it does not name any more
    /// until after.
    fn commit_by(
        &self,
        record: &DiskRecord,
        write: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        record.check().map_err(|problem| self.wrong(problem))?;
        let ids: BTreeSet<LayerId> = record.ids();
        self.disks.layers.hold_also(&self.holder(), &ids);
        write(&self.record_path())?;
        self.disks.faults.after_blocking("disk_recorded")?;
        self.disks.layers.hold(&self.holder(), ids);
        Ok(())
    }

    fn read(&self) -> Result<Option<DiskRecord>, Error> {
        DiskRecord::read(&self.record_path())
    }

    fn header(&self, path: &Path) -> Result<qcow2::Header, Error> {
        qcow2::read_header(path)
            .map_err(Error::path("reading the header of", path))?
            .map_err(|problem| Error::Disk { path: path.to_owned(), problem: problem.to_owned() })
    }

    fn check_depth(&self, chain: &DiskChain) -> Result<(), Error> {
        if chain.layers.len() < DiskSpec::MAX_LAYERS {
            return Ok(());
        }
        Err(self
            .wrong(format!("it has {} layers and has to be flattened first", chain.layers.len())))
    }

    fn new_id(&self) -> LayerId {
        LayerId::from_random(self.disks.environment.random())
    }

    fn holder(&self) -> Holder {
        Holder(self.dir.clone())
    }

    fn record_path(&self) -> PathBuf {
        self.dir.join(RECORD)
    }

    fn overlay_path(&self, id: LayerId) -> PathBuf {
        self.dir.join(id.file_name())
    }

    fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::Disk { path: self.dir.clone(), problem: problem.into() }
    }
}

/// A disk has whole sectors.
fn whole_sectors(bytes: u64) -> u64 {
    bytes.div_ceil(512).saturating_mul(512)
}
