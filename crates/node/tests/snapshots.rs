//! Snapshots of disks and memory, with failures, crashes and changes of mind at every step.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::time::Duration;

use skerry_internal_api::{
    NodeApi, NodeError, SnapshotContents, SnapshotInfo, StartFrom, StopMode, VmPhase,
};
use skerry_model::{Incarnation, SnapshotId, WorkspaceId};
use skerry_node::{FaultKind, Node};
use skerry_vmm::fake::{Step, StepFault, VmState};
use support::{
    GRACEFUL, World, assert_nothing, assert_only_disk, assert_running, bounded, die_at, exec,
    inside::{fork, running, take},
    outcome,
};

const ID: WorkspaceId = WorkspaceId::from_u128(1);
const FIRST: Incarnation = Incarnation(1);
const SNAPSHOT: SnapshotId = SnapshotId::from_u128(100);
const BOTH: [SnapshotContents; 2] = [SnapshotContents::DiskAndMemory, SnapshotContents::Disk];

/// The steps of a snapshot of a VM, in which the VM is not paused before. What only memory needs is
/// marked.
const STEPS: [(&str, Needs); 14] = [
    ("snapshot_drafted", Needs::Any),
    ("snapshot_noted", Needs::Any),
    ("snapshot_synced", Needs::Any),
    ("snapshot_begun", Needs::Memory),
    ("snapshot_converged", Needs::Memory),
    ("overlay_intended", Needs::Any),
    ("snapshot_frozen", Needs::Any),
    ("snapshot_stopped", Needs::Memory),
    ("overlay_pushed", Needs::Any),
    ("snapshot_captured", Needs::Memory),
    ("snapshot_went_on", Needs::Any),
    ("snapshot_saved", Needs::Memory),
    ("overlay_kept", Needs::Any),
    ("snapshot_sealed", Needs::Any),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Any,
    Memory,
}

/// The steps that a snapshot of these contents takes.
fn steps_of(contents: SnapshotContents) -> impl Iterator<Item = &'static str> {
    let taken = move |(_, needs): &&(&str, Needs)| {
        *needs == Needs::Any || contents == SnapshotContents::DiskAndMemory
    };
    STEPS.iter().filter(taken).map(|(point, _)| *point)
}

/// The VM goes on as before, and writes.
async fn assert_goes_on(world: &World, node: &Node) {
    assert_running(&node.inspect(ID).await.unwrap());
    assert_eq!(world.vm_state(1), Some(VmState::Running));
    assert_eq!(exec(node, 1, &["echo", "hi"]).await, outcome("hi\n"));
    assert_eq!((world.remembered(1), world.written(1)), (vec![7], vec![8]));
    assert_eq!(world.host.started_count(), 1);
}

