//! VMs of a node with a network: their places and addresses, from the first start to the last trace.
//! Namespaces are real; the machines are fake, so nothing is ever sent.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use skerry_internal_api::{NodeApi, NodeError, StopMode};
use skerry_model::{Incarnation, NetworkPolicy, PrivateAddress, WorkspaceId};
use skerry_node::{FaultKind, NetworkChoice, Node};
use support::{GRACEFUL, World, bounded};

fn world() -> World {
    World::new().networked()
}

fn id(workspace: u128) -> WorkspaceId {
    WorkspaceId::from_u128(workspace)
}

/// What there is of this world under `/run/netns`.
fn namespaces(world: &World) -> BTreeSet<String> {
    let data_dir = world.data_dir().canonicalize().unwrap();
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let tag: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let names = support::machine::names("/run/netns".as_ref());
    names.into_iter().filter(|name| name.starts_with(&format!("skerry-{tag}"))).collect()
}

/// The namespace that a workspace's ledger names.
fn place(world: &World, workspace: u128) -> String {
    let ledger = std::fs::read_to_string(world.vm_dir(workspace).join("ledger.jsonl")).unwrap();
    let (_, rest) = ledger.rsplit_once("\"namespace\":\"").unwrap();
    rest.split('"').next().unwrap().to_owned()
}

async fn start(world: &World, node: &Node, workspace: u128, incarnation: u64) -> PrivateAddress {
    let report = node.ensure_running(world.spec(workspace, incarnation)).await.unwrap();
    report.private_address.unwrap()
}

