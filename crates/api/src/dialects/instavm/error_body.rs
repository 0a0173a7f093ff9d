//! The one place where an error becomes a status and a body: `{"detail": text}`, and for values that
//! do not fit 422 with a list of `{loc, msg, type}`, as FastAPI writes them.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::{Value, json};
use skerry_control::Error;
use skerry_model::{ErrorKind, Failure, Invalid, error::Limit};

use super::{Instavm, validation::FieldError};
use crate::{
    Dialect, Fault,
    extract::{JsonProblem, PathStep},
};

/// Everything that can go wrong in a handler.
#[derive(Debug)]
pub(super) enum Problem {
    /// A use case failed.
    Control(Error),
    /// Fields do not fit.
    Unprocessable(Vec<FieldError>),
    /// A field asks for something that is not here.
    Unserved { field: &'static str, accepted: &'static str },
    /// The machine of a VM did not come up.
    VmFailed(Failure),
    /// A snapshot did not come about.
    SnapshotFailed(Failure),
    /// No such snapshot, or another account's.
    NoSuchSnapshot,
    /// The VM is parked, and use does not wake it.
    VmSuspended,
    /// The lifetime is longer than allowed. The wording is what InstaVM's deploy tool looks for.
    LifetimeTooLong { max_seconds: u32 },
    /// The VM was deleted while its creator waited for it.
    VmDeleted,
    /// The session has a live VM already.
    SessionHasVm,
    /// The text cannot be a session id.
    NotASessionId,
    /// No such session, or another account's.
    NoSuchSession,
    /// The VM is not up within the caller's time.
    StillStarting,
    /// The VM's image has no Python.
    NoPython,
    /// The server stops.
    ShuttingDown,
    /// No such terminal.
    NoSuchTerminal,
    /// A terminal of this id runs already.
    TerminalExists,
    /// So many terminals of the VM run already.
    TooManyTerminals { max: usize },
    /// Something else than a WebSocket's handshake.
    NotAWebSocket,
    /// No such SSH key, or another account's.
    NoSuchSshKey,
    /// No such domain, or another account's.
    NoSuchDomain,
    /// No such API key, or another account's.
    NoSuchApiKey,
    /// So many asynchronous executions of the account run already.
    TooManyExecutions { max: usize },
    /// No such execution, or another account's, or it ended long ago.
    NoSuchExecution,
    /// A command said more than can be answered.
    OutputTooLarge { limit_bytes: usize },
    /// An area of InstaVM's API that is not here.
    NotServed,
    /// Something around the handler.
    Fault(Fault),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Control(error)
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Problem {
    /// What an answer would say, for those who are not answered but told later.
    pub(super) async fn told(self) -> String {
        let body = axum::body::to_bytes(self.into_response().into_body(), 64 * 1024).await;
        let body = body.ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let detail = body.and_then(|mut body| body.get_mut("detail").map(Value::take));
        match detail {
            Some(Value::String(text)) => text,
            Some(other) => other.to_string(),
            None => "Internal Server Error".to_owned(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        match self {
            Self::Control(error) => Instavm::error(&error),
            Self::Unprocessable(errors) => unprocessable(&errors),
            Self::Unserved { field, accepted } => detail(
                StatusCode::BAD_REQUEST,
                &format!("{field} is not available on this server yet; accepted: {accepted}"),
            ),
            Self::VmFailed(failure) => detail(
                StatusCode::SERVICE_UNAVAILABLE,
                &format!("VM failed to start ({}): {}", failure.code, failure.message),
            ),
            Self::SnapshotFailed(failure) => detail(
                StatusCode::SERVICE_UNAVAILABLE,
                &format!("snapshot failed ({}): {}", failure.code, failure.message),
            ),
            Self::NoSuchSnapshot => detail(StatusCode::NOT_FOUND, "Snapshot not found"),
            Self::VmSuspended => {
                detail(StatusCode::CONFLICT, "VM is suspended; resume it, or turn on auto_resume")
            }
            Self::LifetimeTooLong { max_seconds } => {
                detail(StatusCode::FORBIDDEN, &format!("VM lifetime cannot exceed {max_seconds}s"))
            }
            Self::VmDeleted => {
                detail(StatusCode::CONFLICT, "VM was deleted while it was being created")
            }
            Self::SessionHasVm => detail(StatusCode::CONFLICT, "Session already has a live VM"),
            Self::NotASessionId => detail(StatusCode::BAD_REQUEST, "Invalid session id"),
            Self::NoSuchSession => detail(StatusCode::NOT_FOUND, "Session not found"),
            Self::StillStarting => detail(
                StatusCode::SERVICE_UNAVAILABLE,
                "The VM is still starting; call again with a longer timeout",
            ),
            Self::NoPython => detail(
                StatusCode::NOT_IMPLEMENTED,
                "the VM's image has no python3; send language \"bash\"",
            ),
            Self::ShuttingDown => {
                detail(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down")
            }
            Self::NoSuchTerminal => detail(StatusCode::NOT_FOUND, "PTY session not found"),
            Self::TerminalExists => {
                detail(StatusCode::CONFLICT, "a PTY session of this id is alive already")
            }
            Self::TooManyTerminals { max } => detail(
                StatusCode::TOO_MANY_REQUESTS,
                &format!("{max} PTY sessions of the VM are alive already"),
            ),
            Self::NotAWebSocket => {
                detail(StatusCode::BAD_REQUEST, "a WebSocket handshake was expected")
            }
            Self::NoSuchSshKey => detail(StatusCode::NOT_FOUND, "SSH key not found"),
            Self::NoSuchDomain => detail(StatusCode::NOT_FOUND, "Custom domain not found"),
            Self::NoSuchApiKey => detail(StatusCode::NOT_FOUND, "API key not found"),
            Self::TooManyExecutions { max } => detail(
                StatusCode::TOO_MANY_REQUESTS,
                &format!("{max} asynchronous executions of the account are running already"),
            ),
            Self::NoSuchExecution => detail(StatusCode::NOT_FOUND, "Execution not found"),
            Self::OutputTooLarge { limit_bytes } => detail(
                StatusCode::PAYLOAD_TOO_LARGE,
                &format!("the command wrote more than {limit_bytes} bytes; it was ended"),
            ),
            Self::NotServed => detail(
                StatusCode::NOT_IMPLEMENTED,
                "this part of the API is not available on this server",
            ),
            Self::Fault(fault) => Instavm::fault(&fault),
        }
    }
}

impl Dialect for Instavm {
    const NAME: &'static str = "instavm";
    const ROOTS: &'static [&'static str] =
        &["/v1", "/execute", "/execute_async", "/kill", "/upload", "/download"];

    fn error(error: &Error) -> Response {
        let kind = error.kind();
        match kind {
            ErrorKind::NotFound { what: "workspace" } => {
                detail(StatusCode::NOT_FOUND, "VM not found")
            }
            ErrorKind::NotFound { what: "snapshot" } => {
                detail(StatusCode::NOT_FOUND, "Snapshot not found")
            }
            ErrorKind::NotFound { what } => {
                detail(StatusCode::NOT_FOUND, &format!("{what} not found"))
            }
            ErrorKind::Conflict(text) => detail(StatusCode::CONFLICT, text),
            ErrorKind::RefusedByState { state, reason } => {
                detail(StatusCode::CONFLICT, &format!("VM is {state}: {reason}"))
            }
            ErrorKind::Invalid(invalid) => unprocessable(&[of_invalid(invalid)]),
            ErrorKind::Unauthenticated => detail(StatusCode::UNAUTHORIZED, "Invalid API key"),
            ErrorKind::Forbidden(text) => detail(StatusCode::FORBIDDEN, text),
            ErrorKind::Quota { limit, what, requested, current, max } => {
                let resource = wire_field(what);
                let text = match limit {
                    // InstaVM's deploy tool repeats without sizes when it reads "configurable cpu/memory".
                    Limit::PerWorkspace => format!(
                        "your plan limits configurable cpu/memory: {resource} {requested} requested, {max} allowed"
                    ),
                    Limit::WorkspaceCount => {
                        format!("VM limit reached: {current} of {max} VMs exist")
                    }
                    Limit::OwnedPool => format!(
                        "resource pool is full: {resource} {requested} requested, {current} of {max} owned"
                    ),
                    Limit::RunningPool => format!(
                        "running pool is full: {resource} {requested} requested, {current} of {max} running"
                    ),
                    Limit::SnapshotCount => {
                        format!("snapshot limit reached: {current} of {max} snapshots exist")
                    }
                    Limit::SnapshotSpace => {
                        format!("snapshot space is full: {current} of {max} MiB in use")
                    }
                    Limit::VolumeCount => {
                        format!("volume limit reached: {current} of {max} volumes exist")
                    }
                    Limit::VolumeSpace => format!(
                        "volume space is full: {requested} MiB requested, {current} of {max} in use"
                    ),
                };
                detail(StatusCode::FORBIDDEN, &text)
            }
            ErrorKind::NoCapacity(_) | ErrorKind::Unavailable(_) => {
                detail(StatusCode::SERVICE_UNAVAILABLE, &kind.to_string())
            }
            ErrorKind::Timeout(_) => detail(StatusCode::GATEWAY_TIMEOUT, &kind.to_string()),
            ErrorKind::Internal => {
                log_cause(error);
                detail(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
            }
        }
    }

    fn fault(fault: &Fault) -> Response {
        match fault {
            Fault::NoSuchRoute => detail(StatusCode::NOT_FOUND, "Not Found"),
            Fault::MethodNotAllowed => detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
            Fault::BodyTooLarge => {
                detail(StatusCode::PAYLOAD_TOO_LARGE, "Request body is too large")
            }
            Fault::BodyIncomplete => {
                detail(StatusCode::BAD_REQUEST, "There was an error parsing the body")
            }
            Fault::BadJson(JsonProblem::Syntax { column, .. }) => unprocessable(&[FieldError {
                loc: vec![PathStep::Field("body".to_owned()), PathStep::Index(*column)],
                msg: "JSON decode error".to_owned(),
                kind: "json_invalid",
            }]),
            Fault::BadJson(JsonProblem::Shape { path, message }) => {
                let mut loc = vec![PathStep::Field("body".to_owned())];
                loc.extend(path.iter().cloned());
                unprocessable(&[FieldError { loc, msg: message.clone(), kind: "value_error" }])
            }
            Fault::BadUrl { parameter, problem } => {
                let mut loc = vec![PathStep::Field("query".to_owned())];
                loc.extend(parameter.clone().map(PathStep::Field));
                unprocessable(&[FieldError { loc, msg: problem.clone(), kind: "value_error" }])
            }
            Fault::HandlerPanicked => {
                detail(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
            }
        }
    }
}

/// The cause goes into the log, never into an answer.
fn log_cause(error: &Error) {
    let mut causes = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        causes.push(inner.to_string());
        cause = inner.source();
    }
    tracing::error!(cause = causes.join(": "), "a use case failed");
}

fn of_invalid(invalid: &Invalid) -> FieldError {
    FieldError {
        loc: vec![
            PathStep::Field("body".to_owned()),
            PathStep::Field(wire_field(invalid.field).to_owned()),
        ],
        msg: format!("{}; allowed: {}", invalid.problem, invalid.allowed),
        kind: "value_error",
    }
}

fn wire_field(core: &'static str) -> &'static str {
    match core {
        "memory_mib" => "memory_mb",
        "disk_mib" => "disk_mb",
        "image" => "image_variant",
        "expiry" => "vm_lifetime_seconds",
        other => other,
    }
}

fn unprocessable(errors: &[FieldError]) -> Response {
    let list: Vec<Value> = errors
        .iter()
        .map(|error| {
            let loc: Vec<Value> = error
                .loc
                .iter()
                .map(|step| match step {
                    PathStep::Field(name) => json!(name),
                    PathStep::Index(index) => json!(index),
                })
                .collect();
            json!({ "loc": loc, "msg": error.msg, "type": error.kind })
        })
        .collect();
    (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "detail": list }))).into_response()
}

fn detail(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "detail": text }))).into_response()
}
