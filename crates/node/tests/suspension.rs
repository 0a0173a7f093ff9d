//! Suspending a VM and going on from its saved memory, with failures, crashes and changes of mind at
//! every step.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{fs, os::unix::fs::PermissionsExt};

use skerry_internal_api::{NodeApi, NodeError, NodeEvent, StartFrom, StartPath, StopMode, VmPhase};
use skerry_model::{Incarnation, WorkspaceId};
use skerry_node::{FaultKind, Node};
use skerry_vmm::fake::{Step, StepFault, VmState};
use support::{
    GRACEFUL, World, assert_nothing, assert_only_disk, assert_running, bounded, die_at, exec,
    inside::running, machine::names, outcome,
};

const ID: WorkspaceId = WorkspaceId::from_u128(1);
const FIRST: Incarnation = Incarnation(1);

/// The steps before the memory has its place: a failure leaves the VM as it was.
const BEFORE: [&str; 9] = [
    "suspension_noted",
    "suspension_drafted",
    "suspension_frozen",
    "suspension_stopped",
    "suspension_begun",
    "suspension_saved",
    "state_closed",
    "state_sealed",
    "state_described",
];
/// Those after it that can still be taken back by a node that lives.
const AFTER: [&str; 3] = ["state_in_place", "suspension_sealed", "suspension_committed"];
/// The undos that follow.
const RELEASE: [&str; 7] = [
    "release_process",
    "release_memory_file",
    "release_cgroup",
    "release_run_directory",
    "release_uid",
    "release_replacement",
    "released",
];

/// The VM runs, or is paused, as before.
async fn assert_goes_on(world: &World, node: &Node, phase: VmPhase) {
    assert_eq!(node.inspect(ID).await.unwrap().phase, phase);
    assert_eq!(
        world.vm_state(1),
        Some(VmState::Running).filter(|_| phase == VmPhase::Running).or(Some(VmState::Paused))
    );
    if phase == VmPhase::Paused {
        node.ensure_resumed(ID, FIRST).await.unwrap();
    }
    assert_eq!(exec(node, 1, &["echo", "hi"]).await, outcome("hi\n"));
    assert_eq!((world.remembered(1), world.written(1)), (vec![7], vec![8]));
    assert_eq!(saved_places(world), Vec::<String>::new());
    assert_eq!(world.host.started_count(), 1);
}

/// There is no process, and its memory is there in full.
async fn assert_suspended(world: &World, node: &Node) {
    let report = node.inspect(ID).await.unwrap();
    assert_eq!((report.phase, report.pid, report.ready_at), (VmPhase::Suspended, None, None));
    assert_only_disk(world, 1);
    assert_eq!(saved_places(world), ["suspended"]);
    assert_eq!(node.capacity().await.memory_promised_mib, 0);
}

/// What a suspension left beside the disk.
fn saved_places(world: &World) -> Vec<String> {
    names(&world.vm_dir(1)).into_iter().filter(|name| name.contains("suspended")).collect()
}

/// Starts the workspace from its saved memory.
async fn go_on(world: &World, node: &Node, incarnation: u64) -> Result<(), NodeError> {
    let mut spec = world.spec(1, incarnation);
    spec.start_from = StartFrom::SavedMemory;
    let report = node.ensure_running(spec).await?;
    assert_running(&report);
    assert_eq!(report.start_path, Some(StartPath::SavedMemory));
    Ok(())
}

