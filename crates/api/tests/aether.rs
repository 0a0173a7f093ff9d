//! Every route of the Aether dialect: success, bad input, another tenant, no credential. Each snapshot
//! is a transcript of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::time::Duration;

use front::{As, Front};
use http::StatusCode;
use serde_json::{Value, json};
use skerry_control::{
    CreateWorkspace, StartPolicy, Wait, internal_api::NodeError, sim_node::Point, testing,
};
use skerry_model::{Pool, State};

async fn default_project(front: &mut Front) -> String {
    let answer = front.call(As::Admin, "GET /projects", None).await;
    answer.body["projects"][0]["id"].as_str().expect("an id").to_owned()
}

async fn create(front: &mut Front, project: &str, body: Option<Value>) -> String {
    let answer = front.call(As::Admin, &format!("POST /projects/{project}/workspaces"), body).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    answer.body["id"].as_str().expect("an id").to_owned()
}

async fn get(front: &mut Front, id: &str) -> Value {
    front.call(As::Admin, &format!("GET /workspaces/{id}"), None).await.body
}

#[tokio::test]
async fn a_workspace_is_created_used_stopped_started_and_deleted() {
    let mut front = Front::open().await;
    let project = default_project(&mut front).await;
    let id = create(&mut front, &project, None).await;
    front.settled(&id).await;
    get(&mut front, &id).await;
    front.call(As::Admin, &format!("POST /workspaces/{id}/stop"), None).await;
    front.settled(&id).await;
    get(&mut front, &id).await;
    front.call(As::Admin, &format!("POST /workspaces/{id}/stop"), None).await;
    front.call(As::Admin, &format!("POST /workspaces/{id}/start"), None).await;
    front.settled(&id).await;
    front.call(As::Admin, &format!("POST /workspaces/{id}/start"), None).await;
    front.call(As::Admin, &format!("DELETE /workspaces/{id}"), None).await;
    get(&mut front, &id).await;
    front.call(As::Admin, &format!("DELETE /workspaces/{id}"), None).await;
    assert!(front.test.node.vms().is_empty());
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn the_documented_request_makes_the_documented_machine() {
    let mut front = Front::open().await;
    let project = default_project(&mut front).await;
    let body = json!({
        "hardware": {
            "cpu_kind": "shared", "cpus": 2, "memory_mb": 2048, "volume_size_gb": 10,
            "gpu_kind": null,
        },
        "keep_active": false,
    });
    create(&mut front, &project, Some(body)).await;
    let body = json!({
        "hardware": {
            "cpu_kind": "performance", "cpus": 4, "memory_mb": 8192, "volume_size_gb": 20,
        },
        "keep_active": true,
    });
    create(&mut front, &project, Some(body)).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn what_nobody_uses_stops_after_ten_minutes_unless_it_is_kept_active() {
    let mut front = Front::open().await;
    let project = default_project(&mut front).await;
    let kept = create(&mut front, &project, Some(json!({ "keep_active": true }))).await;
    let idle = create(&mut front, &project, Some(json!({}))).await;
    for id in [&kept, &idle] {
        front.settled(id).await;
    }
    front.test.advance(Duration::from_secs(599));
    front.test.quiet().await;
    assert!(matches!(front.settled(&idle).await.state, State::Running { .. }));
    front.test.advance(Duration::from_secs(1));
    front.until(&idle, |workspace| workspace.state == State::Stopped).await;
    assert!(matches!(front.settled(&kept).await.state, State::Running { .. }));
}

#[tokio::test]
async fn create_refuses_bad_hardware_and_changes_nothing() {
    let mut front = Front::open().await;
    let project = default_project(&mut front).await;
    let line = format!("POST /projects/{project}/workspaces");
    for hardware in [
        json!({ "cpu_kind": "quantum" }),
        json!({ "cpus": 3 }),
        json!({ "cpus": 0 }),
        json!({ "cpus": 16, "cpu_kind": "performance" }),
        json!({ "memory_mb": 3000 }),
        json!({ "cpu_kind": "performance", "cpus": 1 , "memory_mb": 512 }),
        json!({ "volume_size_gb": 0 }),
        json!({ "volume_size_gb": 501 }),
        json!({ "gpu_kind": "a10" }),
        json!({ "cpus": -1, "memory_mb": 1, "volume_size_gb": 100_000, "gpu_kind": "l40s" }),
        json!({ "cpus": "two" }),
        json!({ "cpus": 2.5 }),
        json!({ "disk": 1 }),
        json!(["shared", 2]),
    ] {
        front.call(As::Admin, &line, Some(json!({ "hardware": hardware }))).await;
    }
    front.call(As::Admin, &line, Some(json!({ "keep_active": "yes" }))).await;
    front.call(As::Admin, &line, Some(json!({ "name": "x" }))).await;
    front.call(As::Admin, &line, Some(json!([]))).await;
    front.call_on("localhost", As::Admin, &line, Some("{")).await;
    front.call(As::Admin, "GET /workspaces", None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn the_plan_is_kept() {
    let mut config = testing::config();
    config.plan.max_workspaces = 1;
    config.plan.memory_mib.max = 4096;
    config.plan.disk_mib.max = 20 * 1024 + 100;
    let mut front = Front::open_with(config).await;
    let project = default_project(&mut front).await;
    let line = format!("POST /projects/{project}/workspaces");
    let too_big = json!({ "hardware": { "cpus": 4, "memory_mb": 8192 } });
    front.call(As::Admin, &line, Some(too_big)).await;
    let too_wide = json!({ "hardware": { "volume_size_gb": 21 } });
    front.call(As::Admin, &line, Some(too_wide)).await;
    create(&mut front, &project, None).await;
    front.call(As::Admin, &line, None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_start_that_does_not_fit_the_plan_is_402() {
    let mut config = testing::config();
    config.plan.running_pool = Pool { vcpu_count: 2, ..config.plan.running_pool };
    let mut front = Front::open_with(config).await;
    let project = default_project(&mut front).await;
    create(&mut front, &project, None).await;
    let line = format!("POST /projects/{project}/workspaces");
    let refused = front.call(As::Admin, &line, None).await;
    assert_eq!(refused.status, StatusCode::PAYMENT_REQUIRED);
    insta::assert_json_snapshot!(refused.body);
}

#[tokio::test]
async fn a_failed_start_is_an_error_with_a_message_and_can_be_started_again() {
    let mut front = Front::open().await;
    let late = NodeError::Timeout { step: "hello", bound_seconds: 60 };
    front.test.node.fail_next(Point::EnsureRunning, late);
    let project = default_project(&mut front).await;
    let id = create(&mut front, &project, None).await;
    front.settled(&id).await;
    get(&mut front, &id).await;
    front.call(As::Admin, &format!("POST /workspaces/{id}/stop"), None).await;
    front.call(As::Admin, &format!("POST /workspaces/{id}/start"), None).await;
    front.settled(&id).await;
    get(&mut front, &id).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_stop_ends_a_start_under_way() {
    let mut front = Front::open().await;
    front.test.node.hang(Point::EnsureRunning);
    let project = default_project(&mut front).await;
    let id = create(&mut front, &project, None).await;
    front.until(&id, |workspace| workspace.state == State::Starting).await;
    assert_eq!(get(&mut front, &id).await["status"], "creating");
    let stop = front.call(As::Admin, &format!("POST /workspaces/{id}/stop"), None).await;
    assert_eq!(stop.body, json!({ "status": "stopping" }));
    assert_eq!(front.settled(&id).await.state, State::Stopped);
}

#[tokio::test]
async fn hardware_changes_while_there_is_no_vm_and_the_volume_only_grows() {
    let mut front = Front::open().await;
    let project = default_project(&mut front).await;
    let id = create(&mut front, &project, None).await;
    front.settled(&id).await;
    let line = format!("PATCH /workspaces/{id}");
    let same = json!({ "hardware": { "cpus": 2, "memory_mb": 2048 }, "keep_active": true });
    front.call(As::Admin, &line, Some(same)).await;
    let grow = json!({ "hardware": { "cpus": 4, "memory_mb": 4096, "volume_size_gb": 12 } });
    front.call(As::Admin, &line, Some(grow.clone())).await;
    front.call(As::Admin, &format!("POST /workspaces/{id}/stop"), None).await;
    front.settled(&id).await;
    front.call(As::Admin, &line, Some(grow)).await;
    for body in [
        json!({ "hardware": { "cpu_kind": "performance" } }),
        json!({ "hardware": { "volume_size_gb": 5 } }),
        json!({ "hardware": { "memory_mb": 512 } }),
        json!({ "hardware": { "gpu_kind": "a10" } }),
        json!({ "status": "running" }),
        json!({}),
    ] {
        front.call(As::Admin, &line, Some(body)).await;
    }
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn projects_are_made_listed_and_read() {
    let mut front = Front::open().await;
    let body = json!({ "name": "shop", "description": "the web shop" });
    let made = front.call(As::Admin, "POST /projects", Some(body)).await.body;
    let id = made["id"].as_str().expect("an id").to_owned();
    front.call(As::Admin, &format!("GET /projects/{id}"), None).await;
    front.call(As::Admin, "GET /projects", None).await;
    for body in [
        json!({ "name": "shop" }),
        json!({}),
        json!({ "name": "" }),
        json!({ "name": "-x" }),
        json!({ "name": 7 }),
        json!({ "name": "x", "description": "d".repeat(501) }),
        json!({ "name": "x", "repo_url": "https://example.com/x.git" }),
    ] {
        front.call(As::Admin, "POST /projects", Some(body)).await;
    }
    front.call(As::Admin, "GET /projects/shop", None).await;
    front.call(As::Other, &format!("GET /projects/{id}"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn lists_hold_what_other_dialects_made_and_filter_by_project_and_status() {
    let mut front = Front::open().await;
    let caller = front.test.caller().await;
    let mut elsewhere = CreateWorkspace::new(StartPolicy::Later);
    elsewhere.disk_mib = Some(2500);
    front.test.control.create_workspace(&caller, elsewhere).await.expect("made");
    front.test.clock.advance(Duration::from_secs(1));
    let made = front.call(As::Admin, "POST /projects", Some(json!({ "name": "shop" }))).await.body;
    let shop = made["id"].as_str().expect("an id").to_owned();
    let id = create(&mut front, &shop, None).await;
    front.settled(&id).await;

    front.call(As::Admin, "GET /workspaces", None).await;
    front.call(As::Admin, &format!("GET /projects/{shop}/workspaces"), None).await;
    let count = async |front: &mut Front, line: &str| {
        let answer = front.call(As::Admin, line, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{line}");
        answer.body["workspaces"].as_array().expect("a list").len()
    };
    assert_eq!(count(&mut front, "GET /workspaces?status=running").await, 1);
    assert_eq!(count(&mut front, "GET /workspaces?status=error").await, 0);
    assert_eq!(count(&mut front, "GET /workspaces?limit=1").await, 1);
    assert_eq!(count(&mut front, "GET /workspaces?offset=1").await, 1);
    assert_eq!(count(&mut front, "GET /workspaces?offset=2&limit=5").await, 0);
    front.call(As::Admin, "GET /workspaces?status=flying", None).await;
    front.call(As::Admin, "GET /workspaces?limit=many", None).await;
    front.call(As::Other, "GET /workspaces", None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_workspace_being_deleted_is_gone_for_aether() {
    let mut front = Front::open().await;
    let caller = front.test.caller().await;
    let project = default_project(&mut front).await;
    let id = create(&mut front, &project, None).await;
    let workspace = front.settled(&id).await;
    front.test.node.hang(Point::EnsureDeleted);
    let which = skerry_control::WorkspaceRef::Id(workspace.id);
    front.test.control.delete_workspace(&caller, &which, Wait::No).await.expect("recorded");
    for line in [
        format!("GET /workspaces/{id}"),
        format!("POST /workspaces/{id}/start"),
        format!("POST /workspaces/{id}/stop"),
    ] {
        let answer = front.call(As::Admin, &line, None).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{line}");
    }
    let list = front.call(As::Admin, "GET /workspaces", None).await;
    assert_eq!(list.body, json!({ "workspaces": [] }));
    front.test.node.release(Point::EnsureDeleted);
    front.gone(&id).await;
}

#[tokio::test]
async fn profile_and_settings_say_what_is_so() {
    let mut front = Front::open().await;
    front.call(As::Admin, "GET /profile", None).await;
    front.call(As::Admin, "GET /user/settings", None).await;
    let body = json!({ "default_hardware": { "cpus": 1 } });
    front.call(As::Admin, "PUT /user/settings", Some(body)).await;
    front.call_on("aether.localhost", As::Nobody, "GET /health", None).await;
    insta::assert_snapshot!(front.transcript());
}

/// Every route that needs a credential.
const PRIVATE: &[&str] = &[
    "GET /projects",
    "POST /projects",
    "GET /projects/{project}",
    "GET /projects/{project}/workspaces",
    "POST /projects/{project}/workspaces",
    "GET /workspaces",
    "GET /workspaces/{id}",
    "PATCH /workspaces/{id}",
    "DELETE /workspaces/{id}",
    "POST /workspaces/{id}/start",
    "POST /workspaces/{id}/stop",
    "POST /workspaces/{id}/connect?start=true",
    "GET /profile",
    "GET /user/settings",
    "PUT /user/settings",
    "GET /user/api-keys",
    "GET /tasks",
];

#[tokio::test]
async fn without_a_valid_credential_every_route_answers_401() {
    let mut front = Front::open().await;
    let project = default_project(&mut front).await;
    let id = create(&mut front, &project, None).await;
    for route in PRIVATE {
        let line = route.replace("{project}", &project).replace("{id}", &id);
        for caller in [As::Nobody, As::Stranger] {
            let answer = front.call(caller, &line, None).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{line}");
            assert_eq!(answer.body, json!({ "error": "Unauthorized" }), "{line}");
        }
    }
}

#[tokio::test]
async fn what_belongs_to_another_tenant_is_not_found() {
    let mut front = Front::open().await;
    let project = default_project(&mut front).await;
    let id = create(&mut front, &project, None).await;
    let mut bodies = Vec::new();
    let named = PRIVATE.iter().filter(|r| r.contains('{') && !r.contains("/connect"));
    for route in named {
        let body = route.starts_with("PATCH").then(|| json!({ "keep_active": true }));
        for (project, id) in [
            (project.as_str(), id.as_str()),
            ("00000000-0000-4000-8000-000000000000", "00000000-0000-4000-8000-000000000000"),
        ] {
            let line = route.replace("{project}", project).replace("{id}", id);
            let answer = front.call(As::Other, &line, body.clone()).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{line}");
            bodies.push(answer.body);
        }
    }
    bodies.sort_by_key(ToString::to_string);
    bodies.dedup();
    insta::assert_json_snapshot!(bodies);
}

#[tokio::test]
async fn an_id_that_is_none_is_refused_and_every_dialects_form_of_one_is_understood() {
    let mut front = Front::open().await;
    let project = default_project(&mut front).await;
    let id = create(&mut front, &project, None).await;
    let workspace = front.settled(&id).await;
    for form in [
        skerry_api::ids::rigbox_workspace_id(workspace.id),
        skerry_api::ids::oblien_workspace_id(workspace.id),
        skerry_api::ids::instavm_vm_id(workspace.id),
        id.to_uppercase(),
    ] {
        assert_eq!(get(&mut front, &form).await["id"], id.as_str(), "{form}");
    }
    for (host, prefix) in [("aether.localhost", ""), ("aether.localhost", "/v1")] {
        let line = format!("GET {prefix}/workspaces/{id}");
        let answer = front.call_on(host, As::Admin, &line, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{line} on {host}");
    }
    let bad = front.call(As::Admin, "GET /workspaces/my-slug", None).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    insta::assert_json_snapshot!(bad.body);
}

#[tokio::test]
async fn what_is_not_there_is_said_in_aether_words() {
    let mut front = Front::open().await;
    let id = "00000000-0000-4000-8000-000000000000";
    for line in [
        "GET /projects/x/y/z",
        "PUT /workspaces",
        &format!("POST /workspaces/{id}/connect?start=true"),
        &format!("GET /workspaces/{id}/ws"),
        &format!("DELETE /projects/{id}"),
        &format!("GET /projects/{id}/env-vars"),
        "POST /user/api-keys",
        "POST /tasks",
        &format!("GET /tasks/{id}/conversation/delta?after=0"),
    ] {
        front.call(As::Admin, line, None).await;
    }
    insta::assert_snapshot!(front.transcript());
}
