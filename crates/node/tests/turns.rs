//! How many start at a time, who waits for whom, and what is said of a VM that never came up.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{num::NonZero, sync::Arc};

use skerry_internal_api::{NodeApi, NodeError, StartPath, StopMode, VmPhase, VmReport, VmSpec};
use skerry_model::{Incarnation, MemMib, WorkspaceId};
use skerry_node::{FaultKind, Node, NodeConfig};
use skerry_vmm::fake::{FakeVmm, Fault};
use support::{World, assert_nothing, assert_running, bounded};

fn id(workspace: u128) -> WorkspaceId {
    WorkspaceId::from_u128(workspace)
}

/// A node that boots one guest at a time.
async fn one_boot_at_a_time(world: &World) -> Node {
    let config = NodeConfig { boot_concurrency: NonZero::<usize>::MIN, ..world.config() };
    let vmm = Arc::new(FakeVmm::new(world.host.clone()));
    Node::open(config, vmm, world.environment()).await.unwrap()
}

async fn stop(node: &Node, workspace: u128) {
    node.ensure_stopped(id(workspace), Incarnation(1), StopMode::Kill).await.unwrap();
}

/// A start that stays in its boot, until it is stopped: its guest does not answer.
async fn hangs_in_boot(world: &World, node: &Node, spec: VmSpec) {
    let booted = world.boots.borrow().len();
    world.host.inject(Fault::SilentGuest);
    let node = node.clone();
    tokio::spawn(async move { node.ensure_running(spec).await });
    world.booted(booted + 1).await;
}

/// Begins a start and returns once it waits for its turn.
async fn waits(
    world: &World,
    node: &Node,
    workspace: u128,
) -> tokio::task::JoinHandle<Result<VmReport, NodeError>> {
    let (starter, spec) = (node.clone(), world.spec(workspace, 1));
    let start = tokio::spawn(async move { starter.ensure_running(spec).await });
    while !node.awaits_turn(id(workspace)).await {
        tokio::task::yield_now().await;
    }
    start
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boot_waits_for_its_turn_and_a_stop_ends_the_waiting() {
    bounded(async {
        let world = World::new();
        let node = one_boot_at_a_time(&world).await;
        hangs_in_boot(&world, &node, world.spec(1, 1)).await;
        assert!(!node.awaits_turn(id(1)).await, "it has its turn");
        let (second, third) = (waits(&world, &node, 2).await, waits(&world, &node, 3).await);
        assert_eq!(node.inspect(id(2)).await.unwrap().phase, VmPhase::Starting);
        stop(&node, 2).await;
        assert!(second.await.unwrap().is_err());
        stop(&node, 1).await;
        assert_running(&third.await.unwrap().unwrap());
        assert!(!node.awaits_turn(id(3)).await);
        for workspace in [1, 2, 3] {
            node.ensure_deleted(id(workspace)).await.unwrap();
        }
        assert_nothing(&world, 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_and_a_restore_do_not_wait_behind_boots() {
    bounded(async {
        let world = World::instant(1);
        let node = one_boot_at_a_time(&world).await;
        assert_running(&node.ensure_running(world.spec(1, 1)).await.unwrap());
        node.settled().await;
        // Boots of a shape of which there is no template.
        let mut other = world.spec(2, 1);
        other.shape.memory_mib = MemMib(512);
        hangs_in_boot(&world, &node, other).await;
        let claimed = node.ensure_running(world.spec(3, 1)).await.unwrap();
        assert_eq!(claimed.start_path, Some(StartPath::Pool));
        for workspace in [4, 5] {
            let started = node.ensure_running(world.spec(workspace, 1)).await.unwrap();
            assert_ne!(started.start_path, Some(StartPath::Boot));
        }
        stop(&node, 2).await;
        for workspace in 1..=5 {
            node.ensure_deleted(id(workspace)).await.unwrap();
        }
        node.shutdown().await;
        assert_eq!(world.nobodys(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_never_came_up_has_not_ended() {
    for point in ["boot", "guest_ready"] {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            assert_running(&node.ensure_running(world.spec(1, 1)).await.unwrap());
            let process = world.process(1).unwrap();
            world.host.crash(&process).await;
            let mut events = node.subscribe();
            while node.inspect(id(1)).await.unwrap().phase != VmPhase::Stopped {
                tokio::task::yield_now().await;
            }
            assert!(node.inspect(id(1)).await.unwrap().last_exit.is_some());
            // The next one fails, or dies with the node, before its guest is the workspace's.
            assert!(world.faults.plan(point, FaultKind::Fail));
            node.ensure_running(world.spec(1, 2)).await.unwrap_err();
            let report = node.inspect(id(1)).await.unwrap();
            assert_eq!((report.incarnation, report.last_exit), (Incarnation(2), None), "{point}");
            support::die_at(&world, node.clone(), point, node.ensure_running(world.spec(1, 3)))
                .await;
            drop(node);
            let node = world.open().await;
            let report = node.inspect(id(1)).await.unwrap();
            assert_eq!((report.incarnation, report.last_exit), (Incarnation(3), None), "{point}");
            while let Ok(event) = events.try_recv() {
                let skerry_internal_api::NodeEvent::Exited { incarnation, .. } = event;
                assert_eq!(incarnation, Incarnation(1), "{point}");
            }
            node.ensure_deleted(id(1)).await.unwrap();
            assert_nothing(&world, 1);
        })
        .await;
    }
}
