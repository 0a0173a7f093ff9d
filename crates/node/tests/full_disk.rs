//! A disk that is full, at any of the writes of what is done to a VM: the answer says so, the VM goes on,
//! nothing that it had is lost, and with room the same succeeds.
//!
//! Each case runs on a small disk of its own, mounted where only the process that is started for it sees it.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    mount::{MsFlags, mount},
    sys::statvfs::statvfs,
    unistd::geteuid,
};
use skerry_internal_api::{NodeApi, NodeError, SnapshotContents, StartFrom, VmSpec};
use skerry_model::{
    CheckpointId, Incarnation, MemMib, MountMode, MountPath, SnapshotId, VolumeId, VolumeMount,
    VolumeSlot, WorkspaceId,
};
use skerry_node::{Node, NodeConfig};
use skerry_vmm::fake::FakeVmm;
use support::{
    GRACEFUL, World, assert_nothing, assert_running, bounded, exec, inside::take, machine::names,
    outcome,
};

const ID: WorkspaceId = WorkspaceId::from_u128(1);
const DATA: VolumeId = VolumeId::from_u128(7);
const SNAPSHOT: SnapshotId = SnapshotId::from_u128(100);
/// Names the directory that the process of its own mounts upon.
const MOUNT_POINT: &str = "SKERRY_TEST_MOUNT_POINT";
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// How much room an operation is given, one after the other: a page more each time as long as records are
/// what is written, then as much as an overlay's own structures take, then as much as memory does.
fn rooms() -> impl Iterator<Item = u64> {
    let pages = (0..8).map(|count| 4 * KIB * count);
    let overlays = (1..6).map(|count| 64 * KIB * count);
    let memory = (0..12).map(|count| MIB + 32 * MIB * count);
    pages.chain(overlays).chain(memory)
}

/// What is done while the disk is full.
#[derive(Clone, Copy, Debug)]
enum Act {
    Suspend,
    Snapshot(SnapshotContents),
    /// Of a volume that the VM writes.
    Checkpoint,
}

impl Act {
    const ALL: [Self; 4] = [
        Self::Suspend,
        Self::Snapshot(SnapshotContents::DiskAndMemory),
        Self::Snapshot(SnapshotContents::Disk),
        Self::Checkpoint,
    ];

    /// What there has to be first.
    async fn prepare(self, node: &Node) {
        match self {
            Self::Suspend | Self::Snapshot(_) => {}
            Self::Checkpoint => {
                node.ensure_volume(DATA, 16 * MIB).await.unwrap();
                let mount = VolumeMount {
                    volume_id: DATA,
                    slot: VolumeSlot::new(0).unwrap(),
                    path: MountPath::parse("/data").unwrap(),
                    mode: MountMode::ReadWrite,
                    checkpoint_id: None,
                };
                node.ensure_volume_attached(ID, Incarnation(1), mount).await.unwrap();
            }
        }
    }

    async fn take_place(self, node: &Node) -> Result<(), NodeError> {
        match self {
            Self::Suspend => node.ensure_suspended(ID, Incarnation(1)).await.map(drop),
            Self::Snapshot(contents) => take(node, 100, contents).await.map(drop),
            Self::Checkpoint => node.ensure_checkpoint(DATA, CheckpointId::from_u128(1)).await,
        }
    }
}

#[test]
fn a_disk_that_is_full_at_any_write_costs_no_vm_anything() {
    on_a_small_disk("every_operation_meets_a_full_disk");
}

#[test]
fn a_disk_that_is_full_while_starts_are_made_faster_costs_no_start_anything() {
    on_a_small_disk("whatever_makes_starts_faster_meets_a_full_disk");
}

