//! Volumes on a node with a fake hypervisor: files, ledgers and slots.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use skerry_internal_api::{NodeApi, NodeError, SnapshotContents, StartFrom, StopMode, VmSpec};
use skerry_model::{
    HeldMount, Incarnation, MountMode, MountPath, MountProgress, SnapshotId, VolumeId, VolumeMount,
    VolumeSlot, WorkspaceId,
};
use skerry_node::{FaultKind, Node};
use skerry_vmm::fake::{Step, StepFault};
use support::{GRACEFUL, World, bounded, die_at, machine::names};

const SIZE_BYTES: u64 = 64 << 20;
const DATA: VolumeId = VolumeId::from_u128(7);

fn id(workspace: u128) -> WorkspaceId {
    WorkspaceId::from_u128(workspace)
}

fn mount(slot: u8, mode: MountMode) -> VolumeMount {
    VolumeMount {
        volume_id: DATA,
        slot: VolumeSlot::new(slot).unwrap(),
        path: MountPath::parse("/data").unwrap(),
        mode,
        checkpoint_id: None,
    }
}

fn with(spec: VmSpec, volumes: &[VolumeMount]) -> VmSpec {
    VmSpec { volumes: volumes.to_vec(), ..spec }
}

fn place(world: &World) -> PathBuf {
    world.data_dir().join("volumes").join(DATA.to_string())
}

/// The overlays in the slots of the VM that runs, by slot.
fn in_slots(world: &World) -> Vec<(u8, PathBuf)> {
    let running = world.host.running();
    let volumes = running.iter().flat_map(|record| world.host.volumes_of(record));
    volumes.map(|(slot, disk)| (slot.get(), disk.overlay)).collect()
}

/// Nobody has the volume: what is written belongs to us.
fn assert_free(world: &World) {
    for name in names(&place(world)) {
        let found = fs::metadata(place(world).join(&name)).unwrap();
        assert_eq!(found.uid(), nix::unistd::geteuid().as_raw(), "{name}");
    }
}

