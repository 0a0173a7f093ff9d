//! The ledger of one VM: a durable file that names everything the node acquires for it *before* it
//! is acquired, so that after a crash at any moment everything can be found and released.
//!
//! JSON lines, appended and synced. A torn last line (a crash in the middle of an append) is dropped:
//! what it would have named was not acquired yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use skerry_internal_api::{StartPath, VmExit};
use skerry_model::{
    HeldMount, Incarnation, MemMib, MountMode, MountProgress, SnapshotId, Timestamp, VolumeId,
    VolumeMount, VolumeSlot,
};
use skerry_vmm::VmmRecord;

use crate::{
    Error,
    error::blocking,
    layout::{sync_parent, write_durably},
    network::NetworkHolding,
};

/// More than any honest ledger: it is written anew at every start.
const MAX_LEDGER_BYTES: u64 = 1024 * 1024;

/// What one start acquires, all of it named before the first is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holdings {
    /// Sockets and the like.
    pub run_dir: Option<PathBuf>,
    /// Guest memory.
    pub memory_file: Option<PathBuf>,
    /// Groups of the VMM process.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    /// The uid the VMM runs as and owns the disk and memory with.
    pub uid: Option<u32>,
    /// Memory promised to the guest.
    pub memory_mib: MemMib,
    /// Its place on the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkHolding>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub(crate) enum Entry {
    /// A start begins and will acquire these.
    Begun {
        /// Which start.
        incarnation: Incarnation,
        /// What it will hold.
        holdings: Holdings,
    },
    /// A VMM process exists (and waits to be let go).
    Process {
        /// How to find it.
        record: VmmRecord,
    },
    /// The guest answered.
    Ready {
        /// When.
        at: Timestamp,
        /// How it came to run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<StartPath>,
    },
    /// The VM ended by itself.
    Exited {
        /// How.
        exit: VmExit,
    },
    /// The virtual CPUs are to stand still. Written before they are stopped.
    Paused,
    /// The virtual CPUs run again. Written after they were let go.
    Resumed,
    /// The VM's state is being saved: until [`Entry::SaveEnded`] its CPUs may stand still, its disk
    /// may be frozen and half a saved state may lie about.
    Saving {
        /// For what.
        purpose: SavePurpose,
    },
    /// The saving is over, whether it succeeded or was given up, and the VM is as it was before.
    SaveEnded,
    /// The memory is sealed beside the disk: this start has ended, and the next may go on from it.
    MemorySaved,
    /// The saved memory must not be used any more: a VM goes on from it, or it is given up. Written
    /// before the disk it belongs to is written to again.
    MemoryForgotten,
    /// The VM is about to get a volume.
    VolumeAttaching {
        /// Which, where and for what.
        mount: VolumeMount,
    },
    /// The guest has the volume in this slot mounted.
    VolumeMounted {
        /// Which slot.
        slot: VolumeSlot,
    },
    /// The guest is about to be asked to let the volume in this slot go.
    VolumeDetaching {
        /// Which slot.
        slot: VolumeSlot,
    },
    /// The volume in this slot is not the VM's any more.
    VolumeDetached {
        /// Which slot.
        slot: VolumeSlot,
    },
    /// Everything of this start is released.
    Released,
    /// The workspace is being deleted: nothing may survive.
    Deleting,
    /// What earlier lines came to, at the head of a ledger written anew.
    Summary {
        /// The last start.
        incarnation: Incarnation,
        /// How it ended, if by itself.
        last_exit: Option<VmExit>,
        /// Whether saved memory lies beside the disk.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        memory_saved: bool,
        /// Volumes that are mounted for writing in that memory.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        asleep: BTreeSet<VolumeId>,
    },
}

/// What a VM's state is saved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "snake_case")]
pub(crate) enum SavePurpose {
    /// The VM is to end and to go on later.
    Suspension,
    /// The VM goes on at once.
    Snapshot {
        /// Which.
        snapshot_id: SnapshotId,
    },
}

