//! Requests to the server and what comes back.

use std::time::Duration;

use futures::{Stream, StreamExt};
use http::{Method, StatusCode};
use reqwest::{Body, Response, Url};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{error::Error, login::Connection};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take beyond the time the request asks the server to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest error body that is read.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// A server and a key.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    connection: Connection,
}

/// The query of a request.
pub(crate) type Query<'a> = &'a [(&'a str, String)];

impl Client {
    pub(crate) fn new(connection: Connection) -> Result<Self, Error> {
        let mut http = reqwest::Client::builder()
            // The exec stream is an upgrade, which is HTTP/1.1's.
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            // A key sent to one place must not follow a redirect to another.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("skerry/", env!("CARGO_PKG_VERSION")));
        if is_this_machine(&connection.url) {
            // A proxy for the outside world cannot reach this machine's own address.
            http = http.no_proxy();
        }
        let http = http
            .build()
            .map_err(|error| Error::local("the HTTP client", std::io::Error::other(error)))?;
        Ok(Self { http, connection })
    }

    pub(crate) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The address of a resource, every part of the path encoded.
    fn url(&self, path: &[&str], query: Query<'_>) -> Result<Url, Error> {
        let mut url = self.connection.url.clone();
        if path.iter().any(|part| matches!(*part, "" | "." | "..")) {
            return Err(Error::Usage("a name must not be empty, . or ..".to_owned()));
        }
        url.path_segments_mut()
            .map_err(|()| Error::Usage("the server's address cannot have a path".to_owned()))?
            .pop_if_empty()
            .extend(["skerry", "v1"])
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    pub(crate) fn request(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
    ) -> Result<reqwest::RequestBuilder, Error> {
        let mut request = self.http.request(method, self.url(path, query)?);
        if let Some(key) = &self.connection.key {
            request = request.bearer_auth(key.expose());
        }
        Ok(request)
    }

    /// Sends a request; an answer that is an error becomes one.
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|error| self.transport_error(&error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        Err(api_error(response).await)
    }

    /// Sends a request without a body or with a JSON body and reads the JSON answer; `null` when
    /// there is none. `wait_seconds` is how long the request asks the server to wait.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
        body: Option<&Value>,
        wait_seconds: u32,
    ) -> Result<Value, Error> {
        let mut request = self
            .request(method, path, query)?
            .timeout(ANSWER_TIMEOUT + Duration::from_secs(wait_seconds.into()));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = self.send(request).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        response.json().await.map_err(|error| {
            if error.is_decode() {
                Error::BadAnswer(innermost(&error))
            } else {
                Error::BrokenOff(innermost(&error))
            }
        })
    }

    pub(crate) async fn get(&self, path: &[&str], query: Query<'_>) -> Result<Value, Error> {
        self.call(Method::GET, path, query, None, 0).await
    }

    /// Sends a request whose body is a stream, in whatever time that takes.
    pub(crate) async fn upload(
        &self,
        path: &[&str],
        query: Query<'_>,
        content_type: &'static str,
        body: Body,
    ) -> Result<Value, Error> {
        let request = self
            .request(Method::PUT, path, query)?
            .header(http::header::CONTENT_TYPE, content_type)
            .body(body);
        let response = self.send(request).await?;
        response.json().await.map_err(|error| Error::BrokenOff(innermost(&error)))
    }

    /// Asks for a body that is read as it comes, in whatever time that takes.
    pub(crate) async fn download(
        &self,
        path: &[&str],
        query: Query<'_>,
    ) -> Result<impl Stream<Item = Result<bytes::Bytes, Error>> + Unpin + use<>, Error> {
        let response = self.send(self.request(Method::GET, path, query)?).await?;
        Ok(response
            .bytes_stream()
            .map(|item| item.map_err(|error| Error::BrokenOff(innermost(&error)))))
    }

    fn transport_error(&self, error: &reqwest::Error) -> Error {
        let cause =
            if error.is_timeout() { "no answer in time".to_owned() } else { innermost(error) };
        if error.is_connect() || error.is_timeout() {
            Error::Unreachable { url: self.connection.url.to_string(), cause }
        } else {
            Error::BrokenOff(cause)
        }
    }
}

fn is_this_machine(url: &Url) -> bool {
    // The text of the host is enough: names other than localhost are somebody else's to resolve.
    match url.host_str() {
        Some(host) => {
            host == "localhost"
                || host.ends_with(".localhost")
                || host
                    .trim_matches(['[', ']'])
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

/// The error an answer with an error status stands for.
pub(crate) async fn api_error(mut response: Response) -> Error {
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        let room = MAX_ERROR_BYTES - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if body.len() == MAX_ERROR_BYTES {
            break;
        }
    }
    let detail = serde_json::from_slice::<Value>(&body)
        .ok()
        .and_then(|body| body.get("error").filter(|detail| detail.is_object()).cloned());
    match detail {
        Some(detail) => error_from_detail(detail),
        // A proxy's answer, or another program's.
        None => error_from_detail(json!({
            "code": "http_error",
            "message": format!("the server answered {status}, which is no answer of this API"),
        })),
    }
}

/// The error that an error object of the API stands for.
pub(crate) fn error_from_detail(detail: Value) -> Error {
    let text = |name| detail.get(name).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    Error::Api { code: text("code"), message: text("message"), detail }
}

/// Reads an answer as the type it should have.
pub(crate) fn read<T: DeserializeOwned>(answer: &Value) -> Result<T, Error> {
    T::deserialize(answer).map_err(|error| Error::BadAnswer(error.to_string()))
}

/// The last of the causes: the one that says what happened and not who noticed.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
