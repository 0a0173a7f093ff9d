//! Workspaces that start from one snapshot share its memory: one loads it, the rest map it. Whatever
//! fails on the way, they start all the same.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{
    fs::{self, OpenOptions, Permissions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::PathBuf,
};

use skerry_internal_api::{NodeApi, SnapshotContents, StartFrom, StartPath, VmSpec};
use skerry_model::{Incarnation, SnapshotId, WorkspaceId};
use skerry_node::{FaultKind, Node};
use skerry_vmm::fake::{Step, StepFault};
use support::{
    GRACEFUL, World, assert_nothing, assert_running, bounded, die_at, exec,
    inside::{running, take},
    machine::names,
    outcome,
};

const SNAPSHOT: SnapshotId = SnapshotId::from_u128(100);

/// A workspace with a snapshot of disk and memory, and a node that is done with everything.
async fn with_snapshot(world: &World) -> Node {
    let node = running(world).await;
    take(&node, 100, SnapshotContents::DiskAndMemory).await.unwrap();
    node.settled().await;
    node
}

fn fork_spec(world: &World, workspace: u128) -> VmSpec {
    VmSpec { start_from: StartFrom::Snapshot { snapshot_id: SNAPSHOT }, ..world.spec(workspace, 1) }
}

/// Starts a workspace from the snapshot, and finds in it what was kept.
async fn fork(world: &World, node: &Node, workspace: u128) {
    let report = node.ensure_running(fork_spec(world, workspace)).await.unwrap();
    assert_running(&report);
    assert_is_the_fork(world, node, workspace).await;
}

async fn assert_is_the_fork(world: &World, node: &Node, workspace: u128) {
    let report = node.inspect(WorkspaceId::from_u128(workspace)).await.unwrap();
    assert_eq!(report.start_path, Some(StartPath::SnapshotMemory));
    assert_eq!((world.remembered(workspace), world.written(workspace)), (vec![7], vec![8]));
    assert_eq!(exec(node, workspace, &["echo", "hi"]).await, outcome("hi\n"));
}

fn promoted(world: &World) -> PathBuf {
    world.data_dir().join("snapshots").join(SNAPSHOT.to_string()).join("promoted")
}

async fn clones(node: &Node) -> u64 {
    node.start_statistics().await.memory_clones
}

