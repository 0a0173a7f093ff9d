//! The one place where an error becomes a status and a body.
//!
//! Body: `{"success":false,"error":code,"code":code,"message":…,"details":{…}}`; limits also show
//! `current` and `max` at the top. Codes and statuses are those of the reference page's table where
//! it has them. 401 means bad credentials and nothing else: Oblien's command line erases its saved
//! credentials when it sees one.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::{Value, json};
use skerry_control::Error;
use skerry_model::{ErrorKind, Failure, Invalid, error::Limit};

use super::{Oblien, runtime::RuntimeProblem};
use crate::{Dialect, Fault, extract::JsonProblem};

/// A value of a request that is refused before control is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) field: String,
    pub(super) problem: String,
    pub(super) allowed: String,
}

/// Everything that can go wrong in a handler.
#[derive(Debug)]
pub(super) enum Problem {
    /// A use case failed.
    Control(Error),
    /// Creating failed.
    Create(Error),
    /// A value is refused.
    Refused(Refusal),
    /// The workspace was recorded, but its VM did not come up.
    StartFailed { creating: bool, workspace_id: String, failure: Failure },
    /// The workspace was deleted while its creator waited for its machine.
    CreationCancelled,
    /// What this call waited for is not wanted any more.
    Overtaken { state: &'static str },
    /// The workspace has to run for that.
    NotRunning { state: &'static str },
    /// The node did not confirm the stop in time; it goes on.
    StopUnconfirmed,
    /// The snapshot did not come about.
    SnapshotFailed { failure: Failure },
    /// The snapshot was not there in time; it goes on.
    SnapshotUnconfirmed,
    /// An area of Oblien's API that is not here.
    NotServed,
    /// A call of the runtime failed.
    Runtime(RuntimeProblem),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Control(error)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        match self {
            Self::Control(error) => of_error(&error, "internal_error"),
            Self::Create(error) => of_error(&error, "CREATE_FAILED"),
            Self::Refused(Refusal { code, field, problem, allowed }) => {
                invalid(StatusCode::BAD_REQUEST, code, &field, &problem, &allowed)
            }
            Self::StartFailed { creating, workspace_id, failure } => {
                let details = json!({
                    "workspace_id": workspace_id,
                    "code": failure.code,
                    "retryable": failure.retryable,
                    "attempts": failure.attempts,
                });
                let (status, code) = if creating {
                    (StatusCode::INTERNAL_SERVER_ERROR, "CREATE_FAILED")
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, "VM_UNAVAILABLE")
                };
                body(status, code, &failure.message, Some(details))
            }
            // The code that Oblien's own client gives to the same.
            Self::CreationCancelled => body(
                StatusCode::CONFLICT,
                "WORKSPACE_CREATION_CANCELLED",
                "the workspace was deleted while it was being created",
                None,
            ),
            Self::Overtaken { state } => body(
                StatusCode::CONFLICT,
                "conflict",
                &format!(
                    "another call asked for something else meanwhile: the workspace is {state}"
                ),
                Some(json!({ "state": state })),
            ),
            Self::NotRunning { state } => body(
                StatusCode::CONFLICT,
                "vm_not_running",
                "the workspace must be running",
                Some(json!({ "state": state })),
            ),
            Self::StopUnconfirmed => body(
                StatusCode::SERVICE_UNAVAILABLE,
                "VM_UNAVAILABLE",
                "the machine has not confirmed the stop yet; it goes on in the background",
                None,
            ),
            Self::SnapshotFailed { failure } => body(
                StatusCode::SERVICE_UNAVAILABLE,
                "snapshot_failed",
                &failure.message,
                Some(json!({ "code": failure.code, "retryable": failure.retryable })),
            ),
            Self::SnapshotUnconfirmed => body(
                StatusCode::SERVICE_UNAVAILABLE,
                "VM_UNAVAILABLE",
                "the snapshot is not complete yet; it goes on in the background",
                None,
            ),
            Self::NotServed => body(
                StatusCode::NOT_IMPLEMENTED,
                "not_implemented",
                "this part of the API is not available on this server",
                None,
            ),
            Self::Runtime(problem) => problem.answer(),
        }
    }
}

