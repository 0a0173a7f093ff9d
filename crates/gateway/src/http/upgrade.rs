//! WebSockets: asked for over HTTP/1.1 or HTTP/2, opened over HTTP/1.1.

use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{
    ext::Protocol,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;

use super::{
    Inner, empty,
    headers::remove_hop_by_hop,
    joined::Joined,
    page::Page,
    upstream::{self, Line, Sent},
};

const WEBSOCKET: &str = "websocket";

/// The client's side of a connection that is to become a WebSocket.
pub(super) struct Handover {
    client: OnUpgrade,
    how: How,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// `Upgrade` (RFC 6455).
    Http1,
    /// Extended CONNECT (RFC 8441).
    Http2,
}

impl Handover {
    /// Whether the request asks for a WebSocket. CONNECT for anything else is refused.
    pub(super) fn of(request: &mut Request<Body>) -> Result<Option<Self>, Page> {
        let how = if request.method() == Method::CONNECT {
            let protocol = request.extensions().get::<Protocol>();
            if protocol.is_none_or(|protocol| protocol.as_str() != WEBSOCKET) {
                return Err(Page::BadMethod);
            }
            How::Http2
        } else if request.method() == Method::GET && asks_for_websocket(request.headers()) {
            How::Http1
        } else {
            return Ok(None);
        };
        Ok(Some(Self { client: hyper::upgrade::on(request), how }))
    }
}

fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let names = |name, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    names(header::CONNECTION, "upgrade") && names(header::UPGRADE, WEBSOCKET)
}

/// Asks the server inside for a WebSocket and, if it agrees, joins the two.
pub(super) async fn carry(
    gateway: &Inner,
    line: Line,
    mut request: Request<Body>,
    Handover { client, how }: Handover,
) -> Result<Response<Body>, Page> {
    *request.method_mut() = Method::GET;
    // What follows the head is the WebSocket's, not a body.
    *request.body_mut() = Body::empty();
    let headers = request.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
    if how == How::Http2 {
        let mut nonce = [0; 16];
        (gateway.fill_random)(&mut nonce);
        let key = HeaderValue::from_str(&STANDARD.encode(nonce)).map_err(|_| Page::Internal)?;
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
    let sent = upstream::send(gateway, line, request).await?;
    let Sent { mut response, port, closed, place, progress } = sent;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        // Over HTTP/2 a success would mean that it is open.
        let misleading = how == How::Http2 && response.status().is_success();
        return if misleading {
            Err(Page::NoAnswer(port))
        } else {
            Ok(upstream::passed_on(response))
        };
    }
    let server = hyper::upgrade::on(&mut response);
    let mut answer = empty(match how {
        How::Http1 => StatusCode::SWITCHING_PROTOCOLS,
        How::Http2 => StatusCode::OK,
    });
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    let headers = answer.headers_mut();
    remove_hop_by_hop(headers);
    headers.remove(header::CONTENT_LENGTH);
    match how {
        How::Http1 => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
        }
        How::Http2 => {
            headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        }
    }
    let (ending, silent_at_most) = (gateway.ending.clone(), gateway.limits.silent_at_most);
    gateway.tasks.spawn(async move {
        let _place = place;
        tokio::select! {
            () = join(client, server) => {}
            () = closed.cancelled() => {}
            () = progress.silent_for(silent_at_most) => {}
            () = ending.cancelled() => {}
        }
    });
    Ok(answer)
}

async fn join(client: OnUpgrade, server: OnUpgrade) {
    let joined: Result<(Upgraded, Upgraded), _> = tokio::try_join!(client, server);
    let (client, server) = match joined {
        Ok(joined) => joined,
        Err(error) => {
            tracing::debug!(%error, "a WebSocket was not opened");
            return;
        }
    };
    if let Err(error) = Joined::new(TokioIo::new(client), TokioIo::new(server)).await {
        tracing::debug!(%error, "a WebSocket broke");
    }
}
