//! Volumes in the native and InstaVM's API: transcripts of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use front::{As, Front};
use serde_json::{Value, json};

const BASE: &str = "/skerry/v1";

async fn id(front: &mut Front, line: &str, body: Value) -> String {
    let answer = front.call(As::Admin, line, Some(body)).await;
    let id = answer.body.get("vm_id").unwrap_or(&answer.body["id"]);
    id.as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_volume_goes_from_one_workspace_to_the_next() {
    let mut front = Front::open().await;
    let made = json!({ "name": "data", "size_mib": 64 });
    id(&mut front, &format!("POST {BASE}/volumes?wait=60"), made).await;
    let with = json!({
        "name": "first", "slug": "first-slug",
        "volumes": [{ "volume": "data", "mount_path": "/data" }],
    });
    let first = id(&mut front, &format!("POST {BASE}/workspaces?wait=60"), with).await;
    let plain = json!({ "name": "second", "slug": "second-slug" });
    let second = id(&mut front, &format!("POST {BASE}/workspaces?wait=60"), plain).await;
    let mount = json!({ "volume": "data", "mount_path": "/in", "mode": "ro" });
    for (line, body) in [
        (format!("GET {BASE}/workspaces/{first}/volumes"), None),
        (format!("POST {BASE}/workspaces/{second}/volumes"), Some(mount.clone())),
        (format!("DELETE {BASE}/volumes/data"), None),
        (format!("DELETE {BASE}/workspaces/{first}/volumes/data"), None),
        (format!("POST {BASE}/workspaces/{second}/volumes"), Some(mount)),
        (format!("GET {BASE}/volumes"), None),
        (format!("PATCH {BASE}/volumes/data"), Some(json!({ "name": "set" }))),
        (format!("DELETE {BASE}/workspaces/{second}/volumes/set"), None),
        (format!("DELETE {BASE}/volumes/set?wait=60"), None),
        (format!("GET {BASE}/volumes/set"), None),
    ] {
        front.call(As::Admin, &line, body).await;
    }
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn what_is_not_acceptable_of_a_volume_is_said() {
    let mut front = Front::open().await;
    let made = json!({ "name": "data", "size_mib": 64 });
    id(&mut front, &format!("POST {BASE}/volumes?wait=60"), made.clone()).await;
    let plain = json!({ "name": "first", "slug": "first-slug" });
    let first = id(&mut front, &format!("POST {BASE}/workspaces?wait=60"), plain).await;
    let attach = format!("POST {BASE}/workspaces/{first}/volumes");
    for (line, body) in [
        (format!("POST {BASE}/volumes"), made),
        (format!("POST {BASE}/volumes"), json!({ "name": "small", "size_mib": 1 })),
        (attach.clone(), json!({ "volume": "data", "mount_path": "/etc" })),
        (attach.clone(), json!({ "volume": "none", "mount_path": "/data" })),
        (attach, json!({ "volume": "data", "mount_path": "/data", "mode": "wo" })),
    ] {
        front.call(As::Admin, &line, Some(body)).await;
    }
    front.call(As::Other, &format!("GET {BASE}/volumes/data"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn instavm_makes_mounts_and_unmounts() {
    let mut front = Front::open().await;
    let made = json!({ "name": "data", "quota_bytes": 100_000_000 });
    let volume = id(&mut front, "POST /v1/volumes", made).await;
    let mount = json!({ "volume_id": volume, "mount_path": "/data", "mode": "rw" });
    let vm = id(&mut front, "POST /v1/vms", json!({ "volumes": [mount] })).await;
    let path = format!("/v1/vms/{vm}/volumes/{volume}?mount_path=");
    let latest = json!({
        "volume_id": volume, "mount_path": "/in", "mode": "ro", "checkpoint_id": "latest",
    });
    let checkpoint = json!({
        "volume_id": volume, "mount_path": "/in", "mode": "ro", "checkpoint_id": "one",
    });
    for (line, body) in [
        (format!("GET /v1/vms/{vm}/volumes"), None),
        (format!("DELETE {path}/elsewhere"), None),
        (format!("DELETE {path}/data&wait=true"), None),
        (format!("POST /v1/vms/{vm}/volumes?wait=true"), Some(checkpoint)),
        (format!("POST /v1/vms/{vm}/volumes?wait=true"), Some(latest)),
        ("GET /v1/volumes?refresh_usage=true".to_owned(), None),
        (format!("PATCH /v1/volumes/{volume}"), Some(json!({ "quota_bytes": 1 }))),
        (format!("DELETE /v1/volumes/{volume}"), None),
        (format!("DELETE {path}/in"), None),
        (format!("DELETE /v1/volumes/{volume}"), None),
        (format!("GET /v1/volumes/{volume}"), None),
        (format!("POST /v1/volumes/{volume}/checkpoints"), Some(json!({}))),
    ] {
        front.call(As::Admin, &line, body).await;
    }
    insta::assert_snapshot!(front.transcript());
}
