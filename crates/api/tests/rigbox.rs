//! Every route of the Rigbox dialect: success, bad input, another tenant, no credential. Each snapshot
//! is a transcript of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::time::Duration;

use front::{As, Front};
use http::StatusCode;
use serde_json::{Value, json};
use skerry_control::{
    internal_api::{NodeError, VmExit},
    sim_node::Point,
    testing,
};
use skerry_model::{Pool, State};

const BASE: &str = "/api/v1";

async fn create(front: &mut Front, body: Value) -> String {
    let answer = front.call(As::Admin, &format!("POST {BASE}/workspaces"), Some(body)).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    answer.body["vm"]["id"].as_str().expect("an id").to_owned()
}

async fn post(front: &mut Front, id: &str, verb: &str) -> Value {
    front.call(As::Admin, &format!("POST {BASE}/workspaces/{id}/{verb}"), None).await.body
}

async fn get(front: &mut Front, id: &str) -> Value {
    front.call(As::Admin, &format!("GET {BASE}/workspaces/{id}"), None).await.body
}

#[tokio::test]
async fn a_workspace_is_created_started_stopped_and_deleted() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "my-project" })).await;
    post(&mut front, &id, "start").await;
    front.settled(&id).await;
    get(&mut front, &id).await;
    post(&mut front, &id, "stop").await;
    front.settled(&id).await;
    get(&mut front, &id).await;
    front.call(As::Admin, &format!("DELETE {BASE}/workspaces/{id}?force=true"), None).await;
    front.gone(&id).await;
    get(&mut front, &id).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn create_takes_sizes_and_image_and_accepts_fields_that_mean_nothing() {
    let mut front = Front::open().await;
    create(
        &mut front,
        json!({
            "name": "full", "image": "node-20", "ram_mb": 2048, "vcpu_count": 2,
            "disk_size_mb": 4096, "template_id": null, "catalog_ids": [],
            "service_spec_ids": null, "setup_script_ids": [],
        }),
    )
    .await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn create_refuses_bad_input_and_changes_nothing() {
    let mut front = Front::open().await;
    let line = format!("POST {BASE}/workspaces");
    for body in [
        json!({}),
        json!({ "name": "" }),
        json!({ "name": 7 }),
        json!({ "name": "x", "template_id": "nothing" }),
        json!({ "name": "x", "catalog_ids": ["vscode"] }),
        json!({ "name": "x", "service_spec_ids": ["svc"] }),
        json!({ "name": "x", "setup_script_ids": ["ss"] }),
        json!({ "name": "x", "image": "windows" }),
        json!({ "name": "x", "ram_mb": 1 }),
        json!({ "name": "x", "ram_mb": -1 }),
        json!({ "name": "x", "vcpu_count": 0 }),
        json!({ "name": "x", "vcpu_count": 33 }),
        json!({ "name": "x", "disk_size_mb": 4_000_000_000_u32 }),
        json!({ "name": "x", "color": "red" }),
        json!(["x"]),
    ] {
        front.call(As::Admin, &line, Some(body)).await;
    }
    front.call_on("localhost", As::Admin, &line, Some("{\"name\": ")).await;
    front.call_on("localhost", As::Admin, &line, None).await;
    front.call(As::Admin, &format!("GET {BASE}/workspaces"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn the_plan_is_kept_with_402() {
    let mut config = testing::config();
    config.plan.max_workspaces = 2;
    config.plan.running_pool = Pool { vcpu_count: 1, ..config.plan.running_pool };
    let mut front = Front::open_with(config).await;
    let first = create(&mut front, json!({ "name": "first" })).await;
    let second = create(&mut front, json!({ "name": "second" })).await;
    let line = format!("POST {BASE}/workspaces");
    front.call(As::Admin, &line, Some(json!({ "name": "third" }))).await;
    post(&mut front, &first, "start").await;
    front.settled(&first).await;
    post(&mut front, &second, "start").await;
    front.call(As::Admin, &format!("GET {BASE}/users/me/limits"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_call_that_the_status_does_not_permit_changes_nothing() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "x" })).await;
    post(&mut front, &id, "stop").await;
    post(&mut front, &id, "cancel").await;
    post(&mut front, &id, "retry").await;
    post(&mut front, &id, "start").await;
    front.settled(&id).await;
    post(&mut front, &id, "start").await;
    post(&mut front, &id, "cancel").await;
    let line = format!("PUT {BASE}/workspaces/{id}/resources");
    front.call(As::Admin, &line, Some(json!({ "ram_mb": 2048 }))).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn cancel_gives_up_a_start_under_way() {
    let mut front = Front::open().await;
    front.test.node.hang(Point::EnsureRunning);
    let id = create(&mut front, json!({ "name": "x" })).await;
    post(&mut front, &id, "start").await;
    front.until(&id, |workspace| workspace.state == State::Starting).await;
    get(&mut front, &id).await;
    post(&mut front, &id, "cancel").await;
    let settled = front.settled(&id).await;
    assert_eq!(settled.state, State::Stopped);
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_failed_start_is_shown_and_retried() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "x" })).await;
    for _ in 0..2 {
        let late = NodeError::Timeout { step: "hello", bound_seconds: 60 };
        front.test.node.fail_next(Point::EnsureRunning, late);
    }
    post(&mut front, &id, "start").await;
    front.settled(&id).await;
    get(&mut front, &id).await;
    post(&mut front, &id, "retry").await;
    front.settled(&id).await;
    get(&mut front, &id).await;
    post(&mut front, &id, "retry").await;
    front.settled(&id).await;
    get(&mut front, &id).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_failure_that_would_repeat_is_not_retried() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "x" })).await;
    front
        .test
        .node
        .fail_next(Point::EnsureRunning, NodeError::NoSuchImage("sha256:gone".to_owned()));
    post(&mut front, &id, "start").await;
    front.settled(&id).await;
    get(&mut front, &id).await;
    post(&mut front, &id, "retry").await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_vm_that_dies_is_one_failed_attempt() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "x" })).await;
    post(&mut front, &id, "start").await;
    let running = front.settled(&id).await;
    front.test.node.end_vm(running.id, VmExit::Crashed { reason: "signal 11".to_owned() });
    front.until(&id, |workspace| matches!(workspace.state, State::Failed(_))).await;
    get(&mut front, &id).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn resources_change_while_there_is_no_vm_and_the_disk_only_grows() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "x" })).await;
    let line = format!("PUT {BASE}/workspaces/{id}/resources");
    for body in [
        json!({ "ram_mb": 2048, "vcpu_count": 2, "disk_size_mb": 8192 }),
        json!({ "ram_mb": 512, "disk_size_mb": null }),
        json!({ "disk_size_mb": 4096 }),
        json!({ "ram_mb": 64 }),
        json!({ "ram_mb": 100_000 }),
        json!({}),
        json!({ "ram": 1 }),
    ] {
        front.call(As::Admin, &line, Some(body)).await;
    }
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn the_environment_is_replaced_as_a_whole() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "x" })).await;
    let line = format!("POST {BASE}/workspaces/{id}/env");
    for body in [
        json!({ "env_vars": { "B": "2", "A": "1" } }),
        json!({ "env_vars": { "C": "3" } }),
        json!({ "env_vars": { "1BAD": "x" } }),
        json!({ "env_vars": { "D": 4 } }),
        json!({}),
    ] {
        front.call(As::Admin, &line, Some(body)).await;
    }
    get(&mut front, &id).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_list_serves_clients_with_and_without_paging() {
    let mut front = Front::open().await;
    for name in ["one", "two", "three"] {
        create(&mut front, json!({ "name": name })).await;
        front.test.clock.advance(Duration::from_secs(1));
    }
    let names = |body: &Value, key: &str| -> Vec<String> {
        let items = body[key].as_array().expect("a list");
        items.iter().map(|vm| vm["name"].as_str().expect("a name").to_owned()).collect()
    };
    let all = front.call(As::Admin, &format!("GET {BASE}/workspaces"), None).await.body;
    assert_eq!(names(&all, "vms"), ["three", "two", "one"]);
    assert_eq!(names(&all, "items"), ["three", "two", "one"]);
    assert_eq!(all["next_cursor"], Value::Null);

    let line = format!("GET {BASE}/workspaces?max_results=2");
    let page = front.call(As::Admin, &line, None).await.body;
    assert_eq!(names(&page, "vms"), ["three", "two"]);
    let cursor = page["next_cursor"].as_str().expect("a cursor").to_owned();
    let rest = front.call(As::Admin, &format!("{line}&cursor={cursor}"), None).await.body;
    assert_eq!(names(&rest, "items"), ["one"]);
    assert_eq!(rest["next_cursor"], Value::Null);

    let bad = front.call(As::Admin, &format!("{line}&cursor=me"), None).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    let others = front.call(As::Other, &format!("GET {BASE}/workspaces"), None).await.body;
    assert_eq!(names(&others, "vms"), [""; 0]);
    insta::assert_snapshot!(bad.body);
}

