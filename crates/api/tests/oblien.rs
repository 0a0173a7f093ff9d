//! Every route of the Oblien dialect: success, bad input, another tenant, no credential. Each snapshot
//! is a transcript of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::time::Duration;

use front::{As, Front};
use serde_json::{Value, json};
use skerry_control::{
    internal_api::{NodeError, VmExit},
    sim_node::Point,
    testing,
};
use skerry_model::{Desired, Pool, Range, State};

async fn create(front: &mut Front, body: Value) -> String {
    let answer = front.call(As::Admin, "POST /workspace", Some(body)).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    answer.body["workspace"]["id"].as_str().expect("an id").to_owned()
}

async fn get(front: &mut Front, id: &str) -> Value {
    front.call(As::Admin, &format!("GET /workspace/{id}"), None).await.body
}

async fn post(front: &mut Front, id: &str, verb: &str) -> Value {
    front.call(As::Admin, &format!("POST /workspace/{id}/{verb}"), None).await.body
}

/// Sends each body and notes only what was refused: method, body, status, code and details.
async fn refusals(front: &mut Front, line: &str, bodies: &[Value]) -> String {
    let mut text = String::new();
    for body in bodies {
        let answer = front.call(As::Admin, line, Some(body.clone())).await;
        let shown =
            if body.to_string().len() > 200 { "(long)".to_owned() } else { body.to_string() };
        text.push_str(&format!(
            "{shown}\n  {} {} {}\n  {}\n",
            answer.status.as_u16(),
            answer.body["code"],
            answer.body["message"],
            answer.body["details"],
        ));
        assert_eq!(answer.body["success"], json!(false));
        assert_eq!(answer.body["error"], answer.body["code"]);
    }
    text
}