/// There is no snapshot, and nothing of one.
async fn assert_no_snapshot(world: &World, node: &Node) {
    assert_eq!(node.snapshots().await, []);
    assert_eq!(world.snapshot_places(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_running_vm_keeps_the_instant_and_both_go_their_own_ways() {
    for contents in BOTH {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            let before = node.inspect(ID).await;
            let info = take(&node, 100, contents).await.unwrap();
            assert_eq!((info.id, info.workspace_id, info.contents), (SNAPSHOT, ID, contents));
            assert_eq!((info.shape, &info.image_digest), (world.spec(1, 1).shape, &world.image));
            assert!(info.size_bytes > 0 && info.blackout > Duration::ZERO, "{info:?}");
            assert_eq!(node.inspect(ID).await, before);
            assert_goes_on(&world, &node).await;
            assert_eq!(take(&node, 100, contents).await.unwrap(), info, "it is there already");
            assert_eq!(node.snapshots().await, [info]);

            world.remember(1, 17);
            world.write(1, 18);
            fork(&world, &node, 100).await;
            let memory = match contents {
                SnapshotContents::DiskAndMemory => vec![7],
                SnapshotContents::Disk => vec![],
            };
            assert_eq!((world.remembered(2), world.written(2)), (memory, vec![8]));
            world.write(2, 28);
            assert_eq!((world.remembered(1), world.written(1)), (vec![7, 17], vec![8, 18]));
            assert_eq!((world.written(2), world.kept(100)), (vec![8, 28], vec![8]));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_paused_vm_leaves_it_paused() {
    for contents in BOTH {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            node.ensure_paused(ID, FIRST).await.unwrap();
            take(&node, 100, contents).await.unwrap();
            assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Paused);
            assert_eq!(world.vm_state(1), Some(VmState::Paused));
            assert_eq!(node.guest(ID).await.err(), Some(NodeError::NotRunning));
            node.ensure_resumed(ID, FIRST).await.unwrap();
            assert_goes_on(&world, &node).await;
            assert_eq!(world.kept(100), [8]);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_at_rest_gives_its_disk_and_no_memory() {
    for suspended in [false, true] {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            if suspended {
                node.ensure_suspended(ID, FIRST).await.unwrap();
            } else {
                node.ensure_stopped(ID, FIRST, GRACEFUL).await.unwrap();
            }
            let refused = take(&node, 100, SnapshotContents::DiskAndMemory).await;
            assert_eq!(refused, Err(NodeError::NotRunning));
            let info = take(&node, 100, SnapshotContents::Disk).await.unwrap();
            assert_eq!(info.blackout, Duration::ZERO);
            assert_eq!((world.kept(100), world.written(1)), (vec![8], vec![8]));
            // Nothing was written since: no layer more.
            take(&node, 101, SnapshotContents::Disk).await.unwrap();
            assert_eq!((world.kept(101), world.layers().len()), (vec![8], 1));

            let mut spec = world.spec(1, 2);
            if suspended {
                spec.start_from = StartFrom::SavedMemory;
            }
            assert_running(&node.ensure_running(spec).await.unwrap());
            assert_eq!(world.written(1), [8]);
            let memory = if suspended { vec![7] } else { vec![] };
            assert_eq!(world.remembered(1), memory);
            world.write(1, 18);
            assert_eq!((world.kept(100), world.written(1)), (vec![8], vec![8, 18]));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_outlives_its_workspace_and_its_layers_go_with_the_last_who_needs_them() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        take(&node, 100, SnapshotContents::DiskAndMemory).await.unwrap();
        take(&node, 101, SnapshotContents::Disk).await.unwrap();
        node.ensure_deleted(ID).await.unwrap();
        assert_nothing(&world, 1);
        assert_eq!(world.kept(100), [8]);
        fork(&world, &node, 100).await;
        for number in [100, 101, 101] {
            let id = SnapshotId::from_u128(number);
            node.ensure_snapshot_deleted(id).await.unwrap();
        }
        assert_no_snapshot(&world, &node).await;
        assert_eq!((world.remembered(2), world.written(2)), (vec![7], vec![8]));
        assert_eq!(world.layers().len(), 1);
        node.ensure_deleted(WorkspaceId::from_u128(2)).await.unwrap();
        assert_eq!(world.layers(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_survive_the_server() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        let info = take(&node, 100, SnapshotContents::DiskAndMemory).await.unwrap();
        node.abandon().await;
        let node = world.open().await;
        assert_eq!(node.snapshots().await, std::slice::from_ref(&info));
        assert_eq!(take(&node, 100, SnapshotContents::DiskAndMemory).await.unwrap(), info);
        assert_goes_on(&world, &node).await;
        fork(&world, &node, 100).await;
        assert_eq!((world.remembered(2), world.written(2)), (vec![7], vec![8]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identifier_belongs_to_one_workspace_and_a_snapshot_needs_a_workspace() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        take(&node, 100, SnapshotContents::Disk).await.unwrap();
        node.ensure_running(world.spec(2, 1)).await.unwrap();
        let other = WorkspaceId::from_u128(2);
        let refused = node.take_snapshot(other, SNAPSHOT, SnapshotContents::Disk).await;
        assert!(matches!(refused, Err(NodeError::Invalid { field: "snapshot_id", .. })));
        let nobody = WorkspaceId::from_u128(3);
        let refused = node.take_snapshot(nobody, SNAPSHOT, SnapshotContents::Disk).await;
        assert_eq!(refused, Err(NodeError::NoSuchVm));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_fails_after_any_step_leaves_the_vm_as_it_was_and_nothing_of_itself() {
    for contents in BOTH {
        let sealing = ["state_sealed", "state_described", "push_intended", "overlay_made"];
        // A VM that does not go on at once does at the second try, and then the snapshot is good.
        let good = ["snapshot_went_on", "snapshot_sealed"];
        for point in steps_of(contents).chain(sealing).filter(|point| !good.contains(point)) {
            bounded(async {
                let world = World::new();
                let node = running(&world).await;
                assert!(world.faults.plan(point, FaultKind::Fail));
                let error = take(&node, 100, contents).await.unwrap_err();
                assert!(matches!(error, NodeError::Step { .. }), "{point}: {error:?}");
                assert!(!world.faults.pending(), "{point}");
                assert_goes_on(&world, &node).await;
                assert_no_snapshot(&world, &node).await;
                take(&node, 100, contents).await.unwrap();
                assert_eq!((world.kept(100), world.written(1)), (vec![8], vec![8]), "{point}");
                node.ensure_snapshot_deleted(SNAPSHOT).await.unwrap();
                node.ensure_deleted(ID).await.unwrap();
                assert_nothing(&world, 1);
                assert_eq!(world.layers(), Vec::<String>::new(), "{point}");
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_complete_stays_though_its_answer_is_lost() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        assert!(world.faults.plan("snapshot_sealed", FaultKind::Fail));
        take(&node, 100, SnapshotContents::Disk).await.unwrap_err();
        assert_goes_on(&world, &node).await;
        let info = take(&node, 100, SnapshotContents::Disk).await.unwrap();
        assert_eq!(node.snapshots().await, [info]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_paused_vm_that_fails_leaves_it_paused() {
    for point in [
        "snapshot_woken",
        "snapshot_frozen",
        "snapshot_begun",
        "snapshot_captured",
        "snapshot_saved",
    ] {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            node.ensure_paused(ID, FIRST).await.unwrap();
            assert!(world.faults.plan(point, FaultKind::Fail));
            take(&node, 100, SnapshotContents::DiskAndMemory).await.unwrap_err();
            assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Paused, "{point}");
            assert_eq!(world.vm_state(1), Some(VmState::Paused), "{point}");
            assert_no_snapshot(&world, &node).await;
            node.ensure_resumed(ID, FIRST).await.unwrap();
            assert_goes_on(&world, &node).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_of_a_snapshot_taken_twice_change_nothing() {
    for contents in BOTH {
        for point in steps_of(contents).chain(["snapshot_ended"]) {
            bounded(async {
                let world = World::new();
                let node = running(&world).await;
                assert!(world.faults.plan(point, FaultKind::Repeat));
                take(&node, 100, contents).await.unwrap();
                assert!(!world.faults.pending(), "{point}");
                assert_goes_on(&world, &node).await;
                assert_eq!(world.kept(100), [8], "{point}");
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_after_any_step_of_a_snapshot_finds_the_vm_and_the_whole_or_nothing() {
    for contents in BOTH {
        for point in steps_of(contents).chain(["snapshot_ended"]) {
            bounded(async {
                let world = World::new();
                let node = running(&world).await;
                die_at(&world, node.clone(), point, take(&node, 100, contents)).await;
                drop(node);
                let node = world.open().await;
                assert_goes_on(&world, &node).await;
                if ["snapshot_sealed", "snapshot_ended"].contains(&point) {
                    assert_eq!(node.snapshots().await.len(), 1, "{point}");
                } else {
                    assert_no_snapshot(&world, &node).await;
                }
                world.write(1, 18);
                take(&node, 100, contents).await.unwrap();
                take(&node, 101, contents).await.unwrap();
                assert_eq!((world.kept(101), world.written(1)), (vec![8, 18], vec![8, 18]));
                node.ensure_stopped(ID, FIRST, GRACEFUL).await.unwrap();
                assert_only_disk(&world, 1);
                assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
                assert_eq!(world.written(1), [8, 18], "{point}");
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_died_with_the_node_in_the_middle_of_a_snapshot_keeps_its_disk() {
    for point in ["overlay_intended", "snapshot_frozen", "overlay_pushed", "overlay_kept"] {
        for written_after in [false, true] {
            bounded(async {
                let world = World::new();
                let node = running(&world).await;
                let snapshot = take(&node, 100, SnapshotContents::Disk);
                die_at(&world, node.clone(), point, snapshot).await;
                drop(node);
                let mut expected = vec![8];
                if written_after {
                    world.write(1, 18);
                    expected.push(18);
                }
                world.host.crash(&world.process(1).unwrap()).await;
                let node = world.open().await;
                assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped);
                assert_no_snapshot(&world, &node).await;
                assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
                assert_eq!(world.written(1), expected, "{point}");
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_workspace_at_rest_is_whole_or_nothing() {
    for point in ["snapshot_drafted", "disk_frozen", "snapshot_sealed"] {
        for kind in [FaultKind::Fail, FaultKind::Hang] {
            bounded(async {
                let world = World::new();
                let mut node = running(&world).await;
                node.ensure_stopped(ID, FIRST, GRACEFUL).await.unwrap();
                if kind == FaultKind::Fail {
                    assert!(world.faults.plan(point, kind));
                    take(&node, 100, SnapshotContents::Disk).await.unwrap_err();
                } else {
                    let snapshot = take(&node, 100, SnapshotContents::Disk);
                    die_at(&world, node.clone(), point, snapshot).await;
                    drop(node);
                    node = world.open().await;
                }
                if point == "snapshot_sealed" {
                    assert_eq!(node.snapshots().await.len(), 1);
                } else {
                    assert_no_snapshot(&world, &node).await;
                }
                assert_eq!(world.written(1), [8]);
                take(&node, 100, SnapshotContents::Disk).await.unwrap();
                assert_eq!(world.kept(100), [8]);
                assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
                assert_eq!(world.written(1), [8]);
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_fails_a_step_of_a_snapshot_leaves_the_vm_as_it_was() {
    let steps = [
        Step::BeginSave,
        Step::Converge,
        Step::Pause,
        Step::PushOverlay,
        Step::Capture,
        Step::CompleteSave,
    ];
    for step in steps {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            world.host.inject_at(step, StepFault::Refuse);
            take(&node, 100, SnapshotContents::DiskAndMemory).await.unwrap_err();
            assert_goes_on(&world, &node).await;
            assert_no_snapshot(&world, &node).await;
            take(&node, 100, SnapshotContents::DiskAndMemory).await.unwrap();
            assert_eq!(world.kept(100), [8]);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_dies_in_the_middle_of_a_snapshot_leaves_its_disk_and_nothing_of_the_snapshot() {
    let steps = [
        Step::BeginSave,
        Step::Converge,
        Step::Pause,
        Step::PushOverlay,
        Step::Capture,
        Step::CompleteSave,
    ];
    for step in steps {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            let mut events = node.subscribe();
            world.host.inject_at(step, StepFault::Die);
            take(&node, 100, SnapshotContents::DiskAndMemory).await.unwrap_err();
            events.recv().await.unwrap();
            assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped);
            assert_only_disk(&world, 1);
            assert_no_snapshot(&world, &node).await;
            assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
            assert_eq!(world.written(1), [8], "{step:?}");
        })
        .await;
    }
}

/// The waits during which somebody may change their mind.
const WAITS: [&str; 6] = [
    "snapshot_synced",
    "snapshot_converged",
    "snapshot_frozen",
    "snapshot_captured",
    "snapshot_saved",
    "state_closed",
];

/// Asks for a snapshot and, once it is at `point`, for `change`.
async fn while_at<T>(
    world: &World,
    node: &Node,
    point: &str,
    change: impl Future<Output = T>,
) -> (Result<SnapshotInfo, NodeError>, T) {
    assert!(world.faults.plan(point, FaultKind::Hang));
    tokio::join!(take(node, 100, SnapshotContents::DiskAndMemory), async {
        world.faults.happened(point).await;
        change.await
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_of_a_snapshot_that_is_being_taken_gives_it_up() {
    for point in WAITS {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            let delete = node.ensure_snapshot_deleted(SNAPSHOT);
            let (taken, deleted) = while_at(&world, &node, point, delete).await;
            assert_eq!(taken, Err(NodeError::Cancelled), "{point}");
            deleted.unwrap();
            assert_goes_on(&world, &node).await;
            assert_no_snapshot(&world, &node).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_or_deletion_of_the_workspace_does_not_wait_for_a_snapshot() {
    for point in WAITS {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            let stop = node.ensure_stopped(ID, FIRST, StopMode::Kill);
            let (taken, stopped) = while_at(&world, &node, point, stop).await;
            assert_eq!(taken, Err(NodeError::Cancelled), "{point}");
            stopped.unwrap();
            assert_only_disk(&world, 1);
            assert_no_snapshot(&world, &node).await;
        })
        .await;
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            let (taken, deleted) = while_at(&world, &node, point, node.ensure_deleted(ID)).await;
            assert_eq!(taken, Err(NodeError::Cancelled), "{point}");
            deleted.unwrap();
            assert_nothing(&world, 1);
            assert_eq!(world.layers(), Vec::<String>::new());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_stop_waits_for_a_snapshot() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        let (taken, stopped) = tokio::join!(
            take(&node, 100, SnapshotContents::DiskAndMemory),
            node.ensure_stopped(ID, FIRST, GRACEFUL)
        );
        taken.unwrap();
        stopped.unwrap();
        assert_eq!((world.kept(100), world.written(1)), (vec![8], vec![8]));
    })
    .await;
}
