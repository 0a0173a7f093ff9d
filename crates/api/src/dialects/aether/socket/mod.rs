//! `GET /workspaces/{id}/ws`: the socket of a workspace, for terminals, files and ports.
//!
//! Every message is a JSON text with `channel` and `type`. Any number of sockets may be open. Terminals outlive
//! them; everything else ends with its socket. An open socket is use of the workspace; whoever it wakes and for
//! whom it stays up is decided where all use is.

mod files;
mod frame;
mod login;
mod ports;
mod terminals;

use std::{sync::Arc, time::Duration};

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
    FutureExt as _, SinkExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{FuturesUnordered, SelectAll, SplitSink, SplitStream},
};
use http::{HeaderMap, header};
use serde::Deserialize;
use skerry_control::{Caller, WorkspaceRef, internal_api::GuestApi};
use skerry_model::{ErrorKind, WorkspaceId};
use tokio::{
    sync::{OnceCell, mpsc},
    time::{MissedTickBehavior, interval, timeout},
};

pub(crate) use self::terminals::Terminals;
use self::{
    frame::{Asked, Refusal, failure},
    login::Login,
    terminals::{LookedAt, Said},
};
use super::{Aether, error_body::AetherError, workspaces::WorkspacePath};
use crate::{ApiState, auth, extract::QueryOf};

/// The largest message taken from a client.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(45);
/// A client that says nothing for so long, pongs included, is gone.
const SILENCE: Duration = Duration::from_secs(120);
/// How long one message may take to be taken.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the closing handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests at work at a time; more wait unread.
const AT_WORK: usize = 8;
/// Answers that wait to be sent.
const WAITING: usize = 16;
/// What stands before the key where it is given as a subprotocol, as browsers have to.
const SUBPROTOCOLS: [&str; 3] = ["bearer", "Bearer", "access_token"];

/// Close codes (RFC 6455, 7.4.1).
const GOING_AWAY: u16 = 1001;
const GUEST_LOST: u16 = 1011;

/// WebSocket clients of browsers can set no headers. Queries are not logged.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenQuery {
    token: Option<String>,
}

/// What one socket works with.
struct Connection {
    state: ApiState,
    caller: Caller,
    workspace: WorkspaceId,
    guest: Arc<dyn GuestApi>,
    /// As whom it works in the guest, once that was asked for.
    login: OnceCell<Login>,
    answers: mpsc::Sender<Message>,
    /// Terminals that the client looks at from now on.
    looks: mpsc::Sender<Said>,
    looked_at: LookedAt,
}

