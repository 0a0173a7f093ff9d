//! InstaVM's suspend, resume, clone, snapshots and rules of a life: success, wrong state, another
//! tenant, bad input. Each snapshot is a transcript of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::{sync::Arc, time::Duration};

use front::{
    As, Front,
    instavm::{create, get},
};
use serde_json::{Value, json};
use skerry_control::{
    Wait,
    internal_api::NodeError,
    sim_node::{Point, SimGuest},
};
use skerry_model::State;

async fn send(front: &mut Front, line: &str, body: Option<Value>) -> Value {
    let answer = front.call(As::Admin, line, body).await;
    assert_eq!(answer.status, 200, "{line}: {}", answer.body);
    answer.body
}

fn text(body: &Value, field: &str) -> String {
    body[field].as_str().expect("a text").to_owned()
}

fn guest(front: &Front, vm: &str) -> Arc<SimGuest> {
    let id = skerry_api::ids::parse_workspace_id(vm).expect("an id");
    front.test.node.sim_guest(id).expect("a VM")
}

async fn stop(front: &Front, vm: &str) {
    let caller = front.test.caller().await;
    let which = skerry_api::ids::parse_workspace_ref(vm);
    let wait = Wait::UpTo(Duration::from_secs(10));
    front.test.control.stop_workspace(&caller, &which, wait).await.expect("stopped");
}

/// The status of an `/execute` in the session.
async fn execute(front: &Front, caller: As, session: &str) -> (u16, Value) {
    let body = json!({ "command": "echo hi", "session_id": session, "language": "bash" });
    let answer = front.beside(caller, "POST /execute", Some(body)).await;
    let said = ["stdout", "detail"].into_iter().find_map(|field| answer.body.get(field));
    (answer.status.as_u16(), said.cloned().unwrap_or_default())
}

#[tokio::test]
async fn a_vm_is_parked_and_goes_on_under_another_id_in_the_same_session() {
    let mut front = Front::open().await;
    let (first, session) = create(&mut front, json!({ "env": { "A": "1" } })).await;
    guest(&front, &first).hold("a process", "runs");
    guest(&front, &first).put_file("/app/f", b"kept");
    send(&mut front, &format!("POST /v1/vms/{first}/suspend"), None).await;
    get(&mut front, &format!("/v1/vms/{first}")).await;
    get(&mut front, &format!("/v1/sessions/status/{session}")).await;
    assert_eq!(get(&mut front, "/v1/vms").await[0]["status"], "suspended");
    let resumed = send(&mut front, &format!("POST /v1/vms/{first}/resume"), None).await;
    let second = text(&resumed, "vm_id");
    assert_ne!(second, first);
    assert_eq!(guest(&front, &first).held("a process").as_deref(), Some("runs"));
    assert_eq!(guest(&front, &first).file("/app/f").as_deref(), Some(b"kept".as_slice()));
    get(&mut front, &format!("/v1/sessions/status/{session}")).await;
    assert_eq!(execute(&front, As::Admin, &session).await, (200, json!("hi\n")));

    // By the old id, again, without waiting: the answer has the next id already.
    send(&mut front, &format!("POST /v1/vms/{first}/suspend"), None).await;
    front.test.node.hang(Point::EnsureRunning);
    let line = format!("POST /v1/vms/{first}/resume?wait=false");
    let third = text(&send(&mut front, &line, None).await, "vm_id");
    front.until(&first, |workspace| workspace.state == State::Starting).await;
    get(&mut front, &format!("/v1/sessions/status/{session}")).await;
    front.test.node.release(Point::EnsureRunning);
    front.settled(&first).await;
    assert_eq!(get(&mut front, &format!("/v1/vms/{second}")).await["vm_id"], json!(third));
    send(&mut front, &format!("DELETE /v1/vms/{first}"), None).await;
    for gone in [&first, &second, &third] {
        let answer = front.call(As::Admin, &format!("GET /v1/vms/{gone}"), None).await;
        assert_eq!(answer.status, 404);
    }
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_resume_that_cancels_a_suspension_keeps_the_vm_and_its_id() {
    let mut front = Front::open().await;
    let (vm, _) = create(&mut front, json!({})).await;
    front.test.node.hang(Point::EnsureSuspended);
    let suspend = format!("POST /v1/vms/{vm}/suspend");
    let resume = format!("POST /v1/vms/{vm}/resume");
    let resuming = async {
        front.until(&vm, |workspace| workspace.state == State::Suspending).await;
        front.beside(As::Admin, &resume, None).await
    };
    let (suspended, resumed) = tokio::join!(front.beside(As::Admin, &suspend, None), resuming);
    assert_eq!(suspended.status, 200, "{}", suspended.body);
    assert_eq!((&resumed.body["status"], &resumed.body["vm_id"]), (&json!("active"), &json!(vm)));
    front.test.node.release(Point::EnsureSuspended);
    let again = send(&mut front, &resume, None).await;
    assert_eq!(again["vm_id"], json!(vm), "resuming what runs changes nothing");
}

#[tokio::test]
async fn use_wakes_a_parked_vm_only_if_it_may() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({ "auto_resume": true })).await;
    let suspend = format!("POST /v1/vms/{vm}/suspend");
    send(&mut front, &suspend, None).await;
    assert_eq!(execute(&front, As::Other, &session).await.0, 404);
    assert_eq!(get(&mut front, &format!("/v1/vms/{vm}")).await["status"], "suspended");
    assert_eq!(execute(&front, As::Admin, &session).await, (200, json!("hi\n")));
    let woken = get(&mut front, &format!("/v1/vms/{vm}")).await;
    assert_eq!((&woken["status"], &woken["vm_id"]), (&json!("active"), &json!(format!("{vm}_2"))));
    let off = Some(json!({ "auto_resume": false }));
    let changed = send(&mut front, &format!("PATCH /v1/vms/{vm}"), off).await;
    assert_eq!(changed["auto_resume"], false);
    send(&mut front, &suspend, None).await;
    let refusal = json!("VM is suspended; resume it, or turn on auto_resume");
    assert_eq!(execute(&front, As::Admin, &session).await, (409, refusal));
    assert_eq!(front.test.node.memory_restores(), 1);
}