/// Nothing lies about that is neither a workspace's, a template's nor a snapshot's.
fn assert_tidy(world: &World, what: &str) {
    assert_eq!(world.nobodys(), Vec::<String>::new(), "{what}");
    let place = promoted(world);
    let beside = names(place.parent().unwrap());
    assert!(beside.iter().all(|name| !name.starts_with('.')), "{what}: {beside:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_fork_loads_the_memory_and_the_next_share_it() {
    bounded(async {
        let world = World::instant(0);
        let node = with_snapshot(&world).await;
        fork(&world, &node, 2).await;
        assert_eq!(clones(&node).await, 0);
        node.settled().await;
        assert_tidy(&world, "promoted");
        for workspace in [3, 4] {
            fork(&world, &node, workspace).await;
        }
        let statistics = node.start_statistics().await;
        assert_eq!((statistics.memory_restores, statistics.memory_clones), (3, 2));
        // Each goes its own way.
        world.remember(3, 17);
        world.write(3, 18);
        assert_eq!((world.remembered(4), world.written(4)), (vec![7], vec![8]));
        fork(&world, &node, 5).await;
        // A fork is a workspace like any other.
        let (id, first) = (WorkspaceId::from_u128(3), Incarnation(1));
        node.ensure_suspended(id, first).await.unwrap();
        let mut again = world.spec(3, 2);
        again.start_from = StartFrom::SavedMemory;
        assert_running(&node.ensure_running(again).await.unwrap());
        assert_eq!((world.remembered(3), world.written(3)), (vec![7, 17], vec![8, 18]));
        for workspace in 2..=5 {
            node.ensure_deleted(WorkspaceId::from_u128(workspace)).await.unwrap();
            assert_eq!(world.left_alone(workspace), Vec::<String>::new());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_that_start_at_once_are_one_load_and_mappings() {
    bounded(async {
        let world = World::instant(0);
        let node = with_snapshot(&world).await;
        let starts = (2..8).map(|workspace| node.ensure_running(fork_spec(&world, workspace)));
        for report in futures::future::join_all(starts).await {
            assert_running(&report.unwrap());
        }
        for workspace in 2..8 {
            assert_is_the_fork(&world, &node, workspace).await;
        }
        let statistics = node.start_statistics().await;
        assert_eq!((statistics.memory_restores, statistics.memory_clones), (6, 5));
        node.settled().await;
        assert_tidy(&world, "promoted");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_that_goes_back_to_its_own_snapshot_shares_from_the_third_time_on() {
    bounded(async {
        let world = World::instant(0);
        let node = with_snapshot(&world).await;
        for incarnation in 2..6 {
            world.write(1, 99);
            let spec = VmSpec { incarnation: Incarnation(incarnation), ..fork_spec(&world, 1) };
            node.ensure_running(spec).await.unwrap();
            assert_is_the_fork(&world, &node, 1).await;
            node.settled().await;
            assert_eq!(promoted(&world).exists(), incarnation > 2, "{incarnation}");
        }
        assert_eq!(clones(&node).await, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_memory_outlives_the_server_and_its_snapshots_deletion_hurts_no_clone() {
    bounded(async {
        let world = World::instant(0);
        let node = with_snapshot(&world).await;
        fork(&world, &node, 2).await;
        node.settled().await;
        fork(&world, &node, 3).await;
        node.abandon().await;
        let node = world.open().await;
        fork(&world, &node, 4).await;
        assert_eq!(clones(&node).await, 1);
        node.settled().await;

        node.ensure_snapshot_deleted(SNAPSHOT).await.unwrap();
        assert_eq!(world.snapshot_places(), Vec::<String>::new());
        for workspace in 2..=4 {
            assert_eq!(exec(&node, workspace, &["echo", "hi"]).await, outcome("hi\n"));
            assert_eq!((world.remembered(workspace), world.written(workspace)), (vec![7], vec![8]));
        }
        let refused = node.ensure_running(fork_spec(&world, 5)).await.unwrap_err();
        assert_eq!(refused, skerry_internal_api::NodeError::NoSuchSnapshot);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_deleted_while_its_memory_is_being_promoted() {
    bounded(async {
        let world = World::instant(0);
        let node = with_snapshot(&world).await;
        assert!(world.faults.plan("promotion_loaded", FaultKind::Hang));
        fork(&world, &node, 2).await;
        world.faults.happened("promotion_loaded").await;
        node.ensure_snapshot_deleted(SNAPSHOT).await.unwrap();
        assert_eq!(world.snapshot_places(), Vec::<String>::new());
        node.abandon().await;
        let node = world.open().await;
        node.settled().await;
        assert_eq!(world.nobodys(), Vec::<String>::new());
        assert_eq!((world.remembered(2), world.written(2)), (vec![7], vec![8]));
        node.ensure_deleted(WorkspaceId::from_u128(2)).await.unwrap();
        assert_eq!(world.left_alone(2), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_promoted_with_the_least_weight_until_somebody_waits_for_it() {
    bounded(async {
        let world = World::instant(0);
        let node = with_snapshot(&world).await;
        // The memory is loaded and goes no further.
        assert!(world.faults.plan("promotion_loaded", FaultKind::Hang));
        fork(&world, &node, 2).await;
        world.faults.happened("promotion_loaded").await;
        let nobodys = names(&world.data_dir().join("pool"));
        let [number] = nobodys.as_slice() else { panic!("{nobodys:?}") };
        let in_the_background = world.cpu_weight(number);
        assert!(world.faults.plan("promotion_hastened", FaultKind::Fail));
        let start = node.ensure_running(fork_spec(&world, 3));
        tokio::select! {
            _ = start => panic!("there is no memory to share yet"),
            () = world.faults.happened("promotion_hastened") => {}
        }
        // Without control groups there is nothing to see, and that nothing fails.
        let waited_for = world.cpu_weight(number);
        assert!(
            in_the_background.is_none() && waited_for.is_none() || in_the_background < waited_for,
            "{in_the_background:?} {waited_for:?}"
        );
        assert_eq!(waited_for, world.cpu_weight(&WorkspaceId::from_u128(2).to_string()));
        node.abandon().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_that_fails_at_any_step_leaves_nothing_and_forks_load_the_memory() {
    let points = [
        "promotion_loaded",
        "promotion_saved",
        "state_sealed",
        "state_described",
        "state_in_place",
    ];
    let steps = [
        (Step::BeginSave, StepFault::Refuse),
        (Step::BeginSave, StepFault::Die),
        (Step::CompleteSave, StepFault::Die),
    ];
    let by_point = points.map(|point| (Some(point), None));
    for (point, step) in by_point.into_iter().chain(steps.map(|step| (None, Some(step)))) {
        bounded(async {
            let world = World::instant(0);
            let node = with_snapshot(&world).await;
            if let Some(point) = point {
                assert!(world.faults.plan(point, FaultKind::Fail));
            }
            if let Some((step, fault)) = step {
                world.host.inject_at(step, fault);
            }
            let what = format!("{point:?} {step:?}");
            fork(&world, &node, 2).await;
            node.settled().await;
            assert!(!world.faults.pending() && !promoted(&world).exists(), "{what}");
            assert_tidy(&world, &what);
            fork(&world, &node, 3).await;
            assert_eq!(clones(&node).await, 0, "{what}");
            // The next life knows nothing of it.
            node.shutdown().await;
            drop(node);
            let node = world.open().await;
            fork(&world, &node, 4).await;
            node.settled().await;
            fork(&world, &node, 5).await;
            assert_eq!(clones(&node).await, 1, "{what}");
            assert_tidy(&world, &what);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_in_the_middle_of_a_promotion_leaves_nothing_of_it() {
    for point in ["promotion_loaded", "promotion_saved"] {
        bounded(async {
            let world = World::instant(0);
            let node = with_snapshot(&world).await;
            let forked = async {
                fork(&world, &node, 2).await;
                std::future::pending::<()>().await;
            };
            die_at(&world, node.clone(), point, forked).await;
            drop(node);
            let node = world.open().await;
            node.settled().await;
            assert_tidy(&world, point);
            assert!(!promoted(&world).exists(), "{point}");
            assert_eq!(world.host.running().len(), 2, "{point}");
            assert_is_the_fork(&world, &node, 2).await;
            fork(&world, &node, 3).await;
            node.settled().await;
            fork(&world, &node, 4).await;
            assert_eq!(clones(&node).await, 1, "{point}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_whose_steps_are_taken_twice_is_an_ordinary_one() {
    for point in ["memory_file", "disk"] {
        bounded(async {
            let world = World::instant(0);
            let node = with_snapshot(&world).await;
            fork(&world, &node, 2).await;
            assert!(world.faults.plan(point, FaultKind::Repeat));
            node.settled().await;
            world.faults.forget_pending();
            fork(&world, &node, 3).await;
            assert_eq!(clones(&node).await, 1, "{point}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_shared_memory_is_refused_and_the_fork_loads_what_was_saved() {
    for name in ["ram", "state", "manifest.json"] {
        for truncated in [false, true] {
            bounded(async {
                let world = World::instant(0);
                let node = with_snapshot(&world).await;
                fork(&world, &node, 2).await;
                node.settled().await;
                let path = promoted(&world).join(name);
                fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
                let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
                let length = file.metadata().unwrap().len();
                if truncated {
                    file.set_len(length / 2).unwrap();
                } else {
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, length / 2).unwrap();
                    file.write_all_at(&[byte[0] ^ 1], length / 2).unwrap();
                }
                drop(file);
                let what = format!("{name}, truncated: {truncated}");
                // Also one that restores in place: what it had is kept until it has succeeded.
                fork(&world, &node, 3).await;
                assert_eq!(clones(&node).await, 0, "{what}");
                let own = VmSpec { incarnation: Incarnation(2), ..fork_spec(&world, 1) };
                assert_running(&node.ensure_running(own).await.unwrap());
                assert_is_the_fork(&world, &node, 1).await;
                node.settled().await;
                assert_eq!(world.nobodys(), Vec::<String>::new(), "{what}");
                for workspace in 1..=3 {
                    node.ensure_deleted(WorkspaceId::from_u128(workspace)).await.unwrap();
                    assert_eq!(world.left_alone(workspace), Vec::<String>::new(), "{what}");
                }
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_that_fails_at_any_step_is_loaded_instead_and_keeps_what_it_replaces_until_then() {
    for step in [None, Some(Step::Load), Some(Step::Resume)] {
        bounded(async {
            let world = World::instant(0);
            let node = with_snapshot(&world).await;
            fork(&world, &node, 2).await;
            node.settled().await;
            world.write(1, 99);
            node.ensure_stopped(WorkspaceId::from_u128(1), Incarnation(1), GRACEFUL).await.unwrap();
            match step {
                None => world.host.inject(skerry_vmm::fake::Fault::FailAfterCommit),
                Some(step) => world.host.inject_at(step, StepFault::Die),
            }
            let own = VmSpec { incarnation: Incarnation(2), ..fork_spec(&world, 1) };
            node.ensure_running(own).await.unwrap();
            assert_is_the_fork(&world, &node, 1).await;
            assert_eq!(clones(&node).await, 0, "{step:?}");
            assert_eq!(node.start_statistics().await.restore_fallbacks, 0, "it boots nothing");
            node.ensure_deleted(WorkspaceId::from_u128(1)).await.unwrap();

            // Both ways fail: the workspace has what it had.
            let both = World::instant(0);
            let node = with_snapshot(&both).await;
            fork(&both, &node, 2).await;
            node.settled().await;
            both.write(1, 99);
            node.ensure_stopped(WorkspaceId::from_u128(1), Incarnation(1), GRACEFUL).await.unwrap();
            for _ in 0..2 {
                both.host.inject_at(Step::Load, StepFault::Die);
            }
            let own = VmSpec { incarnation: Incarnation(2), ..fork_spec(&both, 1) };
            node.ensure_running(own).await.unwrap_err();
            assert_eq!(both.written(1), [8, 99]);
            assert_running(&node.ensure_running(both.spec(1, 3)).await.unwrap());
            assert_eq!(both.written(1), [8, 99]);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_there_is_no_room_to_share_memory_each_loads_it() {
    bounded(async {
        let mut world = World::instant(0);
        // For the source and one fork, and for nothing beside them.
        world.memory_mib = Some(512);
        let node = with_snapshot(&world).await;
        for workspace in [2, 3] {
            fork(&world, &node, workspace).await;
            node.settled().await;
            assert!(!promoted(&world).exists());
            node.ensure_deleted(WorkspaceId::from_u128(workspace)).await.unwrap();
        }
        assert_eq!(clones(&node).await, 0);
        assert_tidy(&world, "no room");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_memory_over_the_budget_of_templates_goes_and_its_snapshot_stays() {
    bounded(async {
        let mut world = World::instant(0);
        world.template_budget_mib = 1;
        let node = running(&world).await;
        world.remember_many(1, 7, (2 << 20) / 8);
        take(&node, 100, SnapshotContents::DiskAndMemory).await.unwrap();
        node.ensure_running(fork_spec(&world, 2)).await.unwrap();
        node.settled().await;
        assert!(promoted(&world).exists());
        node.shutdown().await;
        drop(node);
        let node = world.open().await;
        node.settled().await;
        assert!(!promoted(&world).exists());
        assert_eq!(node.snapshots().await.len(), 1);
        assert_running(&node.ensure_running(fork_spec(&world, 3)).await.unwrap());
        assert_eq!(world.remembered(3), world.remembered(2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_templates_nothing_is_shared_and_all_is_given_back() {
    bounded(async {
        let world = World::new();
        let node = with_snapshot(&world).await;
        for workspace in [2, 3] {
            fork(&world, &node, workspace).await;
        }
        assert!(!promoted(&world).exists());
        assert_eq!(clones(&node).await, 0);
        for workspace in 1..=3 {
            node.ensure_deleted(WorkspaceId::from_u128(workspace)).await.unwrap();
        }
        assert_nothing(&world, 1);
    })
    .await;
}
