//! A terminal over a WebSocket: binary messages are its bytes, text messages are JSON. From the client
//! `{"type":"resize","cols","rows"}`, to it `{"type":"exit","exit_code"}` at the end.

use std::time::Duration;

use axum::{
    extract::{
        State,
        ws::{
            CloseFrame, Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection,
        },
    },
    response::Response,
};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::HeaderMap;
use serde::Deserialize;
use skerry_control::internal_api::Pty;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::workspace;
use crate::{
    ApiState, auth,
    dialects::instavm::{Instavm, error_body::Problem},
    extract::{PathOf, QueryOf},
    output_log::{Look, Next},
    terminal::{Ended, Terminal},
};

/// The largest message taken from a client.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// The largest piece of input handed on at once.
const INPUT_PIECE_BYTES: usize = 64 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long a client may leave output unread: a paused pager is not gone.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long the closing handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// WebSocket clients of browsers can set no headers. Queries are not logged.
#[derive(Debug, Deserialize)]
pub(in crate::dialects::instavm) struct Key {
    api_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Said {
    Resize { cols: u16, rows: u16 },
}

pub(in crate::dialects::instavm) async fn connect(
    State(state): State<ApiState>,
    headers: HeaderMap,
    QueryOf { value: key, .. }: QueryOf<Key, Instavm>,
    PathOf { value: (which, id), .. }: PathOf<(String, String), Instavm>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let caller = auth::caller_with_key(&state, &headers, key.api_key.as_deref()).await?;
    let workspace = workspace(&state, &caller, &which).await?;
    let terminal = state.terminals.get(workspace, &id)?;
    let upgrade = upgrade.map_err(|_| Problem::NotAWebSocket)?;
    Ok(upgrade
        .max_message_size(MAX_MESSAGE_BYTES)
        .max_frame_size(MAX_MESSAGE_BYTES)
        .on_upgrade(async move |socket| serve(socket, &terminal, &state).await))
}

async fn serve(socket: WebSocket, terminal: &Terminal, state: &ApiState) {
    let (mut sink, mut source) = socket.split();
    let code = tokio::select! {
        () = listen(&mut source, terminal) => return,
        ended = speak(&mut sink, terminal.look()) => match ended {
            Some(Ended::Exited(_)) => 1000,
            Some(Ended::Lost) => 1011,
            None => return,
        },
        () = state.shutdown_begun() => 1001,
    };
    let closing = async {
        let frame = CloseFrame { code, reason: "".into() };
        if sink.send(Message::Close(Some(frame))).await.is_ok() {
            // Closing with unread input would throw away what was sent last.
            while let Some(Ok(_)) = source.next().await {}
        }
    };
    let _ = timeout(CLOSE_TIMEOUT, closing).await;
}

/// Hands on what the client says until it leaves.
async fn listen(source: &mut SplitStream<WebSocket>, terminal: &Terminal) {
    while let Some(Ok(message)) = source.next().await {
        match message {
            Message::Binary(mut bytes) => {
                while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(INPUT_PIECE_BYTES));
                    terminal.write(piece).await;
                }
            }
            // Other texts are of no meaning to either side.
            Message::Text(text) => {
                if let Ok(Said::Resize { cols, rows }) = serde_json::from_str(&text)
                    && (1..=1000).contains(&cols)
                    && (1..=1000).contains(&rows)
                {
                    terminal.resize(Pty { columns: cols, rows }).await;
                }
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return,
        }
    }
}

/// Passes on what is printed until the end; `None` when the client is gone first.
async fn speak(sink: &mut SplitSink<WebSocket, Message>, mut look: Look<Ended>) -> Option<Ended> {
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.reset();
    loop {
        let (message, ended) = tokio::select! {
            next = look.next() => match next {
                Next::Printed(_, bytes) => (Message::Binary(bytes), None),
                Next::Ended(Ended::Exited(code)) => {
                    let exit = serde_json::json!({ "type": "exit", "exit_code": code });
                    (Message::Text(exit.to_string().into()), Some(Ended::Exited(code)))
                }
                Next::Ended(Ended::Lost) => return Some(Ended::Lost),
            },
            _ = pings.tick() => (Message::Ping(Bytes::new()), None),
        };
        match timeout(UNREAD_TIMEOUT, sink.send(message)).await {
            Ok(Ok(())) if ended.is_some() => return ended,
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return None,
        }
    }
}
