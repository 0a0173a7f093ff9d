//! Oblien's rest, snapshots and rules of a life. Each snapshot is a transcript of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::time::Duration;

use front::{As, Front};
use serde_json::{Value, json};
use skerry_control::internal_api::VmExit;
use skerry_model::State;

async fn create(front: &mut Front, body: Value) -> String {
    let answer = front.call(As::Admin, "POST /workspace", Some(body)).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    answer.body["workspace"]["id"].as_str().expect("an id").to_owned()
}

async fn send(front: &mut Front, line: &str, body: Option<Value>) -> Value {
    let answer = front.call(As::Admin, line, body).await;
    assert_eq!(answer.status, 200, "{line}: {}", answer.body);
    answer.body
}

#[tokio::test]
async fn a_workspace_is_paused_and_resumed() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "image": "base" })).await;
    let paused = send(&mut front, &format!("POST /workspace/{id}/pause"), None).await;
    assert_eq!(paused["workspace"]["status"], "paused");
    assert_eq!(paused["workspace"]["info"]["is_running"], false);
    let resumed = send(&mut front, &format!("POST /workspace/{id}/resume"), None).await;
    assert_eq!(resumed["workspace"]["status"], "running");
    send(&mut front, &format!("POST /workspace/{id}/stop"), None).await;
    for verb in ["pause", "resume"] {
        let line = format!("POST /workspace/{id}/{verb}");
        let answer = front.call(As::Admin, &line, None).await;
        assert_eq!((answer.status.as_u16(), &answer.body["code"]), (409, &json!("conflict")));
    }
}

#[tokio::test]
async fn a_workspace_goes_back_to_its_latest_snapshot() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "image": "base" })).await;
    let restore = format!("POST /workspace/{id}/restore");
    let none = front.call(As::Admin, &restore, None).await;
    assert_eq!((none.status.as_u16(), &none.body["code"]), (404, &json!("not_found")));
    let snapshot = format!("POST /workspace/{id}/snapshot");
    for (after, status) in [("resume", "running"), ("paused", "paused")] {
        let body = send(&mut front, &snapshot, Some(json!({ "after": after }))).await;
        assert_eq!(body["workspace"]["status"], status);
    }
    let restored = send(&mut front, &restore, None).await;
    assert_eq!(restored["workspace"]["status"], "running");
    let stopped = send(&mut front, &snapshot, Some(json!({ "after": "stop" }))).await;
    assert_eq!(stopped["workspace"]["status"], "stopped");
    let bad = front.call(As::Admin, &snapshot, Some(json!({ "after": "explode" }))).await;
    assert_eq!((bad.status.as_u16(), &bad.body["details"]["field"]), (400, &json!("after")));
}