/// What all lines together say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LedgerState {
    /// The last start.
    pub incarnation: Incarnation,
    /// What it may still hold; `None` once released.
    pub holdings: Option<Holdings>,
    /// Processes that may still run, the latest last.
    pub processes: Vec<VmmRecord>,
    /// When its guest was ready.
    pub ready_at: Option<Timestamp>,
    /// How it came to run.
    pub start_path: Option<StartPath>,
    /// How it ended by itself.
    pub last_exit: Option<VmExit>,
    /// Its CPUs are to stand still.
    pub paused: bool,
    /// A saving that has not ended.
    pub saving: Option<SavePurpose>,
    /// Saved memory lies beside the disk and belongs to it.
    pub memory_saved: bool,
    /// The volumes it may have.
    pub volumes: BTreeMap<VolumeSlot, VolumeMount>,
    /// Those of them that its guest has mounted.
    pub mounted: BTreeSet<VolumeSlot>,
    /// Volumes that are mounted for writing in the saved memory.
    pub asleep: BTreeSet<VolumeId>,
    /// A deletion has begun.
    pub deleting: bool,
}

impl LedgerState {
    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Begun { incarnation, holdings } => {
                self.incarnation = incarnation;
                self.holdings = Some(holdings);
                self.ready_at = None;
                self.start_path = None;
                self.last_exit = None;
                self.paused = false;
                self.saving = None;
            }
            Entry::Process { record } => self.processes.push(record),
            Entry::Ready { at, path } => {
                self.ready_at = Some(at);
                self.start_path = path;
            }
            Entry::Exited { exit } => self.last_exit = Some(exit),
            Entry::Paused => self.paused = true,
            Entry::Resumed => self.paused = false,
            Entry::Saving { purpose } => self.saving = Some(purpose),
            Entry::SaveEnded => self.saving = None,
            Entry::MemorySaved => self.memory_saved = true,
            Entry::MemoryForgotten => {
                self.memory_saved = false;
                self.asleep.clear();
            }
            Entry::VolumeAttaching { mount } => {
                self.mounted.remove(&mount.slot);
                self.volumes.insert(mount.slot, mount);
            }
            Entry::VolumeMounted { slot } => {
                self.mounted.insert(slot);
            }
            Entry::VolumeDetaching { slot } => {
                self.mounted.remove(&slot);
            }
            Entry::VolumeDetached { slot } => {
                self.mounted.remove(&slot);
                self.volumes.remove(&slot);
            }
            Entry::Released => {
                if self.memory_saved {
                    let written = |mount: &&VolumeMount| mount.mode == MountMode::ReadWrite;
                    let written = self.volumes.values().filter(written);
                    self.asleep.extend(written.map(|mount| mount.volume_id));
                }
                self.volumes.clear();
                self.mounted.clear();
                self.holdings = None;
                self.processes.clear();
                self.ready_at = None;
                self.start_path = None;
                self.paused = false;
                self.saving = None;
            }
            Entry::Deleting => self.deleting = true,
            Entry::Summary { incarnation, last_exit, memory_saved, asleep } => {
                self.asleep = asleep;
                self.incarnation = incarnation;
                self.last_exit = last_exit;
                self.memory_saved = memory_saved;
            }
        }
    }
}

/// An open ledger. Clones are the same ledger.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug)]
struct Open {
    file: File,
    state: LedgerState,
}

