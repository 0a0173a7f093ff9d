//! Volumes: file systems of their own, put into VMs as further disks.
//!
//! ```text
//! <data-dir>/volumes/<volume id>/volume.json   what it is
//! <data-dir>/volumes/<volume id>/base.raw      an empty ext4, 0444, never written again
//! <data-dir>/volumes/<volume id>/disk.json     what was written since, as of any disk
//! <data-dir>/vms/<vm>/volume-<slot>/disk.json  what a VM that only reads may scribble on
//! ```
//! The file system is made by `mkfs.ext4` on an empty file under another name; from the first time a
//! guest has had it the host reads no byte of it again. A directory whose name begins with `.` is being
//! made or removed, and goes at the next start.
//!
//! Whoever may write gets the volume's own overlay. Whoever only reads gets a new overlay on what is
//! frozen of it, thrown away afterwards: the journal of a file system whose last writer was killed has
//! to be replayed before it can be read, also by readers, and none of them sees another's.

mod checkpoints;
mod file_server;
mod growth;

pub(crate) use checkpoints::checkpoints_dir;
pub(crate) use file_server::Helpers;
pub(crate) use growth::VolumeUser;

use std::{
    collections::HashMap,
    fs::{self, File, Permissions},
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use skerry_internal_api::VolumeInfo;
use skerry_model::{MountMode, VolumeId, VolumeMount, VolumeSlot, spec::ImageDigest};
use skerry_vmm::DiskSpec;

use crate::{
    Error,
    disk::{Disk, DiskChain, Disks, Foundation},
    images::host_command,
    layers::LayerStore,
    layout::{make_private_dir, names_in, remove_tree, sync_parent, write_durably},
    saved::DiskRoom,
};

const RECORD: &str = "volume.json";
const BASE: &str = "base.raw";
const FORMAT: u32 = 1;
const MAX_RECORD_BYTES: u64 = 4096;
/// What an empty file system takes at most, beside one part in so many of its size.
const EMPTY_BYTES: u64 = 8 << 20;
const EMPTY_SHARE: u64 = 256;
/// What freezing a top takes: the one that comes above it, and records.
pub(crate) const EMPTY_OVERLAY_BYTES: u64 = 1 << 20;
/// Being made, or removed.
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    size_bytes: u64,
}

/// A disk for a VM, and how far its file may grow.
#[derive(Debug)]
pub(crate) struct OpenVolume {
    pub disk: DiskSpec,
    pub size_bytes: u64,
}

/// The volumes of a node. All of it blocks.
#[derive(Debug)]
pub(crate) struct Volumes {
    dir: PathBuf,
    disks: Disks,
    layers: Arc<LayerStore>,
    room: DiskRoom,
    /// Which VM (by its directory) writes which volume. Held while a volume's files change.
    writers: Mutex<HashMap<VolumeId, PathBuf>>,
    /// Which VM (by its directory) has saved memory in which a volume is mounted for writing: to anybody
    /// else that writes it, its file system would change behind that guest's back. Taken after `writers`.
    asleep: Mutex<HashMap<VolumeId, PathBuf>>,
}

/// Removes what was being made or removed when an earlier life ended, before anybody looks which
/// layers are needed.
pub(crate) fn sweep(dir: &Path) -> Result<(), Error> {
    make_private_dir(dir)?;
    for name in names_in(dir)? {
        let place = dir.join(&name);
        if name.starts_with('.') {
            remove_tree(&place)?;
        } else {
            checkpoints::sweep(&place)?;
        }
    }
    Ok(())
}

/// Where a VM that only reads has its overlay.
pub(crate) fn scratch_dir(vm_dir: &Path, slot: VolumeSlot) -> PathBuf {
    vm_dir.join(format!("volume-{slot}"))
}

impl Volumes {
    pub fn new(dir: PathBuf, disks: Disks, layers: Arc<LayerStore>, room: DiskRoom) -> Self {
        let (writers, asleep) = (Mutex::default(), Mutex::default());
        Self { dir, disks, layers, room, writers, asleep }
    }

    /// Makes a volume; one of this identifier and size that is there is a success.
    pub fn ensure(&self, id: VolumeId, size_bytes: u64) -> Result<(), Error> {
        let _turn = self.writers();
        let place = self.place(id);
        if let Some(record) = read_record(&place)? {
            if record.size_bytes == size_bytes {
                return Ok(());
            }
            let problem = format!("has {} bytes, not {size_bytes}", record.size_bytes);
            return Err(Error::Disk { path: place, problem });
        }
        let _room = self.room.reserve(EMPTY_BYTES + size_bytes / EMPTY_SHARE)?;
        let new = self.dir.join(format!("{NEW}{id}"));
        remove_tree(&new)?;
        let made = self.make(&new, size_bytes).and_then(|()| {
            fs::rename(&new, &place).map_err(Error::path("naming", &place))?;
            sync_parent(&place)
        });
        if made.is_err() {
            // Swept at the next start if it cannot be removed now.
            let _ = remove_tree(&new);
        }
        made
    }

