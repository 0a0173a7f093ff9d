//! VMs of a node with a network: their places and addresses, from the first start to the last trace.
//! Namespaces are real; the machines are fake, so nothing is ever sent.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use futures::{StreamExt, stream};
use sha2::{Digest, Sha256};
use skerry_internal_api::{NodeApi, NodeError, StopMode};
use skerry_model::{
    Incarnation, NetworkPolicy, Opening, PortRange, PrivateAddress, Transport, WorkspaceId,
};
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

/// How many lives are lived; more by night.
fn lives() -> u128 {
    let Some(text) = std::env::var_os("SKERRY_TEST_NETWORKS") else { return 50 };
    text.to_str().and_then(|text| text.parse().ok()).expect("a number of lives")
}

/// What a program of the host's says of a namespace, line by line, without what counts up by itself.
fn told(namespace: &str, program: &[&str]) -> Vec<String> {
    let run = std::process::Command::new("ip")
        .args(["netns", "exec", namespace])
        .args(program)
        .output()
        .unwrap();
    assert!(run.status.success(), "{program:?}: {}", String::from_utf8_lossy(&run.stderr));
    let text = String::from_utf8(run.stdout).unwrap();
    text.lines().filter(|line| !line.contains("counter packets")).map(str::to_owned).collect()
}

/// How much of each kind there is in all namespaces of this world, and of its devices and tables in the
/// host's own.
fn inventory(world: &World) -> BTreeMap<&'static str, usize> {
    let namespaces = namespaces(world);
    let count = |program: &[&str]| {
        namespaces.iter().map(|namespace| told(namespace, program).len()).sum::<usize>()
    };
    let tag = namespaces.first().map_or("", String::as_str).get(..16).unwrap_or("no namespace");
    let tables = std::process::Command::new("nft").args(["list", "tables"]).output().unwrap();
    let tables = String::from_utf8(tables.stdout).unwrap();
    let devices = support::machine::names("/sys/class/net".as_ref());
    BTreeMap::from([
        ("namespaces", namespaces.len()),
        ("links", count(&["ip", "-o", "link"])),
        ("addresses", count(&["ip", "-o", "address"])),
        ("routes", count(&["ip", "route", "show", "table", "all"])),
        ("rules", count(&["nft", "list", "ruleset"])),
        ("devices of the host", devices.iter().filter(|name| name.starts_with(tag)).count()),
        ("tables of the host", tables.lines().filter(|line| line.contains(tag)).count()),
    ])
}

/// What the files are that this process has open.
fn open_files() -> Vec<PathBuf> {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok()).collect()
}

/// Workspaces that start, are told policies that open ports to each other and names to them, and go, a few
/// at a time: what is there afterwards is what was there when nobody had come.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_lives_with_a_network_nothing_is_left() {
    const AT_ONCE: usize = 4;
    let count = lives();
    // Beyond the test's usual bound there is work by night.
    let within = Duration::from_secs(120) + Duration::from_secs(2) * u32::try_from(count).unwrap();
    let lives = async {
        let world = world();
        let node = world.open().await;
        // The first life makes what is kept for all.
        start(&world, &node, 1, 1).await;
        node.ensure_deleted(id(1)).await.unwrap();
        node.settled().await;
        let (before, files) = (inventory(&world), open_files());
        let live = async |workspace: u128| {
            let own = start(&world, &node, workspace, 1).await;
            let ports = PortRange::one(8080).unwrap();
            let opening = Opening { from: own, transport: Transport::Tcp, ports };
            let policy = NetworkPolicy {
                ingress: [opening].into(),
                links: [own].into(),
                ..NetworkPolicy::default()
            };
            node.set_network_policy(id(workspace), Incarnation(1), policy).await.unwrap();
            // Every other one also rests.
            if workspace.is_multiple_of(2) {
                stop(&node, workspace, 1).await;
            }
            node.ensure_deleted(id(workspace)).await.unwrap();
        };
        stream::iter(2..2 + count).for_each_concurrent(AT_ONCE, live).await;
        node.settled().await;
        assert_eq!(inventory(&world), before, "after {count} lives");
        // Nothing of a life holds a file open; a few are the runtime's, opened when they are needed.
        let left = open_files();
        assert!(left.len() < files.len() + 25, "files were opened and not closed: {left:#?}");
        node.shutdown().await;
        assert_eq!(namespaces(&world), BTreeSet::new());
    };
    tokio::time::timeout(within, lives).await.expect("it takes too long");
}
