//! A data directory of its own for tests of what lies on the disk, reopened as after a crash.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use skerry_internal_api::SnapshotContents;
use skerry_model::{
    DiskMib, MemMib, Shape, Timestamp, VcpuCount, WorkspaceId,
    spec::{CpuKind, ImageDigest},
};
use tempfile::TempDir;

use super::{About, Manifest, Storage};
use crate::{
    Faults, NodeConfig, NodeEnvironment,
    disk::{Disk, DiskChain, Foundation},
    layers::LayerId,
    layout::{Layout, names_in},
};

pub(crate) const MIB: u64 = 1 << 20;
/// The length of an overlay nothing was written to.
const EMPTY_OVERLAY_BYTES: u64 = 4 * 65536;

static DRAWN: AtomicU64 = AtomicU64::new(1);

/// Where the directory is; it goes when this is dropped.
pub(crate) struct Ground {
    dir: TempDir,
    pub faults: Faults,
}

/// The directory opened by one life of a server.
pub(crate) struct Life {
    pub layout: Layout,
    pub storage: Storage,
}

impl Ground {
    /// In memory: the tests are of the order of steps, and a disk's syncs would take most of the
    /// time.
    pub fn new() -> Self {
        Self::at(tempfile::tempdir_in("/dev/shm").unwrap())
    }

    pub fn at(dir: TempDir) -> Self {
        Self { dir, faults: Faults::default() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn open(&self) -> Life {
        open(self.path(), &self.faults)
    }
}

/// Opens the ground whose directory this is.
pub(crate) fn open(dir: &Path, faults: &Faults) -> Life {
    let mut config = NodeConfig::new(dir.join("data"), dir.join("images"));
    config.memory_dir = Some(dir.join("memory"));
    config.min_disk_free_mib = 0;
    config.faults = faults.clone();
    let layout = Layout::open(&config).unwrap();
    let storage = Storage::open(&layout, &config, &environment()).unwrap();
    Life { layout, storage }
}

/// A clock that stands still and bytes that never repeat, also between processes.
pub(crate) fn environment() -> NodeEnvironment {
    NodeEnvironment {
        now: Arc::new(|| Timestamp::UNIX_EPOCH),
        fill_random: Arc::new(|bytes: &mut [u8]| {
            let drawn = DRAWN.fetch_add(1, Ordering::Relaxed).to_le_bytes();
            let process = std::process::id().to_le_bytes();
            let source = drawn.iter().chain(&process).cycle();
            bytes.iter_mut().zip(source).for_each(|(byte, source)| *byte = *source);
        }),
    }
}

impl Life {
    /// The disk of the workspace with this number, whose directory is made.
    pub fn disk(&self, workspace: u128) -> Disk {
        let dir = self.vm_dir(workspace);
        fs::create_dir_all(&dir).unwrap();
        self.storage.disks.at(&dir)
    }

    pub fn vm_dir(&self, workspace: u128) -> PathBuf {
        self.layout.vm(WorkspaceId::from_u128(workspace)).dir
    }

    /// Everything that was written through the overlays of `chain`, in any order.
    pub fn written(&self, workspace: u128, chain: &DiskChain) -> BTreeSet<u64> {
        let layers = chain.layers.iter().map(|id| self.storage.layers.path(*id));
        let overlay = chain.overlay.map(|id| self.vm_dir(workspace).join(id.file_name()));
        layers.chain(overlay).flat_map(|path| marks(&path)).collect()
    }

    /// The layers that are there.
    pub fn layer_files(&self) -> BTreeSet<LayerId> {
        let names = names_in(&self.layout.layers_dir()).unwrap();
        names.iter().filter_map(|name| LayerId::of_file_name(name)).collect()
    }
}

/// Stands for a guest's write: the file is no empty overlay any more.
pub(crate) fn mark(overlay: &Path, number: u64) {
    let mut file = OpenOptions::new().write(true).open(overlay).unwrap();
    let end = file.seek(SeekFrom::End(0)).unwrap();
    assert!(end >= EMPTY_OVERLAY_BYTES, "{} is no overlay", overlay.display());
    file.write_all(&number.to_be_bytes()).unwrap();
}

/// What [`mark`] wrote.
pub(crate) fn marks(overlay: &Path) -> Vec<u64> {
    let content = fs::read(overlay).unwrap();
    let written = &content[usize::try_from(EMPTY_OVERLAY_BYTES).unwrap()..];
    written.chunks(8).map(|mark| u64::from_be_bytes(mark.try_into().unwrap())).collect()
}

pub(crate) fn image() -> ImageDigest {
    ImageDigest(format!("sha256:{}", "ab".repeat(32)))
}

/// An image of 4 MiB with nothing on it.
pub(crate) fn bare() -> Foundation {
    Foundation { image_digest: image(), layers: Vec::new(), size_bytes: 4 * MIB }
}

/// The manifest of a snapshot of workspace 1.
pub(crate) fn manifest() -> Manifest {
    Manifest {
        about: About::Snapshot {
            workspace_id: WorkspaceId::from_u128(1),
            contents: SnapshotContents::DiskAndMemory,
            blackout: std::time::Duration::from_millis(12),
        },
        created_at: Timestamp::UNIX_EPOCH,
        shape: Shape {
            vcpu_count: VcpuCount(1),
            memory_mib: MemMib(256),
            disk_mib: DiskMib(1024),
            cpu_kind: CpuKind::Shared,
        },
        fingerprint: Some("qemu-7.2-1-256".to_owned()),
        image_digest: image(),
        disk_size_bytes: 12 * MIB,
        layers: Vec::new(),
        files: std::collections::BTreeMap::new(),
    }
}
