//! Pausing, suspending and snapshots with real guests: QEMU, the built kernel and agent, the base
//! image.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]
#![allow(clippy::disallowed_methods, reason = "real guests get the real clock and randomness")]

mod support;

use std::time::{Duration, Instant};

use skerry_internal_api::{NodeApi, SnapshotContents, SnapshotInfo, StartFrom, VmPhase};
use skerry_model::{Incarnation, SnapshotId, Timestamp, WorkspaceId};
use skerry_node::{FaultKind, Node};
use support::{
    GRACEFUL,
    real::{RealWorld, bounded, stdout},
};

const FIRST: Incarnation = Incarnation(1);
const SNAPSHOT: SnapshotId = SnapshotId::from_u128(1);

/// Counts in a file system in memory, whoever looks.
const COUNT: &str = "setsid sh -c 'n=0; while true; do n=$((n + 1)); \
    echo $n > /run/count.new; mv /run/count.new /run/count; sleep 0.05; done' \
    < /dev/null > /dev/null 2>&1 & until [ -e /run/count ]; do sleep 0.05; done";

/// Writes one file after the other to the disk, each with its checksum, and counts those that are
/// whole in a file system in memory.
const WRITE: &str = "mkdir -p /root/load; setsid sh -c 'n=0; while true; do n=$((n + 1)); \
    head -c 60000 /dev/urandom > /root/load/$n.data; \
    (cd /root/load && sha256sum $n.data > $n.sum && mv $n.sum $n.ok); echo $n > /run/written; \
    [ $n -lt 400 ] || exit; done' < /dev/null > /dev/null 2>&1 &";

/// Every file that was whole is still what it was; prints how many there are.
const VERIFY: &str = "cd /root/load; set -e; n=0; for sum in *.ok; do sha256sum --quiet -c $sum; \
    n=$((n + 1)); done; echo $n";

async fn counted(node: &Node, id: WorkspaceId) -> u64 {
    // The counter moves on by renaming, so there is always a whole number.
    stdout(node, id, "cat /run/count").await.trim().parse().unwrap()
}

/// The guest's clock is the host's, within what asking for it takes.
async fn assert_clock(node: &Node, id: WorkspaceId) {
    let clock: f64 = stdout(node, id, "date +%s.%N").await.trim().parse().unwrap();
    let now = Timestamp::now().as_nanosecond() as f64 / 1e9;
    assert!((now - clock).abs() < 1.0, "the clock is {} s late", now - clock);
}

fn median(mut taken: Vec<Duration>) -> Duration {
    taken.sort();
    taken[taken.len() / 2]
}

async fn timed<T>(taken: &mut Vec<Duration>, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.await;
    taken.push(began.elapsed());
    done
}