#[tokio::test]
async fn metrics_are_measured_in_a_running_guest_only() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "x" })).await;
    let line = format!("GET {BASE}/workspaces/{id}/metrics");
    front.call(As::Admin, &line, None).await;
    post(&mut front, &id, "start").await;
    front.settled(&id).await;
    front.call(As::Admin, &line, None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn logs_are_numbered_lines() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "x" })).await;
    let line = format!("GET {BASE}/workspaces/{id}/logs");
    front.call(As::Admin, &line, None).await;
    for _ in 0..3 {
        post(&mut front, &id, "start").await;
        front.settled(&id).await;
        post(&mut front, &id, "stop").await;
        front.settled(&id).await;
    }
    for query in [
        "",
        "?lines=1",
        "?lines=1&direction=oldest",
        "?source=commands",
        "?lines=0",
        "?direction=up",
        "?source=journal",
        "?cursor=x",
    ] {
        front.call(As::Admin, &format!("{line}{query}"), None).await;
    }
    let exchanges = front.transcript().split("\n\n");
    let logs: Vec<_> = exchanges.filter(|exchange| exchange.contains("/logs")).collect();
    insta::assert_snapshot!(logs.join("\n\n"));
}

#[tokio::test]
async fn capacity_and_templates_are_public() {
    let mut front = Front::open().await;
    front.call(As::Nobody, &format!("GET {BASE}/capacity"), None).await;
    front.call(As::Nobody, &format!("GET {BASE}/templates"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked() {
    let mut front = Front::open().await;
    let line = format!("POST {BASE}/api-keys");
    let made = front.call(As::Admin, &line, Some(json!({ "name": "ci" }))).await.body;
    let id = made["id"].as_str().expect("an id").to_owned();
    front.test.clock.advance(Duration::from_secs(1));
    front.call(As::Admin, &line, None).await;
    front.call(As::Admin, &line, Some(json!({ "name": "" }))).await;
    front.call(As::Admin, &line, Some(json!({ "scope": "all" }))).await;

    // The use of a key is recorded behind the answer.
    let caller = front.test.caller().await;
    let recorded = async {
        loop {
            let keys = front.test.control.list_keys(&caller).await.expect("keys");
            if keys.iter().any(|key| key.last_used_at.is_some()) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), recorded).await.expect("recorded in time");

    front.call(As::Admin, &format!("GET {BASE}/api-keys"), None).await;
    front.call(As::Admin, &format!("GET {BASE}/api-keys?max_results=1"), None).await;
    front.call(As::Other, &format!("DELETE {BASE}/api-keys/{id}"), None).await;
    front.call(As::Admin, &format!("DELETE {BASE}/api-keys/{id}"), None).await;
    front.call(As::Admin, &format!("DELETE {BASE}/api-keys/{id}"), None).await;
    front.call(As::Admin, &format!("DELETE {BASE}/api-keys/me"), None).await;
    insta::assert_snapshot!(front.transcript());
}

/// Every route that needs a credential.
const PRIVATE: &[&str] = &[
    "GET /workspaces",
    "POST /workspaces",
    "GET /workspaces/{id}",
    "DELETE /workspaces/{id}",
    "POST /workspaces/{id}/start",
    "POST /workspaces/{id}/stop",
    "POST /workspaces/{id}/cancel",
    "POST /workspaces/{id}/retry",
    "PUT /workspaces/{id}/resources",
    "POST /workspaces/{id}/env",
    "GET /workspaces/{id}/metrics",
    "GET /workspaces/{id}/logs",
    "GET /users/me/limits",
    "GET /api-keys",
    "POST /api-keys",
    "DELETE /api-keys/00000000-0000-4000-8000-000000000000",
    "GET /apps",
    "POST /apps",
    "GET /apps/app-0000000000000000000000000",
    "PATCH /apps/app-0000000000000000000000000",
    "DELETE /apps/app-0000000000000000000000000",
    "PUT /apps/app-0000000000000000000000000/visibility",
    "GET /apps/app-0000000000000000000000000/health",
    "POST /templates",
    "GET /templates/base",
    "PUT /templates/base",
    "DELETE /templates/base",
    "GET /service-specs",
    "POST /service-specs",
    "GET /service-specs/00000000-0000-4000-8000-000000000000",
    "PUT /service-specs/00000000-0000-4000-8000-000000000000",
    "DELETE /service-specs/00000000-0000-4000-8000-000000000000",
    "GET /setup-scripts",
    "POST /setup-scripts",
    "GET /setup-scripts/00000000-0000-4000-8000-000000000000",
    "PUT /setup-scripts/00000000-0000-4000-8000-000000000000",
    "DELETE /setup-scripts/00000000-0000-4000-8000-000000000000",
    "GET /workspaces/{id}/services",
    "GET /workspaces/{id}/services/web",
    "GET /workspaces/{id}/services/web/logs",
    "GET /workspaces/{id}/jobs",
    "GET /workspaces/{id}/jobs/00000000-0000-4000-8000-000000000000",
    "POST /workspaces/{id}/jobs/00000000-0000-4000-8000-000000000000/cancel",
    "POST /apps/app-0000000000000000000000000/start",
    "POST /apps/app-0000000000000000000000000/stop",
    "POST /apps/app-0000000000000000000000000/restart",
    "GET /apps/app-0000000000000000000000000/logs",
    "GET /workspaces/{id}/listening-ports",
    "POST /workspaces/{id}/install-app",
    "POST /workspaces/{id}/reconcile-apps",
    "POST /quick-deploy",
    "GET /ssh-keys",
    "POST /ssh-keys",
    "DELETE /ssh-keys/00000000-0000-4000-8000-000000000000",
    "GET /workspaces/{id}/ssh-keys",
    "POST /workspaces/{id}/ssh-keys/sync",
    "GET /workspaces/{id}/snapshots",
    "POST /workspaces/{id}/snapshots",
    "DELETE /workspaces/{id}/snapshots/00000000-0000-4000-8000-000000000000",
    "POST /workspaces/{id}/snapshots/00000000-0000-4000-8000-000000000000/restore",
    "GET /snapshots",
    "DELETE /snapshots/00000000-0000-4000-8000-000000000000",
    "POST /snapshots/00000000-0000-4000-8000-000000000000/restore",
];

#[tokio::test]
async fn without_a_valid_credential_every_private_route_answers_401() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "x" })).await;
    let mut bodies = Vec::new();
    for route in PRIVATE {
        let line = route.replacen(' ', &format!(" {BASE}"), 1).replace("{id}", &id);
        for caller in [As::Nobody, As::Stranger] {
            let answer = front.call(caller, &line, None).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{line}");
            bodies.push(answer.body);
        }
    }
    bodies.dedup();
    insta::assert_json_snapshot!(bodies);
}

