//! Rigbox's snapshots: success, bad input, another tenant, wrong state, the plan. That no route answers
//! without a credential is in `rigbox.rs`.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use front::{As, Front};
use http::StatusCode;
use serde_json::{Value, json};
use skerry_control::{ControlConfig, internal_api::NodeError, sim_node::Point, testing};
use skerry_model::{Plan, State, Workspace};

const BASE: &str = "/api/v1";
const NOBODYS: &str = "00000000-0000-4000-8000-000000000000";

async fn admin(front: &mut Front, line: &str, body: Option<Value>) -> front::Answer {
    front.call(As::Admin, &line.replacen(' ', &format!(" {BASE}"), 1), body).await
}

/// A workspace that ran and is stopped, with `first` on its disk.
async fn stopped(front: &mut Front, name: &str) -> String {
    let made = admin(front, "POST /workspaces", Some(json!({ "name": name }))).await;
    let id = made.body["vm"]["id"].as_str().expect("an id").to_owned();
    let workspace = start(front, &id).await;
    write(front, &workspace, "first");
    stop(front, &id).await;
    id
}

async fn start(front: &mut Front, id: &str) -> Workspace {
    admin(front, &format!("POST /workspaces/{id}/start"), None).await;
    let started = front.settled(id).await;
    assert!(matches!(started.state, State::Running { .. }), "{:?}", started.state);
    started
}

async fn stop(front: &mut Front, id: &str) {
    admin(front, &format!("POST /workspaces/{id}/stop"), None).await;
    assert_eq!(front.settled(id).await.state, State::Stopped);
}

fn write(front: &Front, workspace: &Workspace, word: &str) {
    let guest = front.test.node.sim_guest(workspace.id).expect("a guest");
    guest.put_file("/root/word", word.as_bytes());
}

fn read(front: &Front, workspace: &Workspace) -> Vec<u8> {
    let guest = front.test.node.sim_guest(workspace.id).expect("a guest");
    guest.file("/root/word").expect("the file")
}

