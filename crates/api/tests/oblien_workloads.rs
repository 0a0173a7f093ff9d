//! Oblien's workloads. Each snapshot is a transcript of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::time::Duration;

use front::{As, Front};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(60);

async fn create(front: &mut Front, config: Value) -> String {
    let body = json!({ "name": "host", "image": "base", "config": config });
    let answer = front.call(As::Admin, "POST /workspace", Some(body)).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    answer.body["workspace"]["id"].as_str().expect("an id").to_owned()
}

async fn get(front: &mut Front, line: &str) -> Value {
    let answer = front.call(As::Admin, line, None).await;
    assert_eq!(answer.status, 200, "{line}: {}", answer.body);
    answer.body
}

/// Asks until the workload has this status: each answer is the guest's.
async fn until(front: &mut Front, workspace: &str, name: &str, status: &str) -> Value {
    let asked = async {
        loop {
            let line = format!("GET /workspace/{workspace}/workloads/{name}");
            let answer = front.beside(As::Admin, &line, None).await;
            if answer.body["status"] == status {
                return answer.body;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, asked).await.expect("in time")
}

#[tokio::test]
async fn the_workloads_of_a_create_request_run_and_its_command_is_the_one_called_main() {
    let mut front = Front::open().await;
    let config = json!({
        "cmd": ["serve", "main"],
        "workloads": [
            { "cmd": ["serve", "b"], "name": "b", "env": ["A=hunter2"], "restart_policy": "always" },
        ],
    });
    let id = create(&mut front, config).await;
    let main = until(&mut front, &id, "main", "running").await;
    assert_eq!((&main["vm_on_exit"], &main["cmd"]), (&json!("exit"), &json!(["serve", "main"])));
    let b = until(&mut front, &id, "b", "running").await;
    assert_eq!((&b["restart_policy"], &b["env_keys"]), (&json!("always"), &json!(["A"])));
    assert!(!b.to_string().contains("hunter2"));
    let listed =
        get(&mut front, &format!("GET /workspace/{id}/workloads?states=running&name=b")).await;
    assert_eq!(listed["workloads"].as_array().map(Vec::len), Some(1));
    assert_eq!(listed["workloads"][0]["id"], b["id"]);
}

#[tokio::test]
async fn a_workload_is_made_found_by_id_and_name_changed_stopped_and_deleted() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({})).await;
    let all = format!("/workspace/{id}/workloads");
    let body = json!({
        "cmd": ["serve", "app"], "name": "app", "restart_policy": "on-failure", "max_restarts": 3,
        "restart_delay": 2, "restart_backoff": false, "working_dir": "/srv", "user": "developer",
        "vm_on_exit": "", "max_log_size_mb": 2, "labels": { "tier": "web" },
    });
    let made = front.call(As::Admin, &format!("POST {all}"), Some(body)).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let shown = until(&mut front, &id, "app", "running").await;
    let by_id = shown["id"].as_str().expect("an id");
    assert_eq!(get(&mut front, &format!("GET {all}/{by_id}")).await["workload"], shown["workload"]);
    let patch = json!({ "name": "web" });
    let line = format!("PATCH {all}/app");
    let renamed = front.call(As::Admin, &line, Some(patch)).await.body;
    assert_eq!(
        (&renamed["name"], &renamed["cmd"], &renamed["restart_delay"]),
        (&json!("web"), &shown["cmd"], &json!(2)),
    );
    front.call(As::Admin, &format!("POST {all}/web/stop"), None).await;
    let stopped = until(&mut front, &id, "web", "stopped").await;
    assert_eq!((&stopped["pid"], &stopped["enabled"]), (&Value::Null, &json!(false)));
    front.call(As::Admin, &format!("POST {all}/web/start"), None).await;
    until(&mut front, &id, "web", "running").await;
    assert_eq!(get(&mut front, &format!("GET {all}/web/status")).await["status"], "running");
    assert_eq!(get(&mut front, &format!("GET {all}/web/stats")).await["state"], "running");
    assert_eq!(front.call(As::Admin, &format!("DELETE {all}/web"), None).await.status, 200);
    let gone = front.call(As::Admin, &format!("GET {all}/web"), None).await;
    assert_eq!((gone.status.as_u16(), &gone.body["code"]), (404, &json!("not_found")));
    let deleted = front.call(As::Admin, &format!("DELETE {all}"), None).await;
    assert_eq!((deleted.status.as_u16(), &deleted.body["deleted"]), (200, &json!(0)));
}

