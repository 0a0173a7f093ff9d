//! How the ACME client reaches its server: over HTTPS alone, within bounds.

use std::{future::Future, path::Path, pin::Pin, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Limited};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

/// Of one request.
const WITHIN: Duration = Duration::from_secs(30);
/// Of one answer; a chain is a few KiB.
const ANSWER_MAX_BYTES: usize = 1024 * 1024;

pub(super) struct Requests(reqwest::Client);

impl Requests {
    /// `root` is a PEM file with one more authority to be trusted for the server itself, beside the
    /// usual ones; an issuer that needs it is a test's or the house's own, and no proxy stands before it.
    pub(super) fn new(
        root: Option<&Path>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut builder = reqwest::Client::builder()
            .use_rustls_tls()
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(WITHIN);
        if let Some(root) = root {
            let pem = std::fs::read(root)?;
            builder = builder.no_proxy();
            for root in reqwest::Certificate::from_pem_bundle(&pem)? {
                builder = builder.add_root_certificate(root);
            }
        }
        Ok(Self(builder.build()?))
    }
}

/// A client for one account's use.
#[derive(Clone)]
pub(super) struct Shared(pub(super) std::sync::Arc<Requests>);

impl HttpClient for Shared {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap_or_else(|never| match never {}).to_bytes();
            let request = reqwest::Request::try_from(Request::from_parts(head, body));
            let answered = client.execute(request.map_err(other)?).await.map_err(other)?;
            let (head, body) = http::Response::<reqwest::Body>::from(answered).into_parts();
            let body = Limited::new(body, ANSWER_MAX_BYTES);
            Ok(BytesResponse::from(http::Response::from_parts(head, body)))
        })
    }
}

fn other(error: reqwest::Error) -> Error {
    // With its causes: "error sending request" says nothing.
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Error::Other(text.into())
}
