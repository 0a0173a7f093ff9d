//! Requests to the agent and its answers, all bounded.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use serde::{Serialize, de::DeserializeOwned};
use skerry_agent_protocol::{
    head,
    limits::{ANSWER_MAX, LISTING_MAX},
    message::Failure,
};
use skerry_internal_api::{ByteStream, NodeError};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    connection::{Connected, Requests},
    failure::{lost, node_error},
    hold::Hold,
};

/// The body of every request.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// How long a call waits for a connection in a gap between two.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);
/// How long a call waits for a free stream.
const STREAM_WITHIN: Duration = Duration::from_secs(10);
/// How long the answer to a streaming call may take to begin.
pub(super) const ANSWER_BEGINS_WITHIN: Duration = Duration::from_secs(30);
/// How long the guest may take for the next bytes of a file or tree.
const PIECE_WITHIN: Duration = Duration::from_secs(60);
/// How long the guest may take nothing of an upload, or to finish it.
const PROGRESS_WITHIN: Duration = Duration::from_secs(120);
/// Of a guest's sentence so much is believed.
const SENTENCE_MAX: usize = 1000;
/// A piece of a stream, as `ByteStream` promises.
const PIECE_MAX: usize = 64 * 1024;

impl Shared {
    /// A short call: JSON both ways.
    pub(super) async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &'static str,
        question: &Q,
        within: Duration,
    ) -> Result<A, NodeError> {
        let _permit = self.permit(&self.short_streams).await?;
        let mut requests = self.connected().await?.requests;
        bounded(&self.hold, path, within, ask(&mut requests, path, question)).await
    }

    /// Like [`Shared::ask`], on a stream that the guest's users cannot take away.
    pub(super) async fn command<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &'static str,
        question: &Q,
        within: Duration,
    ) -> Result<A, NodeError> {
        let _permit = self.permit(&self.control_streams).await?;
        let mut requests = self.connected().await?.requests;
        bounded(&self.hold, path, within, ask(&mut requests, path, question)).await
    }

    /// Like [`Shared::ask`], with room for a whole directory.
    pub(super) async fn ask_for_listing<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &'static str,
        question: &Q,
        within: Duration,
    ) -> Result<A, NodeError> {
        let _listing = self.permit(&self.listings).await?;
        let _permit = self.permit(&self.short_streams).await?;
        let mut requests = self.connected().await?.requests;
        let body = full(head_of(question)?);
        bounded(&self.hold, path, within, async {
            json(send(&mut requests, path, body).await?, LISTING_MAX).await
        })
        .await
    }

    /// A call that is answered by raw bytes.
    pub(super) async fn download<Q: Serialize>(
        self: &Arc<Self>,
        path: &'static str,
        question: &Q,
    ) -> Result<ByteStream, NodeError> {
        let permit = self.permit(&self.long_streams).await?;
        let mut requests = self.connected().await?.requests;
        let body = full(head_of(question)?);
        let answer = send(&mut requests, path, body);
        let answer = bounded(&self.hold, path, ANSWER_BEGINS_WITHIN, answer).await?;
        Ok(pieces(answer.into_body(), Arc::clone(self), permit))
    }

    /// A call whose question goes on in raw bytes.
    pub(super) async fn upload<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &'static str,
        question: &Q,
        content: ByteStream,
    ) -> Result<A, NodeError> {
        let _permit = self.permit(&self.long_streams).await?;
        let mut requests = self.connected().await?.requests;
        let progress = Arc::new(Notify::new());
        let source_error = Arc::new(Mutex::new(None));
        // Once the agent has answered it reads no further.
        let answered = CancellationToken::new();
        let _stop = answered.clone().drop_guard();
        let rest = content.map({
            let (progress, source_error) = (Arc::clone(&progress), Arc::clone(&source_error));
            move |piece| {
                progress.notify_one();
                piece.map_err(|error| {
                    *source_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    io::Error::other("the source of the upload failed")
                })
            }
        });
        let body = streaming(head_of(question)?, rest.take_until(answered.cancelled_owned()));
        let exchange = async { json(send(&mut requests, path, body).await?, ANSWER_MAX).await };
        tokio::pin!(exchange);
        let outcome = loop {
            tokio::select! {
                outcome = &mut exchange => break outcome,
                () = progress.notified() => {}
                () = self.hold.sleep(PROGRESS_WITHIN) => break Err(too_late(path, PROGRESS_WITHIN)),
            }
        };
        // The source's own failure says more than the stream that broke for it.
        match source_error.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => outcome,
        }
    }

    /// The connection to put requests in: now, or after the gap between two, or after a short pause.
    pub(super) async fn connected(&self) -> Result<Connected, NodeError> {
        let unreachable = |why: &str| NodeError::GuestUnreachable(why.to_owned());
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(unreachable("the line to it is closed")),
            connected = timeout(CONNECTED_WITHIN, self.next_connected()) => match connected {
                Ok(Some(connected)) => Ok(connected),
                Ok(None) => Err(unreachable("it is not connected")),
                Err(_) if self.hold.is_held() => Err(unreachable("its VM is paused")),
                Err(_) => Err(unreachable("its agent is not connected")),
            },
        }
    }

    async fn next_connected(&self) -> Option<Connected> {
        let mut watching = self.connected.subscribe();
        loop {
            self.hold.released().await;
            let is_open = |connected: &Option<Connected>| {
                connected.as_ref().is_some_and(|connected| !connected.requests.is_closed())
            };
            // The sender is ours: there is no error.
            let connected = watching.wait_for(is_open).await.ok()?.clone();
            if !self.hold.is_held() {
                return connected;
            }
        }
    }

    /// The right to one more stream.
    pub(super) async fn permit(
        &self,
        streams: &Arc<Semaphore>,
    ) -> Result<OwnedSemaphorePermit, NodeError> {
        match timeout(STREAM_WITHIN, Arc::clone(streams).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(NodeError::Guest {
                code: "other",
                message: String::from("too many commands and transfers are running in the guest"),
            }),
        }
    }
}