#[tokio::test]
async fn what_a_workload_has_said_is_one_text_of_lines_with_times() {
    let mut front = Front::open().await;
    let id =
        create(&mut front, json!({ "workloads": [{ "cmd": ["echo", "hello"], "name": "job" }] }));
    let id = id.await;
    until(&mut front, &id, "job", "exited").await;
    let body = get(&mut front, &format!("GET /workspace/{id}/workloads/job/logs?tail=5")).await;
    assert_eq!(body["logs"], "[2026-01-01T00:00:00Z] stdout: hello\n");
    let bad = front
        .call(As::Admin, &format!("GET /workspace/{id}/workloads/job/logs?tail=0"), None)
        .await;
    assert_eq!((bad.status.as_u16(), &bad.body["details"]["field"]), (400, &json!("tail")));
}

#[tokio::test]
async fn what_is_refused_of_a_workload() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({})).await;
    let all = format!("/workspace/{id}/workloads");
    for body in [
        json!({}),
        json!({ "cmd": ["x"], "name": "no spaces" }),
        json!({ "cmd": ["x"], "vm_on_exit": "explode" }),
        json!({ "cmd": ["x"], "restart_policy": "sometimes" }),
        json!({ "cmd": ["x"], "log_path": "/var/log/x" }),
        json!({ "cmd": ["x"], "target": "docker" }),
        json!({ "cmd": ["x"], "working_dir": "here" }),
        json!({ "cmd": ["x"], "max_log_size_mb": 101 }),
        json!({ "cmd": ["x"], "env": ["novalue"] }),
    ] {
        front.call(As::Admin, &format!("POST {all}"), Some(body)).await;
    }
    front
        .call(As::Admin, &format!("POST {all}"), Some(json!({ "cmd": ["serve"], "name": "a" })))
        .await;
    front
        .call(As::Admin, &format!("POST {all}"), Some(json!({ "cmd": ["serve"], "name": "a" })))
        .await;
    front.call(As::Admin, &format!("PATCH {all}/a"), Some(json!({ "image": "nginx" }))).await;
    front.call(As::Admin, &format!("PATCH {all}/a"), Some(json!({ "colour": "red" }))).await;
    front.call(As::Other, &format!("GET {all}"), None).await;
    let config = json!({ "workloads": [{ "name": "no command" }] });
    let body = json!({ "image": "base", "config": config });
    front.call(As::Admin, "POST /workspace", Some(body)).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn numbers_sizes_and_logs_of_a_workspace_are_read() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "cpus": 2, "memory_mb": 1024 })).await;
    get(&mut front, &format!("GET /workspace/{id}/resources")).await;
    get(&mut front, &format!("GET /workspace/{id}/stats")).await;
    let logs = get(&mut front, &format!("GET /workspace/{id}/logs?source=cmd&tail_lines=5")).await;
    assert!(logs["logs"].is_array());
    let bad = front.call(As::Admin, &format!("GET /workspace/{id}/logs?source=x"), None).await;
    assert_eq!((bad.status.as_u16(), &bad.body["details"]["field"]), (400, &json!("source")));
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn sizes_are_changed_at_once_at_the_next_start_or_by_one() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "memory_mb": 512 })).await;
    let all = format!("/workspace/{id}/resources");
    for (verb, body) in [
        ("PATCH", json!({ "disk_size_mb": 1024 })),
        ("PUT", json!({ "memory_mb": 1024 })),
        ("PUT", json!({ "memory_mb": 1024, "cpus": 2, "apply": true })),
        ("PUT", json!({ "memory_mb": 1024, "cpus": 2 })),
        ("PUT", json!({ "cpus": 4, "disk_size_mb": 512, "apply": true })),
        ("PUT", json!({ "cpus": 33 })),
        ("PUT", json!({ "disk_size_mb": 512 })),
        ("PATCH", json!({ "gpus": 1 })),
    ] {
        front.call(As::Admin, &format!("{verb} {all}"), Some(body)).await;
    }
    // Refused, it runs again as it was.
    let shown = get(&mut front, &format!("GET {all}")).await;
    assert_eq!(
        (&shown["resources"]["status"], &shown["resources"]["cpus"]),
        (&json!("running"), &json!(2))
    );
    front.beside(As::Admin, &format!("POST /workspace/{id}/stop"), None).await;
    front.call(As::Admin, &format!("PATCH {all}"), Some(json!({ "cpus": 1 }))).await;
    front.call(As::Other, &format!("PATCH {all}"), Some(json!({ "cpus": 1 }))).await;
    front.call(As::Admin, &format!("GET /workspace/{id}/stats/stream"), None).await;
    insta::assert_snapshot!(front.transcript());
}
