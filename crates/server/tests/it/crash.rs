//! The server dies at the worst moments. Afterwards records and VMs agree, what was wished for comes
//! true, and nothing leaks.

use std::time::Duration;

use serde_json::{Value, json};
use skerry_node::FAULT_POINTS;

use crate::world::{WORKSPACES, World, bounded};

/// The points a start passes, those of a stop, and those a deletion passes besides.
fn points() -> (&'static [&'static str], &'static [&'static str], &'static [&'static str]) {
    let at = |wanted| FAULT_POINTS.iter().position(|point| *point == wanted).unwrap();
    let (up, rest) = FAULT_POINTS.split_at(at("power_off"));
    let (down, delete) = rest.split_at(at("tombstone") - up.len());
    (up, down, delete)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_takes_its_vms_over_with_their_uptime() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let id = server.create("box").await;
        let before = server.workspace(&id).await;
        let vm = world.only_vm();
        server.die().await;
        world.clock.advance(Duration::from_secs(3600));

        let server = world.start().await;
        let after = server.workspace(&id).await;
        assert_eq!(after["state"], "running", "{after}");
        assert_eq!(after["running_since"], before["running_since"]);
        assert_eq!(after["incarnation"], before["incarnation"]);
        assert_eq!(server.run(&id, "echo alive").await, "alive\n");
        assert_eq!(world.only_vm(), vm);
        assert_eq!(world.host.started_count(), 1);
        server.delete(&id).await;
        assert_eq!(world.left_of(&id), Vec::<String>::new());
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_at_any_step_of_a_start_finishes_the_start_afterwards() {
    for point in points().0 {
        // Nothing can be awaited inside the commit.
        if *point == "boot_commit" {
            continue;
        }
        bounded(async {
            let world = World::new();
            let server = world.start().await;
            let client = server.clone();
            let path = format!("{WORKSPACES}?wait=60");
            let body = Some(json!({"name": "box", "memory_mib": 256}));
            server.die_at(point, client.ask("POST", &path, body)).await;

            let server = world.start().await;
            let listed = server.get(WORKSPACES).await;
            assert_eq!(listed["total"], 1, "{point}: {listed}");
            let id = listed["workspaces"][0]["id"].as_str().unwrap().to_owned();
            let running = server.reaches(&id, "running").await;
            assert_eq!(running["failure"], Value::Null, "{point}");
            assert_eq!(server.run(&id, "echo alive").await, "alive\n", "{point}");
            world.only_vm();
            server.delete(&id).await;
            assert_eq!(world.left_of(&id), Vec::<String>::new(), "{point}");
            server.end().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_at_any_step_of_a_stop_finishes_the_stop_afterwards() {
    for point in points().1 {
        bounded(async {
            let world = World::new();
            let server = world.start().await;
            let id = server.create("box").await;
            let client = server.clone();
            let path = format!("{WORKSPACES}/{id}/stop?wait=60");
            server.die_at(point, client.ask("POST", &path, None)).await;

            let server = world.start().await;
            let stopped = server.reaches(&id, "stopped").await;
            assert_eq!(stopped["desired"], "stopped", "{point}");
            assert_eq!(world.held_by(&id), Vec::<String>::new(), "{point}");
            assert_eq!(server.power(&id, "start").await["state"], "running", "{point}");
            world.only_vm();
            server.end().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_at_any_step_of_a_deletion_finishes_it_afterwards() {
    let (_, down, delete) = points();
    // A deletion does not wait for the guest to power off.
    for point in down.iter().filter(|point| **point != "power_off").chain(delete) {
        bounded(async {
            let world = World::new();
            let server = world.start().await;
            let id = server.create("box").await;
            let client = server.clone();
            let path = format!("{WORKSPACES}/{id}?wait=60");
            server.die_at(point, client.ask("DELETE", &path, None)).await;

            let server = world.start().await;
            server.is_gone(&id).await;
            assert_eq!(world.left_of(&id), Vec::<String>::new(), "{point}");
            assert_eq!(server.get(WORKSPACES).await["total"], 0, "{point}");
            server.end().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_was_wished_for_survives_the_death_of_the_server_in_its_middle() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let id = server.create("box").await;
        let before = server.workspace(&id).await;
        let client = server.clone();
        let path = format!("{WORKSPACES}/{id}/restart?wait=60");
        server.die_at("release_memory_file", client.ask("POST", &path, None)).await;

        let server = world.start().await;
        let after = server.reaches(&id, "running").await;
        assert!(after["incarnation"].as_u64() > before["incarnation"].as_u64(), "{after}");
        world.only_vm();
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_died_while_no_server_ran_is_shown_as_failed_and_starts_again() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let id = server.create("box").await;
        server.die().await;
        world.host.crash(&world.only_vm()).await;

        let server = world.start().await;
        let failed = server.reaches(&id, "failed").await;
        assert_eq!(failed["failure"]["retryable"], true, "{failed}");
        assert_eq!(world.held_by(&id), Vec::<String>::new());
        assert_eq!(server.power(&id, "start").await["state"], "running");
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_to_live_that_ended_while_no_server_ran_is_obeyed_at_the_next_start() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let temporary = async |name: &str, after_seconds: u32, action: &str| {
            let body = json!({"name": name, "memory_mib": 256, "lifetime": "temporary",
                "expiry": {"after_seconds": after_seconds, "action": action}});
            let path = format!("{WORKSPACES}?wait=60");
            let made = server.expect(201, "POST", &path, Some(body)).await;
            assert_eq!(made["state"], "running", "{made}");
            made["id"].as_str().unwrap().to_owned()
        };
        let deleted = temporary("deleted", 600, "delete").await;
        let stopped = temporary("stopped", 600, "stop").await;
        let kept = temporary("kept", 6000, "delete").await;
        let before = server.workspace(&kept).await;
        server.die().await;
        world.clock.advance(Duration::from_secs(601));

        let server = world.start().await;
        server.is_gone(&deleted).await;
        server.reaches(&stopped, "stopped").await;
        let after = server.workspace(&kept).await;
        assert_eq!(after["state"], "running", "{after}");
        assert_eq!(after["expires_at"], before["expires_at"]);
        world.only_vm();
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_on_the_same_data_directory_is_refused_and_the_first_goes_on() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let id = server.create("box").await;
        let error = format!("{:#}", world.try_start().await.err().expect("refused"));
        assert!(error.contains("in use by another server"), "{error}");
        assert!(error.contains(&world.data_dir().display().to_string()), "{error}");
        assert_eq!(server.run(&id, "echo alive").await, "alive\n");
        server.end().await;
        let server = world.start().await;
        assert_eq!(server.run(&id, "echo alive").await, "alive\n");
        server.end().await;
    })
    .await;
}