impl Dialect for Oblien {
    const NAME: &'static str = "oblien";
    const ROOTS: &'static [&'static str] = &[
        "/workspace",
        "/namespaces",
        "/tokens",
        "/webhooks",
        "/credits",
        "/pages",
        "/cdn",
        "/domain",
        "/edge",
        "/billing",
        "/analytics",
        "/notifications",
        "/runtime",
        "/runtimes",
        "/files",
        "/exec",
        "/terminals",
        "/watchers",
        "/ws",
        "/proxy",
        "/desktop",
    ];

    fn error(error: &Error) -> Response {
        of_error(error, "internal_error")
    }

    fn fault(fault: &Fault) -> Response {
        match fault {
            Fault::NoSuchRoute => {
                body(StatusCode::NOT_FOUND, "not_found", "there is no such path", None)
            }
            Fault::MethodNotAllowed => body(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this path does not have this method",
                None,
            ),
            Fault::BodyTooLarge => body(
                StatusCode::PAYLOAD_TOO_LARGE,
                "payload_too_large",
                "the request body is too large",
                None,
            ),
            Fault::BodyIncomplete => body(
                StatusCode::BAD_REQUEST,
                "bad_request",
                "the request body did not arrive in full",
                None,
            ),
            Fault::BadJson(problem) => bad_json(problem),
            Fault::BadUrl { parameter, problem } => body(
                StatusCode::BAD_REQUEST,
                "validation_error",
                problem,
                parameter.as_ref().map(|field| json!({ "field": field })),
            ),
            Fault::HandlerPanicked => {
                body(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "internal error", None)
            }
        }
    }
}

fn bad_json(problem: &JsonProblem) -> Response {
    match problem {
        JsonProblem::Syntax { message, .. } => body(
            StatusCode::BAD_REQUEST,
            "bad_request",
            &format!("the body is not JSON: {message}"),
            None,
        ),
        JsonProblem::Shape { message, .. } => {
            let field = problem.path_text();
            let code = match field.split(['.', '[']).next().unwrap_or("") {
                "image" => "INVALID_IMAGE",
                "namespace" => "INVALID_NAMESPACE",
                "config" => "INVALID_CONFIG",
                _ => "validation_error",
            };
            let shown = if field.is_empty() { "the body" } else { &field };
            // The parser's own words name what would have been right.
            match message.split_once(", expected ") {
                Some((problem, allowed)) => invalid(
                    StatusCode::BAD_REQUEST,
                    code,
                    shown,
                    &format!("is of an {problem}"),
                    allowed,
                ),
                None => body(
                    StatusCode::BAD_REQUEST,
                    code,
                    &format!("{shown}: {message}"),
                    Some(json!({ "field": field, "problem": message })),
                ),
            }
        }
    }
}

