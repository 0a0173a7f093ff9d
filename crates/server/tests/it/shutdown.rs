//! The end of a server that was told to end.

use std::time::Duration;

use serde_json::{Value, json};
use skerry_node::FaultKind;
use skerry_server::config::OnShutdown;
use skerry_vmm::fake::Fault;

use crate::world::{WORKSPACES, World, bounded};

/// An end without anything to wait for.
const QUICK: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_ends_keeps_its_vms_and_the_next_takes_them_over() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let id = server.create("box").await;
        let before = server.workspace(&id).await;
        let vm = world.only_vm();
        assert!(server.end().await < QUICK);
        assert_eq!(world.only_vm(), vm);
        let server = world.start().await;
        assert_eq!(server.workspace(&id).await, before);
        assert_eq!(server.run(&id, "echo alive").await, "alive\n");
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_to_stop_everything_leaves_no_vm_and_every_disk() {
    bounded(async {
        let mut world = World::new();
        world.on_shutdown = OnShutdown::Stop;
        let server = world.start().await;
        let running = [server.create("one").await, server.create("two").await];
        let body = Some(json!({"name": "never started", "start": false}));
        let provisioned = server.expect(201, "POST", WORKSPACES, body).await;
        world.host.inject(Fault::SilentGuest);
        let body = Some(json!({"name": "starting", "memory_mib": 256}));
        let starting = server.expect(201, "POST", WORKSPACES, body).await;
        world.booted(3).await;
        assert!(server.end().await < QUICK);
        assert_eq!(world.host.running(), []);

        let server = world.start().await;
        let starting = starting["id"].as_str().unwrap();
        for id in running.iter().map(String::as_str).chain([starting]) {
            let stopped = server.workspace(id).await;
            assert_eq!(stopped["state"], "stopped", "{stopped}");
            assert_eq!(stopped["desired"], "stopped", "{stopped}");
            assert_eq!(stopped["failure"], Value::Null, "{stopped}");
            assert_eq!(world.held_by(id), Vec::<String>::new());
        }
        let provisioned = server.workspace(provisioned["id"].as_str().unwrap()).await;
        assert_eq!(provisioned["state"], "provisioned");
        assert_eq!(server.power(&running[0], "start").await["state"], "running");
        server.end().await;
        assert_eq!(world.host.running(), []);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_to_stop_everything_finishes_the_deletions_under_way() {
    bounded(async {
        let mut world = World::new();
        world.on_shutdown = OnShutdown::Stop;
        let server = world.start().await;
        let id = server.create("box").await;
        // The first try fails; the second comes after a pause, in which the server is told to end.
        assert!(server.faults.plan("release_process", FaultKind::Fail));
        server.expect(202, "DELETE", &format!("{WORKSPACES}/{id}"), None).await;
        server.faults.happened("release_process").await;
        server.end().await;
        assert_eq!(world.left_of(&id), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_under_way_at_the_end_is_undone_and_taken_up_by_the_next_server() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        world.host.inject(Fault::SilentGuest);
        let client = server.clone();
        let waiting = tokio::spawn(async move {
            let body = Some(json!({"name": "box", "memory_mib": 256}));
            client.ask("POST", &format!("{WORKSPACES}?wait=60"), body).await
        });
        world.booted(1).await;
        assert!(server.end().await < QUICK);
        let (status, body) = waiting.await.unwrap().unwrap();
        assert_eq!(status, 503, "{body}");
        assert_eq!(world.host.running(), []);

        let server = world.start().await;
        let listed = server.get(WORKSPACES).await;
        let id = listed["workspaces"][0]["id"].as_str().unwrap().to_owned();
        let running = server.reaches(&id, "running").await;
        assert_eq!(running["failure"], Value::Null, "{running}");
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_under_way_does_not_hold_up_the_end() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let id = server.create("box").await;
        let started = world.dir.path().join("home/started");
        let client = server.clone();
        let body = json!({"argv": ["sh", "-c", format!("touch {}; sleep 60", started.display())]});
        let path = format!("{WORKSPACES}/{id}/exec");
        let waiting = tokio::spawn(async move { client.ask("POST", &path, Some(body)).await });
        crate::world::until("the command runs", async || started.exists()).await;
        assert!(server.end().await < QUICK);
        let (status, body) = waiting.await.unwrap().unwrap();
        assert_eq!(status, 503, "{body}");
    })
    .await;
}
