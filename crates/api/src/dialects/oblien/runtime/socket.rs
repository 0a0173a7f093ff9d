//! `/ws`: all terminals of a workspace over one WebSocket.
//!
//! A binary message is a terminal's number in its first byte, then bytes of it. Text messages are JSON: from
//! the client `{"channel":"terminal","type":"resize","id","cols","rows"}`, to it
//! `{"channel":"terminal","type":"exit","id","code"}`. Whoever connects is told of every terminal what is kept
//! of it, then what comes. A workspace has one connection: a new one replaces the one before.

use std::{collections::HashSet, time::Duration};

use axum::{
    extract::{
        State,
        ws::{
            CloseFrame, Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection,
        },
    },
    response::Response,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{
    SinkExt as _, StreamExt as _,
    stream::{self, BoxStream, SelectAll, SplitSink, SplitStream},
};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_control::internal_api::Pty;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    problem::RuntimeProblem,
    state::Inside,
    terminals::{Session, exit_code},
    visitor::Visitor,
};
use crate::{
    ApiState,
    dialects::oblien::{Oblien, error_body::Problem},
    extract::QueryOf,
    output_log::{Look, Next},
    terminal::Ended,
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
/// Another connection has taken this one's place, or its token opens nothing any more.
const REPLACED: u16 = 4001;

#[derive(Debug, Deserialize)]
pub(super) struct TokenQuery {
    token: Option<String>,
}

/// What clients say of a terminal.
#[derive(Deserialize)]
struct Resize {
    #[serde(rename = "type")]
    kind: String,
    /// A text or a number.
    id: Value,
    cols: u16,
    rows: u16,
}

pub(super) async fn connect(
    State(state): State<ApiState>,
    headers: HeaderMap,
    QueryOf { value: query, .. }: QueryOf<TokenQuery, Oblien>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let visitor = Visitor::of(&state, &headers, query.token.as_deref()).await?;
    let upgrade = upgrade.map_err(|_| RuntimeProblem::NotAWebSocket)?;
    visitor.guest(&state).await?;
    let inside = state.runtimes.of(visitor.workspace, state.control.now());
    let replaced = inside.connect();
    // It may have been replaced while nobody could have told this connection.
    Visitor::of(&state, &headers, query.token.as_deref()).await?;
    Ok(upgrade
        .max_message_size(MAX_MESSAGE_BYTES)
        .max_frame_size(MAX_MESSAGE_BYTES)
        .on_upgrade(async move |socket| serve(socket, &inside, replaced, &state).await))
}

async fn serve(socket: WebSocket, inside: &Inside, replaced: CancellationToken, state: &ApiState) {
    let (mut sink, mut source) = socket.split();
    let code = tokio::select! {
        () = listen(&mut source, inside) => return,
        () = speak(&mut sink, inside) => return,
        () = replaced.cancelled() => REPLACED,
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

/// Hands on what the client says until it leaves. A terminal that takes no input holds the others' back.
async fn listen(source: &mut SplitStream<WebSocket>, inside: &Inside) {
    while let Some(Ok(message)) = source.next().await {
        match message {
            Message::Binary(mut bytes) => {
                let session = bytes.first().and_then(|id| inside.terminals.get(*id));
                let Some(session) = session else { continue };
                let _ = bytes.split_to(1);
                while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(INPUT_PIECE_BYTES));
                    session.terminal.write(piece).await;
                }
            }
            // Other texts are of no meaning to either side.
            Message::Text(text) => {
                if let Ok(resize) = serde_json::from_str::<Resize>(&text) {
                    resized(&resize, inside).await;
                }
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return,
        }
    }
}

async fn resized(resize: &Resize, inside: &Inside) {
    let id = match &resize.id {
        Value::String(text) => text.parse().ok(),
        id => id.as_u64().and_then(|id| u8::try_from(id).ok()),
    };
    let session = id.and_then(|id| inside.terminals.get(id));
    let side = 1..=1000;
    if let Some(session) = session
        && resize.kind == "resize"
        && side.contains(&resize.cols)
        && side.contains(&resize.rows)
    {
        session.terminal.resize(Pty { columns: resize.cols, rows: resize.rows }).await;
    }
}

type Messages = BoxStream<'static, Message>;

/// What a terminal says, from what is kept on, to its end.
fn said(session: &Session) -> Messages {
    let id = session.id;
    let said = stream::unfold(Some(session.terminal.look()), move |look| async move {
        let mut look: Look<Ended> = look?;
        Some(match look.next().await {
            Next::Printed(_, bytes) => {
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                message.put_u8(id);
                message.put_slice(&bytes);
                (Message::Binary(message.freeze()), Some(look))
            }
            Next::Ended(ended) => {
                let exit = json!({
                    "channel": "terminal",
                    "type": "exit",
                    "id": id.to_string(),
                    "code": exit_code(ended),
                });
                (Message::Text(exit.to_string().into()), None)
            }
        })
    });
    said.boxed()
}

/// Passes on what terminals say until the client is gone.
async fn speak(sink: &mut SplitSink<WebSocket, Message>, inside: &Inside) {
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.reset();
    let mut opened = inside.terminals.opened();
    opened.mark_changed();
    let mut followed = HashSet::new();
    let mut all: SelectAll<Messages> = SelectAll::new();
    loop {
        let message = tokio::select! {
            changed = opened.changed() => {
                if changed.is_err() {
                    return;
                }
                for session in inside.terminals.list() {
                    if followed.insert(session.number) {
                        all.push(said(&session));
                    }
                }
                continue;
            }
            Some(message) = all.next(), if !all.is_empty() => message,
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        match timeout(UNREAD_TIMEOUT, sink.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
