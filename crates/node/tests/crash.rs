//! Crash safety: every step repeated, failed and crashed after, on the way up and on the way down.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::fs;

use skerry_internal_api::{NodeApi, NodeError, StopMode, VmExit, VmPhase};
use skerry_model::{Incarnation, WorkspaceId};
use skerry_node::FaultKind;
use support::{
    GRACEFUL, World, assert_nothing, assert_only_disk, assert_running, bounded, die_at, exec,
    outcome,
};

const ID: WorkspaceId = WorkspaceId::from_u128(1);

/// The steps of a start at which a crash leaves something to be rolled back.
const UP: [&str; 13] = [
    "reserve",
    "vm_directory",
    "ledger_intent",
    "run_directory",
    "cgroup",
    "network",
    "disk",
    "memory_file",
    "console_log",
    "boot_commit",
    "boot",
    "guest_ready",
    "mount_volumes",
];
/// The undos of a stop.
const DOWN: [&str; 9] = [
    "release_process",
    "release_memory_file",
    "release_cgroup",
    "release_network",
    "release_volumes",
    "release_run_directory",
    "release_uid",
    "release_replacement",
    "released",
];
/// What a deletion does besides.
const DELETE: [&str; 5] =
    ["tombstone", "release_disk", "release_logs", "release_ledger", "deleted"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_list_of_steps_is_complete() {
    let mut named: Vec<&str> = UP.iter().chain(&DOWN).chain(&DELETE).copied().collect();
    named.extend(["ready", "power_off"]);
    let mut all = skerry_node::FAULT_POINTS.to_vec();
    named.sort_unstable();
    all.sort_unstable();
    assert_eq!(named, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_after_any_step_leaves_only_the_disk_and_can_be_repeated() {
    for point in UP.into_iter().chain(["ready"]) {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            assert!(world.faults.plan(point, FaultKind::Fail));
            let error = node.ensure_running(world.spec(1, 1)).await.unwrap_err();
            assert!(matches!(error, NodeError::Step { .. }), "{point}: {error:?}");
            assert!(!world.faults.pending(), "{point}");
            assert_only_disk(&world, 1);
            assert_eq!(node.capacity().await.memory_promised_mib, 0, "{point}");
            match node.inspect(ID).await {
                Some(report) => assert_eq!(report.phase, VmPhase::Stopped, "{point}"),
                None => assert_nothing(&world, 1),
            }
            assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
            node.ensure_deleted(ID).await.unwrap();
            assert_nothing(&world, 1);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_whose_steps_are_each_taken_twice_is_an_ordinary_start() {
    for point in UP.into_iter().chain(["ready"]) {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            assert!(world.faults.plan(point, FaultKind::Repeat));
            assert_running(&node.ensure_running(world.spec(1, 1)).await.unwrap());
            assert!(!world.faults.pending(), "{point}");
            assert_eq!(world.host.started_count(), 1, "{point}");
            assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
            node.ensure_deleted(ID).await.unwrap();
            assert_nothing(&world, 1);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_after_any_step_of_a_start_finds_a_clean_slate() {
    for point in UP {
        // Nothing can be awaited inside the commit: there the start fails instead.
        if point == "boot_commit" {
            continue;
        }
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            die_at(&world, node.clone(), point, node.ensure_running(world.spec(1, 1))).await;
            drop(node);
            let node = world.open().await;
            assert_only_disk(&world, 1);
            if let Some(report) = node.inspect(ID).await {
                assert_eq!(report.phase, VmPhase::Stopped, "{point}");
                assert!(world.has_disk(1), "{point}");
            } else {
                assert_nothing(&world, 1);
            }
            assert_running(&node.ensure_running(world.spec(1, 1)).await.unwrap());
            node.ensure_deleted(ID).await.unwrap();
            assert_nothing(&world, 1);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_when_the_start_is_complete_finds_the_vm_running() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        die_at(&world, node.clone(), "ready", node.ensure_running(world.spec(1, 1))).await;
        drop(node);
        let node = world.open().await;
        assert_running(&node.inspect(ID).await.unwrap());
        assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_takes_its_vms_over_with_their_uptime() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let before = node.ensure_running(world.spec(1, 7)).await.unwrap();
        node.abandon().await;
        let node = world.open().await;
        assert_eq!(node.list().await, std::slice::from_ref(&before));
        // The guest is configured anew over the new connection, with the same environment.
        assert_eq!(exec(&node, 1, &["sh", "-c", "echo $GREETING"]).await, outcome("hello\n"));
        assert_eq!(node.capacity().await.memory_promised_mib, 256);
        assert_eq!(node.ensure_running(world.spec(1, 7)).await.unwrap(), before);

        // A uid that is in use by a VM that was taken over is not given to another.
        node.ensure_running(world.spec(2, 1)).await.unwrap();
        let uids: Vec<Option<u32>> =
            world.boots.borrow().iter().map(|boot| boot.sandbox.uid).collect();
        assert!(uids[0].is_none() || uids[0] != uids[1]);
        node.ensure_deleted(WorkspaceId::from_u128(2)).await.unwrap();

        node.ensure_stopped(ID, Incarnation(7), GRACEFUL).await.unwrap();
        assert_only_disk(&world, 1);
        node.ensure_deleted(ID).await.unwrap();
        assert_nothing(&world, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_released_after_a_crash_keeps_its_uid_and_memory() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        die_at(&world, node.clone(), "guest_ready", node.ensure_running(world.spec(1, 1))).await;
        drop(node);
        assert!(world.faults.plan("release_process", FaultKind::Fail));
        let node = world.open().await;
        assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopping);
        assert_eq!(node.capacity().await.memory_promised_mib, 256);

        node.ensure_running(world.spec(2, 1)).await.unwrap();
        let uids: Vec<Option<u32>> =
            world.boots.borrow().iter().map(|boot| boot.sandbox.uid).collect();
        assert!(uids[0].is_none() || uids[0] != uids[1], "{uids:?}");

        node.ensure_deleted(ID).await.unwrap();
        assert_eq!(node.capacity().await.memory_promised_mib, 256);
        node.ensure_deleted(WorkspaceId::from_u128(2)).await.unwrap();
        assert_eq!(node.capacity().await.memory_promised_mib, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ends_in_good_order_leaves_its_vms_running() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let before = node.ensure_running(world.spec(1, 1)).await.unwrap();
        node.shutdown().await;
        assert!(matches!(
            node.ensure_running(world.spec(1, 1)).await,
            Err(NodeError::Step { step: "node_shutdown" })
        ));
        drop(node);
        let node = world.open().await;
        assert_eq!(node.list().await, [before]);
        assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_under_way_when_the_node_ends_is_undone() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        world.host.inject(skerry_vmm::fake::Fault::SilentGuest);
        let end = async {
            world.booted(1).await;
            node.shutdown().await;
        };
        let (started, ()) = tokio::join!(node.ensure_running(world.spec(1, 1)), end);
        assert_eq!(started, Err(NodeError::NotRunning));
        assert_only_disk(&world, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_ended_while_nobody_looked_is_found_stopped() {
    for reboot in ["of the host", "of nothing: the VM was killed"] {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            node.ensure_running(world.spec(1, 1)).await.unwrap();
            node.abandon().await;
            if reboot == "of the host" {
                world.host.reboot().await;
            } else {
                world.host.crash(&world.host.running()[0]).await;
            }
            let node = world.open().await;
            let report = node.inspect(ID).await.unwrap();
            assert_eq!((report.phase, report.incarnation), (VmPhase::Stopped, Incarnation(1)));
            assert!(matches!(report.last_exit, Some(VmExit::Crashed { .. })), "{report:?}");
            assert_only_disk(&world, 1);
            assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_that_fails_after_any_undo_succeeds_when_repeated() {
    for point in DOWN.into_iter().chain(["power_off"]) {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            node.ensure_running(world.spec(1, 1)).await.unwrap();
            assert!(world.faults.plan(point, FaultKind::Fail));
            node.ensure_stopped(ID, Incarnation(1), GRACEFUL).await.unwrap_err();
            node.ensure_stopped(ID, Incarnation(1), GRACEFUL).await.unwrap();
            assert_only_disk(&world, 1);
            assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped);
            assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_or_deletion_whose_undos_are_each_repeated_is_an_ordinary_one() {
    for point in DOWN.into_iter().chain(DELETE) {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            node.ensure_running(world.spec(1, 1)).await.unwrap();
            assert!(world.faults.plan(point, FaultKind::Repeat));
            if DOWN.contains(&point) {
                node.ensure_stopped(ID, Incarnation(1), GRACEFUL).await.unwrap();
                assert_only_disk(&world, 1);
            }
            node.ensure_deleted(ID).await.unwrap();
            assert!(!world.faults.pending(), "{point}");
            assert_nothing(&world, 1);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_after_any_undo_of_a_stop_finishes_it() {
    for point in DOWN.into_iter().chain(["power_off"]) {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            node.ensure_running(world.spec(1, 1)).await.unwrap();
            let stop = node.ensure_stopped(ID, Incarnation(1), GRACEFUL);
            die_at(&world, node.clone(), point, stop).await;
            drop(node);
            let node = world.open().await;
            assert_only_disk(&world, 1);
            assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped, "{point}");
            assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_fails_after_any_undo_succeeds_when_repeated() {
    for point in DOWN.into_iter().chain(DELETE) {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            node.ensure_running(world.spec(1, 1)).await.unwrap();
            assert!(world.faults.plan(point, FaultKind::Fail));
            node.ensure_deleted(ID).await.unwrap_err();
            assert!(!world.faults.pending(), "{point}");
            node.ensure_deleted(ID).await.unwrap();
            assert_nothing(&world, 1);
            assert_eq!(node.inspect(ID).await, None, "{point}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_after_any_step_of_a_deletion_finishes_it() {
    for point in DOWN.into_iter().chain(DELETE) {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            node.ensure_running(world.spec(1, 1)).await.unwrap();
            die_at(&world, node.clone(), point, node.ensure_deleted(ID)).await;
            drop(node);
            let node = world.open().await;
            assert_nothing(&world, 1);
            assert_eq!(node.list().await, [], "{point}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_survives_the_failure_of_a_later_start() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        node.ensure_stopped(ID, Incarnation(1), StopMode::Kill).await.unwrap();
        let overlay = |name: &String| name.ends_with(".qcow2");
        let overlay = support::machine::names(&world.vm_dir(1)).into_iter().find(overlay);
        let disk = world.vm_dir(1).join(overlay.unwrap());
        let before = fs::metadata(&disk).unwrap();
        assert!(world.faults.plan("boot", FaultKind::Fail));
        node.ensure_running(world.spec(1, 2)).await.unwrap_err();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(&disk).unwrap().ino(), before.ino());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_carries_our_name_and_belongs_to_no_vm_is_swept_and_strangers_are_left_alone() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        let mine = world.boots.borrow()[0].memory_file.clone().unwrap();
        node.abandon().await;
        let name = mine.file_name().unwrap().to_str().unwrap();
        let other = WorkspaceId::from_u128(99).to_string();
        let stray = mine.with_file_name(name.replace(&ID.to_string(), &other));
        let foreign = mine.with_file_name(format!("00000000-{other}.ram"));
        let stranger = world.data_dir().join("vms").join("notes.txt");
        for file in [&stray, &foreign, &stranger] {
            fs::write(file, b"x").unwrap();
        }
        let node = world.open().await;
        assert!(!stray.exists());
        assert!(mine.exists() && foreign.exists() && stranger.exists());
        assert_running(&node.inspect(ID).await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_torn_in_its_last_line_is_still_obeyed() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        node.abandon().await;
        let path = world.vm_dir(1).join("ledger.jsonl");
        let whole = fs::read(&path).unwrap();
        // Without its last line the ledger says that the start was not complete.
        fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let node = world.open().await;
        assert_only_disk(&world, 1);
        assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped);
    })
    .await;
}