#[tokio::test]
async fn a_wake_that_outlasts_the_callers_time_is_answered_in_time_and_goes_on() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({ "auto_resume": true })).await;
    send(&mut front, &format!("POST /v1/vms/{vm}/suspend"), None).await;
    front.test.node.hang(Point::EnsureRunning);
    let body = json!({
        "command": "echo hi", "session_id": session, "language": "bash", "timeout": 1,
    });
    let late = front.beside(As::Admin, "POST /execute", Some(body)).await;
    assert_eq!(late.status, 503, "{}", late.body);
    assert_eq!(get(&mut front, &format!("/v1/vms/{vm}")).await["status"], "resuming");
    front.test.node.release(Point::EnsureRunning);
    front.settled(&vm).await;
    assert_eq!(execute(&front, As::Admin, &session).await, (200, json!("hi\n")));
}

#[tokio::test]
async fn a_suspension_that_fails_is_an_error_and_the_vm_runs_on() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({})).await;
    let full = NodeError::NoCapacity("the disk is full".to_owned());
    front.test.node.fail_next(Point::EnsureSuspended, full);
    let line = format!("POST /v1/vms/{vm}/suspend");
    let answer = front.call(As::Admin, &line, None).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(text(&answer.body, "detail").contains("the disk is full"), "{}", answer.body);
    assert_eq!(get(&mut front, &format!("/v1/vms/{vm}")).await["status"], "active");
    assert_eq!(execute(&front, As::Admin, &session).await, (200, json!("hi\n")));
}

#[tokio::test]
async fn what_another_dialect_paused_is_suspended_and_resumes_as_the_same_vm() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({})).await;
    send(&mut front, &format!("POST /workspace/{vm}/pause"), None).await;
    assert_eq!(get(&mut front, &format!("/v1/vms/{vm}")).await["status"], "suspended");
    assert_eq!(execute(&front, As::Admin, &session).await.0, 409);
    let resumed = send(&mut front, &format!("POST /v1/vms/{vm}/resume"), None).await;
    assert_eq!((&resumed["vm_id"], &resumed["status"]), (&json!(vm), &json!("active")));
    send(&mut front, &format!("POST /v1/vms/{vm}/suspend"), None).await;
    let second = text(&send(&mut front, &format!("POST /v1/vms/{vm}/resume"), None).await, "vm_id");
    let shown = send(&mut front, &format!("GET /workspace/{second}"), None).await;
    assert_eq!(shown["workspace"]["status"], "running", "every dialect knows the later id");
}