#[tokio::test]
async fn create_takes_the_rules_of_a_life() {
    let mut front = Front::open().await;
    let body = json!({
        "name": "ruled", "image": "base", "mode": "permanent",
        "config": {
            "restart_policy": "on-failure", "max_restarts": 5, "remove_on_exit": false,
            "idle": { "suspend_after": "15m", "stop_after": "72h" },
        },
    });
    let id = create(&mut front, body).await;
    send(&mut front, &format!("GET /workspace/{id}/lifecycle"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_time_to_live_excludes_restarts() {
    let mut front = Front::open().await;
    let body = json!({
        "image": "base", "config": { "ttl": "1h", "restart_policy": "always", "max_restarts": 5 },
    });
    let id = create(&mut front, body).await;
    let life = send(&mut front, &format!("GET /workspace/{id}/lifecycle"), None).await;
    assert_eq!((&life["restart_policy"], &life["ttl"]), (&json!("no"), &json!("1h")));
}

#[tokio::test]
async fn the_rules_are_changed_and_the_time_renewed() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "image": "base" })).await;
    let one = format!("/workspace/{id}");
    let temporary = json!({ "ttl": "1h", "ttl_action": "suspend", "remove_on_exit": true });
    send(&mut front, &format!("POST {one}/lifecycle/temporary"), Some(temporary)).await;
    front.test.clock.advance(Duration::from_secs(600));
    send(&mut front, &format!("POST {one}/ping"), None).await;
    send(&mut front, &format!("POST {one}/ping"), Some(json!({ "ttl_seconds": 60 }))).await;
    send(&mut front, &format!("PUT {one}/lifecycle/ttl"), Some(json!({ "ttl": 7200 }))).await;
    let idle = json!({ "suspend_after": 900 });
    send(&mut front, &format!("PUT {one}/lifecycle/idle"), Some(idle)).await;
    let never = json!({ "suspend_after": 0 });
    send(&mut front, &format!("PUT {one}/lifecycle/idle"), Some(never)).await;
    send(&mut front, &format!("POST {one}/lifecycle/permanent"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn bad_rules_are_refused_by_field_and_change_nothing() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "image": "base" })).await;
    let before = send(&mut front, &format!("GET /workspace/{id}/lifecycle"), None).await;
    let mut text = String::new();
    for (line, body) in [
        ("POST lifecycle/temporary", json!({ "ttl": "soon" })),
        ("POST lifecycle/temporary", json!({ "ttl": "1h", "ttl_action": "explode" })),
        ("POST lifecycle/permanent", json!({ "restart_policy": "sometimes" })),
        ("PUT lifecycle/ttl", json!({})),
        ("PUT lifecycle/ttl", json!({ "ttl": 0 })),
        ("PUT lifecycle/idle", json!({})),
        ("PUT lifecycle/idle", json!({ "suspend_after": 119 })),
        ("PUT lifecycle/idle", json!({ "suspend_after": 120, "stop_after": 3599 })),
        ("PUT lifecycle/idle", json!("15m")),
    ] {
        let (method, path) = line.split_once(' ').expect("two words");
        let full = format!("{method} /workspace/{id}/{path}");
        let answer = front.call(As::Admin, &full, Some(body.clone())).await;
        text.push_str(&format!(
            "{line} {body}\n  {} {} {}\n  {}\n",
            answer.status.as_u16(),
            answer.body["code"],
            answer.body["message"],
            answer.body["details"],
        ));
    }
    let after = send(&mut front, &format!("GET /workspace/{id}/lifecycle"), None).await;
    assert_eq!(before, after);
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn a_stop_that_nobody_asked_for_is_not_shown_as_the_users() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "image": "base" })).await;
    let number = skerry_api::ids::parse_workspace_id(&id).expect("an id");
    front.test.node.end_vm(number, VmExit::PoweredOff);
    front.until(&id, |workspace| workspace.state == State::Stopped).await;
    let line = format!("GET /workspace/{id}");
    let ended = send(&mut front, &line, None).await;
    assert_eq!(ended["workspace"]["info"]["user_requested_stop"], false);
    send(&mut front, &format!("POST /workspace/{id}/start"), None).await;
    let stopped = send(&mut front, &format!("POST /workspace/{id}/stop"), None).await;
    assert_eq!(stopped["workspace"]["info"]["user_requested_stop"], true);
}

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAmwHBWfYXtYs4ZUu6kd2aXYuQxTJ2lzGWnNNPM ada@laptop";

#[tokio::test]
async fn ssh_is_told_as_clients_take_it_apart_and_a_key_is_set() {
    let mut front = Front::open_with_ssh(2222).await;
    let id = create(&mut front, json!({ "image": "base" })).await;
    let path = format!("/workspace/{id}/ssh");
    let before = send(&mut front, &format!("GET {path}"), None).await;
    assert_eq!(before["ssh_key_set"], false);
    let key = json!({ "public_key": KEY, "user": "root" });
    for _ in 0..2 {
        let set = send(&mut front, &format!("POST {path}/key"), Some(key.clone())).await;
        assert_eq!(set["ssh_key_set"], true);
    }
    insta::assert_json_snapshot!(send(&mut front, &format!("GET {path}"), None).await);
    let details = send(&mut front, &format!("GET /workspace/{id}/details"), None).await;
    let details = &details["workspace"];
    assert_eq!(details["ssh"]["ssh_id"], json!(id));
    assert_eq!(details["access"]["ssh_enabled"], true);
    for (line, body, status) in [
        (format!("POST {path}/key"), json!({}), 400),
        (format!("POST {path}/key"), json!({ "public_key": "none" }), 400),
        (format!("POST {path}/password"), json!({}), 400),
        (format!("POST {path}/password"), json!({ "password": "short" }), 400),
        (format!("POST {path}/password"), json!({ "password": "long enough", "user": "A b" }), 400),
    ] {
        let answer = front.call(As::Admin, &line, Some(body)).await;
        assert_eq!(answer.status.as_u16(), status, "{line}: {}", answer.body);
    }
    let other = front.call(As::Other, &format!("GET {path}"), None).await;
    assert_eq!(other.status.as_u16(), 404);
    // Somebody else's key is nobody else's.
    let body = json!({ "image": "base" });
    let made = front.call(As::Other, "POST /workspace", Some(body)).await;
    let theirs = made.body["workspace"]["id"].as_str().expect("an id").to_owned();
    let taken =
        front.call(As::Other, &format!("POST /workspace/{theirs}/ssh/key"), Some(key)).await;
    assert_eq!(taken.status.as_u16(), 409, "{}", taken.body);
}