    fn make(&self, new: &Path, size_bytes: u64) -> Result<(), Error> {
        make_private_dir(new)?;
        let base = new.join(BASE);
        let file = File::create_new(&base).map_err(Error::path("making", &base))?;
        file.set_len(size_bytes).map_err(Error::path("making", &base))?;
        make_file_system(&base)?;
        file.set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| file.sync_all())
            .map_err(Error::path("making", &base))?;
        let record = Record { format: FORMAT, size_bytes };
        let text = serde_json::to_vec(&record)
            .map_err(|error| Error::io("writing the record")(error.into()))?;
        write_durably(&new.join(RECORD), &text)
    }

    /// Removes a volume and all of it; a success when there is none.
    ///
    /// # Errors
    /// [`Error::VolumeInUse`] while a VM writes it.
    pub fn delete(&self, id: VolumeId) -> Result<(), Error> {
        let writers = self.writers();
        if writers.contains_key(&id) {
            return Err(Error::VolumeInUse);
        }
        let place = self.place(id);
        let gone = self.dir.join(format!("{GONE}{id}"));
        if place.exists() {
            fs::rename(&place, &gone).map_err(Error::path("removing", &place))?;
            sync_parent(&gone)?;
            self.disks.moved(&place, &gone);
        }
        self.forget_checkpoints(&place, &gone)?;
        self.disks.at(&gone).remove()?;
        remove_tree(&gone)
    }

    /// All that are complete.
    pub fn list(&self) -> Result<Vec<VolumeInfo>, Error> {
        let mut found = Vec::new();
        for name in names_in(&self.dir)? {
            let Ok(id) = name.parse::<VolumeId>() else { continue };
            match self.look(id) {
                Ok(Some(info)) => found.push(info),
                Ok(None) => {}
                Err(error) => tracing::error!(volume.id = %id, %error, "a volume is damaged"),
            }
        }
        Ok(found)
    }

    /// One of them.
    pub fn look(&self, id: VolumeId) -> Result<Option<VolumeInfo>, Error> {
        let place = self.place(id);
        let Some(record) = read_record(&place)? else { return Ok(None) };
        let mut files = vec![place.join(BASE)];
        let mut layers = self.layers_of_checkpoints(id)?;
        if let Some(chain) = self.disks.at(&place).chain()? {
            files.extend(chain.overlay.map(|overlay| place.join(overlay.file_name())));
            layers.extend(chain.layers);
        }
        files.extend(layers.iter().map(|layer| self.layers.path(*layer)));
        // Blocks of 512 bytes; one that has just been frozen counts next time.
        let allocated = |path: &PathBuf| fs::metadata(path).map_or(0, |found| found.blocks() * 512);
        let used_bytes = files.iter().map(allocated).sum();
        let checkpoints = self.checkpoints(id)?;
        Ok(Some(VolumeInfo { id, size_bytes: record.size_bytes, used_bytes, checkpoints }))
    }

    /// The disk for a VM that mounts the volume in this way.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`], [`Error::NoSuchCheckpoint`]; [`Error::VolumeInUse`] when another VM writes
    /// it, unless it is a checkpoint that is read.
    pub fn open(&self, mount: &VolumeMount, vm_dir: &Path) -> Result<OpenVolume, Error> {
        let mut writers = self.writers();
        let place = self.place(mount.volume_id);
        let record = read_record(&place)?.ok_or(Error::NoSuchVolume)?;
        let is_written = writers.get(&mount.volume_id).is_some_and(|writer| writer != vm_dir);
        let sleeps_elsewhere =
            self.asleep().get(&mount.volume_id).is_some_and(|sleeper| sleeper != vm_dir);
        if (is_written || sleeps_elsewhere) && mount.checkpoint_id.is_none() {
            return Err(Error::VolumeInUse);
        }
        let own = self.disks.at(&place);
        let (disk, chain) = match mount.mode {
            MountMode::ReadWrite => {
                let foundation = foundation(mount.volume_id, record, Vec::new());
                // It may have grown while nobody had it.
                let chain = own.ensure(&foundation, record.size_bytes)?;
                writers.insert(mount.volume_id, vm_dir.to_owned());
                self.asleep().remove(&mount.volume_id);
                (own, chain)
            }
            MountMode::ReadOnly => self.open_scratch(mount, &own, record, vm_dir)?,
        };
        let disk = disk.spec(&chain, place.join(BASE))?;
        Ok(OpenVolume { disk, size_bytes: record.size_bytes })
    }

    fn open_scratch(
        &self,
        mount: &VolumeMount,
        own: &Disk,
        record: Record,
        vm_dir: &Path,
    ) -> Result<(Disk, DiskChain), Error> {
        let dir = scratch_dir(vm_dir, mount.slot);
        let scratch = self.disks.at(&dir);
        let layers = match scratch.chain()? {
            // What a guest that was suspended knows of it is in its memory.
            Some(chain) => chain.layers,
            None => match mount.checkpoint_id {
                Some(checkpoint) => self.layers_of(mount.volume_id, checkpoint)?,
                None if own.exists() => own.freeze()?.layers,
                None => Vec::new(),
            },
        };
        make_private_dir(&dir)?;
        sync_parent(&dir)?;
        let chain = scratch.ensure(&foundation(mount.volume_id, record, layers), 0)?;
        Ok((scratch, chain))
    }

    /// This VM writes the volume: it was found running at the start of this life.
    pub fn found(&self, mount: &VolumeMount, vm_dir: &Path) {
        match mount.mode {
            MountMode::ReadWrite => {
                self.writers().insert(mount.volume_id, vm_dir.to_owned());
            }
            MountMode::ReadOnly => {}
        }
    }

    /// The VM does not have the volume any more. What it wrote belongs to us again.
    pub fn close(&self, mount: &VolumeMount, vm_dir: &Path, scratch: Scratch) -> Result<(), Error> {
        let mut writers = self.writers();
        match mount.mode {
            MountMode::ReadWrite => {
                // Somebody else's meanwhile, if this is a repetition.
                if writers.get(&mount.volume_id).is_some_and(|writer| writer != vm_dir) {
                    return Ok(());
                }
                let place = self.place(mount.volume_id);
                if place.exists() {
                    self.disks.at(&place).take_back()?;
                }
                match scratch {
                    Scratch::Keep => self.sleeps(mount.volume_id, vm_dir),
                    Scratch::Remove => {}
                }
                writers.remove(&mount.volume_id);
                Ok(())
            }
            MountMode::ReadOnly => {
                let dir = scratch_dir(vm_dir, mount.slot);
                match scratch {
                    _ if !dir.exists() => Ok(()),
                    Scratch::Keep => self.disks.at(&dir).take_back(),
                    Scratch::Remove => self.remove_scratch(&dir),
                }
            }
        }
    }

    /// The VM's memory, in which the volume is mounted for writing, is saved.
    pub fn sleeps(&self, id: VolumeId, vm_dir: &Path) {
        self.asleep().insert(id, vm_dir.to_owned());
    }

    /// The VM's saved memory is given up: nobody goes on from it.
    pub fn sleeps_no_more(&self, vm_dir: &Path) {
        self.asleep().retain(|_, sleeper| sleeper != vm_dir);
    }

    /// Removes what a VM has scribbled on, for each of its slots.
    pub fn forget_scratch(&self, vm_dir: &Path) -> Result<(), Error> {
        self.sleeps_no_more(vm_dir);
        VolumeSlot::all()
            .map(|slot| scratch_dir(vm_dir, slot))
            .try_for_each(|dir| if dir.exists() { self.remove_scratch(&dir) } else { Ok(()) })
    }

    fn remove_scratch(&self, dir: &Path) -> Result<(), Error> {
        self.disks.at(dir).remove()?;
        remove_tree(dir)
    }

    fn place(&self, id: VolumeId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    fn asleep(&self) -> MutexGuard<'_, HashMap<VolumeId, PathBuf>> {
        self.asleep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writers(&self) -> MutexGuard<'_, HashMap<VolumeId, PathBuf>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of what a reader has scribbled on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scratch {
    /// Its guest goes on later.
    Keep,
    /// Nobody will read it again.
    Remove,
}