async fn take(front: &mut Front, id: &str) -> String {
    let taken = admin(front, &format!("POST /workspaces/{id}/snapshots"), None).await;
    assert_eq!(taken.status, StatusCode::CREATED);
    taken.body["snapshot"]["id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_snapshot_is_taken_listed_restored_and_deleted() {
    let mut front = Front::open().await;
    let id = stopped(&mut front, "box").await;
    let snapshots = format!("/workspaces/{id}/snapshots");
    let name = Some(json!({ "name": "before the upgrade" }));
    let taken = admin(&mut front, &format!("POST {snapshots}"), name).await;
    let sid = taken.body["snapshot"]["id"].as_str().expect("an id").to_owned();
    admin(&mut front, &format!("GET {snapshots}"), None).await;
    let workspace = start(&mut front, &id).await;
    write(&front, &workspace, "later");
    stop(&mut front, &id).await;
    admin(&mut front, &format!("POST {snapshots}/{sid}/restore"), None).await;
    // The next start needs it.
    admin(&mut front, &format!("DELETE {snapshots}/{sid}"), None).await;
    admin(&mut front, &format!("POST {snapshots}"), None).await;
    let workspace = start(&mut front, &id).await;
    assert_eq!(read(&front, &workspace), b"first");
    admin(&mut front, &format!("DELETE {snapshots}/{sid}"), None).await;
    admin(&mut front, &format!("DELETE {snapshots}/{sid}"), None).await;
    admin(&mut front, &format!("GET {snapshots}"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_snapshot_is_used_by_its_own_id_alone_too() {
    let mut front = Front::open().await;
    let id = stopped(&mut front, "box").await;
    let sid = take(&mut front, &id).await;
    let workspace = start(&mut front, &id).await;
    write(&front, &workspace, "later");
    stop(&mut front, &id).await;
    let restored = admin(&mut front, &format!("POST /snapshots/{sid}/restore"), None).await;
    assert_eq!((restored.status, &restored.body["workspace_id"]), (StatusCode::OK, &json!(id)));
    let workspace = start(&mut front, &id).await;
    assert_eq!(read(&front, &workspace), b"first");
    let deleted = admin(&mut front, &format!("DELETE /snapshots/{sid}"), None).await;
    assert_eq!(deleted.status, StatusCode::OK);
    let listed = admin(&mut front, "GET /snapshots", None).await;
    assert_eq!(listed.body["snapshots"], json!([]));
}

#[tokio::test]
async fn lists_serve_clients_with_and_without_paging() {
    let mut front = Front::open().await;
    let id = stopped(&mut front, "box").await;
    let other = stopped(&mut front, "other").await;
    let mut taken = vec![take(&mut front, &id).await, take(&mut front, &id).await];
    take(&mut front, &other).await;
    let listed = admin(&mut front, &format!("GET /workspaces/{id}/snapshots"), None).await;
    let ids = |list: &Value| -> Vec<String> {
        let items = list.as_array().expect("a list").iter();
        items.map(|item| item["id"].as_str().expect("an id").to_owned()).collect()
    };
    let mut all = ids(&listed.body["snapshots"]);
    assert_eq!((&ids(&listed.body["items"]), &listed.body["next_cursor"]), (&all, &Value::Null));
    all.sort();
    taken.sort();
    assert_eq!(all, taken, "only those of this workspace");
    let first = admin(&mut front, "GET /snapshots?max_results=2", None).await;
    assert_eq!((ids(&first.body["items"]).len(), ids(&first.body["snapshots"]).len()), (2, 2));
    let cursor = first.body["next_cursor"].as_str().expect("a cursor");
    let rest = admin(&mut front, &format!("GET /snapshots?cursor={cursor}"), None).await;
    assert_eq!((ids(&rest.body["items"]).len(), &rest.body["next_cursor"]), (1, &Value::Null));
    let bad = admin(&mut front, "GET /snapshots?cursor=x", None).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn only_a_stopped_workspace_is_saved_or_restored() {
    let mut front = Front::open().await;
    let id = stopped(&mut front, "box").await;
    let sid = take(&mut front, &id).await;
    let new = admin(&mut front, "POST /workspaces", Some(json!({ "name": "new" }))).await;
    let new = new.body["vm"]["id"].as_str().expect("an id").to_owned();
    let mut refused = Vec::new();
    start(&mut front, &id).await;
    for line in [
        format!("POST /workspaces/{id}/snapshots"),
        format!("POST /workspaces/{id}/snapshots/{sid}/restore"),
        format!("POST /snapshots/{sid}/restore"),
        format!("POST /workspaces/{new}/snapshots"),
    ] {
        let answer = admin(&mut front, &line, None).await;
        assert_eq!(answer.status, StatusCode::CONFLICT, "{line}");
        refused.push(answer.body);
    }
    assert!(matches!(front.settled(&id).await.state, State::Running { .. }));
    insta::assert_json_snapshot!(refused);
}

#[tokio::test]
async fn a_snapshot_goes_back_into_its_own_workspace_alone() {
    let mut front = Front::open().await;
    let id = stopped(&mut front, "box").await;
    let other = stopped(&mut front, "other").await;
    let sid = take(&mut front, &id).await;
    for line in [
        format!("POST /workspaces/{other}/snapshots/{sid}/restore"),
        format!("DELETE /workspaces/{other}/snapshots/{sid}"),
        format!("POST /workspaces/{id}/snapshots/{NOBODYS}/restore"),
        format!("POST /workspaces/{id}/snapshots/snap_1/restore"),
        format!("DELETE /snapshots/{NOBODYS}"),
    ] {
        let answer = admin(&mut front, &line, None).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{line}");
    }
    // It outlives its workspace and then leads nowhere.
    admin(&mut front, &format!("DELETE /workspaces/{id}"), None).await;
    front.test.quiet().await;
    let orphan = admin(&mut front, &format!("POST /snapshots/{sid}/restore"), None).await;
    assert_eq!(orphan.status, StatusCode::NOT_FOUND);
    let deleted = admin(&mut front, &format!("DELETE /snapshots/{sid}"), None).await;
    assert_eq!(deleted.status, StatusCode::OK);
}

#[tokio::test]
async fn another_tenants_snapshot_is_not_found() {
    let mut front = Front::open().await;
    let id = stopped(&mut front, "box").await;
    let sid = take(&mut front, &id).await;
    for line in [
        format!("GET {BASE}/workspaces/{id}/snapshots"),
        format!("POST {BASE}/workspaces/{id}/snapshots"),
        format!("DELETE {BASE}/workspaces/{id}/snapshots/{sid}"),
        format!("POST {BASE}/workspaces/{id}/snapshots/{sid}/restore"),
        format!("DELETE {BASE}/snapshots/{sid}"),
        format!("POST {BASE}/snapshots/{sid}/restore"),
    ] {
        let answer = front.call(As::Other, &line, None).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{line}");
    }
    let listed = front.call(As::Other, &format!("GET {BASE}/snapshots"), None).await;
    assert_eq!(listed.body, json!({ "snapshots": [], "items": [], "next_cursor": null }));
}

#[tokio::test]
async fn bad_input_takes_no_snapshot() {
    let mut front = Front::open().await;
    let id = stopped(&mut front, "box").await;
    let line = format!("POST /workspaces/{id}/snapshots");
    let mut refused = Vec::new();
    for body in [
        json!({ "name": "" }),
        json!({ "name": "x".repeat(256) }),
        json!({ "name": 7 }),
        json!({ "description": "x" }),
        json!([]),
    ] {
        let answer = admin(&mut front, &line, Some(body)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        refused.push(answer.body);
    }
    let listed = admin(&mut front, "GET /snapshots", None).await;
    assert_eq!(listed.body["snapshots"], json!([]));
    insta::assert_json_snapshot!(refused);
}

#[tokio::test]
async fn the_plans_number_of_snapshots_is_kept_with_402() {
    let plan = Plan { max_snapshots: 1, ..testing::plan() };
    let mut front = Front::open_with(ControlConfig { plan, ..testing::config() }).await;
    let id = stopped(&mut front, "box").await;
    take(&mut front, &id).await;
    let refused = admin(&mut front, &format!("POST /workspaces/{id}/snapshots"), None).await;
    assert_eq!(refused.status, StatusCode::PAYMENT_REQUIRED);
    insta::assert_json_snapshot!(refused.body);
}

#[tokio::test]
async fn a_snapshot_that_fails_is_an_error_and_leaves_nothing() {
    let mut front = Front::open().await;
    let id = stopped(&mut front, "box").await;
    let full = NodeError::NoCapacity("the disk is full".to_owned());
    front.test.node.fail_next(Point::TakeSnapshot, full);
    let failed = admin(&mut front, &format!("POST /workspaces/{id}/snapshots"), None).await;
    assert_eq!(failed.status, StatusCode::SERVICE_UNAVAILABLE);
    insta::assert_json_snapshot!(failed.body);
    front.test.quiet().await;
    let caller = front.test.caller().await;
    let quota = front.test.control.quota(&caller).await.expect("the quota");
    assert_eq!(quota.usage.snapshots, 0);
}

#[tokio::test]
async fn every_prefix_leads_to_the_same_snapshots() {
    let mut front = Front::open().await;
    let id = stopped(&mut front, "box").await;
    let sid = take(&mut front, &id).await;
    for (host, prefix) in [
        ("localhost", "/api/v1"),
        ("localhost", "/api"),
        ("rigbox.localhost", "/v1"),
        ("rigbox.localhost", "/api/v1"),
    ] {
        for path in [format!("/workspaces/{id}/snapshots"), "/snapshots".to_owned()] {
            let line = format!("GET {prefix}{path}");
            let answer = front.call_on(host, As::Admin, &line, None).await;
            assert_eq!(answer.body["snapshots"][0]["id"], sid.as_str(), "{line} on {host}");
        }
    }
}
