//! Commands and terminals over a WebSocket.
//!
//! The client's first message is text: the start ([`wire::ExecStart`]). After that, binary messages
//! carry bytes, their first byte saying which stream ([`STDIN`], [`STDOUT`], [`STDERR`]), and text
//! messages control ([`wire::ExecClientMessage`], [`wire::ExecServerMessage`]). Nothing is read ahead:
//! a command that does not read stalls its client's input, a client that does not read stalls the
//! command's output.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::{
        State,
        ws::{
            CloseFrame, Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection,
        },
    },
    response::Response,
};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::StatusCode;
use skerry_control::internal_api::{ExecControl, ExecOutput, ExecSession, GuestApi, NodeError};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Login, Params, convert,
    error_body::{NativeError, NativeResult},
    wire,
};
use crate::{ApiState, Fault, extract::parse_json, ids::parse_workspace_ref};

/// First byte of a binary message: standard input.
const STDIN: u8 = 0;
/// First byte of a binary message: standard output.
const STDOUT: u8 = 1;
/// First byte of a binary message: standard error.
const STDERR: u8 = 2;

/// The largest message taken from a client.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// The largest piece of standard input handed on at once.
const STDIN_PIECE_BYTES: usize = 64 * 1024;
const MAX_TIMEOUT_SECONDS: u32 = 86_400;
/// How long a client may take to send the start, and the guest to begin.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that has been silent for two of these intervals is taken for gone.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long a client may leave output unread: a paused pager is not gone.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long the closing handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs a command or a terminal in a running workspace over a WebSocket.
///
/// First message, text: `ExecStart`. Then binary messages with one byte in front (0 standard input,
/// 1 standard output, 2 standard error) and text messages `ExecClientMessage` and
/// `ExecServerMessage`. A connection that ends before the command ends the command.
#[utoipa::path(
    operation_id = "exec_stream",
    get, path = "/skerry/v1/workspaces/{workspace}/exec/stream", tag = "commands",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 101, description = "The WebSocket is open"),
        (status = 400, body = wire::ErrorBody, description = "Not a WebSocket handshake"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run"),
    ),
)]
pub(super) async fn open(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> NativeResult<Response> {
    let upgrade = upgrade.map_err(|rejection| {
        NativeError::new(StatusCode::BAD_REQUEST, "websocket_required", rejection.body_text())
    })?;
    let guest = state.control.guest(&login.caller, &parse_workspace_ref(&path.value)).await?;
    Ok(upgrade
        .max_message_size(MAX_MESSAGE_BYTES)
        .max_frame_size(MAX_MESSAGE_BYTES)
        .on_upgrade(async move |socket| serve(socket, guest, state).await))
}

/// How a stream ended.
enum End {
    /// The command ended and the client was told.
    Exited,
    /// The client went away.
    Left,
}

async fn serve(socket: WebSocket, guest: Arc<dyn GuestApi>, state: ApiState) {
    let (mut sink, mut source) = socket.split();
    let result = tokio::select! {
        result = run(&mut sink, &mut source, guest) => result,
        () = state.shutdown_begun() => Err(NativeError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "the server is shutting down",
        )),
    };
    match result {
        Ok(End::Exited) => close(sink, source, 1000).await,
        Ok(End::Left) => {}
        Err(error) => {
            let message = wire::ExecServerMessage::Error { error: *error.detail };
            // A client that is gone does not hear why.
            let _ = timeout(CLOSE_TIMEOUT, send_text(&mut sink, &message)).await;
            close(sink, source, if error.status.is_server_error() { 1011 } else { 1008 }).await;
        }
    }
}

/// Closes, and reads on until the client has closed too: closing a socket with unread input makes the
/// system throw away what was sent last.
async fn close(
    mut sink: SplitSink<WebSocket, Message>,
    mut source: SplitStream<WebSocket>,
    code: u16,
) {
    let closing = async {
        let frame = CloseFrame { code, reason: "".into() };
        if sink.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = source.next().await {}
        }
    };
    let _ = timeout(CLOSE_TIMEOUT, closing).await;
}

async fn run(
    sink: &mut SplitSink<WebSocket, Message>,
    source: &mut SplitStream<WebSocket>,
    guest: Arc<dyn GuestApi>,
) -> NativeResult<End> {
    let started = timeout(START_TIMEOUT, start(source, guest.as_ref())).await.map_err(|_| {
        NativeError::new(
            StatusCode::GATEWAY_TIMEOUT,
            "timed_out",
            "the command did not start within 30 s of connecting",
        )
    })?;
    let Some(ExecSession { control, output }) = started? else { return Ok(End::Left) };
    if send_text(sink, &wire::ExecServerMessage::Started).await.is_err() {
        return Ok(End::Left);
    }
    let alive = Alive::default();
    tokio::select! {
        result = listen(source, control, &alive) => result,
        result = speak(sink, output, &alive) => result,
    }
}

