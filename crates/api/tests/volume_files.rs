//! Files of volumes, and volumes that grow, in the native and InstaVM's API: transcripts.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use front::{As, Front};
use serde_json::{Value, json};

const BASE: &str = "/skerry/v1";

async fn made(front: &mut Front, line: &str, body: Value) -> String {
    let answer = front.call(As::Admin, line, Some(body)).await;
    let id = answer.body.get("vm_id").unwrap_or(&answer.body["id"]);
    id.as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn files_of_a_volume_are_written_read_listed_and_removed() {
    let mut front = Front::open().await;
    let volume = json!({ "name": "data", "size_mib": 64 });
    made(&mut front, &format!("POST {BASE}/volumes?wait=60"), volume).await;
    let files = format!("{BASE}/volumes/data/files");
    let content = |path: &str| format!("{files}/content?path={path}");
    let put = |path: &str| ("PUT", content(path), Some("12345"));
    for (method, path, body) in [
        put("/models/a.txt"),
        put("models/b.txt&mode=600&how=create_new"),
        put("models/b.txt&how=create_new"),
        put("models/b.txt&how=append"),
        put("../out"),
        put(""),
        ("GET", content("models/a.txt"), None),
        ("GET", content("models/a.txt&offset=1&length=3"), None),
        ("GET", content("none"), None),
        ("GET", content("models"), None),
        ("GET", files.clone(), None),
        ("GET", format!("{files}?recursive=true&limit=2"), None),
        ("GET", format!("{files}?path=models"), None),
        ("GET", format!("{files}?limit=0"), None),
        ("DELETE", format!("{files}?path=models"), None),
        ("DELETE", format!("{files}?path=models&recursive=true"), None),
        ("GET", format!("{files}?recursive=true"), None),
    ] {
        front.call_on("localhost", As::Admin, &format!("{method} {path}"), body).await;
    }
    front.call(As::Other, &format!("GET {files}"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_workspace_that_stands_still_keeps_its_volume_and_one_that_runs_does_not_mind() {
    let mut front = Front::open().await;
    let volume = json!({ "name": "data", "size_mib": 64 });
    made(&mut front, &format!("POST {BASE}/volumes?wait=60"), volume).await;
    let with = json!({
        "name": "first", "slug": "first-slug",
        "volumes": [{ "volume": "data", "mount_path": "/data" }],
    });
    made(&mut front, &format!("POST {BASE}/workspaces?wait=60"), with).await;
    let files = format!("{BASE}/volumes/data/files");
    let grow = |size_mib: u64| Some(json!({ "size_mib": size_mib }));
    let patch = format!("PATCH {BASE}/volumes/data");
    for (line, body) in [
        (format!("GET {files}"), None),
        (patch.clone(), grow(128)),
        (patch.clone(), grow(64)),
        (patch.clone(), grow(1 << 40)),
        (format!("POST {BASE}/workspaces/first/suspend?wait=60"), Some(json!({}))),
        (format!("GET {files}"), None),
        (patch.clone(), grow(256)),
        (format!("POST {BASE}/workspaces/first/stop?wait=60"), Some(json!({}))),
        (format!("GET {files}"), None),
        (patch.clone(), Some(json!({ "size_mib": 256, "name": "set" }))),
    ] {
        front.call(As::Admin, &line, body).await;
    }
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn instavm_uploads_lists_downloads_and_deletes() {
    let mut front = Front::open().await;
    let volume = json!({ "name": "data", "quota_bytes": 100_000_000 });
    let volume = made(&mut front, "POST /v1/volumes", volume).await;
    let files = format!("/v1/volumes/{volume}/files");
    let form = |path: &str, overwrite: &str, content: &str| {
        let field = |name: &str, value: &str| {
            format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        format!(
            "{}{}--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\n{content}\r\n--b--\r\n",
            field("path", path),
            field("overwrite", overwrite),
        )
    };
    let mut uploads = Vec::new();
    for (path, overwrite, content) in [
        ("/a/one", "false", "1"),
        ("a/two", "false", "22"),
        ("a/two", "false", "x"),
        ("a/two", "true", "333"),
    ] {
        let (line, body) = (format!("POST {files}/upload"), form(path, overwrite, content));
        let answer = front.send(As::Admin, &line, "multipart/form-data; boundary=b", body).await;
        uploads.push(format!("{path} {}: {}", answer.status.as_u16(), answer.body));
    }
    for (line, body) in [
        (format!("GET {files}?prefix=&recursive=true&limit=1000"), None),
        (format!("GET {files}?prefix=a/t&recursive=true"), None),
        (format!("GET {files}?prefix=&recursive=false"), None),
        (format!("GET {files}?prefix=none/x"), None),
        (format!("GET {files}?limit=0"), None),
        (format!("POST {files}/download"), Some(json!({ "path": "a/two" }))),
        (format!("POST {files}/download"), Some(json!({ "path": "a" }))),
        (format!("POST {files}/download"), Some(json!({}))),
        (format!("DELETE {files}?path=a/two"), None),
        (format!("DELETE {files}?path=a/two"), None),
        (format!("DELETE {files}"), None),
        (format!("PATCH /v1/volumes/{volume}"), Some(json!({ "quota_bytes": 200_000_000 }))),
        (format!("PATCH /v1/volumes/{volume}"), Some(json!({ "quota_bytes": 1 }))),
    ] {
        front.call(As::Admin, &line, body).await;
    }
    insta::assert_snapshot!(format!("{}\n\n{}", uploads.join("\n"), front.transcript()));
}