/// A short call on a given connection.
pub(super) async fn ask<Q: Serialize, A: DeserializeOwned>(
    requests: &mut Requests,
    path: &'static str,
    question: &Q,
) -> Result<A, NodeError> {
    let body = full(head_of(question)?);
    json(send(requests, path, body).await?, ANSWER_MAX).await
}

/// Bounds `exchange` by the time in which the guest could have answered.
pub(super) async fn bounded<T>(
    hold: &Hold,
    path: &'static str,
    within: Duration,
    exchange: impl Future<Output = Result<T, NodeError>>,
) -> Result<T, NodeError> {
    hold.bounded(within, exchange).await.unwrap_or_else(|| Err(too_late(path, within)))
}

fn too_late(path: &'static str, within: Duration) -> NodeError {
    NodeError::Timeout { step: path, bound_seconds: within.as_secs() }
}

/// Sends a request; the answer's head if the agent said yes, its refusal if it said no.
pub(super) async fn send(
    requests: &mut Requests,
    path: &'static str,
    body: RequestBody,
) -> Result<Response<Incoming>, NodeError> {
    let request = Request::post(format!("http://guest{path}")).body(body).map_err(lost)?;
    let answer = requests.send_request(request).await.map_err(lost)?;
    if answer.status() == StatusCode::OK {
        return Ok(answer);
    }
    let failure: Failure = json(answer, ANSWER_MAX).await?;
    Err(node_error(&failure))
}

async fn json<A: DeserializeOwned>(
    answer: Response<Incoming>,
    bound: usize,
) -> Result<A, NodeError> {
    let mut body = answer.into_body();
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame.map_err(lost)?.into_data() {
            if bytes.len() + piece.len() > bound {
                return Err(lost("its answer is too long"));
            }
            bytes.extend_from_slice(&piece);
        }
    }
    serde_json::from_slice(&bytes).map_err(|_| lost("its answer makes no sense"))
}

/// The question's bytes.
pub(super) fn head_of<Q: Serialize>(question: &Q) -> Result<Bytes, NodeError> {
    head::encode(question)
        .map_err(|error| NodeError::Invalid { field: "request", problem: error.to_string() })
}

pub(super) fn full(bytes: Bytes) -> RequestBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A body of the question and then `rest`.
pub(super) fn streaming(
    head: Bytes,
    rest: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> RequestBody {
    let all = stream::once(async move { Ok(head) }).chain(rest);
    BodyExt::boxed_unsync(StreamBody::new(all.map(|piece| piece.map(Frame::data))))
}

fn pieces(body: Incoming, shared: Arc<Shared>, permit: OwnedSemaphorePermit) -> ByteStream {
    struct State {
        body: Incoming,
        shared: Arc<Shared>,
        rest: Bytes,
        failed: bool,
        _permit: OwnedSemaphorePermit,
    }
    let state = State { body, shared, rest: Bytes::new(), failed: false, _permit: permit };
    Box::pin(stream::unfold(state, |mut state| async move {
        if state.failed {
            return None;
        }
        while state.rest.is_empty() {
            match state.shared.hold.bounded(PIECE_WITHIN, state.body.frame()).await {
                Some(Some(Ok(frame))) => state.rest = frame.into_data().unwrap_or_default(),
                Some(None) => return None,
                Some(Some(Err(error))) => {
                    state.failed = true;
                    return Some((Err(lost(error)), state));
                }
                None => {
                    state.failed = true;
                    return Some((Err(too_late("guest_stream", PIECE_WITHIN)), state));
                }
            }
        }
        let length = state.rest.len().min(PIECE_MAX);
        let piece = state.rest.split_to(length);
        Some((Ok(piece), state))
    }))
}

/// A guest's sentence, cut and without control characters: it ends in logs and terminals.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .take(SENTENCE_MAX)
        .map(|character| if character.is_control() { '\u{FFFD}' } else { character })
        .collect()
}