/// Waits for the start and starts; `None` when the client left first.
async fn start(
    source: &mut SplitStream<WebSocket>,
    guest: &dyn GuestApi,
) -> NativeResult<Option<ExecSession>> {
    while let Some(Ok(message)) = source.next().await {
        match message {
            Message::Text(text) => {
                let start: wire::ExecStart = parse_json(text.as_bytes()).map_err(bad_json)?;
                let request = convert::exec(convert::Command {
                    argv: start.argv,
                    env: start.env,
                    working_dir: start.working_dir,
                    user: start.user,
                    pty: start.pty,
                    timeout_seconds: start.timeout_seconds,
                    max_timeout_seconds: MAX_TIMEOUT_SECONDS,
                })?;
                return Ok(Some(guest.exec(request).await?));
            }
            Message::Binary(_) => {
                return Err(protocol_error("the first message must be the start, as text"));
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return Ok(None),
        }
    }
    Ok(None)
}

/// Whether the client shows signs of life.
#[derive(Default)]
struct Alive {
    /// Something came since the last look.
    heard: AtomicBool,
    /// Nothing can come because the command does not take its input.
    stalled: AtomicBool,
}

/// Takes what the client says until it leaves.
async fn listen(
    source: &mut SplitStream<WebSocket>,
    control: mpsc::Sender<ExecControl>,
    alive: &Alive,
) -> NativeResult<End> {
    while let Some(Ok(message)) = source.next().await {
        alive.heard.store(true, Ordering::Relaxed);
        match message {
            Message::Binary(mut bytes) => {
                if bytes.first() != Some(&STDIN) {
                    return Err(protocol_error("a binary message must begin with the byte 0"));
                }
                let _ = bytes.split_to(1);
                while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(STDIN_PIECE_BYTES));
                    tell(&control, ExecControl::Stdin(piece), alive).await;
                }
            }
            Message::Text(text) => {
                let message = match parse_json(text.as_bytes()).map_err(bad_json)? {
                    wire::ExecClientMessage::Resize { columns, rows } => {
                        ExecControl::Resize(convert::pty(columns, rows)?)
                    }
                    wire::ExecClientMessage::Signal { signal } => {
                        ExecControl::Signal(convert::signal(signal)?)
                    }
                    wire::ExecClientMessage::CloseStdin => ExecControl::CloseStdin,
                };
                tell(&control, message, alive).await;
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => break,
        }
    }
    Ok(End::Left)
}

/// Passes something on to the command. One that has ended takes nothing more; its exit is under way.
async fn tell(control: &mpsc::Sender<ExecControl>, message: ExecControl, alive: &Alive) {
    alive.stalled.store(true, Ordering::Relaxed);
    let _ = control.send(message).await;
    alive.stalled.store(false, Ordering::Relaxed);
}

/// Passes on what the command says until it ends.
async fn speak(
    sink: &mut SplitSink<WebSocket, Message>,
    mut output: mpsc::Receiver<Result<ExecOutput, NodeError>>,
    alive: &Alive,
) -> NativeResult<End> {
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.reset();
    let mut silent_intervals = 0;
    loop {
        let message = tokio::select! {
            item = output.recv() => match item {
                Some(Ok(ExecOutput::Stdout(bytes))) => tagged(STDOUT, &bytes),
                Some(Ok(ExecOutput::Stderr(bytes))) => tagged(STDERR, &bytes),
                Some(Ok(ExecOutput::Exit(exit))) => {
                    let (exit_code, signal, timed_out) = convert::exit(exit);
                    let exit = wire::ExecServerMessage::Exit { exit_code, signal, timed_out };
                    return Ok(match send_text(sink, &exit).await {
                        Ok(()) => End::Exited,
                        Err(Gone) => End::Left,
                    });
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Err(NodeError::GuestUnreachable(
                    "the command's stream ended before the command".to_owned(),
                ).into()),
            },
            _ = pings.tick() => {
                let heard = alive.heard.swap(false, Ordering::Relaxed);
                let stalled = alive.stalled.load(Ordering::Relaxed);
                silent_intervals = if heard || stalled { 0 } else { silent_intervals + 1 };
                if silent_intervals >= 2 {
                    return Ok(End::Left);
                }
                Message::Ping(Bytes::new())
            }
        };
        if send(sink, message).await.is_err() {
            return Ok(End::Left);
        }
    }
}

fn tagged(stream: u8, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(stream);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

/// The client cannot be reached any more.
struct Gone;

async fn send(sink: &mut SplitSink<WebSocket, Message>, message: Message) -> Result<(), Gone> {
    match timeout(UNREAD_TIMEOUT, sink.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Gone),
    }
}

async fn send_text(
    sink: &mut SplitSink<WebSocket, Message>,
    message: &wire::ExecServerMessage,
) -> Result<(), Gone> {
    let text = serde_json::to_string(message).map_err(|_| Gone)?;
    send(sink, Message::Text(text.into())).await
}

fn bad_json(problem: crate::extract::JsonProblem) -> NativeError {
    NativeError::from(&Fault::BadJson(problem))
}

fn protocol_error(message: &str) -> NativeError {
    NativeError::new(StatusCode::BAD_REQUEST, "protocol", message)
}