#[tokio::test]
async fn the_shortest_create_of_the_reference_answers_when_the_machine_runs() {
    let mut front = Front::open().await;
    let body = json!({
        "name": "my-app", "image": "node-20", "config": { "cpus": 2, "memory_mb": 2048 },
    });
    let id = create(&mut front, body).await;
    front.test.clock.advance(Duration::from_secs(90));
    get(&mut front, &id).await;
    front.call(As::Admin, &format!("GET /workspace/{id}/details"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_create_that_asks_for_nothing_that_is_missing_is_accepted_in_full() {
    let mut front = Front::open().await;
    let id = create(
        &mut front,
        json!({
            "name": "full", "slug": "full-app", "image": "base", "namespace": "production",
            "mode": "temporary", "type": "web", "logo": null, "region": "ignored",
            "config": {
                "cpus": 1, "memory_mb": 512, "writable_size_mb": 1024, "ttl": "1h",
                "ttl_action": "remove", "remove_on_exit": false, "restart_policy": "no",
                "max_restarts": 0, "keep_logs": false, "static_network": false,
                "network_config": { "allow_internet": false, "public_ingress": false },
                "ssh_access": false,
                "env": [{ "key": "NODE_ENV", "value": "production" }, "PORT=3000"],
                "cmd": null, "workloads": [], "wait_for_init": true,
            },
        }),
    )
    .await;
    let details = front.call(As::Admin, &format!("GET /workspace/{id}/details"), None).await;
    assert_eq!(details.body["workspace"]["config"]["env_keys"], json!(["NODE_ENV", "PORT"]));
    assert!(!front.transcript().contains("\"3000\""), "values of variables are not shown");
    get(&mut front, "full-app").await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_create_that_does_not_wait_is_found_at_once_and_becomes_ready() {
    let mut front = Front::open().await;
    front.test.node.hang(Point::EnsureRunning);
    let id = create(&mut front, json!({ "image": "base", "wait_ready": false })).await;
    front.until(&id, |workspace| workspace.state == State::Starting).await;
    get(&mut front, &id).await;
    front.test.node.release(Point::EnsureRunning);
    front.settled(&id).await;
    get(&mut front, &id).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_machine_that_does_not_come_up_is_told_by_create_get_and_start() {
    let mut front = Front::open().await;
    let failure = || NodeError::Step { step: "boot" };
    front.test.node.fail_next(Point::EnsureRunning, failure());
    let body = json!({ "name": "unlucky", "image": "base" });
    let answer = front.call(As::Admin, "POST /workspace", Some(body)).await;
    assert_eq!(answer.status, 500);
    let id = answer.body["details"]["workspace_id"].as_str().expect("an id").to_owned();
    get(&mut front, &id).await;
    front.test.node.fail_next(Point::EnsureRunning, failure());
    post(&mut front, &id, "start").await;
    post(&mut front, &id, "provisioning/retry").await;
    front.settled(&id).await;
    let running = get(&mut front, &id).await;
    assert_eq!(running["workspace"]["status"], "running");
    post(&mut front, &id, "provisioning/retry").await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_workspace_is_stopped_started_restarted_and_deleted() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "cycle", "image": "base" })).await;
    for verb in ["stop", "stop", "start", "start", "restart"] {
        let answer = post(&mut front, &id, verb).await;
        assert_eq!(answer["success"], json!(true), "{verb}");
    }
    front
        .call(As::Admin, &format!("POST /workspace/{id}/start"), Some(json!({"force": true})))
        .await;
    let body = json!({ "reason": "some clients send a body" });
    front.call(As::Admin, &format!("DELETE /workspace/{id}"), Some(body)).await;
    get(&mut front, &id).await;
    front.call(As::Admin, &format!("DELETE /workspace/{id}"), None).await;
    assert!(front.test.node.vms().is_empty());
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_create_whose_workspace_is_deleted_meanwhile_is_a_conflict_and_leaves_nothing() {
    let mut front = Front::open().await;
    front.test.node.hang(Point::EnsureRunning);
    let body = json!({ "name": "short", "slug": "short-lived", "image": "base" });
    let creating = front.beside(As::Admin, "POST /workspace", Some(body));
    let deleting = async {
        front.until("short-lived", |w| w.state == State::Starting).await;
        front.beside(As::Admin, "DELETE /workspace/short-lived", None).await
    };
    let (created, deleted) = tokio::join!(creating, deleting);
    assert_eq!((created.status.as_u16(), deleted.status.as_u16()), (409, 200));
    assert_eq!(created.body["code"], "WORKSPACE_CREATION_CANCELLED");
    assert_eq!(front.call(As::Admin, "GET /workspace", None).await.body["total"], 0);
    assert!(front.test.node.vms().is_empty());
}

#[tokio::test]
async fn a_start_that_is_overtaken_by_a_stop_is_a_conflict() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "wanted", "image": "base" })).await;
    post(&mut front, &id, "stop").await;
    front.test.node.hang(Point::EnsureRunning);
    let (start, stop) =
        (format!("POST /workspace/{id}/start"), format!("POST /workspace/{id}/stop"));
    let starting = front.beside(As::Admin, &start, None);
    let stopping = async {
        front.until(&id, |w| w.state == State::Starting).await;
        front.beside(As::Admin, &stop, None).await
    };
    let (started, stopped) = tokio::join!(starting, stopping);
    assert_eq!((started.status.as_u16(), stopped.status.as_u16()), (409, 200));
    assert_eq!(started.body["code"], "conflict");
    assert_eq!(started.body["details"], json!({ "state": "stopped" }));
    assert_eq!(stopped.body["workspace"]["status"], "stopped");
}

#[tokio::test]
async fn a_stop_that_is_overtaken_by_a_start_is_a_conflict() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "wanted", "image": "base" })).await;
    front.test.node.hang(Point::EnsureStopped);
    let (start, stop) =
        (format!("POST /workspace/{id}/start"), format!("POST /workspace/{id}/stop"));
    let stopping = front.beside(As::Admin, &stop, None);
    let starting = async {
        front.until(&id, |w| w.state == State::Stopping).await;
        let starting = front.beside(As::Admin, &start, None);
        let releasing = async {
            front.until(&id, |w| w.desired == Desired::Running).await;
            front.test.node.release(Point::EnsureStopped);
        };
        tokio::join!(starting, releasing).0
    };
    let (stopped, started) = tokio::join!(stopping, starting);
    assert_eq!((stopped.status.as_u16(), started.status.as_u16()), (409, 200));
    assert_eq!(stopped.body["code"], "conflict");
    assert_eq!(started.body["workspace"]["status"], "running");
}

