//! Files of volumes and their growth on a node with a fake hypervisor: who serves them, and what is left
//! of that.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{fs, os::unix::fs::MetadataExt, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::join_all, stream};
use skerry_internal_api::{
    ListDepth, NodeApi, NodeError, RemoveDepth, StartFrom, VmSpec, VolumeFiles, WriteMode,
};
use skerry_model::{
    DiskMib, Incarnation, MountMode, MountPath, VolumeId, VolumeMount, VolumeSlot, WorkspaceId,
};
use skerry_node::{FaultKind, GROWTH_FAULT_POINTS, Node};
use support::{GRACEFUL, World, bounded, die_at, machine::names};

const SIZE_BYTES: u64 = 64 << 20;
const DATA: VolumeId = VolumeId::from_u128(7);

fn id(workspace: u128) -> WorkspaceId {
    WorkspaceId::from_u128(workspace)
}

fn mount() -> VolumeMount {
    VolumeMount {
        volume_id: DATA,
        slot: VolumeSlot::new(0).unwrap(),
        path: MountPath::parse("/data").unwrap(),
        mode: MountMode::ReadWrite,
        checkpoint_id: None,
    }
}

fn with_volume(spec: VmSpec) -> VmSpec {
    VmSpec { volumes: vec![mount()], ..spec }
}

async fn made(world: &World) -> Node {
    let node = world.open().await;
    node.ensure_volume(DATA, SIZE_BYTES).await.unwrap();
    node
}

async fn write(files: &dyn VolumeFiles, path: &str, content: &'static [u8]) {
    let content = stream::iter([Ok(Bytes::from_static(content))]).boxed();
    files.write(path, 0o600, WriteMode::Replace, content).await.unwrap();
}

async fn read(files: &dyn VolumeFiles, path: &str) -> Vec<u8> {
    let pieces: Vec<Bytes> = files.read(path, 0, None).await.unwrap().try_collect().await.unwrap();
    pieces.concat()
}