fn foundation(id: VolumeId, record: Record, layers: Vec<crate::layers::LayerId>) -> Foundation {
    Foundation {
        image_digest: ImageDigest(format!("volume:{id}")),
        layers,
        size_bytes: record.size_bytes,
    }
}

fn read_record(place: &Path) -> Result<Option<Record>, Error> {
    let path = place.join(RECORD);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::path("opening", &path)(error)),
    };
    let mut text = Vec::new();
    file.take(MAX_RECORD_BYTES).read_to_end(&mut text).map_err(Error::path("reading", &path))?;
    let damaged = |problem: String| Error::Disk { path: path.clone(), problem };
    let record: Record =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    match record.format {
        FORMAT => Ok(Some(record)),
        other => Err(damaged(format!("has layout {other}, not {FORMAT}"))),
    }
}

/// An empty ext4 with a journal in the file, which stays sparse. Its root belongs to root, as that of
/// any new file system.
fn make_file_system(file: &Path) -> Result<(), Error> {
    const PROGRAM: &str = "mkfs.ext4";
    let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0";
    let output =
        host_command(&[PROGRAM, "-q", "-F", "-m", "0", "-O", "has_journal", "-E", options])
            .arg(file)
            .output()
            .map_err(Error::io("running mkfs.ext4, which Debian has in the package e2fsprogs"))?;
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(400).collect();
    Err(Error::Program { program: PROGRAM, problem: said })
}
