//! Rigbox's service specs, setup scripts and templates, and what becomes of them in workspaces: success,
//! bad input, another tenant. That no route answers without a credential is in `rigbox.rs`.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::time::Duration;

use front::{As, Front};
use http::StatusCode;
use serde_json::{Value, json};
use skerry_control::internal_api::WorkloadEnd;

const BASE: &str = "/api/v1";
const NOBODYS: &str = "00000000-0000-4000-8000-000000000000";
const BOUND: Duration = Duration::from_secs(60);

async fn call(front: &mut Front, caller: As, line: &str, body: Option<Value>) -> front::Answer {
    front.call(caller, &line.replacen(' ', &format!(" {BASE}"), 1), body).await
}

async fn admin(front: &mut Front, line: &str, body: Option<Value>) -> front::Answer {
    call(front, As::Admin, line, body).await
}

async fn make(front: &mut Front, path: &str, body: Value) -> String {
    let made = admin(front, &format!("POST {path}"), Some(body)).await;
    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
    let id = made.body.get("id").or_else(|| made.body.pointer("/vm/id"));
    id.and_then(Value::as_str).expect("an id").to_owned()
}

/// Asks, outside the transcript, until the answer is as wanted.
async fn until(front: &Front, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let line = format!("GET {BASE}{path}");
    let asked = async {
        loop {
            let answer = front.beside(As::Admin, &line, None).await;
            if wanted(&answer.body) {
                return answer.body;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, asked).await.expect("as wanted in time")
}

#[tokio::test]
async fn a_service_spec_is_made_listed_changed_and_deleted() {
    let mut front = Front::open().await;
    let body = json!({ "name": "web", "exec_start": "/usr/bin/python3 -m http.server 8000" });
    let plain = make(&mut front, "/service-specs", body).await;
    let full = json!({
        "name": "worker", "exec_start": "serve --queue 'my jobs'", "restart_policy": "always",
        "env_vars": { "QUEUE": "50% \"fast\"", "TOKEN": "t" }, "auto_enable": true,
        "environment_file": "-/home/developer/.env", "setup_script": "echo prepared",
    });
    let full = make(&mut front, "/service-specs", full).await;
    admin(&mut front, "GET /service-specs", None).await;
    let path = format!("/service-specs/{full}");
    admin(&mut front, &format!("GET {path}"), None).await;
    let change = json!({
        "name": "queue", "exec_start": "serve", "env_vars": {}, "restart_policy": "no",
        "auto_enable": false, "environment_file": "", "setup_script": "",
    });
    admin(&mut front, &format!("PUT {path}"), Some(change)).await;
    admin(&mut front, &format!("PUT {path}"), Some(json!({}))).await;
    admin(&mut front, &format!("DELETE {path}"), None).await;
    admin(&mut front, &format!("DELETE {path}"), None).await;
    admin(&mut front, &format!("GET {path}"), None).await;
    let line = format!("GET /service-specs/{plain}");
    call(&mut front, As::Other, &line, None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_setup_script_is_made_listed_changed_and_deleted() {
    let mut front = Front::open().await;
    let body = json!({ "name": "Later", "content": "echo later", "script_order": 2 });
    make(&mut front, "/setup-scripts", body).await;
    let body = json!({
        "name": "First", "content": "#!/bin/bash\necho first\n", "run_on": "every_start",
        "script_order": -1,
    });
    let first = make(&mut front, "/setup-scripts", body).await;
    admin(&mut front, "GET /setup-scripts", None).await;
    let path = format!("/setup-scripts/{first}");
    let change = json!({ "content": "echo changed", "run_on": "first_boot" });
    admin(&mut front, &format!("PUT {path}"), Some(change)).await;
    admin(&mut front, &format!("GET {path}"), None).await;
    call(&mut front, As::Other, &format!("DELETE {path}"), None).await;
    call(&mut front, As::Other, "GET /setup-scripts", None).await;
    admin(&mut front, &format!("DELETE {path}"), None).await;
    admin(&mut front, &format!("PUT {path}"), Some(json!({ "name": "x" }))).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn what_is_wrong_with_a_spec_or_a_script_is_named() {
    let mut front = Front::open().await;
    for body in [
        json!({}),
        json!({ "name": "web" }),
        json!({ "name": "a b", "exec_start": "serve" }),
        json!({ "name": "web", "exec_start": "a\nb" }),
        json!({ "name": "web", "exec_start": "a 'b" }),
        json!({ "name": "web", "exec_start": "serve", "restart_policy": "sometimes" }),
        json!({ "name": "web", "exec_start": "serve", "env_vars": { "a b": "c" } }),
        json!({ "name": "web", "exec_start": "serve", "environment_file": ".env" }),
        json!({ "name": "web", "exec_start": "serve", "color": "red" }),
    ] {
        admin(&mut front, "POST /service-specs", Some(body)).await;
    }
    for body in [
        json!({ "content": "true" }),
        json!({ "name": "x" }),
        json!({ "name": "x", "content": "" }),
        json!({ "name": "x", "content": "true", "run_on": "sundays" }),
        json!({ "name": "x", "content": "true", "script_order": 3_000_000_000_u32 }),
    ] {
        admin(&mut front, "POST /setup-scripts", Some(body)).await;
    }
    make(&mut front, "/setup-scripts", json!({ "name": "x", "content": "true" })).await;
    let again = json!({ "name": "x", "content": "true" });
    admin(&mut front, "POST /setup-scripts", Some(again)).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_workspace_runs_what_it_names_and_shows_it() {
    let mut front = Front::open().await;
    let content = "echo one\necho two\nexit 3";
    let first = json!({ "name": "First", "content": content });
    let first = make(&mut front, "/setup-scripts", first).await;
    let each = json!({ "name": "Each", "content": "echo again", "run_on": "every_start" });
    let each = make(&mut front, "/setup-scripts", each).await;
    let web = json!({ "name": "web", "exec_start": "serve --port 80", "auto_enable": true,
                      "restart_policy": "always" });
    let web = make(&mut front, "/service-specs", web).await;
    let idle = json!({ "name": "idle", "exec_start": "serve" });
    let idle = make(&mut front, "/service-specs", idle).await;
    let body = json!({ "name": "box", "setup_script_ids": [first, each],
                       "service_spec_ids": [web, idle] });
    let id = make(&mut front, "/workspaces", body).await;
    let item = format!("/workspaces/{id}");
    admin(&mut front, &format!("GET {item}/services"), None).await;
    admin(&mut front, &format!("GET {item}/jobs"), None).await;
    admin(&mut front, &format!("POST {item}/start"), None).await;
    let workspace = front.settled(&id).await;
    let services = format!("{item}/services");
    until(&front, &services, |answer| answer["services"][0]["status"] == "healthy").await;
    admin(&mut front, &format!("GET {services}"), None).await;
    let jobs = admin(&mut front, &format!("GET {item}/jobs"), None).await;
    let job = jobs.body["jobs"][0]["job_id"].as_str().expect("an id").to_owned();
    admin(&mut front, &format!("GET {item}/jobs/{job}"), None).await;
    admin(&mut front, &format!("POST {item}/jobs/{job}/cancel"), None).await;
    admin(&mut front, &format!("GET {item}/jobs/{NOBODYS}"), None).await;
    call(&mut front, As::Other, &format!("GET {item}/jobs/{job}"), None).await;

    let guest = front.test.node.sim_guest(workspace.id).expect("a guest");
    guest.sim_supervisor().end("service.web", WorkloadEnd::Code(9));
    until(&front, &services, |answer| answer["services"][0]["status"] == "unhealthy").await;
    admin(&mut front, &format!("GET {services}/web"), None).await;
    admin(&mut front, &format!("GET {services}/web/logs?lines=5"), None).await;
    admin(&mut front, &format!("GET {services}/web/logs?lines=none"), None).await;
    admin(&mut front, &format!("GET {services}/none"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_job_that_runs_is_cancelled() {
    let mut front = Front::open().await;
    let long = json!({ "name": "Long", "content": "sleep 1000" });
    let long = make(&mut front, "/setup-scripts", long).await;
    let id = make(&mut front, "/workspaces", json!({ "name": "x", "setup_script_ids": [long] }));
    let item = format!("/workspaces/{}", id.await);
    admin(&mut front, &format!("POST {item}/start"), None).await;
    let is = |status: &'static str| move |list: &Value| list["jobs"][0]["status"] == status;
    let jobs = format!("{item}/jobs");
    let listed = until(&front, &jobs, |list| !list["jobs"][0]["started_at"].is_null()).await;
    assert_eq!(listed["jobs"][0]["status"], "running");
    let job = listed["jobs"][0]["job_id"].as_str().expect("an id").to_owned();
    let cancelled = admin(&mut front, &format!("POST {jobs}/{job}/cancel"), None).await;
    assert_eq!(cancelled.body["status"], "cancelled");
    until(&front, &jobs, is("cancelled")).await;
    let again = admin(&mut front, &format!("POST {jobs}/{job}/cancel"), None).await;
    assert_eq!(again.status, StatusCode::OK);
}

#[tokio::test]
async fn ids_of_nothing_are_refused_by_their_field_and_nothing_is_made() {
    let mut front = Front::open().await;
    let theirs = json!({ "name": "x", "content": "true" });
    let theirs = call(&mut front, As::Other, "POST /setup-scripts", Some(theirs)).await;
    for body in [
        json!({ "name": "x", "setup_script_ids": [NOBODYS] }),
        json!({ "name": "x", "setup_script_ids": [theirs.body["id"]] }),
        json!({ "name": "x", "service_spec_ids": ["svc"] }),
        json!({ "name": "x", "service_spec_ids": [NOBODYS] }),
        json!({ "name": "x", "template_id": "nothing" }),
        json!({ "name": "x", "template_id": NOBODYS }),
        json!({ "name": "x", "template_id": "base", "image": "node-20" }),
    ] {
        admin(&mut front, "POST /workspaces", Some(body)).await;
    }
    admin(&mut front, "GET /workspaces", None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_template_is_made_used_changed_and_deleted() {
    let mut front = Front::open().await;
    let script = json!({ "name": "tools", "content": "true" });
    let script = make(&mut front, "/setup-scripts", script).await;
    let body = json!({
        "name": "Node, prepared", "description": "with the tools", "icon": "box",
        "category": "team", "image": "node-20", "ram_mb": 2048, "vcpu_count": 2,
        "disk_size_mb": 4096, "setup_script_ids": [script],
    });
    let id = make(&mut front, "/templates", body).await;
    admin(&mut front, "GET /templates", None).await;
    call(&mut front, As::Nobody, "GET /templates", None).await;
    call(&mut front, As::Stranger, "GET /templates", None).await;
    admin(&mut front, "GET /templates/base", None).await;
    call(&mut front, As::Other, &format!("GET /templates/{id}"), None).await;
    // Asked for below is raised, and stored so.
    let body = json!({ "name": "small", "template_id": id, "ram_mb": 1, "vcpu_count": 0,
                       "disk_size_mb": 8192 });
    let vm = make(&mut front, "/workspaces", body).await;
    let resources = format!("PUT /workspaces/{vm}/resources");
    admin(&mut front, &resources, Some(json!({ "ram_mb": 512 }))).await;
    admin(&mut front, &resources, Some(json!({ "ram_mb": 4096 }))).await;
    let path = format!("/templates/{id}");
    admin(&mut front, &format!("PUT {path}"), Some(json!({ "ram_mb": 1024 }))).await;
    for body in [
        json!({ "ram_mb": 1 }),
        json!({ "ram_mb": -1 }),
        json!({ "setup_script_ids": [NOBODYS] }),
        json!({ "image": "" }),
    ] {
        admin(&mut front, &format!("PUT {path}"), Some(body)).await;
    }
    admin(&mut front, "PUT /templates/base", Some(json!({ "ram_mb": 1024 }))).await;
    admin(&mut front, &format!("DELETE {path}"), None).await;
    admin(&mut front, &format!("DELETE {path}"), None).await;
    admin(&mut front, &format!("GET /workspaces/{vm}"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn the_template_of_an_image_gives_its_sizes() {
    let mut front = Front::open().await;
    let made = admin(
        &mut front,
        "POST /workspaces",
        Some(json!({ "name": "x", "template_id": "base", "disk_size_mb": 1 })),
    )
    .await;
    let vm = &made.body["vm"];
    assert_eq!((&vm["ram_mb"], &vm["disk_size_mb"]), (&json!(512), &json!(3072)));
    assert_eq!((&vm["image"], &vm["template_id"]), (&json!("base"), &json!("base")));
}