async fn made(world: &World) -> Node {
    let node = world.open().await;
    node.ensure_volume(DATA, SIZE_BYTES).await.unwrap();
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_a_sparse_file_system_made_once_and_removed_with_everything() {
    bounded(async {
        let world = World::new();
        let node = made(&world).await;
        node.ensure_volume(DATA, SIZE_BYTES).await.unwrap();
        assert!(node.ensure_volume(DATA, 2 * SIZE_BYTES).await.is_err());
        let base = place(&world).join("base.raw");
        let found = fs::metadata(&base).unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (SIZE_BYTES, 0o444));
        assert!(found.blocks() * 512 < SIZE_BYTES / 4, "{} blocks", found.blocks());
        let superblock = &fs::read(&base).unwrap()[1024..2048];
        assert_eq!(superblock[56..58], [0x53, 0xef], "it is ext4");
        assert_eq!(superblock[0x5c] & 4, 4, "with a journal");
        let all = node.volumes().await.unwrap();
        assert_eq!((all.len(), all[0].id, all[0].size_bytes), (1, DATA, SIZE_BYTES));
        for _ in 0..2 {
            node.ensure_volume_deleted(DATA).await.unwrap();
        }
        assert_eq!(names(&world.data_dir().join("volumes")), Vec::<String>::new());
        assert_eq!(node.volumes().await.unwrap(), []);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_comes_with_its_volume_and_every_end_gives_it_back() {
    bounded(async {
        let world = World::new();
        let node = made(&world).await;
        let rw = mount(2, MountMode::ReadWrite);
        for incarnation in 1..=2 {
            let spec = with(world.spec(1, incarnation), std::slice::from_ref(&rw));
            node.ensure_running(spec).await.unwrap();
            let slots = in_slots(&world);
            assert_eq!(slots.len(), 1);
            assert!(slots[0].0 == 2 && slots[0].1.starts_with(place(&world)), "{slots:?}");
            let spec = with(world.spec(2, incarnation), std::slice::from_ref(&rw));
            assert_eq!(node.ensure_running(spec).await, Err(NodeError::VolumeInUse));
            assert_eq!(node.ensure_volume_deleted(DATA).await, Err(NodeError::VolumeInUse));
            node.ensure_stopped(id(1), Incarnation(incarnation), GRACEFUL).await.unwrap();
            assert_free(&world);
        }
        node.ensure_running(with(world.spec(2, 9), &[rw])).await.unwrap();
        node.ensure_deleted(id(2)).await.unwrap();
        assert_free(&world);
        node.ensure_volume_deleted(DATA).await.unwrap();
        assert_eq!(world.layers(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_comes_to_a_running_vm_and_goes_whatever_answers_are_lost() {
    bounded(async {
        let world = World::new();
        let node = made(&world).await;
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        let rw = mount(0, MountMode::ReadWrite);
        let attach = || node.ensure_volume_attached(id(1), Incarnation(1), rw.clone());
        let detach = || node.ensure_volume_detached(id(1), Incarnation(1), DATA);
        world.host.inject_at(Step::AttachVolume, StepFault::Refuse);
        assert!(attach().await.is_err());
        assert_eq!(in_slots(&world), []);
        assert_free(&world);
        attach().await.unwrap();
        assert_eq!(in_slots(&world).len(), 1);
        for _ in 0..2 {
            detach().await.unwrap();
        }
        assert_eq!(in_slots(&world), []);
        assert_free(&world);

        let later = Incarnation(2);
        let refused = node.ensure_volume_attached(id(1), later, rw.clone()).await;
        assert_eq!(refused, Err(NodeError::NoSuchVm));
        node.ensure_paused(id(1), Incarnation(1)).await.unwrap();
        assert_eq!(attach().await, Err(NodeError::NotRunning));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_share_what_is_frozen_and_scribble_apart() {
    bounded(async {
        let world = World::new();
        let node = made(&world).await;
        let ro = mount(1, MountMode::ReadOnly);
        for workspace in [1, 2] {
            let spec = with(world.spec(workspace, 1), std::slice::from_ref(&ro));
            node.ensure_running(spec).await.unwrap();
        }
        let slots = in_slots(&world);
        assert_eq!(slots.len(), 2);
        assert_ne!(slots[0], slots[1]);
        assert!(slots.iter().all(|(_, overlay)| !overlay.starts_with(place(&world))));
        node.ensure_stopped(id(1), Incarnation(1), StopMode::Kill).await.unwrap();
        assert!(!world.vm_dir(1).join("volume-1").exists());
        node.ensure_deleted(id(2)).await.unwrap();
        assert!(!world.vm_dir(2).exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_vm_goes_on_with_its_volumes_and_has_no_snapshot_of_its_memory() {
    bounded(async {
        let world = World::new();
        let node = made(&world).await;
        let mounts = [mount(3, MountMode::ReadWrite)];
        node.ensure_running(with(world.spec(1, 1), &mounts)).await.unwrap();
        let (snapshot, contents) = (SnapshotId::from_u128(5), SnapshotContents::DiskAndMemory);
        let refused = node.take_snapshot(id(1), snapshot, contents).await;
        assert!(matches!(refused, Err(NodeError::Unsupported(_))), "{refused:?}");
        node.take_snapshot(id(1), snapshot, SnapshotContents::Disk).await.unwrap();
        let before = in_slots(&world);
        node.ensure_suspended(id(1), Incarnation(1)).await.unwrap();
        assert_free(&world);
        let again = VmSpec { start_from: StartFrom::SavedMemory, ..world.spec(1, 2) };
        node.ensure_running(with(again, &mounts)).await.unwrap();
        assert_eq!(in_slots(&world), before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_finds_its_volumes_where_they_are() {
    bounded(async {
        let world = World::new();
        let node = made(&world).await;
        let rw = mount(0, MountMode::ReadWrite);
        let spec = with(world.spec(1, 1), std::slice::from_ref(&rw));
        node.ensure_running(spec.clone()).await.unwrap();
        node.abandon().await;

        // Taken over: it still writes.
        let node = world.open().await;
        assert_eq!(in_slots(&world).len(), 1);
        let other = with(world.spec(2, 1), std::slice::from_ref(&rw));
        assert_eq!(node.ensure_running(other.clone()).await, Err(NodeError::VolumeInUse));
        node.ensure_volume_detached(id(1), Incarnation(1), DATA).await.unwrap();
        node.ensure_volume_attached(id(1), Incarnation(1), rw).await.unwrap();
        node.ensure_stopped(id(1), Incarnation(1), GRACEFUL).await.unwrap();

        // Dead in the middle of a start, before and after the volume was in its slot.
        let mut node = node;
        for (point, incarnation) in [("guest_ready", 2), ("mount_volumes", 3)] {
            let spec = VmSpec { incarnation: Incarnation(incarnation), ..spec.clone() };
            {
                let dying = node.clone();
                die_at(&world, node, point, dying.ensure_running(spec)).await;
            }
            node = world.open().await;
            assert_free(&world);
        }
        node.ensure_running(other).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_made_and_half_removed_volumes_are_gone_after_the_next_start() {
    bounded(async {
        let world = World::new();
        let node = made(&world).await;
        node.abandon().await;
        let volumes = world.data_dir().join("volumes");
        for name in [".new-1", ".gone-2"] {
            fs::create_dir(volumes.join(name)).unwrap();
            fs::write(volumes.join(name).join("base.raw"), b"x").unwrap();
        }
        let node = world.open().await;
        assert_eq!(names(&volumes), [DATA.to_string()]);
        node.ensure_running(with(world.spec(1, 1), &[mount(0, MountMode::ReadWrite)]))
            .await
            .unwrap();
    })
    .await;
}

/// What the node says the VM has.
async fn held(node: &Node) -> Vec<HeldMount> {
    node.inspect(id(1)).await.unwrap().volumes
}

async fn die_attaching(world: &World, node: Node, point: &str, mount: &VolumeMount) {
    let dying = node.clone();
    let attach = dying.ensure_volume_attached(id(1), Incarnation(1), mount.clone());
    die_at(world, node, point, attach).await;
}

async fn die_detaching(world: &World, node: Node, point: &str) {
    let dying = node.clone();
    let detach = dying.ensure_volume_detached(id(1), Incarnation(1), DATA);
    die_at(world, node, point, detach).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attachment_broken_off_anywhere_is_seen_after_it_and_can_be_ended_either_way() {
    let points = [
        "volume_asked_for",
        "volume_attaching",
        "volume_in_slot",
        "volume_mounted",
        "volume_attached",
    ];
    for (index, point) in points.into_iter().enumerate() {
        bounded(async {
            let world = World::new();
            let node = made(&world).await;
            node.ensure_running(world.spec(1, 1)).await.unwrap();
            let rw = mount(1, MountMode::ReadWrite);
            die_attaching(&world, node, point, &rw).await;
            let node = world.open().await;
            let seen = held(&node).await;
            match index {
                0 => assert_eq!(seen, [], "{point}"),
                4 => assert_eq!(seen[0].progress, MountProgress::Mounted, "{point}"),
                _ => assert_eq!(seen[0].progress, MountProgress::Unsettled, "{point}"),
            }
            node.ensure_volume_attached(id(1), Incarnation(1), rw.clone()).await.unwrap();
            let mounted = HeldMount { mount: rw.clone(), progress: MountProgress::Mounted };
            assert_eq!(held(&node).await, [mounted], "{point}");
            assert_eq!(in_slots(&world).len(), 1, "{point}");
            node.ensure_volume_detached(id(1), Incarnation(1), DATA).await.unwrap();
            assert_eq!(held(&node).await, [], "{point}");
            assert_free(&world);

            // The other way: nobody wants it any more.
            die_attaching(&world, node, point, &rw).await;
            let node = world.open().await;
            node.ensure_volume_detached(id(1), Incarnation(1), DATA).await.unwrap();
            assert_eq!((held(&node).await, in_slots(&world)), (vec![], vec![]), "{point}");
            node.ensure_running(with(world.spec(2, 1), &[rw])).await.unwrap();
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detachment_broken_off_anywhere_is_seen_after_it_and_can_be_ended_either_way() {
    let points = [
        "volume_detaching",
        "volume_unmounted",
        "volume_out_of_slot",
        "volume_closed",
        "volume_detached",
    ];
    for point in points {
        for mode in [MountMode::ReadWrite, MountMode::ReadOnly] {
            bounded(async {
                let world = World::new();
                let node = made(&world).await;
                let wish = mount(1, mode);
                let spec = with(world.spec(1, 1), std::slice::from_ref(&wish));
                node.ensure_running(spec).await.unwrap();
                let mounted = HeldMount { mount: wish.clone(), progress: MountProgress::Mounted };
                assert_eq!(held(&node).await, std::slice::from_ref(&mounted), "{point}");
                die_detaching(&world, node, point).await;
                let node = world.open().await;
                let seen = held(&node).await;
                let unsettled = |held: &HeldMount| held.progress == MountProgress::Unsettled;
                assert!(seen.iter().all(unsettled), "{point}: {seen:?}");
                assert_eq!(seen.is_empty(), point == "volume_detached");
                node.ensure_volume_attached(id(1), Incarnation(1), wish.clone()).await.unwrap();
                assert_eq!(held(&node).await, [mounted], "{point}");
                assert_eq!(in_slots(&world).len(), 1, "{point}");

                die_detaching(&world, node, point).await;
                let node = world.open().await;
                node.ensure_volume_detached(id(1), Incarnation(1), DATA).await.unwrap();
                assert_eq!((held(&node).await, in_slots(&world)), (vec![], vec![]), "{point}");
                let rw = mount(0, MountMode::ReadWrite);
                node.ensure_running(with(world.spec(2, 1), &[rw])).await.unwrap();
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attachment_or_detachment_that_fails_at_any_step_can_be_repeated() {
    for point in skerry_node::VOLUME_FAULT_POINTS {
        bounded(async {
            let world = World::new();
            let node = made(&world).await;
            node.ensure_running(world.spec(1, 1)).await.unwrap();
            let rw = mount(1, MountMode::ReadWrite);
            assert!(world.faults.plan(point, FaultKind::Fail));
            let first = node.ensure_volume_attached(id(1), Incarnation(1), rw.clone()).await;
            if first.is_err() {
                assert_eq!((held(&node).await, in_slots(&world)), (vec![], vec![]), "{point}");
                assert_free(&world);
                node.ensure_volume_attached(id(1), Incarnation(1), rw).await.unwrap();
            }
            let detached = node.ensure_volume_detached(id(1), Incarnation(1), DATA).await;
            assert_eq!(detached.is_err(), first.is_ok(), "{point}");
            node.ensure_volume_detached(id(1), Incarnation(1), DATA).await.unwrap();
            assert!(!world.faults.pending(), "{point}");
            assert_eq!((held(&node).await, in_slots(&world)), (vec![], vec![]), "{point}");
            assert_free(&world);
        })
        .await;
    }
}
