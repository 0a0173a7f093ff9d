//! What InstaVM's clients do inside a session: files in and out, what it uses, staged variables.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use front::{
    As, Front,
    instavm::{create, get},
};
use serde_json::json;
use skerry_control::testing::KEY;

#[tokio::test]
async fn files_go_in_and_come_out_relative_to_app_or_absolute() {
    let mut front = Front::open().await;
    let (_, session) = create(&mut front, json!({})).await;
    let form = |path: &str, content: &str| {
        let field = |name: &str, value: &str| {
            format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        format!(
            "{}{}{}--b\r\nContent-Disposition: form-data; name=\"file\"; \
             filename=\"/home/me/x\"\r\n\r\n{content}\r\n--b--\r\n",
            field("remote_path", path),
            field("session_id", &session),
            field("recursive", "false"),
        )
    };
    let multipart = "multipart/form-data; boundary=b";
    for (path, full, content) in
        [("a/b.txt", "/app/a/b.txt", "hello"), ("/srv/empty", "/srv/empty", "")]
    {
        let answer = front.send(As::Admin, "POST /upload", multipart, form(path, content)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(
            (&answer.body["remote_path"], &answer.body["size"]),
            (&json!(full), &json!(content.len()))
        );
        let body = format!("filename={path}&session_id={session}");
        let urlencoded = "application/x-www-form-urlencoded";
        let answer = front.send(As::Admin, "POST /download", urlencoded, body.clone()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let encoded = if content.is_empty() { "\n" } else { "aGVsbG8=" };
        assert_eq!(
            answer.body,
            json!({ "filename": full, "content": encoded, "size": content.len() })
        );
        assert_eq!(front.send(As::Other, "POST /download", urlencoded, body).await.status, 404);
    }
    let urlencoded = "application/x-www-form-urlencoded";
    let missing = format!("filename=none&session_id={session}");
    assert_eq!(front.send(As::Admin, "POST /download", urlencoded, missing).await.status, 404);
    let directory = format!("filename=/srv&session_id={session}");
    assert_eq!(front.send(As::Admin, "POST /download", urlencoded, directory).await.status, 409);
    // Broken off: nothing is there afterwards.
    let whole = form("half", "content");
    let half = whole[..whole.len() - 12].to_owned();
    let answer = front.send(As::Admin, "POST /upload", multipart, half).await;
    assert!(answer.status.is_client_error(), "{}", answer.body);
    assert!(front.guest(&session).file("/app/half").is_none());
    // The key may be a field.
    let body = format!("filename=/srv/empty&session_id={session}&api_key={KEY}");
    assert_eq!(front.send(As::Nobody, "POST /download", urlencoded, body).await.status, 200);
}

#[tokio::test]
async fn what_a_session_uses_is_what_its_guest_says() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({ "memory_mb": 1024, "vcpu_count": 1 })).await;
    let usage = get(&mut front, &format!("/v1/sessions/usage/{session}")).await;
    assert_eq!(
        (&usage["memory_mb"], &usage["vcpu_count"], &usage["vm_id"]),
        (&json!(1024), &json!(1), &json!(vm))
    );
    assert!(usage["memory_used_bytes"].is_u64() && usage["cpu_seconds"].is_number());
    front.call(As::Admin, &format!("POST /v1/vms/{vm}/suspend"), None).await;
    let usage = get(&mut front, &format!("/v1/sessions/usage/{session}")).await;
    assert_eq!((&usage["status"], &usage["cpu_seconds"]), (&json!("suspended"), &json!(null)));
    let line = format!("GET /v1/sessions/usage/{session}");
    assert_eq!(front.call(As::Other, &line, None).await.status, 404);
}

#[tokio::test]
async fn staged_variables_are_in_the_guests_memory_and_read_by_its_login_shells() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({})).await;
    let line = format!("POST /v1/vms/{vm}/stage-env");
    let entries = |name: &str, value: &str| {
        Some(json!({ "entries": [{ "env_name": name, "value": value }] }))
    };
    for (name, value) in [("TOKEN", "it's secret"), ("OTHER", "2")] {
        let answer = front.call(As::Admin, &line, entries(name, value)).await;
        assert_eq!(answer.body, json!({ "status": "ok", "staged": [name] }));
    }
    let file = |path: &str| {
        front.guest(&session).file(path).map(|text| String::from_utf8_lossy(&text).into_owned())
    };
    let staged = file("/run/skerry-staged-env.sh").expect("staged");
    assert_eq!(staged, "export TOKEN='it'\\''s secret'\nexport OTHER='2'\n");
    assert!(
        file("/etc/profile.d/skerry-staged-env.sh").is_some_and(|text| !text.contains("secret"))
    );
    for body in [
        json!({}),
        json!({ "entries": [] }),
        json!({ "entries": [{ "env_name": "1", "value": "hidden" }] }),
    ] {
        let answer = front.call(As::Admin, &line, Some(body)).await;
        assert_eq!(answer.status, 422);
        assert!(!answer.body.to_string().contains("hidden"));
    }
    assert_eq!(front.call(As::Other, &line, entries("A", "1")).await.status, 404);
}