/// `GET /workspaces/{id}/ws`.
pub(super) async fn connect(
    State(state): State<ApiState>,
    headers: HeaderMap,
    QueryOf { value: query, .. }: QueryOf<TokenQuery, Aether>,
    WorkspacePath(which): WorkspacePath,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, AetherError> {
    let key = key_of_subprotocol(&headers).or(query.token);
    let caller = auth::caller_with_key(&state, &headers, key.as_deref()).await?;
    let workspace = state.control.get_workspace(&caller, &which).await?.id;
    let upgrade =
        upgrade.map_err(|_| AetherError::not_in_state("This is no WebSocket handshake"))?;
    let guest = state.control.guest(&caller, &WorkspaceRef::Id(workspace)).await;
    let guest = guest.map_err(|error| match error.kind() {
        ErrorKind::RefusedByState { .. } => AetherError::not_in_state("Workspace is not running"),
        _ => error.into(),
    })?;
    Ok(upgrade
        .protocols(SUBPROTOCOLS)
        .max_message_size(MAX_MESSAGE_BYTES)
        .max_frame_size(MAX_MESSAGE_BYTES)
        .on_upgrade(async move |socket| serve(socket, state, caller, workspace, guest).await))
}

/// The key behind one of the words for it, as in `Sec-WebSocket-Protocol: bearer, KEY`.
fn key_of_subprotocol(headers: &HeaderMap) -> Option<String> {
    let said = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let (word, key) = said.split_once(',')?;
    SUBPROTOCOLS.contains(&word.trim()).then(|| key.trim().to_owned())
}

async fn serve(
    socket: WebSocket,
    state: ApiState,
    caller: Caller,
    workspace: WorkspaceId,
    guest: Arc<dyn GuestApi>,
) {
    let (mut sink, mut source) = socket.split();
    let (answers, to_send) = mpsc::channel(WAITING);
    let (looks, to_look_at) = mpsc::channel(WAITING);
    let login = OnceCell::new();
    let looked_at = LookedAt::default();
    let connection =
        Connection { state, caller, workspace, guest, login, answers, looks, looked_at };
    let code = tokio::select! {
        () = connection.listen(&mut source) => return,
        () = speak(&mut sink, to_send, to_look_at) => return,
        () = ports::watch(&connection) => GUEST_LOST,
        () = connection.state.shutdown_begun() => GOING_AWAY,
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

impl Connection {
    /// Does what the client says until it leaves.
    async fn listen(&self, source: &mut SplitStream<WebSocket>) {
        let mut at_work: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        loop {
            let has_room = at_work.len() < AT_WORK;
            let message = tokio::select! {
                Some(()) = at_work.next(), if !at_work.is_empty() => continue,
                message = timeout(SILENCE, source.next()), if has_room => message,
            };
            match message {
                Ok(Some(Ok(Message::Text(text)))) => {
                    let work = self.asked(&text).await;
                    at_work.extend(work);
                }
                Ok(Some(Ok(Message::Binary(_)))) => {
                    self.refuse(&Refusal::new("messages are JSON texts")).await;
                }
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
                Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return,
            }
        }
    }

    /// What is done at once is done; what takes its time is returned.
    async fn asked<'a>(&'a self, text: &str) -> Option<BoxFuture<'a, ()>> {
        let done = match Asked::parse(text) {
            Ok(Asked::Terminal(asked)) => self.terminal(asked).await,
            Ok(Asked::Files(asked)) => return Some(self.file(asked).boxed()),
            Ok(Asked::Ports(asked)) => return Some(self.end_port(asked).boxed()),
            Ok(Asked::Activity) => {
                // Being asked for is use, and there is nobody to tell that it was not possible.
                let which = WorkspaceRef::Id(self.workspace);
                let _ = self.state.control.guest(&self.caller, &which).await;
                Ok(())
            }
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = done {
            self.refuse(&refusal).await;
        }
        None
    }

    async fn refuse(&self, refusal: &Refusal) {
        self.answer(failure(refusal)).await;
    }

    /// Nobody is there to be answered once the socket ends.
    async fn answer(&self, message: Message) {
        let _ = self.answers.send(message).await;
    }
}

/// Passes on what there is to say until the client is gone.
async fn speak(
    sink: &mut SplitSink<WebSocket, Message>,
    mut answers: mpsc::Receiver<Message>,
    mut looks: mpsc::Receiver<Said>,
) {
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.reset();
    let mut terminals: SelectAll<Said> = SelectAll::new();
    loop {
        let message = tokio::select! {
            Some(answer) = answers.recv() => answer,
            Some(look) = looks.recv() => {
                terminals.push(look);
                continue;
            }
            Some(said) = terminals.next(), if !terminals.is_empty() => said,
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        match timeout(UNREAD_TIMEOUT, sink.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_stand_behind_a_word_for_it_among_the_subprotocols() {
        let key = |said: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, said.parse().expect("a header"));
            key_of_subprotocol(&headers)
        };
        for said in ["bearer, k", "Bearer,k", "access_token , k "] {
            assert_eq!(key(said).as_deref(), Some("k"), "{said}");
        }
        for said in ["bearer", "chat, k", "k"] {
            assert_eq!(key(said), None, "{said}");
        }
    }
}