#[tokio::test]
async fn a_password_is_told_once_changed_and_gone_when_ssh_is_switched_off() {
    let mut front = Front::open_with_ssh(2222).await;
    let body = json!({ "image": "base", "config": { "ssh_access": true } });
    let made = front.call(As::Admin, "POST /workspace", Some(body)).await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.body);
    let is_password = |told: &Value| told.as_str().is_some_and(|told| told.len() == 24);
    assert!(is_password(&made.body["ssh_password"]), "{}", made.body);
    let id = made.body["workspace"]["id"].as_str().expect("an id").to_owned();
    let path = format!("/workspace/{id}/ssh");
    let state = |told: &Value| {
        let of = |name: &str| told[name].as_bool();
        [of("ssh_enabled"), of("password_auth_enabled"), of("ssh_password_changed")]
    };
    // It is shown no more, and a second `enable` makes no other.
    for line in [format!("GET {path}"), format!("POST {path}/enable")] {
        let told = send(&mut front, &line, None).await;
        assert_eq!(told["ssh_password"], Value::Null, "{line}");
        assert_eq!(told["auth_methods"], json!(["publickey", "password"]));
        assert_eq!(state(&told), [Some(true), Some(true), Some(false)]);
    }
    let chosen = json!({ "password": "correct horse" });
    let told = send(&mut front, &format!("POST {path}/password"), Some(chosen.clone())).await;
    assert_eq!(state(&told), [Some(true), Some(true), Some(true)]);
    assert!(!told.to_string().contains("horse"), "{told}");

    let off = send(&mut front, &format!("POST {path}/disable"), None).await;
    assert_eq!(off, json!({ "success": true }));
    insta::assert_json_snapshot!(send(&mut front, &format!("GET {path}"), None).await);
    let details = send(&mut front, &format!("GET /workspace/{id}/details"), None).await;
    assert_eq!(details["workspace"]["ssh"]["ssh_enabled"], false);
    let listed = send(&mut front, "GET /workspace", None).await;
    assert_eq!(listed["workspaces"][0]["access"]["ssh_enabled"], false);
    let refused = front.call(As::Admin, &format!("POST {path}/password"), Some(chosen)).await;
    assert_eq!(refused.status.as_u16(), 409, "{}", refused.body);
    let on = send(&mut front, &format!("POST {path}/enable"), None).await;
    assert!(is_password(&on["ssh_password"]), "{on}");
    assert_ne!(on["ssh_password"], made.body["ssh_password"]);
    for line in ["disable", "enable", "password"] {
        let body = json!({ "password": "correct horse" });
        let other = front.call(As::Other, &format!("POST {path}/{line}"), Some(body)).await;
        assert_eq!(other.status.as_u16(), 404, "{line}");
    }
}

#[tokio::test]
async fn a_server_without_ssh_says_so() {
    let mut front = Front::open().await;
    let body = json!({ "image": "base", "config": { "ssh_access": true } });
    let refused = front.call(As::Admin, "POST /workspace", Some(body)).await;
    assert_eq!(refused.body["details"]["field"], "config.ssh_access", "{}", refused.body);
    let id = create(&mut front, json!({ "image": "base" })).await;
    let shown = send(&mut front, &format!("GET /workspace/{id}/ssh"), None).await;
    assert_eq!((&shown["supported"], &shown["connection"]), (&json!(false), &Value::Null));
    let enabled = front.call(As::Admin, &format!("POST /workspace/{id}/ssh/enable"), None).await;
    assert_eq!(enabled.status.as_u16(), 501);
}