#[tokio::test]
async fn a_machine_that_ends_by_itself_shows_as_stopped_or_error() {
    let mut front = Front::open().await;
    let off = create(&mut front, json!({ "name": "off", "image": "base" })).await;
    let crashed = create(&mut front, json!({ "name": "crashed", "image": "base" })).await;
    let of = |id: &str| skerry_api::ids::parse_workspace_id(id).expect("an id");
    front.test.node.end_vm(of(&off), VmExit::PoweredOff);
    front.test.node.end_vm(of(&crashed), VmExit::Crashed { reason: "killed".to_owned() });
    front.until(&off, |workspace| workspace.state == State::Stopped).await;
    front.until(&crashed, |workspace| matches!(workspace.state, State::Failed(_))).await;
    assert_eq!(get(&mut front, &off).await["workspace"]["status"], "stopped");
    let crashed = get(&mut front, &crashed).await;
    assert_eq!(crashed["workspace"]["status"], "error");
    assert_eq!(crashed["workspace"]["provisioning"]["state"], "ready");
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let mut front = Front::open().await;
    for (name, mode, namespace) in
        [("a", "permanent", "red"), ("b", "temporary", "red"), ("c", "permanent", "blue")]
    {
        let body = json!({ "name": name, "image": "base", "mode": mode, "namespace": namespace });
        create(&mut front, body).await;
        front.test.clock.advance(Duration::from_secs(1));
    }
    let stopped = get(&mut front, "b").await["workspace"]["id"].as_str().expect("id").to_owned();
    post(&mut front, &stopped, "stop").await;
    let mut text = String::new();
    for query in [
        "",
        "?page=1&limit=2",
        "?page=2&limit=2",
        "?page=9",
        "?mode=permanent",
        "?mode=temporary",
        "?status=stopped",
        "?status=running&limit=1&page=2",
        "?status=creating",
        "?namespace=red",
        "?namespace=red&mode=permanent",
    ] {
        let answer = front.call(As::Admin, &format!("GET /workspace{query}"), None).await.body;
        let names: Vec<&str> = answer["workspaces"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|w| w["name"].as_str().expect("a name"))
            .collect();
        text.push_str(&format!(
            "GET /workspace{query}\n  {names:?} total={} page={} limit={}\n",
            answer["total"], answer["page"], answer["limit"],
        ));
    }
    for query in ["page=0", "page=x", "limit=0", "limit=101", "limit=-1", "mode=odd", "status=odd"]
    {
        let answer = front.call(As::Admin, &format!("GET /workspace?{query}"), None).await;
        text.push_str(&format!("GET /workspace?{query}\n  {} {}\n", answer.status, answer.body));
    }
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn bad_values_in_create_are_refused_by_field_and_make_nothing() {
    let mut front = Front::open().await;
    let text = refusals(
        &mut front,
        "POST /workspace",
        &[
            json!({ "name": "x".repeat(256), "image": "base" }),
            json!({ "name": "", "image": "base" }),
            json!({ "name": 5, "image": "base" }),
            json!({ "image": 5 }),
            json!({ "image": "" }),
            json!({ "image": "no-such-image" }),
            json!({ "image": "base", "namespace": "no spaces" }),
            json!({ "image": "base", "namespace": 7 }),
            json!({ "image": "base", "slug": "NO" }),
            json!({ "image": "base", "slug": "9f1c2d3e-4b5a-4c6d-8e7f-001122334455" }),
            json!({ "image": "base", "mode": "eternal" }),
            json!({ "image": "base", "config": "text" }),
            json!({ "image": "base", "config": [] }),
            json!({ "image": "base", "config": { "cpus": 0 } }),
            json!({ "image": "base", "config": { "cpus": 33 } }),
            json!({ "image": "base", "config": { "cpus": 0.25 } }),
            json!({ "image": "base", "config": { "cpus": "2" } }),
            json!({ "image": "base", "memory_mb": true }),
            json!({ "image": "base", "config": { "memory_mb": 127 } }),
            json!({ "image": "base", "config": { "memory_mb": 65537 } }),
            json!({ "image": "base", "config": { "writable_size_mb": 63 } }),
            json!({ "image": "base", "config": { "writable_size_mb": 204801 } }),
            json!({ "image": "base", "config": { "disk_size_mb": 100, "writable_size_mb": 200 } }),
            json!({ "image": "base", "config": { "ttl": "soon" } }),
            json!({ "image": "base", "config": { "ttl": "1h", "ttl_action": "explode" } }),
            json!({ "image": "base", "config": { "env": [{ "key": "A" }] } }),
            json!({ "image": "base", "config": { "env": [{ "key": "1A", "value": "x" }] } }),
            json!({ "image": "base", "config": { "env": ["A=1", "A=2"] } }),
            json!({ "image": "base", "config": { "env": { "A": "1" } } }),
            json!({ "image": "base", "config": { "env": "A=not-to-be-repeated" } }),
            json!({ "image": "base", "config": { "network_config": { "allow_internet": true } } }),
            json!({ "image": "base", "config": { "network_config": true } }),
            json!({ "image": "base", "config": { "static_network": true } }),
            json!({ "image": "base", "config": { "ssh_access": true } }),
            json!({ "image": "base", "config": { "remove_on_exit": "maybe" } }),
            json!({ "image": "base", "config": { "restart_policy": "sometimes" } }),
            json!({ "image": "base", "config": { "idle": { "suspend_after": 60 } } }),
            json!({ "image": "base", "config": { "max_restarts": -1 } }),
            json!({ "image": "base", "config": { "cmd": 5 } }),
            json!({ "image": "base", "config": { "workloads": [{ "name": "x" }] } }),
            json!({ "image": "base", "config": { "proxy_assignment_id": 42 } }),
            json!({ "image": "base", "idempotency_key": "k" }),
            json!({ "image": "base", "logo": "https://example.com/l.png" }),
            json!([]),
            json!("text"),
        ],
    )
    .await;
    assert!(front.test.node.calls().is_empty(), "no machine was asked for");
    let all = front.call(As::Admin, "GET /workspace", None).await;
    assert_eq!(all.body["total"], 0);
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn every_limit_has_its_code_and_status() {
    let mut config = testing::config();
    config.plan.max_workspaces = 2;
    config.plan.vcpu_count = Range { min: 1, max: 4, default: 1 };
    config.plan.owned_pool = Pool { vcpu_count: 6, memory_mib: 8192, disk_mib: 8192 };
    config.plan.running_pool = Pool { vcpu_count: 4, memory_mib: 8192, disk_mib: 8192 };
    let mut front = Front::open_with(config).await;
    let of = |cpus: u32| json!({ "image": "base", "name": "l", "config": { "cpus": cpus } });
    front.call(As::Admin, "POST /workspace", Some(of(5))).await;
    create(&mut front, of(4)).await;
    front.call(As::Admin, "POST /workspace", Some(of(3))).await;
    front.call(As::Admin, "POST /workspace", Some(of(2))).await;
    let first = get(&mut front, "l").await["workspace"]["id"].as_str().expect("id").to_owned();
    post(&mut front, &first, "stop").await;
    create(&mut front, of(2)).await;
    front.call(As::Admin, "GET /workspace/quota", None).await;
    front.call(As::Admin, "POST /workspace", Some(of(1))).await;
    post(&mut front, &first, "start").await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn name_slug_and_config_can_be_updated_and_nothing_else() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "name": "before", "image": "base" })).await;
    let path = format!("PUT /workspace/{id}");
    let body = json!({ "name": "renamed-workspace", "slug": "renamed", "logo": null });
    front.call(As::Admin, &path, Some(body)).await;
    let bigger = json!({ "config": { "cpus": 2, "memory_mb": 1024, "writable_size_mb": 2048 } });
    let refused = front.call(As::Admin, &path, Some(bigger.clone())).await;
    assert_eq!(refused.status, 409);
    post(&mut front, &id, "stop").await;
    front.call(As::Admin, &path, Some(bigger)).await;
    let text = refusals(
        &mut front,
        &path,
        &[
            json!({ "image": "node-20" }),
            json!({ "slug": null }),
            json!({ "slug": 5 }),
            json!({ "logo": "x" }),
            json!({ "name": "x".repeat(256) }),
            json!({ "config": { "ttl": "1h" } }),
            json!({ "config": { "keep_logs": false } }),
            json!({ "config": { "wait_for_init": true } }),
            json!({ "config": { "restart_policy": "always" } }),
            json!({ "config": { "colour": "red" } }),
            json!({ "config": { "writable_size_mb": 64 } }),
            json!({ "config": { "cpus": 0 } }),
        ],
    )
    .await;
    let after = get(&mut front, "renamed").await;
    assert_eq!(after["workspace"]["name"], "renamed-workspace");
    assert_eq!(
        after["workspace"]["resources"],
        json!({
            "cpus": 2, "memory_mb": 1024, "disk_size_mb": 2048,
        })
    );
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn a_taken_slug_is_a_conflict() {
    let mut front = Front::open().await;
    create(&mut front, json!({ "image": "base", "slug": "taken" })).await;
    let body = json!({ "image": "base", "slug": "taken" });
    let answer = front.call(As::Admin, "POST /workspace", Some(body)).await;
    assert_eq!((answer.status.as_u16(), &answer.body["code"]), (409, &json!("conflict")));
}

