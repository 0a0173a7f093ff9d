//! Published ports in every dialect that has them.
#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use front::{As, Front};
use serde_json::json;

#[tokio::test]
async fn native_ports_are_published_changed_listed_and_revoked() {
    let mut front = Front::open().await;
    let made = json!({ "name": "box" });
    front.beside(As::Admin, "POST /skerry/v1/workspaces", Some(made)).await;
    front.settled("box").await;
    let ports = "/skerry/v1/workspaces/box/published-ports";
    for body in [
        json!({ "port": 3000 }),
        json!({ "port": 80, "slug": "front", "label": "web", "visibility": "public" }),
        json!({ "port": 81, "slug": "front" }),
        json!({ "port": 0 }),
        json!({ "port": 81, "slug": "oblien" }),
        json!({ "port": 81, "secret": true }),
    ] {
        front.call(As::Admin, &format!("POST {ports}"), Some(body)).await;
    }
    front.call(As::Admin, &format!("GET {ports}"), None).await;
    let change = json!({ "slug": "renamed", "visibility": "private" });
    front.call(As::Admin, &format!("PATCH {ports}/80"), Some(change)).await;
    front.call(As::Admin, &format!("PATCH {ports}/81"), Some(json!({}))).await;
    front.call(As::Admin, &format!("DELETE {ports}/80"), None).await;
    front.call(As::Admin, &format!("DELETE {ports}/80"), None).await;
    front.call(As::Admin, &format!("DELETE {ports}/web"), None).await;
    front.call(As::Other, &format!("GET {ports}"), None).await;
    front.call(As::Other, &format!("DELETE {ports}/3000"), None).await;
    front.call(As::Nobody, &format!("GET {ports}"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn oblien_ports_are_exposed_renamed_and_revoked() {
    let mut front = Front::open().await;
    let made = json!({ "name": "box", "slug": "box", "image": "base" });
    front.beside(As::Admin, "POST /workspace", Some(made)).await;
    let access = "/workspace/box/public-access";
    for body in [
        json!({ "port": 3000, "label": "web" }),
        json!({ "port": 3000, "slug": "front" }),
        json!({ "port": 8080, "slug": "front" }),
        json!({ "port": 0 }),
        json!({ "slug": "front" }),
        json!({ "port": 80, "domain": "example.com" }),
    ] {
        front.call(As::Admin, &format!("POST {access}"), Some(body)).await;
    }
    front
        .call(As::Admin, &format!("PATCH {access}/3000"), Some(json!({ "slug": "renamed" })))
        .await;
    front.call(As::Admin, &format!("PATCH {access}/3000"), Some(json!({}))).await;
    front.call(As::Admin, &format!("GET {access}"), None).await;
    let shown = front.beside(As::Admin, "GET /workspace/box", None).await;
    assert_eq!(shown.body["workspace"]["public_ports"][0]["hash"], "renamed");
    let shown = front.beside(As::Admin, "GET /workspace/box/details", None).await;
    assert_eq!(shown.body["workspace"]["public_ports"][0]["port"], 3000);
    let shown = front.beside(As::Admin, "GET /workspace", None).await;
    assert_eq!(shown.body["workspaces"][0]["public_ports"][0]["label"], "web");
    front.call(As::Other, &format!("GET {access}"), None).await;
    front.call(As::Other, &format!("DELETE {access}/3000"), None).await;
    front.call(As::Admin, &format!("DELETE {access}/3000"), None).await;
    front.call(As::Admin, &format!("DELETE {access}/3000"), None).await;
    front.call(As::Admin, &format!("GET {access}"), None).await;
    front.beside(As::Admin, "POST /workspace/box/stop", None).await;
    front.call(As::Admin, &format!("POST {access}"), Some(json!({ "port": 3000 }))).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn an_instavm_port_is_shared_made_private_and_revoked() {
    let mut front = Front::open().await;
    let made = json!({ "share": { "port": 8000, "is_public": true } });
    let made = front.call(As::Admin, "POST /v1/vms", Some(made)).await.body;
    let (vm, session) = (&made["vm_id"], &made["session_id"]);
    let share = format!("/v1/shares/{}", made["share"]["share_id"].as_str().unwrap());
    front.call(As::Admin, &format!("PATCH {share}"), Some(json!({ "is_public": true }))).await;
    front.call(As::Admin, &format!("PATCH {share}"), Some(json!({ "is_public": false }))).await;
    front.call(As::Other, &format!("PATCH {share}"), Some(json!({ "revoke": true }))).await;
    front.call(As::Admin, &format!("PATCH {share}"), Some(json!({ "revoke": true }))).await;
    front.call(As::Admin, &format!("PATCH {share}"), Some(json!({ "revoke": true }))).await;
    for body in [
        json!({ "port": 80, "vm_id": vm, "session_id": "x" }),
        json!({ "port": 81, "session_id": session, "is_public": true }),
        json!({ "port": 0, "is_public": "maybe" }),
        json!({ "session_id": "x", "port": 1 }),
        json!({ "vm_id": vm }),
    ] {
        front.call(As::Admin, "POST /v1/shares", Some(body)).await;
    }
    let theirs = json!({ "port": 80, "vm_id": vm });
    front.call(As::Other, "POST /v1/shares", Some(theirs)).await;
    let bad = json!({ "share": { "is_public": true } });
    front.call(As::Admin, "POST /v1/vms", Some(bad)).await;
    let listed = front.beside(As::Admin, "GET /v1/vms/", None).await;
    assert_eq!(listed.body.as_array().unwrap().len(), 1);
    insta::assert_snapshot!(front.transcript());
}
