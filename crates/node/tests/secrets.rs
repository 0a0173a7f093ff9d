//! What is secret in a workspace's specification is in none of the node's files.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use skerry_internal_api::{NodeApi, SnapshotContents, StartFrom, VmPhase, VmSpec};
use skerry_model::{EnvVar, Incarnation, SnapshotId, WorkspaceId};
use support::{
    GRACEFUL, World, assert_running, bounded, exec, inside::take, outcome, seal::TestSeal,
};

const ID: WorkspaceId = WorkspaceId::from_u128(1);
const SECRET: &str = "hunter2-and-nothing-else";
/// Says that a command has it, and not what it is: what commands print is in the log of commands.
const PROVE: &str = r#"printf %s "$PASSWORD" | sha256sum"#;

fn spec(world: &World, workspace: u128, incarnation: u64) -> VmSpec {
    let env = vec![EnvVar { key: "PASSWORD".into(), value: SECRET.into() }];
    VmSpec { env, ..world.spec(workspace, incarnation) }
}

/// The files below `dir` that hold the secret.
fn telling(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(telling(&path));
        } else if path.is_file()
            && String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(SECRET)
        {
            found.push(path);
        }
    }
    found
}

fn assert_kept(world: &World, when: &str) {
    assert_eq!(telling(&world.data_dir()), Vec::<PathBuf>::new(), "{when}");
}

async fn assert_told(node: &skerry_node::Node, workspace: u128) {
    let digest: String = Sha256::digest(SECRET).iter().map(|byte| format!("{byte:02x}")).collect();
    let said = exec(node, workspace, &["sh", "-c", PROVE]).await;
    assert_eq!(said, outcome(&format!("{digest}  -\n")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_below_the_data_directory_holds_the_value_of_a_variable() {
    bounded(async {
        let world = World::instant(1);
        let node = world.open().await;
        // The first boots, the second is claimed from the pool.
        for workspace in [1, 2] {
            assert_running(&node.ensure_running(spec(&world, workspace, 1)).await.unwrap());
            assert_told(&node, workspace).await;
            node.settled().await;
            assert_kept(&world, "running");
        }
        take(&node, 100, SnapshotContents::DiskAndMemory).await.unwrap();
        node.ensure_suspended(ID, Incarnation(1)).await.unwrap();
        assert_kept(&world, "suspended");
        let snapshot_id = SnapshotId::from_u128(100);
        let fork = StartFrom::Snapshot { snapshot_id };
        node.ensure_running(VmSpec { start_from: fork, ..spec(&world, 3, 1) }).await.unwrap();
        let again = VmSpec { start_from: StartFrom::SavedMemory, ..spec(&world, 1, 2) };
        node.ensure_running(again).await.unwrap();
        node.settled().await;
        node.abandon().await;
        assert_kept(&world, "the server is dead");

        let node = world.open().await;
        for workspace in [1, 2, 3] {
            assert_told(&node, workspace).await;
        }
        node.ensure_stopped(ID, Incarnation(2), GRACEFUL).await.unwrap();
        node.ensure_running(spec(&world, 1, 3)).await.unwrap();
        assert_told(&node, 1).await;
        assert_kept(&world, "started again");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_an_earlier_version_is_read_and_sealed() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        node.ensure_running(spec(&world, 1, 1)).await.unwrap();
        node.abandon().await;
        let path = world.vm_dir(1).join("spec.json");
        fs::write(&path, serde_json::to_vec(&spec(&world, 1, 1)).unwrap()).unwrap();
        // Whoever still has the old file open finds nothing in it.
        let old = world.dir.path().join("old");
        fs::hard_link(&path, &old).unwrap();
        assert_eq!(telling(&world.data_dir()), [path]);
        let node = world.open().await;
        assert_running(&node.inspect(ID).await.unwrap());
        assert_told(&node, 1).await;
        assert_kept(&world, "sealed by the next start");
        assert!(fs::read(old).unwrap().iter().all(|byte| *byte == b' '));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_key_sealed_is_sealed_anew_and_the_older_key_can_go() {
    bounded(async {
        let mut world = World::new();
        let node = world.open().await;
        node.ensure_running(spec(&world, 1, 1)).await.unwrap();
        node.abandon().await;
        let older = world.seal.key;
        world.seal = TestSeal { key: 0x3c, older: vec![older] };
        world.open().await.abandon().await;
        world.seal.older.clear();
        let node = world.open().await;
        assert_told(&node, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_key_the_node_does_not_open_and_touches_no_vm() {
    bounded(async {
        let mut world = World::new();
        let node = world.open().await;
        node.ensure_running(spec(&world, 1, 1)).await.unwrap();
        node.abandon().await;
        let right = world.seal.clone();
        world.seal = TestSeal { key: 0x3c, older: Vec::new() };
        let error = world.try_open().await.err().unwrap();
        assert!(matches!(error, skerry_node::Error::Seal(_)), "{error:?}");
        assert_eq!(world.host.running().len(), 1);
        world.seal = right;
        let node = world.open().await;
        assert_told(&node, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_costs_its_own_vm_alone() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        for workspace in [1, 2] {
            node.ensure_running(spec(&world, workspace, 1)).await.unwrap();
        }
        node.abandon().await;
        // Another workspace's secrets do not become this one's.
        let theirs = fs::read_to_string(world.vm_dir(2).join("spec.json")).unwrap();
        let mixed = theirs.replace(&WorkspaceId::from_u128(2).to_string(), &ID.to_string());
        fs::write(world.vm_dir(1).join("spec.json"), mixed).unwrap();
        let node = world.open().await;
        assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped);
        assert_told(&node, 2).await;
    })
    .await;
}
