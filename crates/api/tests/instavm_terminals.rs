//! InstaVM's terminals over a real socket.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::time::Duration;

use front::{As, Front, instavm::create};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use skerry_control::{sim_node::SimCommand, testing::KEY};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{self, Message},
};

const BOUND: Duration = Duration::from_secs(60);

/// Everything until the end, and how it was closed.
async fn seen(url: &str) -> (Vec<u8>, Option<Value>, Option<u16>) {
    let (mut socket, _) = connect_async(url).await.expect("a WebSocket");
    socket.send(Message::text(r#"{"type":"resize","cols":100,"rows":30}"#)).await.expect("sent");
    let (mut printed, mut exit, mut code) = (Vec::new(), None, None);
    let reading = async {
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Binary(bytes) => printed.extend_from_slice(&bytes),
                Message::Text(text) => exit = Some(serde_json::from_str(&text).expect("JSON")),
                Message::Close(frame) => code = frame.map(|frame| u16::from(frame.code)),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    };
    tokio::time::timeout(BOUND, reading).await.expect("an end in time");
    (printed, exit, code)
}

#[tokio::test]
async fn a_terminal_is_opened_seen_by_whoever_connects_and_tells_its_exit_code() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({})).await;
    let done = SimCommand { stdout: b"hello\r\n".to_vec(), stderr: Vec::new(), code: 7 };
    front.guest(&session).program("/bin/zsh", done);
    let body = json!({ "cols": 80, "rows": 24, "shell": "/bin/zsh", "id": "pty-0123456789ab" });
    let line = format!("POST /v1/sessions/{session}/pty/sessions");
    let made = front.call(As::Admin, &line, Some(body)).await.body;
    assert_eq!(made["session_id"], "pty-0123456789ab");
    let address = front.listen().await;
    let path = format!("/v1/vms/{vm}/pty/pty-0123456789ab/connect");
    for _ in 0..2 {
        let url = format!("ws://{address}{path}?api_key={KEY}");
        let (printed, exit, code) = seen(&url).await;
        assert_eq!(String::from_utf8_lossy(&printed), "hello\r\n");
        assert_eq!(exit, Some(json!({ "type": "exit", "exit_code": 7 })));
        assert_eq!(code, Some(1000));
    }
    for url in
        [format!("ws://{address}{path}?api_key=sk_of_nobody"), format!("ws://{address}{path}")]
    {
        match connect_async(url).await {
            Err(tungstenite::Error::Http(answer)) => assert_eq!(answer.status().as_u16(), 401),
            other => panic!("a stranger was let in: {other:?}"),
        }
    }
    let line = format!("GET /v1/vms/{vm}/pty/sessions/pty-0123456789ab");
    let record = front.call(As::Admin, &line, None).await.body;
    assert_eq!((&record["alive"], &record["exit_code"]), (&json!(false), &json!(7)));
}

#[tokio::test]
async fn terminals_are_listed_resized_and_killed_by_their_account_alone() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({})).await;
    let create = format!("POST /v1/vms/{vm}/pty/sessions");
    let sleeps = json!({ "shell": "cat", "id": "one" });
    let made = front.call(As::Admin, &create, Some(sleeps.clone())).await;
    assert_eq!(made.status, 200, "{}", made.body);
    assert_eq!(front.call(As::Admin, &create, Some(sleeps)).await.status, 409);
    let one = format!("/v1/sessions/{session}/pty/sessions/one");
    let resize = format!("POST {one}/resize");
    let size = json!({ "cols": 100, "rows": 30 });
    let record = front.call(As::Admin, &resize, Some(size)).await.body;
    assert_eq!(
        (&record["cols"], &record["rows"], &record["alive"]),
        (&json!(100), &json!(30), &json!(true))
    );
    for (line, body, status) in [
        (resize.clone(), Some(json!({ "cols": 0, "rows": 5 })), 422),
        (resize, Some(json!({})), 422),
        (create.clone(), Some(json!({ "id": "a/b" })), 422),
        (create.clone(), Some(json!({ "shell": "/bin/none" })), 409),
        (format!("GET {one}2"), None, 404),
        (format!("GET /v1/sessions/{session}/pty/one/connect"), None, 400),
    ] {
        let answer = front.call(As::Admin, &line, body).await;
        assert_eq!(answer.status, status, "{line}: {}", answer.body);
    }
    let list = format!("GET /v1/sessions/{session}/pty/sessions");
    let listed = front.call(As::Admin, &list, None).await.body;
    assert_eq!(listed["sessions"].as_array().map(Vec::len), Some(1));
    for line in [&list, &format!("GET {one}"), &format!("DELETE {one}"), &create] {
        let body = line.starts_with("POST").then(|| json!({}));
        assert_eq!(front.call(As::Other, line, body).await.status, 404, "{line}");
    }
    let killed = front.call(As::Admin, &format!("DELETE {one}"), None).await;
    assert_eq!((killed.status.as_u16(), &killed.body["alive"]), (200, &json!(false)));
    assert_eq!(front.call(As::Admin, &list, None).await.body, json!({ "sessions": [] }));
    assert_eq!(front.call(As::Admin, &format!("DELETE {one}"), None).await.status, 404);
}
