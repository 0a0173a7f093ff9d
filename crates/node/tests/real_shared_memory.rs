//! Forks of a real guest that share its memory: QEMU, the built kernel and agent, the base image.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]
#![allow(clippy::disallowed_methods, reason = "real guests get the real clock and randomness")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use skerry_internal_api::{NodeApi, SnapshotContents, StartFrom, StartPath, VmSpec};
use skerry_model::{SnapshotId, WorkspaceId};
use skerry_node::Node;
use support::real::{RealWorld, bounded, stdout};

const SNAPSHOT: SnapshotId = SnapshotId::from_u128(1);
const FORKS: usize = 5;
/// What the guest has in its memory, and every fork of it.
const KEPT_MIB: u64 = 64;

/// What a fork took.
struct Fork {
    id: WorkspaceId,
    started: Duration,
}

async fn fork(world: &RealWorld, node: &Node) -> Fork {
    let spec = VmSpec {
        workspace_id: WorkspaceId::from_random(rand::random()),
        start_from: StartFrom::Snapshot { snapshot_id: SNAPSHOT },
        ..world.spec(1, 256)
    };
    let id = spec.workspace_id;
    let began = Instant::now();
    let report = node.ensure_running(spec).await.unwrap();
    let started = began.elapsed();
    assert_eq!(report.start_path, Some(StartPath::SnapshotMemory));
    Fork { id, started }
}

/// What a process takes of the host's memory, with its part of what it shares, in KiB.
async fn pss_kib(node: &Node, id: WorkspaceId) -> u64 {
    let pid = node.inspect(id).await.unwrap().pid.unwrap();
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Forks a guest one after the other; how long each start took, and what all of them take of the
/// host's memory together, in KiB.
async fn forks_of_a_guest(world: &RealWorld) -> (Vec<Duration>, u64, u64) {
    let node = world.open().await;
    node.ensure_running(world.spec(1, 256)).await.unwrap();
    let keep = format!(
        "head -c {} /dev/urandom > /run/kept; sha256sum < /run/kept; echo before > /root/file; sync",
        KEPT_MIB << 20
    );
    let kept = stdout(&node, world.id, &keep).await;
    let (id, contents) = (world.id, SnapshotContents::DiskAndMemory);
    node.take_snapshot(id, SNAPSHOT, contents).await.unwrap();
    stdout(&node, world.id, "echo after > /root/file; rm /run/kept").await;
    node.settled().await;

    let mut forks: Vec<Fork> = Vec::new();
    for _ in 0..FORKS {
        forks.push(fork(world, &node).await);
        node.settled().await;
    }
    let mut total_kib = 0;
    for fork in &forks {
        total_kib += pss_kib(&node, fork.id).await;
    }
    let mut randoms = BTreeSet::new();
    for fork in &forks {
        let seen = stdout(&node, fork.id, "sha256sum < /run/kept; cat /root/file").await;
        assert_eq!(seen, format!("{kept}before\n"));
        let random = "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; cat /etc/machine-id";
        assert!(randoms.insert(stdout(&node, fork.id, random).await), "two forks are the same");
        stdout(&node, fork.id, "echo own > /root/file; echo own > /run/kept; sync").await;
    }
    // What the clones map is theirs though its name is gone.
    node.ensure_snapshot_deleted(SNAPSHOT).await.unwrap();
    for fork in &forks {
        assert_eq!(stdout(&node, fork.id, "cat /root/file /run/kept").await, "own\nown\n");
    }
    let clones = node.start_statistics().await.memory_clones;
    for fork in &forks {
        node.ensure_deleted(fork.id).await.unwrap();
    }
    node.ensure_deleted(world.id).await.unwrap();
    node.shutdown().await;
    assert_eq!(world.left(), Vec::<String>::new());
    (forks.into_iter().map(|fork| fork.started).collect(), total_kib, clones)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_that_share_memory_take_less_of_it_than_forks_that_load_it() {
    bounded(async {
        let alone = forks_of_a_guest(&RealWorld::new().await).await;
        let mut world = RealWorld::new().await;
        world.template_budget_mib = 4096;
        let shared = forks_of_a_guest(&world).await;
        for (name, (taken, total_kib, clones)) in [("loaded", &alone), ("shared", &shared)] {
            let each = total_kib / FORKS as u64 / 1024;
            eprintln!("{name}: starts {taken:?}, PSS of each {each} MiB, {clones} clones");
        }
        assert_eq!((alone.2, shared.2), (0, FORKS as u64 - 1));
        // All but the first share what the guest kept; one copy of it is theirs together.
        let saved_kib = (FORKS as u64 - 2) * KEPT_MIB * 1024;
        assert!(shared.1 + saved_kib / 2 < alone.1, "{} KiB, {} KiB", shared.1, alone.1);
    })
    .await;
}