/// Lets the node die as soon as `point` is passed by `request`.
async fn die_at<T>(world: &RealWorld, node: Node, point: &str, request: impl Future<Output = T>) {
    assert!(world.faults.plan(point, FaultKind::Hang));
    tokio::select! {
        _ = request => panic!("the node did not stop at {point}"),
        () = world.faults.happened(point) => {}
    }
    node.abandon().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_guest_stands_still_while_it_is_paused_also_over_a_restart_of_the_server() {
    bounded(async {
        let world = RealWorld::new().await;
        let id = world.id;
        let node = world.open().await;
        node.ensure_running(world.spec(1, 256)).await.unwrap();
        stdout(&node, id, COUNT).await;
        let (mut pauses, mut resumes) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            timed(&mut pauses, node.ensure_paused(id, FIRST)).await.unwrap();
            timed(&mut resumes, node.ensure_resumed(id, FIRST)).await.unwrap();
        }
        eprintln!("pause p50 {:?}, resume p50 {:?}", median(pauses), median(resumes));

        // A command that was begun before the pause ends after it, with all of its output.
        let counting = "for n in 1 2 3 4 5 6; do echo $n; echo $n > /run/counted; sleep 0.5; done";
        let mut command = tokio::spawn({
            let node = node.clone();
            async move { stdout(&node, id, counting).await }
        });
        stdout(&node, id, "until [ -s /run/counted ]; do sleep 0.05; done").await;
        node.ensure_paused(id, FIRST).await.unwrap();
        // Longer than the whole of it takes where time goes on.
        let ended = tokio::time::timeout(Duration::from_secs(4), &mut command).await;
        assert!(ended.is_err(), "it went on while the guest stood still");
        node.ensure_resumed(id, FIRST).await.unwrap();
        assert_eq!(command.await.unwrap(), "1\n2\n3\n4\n5\n6\n");
        assert_clock(&node, id).await;

        let before = counted(&node, id).await;
        node.ensure_paused(id, FIRST).await.unwrap();
        node.abandon().await;
        let node = world.open().await;
        assert_eq!(node.inspect(id).await.unwrap().phase, VmPhase::Paused);
        node.ensure_resumed(id, FIRST).await.unwrap();
        let after = counted(&node, id).await;
        assert!((before..before + 400).contains(&after), "{before}, then {after}");
        assert_clock(&node, id).await;
        node.ensure_paused(id, FIRST).await.unwrap();
        node.ensure_stopped(id, FIRST, GRACEFUL).await.unwrap();
        node.ensure_deleted(id).await.unwrap();
        node.shutdown().await;
        assert_eq!(world.left(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_real_guest_had_in_memory_survives_suspension_and_a_restart_of_the_server() {
    bounded(async {
        let world = RealWorld::new().await;
        let id = world.id;
        let node = world.open().await;
        node.ensure_running(world.spec(1, 256)).await.unwrap();
        stdout(&node, id, COUNT).await;
        stdout(&node, id, "echo remembered > /run/memory; echo written > /root/disk").await;
        let (mut suspensions, mut returns) = (Vec::new(), Vec::new());
        for start in 1..=4 {
            let before = counted(&node, id).await;
            timed(&mut suspensions, node.ensure_suspended(id, Incarnation(start))).await.unwrap();
            assert_eq!(node.inspect(id).await.unwrap().pid, None);
            let mut spec = world.spec(start + 1, 256);
            spec.start_from = StartFrom::SavedMemory;
            timed(&mut returns, node.ensure_running(spec)).await.unwrap();
            let after = counted(&node, id).await;
            assert!(after >= before, "{before}, then {after}");
        }
        eprintln!("suspend p50 {:?}, resume p50 {:?}", median(suspensions), median(returns));
        let kept = stdout(&node, id, "cat /run/memory /root/disk").await;
        assert_eq!(kept, "remembered\nwritten\n");
        assert_clock(&node, id).await;

        let before = counted(&node, id).await;
        node.ensure_suspended(id, Incarnation(5)).await.unwrap();
        node.abandon().await;
        let node = world.open().await;
        assert_eq!(node.inspect(id).await.unwrap().phase, VmPhase::Suspended);
        let mut spec = world.spec(6, 256);
        spec.start_from = StartFrom::SavedMemory;
        node.ensure_running(spec).await.unwrap();
        assert!(counted(&node, id).await >= before);

        // Without its memory it is its disk, which was consistent when it was suspended.
        stdout(&node, id, "echo unsynced > /root/late").await;
        node.ensure_suspended(id, Incarnation(6)).await.unwrap();
        node.ensure_stopped(id, Incarnation(6), GRACEFUL).await.unwrap();
        node.ensure_running(world.spec(7, 256)).await.unwrap();
        assert_eq!(stdout(&node, id, "cat /root/late; ls /run/memory || true").await, "unsynced\n");
        node.ensure_deleted(id).await.unwrap();
        node.shutdown().await;
        assert_eq!(world.left(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_of_a_real_guest_that_is_broken_off_leaves_it_running() {
    bounded(async {
        let world = RealWorld::new().await;
        let id = world.id;
        let mut node = world.open().await;
        let report = node.ensure_running(world.spec(1, 256)).await.unwrap();
        stdout(&node, id, COUNT).await;
        for point in
            ["suspension_frozen", "suspension_stopped", "suspension_begun", "suspension_saved"]
        {
            let before = counted(&node, id).await;
            die_at(&world, node.clone(), point, node.ensure_suspended(id, FIRST)).await;
            drop(node);
            node = world.open().await;
            let found = node.inspect(id).await.unwrap();
            assert_eq!((found.phase, found.pid), (VmPhase::Running, report.pid), "{point}");
            // Also its disk takes writes.
            stdout(&node, id, "echo goes on > /root/file && sync").await;
            assert!(counted(&node, id).await >= before, "{point}");
        }
        for point in ["suspension_frozen", "suspension_saved"] {
            assert!(world.faults.plan(point, FaultKind::Hang));
            let (suspended, resumed) = tokio::join!(node.ensure_suspended(id, FIRST), async {
                world.faults.happened(point).await;
                node.ensure_resumed(id, FIRST).await
            });
            assert!(suspended.is_err(), "{suspended:?}");
            assert_eq!(resumed.unwrap().pid, report.pid);
            stdout(&node, id, "echo goes on > /root/file && sync").await;
        }
        node.ensure_deleted(id).await.unwrap();
        node.shutdown().await;
        assert_eq!(world.left(), Vec::<String>::new());
    })
    .await;
}

async fn fork(world: &RealWorld, node: &Node, id: WorkspaceId, snapshot_id: SnapshotId) {
    let mut spec = world.spec(1, 256);
    spec.workspace_id = id;
    spec.start_from = StartFrom::Snapshot { snapshot_id };
    node.ensure_running(spec).await.unwrap();
}

fn assert_short(info: &SnapshotInfo) {
    // Far more than it takes, for a busy machine.
    assert!(info.blackout < Duration::from_secs(10), "{info:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_of_a_real_guest_that_writes_are_whole_and_the_guest_goes_on() {
    bounded(async {
        let world = RealWorld::new().await;
        let id = world.id;
        let node = world.open().await;
        node.ensure_running(world.spec(1, 256)).await.unwrap();
        stdout(&node, id, WRITE).await;
        stdout(
            &node,
            id,
            "until [ \"$(cat /run/written 2>/dev/null || echo 0)\" -ge 5 ]; do sleep 0.1; done",
        )
        .await;
        let mut blackouts = Vec::new();
        for (number, contents) in
            [(1, SnapshotContents::DiskAndMemory), (2, SnapshotContents::Disk)]
        {
            let began = Instant::now();
            let snapshot_id = SnapshotId::from_u128(number);
            let info = node.take_snapshot(id, snapshot_id, contents).await.unwrap();
            eprintln!("{contents:?}: {:?} in all, blackout {:?}", began.elapsed(), info.blackout);
            assert_short(&info);
            blackouts.push(info.blackout);
        }
        stdout(&node, id, "pkill -f '[r]oot/load'; true").await;
        let source: u64 = stdout(&node, id, VERIFY).await.trim().parse().unwrap();

        // Its memory goes on with its disk, and the writer with them; of the other only the disk.
        let ids =
            [WorkspaceId::from_random(rand::random()), WorkspaceId::from_random(rand::random())];
        for (number, fork_id) in (1..).zip(ids) {
            fork(&world, &node, fork_id, SnapshotId::from_u128(number)).await;
            stdout(&node, fork_id, "pkill -f '[r]oot/load'; true").await;
            let drop_caches = "sync; echo 3 > /proc/sys/vm/drop_caches";
            stdout(&node, fork_id, drop_caches).await;
            let whole: u64 = stdout(&node, fork_id, VERIFY).await.trim().parse().unwrap();
            assert!(whole >= 5, "{whole} of {source}");
            assert_clock(&node, fork_id).await;
            let errors = "dmesg | grep -ci 'ext4.*error' || true";
            assert_eq!(stdout(&node, fork_id, errors).await, "0\n");
            node.ensure_deleted(fork_id).await.unwrap();
        }
        node.ensure_stopped(id, FIRST, GRACEFUL).await.unwrap();
        node.ensure_running(world.spec(2, 256)).await.unwrap();
        // What the writer had under way when it was told to end may have come after the count.
        let kept: u64 = stdout(&node, id, VERIFY).await.trim().parse().unwrap();
        assert!((source..=source + 1).contains(&kept), "{kept} instead of {source}");
        node.ensure_deleted(id).await.unwrap();
        node.shutdown().await;
        assert_eq!(world.left(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_in_a_snapshot_of_a_real_guest_finds_it_running_on_its_whole_disk() {
    bounded(async {
        let world = RealWorld::new().await;
        let id = world.id;
        let mut node = world.open().await;
        let report = node.ensure_running(world.spec(1, 256)).await.unwrap();
        let points = [
            "snapshot_converged",
            "overlay_intended",
            "snapshot_stopped",
            "overlay_pushed",
            "snapshot_captured",
            "snapshot_went_on",
            "snapshot_saved",
            "overlay_kept",
        ];
        let mut expected = String::new();
        for point in points {
            stdout(&node, id, &format!("echo before {point} >> /root/log && sync")).await;
            expected += &format!("before {point}\n");
            let snapshot = node.take_snapshot(id, SNAPSHOT, SnapshotContents::DiskAndMemory);
            die_at(&world, node.clone(), point, snapshot).await;
            drop(node);
            node = world.open().await;
            let found = node.inspect(id).await.unwrap();
            assert_eq!((found.phase, found.pid), (VmPhase::Running, report.pid), "{point}");
            assert_eq!(node.snapshots().await, [], "{point}");
            stdout(&node, id, &format!("echo after {point} >> /root/log && sync")).await;
            expected += &format!("after {point}\n");
        }
        node.take_snapshot(id, SNAPSHOT, SnapshotContents::DiskAndMemory).await.unwrap();
        assert_eq!(stdout(&node, id, "cat /root/log").await, expected);
        node.ensure_stopped(id, FIRST, GRACEFUL).await.unwrap();
        node.ensure_running(world.spec(2, 256)).await.unwrap();
        assert_eq!(stdout(&node, id, "cat /root/log").await, expected);
        node.ensure_deleted(id).await.unwrap();
        node.shutdown().await;
        assert_eq!(world.left(), Vec::<String>::new());
    })
    .await;
}
