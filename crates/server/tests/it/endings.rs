//! VMs that end, or do not begin, by themselves.

use serde_json::{Value, json};
use skerry_vmm::fake::{Fault, GuestEnd};

use crate::world::{WORKSPACES, World, bounded, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_dies_is_shown_as_failed_holds_nothing_and_starts_again() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let id = server.create("box").await;
        world.host.crash(&world.only_vm()).await;
        let failed = server.reaches(&id, "failed").await;
        assert_eq!(failed["failure"]["code"], "vm_crashed", "{failed}");
        assert_eq!(failed["failure"]["retryable"], true, "{failed}");
        assert_eq!(world.held_by(&id), Vec::<String>::new());
        let exec = format!("{WORKSPACES}/{id}/exec");
        server.expect(409, "POST", &exec, Some(json!({"argv": ["true"]}))).await;
        assert_eq!(server.power(&id, "start").await["failure"], Value::Null);
        assert_eq!(server.run(&id, "echo back").await, "back\n");
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_powers_off_is_stopped_and_stays_so() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let id = server.create("box").await;
        world.end_guests(GuestEnd::PoweredOff).await;
        let stopped = server.reaches(&id, "stopped").await;
        assert_eq!(stopped["desired"], "stopped", "{stopped}");
        assert_eq!(stopped["failure"], Value::Null, "{stopped}");
        assert_eq!(world.held_by(&id), Vec::<String>::new());
        server.die().await;
        let server = world.start().await;
        assert_eq!(server.workspace(&id).await["state"], "stopped");
        assert_eq!(world.host.started_count(), 1);
        assert_eq!(server.power(&id, "start").await["state"], "running");
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_is_shown_with_its_attempts_and_succeeds_when_tried_again() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        world.host.inject(Fault::FailAfterCommit);
        let path = format!("{WORKSPACES}?wait=60");
        let failed = server.expect(201, "POST", &path, Some(json!({"name": "box"}))).await;
        assert_eq!(failed["state"], "failed", "{failed}");
        assert_eq!(failed["failure"]["attempts"], 1, "{failed}");
        assert_eq!(failed["failure"]["retryable"], true, "{failed}");
        let id = failed["id"].as_str().unwrap().to_owned();
        assert_eq!(world.held_by(&id), Vec::<String>::new());

        // Each API shows it in its own way, and two have a word for trying again.
        let ids = server.workspace(&id).await["ids"].clone();
        let rigbox = format!("/api/v1/workspaces/{}", ids["rigbox"].as_str().unwrap());
        assert_eq!(server.get(&rigbox).await["vm"]["status"], "failed");
        world.host.inject(Fault::FailBeforeCommit);
        let oblien = format!("/workspace/{}", ids["oblien"].as_str().unwrap());
        let (status, body) =
            server.ask("POST", &format!("{oblien}/provisioning/retry"), None).await.unwrap();
        assert_eq!(status, 200, "{body}");
        until("failed again", async || server.workspace(&id).await["failure"]["attempts"] == 2)
            .await;
        let (status, body) = server.ask("POST", &format!("{rigbox}/retry"), None).await.unwrap();
        assert_eq!(status, 200, "{body}");
        let running = server.reaches(&id, "running").await;
        assert_eq!(running["failure"], Value::Null, "{running}");
        server.delete(&id).await;
        assert_eq!(world.left_of(&id), Vec::<String>::new());
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_or_a_stop_during_a_start_wins_and_leaves_nothing() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let begin = async |name: &str| {
            let booted = world.boots.borrow().len();
            // Its agent never answers: the start would take its whole bound.
            world.host.inject(Fault::SilentGuest);
            let body = Some(json!({"name": name, "memory_mib": 256}));
            let made = server.expect(201, "POST", WORKSPACES, body).await;
            world.booted(booted + 1).await;
            made["id"].as_str().unwrap().to_owned()
        };
        let deleted = begin("deleted").await;
        server.delete(&deleted).await;
        assert_eq!(world.left_of(&deleted), Vec::<String>::new());

        let stopped = begin("stopped").await;
        let answer = server.power(&stopped, "stop").await;
        assert_eq!((&answer["state"], &answer["failure"]), (&json!("stopped"), &Value::Null));
        assert_eq!(world.held_by(&stopped), Vec::<String>::new());
        assert_eq!(server.power(&stopped, "start").await["state"], "running");
        server.end().await;
    })
    .await;
}