#[tokio::test]
async fn images_are_searched_by_text_and_category() {
    let mut front = Front::open().await;
    for query in ["", "?search=NODE", "?category=os", "?category=all", "?search=nothing"] {
        front.call(As::Admin, &format!("GET /workspace/images{query}"), None).await;
    }
    insta::assert_snapshot!(front.transcript());
}

/// Every route, as method and path with `{id}`.
const ROUTES: [&str; 22] = [
    "POST /workspace",
    "GET /workspace",
    "GET /workspace/quota",
    "GET /workspace/images",
    "GET /workspace/{id}",
    "GET /workspace/{id}/details",
    "PUT /workspace/{id}",
    "DELETE /workspace/{id}",
    "POST /workspace/{id}/start",
    "POST /workspace/{id}/stop",
    "POST /workspace/{id}/restart",
    "POST /workspace/{id}/provisioning/retry",
    "POST /workspace/{id}/pause",
    "POST /workspace/{id}/resume",
    "POST /workspace/{id}/ping",
    "POST /workspace/{id}/snapshot",
    "POST /workspace/{id}/restore",
    "GET /workspace/{id}/lifecycle",
    "POST /workspace/{id}/lifecycle/permanent",
    "POST /workspace/{id}/lifecycle/temporary",
    "PUT /workspace/{id}/lifecycle/ttl",
    "DELETE /workspace/{id}/lifecycle",
];

