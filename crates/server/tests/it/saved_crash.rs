//! The server dies at every step of saving, restoring and forking. What was wished for comes true or is
//! refused in words, nothing that was written is lost, and nothing is stuck or left behind.

use serde_json::{Value, json};

use crate::world::{Server, WORKSPACES, World, bounded, until};

/// The steps of a suspension after which a server can die.
const SUSPENSION: &[&str] = &[
    "suspension_noted",
    "suspension_drafted",
    "suspension_frozen",
    "suspension_stopped",
    "suspension_begun",
    "suspension_saved",
    "suspension_sealed",
    "suspension_committed",
    "release_process",
    "released",
];
/// Those of a start from saved memory.
const RETURN: &[&str] = &[
    "reserve",
    "ledger_intent",
    "cgroup",
    "memory_file",
    "park",
    "load",
    "spend_memory",
    "resume",
    "guest_ready",
    "memory_removed",
    "ready",
];
/// Those of a snapshot of a running workspace.
const SNAPSHOT: &[&str] = &[
    "snapshot_drafted",
    "snapshot_noted",
    "snapshot_synced",
    "snapshot_begun",
    "snapshot_converged",
    "overlay_intended",
    "snapshot_frozen",
    "snapshot_stopped",
    "overlay_pushed",
    "snapshot_captured",
    "snapshot_went_on",
    "snapshot_saved",
    "overlay_kept",
    "snapshot_sealed",
    "snapshot_ended",
];
/// Those of a start from a snapshot.
const FROM_SNAPSHOT: &[&str] = &[
    "reserve",
    "vm_directory",
    "ledger_intent",
    "run_directory",
    "cgroup",
    "disk",
    "console_log",
    "park",
    "load",
    "resume",
    "guest_ready",
    "ready",
];

async fn all(server: &Server) -> Vec<Value> {
    server.get(WORKSPACES).await["workspaces"].as_array().unwrap().clone()
}

fn id(workspace: &Value) -> String {
    workspace["id"].as_str().unwrap().to_owned()
}

/// No snapshot is under way any more.
async fn snapshots_settle(server: &Server) -> Vec<Value> {
    let mut found = Vec::new();
    until("snapshots settle", async || {
        found = server.get("/skerry/v1/snapshots").await["snapshots"].as_array().unwrap().clone();
        found.iter().all(|one| one["state"] == "ready" || one["state"] == "failed")
    })
    .await;
    found
}