impl Ledger {
    /// Opens or makes the ledger at `path`, whose directory exists. Blocks.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let existed = path.exists();
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::path("opening", path))?;
        let mut content = Vec::new();
        (&mut file)
            .take(MAX_LEDGER_BYTES)
            .read_to_end(&mut content)
            .map_err(Error::path("reading", path))?;
        let (state, good_bytes) = replay(&content, path);
        if good_bytes < content.len() {
            // A later append must not be glued to the torn line.
            file.set_len(good_bytes as u64)
                .and_then(|()| file.sync_all())
                .map_err(Error::path("repairing", path))?;
        }
        if !existed {
            sync_parent(path)?;
        }
        Ok(Self { path: path.to_owned(), open: Arc::new(Mutex::new(Open { file, state })) })
    }

    /// What the ledger says now.
    pub fn state(&self) -> LedgerState {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).state.clone()
    }

    /// Appends `entry` and returns once it is durable.
    pub async fn append(&self, entry: Entry) -> Result<(), Error> {
        self.append_all(vec![entry]).await
    }

    /// Appends `entries` in one write and returns once they are durable. Whoever dies in the middle
    /// leaves the first of them, or none.
    pub async fn append_all(&self, entries: Vec<Entry>) -> Result<(), Error> {
        let ledger = self.clone();
        blocking(move || {
            ledger.write(entries, Durability::Host).map_err(Error::path("writing", &ledger.path))
        })
        .await
    }

    /// [`Ledger::append`] where nothing can be awaited.
    pub fn append_blocking(&self, entry: Entry) -> io::Result<()> {
        self.write(vec![entry], Durability::Host)
    }

    /// Appends what only matters as long as the host is up: it outlives us, not a power cut.
    pub async fn note(&self, entry: Entry) -> Result<(), Error> {
        let ledger = self.clone();
        blocking(move || {
            ledger
                .write(vec![entry], Durability::Server)
                .map_err(Error::path("writing", &ledger.path))
        })
        .await
    }

    fn write(&self, entries: Vec<Entry>, durability: Durability) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let before = open.file.metadata()?.len();
        let lines = lines_of(&entries)?;
        let written = open.file.write_all(&lines).and_then(|()| match durability {
            Durability::Host => open.file.sync_data(),
            Durability::Server => Ok(()),
        });
        if let Err(error) = written {
            // Half a line in the middle would be read as damage later. If even this fails, replay
            // skips the line.
            let _ = open.file.set_len(before);
            return Err(error);
        }
        entries.into_iter().for_each(|entry| open.state.apply(entry));
        Ok(())
    }

    /// A ledger of `entries` in place of the one at `path`, whose directory is about to be renamed so
    /// that it will be at `later`. Not synced: that is the caller's. Blocks.
    pub fn replace(path: &Path, later: &Path, entries: Vec<Entry>) -> Result<Self, Error> {
        let temporary = path.with_extension("new");
        let write = || -> io::Result<File> {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&lines_of(&entries)?)?;
            std::fs::rename(&temporary, path)?;
            OpenOptions::new().append(true).open(path)
        };
        let file = write().map_err(Error::path("writing", path))?;
        let mut state = LedgerState::default();
        entries.into_iter().for_each(|entry| state.apply(entry));
        Ok(Self { path: later.to_owned(), open: Arc::new(Mutex::new(Open { file, state })) })
    }

    /// Begins the ledger of a new start: one line for the past, one that names what will be held.
    /// Only for a ledger whose last start is released.
    pub async fn begin(&self, incarnation: Incarnation, holdings: Holdings) -> Result<(), Error> {
        let ledger = self.clone();
        blocking(move || ledger.begin_blocking(incarnation, holdings)).await
    }

    fn begin_blocking(&self, incarnation: Incarnation, holdings: Holdings) -> Result<(), Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let past = Entry::Summary {
            incarnation: open.state.incarnation,
            last_exit: open.state.last_exit.clone(),
            memory_saved: open.state.memory_saved,
            asleep: open.state.asleep.clone(),
        };
        let begun = Entry::Begun { incarnation, holdings };
        let entries = [past, begun];
        let content = lines_of(&entries).map_err(Error::path("writing", &self.path))?;
        write_durably(&self.path, &content)?;
        open.file = OpenOptions::new()
            .append(true)
            .open(&self.path)
            .map_err(Error::path("opening", &self.path))?;
        entries.into_iter().for_each(|entry| open.state.apply(entry));
        Ok(())
    }
}

impl LedgerState {
    /// The volumes it may have, and how far each is.
    pub fn held_volumes(&self) -> Vec<HeldMount> {
        let progress = |slot: &VolumeSlot| match self.mounted.contains(slot) {
            true => MountProgress::Mounted,
            false => MountProgress::Unsettled,
        };
        self.volumes
            .iter()
            .map(|(slot, mount)| HeldMount { mount: mount.clone(), progress: progress(slot) })
            .collect()
    }
}

/// What a line outlives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durability {
    /// Us.
    Server,
    /// The host too.
    Host,
}

