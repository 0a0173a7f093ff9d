//! The guest's bytes as bodies of answers, and bodies of requests for the guest.

use std::time::Duration;

use axum::{
    body::{Body as HttpBody, BodyDataStream},
    response::Response,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderValue, header};
use skerry_control::internal_api::{ByteStream, NodeError};
use tokio::time::timeout;

/// The largest piece handed on to the guest at once.
const PIECE_BYTES: usize = 64 * 1024;
/// How long an upload may stand still by the client's doing.
const UPLOAD_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The guest's bytes as a body. Nothing is buffered: a slow client slows the guest. An error on the
/// way breaks the body off, so that the client sees that it is not whole.
pub(crate) fn download(bytes: ByteStream, content_type: &'static str) -> Response {
    let mut response = Response::new(HttpBody::from_stream(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    // The bytes are the guest's: no browser may take them for a page of this origin.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox; default-src 'none'"),
    );
    response
}

/// A request's body for the guest, in pieces small enough for it. A client that sends nothing for
/// [`UPLOAD_IDLE_TIMEOUT`] while the guest waits is given up.
pub(crate) fn upload(body: HttpBody) -> ByteStream {
    let received = stream::try_unfold(body.into_data_stream(), next_piece);
    Box::pin(received.map_ok(|bytes| stream::iter(in_pieces(bytes).map(Ok))).try_flatten())
}

async fn next_piece(
    mut body: BodyDataStream,
) -> Result<Option<(Bytes, BodyDataStream)>, NodeError> {
    let broken = |problem: &str| NodeError::Invalid { field: "body", problem: problem.to_owned() };
    match timeout(UPLOAD_IDLE_TIMEOUT, body.next()).await {
        Ok(Some(Ok(bytes))) => Ok(Some((bytes, body))),
        Ok(Some(Err(_))) => Err(broken("broke off")),
        Ok(None) => Ok(None),
        Err(_) => Err(broken("nothing came for 60 s")),
    }
}

fn in_pieces(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        (!bytes.is_empty()).then(|| bytes.split_to(bytes.len().min(PIECE_BYTES)))
    })
}