/// Deletes everything; nothing is left of any workspace.
async fn assert_all_goes(world: &World, server: Server, point: &str) {
    let gone = all(&server).await;
    for workspace in &gone {
        server.delete(&id(workspace)).await;
    }
    for workspace in &gone {
        assert_eq!(world.left_of(&id(workspace)), Vec::<String>::new(), "{point}");
    }
    for snapshot in snapshots_settle(&server).await {
        let path = format!("/skerry/v1/snapshots/{}?wait=60", id(&snapshot));
        server.expect(200, "DELETE", &path, None).await;
    }
    assert_eq!(world.layers(), Vec::<String>::new(), "{point}");
    server.end().await;
    assert_eq!(world.host.running().len(), 0, "{point}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_at_any_step_of_a_suspension_finishes_it_and_goes_on_from_it() {
    for point in SUSPENSION {
        bounded(async {
            let world = World::new();
            let server = world.start().await;
            let id = server.create("box").await;
            let client = server.clone();
            let path = format!("{WORKSPACES}/{id}/suspend?wait=60");
            server.die_at(point, client.ask("POST", &path, None)).await;

            let server = world.start().await;
            let suspended = server.reaches(&id, "suspended").await;
            assert_eq!(suspended["desired"], "suspended", "{point}: {suspended}");
            assert_eq!(world.held_by(&id), Vec::<String>::new(), "{point}");
            assert_eq!(server.power(&id, "resume").await["state"], "running", "{point}");
            assert_eq!(world.host.started_count(), 2, "{point}");
            assert_eq!(server.run(&id, "echo alive").await, "alive\n", "{point}");
            assert_all_goes(&world, server, point).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_at_any_step_of_a_resume_from_disk_runs_or_keeps_the_memory() {
    for point in RETURN {
        bounded(async {
            let world = World::new();
            let server = world.start().await;
            let id = server.create("box").await;
            assert_eq!(server.power(&id, "suspend").await["state"], "suspended");
            let client = server.clone();
            let path = format!("{WORKSPACES}/{id}/resume?wait=60");
            server.die_at(point, client.ask("POST", &path, None)).await;

            let server = world.start().await;
            let running = server.reaches(&id, "running").await;
            assert_eq!(running["failure"], Value::Null, "{point}: {running}");
            assert_eq!(server.run(&id, "echo alive").await, "alive\n", "{point}");
            world.only_vm();
            assert_all_goes(&world, server, point).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_at_any_step_of_a_snapshot_has_the_whole_of_it_or_says_that_it_failed() {
    for point in SNAPSHOT {
        bounded(async {
            let world = World::new();
            let server = world.start().await;
            let source = server.create("box").await;
            let vm = world.only_vm();
            let client = server.clone();
            let path = format!("{WORKSPACES}/{source}/snapshots?wait=60");
            let body = Some(json!({"name": "point"}));
            server.die_at(point, client.ask("POST", &path, body.clone())).await;

            let server = world.start().await;
            server.reaches(&source, "running").await;
            assert_eq!(world.only_vm(), vm, "{point}");
            assert_eq!(server.run(&source, "echo alive").await, "alive\n", "{point}");
            for found in snapshots_settle(&server).await {
                assert!(found["state"] == "ready" || found["failure"].is_object(), "{found}");
            }
            let body = Some(json!({"name": "again"}));
            let again = server.expect(201, "POST", &path, body).await;
            assert_eq!(again["state"], "ready", "{point}: {again}");
            assert_all_goes(&world, server, point).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_at_any_step_of_a_fork_leaves_forks_that_run_or_none_and_the_source() {
    for point in SNAPSHOT.iter().chain(FROM_SNAPSHOT) {
        bounded(async {
            let world = World::new();
            let server = world.start().await;
            let source = server.create("box").await;
            let vm = world.only_vm();
            let client = server.clone();
            let path = format!("{WORKSPACES}/{source}/fork?wait=60");
            let body = Some(json!({"count": 2, "name": "fork"}));
            server.die_at(point, client.ask("POST", &path, body)).await;

            let server = world.start().await;
            server.reaches(&source, "running").await;
            assert!(world.host.running().contains(&vm), "{point}: the source is gone");
            let mut found = Vec::new();
            until("everything settles", async || {
                found = all(&server).await;
                found.iter().all(|one| {
                    one["state"] == "running"
                        || (one["state"] == "failed" && one["failure"].is_object())
                })
            })
            .await;
            assert!(found.len() == 1 || found.len() == 3, "{point}: {found:#?}");
            for workspace in found.iter().filter(|one| one["state"] == "running") {
                let said = server.run(&id(workspace), "echo alive").await;
                assert_eq!(said, "alive\n", "{point}: {workspace}");
            }
            if FROM_SNAPSHOT.contains(point) {
                let running = found.iter().filter(|one| one["state"] == "running").count();
                assert_eq!(running, 3, "{point}: {found:#?}");
            }
            assert_all_goes(&world, server, point).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_at_any_step_of_a_restore_in_place_finishes_it() {
    for point in FROM_SNAPSHOT {
        bounded(async {
            let world = World::new();
            let server = world.start().await;
            let id = server.create("box").await;
            let path = format!("{WORKSPACES}/{id}/snapshots?wait=60");
            server.expect(201, "POST", &path, Some(json!({"name": "point"}))).await;
            let client = server.clone();
            let path = format!("{WORKSPACES}/{id}/restore?wait=60");
            let body = Some(json!({"snapshot": "point"}));
            server.die_at(point, client.ask("POST", &path, body)).await;

            let server = world.start().await;
            let running = server.reaches(&id, "running").await;
            assert_eq!(running["failure"], Value::Null, "{point}: {running}");
            assert_eq!(running["start_path"], "snapshot_memory", "{point}: {running}");
            assert_eq!(server.run(&id, "echo alive").await, "alive\n", "{point}");
            world.only_vm();
            assert_all_goes(&world, server, point).await;
        })
        .await;
    }
}
