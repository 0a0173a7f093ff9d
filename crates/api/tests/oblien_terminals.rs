//! Oblien's terminals over a real socket.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::{net::SocketAddr, time::Duration};

use front::{As, Front};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use skerry_control::sim_node::SimCommand;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message},
};

const BOUND: Duration = Duration::from_secs(60);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn enabled(front: &mut Front) -> (String, String) {
    let body = json!({ "name": "host", "image": "base" });
    let made = front.beside(As::Admin, "POST /workspace", Some(body)).await.body;
    let id = made["workspace"]["id"].as_str().expect("an id").to_owned();
    let line = format!("POST /workspace/{id}/runtime-api-access/enable");
    let enabled = front.beside(As::Admin, &line, None).await.body;
    (id, enabled["token"].as_str().expect("a token").to_owned())
}

async fn connect(address: SocketAddr, token: &str) -> Socket {
    let (socket, _) =
        connect_async(format!("ws://{address}/ws?token={token}")).await.expect("a WebSocket");
    socket
}

async fn next(socket: &mut Socket) -> Option<Message> {
    let coming = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => return other.and_then(Result::ok),
            }
        }
    };
    tokio::time::timeout(BOUND, coming).await.expect("in time")
}

/// What is printed by this terminal, until it is as long as `text`, which it has to be.
async fn prints(socket: &mut Socket, id: u8, text: &str) {
    let mut printed = Vec::new();
    while printed.len() < text.len() {
        match next(socket).await {
            Some(Message::Binary(bytes)) if bytes[0] == id => {
                printed.extend_from_slice(&bytes[1..])
            }
            other => panic!("{other:?} instead of {text:?}"),
        }
    }
    assert_eq!(String::from_utf8_lossy(&printed), text);
}

async fn tells(socket: &mut Socket, told: Value) {
    match next(socket).await {
        Some(Message::Text(text)) => {
            assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), told);
        }
        other => panic!("{other:?} instead of {told}"),
    }
}

fn typed(id: u8, text: &str) -> Message {
    Message::binary([&[id], text.as_bytes()].concat())
}

#[tokio::test]
async fn terminals_share_a_connection_and_are_told_again_to_the_next() {
    let mut front = Front::open().await;
    let (id, token) = enabled(&mut front).await;
    let done = SimCommand { stdout: b"done\r\n".to_vec(), stderr: Vec::new(), code: 7 };
    front.guest(&id).program("/bin/once", done);
    let address = front.listen().await;
    let mut socket = connect(address, &token).await;
    let cat = json!({ "cmd": ["cat"], "cols": 100, "rows": 30, "scrollback_size": 2048 });
    front.runtime(&token, "POST /terminals", Some(cat)).await;
    socket.send(typed(1, "hello")).await.expect("sent");
    prints(&mut socket, 1, "hello").await;
    let once = json!({ "command": ["/bin/once"] });
    front.runtime(&token, "POST /terminals", Some(once)).await;
    prints(&mut socket, 2, "done\r\n").await;
    let exit = json!({ "channel": "terminal", "type": "exit", "id": "2", "code": 7 });
    tells(&mut socket, exit.clone()).await;
    // Nobody's terminals, and messages of no meaning, disturb nothing.
    for message in [typed(9, "x"), Message::binary(Vec::new()), Message::text("{")] {
        socket.send(message).await.expect("sent");
    }
    let resize =
        json!({ "channel": "terminal", "type": "resize", "id": 1, "cols": 160, "rows": 50 });
    socket.send(Message::text(resize.to_string())).await.expect("sent");
    socket.send(typed(1, " again")).await.expect("sent");
    prints(&mut socket, 1, " again").await;
    // Another connection takes its place.
    let mut other = connect(address, &token).await;
    match next(&mut socket).await {
        Some(Message::Close(Some(frame))) => assert_eq!(u16::from(frame.code), 4001),
        ended => panic!("{ended:?}"),
    }
    let mut printed = [Vec::new(), Vec::new()];
    let mut exits = Vec::new();
    while printed[0].len() < 11 || exits.is_empty() {
        match next(&mut other).await {
            Some(Message::Binary(bytes)) => {
                printed[usize::from(bytes[0] - 1)].extend_from_slice(&bytes[1..]);
            }
            Some(Message::Text(text)) => {
                exits.push(serde_json::from_str::<Value>(&text).expect("JSON"));
            }
            ended => panic!("{ended:?}"),
        }
    }
    assert_eq!(printed, [b"hello again".to_vec(), b"done\r\n".to_vec()]);
    assert_eq!(exits, [exit]);
    front.runtime(&token, "GET /terminals", None).await;
    front.runtime(&token, "GET /terminals/1/scrollback?bytes=5", None).await;
    front.runtime(&token, "GET /terminals/2/scrollback", None).await;
    front.runtime(&token, "DELETE /terminals/1", None).await;
    tells(&mut other, json!({ "channel": "terminal", "type": "exit", "id": "1", "code": 129 }))
        .await;
    front.runtime(&token, "DELETE /terminals/1", None).await;
    front.runtime(&token, "GET /terminals/300/scrollback", None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn what_is_no_terminal_is_refused_and_ten_are_open_at_a_time() {
    let mut front = Front::open().await;
    let (_, token) = enabled(&mut front).await;
    for body in [
        json!({ "cmd": ["no-such-shell"] }),
        json!({ "cols": 0 }),
        json!({ "rows": 1001 }),
        json!({ "scrollback_size": 1 }),
        json!({ "cmd": "sh" }),
    ] {
        front.runtime(&token, "POST /terminals", Some(body)).await;
    }
    // A login shell, where nothing is asked for.
    front.runtime(&token, "POST /terminals", None).await;
    for number in 1..10 {
        let body = json!({ "cmd": ["cat"] }).to_string();
        let (status, _) = front.bytes(&token, "POST /terminals", body.into()).await;
        assert_eq!(status, 201, "{number}");
    }
    front.runtime(&token, "POST /terminals", Some(json!({ "cmd": ["cat"] }))).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_connection_ends_with_the_tokens_that_opened_it_and_needs_one() {
    let mut front = Front::open().await;
    let (id, token) = enabled(&mut front).await;
    let address = front.listen().await;
    let mut socket = connect(address, &token).await;
    for url in [format!("ws://{address}/ws"), format!("ws://{address}/ws?token=rt_none")] {
        match connect_async(url).await {
            Err(tungstenite::Error::Http(answer)) => assert_eq!(answer.status().as_u16(), 401),
            other => panic!("a stranger was let in: {other:?}"),
        }
    }
    front.runtime(&token, "GET /ws", None).await;
    front.runtime(&token, "GET /exec?token=x", None).await;
    let rotate = format!("POST /workspace/{id}/runtime-api-access/token");
    assert_eq!(front.beside(As::Admin, &rotate, None).await.status, 200);
    match next(&mut socket).await {
        Some(Message::Close(Some(frame))) => assert_eq!(u16::from(frame.code), 4001),
        ended => panic!("{ended:?}"),
    }
    insta::assert_snapshot!(front.transcript());
}
