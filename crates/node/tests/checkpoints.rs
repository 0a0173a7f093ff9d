//! Checkpoints of volumes on a node with a fake hypervisor: what they keep, whatever fails or dies.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::PathBuf,
};

use skerry_internal_api::{NodeApi, NodeError, StopMode, VmSpec};
use skerry_model::{
    CheckpointId, Incarnation, MountMode, MountPath, VolumeId, VolumeMount, VolumeSlot, WorkspaceId,
};
use skerry_node::{CHECKPOINT_FAULT_POINTS, FaultKind, Node};
use skerry_vmm::{
    DiskSpec,
    fake::{Step, StepFault},
};
use support::{GRACEFUL, World, bounded, die_at, exec, machine::names, outcome};

const SIZE_BYTES: u64 = 64 << 20;
const DATA: VolumeId = VolumeId::from_u128(7);
/// An overlay's own structures end here; what a fake guest writes follows.
const DATA_AT: usize = 256 * 1024;
const fn checkpoint(number: u128) -> CheckpointId {
    CheckpointId::from_u128(number)
}

fn id(workspace: u128) -> WorkspaceId {
    WorkspaceId::from_u128(workspace)
}

fn mount(mode: MountMode, checkpoint_id: Option<CheckpointId>) -> VolumeMount {
    VolumeMount {
        volume_id: DATA,
        slot: VolumeSlot::new(0).unwrap(),
        path: MountPath::parse("/data").unwrap(),
        mode,
        checkpoint_id,
    }
}

fn with(spec: VmSpec, mount: VolumeMount) -> VmSpec {
    VmSpec { volumes: vec![mount], ..spec }
}

/// A node whose first VM writes the volume.
async fn written(world: &World) -> Node {
    let node = world.open().await;
    node.ensure_volume(DATA, SIZE_BYTES).await.unwrap();
    let spec = with(world.spec(1, 1), mount(MountMode::ReadWrite, None));
    node.ensure_running(spec).await.unwrap();
    node
}

/// The volume as the VM of a workspace has it.
fn seen(world: &World, workspace: u128) -> DiskSpec {
    let process = world.process(workspace).expect("the VM runs");
    world.host.volumes_of(&process).into_iter().next().expect("it has the volume").1
}

/// Has the first VM's guest write a number to the volume.
fn write(world: &World, number: u64) {
    let mut overlay = OpenOptions::new().append(true).open(seen(world, 1).overlay).unwrap();
    overlay.write_all(&number.to_le_bytes()).unwrap();
}

fn place(world: &World) -> PathBuf {
    world.data_dir().join("volumes").join(DATA.to_string())
}

/// What lies below an overlay's own structures in these files, the uppermost first.
fn numbers(files: &[PathBuf]) -> Vec<u64> {
    let data = |file: &PathBuf| fs::read(file).unwrap().split_off(DATA_AT);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    files.iter().rev().flat_map(data).collect::<Vec<u8>>().chunks_exact(8).map(number).collect()
}

/// What a reader of a checkpoint sees, another workspace's VM.
async fn read(world: &World, node: &Node, number: u128) -> Vec<u64> {
    let reader = with(world.spec(2, 1), mount(MountMode::ReadOnly, Some(checkpoint(number))));
    node.ensure_running(reader).await.unwrap();
    let found = numbers(&seen(world, 2).layers);
    node.ensure_deleted(id(2)).await.unwrap();
    found
}

/// What the volume's next writer sees.
async fn after_a_restart(world: &World, node: &Node) -> Vec<u64> {
    node.ensure_stopped(id(1), Incarnation(1), GRACEFUL).await.unwrap();
    let spec = with(world.spec(1, 2), mount(MountMode::ReadWrite, None));
    node.ensure_running(spec).await.unwrap();
    let DiskSpec { overlay, layers, .. } = seen(world, 1);
    let files: Vec<PathBuf> = std::iter::once(overlay).chain(layers).collect();
    numbers(&files)
}

async fn listed(node: &Node) -> Vec<CheckpointId> {
    let mut listed = node.volumes().await.unwrap().remove(0).checkpoints;
    listed.sort();
    listed
}

