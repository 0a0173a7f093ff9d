//! Starts that do not boot, with real guests: QEMU, the built kernel and agent, the base image.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]
#![allow(clippy::disallowed_methods, reason = "real guests get the real clock and randomness")]

mod support;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use skerry_internal_api::{NodeApi, StartPath};
use skerry_model::{Incarnation, Timestamp, WorkspaceId};
use skerry_node::Node;
use support::{
    GRACEFUL,
    real::{RealWorld, bounded, stdout},
};

/// A node that has booted a workspace once and has made everything that it makes after that.
async fn prepared(world: &RealWorld) -> Node {
    let node = world.open().await;
    let began = Instant::now();
    let report = node.ensure_running(world.spec(1, 256)).await.unwrap();
    eprintln!("boot: {:?}", began.elapsed());
    assert_eq!(report.start_path, Some(StartPath::Boot));
    let began = Instant::now();
    node.settled().await;
    eprintln!("template and pool: {:?}", began.elapsed());
    node.ensure_deleted(world.id).await.unwrap();
    assert_eq!(node.start_statistics().await.templates, 1, "no template was made");
    node
}

/// Starts a new workspace; how it came to run, how long that took, and how long the first command.
async fn start(node: &Node, world: &RealWorld) -> (WorkspaceId, StartPath, Duration, Duration) {
    let mut spec = world.spec(1, 256);
    spec.workspace_id = WorkspaceId::from_random(rand::random());
    let id = spec.workspace_id;
    let began = Instant::now();
    let report = node.ensure_running(spec).await.unwrap();
    let started = began.elapsed();
    let began = Instant::now();
    assert_eq!(stdout(node, id, "echo $GREETING").await, "hello\n");
    (id, report.start_path.unwrap(), started, began.elapsed())
}

/// Medians of the starts and of their first commands.
fn medians(mut taken: Vec<(Duration, Duration)>) -> (Duration, Duration) {
    let middle = taken.len() / 2;
    taken.sort_by_key(|(start, _)| *start);
    let start = taken[middle].0;
    taken.sort_by_key(|(_, command)| *command);
    (start, taken[middle].1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_clones_share_nothing_that_should_differ() {
    bounded(async {
        let mut world = RealWorld::new().await;
        world.template_budget_mib = 4096;
        let node = prepared(&world).await;
        let (mut randoms, mut machine_ids) = (BTreeSet::new(), BTreeSet::new());
        let mut taken = Vec::new();
        for _ in 0..20 {
            let (id, path, started, command) = start(&node, &world).await;
            assert_eq!(path, StartPath::Template);
            taken.push((started, command));
            let random = "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'";
            randoms.insert(stdout(&node, id, random).await);
            machine_ids.insert(stdout(&node, id, "cat /etc/machine-id").await);
            let clock: f64 = stdout(&node, id, "date +%s.%N").await.trim().parse().unwrap();
            let now = Timestamp::now().as_nanosecond() as f64 / 1e9;
            assert!((now - clock).abs() < 1.0, "the clock is {} s late", now - clock);
            // Its disk takes writes, and keeps them over a boot.
            stdout(&node, id, "echo mine > /root/mine && sync").await;
            node.ensure_stopped(id, Incarnation(1), GRACEFUL).await.unwrap();
            if machine_ids.len() == 1 {
                let mut spec = world.spec(2, 256);
                spec.workspace_id = id;
                let report = node.ensure_running(spec).await.unwrap();
                assert_eq!(report.start_path, Some(StartPath::Boot));
                assert_eq!(stdout(&node, id, "cat /root/mine").await, "mine\n");
            }
            node.ensure_deleted(id).await.unwrap();
        }
        assert_eq!((randoms.len(), machine_ids.len()), (20, 20));
        let (started, command) = medians(taken);
        eprintln!("restore p50 {started:?}, its first command {command:?}");
        node.shutdown().await;
        assert_eq!(world.left(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_from_the_pool_is_much_faster_than_a_boot() {
    bounded(async {
        let mut world = RealWorld::new().await;
        (world.template_budget_mib, world.pool_max_warm) = (4096, 4);
        let node = prepared(&world).await;
        let mut taken = Vec::new();
        for _ in 0..20 {
            node.settled().await;
            let (id, path, started, command) = start(&node, &world).await;
            assert_eq!(path, StartPath::Pool);
            taken.push((started, command));
            node.ensure_deleted(id).await.unwrap();
        }
        let (started, command) = medians(taken);
        eprintln!("claim p50 {started:?}, its first command {command:?}");
        // Ten times what it takes, for a busy machine; a boot takes seconds.
        assert!(started < Duration::from_millis(300), "{started:?}");
        node.shutdown().await;
        assert_eq!(world.left(), Vec::<String>::new());
    })
    .await;
}
