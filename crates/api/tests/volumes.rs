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
        "volume_id": volume, "mount_path": "/in", "mode": "ro",
        "checkpoint_id": "00000000-0000-4000-8000-000000000001",
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
    ] {
        front.call(As::Admin, &line, body).await;
    }
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn checkpoints_are_made_mounted_and_deleted_natively() {
    let mut front = Front::open().await;
    let made = json!({ "name": "data", "size_mib": 64 });
    id(&mut front, &format!("POST {BASE}/volumes?wait=60"), made).await;
    let with = json!({
        "name": "first", "slug": "first-slug",
        "volumes": [{ "volume": "data", "mount_path": "/data" }],
    });
    id(&mut front, &format!("POST {BASE}/workspaces?wait=60"), with).await;
    let plain = json!({ "name": "second", "slug": "second-slug" });
    let second = id(&mut front, &format!("POST {BASE}/workspaces?wait=60"), plain).await;
    let checkpoints = format!("{BASE}/volumes/data/checkpoints");
    let mounts = format!("{BASE}/workspaces/{second}/volumes");
    let mount = |checkpoint: &str, mode: &str| {
        let mode = if mode.is_empty() { Value::Null } else { mode.into() };
        json!({ "volume": "data", "mount_path": "/then", "checkpoint": checkpoint, "mode": mode })
    };
    for (line, body) in [
        (format!("POST {checkpoints}?wait=60"), Some(json!({ "name": "before" }))),
        (format!("POST {checkpoints}?wait=60"), Some(json!({}))),
        (format!("GET {checkpoints}"), None),
        (format!("POST {mounts}"), Some(mount("before", "rw"))),
        (format!("POST {mounts}"), Some(mount("nothing", ""))),
        (format!("POST {mounts}"), Some(mount("before", ""))),
        (format!("GET {mounts}"), None),
        (format!("DELETE {checkpoints}/before?wait=60"), None),
        (format!("DELETE {mounts}/data"), None),
        (format!("DELETE {checkpoints}/before?wait=60"), None),
        (format!("DELETE {checkpoints}/before"), None),
        (format!("DELETE {checkpoints}/latest"), None),
    ] {
        front.call(As::Admin, &line, body).await;
    }
    front.call(As::Other, &format!("GET {checkpoints}"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn instavm_makes_mounts_and_deletes_checkpoints() {
    let mut front = Front::open().await;
    let made = json!({ "name": "data", "quota_bytes": 100_000_000 });
    let volume = id(&mut front, "POST /v1/volumes", made).await;
    let mount = json!({ "volume_id": volume, "mount_path": "/data", "mode": "rw" });
    id(&mut front, "POST /v1/vms", json!({ "volumes": [mount] })).await;
    let vm = id(&mut front, "POST /v1/vms", json!({})).await;
    let checkpoints = format!("/v1/volumes/{volume}/checkpoints");
    let first = id(&mut front, &format!("POST {checkpoints}"), json!({ "name": "before" })).await;
    let mount = |mode: &str, checkpoint: &str| {
        Some(json!({
            "volume_id": volume, "mount_path": "/in", "mode": mode, "checkpoint_id": checkpoint,
        }))
    };
    for (line, body) in [
        (format!("GET {checkpoints}"), None),
        (format!("POST /v1/vms/{vm}/volumes"), mount("rw", &first)),
        (format!("POST /v1/vms/{vm}/volumes"), mount("ro", "one")),
        (format!("POST /v1/vms/{vm}/volumes"), mount("ro", "latest")),
        (format!("GET /v1/vms/{vm}/volumes"), None),
        (format!("DELETE {checkpoints}/{first}"), None),
        (format!("DELETE /v1/vms/{vm}/volumes/{volume}?mount_path=/in"), None),
        (format!("DELETE {checkpoints}/{first}"), None),
        (format!("DELETE {checkpoints}/{first}"), None),
        (format!("GET {checkpoints}"), None),
    ] {
        front.call(As::Admin, &line, body).await;
    }
    insta::assert_snapshot!(front.transcript());
}