async fn stop(node: &Node, workspace: u128, incarnation: u64) {
    node.ensure_stopped(id(workspace), Incarnation(incarnation), GRACEFUL).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_keeps_its_address_and_has_a_place_while_it_runs() {
    bounded(async {
        let world = world();
        let node = world.open().await;
        let (one, two) = (start(&world, &node, 1, 1).await, start(&world, &node, 2, 1).await);
        assert_ne!(one, two);
        let (own, other) = (place(&world, 1), place(&world, 2));
        assert!(own != other && namespaces(&world).is_superset(&[own.clone(), other].into()));

        stop(&node, 1, 1).await;
        assert!(!namespaces(&world).contains(&own));
        assert_eq!(node.inspect(id(1)).await.unwrap().private_address, Some(one));
        assert_eq!(start(&world, &node, 1, 2).await, one);
        for workspace in [1, 2] {
            node.ensure_deleted(id(workspace)).await.unwrap();
        }
        let third = start(&world, &node, 3, 1).await;
        assert!(third != one && third != two, "used last");
        node.ensure_deleted(id(3)).await.unwrap();
        node.shutdown().await;
        assert_eq!(namespaces(&world), BTreeSet::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_leaves_places_to_the_next_and_nothing_else() {
    bounded(async {
        let world = world();
        let node = world.open().await;
        let before = start(&world, &node, 1, 1).await;
        let stopped = start(&world, &node, 2, 1).await;
        stop(&node, 2, 1).await;
        let own = place(&world, 1);
        node.abandon().await;

        let node = world.open().await;
        assert!(namespaces(&world).contains(&own));
        assert_eq!(node.inspect(id(1)).await.unwrap().private_address, Some(before));
        assert_eq!(node.inspect(id(2)).await.unwrap().private_address, Some(stopped));
        assert!(![before, stopped].contains(&start(&world, &node, 3, 1).await));
        assert_ne!(place(&world, 3), own);
        let policy = NetworkPolicy { links: [stopped].into(), ..NetworkPolicy::default() };
        node.set_network_policy(id(1), Incarnation(1), policy).await.unwrap();
        node.shutdown().await;
        drop(node);
        assert!(namespaces(&world).contains(&own), "it runs on");

        let node = world.open().await;
        for workspace in [1, 2, 3] {
            node.ensure_deleted(id(workspace)).await.unwrap();
        }
        node.shutdown().await;
        assert_eq!(namespaces(&world), BTreeSet::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_anywhere_leaves_no_place() {
    bounded(async {
        let world = world();
        let node = world.open().await;
        for (workspace, point) in (1..).zip([
            "reserve",
            "vm_directory",
            "ledger_intent",
            "network",
            "boot",
            "guest_ready",
        ]) {
            assert!(world.faults.plan(point, FaultKind::Fail));
            node.ensure_running(world.spec(workspace, 1)).await.unwrap_err();
            assert!(!world.faults.pending(), "{point}");
            // Of a boot the disk is left.
            node.ensure_deleted(id(workspace)).await.unwrap();
        }
        for point in ["network", "release_network"] {
            assert!(world.faults.plan(point, FaultKind::Repeat));
            start(&world, &node, 20, 1).await;
            node.ensure_deleted(id(20)).await.unwrap();
            assert!(!world.faults.pending(), "{point}");
        }
        node.shutdown().await;
        assert_eq!(namespaces(&world), BTreeSet::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_while_it_makes_or_releases_a_place_leaves_none() {
    bounded(async {
        for point in ["ledger_intent", "network", "disk", "release_cgroup", "release_network"] {
            let world = world();
            let node = world.open().await;
            assert!(world.faults.plan(point, FaultKind::Hang));
            let life = async {
                let running = node.ensure_running(world.spec(1, 1)).await;
                let stopping = node.ensure_stopped(id(1), Incarnation(1), StopMode::Kill);
                running.map(drop).and(stopping.await)
            };
            tokio::select! {
                _ = life => panic!("{point} was not passed"),
                () = world.faults.happened(point) => {}
            }
            node.abandon().await;
            let node = world.open().await;
            node.ensure_deleted(id(1)).await.unwrap();
            node.shutdown().await;
            assert_eq!(namespaces(&world), BTreeSet::new(), "{point}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_the_pool_has_its_place_already_and_takes_it_along() {
    bounded(async {
        let world = World::instant(1).networked();
        let node = world.open().await;
        let first = start(&world, &node, 1, 1).await;
        node.settled().await;
        let claimed = start(&world, &node, 2, 1).await;
        assert_eq!(node.start_statistics().await.pool_hits, 1);
        assert_ne!(first, claimed);
        let own = place(&world, 2);
        node.abandon().await;

        let node = world.open().await;
        assert!(namespaces(&world).contains(&own));
        assert_eq!(node.inspect(id(2)).await.unwrap().private_address, Some(claimed));
        for workspace in [1, 2] {
            node.ensure_deleted(id(workspace)).await.unwrap();
        }
        node.shutdown().await;
        assert_eq!(namespaces(&world), BTreeSet::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_network_was_switched_off_clears_it_away_as_its_vms_end() {
    bounded(async {
        let mut world = world();
        let node = world.open().await;
        start(&world, &node, 1, 1).await;
        let own = place(&world, 1);
        node.abandon().await;

        world.network = NetworkChoice::Off;
        let node = world.open().await;
        let left = namespaces(&world);
        assert!(left.contains(&own) && left.len() == 2, "what waited is gone: {left:?}");
        assert_eq!(node.inspect(id(1)).await.unwrap().private_address, None);
        node.ensure_deleted(id(1)).await.unwrap();
        assert!(!namespaces(&world).contains(&own));
        node.shutdown().await;
        drop(node);
        world.open().await.shutdown().await;
        assert_eq!(namespaces(&world), BTreeSet::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_for_a_vm_that_runs_and_a_node_that_has_a_network() {
    bounded(async {
        let world = world();
        let node = world.open().await;
        start(&world, &node, 1, 2).await;
        let set = |incarnation| {
            let policy = NetworkPolicy::default();
            node.set_network_policy(id(1), Incarnation(incarnation), policy)
        };
        set(2).await.unwrap();
        assert_eq!(set(1).await, Err(NodeError::NotRunning));
        stop(&node, 1, 2).await;
        assert_eq!(set(2).await, Err(NodeError::NotRunning));
        node.ensure_deleted(id(1)).await.unwrap();
        node.shutdown().await;

        let off = World::new();
        let node = off.open().await;
        let report = node.ensure_running(off.spec(1, 1)).await.unwrap();
        assert_eq!(report.private_address, None);
        let refused =
            node.set_network_policy(id(1), Incarnation(1), NetworkPolicy::default()).await;
        assert!(matches!(refused, Err(NodeError::Unsupported(_))), "{refused:?}");
        node.ensure_deleted(id(1)).await.unwrap();
        node.shutdown().await;
    })
    .await;
}
