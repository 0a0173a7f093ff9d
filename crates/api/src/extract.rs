//! Reading requests so that every refusal has the dialect's own shape.

use std::{fmt, marker::PhantomData, time::Duration};

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    response::Response,
};
use bytes::Bytes;
use http::{StatusCode, request::Parts};
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use crate::{ApiState, Dialect, Fault};

/// The largest JSON body, in bytes. Routes that carry files set a limit of their own.
pub const MAX_JSON_BYTES: usize = 1024 * 1024;

/// How long a client may take to send a JSON body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What is said about a value, at most.
const MAX_PROBLEM_CHARS: usize = 300;

/// One step of the path to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathStep {
    /// A field of an object.
    Field(String),
    /// An element of an array.
    Index(usize),
}

/// Why a body is not the JSON it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonProblem {
    /// It is not JSON at all.
    Syntax {
        /// What the parser says, with line and column.
        message: String,
        /// How many bytes were read, for dialects that say where.
        column: usize,
    },
    /// It is JSON of the wrong shape.
    Shape {
        /// The field, from the outermost in; empty for the whole body.
        path: Vec<PathStep>,
        /// What is wrong with it.
        message: String,
    },
}

impl JsonProblem {
    /// The path as text, `config.env[0].key`; empty for the whole body.
    #[must_use]
    pub fn path_text(&self) -> String {
        let Self::Shape { path, .. } = self else { return String::new() };
        let mut text = String::new();
        for step in path {
            match step {
                PathStep::Field(name) => {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.push_str(name);
                }
                PathStep::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        text
    }

    /// What is wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::Syntax { message, .. } | Self::Shape { message, .. } => message,
        }
    }
}

impl fmt::Display for JsonProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path_text();
        if path.is_empty() {
            f.write_str(self.message())
        } else {
            write!(f, "{path}: {}", self.message())
        }
    }
}

/// Reads JSON and says which field is wrong. An empty text reads as `null`, because clients send
/// `Content-Type: application/json` with no body where everything is optional.
///
/// # Errors
/// [`JsonProblem`].
pub fn parse_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonProblem> {
    let text = if text.iter().all(u8::is_ascii_whitespace) { b"null" } else { text };
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().iter().filter_map(path_step).collect();
        problem(error.inner(), path)
    })?;
    deserializer.end().map_err(|error| problem(&error, Vec::new()))?;
    Ok(value)
}

fn path_step(segment: &Segment) -> Option<PathStep> {
    match segment {
        Segment::Seq { index } => Some(PathStep::Index(*index)),
        Segment::Map { key } => Some(PathStep::Field(key.clone())),
        Segment::Enum { variant } => Some(PathStep::Field(variant.clone())),
        Segment::Unknown => None,
    }
}

fn problem(error: &serde_json::Error, path: Vec<PathStep>) -> JsonProblem {
    let text = error.to_string();
    if error.is_data() {
        // The position is noise beside the path.
        let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
        // It repeats the value, which may be as long as the body.
        let message = message.chars().take(MAX_PROBLEM_CHARS).collect();
        JsonProblem::Shape { path, message }
    } else {
        JsonProblem::Syntax { message: text, column: error.column() }
    }
}

/// Extractor: a JSON body of at most [`MAX_JSON_BYTES`] as `T`. The content type is not looked at.
/// With `Option<T>`, an absent body is `None`.
#[derive(Debug)]
pub struct JsonBody<T, D> {
    /// The body.
    pub value: T,
    dialect: PhantomData<D>,
}

impl<T: DeserializeOwned, D: Dialect> FromRequest<ApiState> for JsonBody<T, D> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Response> {
        let text = read_body(request, state).await.map_err(|fault| D::fault(&fault))?;
        match parse_json(&text) {
            Ok(value) => Ok(Self { value, dialect: PhantomData }),
            Err(problem) => Err(D::fault(&Fault::BadJson(problem))),
        }
    }
}

/// Reads a whole body within the route's size limit and a time limit.
///
/// # Errors
/// [`Fault::BodyTooLarge`] or [`Fault::BodyIncomplete`].
pub async fn read_body(request: Request, state: &ApiState) -> Result<Bytes, Fault> {
    match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(Fault::BodyTooLarge)
        }
        Ok(Err(_)) | Err(_) => Err(Fault::BodyIncomplete),
    }
}

/// Extractor: the query string as `T`.
#[derive(Debug)]
pub struct QueryOf<T, D> {
    /// The parameters.
    pub value: T,
    dialect: PhantomData<D>,
}

impl<T: DeserializeOwned, D: Dialect> FromRequestParts<ApiState> for QueryOf<T, D> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, Response> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(value)) => Ok(Self { value, dialect: PhantomData }),
            Err(rejection) => {
                let text = rejection.body_text();
                let problem =
                    text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                let parameter = problem
                    .split_once(": ")
                    .map(|(name, _)| name.to_owned())
                    .filter(|name| !name.contains(' '));
                let problem = problem.to_owned();
                Err(D::fault(&Fault::BadUrl { parameter, problem }))
            }
        }
    }
}

/// Extractor: the path's parameters as `T`, percent-decoded.
#[derive(Debug)]
pub struct PathOf<T, D> {
    /// The parameters.
    pub value: T,
    dialect: PhantomData<D>,
}

impl<T: DeserializeOwned + Send, D: Dialect> FromRequestParts<ApiState> for PathOf<T, D> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Response> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self { value, dialect: PhantomData }),
            Err(rejection) => {
                Err(D::fault(&Fault::BadUrl { parameter: None, problem: rejection.body_text() }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Body {
        config: Config,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Config {
        ports: Vec<u16>,
    }

    #[test]
    fn a_wrong_value_is_reported_with_the_path_to_it() {
        let problem = parse_json::<Body>(br#"{"config":{"ports":[1,"x"]}}"#).expect_err("wrong");
        assert_eq!(problem.path_text(), "config.ports[1]");
        assert_eq!(problem.message(), "invalid type: string \"x\", expected u16");
    }

    #[test]
    fn a_long_value_is_not_repeated_in_full() {
        let text = format!(r#"{{"config":"{}"}}"#, "x".repeat(100_000));
        let problem = parse_json::<Body>(text.as_bytes()).expect_err("wrong");
        assert_eq!(problem.message().chars().count(), MAX_PROBLEM_CHARS);
    }

    #[test]
    fn text_that_is_not_json_is_a_syntax_problem() {
        for text in [&b"{"[..], b"{}x", b"nope", b"\xff"] {
            let problem = parse_json::<serde_json::Value>(text).expect_err("wrong");
            assert!(matches!(problem, JsonProblem::Syntax { .. }), "{problem:?}");
        }
    }

    #[test]
    fn an_empty_body_is_none_where_a_body_is_optional() {
        assert_eq!(parse_json::<Option<Body>>(b" \n"), Ok(None));
        assert!(parse_json::<Body>(b"").is_err());
    }
}