async fn assert_goes_on_from_memory(world: &World, node: &Node) {
    go_on(world, node, 2).await.unwrap();
    assert_eq!((world.remembered(1), world.written(1)), (vec![7], vec![8]));
    assert_eq!(exec(node, 1, &["sh", "-c", "echo $GREETING"]).await, outcome("hello\n"));
    assert_eq!(saved_places(world), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_workspace_is_its_disk_and_memory_and_goes_on_from_them() {
    for paused_first in [false, true] {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            if paused_first {
                node.ensure_paused(ID, FIRST).await.unwrap();
            }
            for _ in 0..2 {
                let report = node.ensure_suspended(ID, FIRST).await.unwrap();
                assert_eq!((report.phase, report.incarnation), (VmPhase::Suspended, FIRST));
                assert_suspended(&world, &node).await;
            }
            assert_eq!(node.guest(ID).await.err(), Some(NodeError::NotRunning));
            assert_eq!(node.ensure_resumed(ID, FIRST).await, Err(NodeError::NotRunning));
            assert_eq!(node.ensure_paused(ID, FIRST).await, Err(NodeError::NotRunning));
            assert_goes_on_from_memory(&world, &node).await;
            node.ensure_suspended(ID, Incarnation(2)).await.unwrap();
            node.ensure_deleted(ID).await.unwrap();
            assert_nothing(&world, 1);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_workspace_survives_the_server_and_the_host() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        node.ensure_suspended(ID, FIRST).await.unwrap();
        node.abandon().await;
        world.host.reboot().await;
        let node = world.open().await;
        assert_suspended(&world, &node).await;
        assert_eq!(node.inspect(ID).await.unwrap().incarnation, FIRST);
        assert_goes_on_from_memory(&world, &node).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn saved_memory_is_readable_by_nobody_else() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        node.ensure_suspended(ID, FIRST).await.unwrap();
        let mode =
            |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&world.vm_dir(1)), 0o700);
        assert_eq!(mode(&world.vm_dir(1).join("suspended")), 0o700);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_that_fails_after_any_step_leaves_the_vm_as_it_was() {
    for paused_first in [false, true] {
        let woken = paused_first.then_some("suspension_woken");
        for point in BEFORE.into_iter().chain(AFTER).chain(woken) {
            bounded(async {
                let world = World::new();
                let node = running(&world).await;
                let phase = if paused_first {
                    node.ensure_paused(ID, FIRST).await.unwrap();
                    VmPhase::Paused
                } else {
                    VmPhase::Running
                };
                assert!(world.faults.plan(point, FaultKind::Fail));
                let error = node.ensure_suspended(ID, FIRST).await.unwrap_err();
                assert!(matches!(error, NodeError::Step { .. }), "{point}: {error:?}");
                assert!(!world.faults.pending(), "{point}");
                assert_goes_on(&world, &node, phase).await;
                node.ensure_suspended(ID, FIRST).await.unwrap();
                assert_suspended(&world, &node).await;
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_whose_release_fails_is_finished_when_repeated() {
    for point in RELEASE {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            assert!(world.faults.plan(point, FaultKind::Fail));
            node.ensure_suspended(ID, FIRST).await.unwrap_err();
            assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopping, "{point}");
            node.ensure_suspended(ID, FIRST).await.unwrap();
            assert_suspended(&world, &node).await;
            assert_goes_on_from_memory(&world, &node).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_of_a_suspension_taken_twice_change_nothing() {
    let twice = BEFORE.into_iter().chain(["suspension_committed"]).chain(RELEASE);
    for point in twice.filter(|point| !point.starts_with("state_")) {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            assert!(world.faults.plan(point, FaultKind::Repeat));
            node.ensure_suspended(ID, FIRST).await.unwrap();
            assert!(!world.faults.pending(), "{point}");
            assert_suspended(&world, &node).await;
            assert_goes_on_from_memory(&world, &node).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_before_the_memory_has_its_place_finds_the_vm_as_it_was() {
    for paused_first in [false, true] {
        let woken = paused_first.then_some("suspension_woken");
        for point in BEFORE.into_iter().chain(woken) {
            // Nothing can be awaited while the memory is sealed: there the suspension fails.
            if point.starts_with("state_") {
                continue;
            }
            bounded(async {
                let world = World::new();
                let node = running(&world).await;
                let phase = if paused_first {
                    node.ensure_paused(ID, FIRST).await.unwrap();
                    VmPhase::Paused
                } else {
                    VmPhase::Running
                };
                die_at(&world, node.clone(), point, node.ensure_suspended(ID, FIRST)).await;
                drop(node);
                let node = world.open().await;
                assert_goes_on(&world, &node, phase).await;
                node.ensure_suspended(ID, FIRST).await.unwrap();
                assert_suspended(&world, &node).await;
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_once_the_memory_has_its_place_finds_the_workspace_suspended() {
    for point in ["suspension_sealed", "suspension_committed"].into_iter().chain(RELEASE) {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            die_at(&world, node.clone(), point, node.ensure_suspended(ID, FIRST)).await;
            drop(node);
            let node = world.open().await;
            assert_suspended(&world, &node).await;
            assert_goes_on_from_memory(&world, &node).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_fails_a_step_leaves_the_vm_as_it_was() {
    for step in [Step::Pause, Step::BeginSave, Step::CompleteSave] {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            world.host.inject_at(step, StepFault::Refuse);
            node.ensure_suspended(ID, FIRST).await.unwrap_err();
            assert_goes_on(&world, &node, VmPhase::Running).await;
            node.ensure_suspended(ID, FIRST).await.unwrap();
            assert_suspended(&world, &node).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_whose_save_cannot_be_given_up_stands_still_until_it_can() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        world.host.inject_at(Step::CompleteSave, StepFault::Refuse);
        // The first is asked before the save begins.
        assert!(world.faults.plan("save_cancelled", FaultKind::Fail));
        node.ensure_suspended(ID, FIRST).await.unwrap_err();
        assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Paused);
        assert_eq!(world.vm_state(1), Some(VmState::Paused));
        assert_running(&node.ensure_resumed(ID, FIRST).await.unwrap());
        assert_goes_on(&world, &node, VmPhase::Running).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_dies_while_it_is_suspended_is_reported_and_released() {
    for step in [Step::Pause, Step::BeginSave, Step::CompleteSave] {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            let mut events = node.subscribe();
            world.host.inject_at(step, StepFault::Die);
            node.ensure_suspended(ID, FIRST).await.unwrap_err();
            let NodeEvent::Exited { workspace_id, .. } = events.recv().await.unwrap();
            assert_eq!(workspace_id, ID);
            assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped);
            assert_only_disk(&world, 1);
            assert_eq!(saved_places(&world), Vec::<String>::new());
            assert_eq!(world.written(1), [8]);
            assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
        })
        .await;
    }
}

/// Asks for a suspension and, once it is at `point`, for `change`.
async fn while_at<T>(
    world: &World,
    node: &Node,
    point: &str,
    change: impl Future<Output = T>,
) -> (Result<skerry_internal_api::VmReport, NodeError>, T) {
    assert!(world.faults.plan(point, FaultKind::Hang));
    tokio::join!(node.ensure_suspended(ID, FIRST), async {
        world.faults.happened(point).await;
        change.await
    })
}

/// The waits during which somebody may change their mind.
const WAITS: [&str; 3] = ["suspension_frozen", "suspension_saved", "state_closed"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_cancels_a_suspension_and_a_paused_vm_is_resumed_by_it() {
    for paused_first in [false, true] {
        for point in WAITS {
            bounded(async {
                let world = World::new();
                let node = running(&world).await;
                if paused_first {
                    node.ensure_paused(ID, FIRST).await.unwrap();
                }
                let resume = node.ensure_resumed(ID, FIRST);
                let (suspended, resumed) = while_at(&world, &node, point, resume).await;
                assert_eq!(suspended, Err(NodeError::Cancelled), "{point}");
                assert_running(&resumed.unwrap());
                assert_goes_on(&world, &node, VmPhase::Running).await;
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_or_deletion_cancels_a_suspension_and_wins() {
    for point in WAITS {
        for mode in [GRACEFUL, StopMode::Kill] {
            bounded(async {
                let world = World::new();
                let node = running(&world).await;
                let stop = node.ensure_stopped(ID, FIRST, mode);
                let (suspended, stopped) = while_at(&world, &node, point, stop).await;
                assert_eq!(suspended, Err(NodeError::Cancelled));
                stopped.unwrap();
                assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped);
                assert_only_disk(&world, 1);
                assert_eq!(saved_places(&world), Vec::<String>::new());
            })
            .await;
        }
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            let (suspended, deleted) =
                while_at(&world, &node, point, node.ensure_deleted(ID)).await;
            assert_eq!(suspended, Err(NodeError::Cancelled));
            deleted.unwrap();
            assert_nothing(&world, 1);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_start_replaces_a_vm_that_is_being_suspended() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        let start = node.ensure_running(world.spec(1, 2));
        let (suspended, started) = while_at(&world, &node, WAITS[1], start).await;
        assert_eq!(suspended, Err(NodeError::Cancelled));
        assert_eq!(started.unwrap().incarnation, Incarnation(2));
        assert_eq!((world.remembered(1), world.written(1)), (vec![], vec![8]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ends_in_good_order_cancels_a_suspension() {
    for point in WAITS {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            let (suspended, ()) = while_at(&world, &node, point, node.shutdown()).await;
            assert_eq!(suspended, Err(NodeError::Cancelled));
            assert_eq!(world.vm_state(1), Some(VmState::Running));
            drop(node);
            let node = world.open().await;
            assert_goes_on(&world, &node, VmPhase::Running).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_that_races_a_suspension_finds_a_vm_that_runs_or_a_complete_one_saved() {
    // From each of its steps on: the resume comes while the next one is taken.
    for point in [
        "suspension_noted",
        "suspension_drafted",
        "suspension_frozen",
        "suspension_stopped",
        "suspension_begun",
        "suspension_saved",
        "suspension_sealed",
        "suspension_committed",
    ] {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            assert!(world.faults.plan(point, FaultKind::Repeat));
            let resume = async {
                world.faults.happened(point).await;
                node.ensure_resumed(ID, FIRST).await
            };
            let (suspended, resumed) = tokio::join!(node.ensure_suspended(ID, FIRST), resume);
            match (suspended, resumed) {
                (Ok(report), Err(NodeError::NotRunning)) => {
                    assert_eq!(report.phase, VmPhase::Suspended);
                    assert_suspended(&world, &node).await;
                    assert_goes_on_from_memory(&world, &node).await;
                }
                (Err(NodeError::Cancelled), Ok(report)) => {
                    assert_running(&report);
                    assert_goes_on(&world, &node, VmPhase::Running).await;
                }
                other => panic!("{point}: {other:?}"),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_of_a_suspended_workspace_discards_its_memory_and_keeps_its_disk() {
    for fault in [None, Some("memory_forgotten"), Some("memory_removed"), Some("state_condemned")] {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            node.ensure_suspended(ID, FIRST).await.unwrap();
            // A stop that speaks of an older start does not touch it.
            node.ensure_stopped(ID, Incarnation(0), GRACEFUL).await.unwrap();
            assert_suspended(&world, &node).await;
            if let Some(point) = fault {
                assert!(world.faults.plan(point, FaultKind::Fail));
                node.ensure_stopped(ID, FIRST, GRACEFUL).await.unwrap_err();
            }
            node.ensure_stopped(ID, FIRST, GRACEFUL).await.unwrap();
            assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped);
            assert_eq!(saved_places(&world), Vec::<String>::new());
            let error = go_on(&world, &node, 2).await.unwrap_err();
            assert!(matches!(error, NodeError::SavedStateUnusable(_)), "{error:?}");
            assert_running(&node.ensure_running(world.spec(1, 3)).await.unwrap());
            assert_eq!((world.remembered(1), world.written(1)), (vec![], vec![8]));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_while_it_discards_memory_finds_a_stopped_workspace() {
    for point in ["memory_forgotten", "memory_removed"] {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            node.ensure_suspended(ID, FIRST).await.unwrap();
            let stop = node.ensure_stopped(ID, FIRST, GRACEFUL);
            die_at(&world, node.clone(), point, stop).await;
            drop(node);
            let node = world.open().await;
            assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped, "{point}");
            assert_eq!(saved_places(&world), Vec::<String>::new());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_from_the_disk_gives_the_memory_up_unless_it_is_a_late_repetition() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        node.ensure_suspended(ID, FIRST).await.unwrap();
        let repeated = node.ensure_running(world.spec(1, 1)).await;
        assert_eq!(repeated, Err(NodeError::NotRunning));
        assert_suspended(&world, &node).await;
        assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
        assert_eq!((world.remembered(1), world.written(1)), (vec![], vec![8]));
        assert_eq!(saved_places(&world), Vec::<String>::new());
        node.ensure_stopped(ID, Incarnation(2), GRACEFUL).await.unwrap();
        assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_memory_is_refused_and_nothing_is_lost_by_that() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        node.ensure_suspended(ID, FIRST).await.unwrap();
        let state = world.vm_dir(1).join("suspended").join("state");
        let whole = fs::read(&state).unwrap();
        let write = |bytes: &[u8]| {
            fs::set_permissions(&state, fs::Permissions::from_mode(0o600)).unwrap();
            fs::write(&state, bytes).unwrap();
        };
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for (incarnation, damaged) in [(2, flipped), (3, whole[..whole.len() / 2].to_vec())] {
            write(&damaged);
            let error = go_on(&world, &node, incarnation).await.unwrap_err();
            assert!(matches!(error, NodeError::SavedStateUnusable(_)), "{error:?}");
            assert_suspended(&world, &node).await;
        }
        write(&whole);
        go_on(&world, &node, 4).await.unwrap();
        assert_eq!((world.remembered(1), world.written(1)), (vec![7], vec![8]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_runs_is_not_ended_for_a_start_from_memory_that_is_not_there() {
    bounded(async {
        let world = World::new();
        let node = running(&world).await;
        let error = go_on(&world, &node, 2).await.unwrap_err();
        assert!(matches!(error, NodeError::SavedStateUnusable(_)), "{error:?}");
        assert_goes_on(&world, &node, VmPhase::Running).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_from_memory_that_fails_before_the_guest_runs_can_be_repeated() {
    for point in ["reserve", "ledger_intent", "disk", "park_commit", "park", "load"] {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            node.ensure_suspended(ID, FIRST).await.unwrap();
            assert!(world.faults.plan(point, FaultKind::Fail));
            go_on(&world, &node, 2).await.unwrap_err();
            assert_suspended(&world, &node).await;
            go_on(&world, &node, 3).await.unwrap();
            assert_eq!((world.remembered(1), world.written(1)), (vec![7], vec![8]));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_while_a_vm_goes_on_from_memory_loses_neither_disk_nor_memory() {
    for point in ["ledger_intent", "disk", "park", "load", "spend_memory", "resume", "guest_ready"]
    {
        bounded(async {
            let world = World::new();
            let node = running(&world).await;
            node.ensure_suspended(ID, FIRST).await.unwrap();
            die_at(&world, node.clone(), point, go_on(&world, &node, 2)).await;
            drop(node);
            let node = world.open().await;
            match node.inspect(ID).await.unwrap().phase {
                VmPhase::Suspended => {
                    assert_suspended(&world, &node).await;
                    go_on(&world, &node, 3).await.unwrap();
                }
                VmPhase::Paused => {
                    node.ensure_resumed(ID, Incarnation(2)).await.unwrap();
                }
                other => panic!("{point}: {other:?}"),
            }
            assert_eq!((world.remembered(1), world.written(1)), (vec![7], vec![8]), "{point}");
            assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
            assert_eq!(saved_places(&world), Vec::<String>::new(), "{point}");
        })
        .await;
    }
}