fn lines_of(entries: &[Entry]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut lines, entry)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// The state, and how many bytes of `content` are whole lines.
fn replay(content: &[u8], path: &Path) -> (LedgerState, usize) {
    let mut state = LedgerState::default();
    let good_bytes = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    for line in content[..good_bytes].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice::<Entry>(line) {
            Ok(entry) => state.apply(entry),
            // The lines around it still name things that have to be released.
            Err(error) => {
                tracing::error!(ledger = %path.display(), %error, "damaged ledger line skipped");
            }
        }
    }
    (state, good_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(pid: u32) -> VmmRecord {
        VmmRecord {
            driver: "fake".to_owned(),
            pid,
            start_time_ticks: 7,
            boot_id: "b".to_owned(),
            run_dir: PathBuf::from("/run"),
            console_log: PathBuf::from("/console.log"),
            console_limit_bytes: 4096,
            fingerprint: "f".to_owned(),
            memory: skerry_vmm::GuestMemory::Own,
            memory_mib: 256,
        }
    }

    fn life() -> Vec<Entry> {
        vec![
            Entry::Begun { incarnation: Incarnation(1), holdings: Holdings::default() },
            Entry::Process { record: record(10) },
            Entry::Process { record: record(11) },
            Entry::Ready { at: Timestamp::UNIX_EPOCH, path: Some(StartPath::Pool) },
            Entry::Paused,
            Entry::Resumed,
            Entry::Saving {
                purpose: SavePurpose::Snapshot { snapshot_id: SnapshotId::from_u128(1) },
            },
            Entry::SaveEnded,
            Entry::Saving { purpose: SavePurpose::Suspension },
            Entry::MemorySaved,
            Entry::Exited { exit: VmExit::PoweredOff },
            Entry::Released,
            Entry::Deleting,
        ]
    }

    #[test]
    fn what_was_appended_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.jsonl");
        let ledger = Ledger::open(&path).unwrap();
        for entry in life() {
            ledger.append_blocking(entry).unwrap();
            assert_eq!(Ledger::open(&path).unwrap().state(), ledger.state());
        }
        let state = ledger.state();
        assert!(state.deleting && state.holdings.is_none() && state.processes.is_empty());
        assert_eq!(state.last_exit, Some(VmExit::PoweredOff));
    }

    #[test]
    fn a_new_start_keeps_the_past_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.jsonl");
        let ledger = Ledger::open(&path).unwrap();
        for entry in life().into_iter().take(12) {
            ledger.append_blocking(entry).unwrap();
        }
        ledger.begin_blocking(Incarnation(2), Holdings::default()).unwrap();
        ledger.append_blocking(Entry::Process { record: record(12) }).unwrap();
        let state = Ledger::open(&path).unwrap().state();
        assert_eq!(state, ledger.state());
        assert_eq!(state.incarnation, Incarnation(2));
        assert_eq!(state.processes, [record(12)]);
        insta::assert_snapshot!(std::fs::read_to_string(&path).unwrap());
    }

    proptest! {
        #[test]
        fn a_ledger_cut_anywhere_reads_as_the_lines_before_the_cut(cut in 0_usize..2000) {
            let lines: Vec<Vec<u8>> = life().into_iter().map(|entry| lines_of(&[entry]).unwrap()).collect();
            let whole = lines.concat();
            let cut = cut.min(whole.len());
            let (mut complete, mut bytes) = (0, 0);
            while complete < lines.len() && bytes + lines[complete].len() <= cut {
                bytes += lines[complete].len();
                complete += 1;
            }
            let mut expected = LedgerState::default();
            life().into_iter().take(complete).for_each(|entry| expected.apply(entry));
            let (state, good_bytes) = replay(&whole[..cut], Path::new("test"));
            prop_assert_eq!(state, expected);
            prop_assert_eq!(good_bytes, bytes);
        }

        #[test]
        fn garbage_never_panics_and_an_append_after_it_is_kept(
            garbage in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("ledger.jsonl");
            std::fs::write(&path, &garbage).unwrap();
            let ledger = Ledger::open(&path).unwrap();
            ledger.append_blocking(Entry::Deleting).unwrap();
            prop_assert!(Ledger::open(&path).unwrap().state().deleting);
        }
    }
}
