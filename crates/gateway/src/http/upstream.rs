//! The connection to a server inside, and one request on it.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use http::{Request, Response, StatusCode};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use skerry_internal_api::{ConnectFailure, GuestStream, NodeError, OpenPreview};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Inner, headers,
    page::Page,
    places::Place,
    progress::{Progress, Watched},
};

/// How often a server is tried that does not listen yet.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// What answers may take to their end when the gateway is told to end.
const PARTING_WITHIN: Duration = Duration::from_secs(2);
/// An answer's head, and what is read ahead.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// A connection to a server inside.
pub(super) struct Line {
    pub(super) port: u16,
    pub(super) closed: Arc<CancellationToken>,
    pub(super) place: Place,
    stream: Watched,
    pub(super) progress: Progress,
}

/// Connects. A server whose workspace has just woken is given a moment.
pub(super) async fn connect(
    gateway: &Inner,
    open: OpenPreview,
    place: Place,
) -> Result<Line, Page> {
    let OpenPreview { port, guest, was_woken, closed, .. } = open;
    let limits = &gateway.limits;
    let patience = if was_woken { limits.listens_within } else { Duration::ZERO };
    let until = Instant::now() + patience;
    let stream: GuestStream = loop {
        let connecting = guest.connect("localhost", port);
        let error = match timeout(limits.connect_within, connecting).await {
            Ok(Ok(stream)) => break stream,
            Ok(Err(error)) => error,
            Err(_) => return Err(Page::TooSlow(port)),
        };
        let page = page_of(&error, port);
        if page != Page::NothingListens(port) || Instant::now() >= until {
            tracing::debug!(%error, port, "a visitor was not let through");
            return Err(page);
        }
        sleep(AGAIN_AFTER).await;
    };
    let (stream, progress) = Watched::new(stream);
    Ok(Line { port, closed, place, stream, progress })
}

fn page_of(error: &NodeError, port: u16) -> Page {
    match error {
        NodeError::NotConnected { why, .. } => match why {
            ConnectFailure::Refused | ConnectFailure::NoSuchHost | ConnectFailure::Unreachable => {
                Page::NothingListens(port)
            }
            ConnectFailure::TimedOut => Page::TooSlow(port),
        },
        // As many connections as the guest takes are open.
        NodeError::Guest { .. } | NodeError::NoCapacity(_) => Page::Busy,
        NodeError::Timeout { .. } => Page::TooSlow(port),
        NodeError::NoSuchVm
        | NodeError::Cancelled
        | NodeError::NoSuchSnapshot
        | NodeError::SavedStateUnusable(_)
        | NodeError::NotRunning
        | NodeError::NoSuchImage(_)
        | NodeError::NoSuchVolume
        | NodeError::NoSuchCheckpoint
        | NodeError::VolumeInUse
        | NodeError::Pull { .. }
        | NodeError::NoSuchFile(_)
        | NodeError::Invalid { .. }
        | NodeError::GuestUnreachable(_)
        | NodeError::Step { .. }
        | NodeError::Unsupported(_) => Page::Unavailable,
    }
}

/// What is left of a line on which a request was sent.
pub(super) struct Sent {
    pub(super) response: Response<Incoming>,
    pub(super) port: u16,
    pub(super) closed: Arc<CancellationToken>,
    pub(super) place: Arc<Place>,
    pub(super) progress: Progress,
}

/// Sends a request; answers when the answer begins. The connection's task ends with the answer, or
/// when its visitor or the server inside has gone.
pub(super) async fn send(
    gateway: &Inner,
    line: Line,
    request: Request<Body>,
) -> Result<Sent, Page> {
    let Line { port, closed, place, stream, progress } = line;
    let place = Arc::new(place);
    let no_answer = |error: hyper::Error| {
        tracing::debug!(%error, port, "a server in a workspace gave no answer");
        Page::NoAnswer(port)
    };
    let handshake = http1::Builder::new()
        .max_buf_size(READ_AHEAD_BYTES)
        .handshake::<_, Body>(TokioIo::new(stream));
    let (mut sender, connection): (SendRequest<Body>, _) = handshake.await.map_err(no_answer)?;
    let carrying = {
        let (closed, progress, place) = (Arc::clone(&closed), progress.clone(), Arc::clone(&place));
        let (ending, silent_at_most) = (gateway.ending.clone(), gateway.limits.silent_at_most);
        async move {
            let _place = place;
            tokio::select! {
                ended = connection.with_upgrades() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, port, "a connection into a workspace broke");
                    }
                }
                () = closed.cancelled() => {}
                () = progress.silent_for(silent_at_most) => {}
                () = async { ending.cancelled().await; sleep(PARTING_WITHIN).await } => {}
            }
        }
    };
    gateway.tasks.spawn(carrying);
    let response = tokio::select! {
        response = sender.send_request(request) => response.map_err(no_answer)?,
        () = progress.silent_for(gateway.limits.answer_within) => return Err(Page::TooSlow(port)),
    };
    Ok(Sent { response, port, closed, place, progress })
}

/// Carries a request and its answer.
pub(super) async fn carry(
    gateway: &Inner,
    line: Line,
    request: Request<Body>,
) -> Result<Response<Body>, Page> {
    let Sent { response, port, .. } = send(gateway, line, request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody has asked for that.
        return Err(Page::NoAnswer(port));
    }
    Ok(passed_on(response))
}

/// An answer on its way to the visitor.
pub(super) fn passed_on(response: Response<Incoming>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    headers::remove_hop_by_hop(&mut parts.headers);
    parts.version = http::Version::HTTP_11;
    parts.extensions.clear();
    Response::from_parts(parts, Body::new(body))
}