/// Runs one of the tests below in a process with mounts of its own.
fn on_a_small_disk(body: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut own_mounts = Command::new("unshare");
    if !geteuid().is_root() {
        own_mounts.args(["--user", "--map-root-user"]);
    }
    let output = own_mounts
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", body, "--ignored", "--nocapture"])
        .env(MOUNT_POINT, dir.path())
        // Where the machines of the tests are made.
        .env("TMPDIR", dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{complained}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "mounts a small disk: runs in a process with mounts of its own, started by the test above"]
async fn every_operation_meets_a_full_disk() {
    let mount_point = mount_small_disk();
    for act in Act::ALL {
        let mut refusals = 0;
        for room in rooms() {
            if bounded(succeeds_with(act, &mount_point, room)).await {
                break;
            }
            refusals += 1;
        }
        assert!(refusals < rooms().count(), "{act:?} never succeeds");
        println!("{act:?}: refused {refusals} times");
        assert!(refusals > 0, "{act:?} writes nothing");
    }
}

fn mount_small_disk() -> PathBuf {
    let mount_point = PathBuf::from(std::env::var_os(MOUNT_POINT).expect("run by a test above"));
    mount(Some("none"), &mount_point, Some("tmpfs"), MsFlags::empty(), Some("size=1g")).unwrap();
    mount_point
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "mounts a small disk: runs in a process with mounts of its own, started by the test above"]
async fn whatever_makes_starts_faster_meets_a_full_disk() {
    let mount_point = mount_small_disk();
    for made in [Made::Template, Made::SharedMemory] {
        let mut without = 0;
        for room in rooms() {
            if bounded(is_made_with(made, &mount_point, room)).await {
                break;
            }
            without += 1;
        }
        println!("{made:?}: not made {without} times");
        assert!((1..rooms().count()).contains(&without), "{made:?}: not made {without} times");
    }
}

/// A machine whose saved memory fits on the small disk.
fn small(world: &World, workspace: u128, incarnation: u64) -> VmSpec {
    let mut spec = world.spec(workspace, incarnation);
    spec.shape.memory_mib = MemMib(64);
    spec
}

/// False when that much room was too little.
async fn succeeds_with(act: Act, mount_point: &Path, room: u64) -> bool {
    // Memory is elsewhere, and nothing is kept free: the writes themselves fail.
    let memory_dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let world = World::new();
    let config = NodeConfig {
        min_disk_free_mib: 0,
        memory_dir: Some(memory_dir.path().to_owned()),
        ..world.config()
    };
    let vmm = Arc::new(FakeVmm::new(world.host.clone()));
    let node = Node::open(config, vmm, world.environment()).await.unwrap();
    node.ensure_running(small(&world, 1, 1)).await.unwrap();
    world.remember(1, 7);
    world.write(1, 8);
    act.prepare(&node).await;
    let filler = Filler::leaving(mount_point, room);
    let outcome = act.take_place(&node).await;
    if let Err(error) = &outcome {
        let says_so = matches!(error, NodeError::NoCapacity(_));
        assert!(says_so, "{act:?} with {room} bytes: {error:?}");
        // Also while the disk is full the VM goes on.
        assert_running(&node.inspect(ID).await.unwrap());
        assert_eq!(world.remembered(1), [7], "{act:?} with {room} bytes");
    }
    drop(filler);
    if outcome.is_err() {
        world.write(1, 18);
        act.take_place(&node).await.unwrap();
    }
    let written: &[u64] = if outcome.is_err() { &[8, 18] } else { &[8] };
    assert_eq!(world.written(1), written, "{act:?} with {room} bytes");
    if let Act::Suspend = act {
        let mut spec = small(&world, 1, 2);
        spec.start_from = StartFrom::SavedMemory;
        assert_running(&node.ensure_running(spec).await.unwrap());
    }
    assert_eq!(world.remembered(1), [7], "{act:?} with {room} bytes");
    node.ensure_stopped(ID, Incarnation(9), GRACEFUL).await.unwrap();
    node.ensure_deleted(ID).await.unwrap();
    node.ensure_snapshot_deleted(SNAPSHOT).await.unwrap();
    node.ensure_volume_deleted(DATA).await.unwrap();
    node.settled().await;
    assert_nothing(&world, 1);
    assert_eq!(world.layers(), Vec::<String>::new(), "{act:?} with {room} bytes");
    outcome.is_ok()
}

/// What is made in the background after a first start, for the next.
#[derive(Clone, Copy, Debug)]
enum Made {
    /// After a boot.
    Template,
    /// After a start from a snapshot: its memory in a file.
    SharedMemory,
}

impl Made {
    /// A start of the kind it is made for.
    fn start(self, world: &World, workspace: u128) -> VmSpec {
        let spec = small(world, workspace, 1);
        match self {
            Self::Template => spec,
            Self::SharedMemory => {
                VmSpec { start_from: StartFrom::Snapshot { snapshot_id: SNAPSHOT }, ..spec }
            }
        }
    }

    fn is_there(self, world: &World) -> bool {
        let place = match self {
            Self::Template => world.data_dir().join("templates"),
            Self::SharedMemory => {
                world.data_dir().join("snapshots").join(SNAPSHOT.to_string()).join("promoted")
            }
        };
        !names(&place).is_empty()
    }
}

/// False when that much room was too little. The starts succeed all the same, or say that there is none.
async fn is_made_with(made: Made, mount_point: &Path, room: u64) -> bool {
    let what = format!("{made:?} with {room} bytes");
    let memory_dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let world = World::instant(0);
    let templates = match made {
        Made::Template => world.template_budget_mib,
        // Snapshots share their memory also then.
        Made::SharedMemory => 1,
    };
    let config = NodeConfig {
        min_disk_free_mib: 0,
        memory_dir: Some(memory_dir.path().to_owned()),
        template_budget_mib: templates,
        ..world.config()
    };
    let vmm = Arc::new(FakeVmm::new(world.host.clone()));
    let node = Node::open(config, vmm, world.environment()).await.unwrap();
    if let Made::SharedMemory = made {
        node.ensure_running(small(&world, 1, 1)).await.unwrap();
        world.remember(1, 7);
        take(&node, 100, SnapshotContents::DiskAndMemory).await.unwrap();
    }
    node.settled().await;
    let filler = Filler::leaving(mount_point, room);
    let first = node.ensure_running(made.start(&world, 2)).await;
    if let Err(error) = &first {
        assert!(matches!(error, NodeError::NoCapacity(_)), "{what}: {error:?}");
    }
    node.settled().await;
    let is_made = made.is_there(&world);
    assert_eq!(world.nobodys(), Vec::<String>::new(), "{what}");
    if first.is_ok() {
        // Also while the disk is full.
        assert_eq!(exec(&node, 2, &["echo", "hi"]).await, outcome("hi\n"), "{what}");
    }
    drop(filler);
    for workspace in [2, 3] {
        assert_running(&node.ensure_running(made.start(&world, workspace)).await.unwrap());
        if let Made::SharedMemory = made {
            assert_eq!(world.remembered(workspace), [7], "{what}");
        }
    }
    for workspace in 1..=3 {
        node.ensure_deleted(WorkspaceId::from_u128(workspace)).await.unwrap();
    }
    node.ensure_snapshot_deleted(SNAPSHOT).await.unwrap();
    node.shutdown().await;
    assert_eq!(world.nobodys(), Vec::<String>::new(), "{what}");
    is_made
}

/// A file that takes nearly all that is left of the disk.
struct Filler {
    path: PathBuf,
}

impl Filler {
    fn leaving(disk: &Path, room: u64) -> Self {
        let path = disk.join("filler");
        let file = File::create(&path).unwrap();
        let found = statvfs(disk).unwrap();
        let free = found.blocks_available() * found.fragment_size();
        let length = i64::try_from(free.saturating_sub(room)).unwrap();
        if length > 0 {
            fallocate(&file, FallocateFlags::empty(), 0, length).unwrap();
        }
        Self { path }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
