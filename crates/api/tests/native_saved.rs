//! The native API's routes for rest, snapshots, restoring, forking and the rules of a life. Most
//! snapshots are transcripts of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use front::{As, Front};
use http::StatusCode;
use serde_json::json;

const BASE: &str = "/skerry/v1";

/// A workspace that runs.
async fn running(front: &mut Front, name: &str) -> String {
    let body = json!({ "name": name, "slug": format!("{name}-slug") });
    let answer =
        front.call(As::Admin, &format!("POST {BASE}/workspaces?wait=60"), Some(body)).await;
    assert_eq!(answer.body["state"], "running");
    answer.body["id"].as_str().expect("an id").to_owned()
}

/// A complete snapshot of it.
async fn snapshot(front: &mut Front, workspace: &str, name: &str) -> String {
    let line = format!("POST {BASE}/workspaces/{workspace}/snapshots?wait=60");
    let answer = front.call(As::Admin, &line, Some(json!({ "name": name }))).await;
    assert_eq!((answer.status, &answer.body["state"]), (StatusCode::CREATED, &json!("ready")));
    answer.body["id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_workspace_is_paused_resumed_suspended_and_resumed() {
    let mut front = Front::open().await;
    let id = running(&mut front, "first").await;
    let one = format!("{BASE}/workspaces/{id}");
    for verb in ["pause", "pause", "resume", "suspend", "suspend", "resume", "resume"] {
        front.call(As::Admin, &format!("POST {one}/{verb}?wait=60"), None).await;
    }
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn what_does_not_run_cannot_be_paused_suspended_or_resumed() {
    let mut front = Front::open().await;
    let id = running(&mut front, "first").await;
    let one = format!("{BASE}/workspaces/{id}");
    front.call(As::Admin, &format!("POST {one}/stop?wait=60"), None).await;
    for verb in ["pause", "suspend", "resume"] {
        let answer = front.call(As::Admin, &format!("POST {one}/{verb}"), None).await;
        assert_eq!(answer.status, StatusCode::CONFLICT);
        assert_eq!(answer.body["error"]["code"], "refused_by_state");
    }
    let after = front.call(As::Admin, &format!("GET {one}"), None).await;
    assert_eq!(after.body["state"], "stopped");
}

#[tokio::test]
async fn a_snapshot_is_taken_shown_listed_renamed_and_deleted() {
    let mut front = Front::open().await;
    let id = running(&mut front, "first").await;
    let line = format!("POST {BASE}/workspaces/{id}/snapshots?wait=60");
    let body = json!({ "name": "before", "contents": "disk", "metadata": { "k": 1 } });
    let made = front.call(As::Admin, &line, Some(body)).await;
    let one = format!("{BASE}/snapshots/{}", made.body["id"].as_str().expect("an id"));
    front.call(As::Admin, &format!("GET {one}"), None).await;
    front.call(As::Admin, &format!("GET {BASE}/snapshots/before"), None).await;
    let rename = json!({ "name": "after", "metadata": {} });
    front.call(As::Admin, &format!("PATCH {one}"), Some(rename)).await;
    for filter in ["workspace=first-slug", "name=after&state=ready", "state=failed,creating"] {
        front.call(As::Admin, &format!("GET {BASE}/snapshots?{filter}"), None).await;
    }
    front.call(As::Admin, &format!("DELETE {one}?wait=60"), None).await;
    front.call(As::Admin, &format!("GET {one}"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_snapshot_outlives_its_workspace_and_is_still_listed_by_it() {
    let mut front = Front::open().await;
    let id = running(&mut front, "first").await;
    snapshot(&mut front, &id, "kept").await;
    front.call(As::Admin, &format!("DELETE {BASE}/workspaces/{id}?wait=60"), None).await;
    let line = format!("GET {BASE}/snapshots?workspace={id}");
    let list = front.call(As::Admin, &line, None).await;
    assert_eq!(
        (&list.body["total"], &list.body["snapshots"][0]["name"]),
        (&json!(1), &json!("kept"))
    );
}

#[tokio::test]
async fn a_workspace_is_made_from_a_snapshot_and_another_restored_to_it() {
    let mut front = Front::open().await;
    let id = running(&mut front, "first").await;
    let taken = snapshot(&mut front, &id, "base-state").await;
    let create = format!("POST {BASE}/workspaces?wait=60");
    let body = json!({ "name": "second", "from_snapshot": "base-state" });
    let second = front.call(As::Admin, &create, Some(body)).await;
    assert_eq!(second.body["state"], "running");
    assert_eq!(second.body["origin"], json!({ "kind": "snapshot", "snapshot_id": taken }));
    let line = format!("POST {BASE}/workspaces/{id}/restore?wait=60");
    let restored = front.call(As::Admin, &line, Some(json!({ "snapshot": taken }))).await;
    assert_eq!(
        (&restored.body["state"], &restored.body["incarnation"]),
        (&json!("running"), &json!(2))
    );
    let missing = front.call(As::Admin, &line, Some(json!({ "snapshot": "nothing" }))).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_snapshot_that_a_workspace_still_needs_is_not_deleted() {
    let mut front = Front::open().await;
    let id = running(&mut front, "first").await;
    let taken = snapshot(&mut front, &id, "needed").await;
    let body = json!({ "name": "later", "from_snapshot": taken, "start": false });
    front.call(As::Admin, &format!("POST {BASE}/workspaces"), Some(body)).await;
    let line = format!("DELETE {BASE}/snapshots/{taken}?wait=60");
    let refused = front.call(As::Admin, &line, None).await;
    assert_eq!(
        (refused.status, &refused.body["error"]["code"]),
        (StatusCode::CONFLICT, &json!("conflict"))
    );
}

#[tokio::test]
async fn a_running_workspace_is_forked() {
    let mut front = Front::open().await;
    let id = running(&mut front, "first").await;
    let line = format!("POST {BASE}/workspaces/{id}/fork?wait=60");
    let body = json!({ "count": 2, "name": "branch", "snapshot_name": "fork-point" });
    let forked = front.call(As::Admin, &line, Some(body)).await;
    assert_eq!(forked.status, StatusCode::CREATED);
    assert_eq!(forked.body["snapshot"]["name"], "fork-point");
    let forks = forked.body["workspaces"].as_array().expect("a list");
    assert_eq!(forks.len(), 2);
    for fork in forks {
        assert_eq!((&fork["state"], &fork["image"]), (&json!("running"), &json!("base")));
    }
    let source = front.call(As::Admin, &format!("GET {BASE}/workspaces/{id}"), None).await;
    assert_eq!(
        (&source.body["state"], &source.body["incarnation"]),
        (&json!("running"), &json!(1))
    );
}

#[tokio::test]
async fn create_takes_every_rule_of_a_life_and_shows_it() {
    let mut front = Front::open().await;
    let body = json!({
        "name": "ruled", "slug": "ruled", "lifetime": "temporary",
        "expiry": { "after_seconds": 3600, "action": "suspend" },
        "idle": { "after_seconds": 300, "action": "pause", "discard_memory_after_seconds": 600 },
        "restart": { "mode": "on_failure", "max_restarts": 3,
                     "backoff": { "first_seconds": 2, "most_seconds": 60 } },
        "remove_on_exit": true, "snapshot_on_terminate": { "name": "last" }, "auto_resume": true,
    });
    front.call(As::Admin, &format!("POST {BASE}/workspaces?wait=60"), Some(body)).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn the_rules_of_a_life_are_changed_cleared_and_the_time_renewed() {
    let mut front = Front::open().await;
    let id = running(&mut front, "first").await;
    let one = format!("{BASE}/workspaces/{id}");
    let change = json!({
        "expiry": { "after_seconds": 60, "action": "stop" },
        "idle": { "after_seconds": 300, "action": "suspend" },
        "restart": { "mode": "always" }, "auto_resume": true,
    });
    let changed = front.call(As::Admin, &format!("PATCH {one}/lifecycle"), Some(change)).await;
    let first_end = changed.body["expires_at"].clone();
    assert!(first_end.is_string());
    let line = format!("POST {one}/lifecycle/renew");
    let later = front.call(As::Admin, &line, Some(json!({ "by_seconds": 3600 }))).await;
    assert!(later.body["expires_at"].as_str() > first_end.as_str());
    front.call(As::Admin, &line, Some(json!({ "at": "2000-01-01T00:00:00Z" }))).await;
    front.call(As::Admin, &line, Some(json!({ "by_seconds": 1, "after_seconds": 1 }))).await;
    front.call(As::Admin, &format!("POST {one}/activity"), None).await;
    let other_end = json!({ "expiry_action": "suspend" });
    let line_of_rules = format!("PATCH {one}/lifecycle");
    let kept = front.call(As::Admin, &line_of_rules, Some(other_end)).await;
    assert_eq!(kept.body["expiry"], json!({ "after_seconds": 60, "action": "suspend" }));
    assert_eq!(kept.body["expires_at"], later.body["expires_at"]);
    let clear = json!({ "expiry": null, "idle": null });
    let cleared = front.call(As::Admin, &format!("PATCH {one}/lifecycle"), Some(clear)).await;
    assert!(cleared.body["expiry"].is_null() && cleared.body["expires_at"].is_null());
    assert_eq!(cleared.body["restart"]["mode"], "always");
    let none = front.call(As::Admin, &line, Some(json!({}))).await;
    assert_eq!(none.status, StatusCode::CONFLICT);
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn bad_rules_and_snapshots_are_named_with_what_is_allowed() {
    let mut front = Front::open().await;
    let id = running(&mut front, "first").await;
    let one = format!("{BASE}/workspaces/{id}");
    for (line, body) in [
        (
            format!("PATCH {one}/lifecycle"),
            json!({ "idle": { "after_seconds": 0, "action": "stop" } }),
        ),
        (
            format!("PATCH {one}/lifecycle"),
            json!({ "idle": { "after_seconds": 1, "action": "nap" } }),
        ),
        (
            format!("PATCH {one}/lifecycle"),
            json!({ "expiry": { "after_seconds": 0, "action": "stop" } }),
        ),
        (format!("PATCH {one}/lifecycle"), json!({ "expiry": null, "expiry_action": "stop" })),
        (
            format!("PATCH {one}/lifecycle"),
            json!({ "restart": { "mode": "always", "backoff": { "first_seconds": 9, "most_seconds": 1 } } }),
        ),
        (format!("PATCH {one}/lifecycle"), json!({ "snapshot_on_terminate": { "name": "" } })),
        (format!("PATCH {one}/lifecycle"), json!({ "sleepy": true })),
        (format!("POST {one}/lifecycle/renew"), json!({ "at": "tomorrow" })),
        (format!("POST {one}/snapshots"), json!({ "name": "" })),
        (format!("POST {one}/snapshots"), json!({ "contents": "soul" })),
        (format!("POST {one}/fork"), json!({ "count": 0 })),
        (format!("POST {one}/fork"), json!({ "count": 257 })),
        (format!("POST {one}/restore"), json!({})),
        (format!("POST {BASE}/workspaces"), json!({ "from_snapshot": "x", "image": "base" })),
    ] {
        let answer = front.call(As::Admin, &line, Some(body)).await;
        assert!(answer.status.is_client_error(), "{line}");
    }
    front.call(As::Admin, &format!("GET {BASE}/snapshots?state=odd"), None).await;
    front.call(As::Admin, &format!("GET {BASE}/snapshots?limit=0"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn another_tenant_sees_nothing_of_them_and_a_stranger_nothing_at_all() {
    let mut front = Front::open().await;
    let id = running(&mut front, "first").await;
    let taken = snapshot(&mut front, &id, "mine").await;
    let one = format!("{BASE}/workspaces/{id}");
    for (line, body) in [
        (format!("POST {one}/pause"), None),
        (format!("POST {one}/resume"), None),
        (format!("POST {one}/suspend"), None),
        (format!("POST {one}/restore"), Some(json!({ "snapshot": taken }))),
        (format!("POST {one}/fork"), Some(json!({}))),
        (format!("PATCH {one}/lifecycle"), Some(json!({ "auto_resume": true }))),
        (format!("POST {one}/lifecycle/renew"), Some(json!({}))),
        (format!("POST {one}/activity"), None),
        (format!("POST {one}/snapshots"), Some(json!({}))),
        (format!("GET {BASE}/snapshots/{taken}"), None),
        (format!("PATCH {BASE}/snapshots/{taken}"), Some(json!({ "name": "yours" }))),
        (format!("DELETE {BASE}/snapshots/{taken}"), None),
        (format!("POST {BASE}/workspaces"), Some(json!({ "from_snapshot": taken }))),
    ] {
        let other = front.call(As::Other, &line, body.clone()).await;
        assert_eq!(other.status, StatusCode::NOT_FOUND, "{line}");
        for caller in [As::Stranger, As::Nobody] {
            let answer = front.call(caller, &line, body.clone()).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{line}");
        }
    }
    let line = format!("GET {BASE}/snapshots?workspace={id}");
    assert_eq!(front.call(As::Other, &line, None).await.body["total"], 0);
    let after = front.call(As::Admin, &format!("GET {one}"), None).await;
    assert_eq!(
        (&after.body["state"], &after.body["auto_resume"]),
        (&json!("running"), &json!(false))
    );
}
