//! What is written down of every request: method, path, status, time and a request id, never a
//! header's value, a query string (it may hold a key) or a body.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use http::{HeaderName, HeaderValue, Request, Response};
use tower::ServiceBuilder;
use tower_http::{
    request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer},
    trace::TraceLayer,
};
use tracing::{Level, Span};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_CHARS: usize = 64;

/// Wraps the whole front: request ids outermost, then one span and one line of log per request.
pub(crate) fn layered(router: Router) -> Router {
    let trace = TraceLayer::new_for_http()
        .make_span_with(|request: &Request<Body>| {
            let request_id = request.headers().get(X_REQUEST_ID).and_then(|id| id.to_str().ok());
            tracing::span!(
                Level::INFO,
                "request",
                method = %request.method(),
                path = request.uri().path(),
                request.id = request_id,
            )
        })
        .on_request(())
        .on_response(|response: &Response<_>, latency: Duration, _: &Span| {
            let latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(status = response.status().as_u16(), latency_ms, "request answered");
        })
        .on_failure(())
        .on_eos(())
        .on_body_chunk(());
    router.layer(
        ServiceBuilder::new()
            .map_request(drop_unfit_request_id)
            .layer(SetRequestIdLayer::new(X_REQUEST_ID, Counter::default()))
            .layer(trace)
            .layer(PropagateRequestIdLayer::new(X_REQUEST_ID)),
    )
}

/// A caller's own request id is kept if it is short and plain, because it goes into the log.
fn drop_unfit_request_id(mut request: Request<Body>) -> Request<Body> {
    let plain = |value: &HeaderValue| {
        (1..=MAX_REQUEST_ID_CHARS).contains(&value.len())
            && value.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
    };
    if !request.headers().get(X_REQUEST_ID).is_some_and(plain) {
        request.headers_mut().remove(X_REQUEST_ID);
    }
    request
}

/// Numbers the requests of this process.
#[derive(Clone, Default)]
struct Counter(Arc<AtomicU64>);

impl MakeRequestId for Counter {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        HeaderValue::try_from(format!("req-{number:08}")).ok().map(RequestId::new)
    }
}