#[tokio::test]
async fn another_tenants_workspace_is_not_found() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "x" })).await;
    let mut bodies = Vec::new();
    for route in PRIVATE.iter().filter(|route| route.contains("{id}")) {
        let line = route.replacen(' ', &format!(" {BASE}"), 1);
        let body = line.contains("/resources").then(|| json!({ "ram_mb": 2048 }));
        let body = body.or_else(|| line.contains("/env").then(|| json!({ "env_vars": {} })));
        let install =
            line.contains("/install-app").then(|| json!({ "catalog_id": "static-files" }));
        let body = body.or(install);
        for id in [id.as_str(), "ws-0000000000000000000000000", "my-slug"] {
            let answer = front.call(As::Other, &line.replace("{id}", id), body.clone()).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{line}");
            bodies.push(answer.body);
        }
    }
    bodies.dedup();
    insta::assert_json_snapshot!(bodies);
}

#[tokio::test]
async fn every_prefix_and_every_form_of_an_id_leads_to_the_same_workspace() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "x" })).await;
    let workspace = front.settled(&id).await;
    let (base36, uuid) = (&id["ws-".len()..], workspace.id.to_string());
    for id in [id.clone(), format!("ws_{base36}"), format!("vm_{base36}"), uuid] {
        for (host, prefix) in [
            ("localhost", "/api/v1"),
            ("localhost", "/api"),
            ("rigbox.localhost", "/v1"),
            ("rigbox.localhost", "/api/v1"),
        ] {
            let line = format!("GET {prefix}/workspaces/{id}");
            let answer = front.call_on(host, As::Admin, &line, None).await;
            assert_eq!(answer.status, StatusCode::OK, "{line} on {host}");
            assert_eq!(answer.body["vm"]["name"], "x");
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_said_in_rigbox_words() {
    let mut front = Front::open().await;
    for line in [
        "GET /api/v1/nothing",
        "GET /api/nothing/at/all",
        "PATCH /api/v1/workspaces",
        "GET /api/v1/apps/app-1/params",
        "POST /api/v1/workspaces/from-definition",
        "GET /api/v1/workspaces/ws-1/logs/stream",
        "POST /api/v1/workspaces/ws-1/volumes/1/resize",
        "DELETE /api/v1/workspaces/ws-0000000000000000000000000?force=perhaps",
    ] {
        front.call(As::Admin, line, None).await;
    }
    insta::assert_snapshot!(front.transcript());
}