#[tokio::test]
async fn saved_memory_that_is_damaged_is_an_error_and_a_failed_vm() {
    let mut front = Front::open().await;
    let (vm, _) = create(&mut front, json!({})).await;
    send(&mut front, &format!("POST /v1/vms/{vm}/suspend"), None).await;
    let id = skerry_api::ids::parse_workspace_id(&vm).expect("an id");
    front.test.node.damage_saved_memory(id);
    let resume = format!("POST /v1/vms/{vm}/resume");
    let answer = front.call(As::Admin, &resume, None).await;
    assert_eq!(answer.status, 503);
    let said = text(&answer.body, "detail");
    assert!(said.starts_with("VM failed to start (saved_state_unusable)"), "{said}");
    assert_eq!(get(&mut front, &format!("/v1/vms/{vm}")).await["status"], "failed");
    assert_eq!(front.call(As::Admin, &resume, None).await.status, 409);
    send(&mut front, &format!("DELETE /v1/vms/{vm}"), None).await;
}

#[tokio::test]
async fn a_lifetime_ends_in_parking_is_renewed_and_ends_in_deletion() {
    let mut front = Front::open().await;
    let body = json!({ "vm_lifetime_seconds": 60, "auto_suspend": true, "metadata": { "a": 1 } });
    let (vm, _) = create(&mut front, body).await;
    let (one, patch) = (format!("/v1/vms/{vm}"), format!("PATCH /v1/vms/{vm}"));
    let first = text(&get(&mut front, &one).await, "expires_at");
    front.test.advance(Duration::from_secs(30));
    let renewal = Some(json!({ "vm_lifetime_seconds": 60 }));
    let renewed = send(&mut front, &patch, renewal).await;
    assert!(text(&renewed, "expires_at") > first);
    assert_eq!(renewed["auto_suspend"], true);
    front.test.advance(Duration::from_secs(59));
    front.test.quiet().await;
    assert_eq!(get(&mut front, &one).await["status"], "active");
    front.test.advance(Duration::from_secs(1));
    front.until(&vm, |workspace| workspace.state == State::Suspended).await;
    get(&mut front, &one).await;
    send(&mut front, &format!("POST /v1/vms/{vm}/resume"), None).await;
    let begun = get(&mut front, &one).await;
    front.test.advance(Duration::from_secs(30));
    let off = Some(json!({ "auto_suspend": false }));
    let mortal = send(&mut front, &patch, off).await;
    assert_eq!(
        (&mortal["expires_at"], &mortal["auto_suspend"]),
        (&begun["expires_at"], &json!(false))
    );
    front.test.advance(Duration::from_secs(30));
    front.vanished(&vm).await;
    get(&mut front, &one).await;
    assert_eq!(get(&mut front, "/v1/vms/").await, json!([]));
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn what_is_terminated_leaves_a_snapshot_of_the_name_it_was_given() {
    let mut front = Front::open().await;
    let last = |name: &str| json!({ "snapshot_on_terminate": true, "snapshot_name": name });
    let (deleted, _) = create(&mut front, last("deleted")).await;
    assert_eq!(get(&mut front, &format!("/v1/vms/{deleted}")).await["snapshot_name"], "deleted");
    send(&mut front, &format!("DELETE /v1/vms/{deleted}"), None).await;
    let (_, killed) = create(&mut front, json!({})).await;
    send(&mut front, &format!("PATCH /v1/vms/{killed}"), Some(last("killed"))).await;
    send(&mut front, "POST /kill", Some(json!({ "session_id": killed }))).await;
    let mut short = last("expired");
    short["vm_lifetime_seconds"] = json!(60);
    create(&mut front, short).await;
    front.test.advance(Duration::from_secs(60));
    front.test.quiet().await;
    let (plain, _) = create(&mut front, last("not taken")).await;
    let off = Some(json!({ "snapshot_on_terminate": false }));
    let cleared = send(&mut front, &format!("PATCH /v1/vms/{plain}"), off).await;
    assert_eq!(
        (&cleared["snapshot_on_terminate"], &cleared["snapshot_name"]),
        (&json!(false), &Value::Null)
    );
    send(&mut front, &format!("DELETE /v1/vms/{plain}"), None).await;
    assert_eq!(get(&mut front, "/v1/vms/").await, json!([]));
    let snapshots = get(&mut front, "/v1/snapshots").await;
    let names = snapshots.as_array().expect("an array").iter();
    let mut names: Vec<_> = names.map(|one| (text(one, "name"), text(one, "status"))).collect();
    names.sort();
    let ready = |name: &str| (name.to_owned(), "ready".to_owned());
    assert_eq!(names, [ready("deleted"), ready("expired"), ready("killed")]);
}

#[tokio::test]
async fn a_snapshot_is_taken_listed_used_and_deleted() {
    let mut front = Front::open().await;
    let (vm, _) = create(&mut front, json!({ "memory_mb": 1024, "vcpu_count": 1 })).await;
    guest(&front, &vm).put_file("/app/f", b"kept");
    guest(&front, &vm).hold("a process", "runs");
    let take = format!("POST /v1/vms/{vm}/snapshot");
    let taken = send(&mut front, &take, Some(json!({ "name": "base", "future": 1 }))).await;
    let snapshot = text(&taken, "snapshot_id");
    front.test.clock.advance(Duration::from_secs(1));
    let unnamed = send(&mut front, &take, None).await;
    get(&mut front, &format!("/v1/snapshots/{snapshot}")).await;
    let user = get(&mut front, "/v1/snapshots?type=user&limit=5").await;
    assert_eq!(user.as_array().map(Vec::len), Some(2));
    assert_eq!(get(&mut front, "/v1/snapshots?type=system").await, json!([]));
    send(&mut front, &format!("DELETE /v1/vms/{vm}"), None).await;

    // Of the snapshot's size and memory, in a session of its own; another size boots its disk.
    let (same, _) = create(&mut front, json!({ "snapshot_id": snapshot })).await;
    let record = get(&mut front, &format!("/v1/vms/{same}")).await;
    assert_eq!((&record["memory_mb"], &record["vcpu_count"]), (&json!(1024), &json!(1)));
    assert_eq!(record["snapshot_id"], json!(snapshot));
    assert_eq!(guest(&front, &same).file("/app/f").as_deref(), Some(b"kept".as_slice()));
    assert_eq!(guest(&front, &same).held("a process").as_deref(), Some("runs"));
    let larger = json!({ "snapshot_id": snapshot, "memory_mb": 2048 });
    let (larger, _) = create(&mut front, larger).await;
    assert_eq!(guest(&front, &larger).file("/app/f").as_deref(), Some(b"kept".as_slice()));
    assert_eq!(guest(&front, &larger).held("a process"), None);

    send(&mut front, &format!("DELETE /v1/snapshots/{snapshot}"), None).await;
    let line = format!("DELETE /v1/snapshots/{}", text(&unnamed, "id"));
    send(&mut front, &line, None).await;
    for line in [
        format!("GET /v1/snapshots/{snapshot}"),
        format!("DELETE /v1/snapshots/{snapshot}"),
        "GET /v1/snapshots/base".to_owned(),
    ] {
        assert_eq!(front.call(As::Admin, &line, None).await.status, 404, "{line}");
    }
    let body = Some(json!({ "snapshot_id": snapshot }));
    assert_eq!(front.call(As::Admin, "POST /v1/vms", body).await.status, 404);
    assert_eq!(get(&mut front, &format!("/v1/vms/{same}")).await["status"], "active");
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_snapshot_that_does_not_come_about_is_an_error_and_leaves_nothing() {
    let mut front = Front::open().await;
    let (vm, _) = create(&mut front, json!({})).await;
    let full = NodeError::NoCapacity("the disk is full".to_owned());
    front.test.node.fail_next(Point::TakeSnapshot, full);
    let take = format!("POST /v1/vms/{vm}/snapshot");
    let answer = front.call(As::Admin, &take, Some(json!({ "name": "n" }))).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(
        text(&answer.body, "detail"),
        "snapshot failed (no_capacity): no capacity: the disk is full"
    );
    front.test.quiet().await;
    assert_eq!(get(&mut front, "/v1/snapshots").await, json!([]));
    assert_eq!(get(&mut front, &format!("/v1/vms/{vm}")).await["status"], "active");
    front.test.node.hang(Point::TakeSnapshot);
    let early = send(&mut front, &format!("{take}?wait=false"), Some(json!({}))).await;
    assert_eq!(early["status"], "creating");
    let body = Some(json!({ "snapshot_id": early["id"] }));
    let unready = front.call(As::Admin, "POST /v1/vms", body).await;
    assert_eq!(unready.status, 409, "{}", unready.body);
    front.test.node.release(Point::TakeSnapshot);
}

#[tokio::test]
async fn a_clone_goes_on_where_the_vm_is_in_a_session_of_its_own() {
    let mut front = Front::open().await;
    let body = json!({ "metadata": { "team": "red" }, "vm_lifetime_seconds": 600 });
    let (vm, session) = create(&mut front, body).await;
    guest(&front, &vm).hold("a process", "runs");
    let clone = format!("POST /v1/vms/{vm}/clone");
    let made = send(&mut front, &clone, Some(json!({}))).await;
    let twin = text(&made, "vm_id");
    assert_ne!((&twin, &text(&made, "session_id")), (&vm, &session));
    assert_eq!(guest(&front, &twin).held("a process").as_deref(), Some("runs"));
    get(&mut front, &format!("/v1/vms/{twin}")).await;
    front.test.quiet().await;
    assert_eq!(get(&mut front, "/v1/snapshots").await, json!([]));
    let kept = send(&mut front, &clone, Some(json!({ "snapshot_name": "kept" }))).await;
    assert_eq!(kept["snapshot_deleted"], false);
    let listed = get(&mut front, "/v1/snapshots").await;
    assert_eq!((&listed[0]["name"], &listed[0]["id"]), (&json!("kept"), &kept["snapshot_id"]));
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_clone_that_does_not_wait_is_answered_before_it_runs() {
    let mut front = Front::open().await;
    let (vm, _) = create(&mut front, json!({})).await;
    front.test.node.hang(Point::EnsureRunning);
    let made = send(&mut front, &format!("POST /v1/vms/{vm}/clone?wait=false"), None).await;
    assert_eq!((&made["status"], &made["snapshot_deleted"]), (&json!("creating"), &json!(false)));
    front.test.node.release(Point::EnsureRunning);
    let twin = text(&made, "vm_id");
    front.settled(&twin).await;
    assert_eq!(get(&mut front, &format!("/v1/vms/{twin}")).await["status"], "active");
}

#[tokio::test]
async fn a_clone_that_does_not_come_up_is_an_error_and_leaves_nothing() {
    let mut front = Front::open().await;
    let (vm, _) = create(&mut front, json!({})).await;
    front.test.node.fail_next(Point::EnsureRunning, NodeError::Step { step: "boot" });
    let clone = format!("POST /v1/vms/{vm}/clone");
    let answer = front.call(As::Admin, &clone, Some(json!({}))).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    front.test.quiet().await;
    let left = get(&mut front, "/v1/vms/").await;
    assert_eq!((left.as_array().map(Vec::len), &left[0]["vm_id"]), (Some(1), &json!(vm)));
    let full = NodeError::NoCapacity("the disk is full".to_owned());
    front.test.node.fail_next(Point::TakeSnapshot, full);
    let answer = front.call(As::Admin, &clone, Some(json!({}))).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    front.test.quiet().await;
    assert_eq!(get(&mut front, "/v1/vms/").await.as_array().map(Vec::len), Some(1));
    let snapshots = get(&mut front, "/v1/snapshots").await;
    assert_eq!(snapshots, json!([]));
}

#[tokio::test]
async fn a_session_gets_another_vm_with_a_lifetime_or_from_a_snapshot() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({ "vcpu_count": 1 })).await;
    guest(&front, &vm).put_file("/app/f", b"before");
    let take = format!("POST /v1/vms/{vm}/snapshot");
    let snapshot = text(&send(&mut front, &take, None).await, "id");
    guest(&front, &vm).put_file("/app/f", b"after");
    stop(&front, &vm).await;
    let body = json!({ "session_id": session, "vm_lifetime_seconds": 60, "auto_suspend": true });
    let second = send(&mut front, "POST /v1/vms", Some(body)).await;
    assert_eq!(second["vm_id"], json!(format!("{vm}_2")));
    assert_eq!(guest(&front, &vm).file("/app/f").as_deref(), Some(b"after".as_slice()));
    let record = get(&mut front, &format!("/v1/vms/{vm}")).await;
    assert!(record["expires_at"].is_string());
    assert_eq!(record["auto_suspend"], true);
    stop(&front, &vm).await;
    let from = |id: &str| Some(json!({ "session_id": session, "snapshot_id": id }));
    let unknown = from("00000000-0000-4000-8000-000000000000");
    assert_eq!(front.call(As::Admin, "POST /v1/vms", unknown).await.status, 404);
    send(&mut front, "POST /v1/vms", from(&snapshot)).await;
    assert_eq!(guest(&front, &vm).file("/app/f").as_deref(), Some(b"before".as_slice()));
    send(&mut front, &format!("POST /v1/vms/{vm}/suspend"), None).await;
    let attach = Some(json!({ "session_id": session }));
    let parked = front.call(As::Admin, "POST /v1/vms", attach).await;
    assert_eq!(parked.status, 409, "{}", parked.body);
    assert_eq!(get(&mut front, &format!("/v1/vms/{vm}")).await["status"], "suspended");
}

#[tokio::test]
async fn a_session_takes_the_same_rules() {
    let mut front = Front::open().await;
    let body = json!({
        "vm_lifetime_seconds": 60, "auto_suspend": true, "auto_resume": true,
        "snapshot_on_terminate": true, "snapshot_name": "last",
    });
    let made = send(&mut front, "POST /v1/sessions/session", Some(body)).await;
    let session = text(&made, "session_id");
    front.settled(&session).await;
    get(&mut front, &format!("/v1/vms/{session}")).await;
    front.test.advance(Duration::from_secs(60));
    front.until(&session, |workspace| workspace.state == State::Suspended).await;
    assert_eq!(execute(&front, As::Admin, &session).await, (200, json!("hi\n")));
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn what_the_state_does_not_permit_is_a_conflict_and_changes_nothing() {
    let mut front = Front::open().await;
    let (vm, _) = create(&mut front, json!({})).await;
    let verb = |verb: &str| format!("POST /v1/vms/{vm}/{verb}");
    send(&mut front, &verb("suspend"), None).await;
    send(&mut front, &verb("suspend"), None).await;
    let memory = Some(json!({ "memory_mb": 1024, "auto_resume": true }));
    front.call(As::Admin, &format!("PATCH /v1/vms/{vm}"), memory).await;
    assert_eq!(get(&mut front, &format!("/v1/vms/{vm}")).await["auto_resume"], false);
    stop(&front, &vm).await;
    for line in [verb("suspend"), verb("resume")] {
        assert_eq!(front.call(As::Admin, &line, None).await.status, 409, "{line}");
    }
    front.test.node.hang(Point::EnsureRunning);
    let body = Some(json!({}));
    let starting = text(&send(&mut front, "POST /v1/vms?wait=false", body).await, "vm_id");
    front.until(&starting, |workspace| workspace.state == State::Starting).await;
    for verb in ["suspend", "resume", "clone", "snapshot"] {
        let line = format!("POST /v1/vms/{starting}/{verb}");
        assert_eq!(front.call(As::Admin, &line, None).await.status, 409, "{line}");
    }
    front.test.node.release(Point::EnsureRunning);
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_snapshot_that_a_vm_cannot_start_without_is_not_deleted() {
    let mut front = Front::open().await;
    let (vm, _) = create(&mut front, json!({})).await;
    let taken = send(&mut front, &format!("POST /v1/vms/{vm}/snapshot"), None).await;
    let snapshot = text(&taken, "id");
    front.test.node.hang(Point::EnsureRunning);
    let body = Some(json!({ "snapshot_id": snapshot }));
    let made = send(&mut front, "POST /v1/vms?wait=false", body).await;
    let delete = format!("DELETE /v1/snapshots/{snapshot}");
    let refused = front.call(As::Admin, &delete, None).await;
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert!(text(&refused.body, "detail").ends_with("cannot start without this snapshot"));
    front.test.node.release(Point::EnsureRunning);
    front.settled(&text(&made, "vm_id")).await;
    assert_eq!(send(&mut front, &delete, None).await["status"], "deleted");
}

#[tokio::test]
async fn bad_values_are_reported_by_field_and_make_nothing() {
    let mut front = Front::open().await;
    let (vm, _) = create(&mut front, json!({})).await;
    let long = "x".repeat(256);
    let mut text = String::new();
    for (line, body) in [
        ("POST /v1/vms/VM/snapshot", json!({ "name": 5 })),
        ("POST /v1/vms/VM/snapshot", json!({ "name": long })),
        ("POST /v1/vms/VM/snapshot", json!([])),
        ("POST /v1/vms/VM/snapshot?wait=perhaps", json!({})),
        ("POST /v1/vms/VM/clone", json!({ "snapshot_name": "a\u{7}" })),
        ("POST /v1/vms/VM/clone?wait=2", json!({})),
        ("POST /v1/vms/VM/resume?wait=maybe", json!({})),
        ("PATCH /v1/vms/VM", json!({ "auto_suspend": "perhaps", "auto_resume": 5 })),
        ("PATCH /v1/vms/VM", json!({ "vm_lifetime_seconds": 0, "snapshot_on_terminate": [] })),
        ("PATCH /v1/vms/VM", json!({ "vm_lifetime_seconds": 31_536_001 })),
        ("PATCH /v1/vms/VM", json!({ "snapshot_name": "alone" })),
        ("POST /v1/vms", json!({ "snapshot_name": "alone", "snapshot_on_terminate": false })),
        ("POST /v1/vms", json!({ "snapshot_id": 7 })),
        ("POST /v1/vms", json!({ "snapshot_id": "snap_1" })),
        ("POST /v1/sessions/session", json!({ "snapshot_name": "alone" })),
        ("POST /v1/snapshots", json!({ "name": "n" })),
        ("POST /v1/snapshots", json!({ "oci_image": "docker.io/library/python:3.11-slim" })),
        ("GET /v1/snapshots?type=public", Value::Null),
        ("GET /v1/snapshots/snap_1", Value::Null),
    ] {
        let target = line.replace("VM", &vm);
        let sent = (!body.is_null()).then(|| body.clone());
        let answer = front.call(As::Admin, &target, sent).await;
        let shown = body.to_string().replace(&long, "(256 x)");
        text.push_str(&format!("{line} {shown}\n  {}", answer.status.as_u16()));
        match answer.body["detail"].as_array() {
            None => text.push_str(&format!(" {}\n", answer.body["detail"])),
            Some(errors) => {
                text.push('\n');
                for error in errors {
                    text.push_str(&format!("    {error}\n"));
                }
            }
        }
    }
    assert_eq!(get(&mut front, "/v1/vms/").await.as_array().map(Vec::len), Some(1));
    assert_eq!(get(&mut front, "/v1/snapshots").await, json!([]));
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn another_account_finds_no_vm_to_park_and_no_snapshot() {
    let mut front = Front::open().await;
    let (vm, _) = create(&mut front, json!({})).await;
    let taken = send(&mut front, &format!("POST /v1/vms/{vm}/snapshot"), None).await;
    let snapshot = text(&taken, "id");
    for line in [
        format!("POST /v1/vms/{vm}/suspend"),
        format!("POST /v1/vms/{vm}/resume"),
        format!("POST /v1/vms/{vm}/clone"),
        format!("POST /v1/vms/{vm}/snapshot"),
        format!("GET /v1/snapshots/{snapshot}"),
        format!("DELETE /v1/snapshots/{snapshot}"),
    ] {
        let answer = front.call(As::Other, &line, None).await;
        assert_eq!(answer.status, 404, "{line}: {}", answer.body);
    }
    let body = Some(json!({ "snapshot_id": snapshot }));
    let answer = front.call(As::Other, "POST /v1/vms", body).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["detail"]),
        (404, &json!("Snapshot not found"))
    );
    assert_eq!(front.call(As::Other, "GET /v1/snapshots", None).await.body, json!([]));
    assert_eq!(get(&mut front, &format!("/v1/vms/{vm}")).await["status"], "active");
    assert_eq!(get(&mut front, &format!("/v1/snapshots/{snapshot}")).await["status"], "ready");
}
