//! The exec stream over a real socket.
#![allow(clippy::expect_used, reason = "tests")]

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use skerry_api::{ApiConfig, ApiState};
use skerry_control::{
    CreateWorkspace, StartPolicy, Wait,
    sim_node::{SimCommand, SimGuest},
    testing::{self, KEY, TestControl},
};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};
use tokio_util::sync::{CancellationToken, DropGuard};

const BOUND: Duration = Duration::from_secs(60);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A listening server with one running workspace, `box`.
struct Server {
    address: std::net::SocketAddr,
    guest: Arc<SimGuest>,
    stop: CancellationToken,
    _stop_at_the_end: DropGuard,
    _test: TestControl,
}

impl Server {
    async fn start() -> Self {
        let test = testing::open().await;
        let caller = test.caller().await;
        let mut request = CreateWorkspace::new(StartPolicy::Now(Wait::UpTo(BOUND)));
        request.slug = Some("box".to_owned());
        let made = test.control.create_workspace(&caller, request).await.expect("created");
        let guest = test.node.sim_guest(made.id).expect("a guest");
        let config = ApiConfig {
            public_url: "http://localhost:7070".to_owned(),
            base_domain: "localhost".to_owned(),
            preview_domain: "localhost".to_owned(),
            version: "0.0.0-test",
        };
        let stop = CancellationToken::new();
        let state = ApiState::new(test.control.clone(), config, stop.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let until = stop.clone();
        tokio::spawn(async move {
            axum::serve(listener, skerry_api::router(state))
                .with_graceful_shutdown(until.cancelled_owned())
                .await
                .expect("serve");
        });
        let _stop_at_the_end = stop.clone().drop_guard();
        Self { address, guest, stop, _stop_at_the_end, _test: test }
    }

    async fn connect_to(&self, workspace: &str) -> Result<Socket, tungstenite::Error> {
        let url = format!("ws://{}/skerry/v1/workspaces/{workspace}/exec/stream", self.address);
        let mut request = url.into_client_request().expect("a request");
        let value = format!("Bearer {KEY}").parse().expect("a header");
        request.headers_mut().insert("authorization", value);
        connect_async(request).await.map(|(socket, _)| socket)
    }

    /// Starts a command and waits until it runs.
    async fn run(&self, start: Value) -> Socket {
        let mut socket = self.connect_to("box").await.expect("connected");
        send(&mut socket, &start).await;
        assert_eq!(next(&mut socket).await, Heard::Control(json!({ "type": "started" })));
        socket
    }
}

#[derive(Debug, PartialEq)]
enum Heard {
    Bytes(u8, Vec<u8>),
    Control(Value),
    Closed(Option<u16>),
}

async fn send(socket: &mut Socket, message: &Value) {
    socket.send(Message::Text(message.to_string().into())).await.expect("sent");
}

async fn next(socket: &mut Socket) -> Heard {
    let heard = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    return Heard::Bytes(bytes[0], bytes[1..].to_vec());
                }
                Some(Ok(Message::Text(text))) => {
                    return Heard::Control(serde_json::from_str(&text).expect("JSON"));
                }
                Some(Ok(Message::Close(frame))) => {
                    return Heard::Closed(frame.map(|frame| frame.code.into()));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(_)) | None => return Heard::Closed(None),
            }
        }
    };
    tokio::time::timeout(BOUND, heard).await.expect("something in time")
}

fn exit(exit_code: Option<i32>, signal: Option<i32>, timed_out: bool) -> Heard {
    Heard::Control(json!({
        "type": "exit", "exit_code": exit_code, "signal": signal, "timed_out": timed_out,
    }))
}

fn stdin(bytes: &[u8]) -> Message {
    let mut message = vec![0];
    message.extend_from_slice(bytes);
    Message::Binary(message.into())
}

#[tokio::test]
async fn output_and_exit_come_in_order_and_then_the_close() {
    let server = Server::start().await;
    let mut socket =
        server.run(json!({ "argv": ["sh", "-c", "echo out; echo err >&2; exit 3"] })).await;
    assert_eq!(next(&mut socket).await, Heard::Bytes(1, b"out\n".to_vec()));
    assert_eq!(next(&mut socket).await, Heard::Bytes(2, b"err\n".to_vec()));
    assert_eq!(next(&mut socket).await, exit(Some(3), None, false));
    assert_eq!(next(&mut socket).await, Heard::Closed(Some(1000)));
}