/// Everything goes, and nothing is left of it.
async fn assert_all_goes(world: &World, node: &Node) {
    node.ensure_deleted(id(1)).await.unwrap();
    node.ensure_volume_deleted(DATA).await.unwrap();
    assert_eq!(names(&world.data_dir().join("volumes")), Vec::<String>::new());
    assert_eq!(world.layers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_stays_as_it_was_whoever_writes_the_volume_and_goes_with_it() {
    bounded(async {
        let world = World::new();
        let node = written(&world).await;
        write(&world, 1);
        for _ in 0..2 {
            node.ensure_checkpoint(DATA, checkpoint(1)).await.unwrap();
        }
        write(&world, 2);
        node.ensure_checkpoint(DATA, checkpoint(2)).await.unwrap();
        write(&world, 3);
        assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
        assert_eq!(read(&world, &node, 1).await, [1]);
        assert_eq!(read(&world, &node, 2).await, [1, 2]);
        let missing = with(world.spec(2, 1), mount(MountMode::ReadOnly, Some(checkpoint(9))));
        assert_eq!(node.ensure_running(missing).await, Err(NodeError::NoSuchCheckpoint));
        // Without one it is the volume itself, which is written.
        let now = with(world.spec(2, 2), mount(MountMode::ReadOnly, None));
        assert_eq!(node.ensure_running(now).await, Err(NodeError::VolumeInUse));

        // What is needed by nobody goes; the volume is whole.
        let layers = world.layers().len();
        for _ in 0..2 {
            node.ensure_checkpoint_deleted(DATA, checkpoint(1)).await.unwrap();
        }
        assert_eq!(world.layers().len(), layers);
        assert_eq!(after_a_restart(&world, &node).await, [1, 2, 3]);
        assert_eq!(listed(&node).await, [checkpoint(2)]);
        assert_all_goes(&world, &node).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_at_rest_has_checkpoints_that_outlive_the_server() {
    bounded(async {
        let world = World::new();
        let node = written(&world).await;
        let missing = node.ensure_checkpoint(VolumeId::from_u128(8), checkpoint(1)).await;
        assert_eq!(missing, Err(NodeError::NoSuchVolume));
        write(&world, 1);
        // While its guest stands still it cannot write back.
        node.ensure_paused(id(1), Incarnation(1)).await.unwrap();
        let still = node.ensure_checkpoint(DATA, checkpoint(1)).await;
        assert_eq!(still, Err(NodeError::NotRunning));
        node.ensure_stopped(id(1), Incarnation(1), StopMode::Kill).await.unwrap();
        assert_eq!(listed(&node).await, []);
        for number in [1, 2] {
            node.ensure_checkpoint(DATA, checkpoint(number)).await.unwrap();
        }
        node.abandon().await;

        // Half a checkpoint is none.
        fs::create_dir(place(&world).join("checkpoints").join(checkpoint(3).to_string())).unwrap();
        let node = world.open().await;
        assert_eq!(listed(&node).await, [checkpoint(1), checkpoint(2)]);
        assert_eq!(names(&place(&world).join("checkpoints")).len(), 2);
        assert_eq!(read(&world, &node, 1).await, [1]);
        assert_eq!(read(&world, &node, 2).await, [1]);
        assert_all_goes(&world, &node).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_at_any_step_of_a_checkpoint_loses_nothing_that_was_written() {
    for point in CHECKPOINT_FAULT_POINTS {
        bounded(async {
            let world = World::new();
            let node = written(&world).await;
            write(&world, 1);
            {
                let dying = node.clone();
                die_at(&world, node, point, dying.ensure_checkpoint(DATA, checkpoint(1))).await;
            }
            // The guest goes on while nobody is there.
            write(&world, 2);
            let node = world.open().await;
            write(&world, 3);
            assert_eq!(listed(&node).await.len(), usize::from(*point == "checkpoint_recorded"));
            node.ensure_checkpoint(DATA, checkpoint(1)).await.unwrap();
            write(&world, 4);
            let kept = read(&world, &node, 1).await;
            let whole: &[u64] = if *point == "checkpoint_recorded" { &[1] } else { &[1, 2, 3] };
            assert_eq!(kept, whole, "{point}");
            assert_eq!(after_a_restart(&world, &node).await, [1, 2, 3, 4], "{point}");
            assert_all_goes(&world, &node).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_is_killed_in_the_middle_of_a_checkpoint_has_its_volume_as_it_wrote_it() {
    for point in CHECKPOINT_FAULT_POINTS {
        bounded(async {
            let world = World::new();
            let node = written(&world).await;
            write(&world, 1);
            {
                let dying = node.clone();
                die_at(&world, node, point, dying.ensure_checkpoint(DATA, checkpoint(1))).await;
            }
            write(&world, 2);
            world.host.crash(&world.process(1).unwrap()).await;
            let node = world.open().await;
            assert_eq!(after_a_restart(&world, &node).await, [1, 2], "{point}");
            node.ensure_checkpoint(DATA, checkpoint(2)).await.unwrap();
            assert_eq!(read(&world, &node, 2).await, [1, 2], "{point}");
            assert_all_goes(&world, &node).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_fails_at_any_step_can_be_repeated_and_the_volume_detached() {
    // A guest that cannot be let go on is tried again.
    let steps = CHECKPOINT_FAULT_POINTS.iter().filter(|point| **point != "checkpoint_went_on");
    for point in steps {
        bounded(async {
            let world = World::new();
            let node = written(&world).await;
            write(&world, 1);
            assert!(world.faults.plan(point, FaultKind::Fail));
            node.ensure_checkpoint(DATA, checkpoint(1)).await.unwrap_err();
            write(&world, 2);
            assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"), "{point}");
            node.ensure_checkpoint(DATA, checkpoint(2)).await.unwrap();
            write(&world, 3);
            assert_eq!(read(&world, &node, 2).await, [1, 2], "{point}");
            node.ensure_volume_detached(id(1), Incarnation(1), DATA).await.unwrap();
            let again = mount(MountMode::ReadWrite, None);
            node.ensure_volume_attached(id(1), Incarnation(1), again).await.unwrap();
            write(&world, 4);
            assert_eq!(after_a_restart(&world, &node).await, [1, 2, 3, 4], "{point}");
            assert_all_goes(&world, &node).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_at_rest_that_fails_at_any_write_can_be_repeated_in_the_next_life() {
    for point in ["layer_sealed", "layer_moved", "disk_recorded"] {
        bounded(async {
            let world = World::new();
            let node = written(&world).await;
            write(&world, 1);
            node.ensure_stopped(id(1), Incarnation(1), GRACEFUL).await.unwrap();
            assert!(world.faults.plan(point, FaultKind::Fail));
            node.ensure_checkpoint(DATA, checkpoint(1)).await.unwrap_err();
            node.abandon().await;

            let node = world.open().await;
            assert_eq!(listed(&node).await, [], "{point}");
            node.ensure_checkpoint(DATA, checkpoint(1)).await.unwrap();
            assert_eq!(read(&world, &node, 1).await, [1], "{point}");
            assert_eq!(after_a_restart(&world, &node).await, [1], "{point}");
            assert_all_goes(&world, &node).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hypervisor_that_refuses_or_dies_costs_nothing_that_was_written() {
    for fault in [StepFault::Refuse, StepFault::Die] {
        bounded(async {
            let world = World::new();
            let node = written(&world).await;
            write(&world, 1);
            world.host.inject_at(Step::PushVolumeOverlay, fault);
            node.ensure_checkpoint(DATA, checkpoint(1)).await.unwrap_err();
            assert_eq!(listed(&node).await, []);
            if fault == StepFault::Refuse {
                write(&world, 2);
            }
            let whole = after_a_restart(&world, &node).await;
            assert_eq!(whole, if fault == StepFault::Refuse { vec![1, 2] } else { vec![1] });
            node.ensure_checkpoint(DATA, checkpoint(1)).await.unwrap();
            assert_eq!(read(&world, &node, 1).await, whole);
            assert_all_goes(&world, &node).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_checkpoints_than_a_disk_may_have_layers_are_taken_one_after_the_other() {
    bounded(async {
        let world = World::new();
        let node = written(&world).await;
        let count = 2 * DiskSpec::MAX_LAYERS as u128;
        for number in 0..count {
            write(&world, 1);
            node.ensure_checkpoint(DATA, checkpoint(number)).await.unwrap();
        }
        assert_eq!(listed(&node).await.len() as u128, count);
        assert!(seen(&world, 1).layers.len() <= DiskSpec::MAX_LAYERS);
        assert_all_goes(&world, &node).await;
    })
    .await;
}
