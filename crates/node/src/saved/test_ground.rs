//! A data directory of its own for tests of what lies on the disk, reopened as after a crash.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{Seek, SeekFrom, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
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
    Error, FaultKind, Faults, NodeConfig, NodeEnvironment, Seal, SealError,
    disk::{Disk, DiskChain, Foundation},
    faults::SAVED_POINTS,
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
        seal: Arc::new(NoKeys),
        fill_random: Arc::new(|bytes: &mut [u8]| {
            let drawn = DRAWN.fetch_add(1, Ordering::Relaxed).to_le_bytes();
            let process = std::process::id().to_le_bytes();
            let source = drawn.iter().chain(&process).cycle();
            bytes.iter_mut().zip(source).for_each(|(byte, source)| *byte = *source);
        }),
    }
}

/// Seals nothing: there are no secrets in what is tested here.
pub(crate) struct NoKeys;

impl Seal for NoKeys {
    fn seal(&self, _owner: &str, _plain: &[u8]) -> Result<Vec<u8>, SealError> {
        Err(SealError::Failed("there are no keys".to_owned()))
    }

    fn open(&self, _owner: &str, _sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        Err(SealError::NoSuchKey("there are no keys".to_owned()))
    }

    fn is_current(&self, _sealed: &[u8]) -> bool {
        false
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

    /// Nothing lies about that no disk and no saved state names.
    pub fn assert_tidy(&self) {
        let mut needed = BTreeSet::new();
        for name in names_in(&self.layout.vms_dir()).unwrap() {
            let dir = self.layout.vms_dir().join(name);
            self.storage.disks.at(&dir).settled().unwrap();
            needed.extend(crate::disk::layers_named_by(&dir).unwrap().unwrap_or_default());
            assert!(names_in(&dir).unwrap().iter().all(|name| !name.starts_with('.')));
        }
        for parent in [self.layout.snapshots_dir(), self.layout.templates_dir()] {
            for (name, sealed) in self.storage.states.list(&parent).unwrap() {
                let sealed = sealed.unwrap();
                self.storage.states.verify(&sealed).unwrap();
                needed.extend(sealed.manifest.layer_ids());
                assert!(!name.starts_with('.'));
            }
            assert!(names_in(&parent).unwrap().iter().all(|name| !name.starts_with('.')));
        }
        let there = self.layer_files();
        assert!(there.is_subset(&needed), "{there:?} are there, {needed:?} are needed");
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

/// One operation that is made to fail, and to die, after every point it passes.
pub(crate) struct Script {
    pub name: &'static str,
    /// What is there before.
    pub prepare: fn(&Life),
    /// The operation. Repeating it, done or half done, is a success.
    pub act: fn(&Life) -> Result<(), Error>,
    /// What is true before, after, and after any failure.
    pub always: fn(&Life),
    /// What is true once it succeeded.
    pub done: fn(&Life),
}

/// Where a process of its own finds what it has to die of: `script`, `point` and directory.
const DEATH: &str = "SKERRY_TEST_DEATH";

/// Every point of every script fails once and kills once; `child` names the test that calls [`die`].
pub(crate) fn survive_everywhere(child: &str, scripts: &[Script]) {
    for script in scripts {
        let reached: Vec<&str> =
            SAVED_POINTS.iter().copied().filter(|point| survive_failure(script, point)).collect();
        assert!(!reached.is_empty(), "{} passes no point", script.name);
        for point in reached {
            survive_death(child, script, point);
        }
    }
}

/// False when the script does not pass this point.
fn survive_failure(script: &Script, point: &str) -> bool {
    let ground = Ground::new();
    let life = ground.open();
    (script.prepare)(&life);
    (script.always)(&life);
    assert!(ground.faults.plan(point, FaultKind::Fail));
    let result = (script.act)(&life);
    if ground.faults.pending() {
        result.unwrap();
        (script.done)(&life);
        return false;
    }
    (script.always)(&life);
    repeat_and_reopen(script, life, &ground);
    true
}

fn survive_death(child: &str, script: &Script, point: &str) {
    let ground = Ground::new();
    (script.prepare)(&ground.open());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", child, "--ignored", "--test-threads=1"])
        .env(DEATH, format!("{}\n{point}\n{}", script.name, ground.path().display()))
        .output()
        .unwrap();
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        output.status.signal(),
        Some(nix::libc::SIGABRT),
        "{} was to die after {point}: {}",
        script.name,
        said()
    );
    let life = ground.open();
    (script.always)(&life);
    life.assert_tidy();
    repeat_and_reopen(script, life, &ground);
}

fn repeat_and_reopen(script: &Script, life: Life, ground: &Ground) {
    (script.act)(&life).unwrap();
    (script.always)(&life);
    (script.done)(&life);
    drop(life);
    let life = ground.open();
    (script.always)(&life);
    (script.done)(&life);
    life.assert_tidy();
}

/// Runs in a process of its own and does not return.
pub(crate) fn die(scripts: &[Script]) {
    let death = std::env::var(DEATH).expect("run by a test that waits for this to die");
    let [script, point, dir] = death.split('\n').collect::<Vec<_>>()[..] else {
        panic!("{death:?}");
    };
    let script = scripts.iter().find(|known| known.name == script).unwrap();
    let faults = Faults::parse(&format!("{point}:abort")).unwrap();
    let result = (script.act)(&open(Path::new(dir), &faults));
    panic!("{} lives: {result:?}", script.name);
}