#[tokio::test]
async fn input_of_any_bytes_and_any_length_arrives_whole() {
    let server = Server::start().await;
    let socket = server.run(json!({ "argv": ["cat"] })).await;
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut sink, mut source) = socket.split();
    let sending = async {
        for piece in content.chunks(300_000) {
            sink.send(stdin(piece)).await.expect("sent");
        }
        let end = json!({ "type": "close_stdin" }).to_string();
        sink.send(Message::Text(end.into())).await.expect("sent");
    };
    let mut echoed = Vec::new();
    let hearing = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(bytes) => echoed.extend_from_slice(&bytes[1..]),
                Message::Text(text) => return text.to_string(),
                other => panic!("{other:?}"),
            }
        }
        panic!("no exit");
    };
    let both = async { tokio::join!(sending, hearing) };
    let ((), ended) = tokio::time::timeout(BOUND, both).await.expect("in time");
    let ended: Value = serde_json::from_str(&ended).expect("JSON");
    assert_eq!(Heard::Control(ended), exit(Some(0), None, false));
    assert!(echoed == content, "{} bytes of {}", echoed.len(), content.len());
}

#[tokio::test]
async fn a_client_that_does_not_read_gets_everything_once_it_does() {
    let server = Server::start().await;
    let stdout = vec![b'x'; 20 * 1024 * 1024];
    server.guest.program("flood", SimCommand { stdout, ..SimCommand::default() });
    let mut socket = server.run(json!({ "argv": ["flood"] })).await;
    let mut count = 0;
    loop {
        match next(&mut socket).await {
            Heard::Bytes(1, bytes) => count += bytes.len(),
            other => {
                assert_eq!(other, exit(Some(0), None, false));
                break;
            }
        }
    }
    assert_eq!(count, 20 * 1024 * 1024);
}

#[tokio::test]
async fn signals_and_resizes_reach_the_command() {
    let server = Server::start().await;
    let pty = json!({ "columns": 80, "rows": 24 });
    let mut socket = server.run(json!({ "argv": ["sleep", "600"], "pty": pty })).await;
    send(&mut socket, &json!({ "type": "resize", "columns": 120, "rows": 40 })).await;
    send(&mut socket, &json!({ "type": "signal", "signal": 2 })).await;
    assert_eq!(next(&mut socket).await, exit(None, Some(2), false));
}

#[tokio::test]
async fn a_command_whose_time_is_over_is_killed() {
    let server = Server::start().await;
    let mut socket = server.run(json!({ "argv": ["sleep", "600"], "timeout_seconds": 1 })).await;
    assert_eq!(next(&mut socket).await, exit(None, None, true));
}

#[tokio::test]
async fn a_start_that_is_not_acceptable_is_answered_and_the_stream_closed() {
    let server = Server::start().await;
    let mut transcript = String::new();
    for first in [
        json!({ "argv": ["no-such-thing"] }).to_string(),
        json!({ "argv": [] }).to_string(),
        json!({ "argv": ["true"], "pty": { "columns": 0, "rows": 24 } }).to_string(),
        json!({ "argv": ["true"], "cwd": "/" }).to_string(),
        "{".to_owned(),
    ] {
        let mut socket = server.connect_to("box").await.expect("connected");
        socket.send(Message::Text(first.clone().into())).await.expect("sent");
        transcript.push_str(&format!(
            "> {first}\n< {:?}\n< {:?}\n\n",
            next(&mut socket).await,
            next(&mut socket).await,
        ));
    }
    insta::assert_snapshot!(transcript);
}

#[tokio::test]
async fn messages_that_make_no_sense_end_the_command() {
    let server = Server::start().await;
    for message in [
        Message::Text("{\"type\":\"dance\"}".into()),
        Message::Text(json!({ "type": "signal", "signal": 0 }).to_string().into()),
        Message::Binary(vec![1, 2, 3].into()),
        Message::Binary(Vec::new().into()),
    ] {
        let mut socket = server.run(json!({ "argv": ["sleep", "600"] })).await;
        socket.send(message.clone()).await.expect("sent");
        let Heard::Control(answer) = next(&mut socket).await else { panic!("no answer") };
        assert_eq!(answer["type"], "error", "{message:?}");
        assert_eq!(next(&mut socket).await, Heard::Closed(Some(1008)), "{message:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_before_the_stream_opens_is_an_ordinary_answer() {
    let server = Server::start().await;
    match server.connect_to("nowhere").await {
        Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 404),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_stops_says_so() {
    let server = Server::start().await;
    let mut socket = server.run(json!({ "argv": ["sleep", "600"] })).await;
    server.stop.cancel();
    let Heard::Control(answer) = next(&mut socket).await else { panic!("no answer") };
    assert_eq!(answer["error"]["code"], "unavailable");
    assert_eq!(next(&mut socket).await, Heard::Closed(Some(1011)));
}
