//! Aether's way into a workspace: connecting, and the socket with its channels.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::{net::SocketAddr, time::Duration};

use front::{As, Front};
use futures::{SinkExt as _, StreamExt as _};
use http::HeaderValue;
use serde_json::{Value, json};
use skerry_control::{
    internal_api::{ListeningPort, NodeError},
    sim_node::{Point, SimCommand},
    testing::KEY,
};
use skerry_model::State;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};

const BOUND: Duration = Duration::from_secs(60);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn created(front: &mut Front) -> String {
    let projects = front.beside(As::Admin, "GET /projects", None).await.body;
    let project = projects["projects"][0]["id"].as_str().expect("an id").to_owned();
    let line = format!("POST /projects/{project}/workspaces");
    let made = front.beside(As::Admin, &line, Some(json!({}))).await.body;
    let id = made["id"].as_str().expect("an id").to_owned();
    front.settled(&id).await;
    id
}

async fn open(address: SocketAddr, id: &str) -> Socket {
    let url = format!("ws://{address}/workspaces/{id}/ws?token={KEY}");
    connect_async(url).await.expect("a WebSocket").0
}

async fn say(socket: &mut Socket, message: Value) {
    socket.send(Message::text(message.to_string())).await.expect("sent");
}

/// What is told next on a channel.
async fn told(socket: &mut Socket, channel: &str) -> Value {
    let coming = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    let message: Value = serde_json::from_str(&text).expect("JSON");
                    if message["channel"] == channel {
                        return message;
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(BOUND, coming).await.expect("in time")
}

/// What a terminal prints, until it is as long as `text`, which it has to be.
async fn prints(socket: &mut Socket, name: &str, text: &str) {
    let mut printed = String::new();
    while printed.len() < text.len() {
        let message = told(socket, "terminal").await;
        assert_eq!((&message["type"], &message["sessionId"]), (&json!("output"), &json!(name)));
        printed.push_str(message["data"].as_str().expect("text"));
    }
    assert_eq!(printed, text);
}

fn terminal(kind: &str, name: &str, more: Value) -> Value {
    let mut message = json!({ "channel": "terminal", "type": kind, "sessionId": name });
    if let (Value::Object(message), Value::Object(more)) = (&mut message, more) {
        message.extend(more);
    }
    message
}

#[tokio::test]
async fn connecting_says_where_the_socket_is_or_what_has_to_happen_before() {
    let mut front = Front::open().await;
    let id = created(&mut front).await;
    let connect = format!("POST /workspaces/{id}/connect");
    front.call(As::Admin, &format!("{connect}?start=false"), None).await;
    front.call(As::Admin, &format!("POST /workspaces/{id}/stop"), None).await;
    front.until(&id, |workspace| workspace.state == State::Stopped).await;
    front.call(As::Admin, &format!("{connect}?start=false"), None).await;
    front.call(As::Admin, &format!("{connect}?start=perhaps"), None).await;
    front.call(As::Admin, &format!("{connect}?start=true"), None).await;
    front.until(&id, |workspace| matches!(workspace.state, State::Running { .. })).await;
    front.call(As::Admin, &connect, None).await;

    front.call(As::Admin, &format!("POST /workspaces/{id}/stop"), None).await;
    front.until(&id, |workspace| workspace.state == State::Stopped).await;
    for _ in 0..2 {
        let full = NodeError::NoCapacity("the machine is full".to_owned());
        front.test.node.fail_next(Point::EnsureRunning, full);
    }
    front.beside(As::Admin, &connect, None).await;
    front.until(&id, |workspace| matches!(workspace.state, State::Failed(_))).await;
    front.call(As::Admin, &format!("{connect}?start=false"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_terminal_goes_on_for_whoever_connects_again_and_ends_when_it_is_closed() {
    let mut front = Front::open().await;
    let id = created(&mut front).await;
    let address = front.listen().await;
    let mut socket = open(address, &id).await;
    say(&mut socket, terminal("create", "one", json!({ "cols": 120, "rows": 40 }))).await;
    say(&mut socket, terminal("input", "one", json!({ "data": "gr\u{fc}n" }))).await;
    prints(&mut socket, "one", "gr\u{fc}n").await;
    // Asked for again, it is the same, and nothing is told twice.
    say(&mut socket, terminal("create", "one", json!({}))).await;
    say(&mut socket, terminal("resize", "one", json!({ "cols": 100, "rows": 30 }))).await;
    say(&mut socket, terminal("input", "one", json!({ "data": "!" }))).await;
    prints(&mut socket, "one", "!").await;
    drop(socket);

    let mut socket = open(address, &id).await;
    say(&mut socket, terminal("create", "one", json!({}))).await;
    prints(&mut socket, "one", "gr\u{fc}n!").await;
    say(&mut socket, terminal("close", "one", json!({}))).await;
    let closed = terminal("close", "one", json!({ "exitCode": 129 }));
    assert_eq!(told(&mut socket, "terminal").await, closed);

    let done = SimCommand { stdout: b"bye\r\n".to_vec(), stderr: Vec::new(), code: 3 };
    front.guest(&id).program("/bin/bash", done);
    say(&mut socket, terminal("create", "two", json!({}))).await;
    prints(&mut socket, "two", "bye\r\n").await;
    let closed = terminal("close", "two", json!({ "exitCode": 3 }));
    assert_eq!(told(&mut socket, "terminal").await, closed);
}

#[tokio::test]
async fn files_of_the_users_home_are_read_written_listed_and_deleted() {
    let mut front = Front::open().await;
    let id = created(&mut front).await;
    let address = front.listen().await;
    let mut socket = open(address, &id).await;
    let mut answers = Vec::new();
    for (number, message) in [
        json!({ "type": "write", "path": "src/a.txt", "content": "h\u{e9}llo" }),
        json!({ "type": "write", "path": "b.bin", "content": "AAEC", "encoding": "base64" }),
        json!({ "type": "mkdir", "path": "node_modules/x" }),
        json!({ "type": "read", "path": "src/a.txt" }),
        json!({ "type": "read", "path": "b.bin" }),
        json!({ "type": "read", "path": "src" }),
        json!({ "type": "read", "path": "nothing" }),
        json!({ "type": "read", "path": "../etc/passwd" }),
        json!({ "type": "list", "path": "" }),
        json!({ "type": "listTree" }),
        json!({ "type": "rename", "oldPath": "b.bin", "newPath": "src/c.bin" }),
        json!({ "type": "stat", "path": "src/c.bin" }),
        json!({ "type": "delete", "path": "src" }),
        json!({ "type": "delete", "path": "." }),
        json!({ "type": "listTree" }),
    ]
    .into_iter()
    .enumerate()
    {
        let mut message = message;
        message["channel"] = "files".into();
        message["requestId"] = number.to_string().into();
        say(&mut socket, message).await;
        answers.push(told(&mut socket, "files").await);
    }
    insta::assert_json_snapshot!(answers);
}

#[tokio::test]
async fn ports_that_open_and_close_are_told_and_whoever_listens_can_be_ended() {
    let mut front = Front::open().await;
    let id = created(&mut front).await;
    let listener = |port| ListeningPort {
        port,
        address: "127.0.0.1".to_owned(),
        pid: Some(77),
        process: Some("node".to_owned()),
    };
    front.guest(&id).listen(vec![listener(22), listener(3000)]);
    let address = front.listen().await;
    let mut socket = open(address, &id).await;
    let mut said = vec![told(&mut socket, "ports").await];
    front.guest(&id).listen(vec![listener(22), listener(5173)]);
    for _ in 0..4 {
        said.push(told(&mut socket, "ports").await);
    }
    for port in [5173, 9] {
        let kill = json!({ "channel": "ports", "type": "kill", "requestId": "k", "port": port });
        front.guest(&id).program("kill 77", SimCommand::default());
        say(&mut socket, kill).await;
        said.push(told(&mut socket, "ports").await);
    }
    insta::assert_json_snapshot!(said);
}

#[tokio::test]
async fn a_message_that_cannot_be_done_is_answered_and_the_socket_stays() {
    let mut front = Front::open().await;
    let id = created(&mut front).await;
    let address = front.listen().await;
    let mut socket = open(address, &id).await;
    socket.send(Message::binary(vec![1, 2])).await.expect("sent");
    let mut said = vec![told(&mut socket, "error").await];
    for message in [
        json!({ "channel": "agent", "type": "subscribe", "taskId": "t" }),
        json!({ "channel": "terminal", "type": "input", "sessionId": "none", "data": "x" }),
        json!("hello"),
    ] {
        say(&mut socket, message).await;
        said.push(told(&mut socket, "error").await);
    }
    say(&mut socket, json!({ "channel": "activity", "type": "user_activity" })).await;
    say(&mut socket, terminal("create", "one", json!({}))).await;
    say(&mut socket, terminal("input", "one", json!({ "data": "on" }))).await;
    prints(&mut socket, "one", "on").await;
    insta::assert_json_snapshot!(said);
}

#[tokio::test]
async fn a_socket_opens_by_every_way_to_say_a_key_and_to_nobody_else() {
    let mut front = Front::open().await;
    let id = created(&mut front).await;
    let shown = front.beside(As::Admin, &format!("GET /workspaces/{id}"), None).await.body;
    let preview_token = shown["preview_token"].as_str().expect("a token").to_owned();
    let address = front.listen().await;
    let url = format!("ws://{address}/workspaces/{id}/ws");
    let with = |name: &'static str, value: String| {
        let mut request = url.as_str().into_client_request().expect("a request");
        request.headers_mut().insert(name, HeaderValue::from_str(&value).expect("a value"));
        request
    };
    let said = "sec-websocket-protocol";
    for (request, echoed) in [
        (with("authorization", format!("Bearer {KEY}")), None),
        (with(said, format!("Bearer, {KEY}")), Some("Bearer")),
        (with(said, format!("bearer, {KEY}")), Some("bearer")),
        (with(said, format!("access_token, {KEY}")), Some("access_token")),
    ] {
        let (_, answer) = connect_async(request).await.expect("a WebSocket");
        let chosen = answer.headers().get(said).and_then(|value| value.to_str().ok());
        assert_eq!(chosen, echoed);
    }
    let refused = |url: String| async move {
        match connect_async(url).await {
            Err(tungstenite::Error::Http(answer)) => answer.status().as_u16(),
            other => panic!("let in: {other:?}"),
        }
    };
    // What opens a preview opens no shell.
    assert_eq!(refused(format!("{url}?token={preview_token}")).await, 401);
    assert_eq!(refused(url.clone()).await, 401);
    let nobodys = "00000000-0000-4000-8000-000000000000";
    let other = format!("ws://{address}/workspaces/{nobodys}/ws?token={KEY}");
    assert_eq!(refused(other).await, 404);
    front.beside(As::Admin, &format!("POST /workspaces/{id}/stop"), None).await;
    front.until(&id, |workspace| workspace.state == State::Stopped).await;
    assert_eq!(refused(format!("{url}?token={KEY}")).await, 400);
}
