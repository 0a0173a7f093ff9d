//! Workloads in the native API. The snapshot is a transcript of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::time::Duration;

use front::{As, Front};
use serde_json::json;

const BOUND: Duration = Duration::from_secs(60);

async fn until(front: &mut Front, name: &str, state: &str) {
    let asked = async {
        loop {
            let line = format!("GET /skerry/v1/workspaces/box/workloads/{name}");
            let answer = front.beside(As::Admin, &line, None).await;
            if answer.body["state"] == state {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, asked).await.expect("in time");
}

#[tokio::test]
async fn workloads_from_their_creation_to_their_removal() {
    let mut front = Front::open().await;
    let body = json!({
        "slug": "box",
        "workloads": [{ "name": "job", "kind": "setup_once", "command": ["echo", "prepared"] }],
    });
    let made = front.beside(As::Admin, "POST /skerry/v1/workspaces?wait=60", Some(body)).await;
    assert_eq!(made.status, 201, "{}", made.body);
    until(&mut front, "job", "ended").await;
    let all = "/skerry/v1/workspaces/box/workloads";
    let body = json!({
        "name": "app", "command": ["serve"], "env": { "TOKEN": "hunter2" }, "on_exit": "stop",
        "restart": { "mode": "always", "max_restarts": 5 },
    });
    let made = front.beside(As::Admin, &format!("POST {all}"), Some(body)).await;
    assert_eq!(made.status, 201, "{}", made.body);
    assert!(!made.body.to_string().contains("hunter2"));
    until(&mut front, "app", "running").await;
    front.call(As::Admin, &format!("GET {all}"), None).await;
    front.call(As::Admin, &format!("PATCH {all}/app"), Some(json!({ "user": "developer" }))).await;
    front.beside(As::Admin, &format!("POST {all}/app/stop"), None).await;
    until(&mut front, "app", "stopped").await;
    front.beside(As::Admin, &format!("POST {all}/app/restart"), None).await;
    until(&mut front, "app", "running").await;
    front.call(As::Admin, &format!("GET {all}/job/log?tail=10"), None).await;
    front.call(As::Admin, &format!("GET {all}/job/log?tail=10&after=1"), None).await;
    front.call(As::Admin, &format!("GET {all}/job/log?after=1&wait_seconds=21"), None).await;
    front.call(As::Admin, &format!("DELETE {all}/job/log"), None).await;
    front.call(As::Admin, &format!("DELETE {all}/app"), None).await;
    front.call(As::Admin, &format!("GET {all}/app"), None).await;
    front.call(As::Admin, &format!("POST {all}"), Some(json!({ "command": [] }))).await;
    front.call(As::Other, &format!("GET {all}"), None).await;
    insta::assert_snapshot!(front.transcript());
}