#[tokio::test]
async fn without_a_good_credential_every_route_answers_401() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "image": "base" })).await;
    let mut seen = None;
    for caller in [As::Nobody, As::Stranger] {
        for route in ROUTES.iter().chain(&["GET /namespaces", "POST /workspace/{id}/archives"]) {
            let line = route.replace("{id}", &id);
            let answer = front.call(caller, &line, None).await;
            assert_eq!(answer.status, 401, "{line}");
            let first = seen.get_or_insert_with(|| answer.body.clone());
            assert_eq!(*first, answer.body, "{line}");
        }
    }
    insta::assert_json_snapshot!(seen);
}

#[tokio::test]
async fn another_account_finds_nothing_of_mine() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "image": "base", "slug": "mine" })).await;
    for route in ROUTES.iter().filter(|route| route.contains("{id}")) {
        for name in [id.as_str(), "mine"] {
            let line = route.replace("{id}", name);
            let answer = front.call(As::Other, &line, None).await;
            assert_eq!(answer.status, 404, "{line}");
            assert_eq!(answer.body["code"], "not_found", "{line}");
        }
    }
    let list = front.call(As::Other, "GET /workspace", None).await;
    assert_eq!(list.body["total"], 0);
    assert_eq!(get(&mut front, &id).await["workspace"]["status"], "running");
}

#[tokio::test]
async fn a_workspace_is_found_under_every_dialects_form_of_its_id() {
    let mut front = Front::open().await;
    let id = create(&mut front, json!({ "image": "base", "slug": "found" })).await;
    let number = skerry_api::ids::parse_workspace_id(&id).expect("an id");
    for form in [
        skerry_api::ids::rigbox_workspace_id(number),
        skerry_api::ids::instavm_vm_id(number),
        skerry_api::ids::uuid_text(number),
        "found".to_owned(),
    ] {
        assert_eq!(get(&mut front, &form).await["workspace"]["id"], json!(id), "{form}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_told_from_what_is_not_served() {
    let mut front = Front::open().await;
    for line in [
        "GET /workspace/ws_none",
        "GET /workspace/none/nonsense",
        "PATCH /workspace",
        "GET /workspace/none/start",
        "POST /workspace/none/archives",
        "POST /workspace/none/network/ip",
        "GET /workspace/estimate?cpu=1",
        "POST /namespaces/ensure",
    ] {
        front.call(As::Admin, line, None).await;
    }
    front.call_on("localhost", As::Admin, "POST /workspace", Some("{\"image\":")).await;
    front.call_on("localhost", As::Admin, "POST /workspace", Some(&"x".repeat(1_100_000))).await;
    let transcript = front.transcript().replace(&"x".repeat(1_100_000), "(1.1 MB)");
    insta::assert_snapshot!(transcript);
}
