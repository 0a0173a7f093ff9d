//! Bodies of requests that were answered without being read.
//!
//! Over HTTP/1.1 a body has to be off the wire before the next request. Whoever is refused early (for want of a
//! credential, or because what it asks for is not here) may be answered before its body has arrived; the
//! connection could then only be closed, and a client that keeps its connections would lose its next request
//! in it. So the small rest of a body is read and thrown away before the answer goes out.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, BodyDataStream},
    extract::Request,
    middleware::Next,
    response::Response,
};
use futures::{StreamExt, stream};
use http::header::{EXPECT, TRANSFER_ENCODING, UPGRADE};

/// A longer rest costs more than a new connection.
const MOST_BYTES: usize = 64 * 1024;
/// A client that does not send what it announced is not waited for longer.
const WITHIN: Duration = Duration::from_secs(10);

/// Answers when the request's body is read, too, if it is small.
pub(crate) async fn read_rest(request: Request, next: Next) -> Response {
    let headers = request.headers();
    // One that waits to be asked for its body has nothing on the wire; nor has a request without one.
    let length = headers.get(http::header::CONTENT_LENGTH).and_then(|text| text.to_str().ok());
    let is_small =
        length.is_some_and(|text| text.parse().is_ok_and(|length: usize| length <= MOST_BYTES));
    let is_plain =
        [EXPECT, TRANSFER_ENCODING, UPGRADE].iter().all(|name| !headers.contains_key(name));
    if length == Some("0") || !is_small || !is_plain {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = Arc::new(Mutex::new(body.into_data_stream()));
    let read = Arc::clone(&body);
    let pieces = stream::poll_fn(move |cx| held(&read).poll_next_unpin(cx));
    let response = next.run(Request::from_parts(parts, Body::from_stream(pieces))).await;
    // Otherwise somebody reads it still.
    if let Some(left) = Arc::into_inner(body) {
        let mut left = left.into_inner().unwrap_or_else(PoisonError::into_inner);
        let rest = async { while let Some(Ok(_)) = left.next().await {} };
        // Late or broken: the connection is closed, as it would have been.
        let _ = tokio::time::timeout(WITHIN, rest).await;
    }
    response
}

fn held(body: &Mutex<BodyDataStream>) -> std::sync::MutexGuard<'_, BodyDataStream> {
    // Polling a body leaves nothing half done.
    body.lock().unwrap_or_else(PoisonError::into_inner)
}