/// Nobody has the volume, and nothing runs.
fn assert_at_rest(world: &World) {
    assert_eq!(world.nobodys(), Vec::<String>::new());
    assert_eq!(world.host.running().len(), 0);
    let place = world.data_dir().join("volumes").join(DATA.to_string());
    for name in names(&place) {
        let found = fs::metadata(place.join(&name)).unwrap();
        assert_eq!(found.uid(), nix::unistd::geteuid().as_raw(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_files_does_not_wait_for_work_of_the_background() {
    bounded(async {
        // Where there are no templates it boots, and else it is restored.
        for world in [World::new(), World::instant(0)] {
            let node = made(&world).await;
            node.ensure_running(world.spec(1, 1)).await.unwrap();
            node.settled().await;
            node.volume_files(DATA).await.unwrap();
            let nobodys = names(&world.data_dir().join("pool"));
            let [number] = nobodys.as_slice() else { panic!("{nobodys:?}") };
            // Without control groups there is nothing to see, and that nothing fails.
            let workspaces = world.cpu_weight(&id(1).to_string());
            assert_eq!(world.cpu_weight(number), workspaces);
            node.shutdown().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_vm_of_nobodys_serves_all_who_ask_and_goes_for_whoever_attaches() {
    bounded(async {
        let world = World::new();
        let node = made(&world).await;
        let asking = (0..8).map(|_| node.volume_files(DATA));
        let all: Vec<Arc<dyn VolumeFiles>> =
            join_all(asking).await.into_iter().map(Result::unwrap).collect();
        assert_eq!((world.host.running().len(), node.list().await.len()), (1, 0));
        write(&*all[0], "a/b", b"hello").await;
        assert_eq!(read(&*all[7], "a/b").await, b"hello");
        let listing = all[3].list("", ListDepth::All, 10).await.unwrap();
        assert_eq!(listing.entries.len(), 2);
        all[3].remove("a", RemoveDepth::All).await.unwrap();
        assert!(matches!(all[0].stat("a").await, Err(NodeError::NoSuchFile(_))));

        node.ensure_running(with_volume(world.spec(1, 1))).await.unwrap();
        assert_eq!((world.host.running().len(), world.nobodys().len()), (1, 0));
        assert_eq!(all[0].stat("").await.err(), Some(NodeError::VolumeInUse));
        // Now by the workspace's.
        let files = node.volume_files(DATA).await.unwrap();
        write(&*files, "c", b"from outside").await;
        assert_eq!(world.host.running().len(), 1);
        node.ensure_paused(id(1), Incarnation(1)).await.unwrap();
        assert_eq!(node.volume_files(DATA).await.err(), Some(NodeError::NotRunning));
        node.ensure_resumed(id(1), Incarnation(1)).await.unwrap();
        node.ensure_stopped(id(1), Incarnation(1), GRACEFUL).await.unwrap();

        // And by one of nobody's again, which goes with the volume, and with the node.
        for _ in 0..2 {
            let files = node.volume_files(DATA).await.unwrap();
            assert_eq!(read(&*files, "c").await, b"from outside");
            node.ensure_volume_deleted(DATA).await.unwrap();
            assert_at_rest(&world);
            node.ensure_volume(DATA, SIZE_BYTES).await.unwrap();
        }
        node.volume_files(DATA).await.unwrap();
        node.shutdown().await;
        assert_at_rest(&world);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_idle_gives_way_and_what_is_in_use_does_not() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let volumes: Vec<VolumeId> = (1..=9).map(VolumeId::from_u128).collect();
        let mut held = Vec::new();
        for volume in &volumes {
            node.ensure_volume(*volume, SIZE_BYTES).await.unwrap();
        }
        for volume in &volumes[..8] {
            held.push(node.volume_files(*volume).await.unwrap());
        }
        let refused = node.volume_files(volumes[8]).await.err();
        assert!(matches!(&refused, Some(NodeError::NoCapacity(_))), "{refused:?}");
        drop(held.swap_remove(3));
        node.volume_files(volumes[8]).await.unwrap();
        assert_eq!(world.host.running().len(), 8);
        assert!(held[0].stat("").await.is_ok());
        node.shutdown().await;
        assert_eq!(world.nobodys(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_while_it_serves_files_leaves_nothing_of_it() {
    let points =
        ["ledger_intent", "boot_commit", "guest_ready", "volume_attaching", "volume_in_slot"];
    for point in points {
        bounded(async {
            let world = World::new();
            let node = made(&world).await;
            let dying = node.clone();
            die_at(&world, node, point, dying.volume_files(DATA)).await;
            drop(dying);
            let node = world.open().await;
            assert_at_rest(&world);
            node.ensure_running(with_volume(world.spec(1, 1))).await.unwrap();
        })
        .await;
    }
    bounded(async {
        let world = World::new();
        let node = made(&world).await;
        let files = node.volume_files(DATA).await.unwrap();
        write(&*files, "kept", b"x").await;
        node.abandon().await;
        drop(files);
        let node = world.open().await;
        assert_at_rest(&world);
        let files = node.volume_files(DATA).await.unwrap();
        assert_eq!(read(&*files, "kept").await, b"x");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helper_that_fails_leaves_nothing_and_the_next_may_come_up() {
    for point in ["reserve", "disk", "boot", "guest_ready", "volume_in_slot"] {
        bounded(async {
            let world = World::new();
            let node = made(&world).await;
            assert!(world.faults.plan(point, FaultKind::Fail));
            assert!(node.volume_files(DATA).await.is_err(), "{point}");
            assert_at_rest(&world);
            node.volume_files(DATA).await.unwrap();
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_in_saved_memory_is_nobody_elses_until_that_is_gone() {
    bounded(async {
        let world = World::new();
        let node = made(&world).await;
        node.ensure_running(with_volume(world.spec(1, 1))).await.unwrap();
        node.ensure_suspended(id(1), Incarnation(1)).await.unwrap();
        let not_running = Err(NodeError::NotRunning);
        let mut node = node;
        for _ in 0..2 {
            assert_eq!(node.volume_files(DATA).await.err(), Some(NodeError::NotRunning));
            assert_eq!(node.ensure_volume_size(DATA, 2 * SIZE_BYTES).await, not_running);
            let other = node.ensure_running(with_volume(world.spec(2, 1))).await;
            assert_eq!(other, Err(NodeError::VolumeInUse));
            node.abandon().await;
            node = world.open().await;
        }
        let again = VmSpec { start_from: StartFrom::SavedMemory, ..world.spec(1, 2) };
        node.ensure_running(with_volume(again)).await.unwrap();
        node.ensure_suspended(id(1), Incarnation(2)).await.unwrap();
        // A stop gives the memory up.
        node.ensure_stopped(id(1), Incarnation(2), GRACEFUL).await.unwrap();
        node.volume_files(DATA).await.unwrap();
        node.ensure_running(with_volume(world.spec(2, 2))).await.unwrap();
        node.ensure_suspended(id(2), Incarnation(2)).await.unwrap();
        node.ensure_deleted(id(2)).await.unwrap();
        node.volume_files(DATA).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn growth_that_fails_or_is_broken_off_anywhere_can_be_repeated_and_comes_about_by_itself() {
    let size_of = async |node: &Node| node.volumes().await.unwrap()[0].size_bytes;
    let larger = 4 * SIZE_BYTES;
    for point in GROWTH_FAULT_POINTS {
        bounded(async {
            let world = World::new();
            let node = made(&world).await;
            node.ensure_running(with_volume(world.spec(1, 1))).await.unwrap();
            assert!(world.faults.plan(point, FaultKind::Fail));
            assert!(node.ensure_volume_size(DATA, larger).await.is_err(), "{point}");
            node.ensure_volume_size(DATA, larger).await.unwrap();
            let mut spec = with_volume(world.spec(1, 1));
            spec.shape.disk_mib = DiskMib(spec.shape.disk_mib.get() * 2);
            assert!(world.faults.plan(point, FaultKind::Fail));
            assert!(node.ensure_disk_size(spec.clone()).await.is_err(), "{point}");
            node.ensure_disk_size(spec.clone()).await.unwrap();

            let dying = node.clone();
            die_at(&world, node, point, dying.ensure_volume_size(DATA, 2 * larger)).await;
            drop(dying);
            let node = world.open().await;
            assert_eq!(size_of(&node).await, 2 * larger, "{point}");
            node.ensure_volume_size(DATA, 2 * larger).await.unwrap();
            // What has grown goes on, also from its memory and from its disk.
            node.ensure_suspended(id(1), Incarnation(1)).await.unwrap();
            let again = VmSpec {
                start_from: StartFrom::SavedMemory,
                incarnation: Incarnation(2),
                ..spec.clone()
            };
            node.ensure_running(again).await.unwrap();
            node.ensure_stopped(id(1), Incarnation(2), GRACEFUL).await.unwrap();
            node.ensure_volume_size(DATA, 3 * larger).await.unwrap();
            node.ensure_running(VmSpec { incarnation: Incarnation(3), ..spec }).await.unwrap();
            assert_eq!(size_of(&node).await, 3 * larger);
        })
        .await;
    }
}
