//! The server dies while a volume comes to a workspace that runs, or goes: afterwards the VM has what
//! the workspace has.

use serde_json::{Value, json};

use crate::world::{Client, WORKSPACES, World, bounded, until};

const VOLUMES: &str = "/skerry/v1/volumes";

async fn make_volume(server: &Client) {
    let body = json!({"name": "data", "size_mib": 16});
    let made = server.expect(201, "POST", &format!("{VOLUMES}?wait=60"), Some(body)).await;
    assert_eq!(made["state"], "ready", "{made}");
}

fn at_data() -> Value {
    json!({"volume": "data", "mount_path": "/data"})
}

/// How many volumes are in the slots of the only VM.
fn in_slots(world: &World) -> usize {
    world.host.volumes_of(&world.only_vm()).len()
}

/// The workspace has it, its VM too, and it can be taken away.
async fn assert_attached(world: &World, server: &Client, id: &str, point: &str) {
    let listed = server.get(&format!("{WORKSPACES}/{id}/volumes")).await;
    assert_eq!(listed["volumes"].as_array().unwrap().len(), 1, "{point}: {listed}");
    until(point, async || in_slots(world) == 1).await;
    server.expect(204, "DELETE", &format!("{WORKSPACES}/{id}/volumes/data"), None).await;
    assert_eq!(in_slots(world), 0, "{point}");
    server.expect(200, "DELETE", &format!("{VOLUMES}/data?wait=60"), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_while_it_attaches_a_volume_attaches_it_afterwards() {
    let points = [
        "volume_asked_for",
        "volume_attaching",
        "volume_in_slot",
        "volume_mounted",
        "volume_attached",
    ];
    for point in points {
        bounded(async {
            let world = World::new();
            let server = world.start().await;
            make_volume(&server).await;
            let id = server.create("box").await;
            let (client, path) = (server.clone(), format!("{WORKSPACES}/{id}/volumes"));
            server.die_at(point, client.ask("POST", &path, Some(at_data()))).await;

            let server = world.start().await;
            assert_attached(&world, &server, &id, point).await;
            server.end().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_while_it_detaches_a_volume_leaves_it_with_the_workspace() {
    let points = [
        "volume_detaching",
        "volume_unmounted",
        "volume_out_of_slot",
        "volume_closed",
        "volume_detached",
    ];
    for point in points {
        bounded(async {
            let world = World::new();
            let server = world.start().await;
            make_volume(&server).await;
            let id = server.create("box").await;
            let path = format!("{WORKSPACES}/{id}/volumes");
            server.expect(201, "POST", &path, Some(at_data())).await;
            let client = server.clone();
            server.die_at(point, client.ask("DELETE", &format!("{path}/data"), None)).await;

            let server = world.start().await;
            assert_attached(&world, &server, &id, point).await;
            server.end().await;
        })
        .await;
    }
}
