//! What snapshots do to disks: layers are shared, become one in the background, and go with the last
//! who needs them; a restore in place replaces a disk and keeps it until it has succeeded.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use skerry_internal_api::{NodeApi, NodeError, SnapshotContents, StartFrom, VmPhase};
use skerry_model::{Incarnation, SnapshotId, WorkspaceId};
use skerry_node::{FaultKind, Node};
use skerry_vmm::{
    DiskSpec,
    fake::{Step, StepFault},
};
use support::{
    GRACEFUL, World, assert_running, bounded, exec,
    inside::{fork, running, take},
    outcome,
};

const ID: WorkspaceId = WorkspaceId::from_u128(1);
const FIRST: Incarnation = Incarnation(1);
const SNAPSHOT: SnapshotId = SnapshotId::from_u128(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_in_place_keeps_what_there_was_until_it_has_succeeded() {
    for suspended in [false, true] {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            take(&node, 100, SnapshotContents::DiskAndMemory).await.unwrap();
            world.remember(1, 17);
            world.write(1, 18);
            if suspended {
                node.ensure_suspended(ID, FIRST).await.unwrap();
            }
            let restore = |incarnation| {
                let mut spec = world.spec(1, incarnation);
                spec.start_from = StartFrom::Snapshot { snapshot_id: SNAPSHOT };
                spec
            };
            assert!(world.faults.plan("guest_ready", FaultKind::Fail));
            node.ensure_running(restore(2)).await.unwrap_err();
            let (phase, again) = if suspended {
                (VmPhase::Suspended, StartFrom::SavedMemory)
            } else {
                (VmPhase::Stopped, StartFrom::Disk)
            };
            assert_eq!(node.inspect(ID).await.unwrap().phase, phase);
            assert_eq!(world.written(1), [8, 18]);
            let mut spec = world.spec(1, 3);
            spec.start_from = again;
            node.ensure_running(spec).await.unwrap();
            assert_eq!(world.written(1), [8, 18]);
            assert_eq!(world.remembered(1), if suspended { vec![7, 17] } else { vec![] });

            assert_running(&node.ensure_running(restore(4)).await.unwrap());
            assert_eq!((world.remembered(1), world.written(1)), (vec![7], vec![8]));
            node.ensure_snapshot_deleted(SNAPSHOT).await.unwrap();
            node.ensure_deleted(ID).await.unwrap();
            assert_eq!(world.layers(), Vec::<String>::new());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_snapshots_are_taken_a_disk_has_few_layers_and_none_is_left_behind() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        for number in 0..2 * DiskSpec::MAX_LAYERS as u128 {
            take(&node, 100 + number, SnapshotContents::Disk).await.unwrap();
            world.write(1, 9);
            node.ensure_snapshot_deleted(SnapshotId::from_u128(100 + number)).await.unwrap();
            assert!(world.recorded_disk(1).len() < 16);
        }
        assert!(world.layers().len() < 16);
        node.ensure_stopped(ID, FIRST, GRACEFUL).await.unwrap();
        assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_that_a_snapshot_needs_stay_when_the_workspace_does_without_them() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        take(&node, 100, SnapshotContents::Disk).await.unwrap();
        for number in 0..12 {
            take(&node, 200 + number, SnapshotContents::Disk).await.unwrap();
            node.ensure_snapshot_deleted(SnapshotId::from_u128(200 + number)).await.unwrap();
            world.write(1, 9);
        }
        assert!(world.recorded_disk(1).len() < 10);
        assert_eq!(world.kept(100), [8]);
        fork(&world, &node, 100).await;
        assert_eq!(world.written(2), [8]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_when_layers_have_become_one_keeps_both_until_it_is_recorded() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        for number in 0..8 {
            take(&node, 100 + number, SnapshotContents::Disk).await.unwrap();
        }
        assert!(world.faults.plan("flattened", FaultKind::Fail));
        take(&node, 108, SnapshotContents::Disk).await.unwrap();
        world.faults.happened("flattened").await;
        node.abandon().await;
        let node = world.open().await;
        assert_goes_on_flattened(&world, &node).await;
    })
    .await;
}

/// The VM goes on, and its record is that of a disk that has become one layer.
async fn assert_goes_on_flattened(world: &World, node: &Node) {
    assert_eq!(exec(node, 1, &["echo", "hi"]).await, outcome("hi\n"));
    take(node, 300, SnapshotContents::Disk).await.unwrap();
    assert_eq!(world.recorded_disk(1).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_of_the_most_layers_takes_no_further_snapshot_and_says_why() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        for _ in 0..DiskSpec::MAX_LAYERS {
            // Nothing becomes one.
            world.host.inject_at(Step::FlattenDisk, StepFault::Refuse);
        }
        for number in 0..DiskSpec::MAX_LAYERS as u128 {
            take(&node, 100 + number, SnapshotContents::Disk).await.unwrap();
            world.write(1, 9);
        }
        let refused = take(&node, 200, SnapshotContents::Disk).await;
        assert!(matches!(refused, Err(NodeError::NoCapacity(_))), "{refused:?}");
        assert_running(&node.inspect(ID).await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_disk_of_the_most_layers_is_taken_as_soon_as_they_can_become_one() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        for _ in 0..DiskSpec::MAX_LAYERS {
            world.host.inject_at(Step::FlattenDisk, StepFault::Refuse);
        }
        for number in 0..DiskSpec::MAX_LAYERS as u128 {
            take(&node, 100 + number, SnapshotContents::Disk).await.unwrap();
            world.write(1, 9);
        }
        // Each that is refused has tried, so what stands in the way comes to its end.
        let mut taken = Err(NodeError::Cancelled);
        for number in 0..=DiskSpec::MAX_LAYERS as u128 {
            taken = take(&node, 200 + number, SnapshotContents::Disk).await;
            match &taken {
                Ok(_) => break,
                Err(error) => assert!(matches!(error, NodeError::NoCapacity(_)), "{error:?}"),
            }
        }
        taken.unwrap();
        assert_eq!(world.recorded_disk(1).len(), 2);
        assert_eq!(world.written(1), [9]);
    })
    .await;
}