fn of_error(error: &Error, internal_code: &'static str) -> Response {
    let kind = error.kind();
    match kind {
        ErrorKind::NotFound { what } => {
            body(StatusCode::NOT_FOUND, "not_found", &format!("{what} not found"), None)
        }
        ErrorKind::Conflict(text) => body(StatusCode::CONFLICT, "conflict", text, None),
        ErrorKind::RefusedByState { state, .. } => body(
            StatusCode::CONFLICT,
            "conflict",
            &kind.to_string(),
            Some(json!({ "state": state })),
        ),
        ErrorKind::Invalid(invalid) => of_invalid(invalid),
        ErrorKind::Unauthenticated => {
            body(StatusCode::UNAUTHORIZED, "MISSING_USER_ID", "authentication failed", None)
        }
        ErrorKind::Forbidden(text) => body(StatusCode::FORBIDDEN, "forbidden", text, None),
        ErrorKind::Quota { limit, what, requested, current, max } => {
            let (status, code) = match limit {
                Limit::WorkspaceCount => (StatusCode::PAYMENT_REQUIRED, "SANDBOX_LIMIT_REACHED"),
                Limit::PerWorkspace => (StatusCode::FORBIDDEN, "RESOURCE_NOT_ALLOWED"),
                Limit::OwnedPool => (StatusCode::PAYMENT_REQUIRED, "POOL_LIMIT_REACHED"),
                Limit::RunningPool => (StatusCode::PAYMENT_REQUIRED, "RUNNING_POOL_REACHED"),
                Limit::VolumeCount | Limit::VolumeSpace => {
                    (StatusCode::PAYMENT_REQUIRED, "POOL_LIMIT_REACHED")
                }
                Limit::SnapshotCount | Limit::SnapshotSpace => {
                    (StatusCode::PAYMENT_REQUIRED, "SNAPSHOT_LIMIT_REACHED")
                }
            };
            let resource = wire_resource(what);
            let message = match limit {
                Limit::PerWorkspace => {
                    format!("{resource}: {requested} requested, the plan allows at most {max}")
                }
                Limit::WorkspaceCount
                | Limit::OwnedPool
                | Limit::RunningPool
                | Limit::SnapshotCount
                | Limit::SnapshotSpace
                | Limit::VolumeCount
                | Limit::VolumeSpace => format!(
                    "{resource}: {requested} requested, {current} in use, {max} allowed by the plan"
                ),
            };
            let mut object = json_body(code, &message);
            object["current"] = json!(current);
            object["max"] = json!(max);
            object["details"] = json!({
                "resource": resource,
                "requested": requested,
                "current": current,
                "max": max,
            });
            // Pools fill up by other workspaces; only this limit is about the request itself.
            if let (Limit::PerWorkspace, Some(field)) = (limit, wire_size(what)) {
                object["details"]["field"] = json!(field);
            }
            (status, Json(object)).into_response()
        }
        ErrorKind::NoCapacity(_) | ErrorKind::Unavailable(_) | ErrorKind::Timeout(_) => {
            body(StatusCode::SERVICE_UNAVAILABLE, "VM_UNAVAILABLE", &kind.to_string(), None)
        }
        ErrorKind::Internal => {
            tracing::error!(error = %skerry_error_chain(error), "a use case failed");
            body(StatusCode::INTERNAL_SERVER_ERROR, internal_code, "internal error", None)
        }
    }
}

/// The cause goes into the log, never into an answer.
fn skerry_error_chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn of_invalid(invalid: &Invalid) -> Response {
    let (code, field) = match invalid.field {
        "name" => ("validation_error", "name"),
        "slug" => ("validation_error", "slug"),
        "namespace" => ("INVALID_NAMESPACE", "namespace"),
        "image" => ("invalid_image", "image"),
        "env" => ("INVALID_CONFIG", "config.env"),
        "expiry" => ("INVALID_CONFIG", "config.ttl"),
        "metadata" => ("validation_error", "type"),
        "workload_name" => ("validation_error", "name"),
        "command" => ("validation_error", "cmd"),
        "log_limit_kib" => ("validation_error", "max_log_size_mb"),
        "restart" => ("validation_error", "restart_delay"),
        other => match wire_size(other) {
            Some(field) => ("INVALID_CONFIG", field),
            None => ("validation_error", other),
        },
    };
    invalid_of(code, field, invalid)
}

fn invalid_of(code: &'static str, field: &str, found: &Invalid) -> Response {
    invalid(StatusCode::BAD_REQUEST, code, field, &found.problem, &found.allowed)
}

/// The field of a request that a size is given in.
fn wire_size(core: &str) -> Option<&'static str> {
    match core {
        "vcpu_count" => Some("config.cpus"),
        "memory_mib" => Some("config.memory_mb"),
        "disk_mib" => Some("config.writable_size_mb"),
        _ => None,
    }
}

fn wire_resource(core: &'static str) -> &'static str {
    match core {
        "vcpu_count" => "cpus",
        "memory_mib" => "memory_mb",
        "disk_mib" => "disk_mb",
        other => other,
    }
}

fn invalid(
    status: StatusCode,
    code: &'static str,
    field: &str,
    problem: &str,
    allowed: &str,
) -> Response {
    let message = format!("{field} {problem}; allowed: {allowed}");
    let details = json!({ "field": field, "problem": problem, "allowed": allowed });
    body(status, code, &message, Some(details))
}

fn json_body(code: &str, message: &str) -> Value {
    json!({ "success": false, "error": code, "code": code, "message": message })
}

pub(super) fn body(
    status: StatusCode,
    code: &str,
    message: &str,
    details: Option<Value>,
) -> Response {
    let mut object = json_body(code, message);
    if let Some(details) = details {
        object["details"] = details;
    }
    (status, Json(object)).into_response()
}
