//! The one place where a failure becomes Rigbox's status and body:
//! `{"error": {"code", "message", "details"?}}`.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::{Value, json};
use skerry_control::Error;
use skerry_model::{ErrorKind, Invalid, error::Limit};

use super::Rigbox;
use crate::{Dialect, Fault};

/// A refusal as Rigbox words it.
#[derive(Debug)]
pub(super) struct RigboxError {
    status: StatusCode,
    code: &'static str,
    message: String,
    details: Option<Value>,
}

impl RigboxError {
    /// The workspace's state does not permit the call. `status` is 400 or 409, as Rigbox documents
    /// for the call; `state` is the word the caller sees.
    pub(super) fn invalid_state(status: StatusCode, state: &str, message: String) -> Self {
        Self { status, code: "invalid_state", message, details: Some(json!({ "status": state })) }
    }

    /// A part of Rigbox's API that this server does not have.
    pub(super) fn not_supported(what: &str) -> Self {
        Self {
            status: StatusCode::NOT_IMPLEMENTED,
            code: "not_supported",
            message: format!("{what} is not supported by this server"),
            details: None,
        }
    }

    /// A snapshot did not come about; nothing is left of it.
    pub(super) fn snapshot_failed(why: &str) -> Self {
        let message = format!("the snapshot could not be taken: {why}");
        Self::plain(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    /// A snapshot was not complete in time.
    pub(super) fn snapshot_unconfirmed() -> Self {
        let message = "the snapshot is not complete yet; it will be in the list when it is";
        Self::plain(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    }

    fn plain(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), details: None }
    }

    fn internal() -> Self {
        Self::plain(StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error")
    }

    /// A value was not acceptable; `field` is a path in Rigbox's own names.
    pub(super) fn invalid(field: &str, problem: &str, allowed: &str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "invalid_request",
            message: format!("{field}: {problem}; allowed: {allowed}"),
            details: Some(json!({ "field": field, "problem": problem, "allowed": allowed })),
        }
    }
}

/// The core's name of a field in Rigbox's words.
fn field_name(core: &'static str) -> &'static str {
    match core {
        "memory_mib" => "ram_mb",
        "disk_mib" => "disk_size_mb",
        "env" => "env_vars",
        "slug" | "label" => "name",
        "command" => "exec_start",
        "script" => "content",
        "setup" => "setup_script",
        "template" => "template_id",
        "setup_scripts" => "setup_script_ids",
        "service_specs" | "workloads" => "service_spec_ids",
        "apps" => "catalog_ids",
        same => same,
    }
}

fn limit_name(limit: Limit) -> &'static str {
    match limit {
        Limit::WorkspaceCount => "workspace_count",
        Limit::PerWorkspace => "per_workspace",
        Limit::OwnedPool => "owned_pool",
        Limit::RunningPool => "running_pool",
        Limit::SnapshotCount => "snapshot_count",
        Limit::SnapshotSpace => "snapshot_space",
        Limit::VolumeCount => "volume_count",
        Limit::VolumeSpace => "volume_space",
    }
}

impl From<Invalid> for RigboxError {
    fn from(invalid: Invalid) -> Self {
        Self::invalid(field_name(invalid.field), &invalid.problem, &invalid.allowed)
    }
}

impl From<Error> for RigboxError {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&Error> for RigboxError {
    fn from(error: &Error) -> Self {
        let plain = |status, code| Self::plain(status, code, error.kind().to_string());
        match error.kind() {
            ErrorKind::NotFound { .. } => plain(StatusCode::NOT_FOUND, "not_found"),
            ErrorKind::Conflict(_) => plain(StatusCode::CONFLICT, "conflict"),
            ErrorKind::RefusedByState { state, .. } => {
                Self::invalid_state(StatusCode::CONFLICT, state, error.kind().to_string())
            }
            ErrorKind::Invalid(invalid) => invalid.clone().into(),
            ErrorKind::Unauthenticated => plain(StatusCode::UNAUTHORIZED, "unauthorized"),
            ErrorKind::Forbidden(_) => plain(StatusCode::FORBIDDEN, "forbidden"),
            ErrorKind::Quota { limit, what, requested, current, max } => {
                let resource = field_name(what);
                let message = match limit {
                    Limit::WorkspaceCount => {
                        format!("limit of {max} workspaces exceeded: {current} exist")
                    }
                    Limit::PerWorkspace => format!(
                        "limit exceeded: {resource} of one workspace is at most {max}, \
                         {requested} requested"
                    ),
                    Limit::OwnedPool => format!(
                        "limit exceeded: {resource} of all workspaces is at most {max}, \
                         {current} in use, {requested} requested"
                    ),
                    Limit::RunningPool => format!(
                        "limit exceeded: {resource} of running workspaces is at most {max}, \
                         {current} in use, {requested} requested"
                    ),
                    Limit::SnapshotCount => {
                        format!("limit of {max} snapshots exceeded: {current} exist")
                    }
                    Limit::SnapshotSpace => format!(
                        "limit exceeded: snapshots take at most {max} MiB, {current} in use"
                    ),
                    Limit::VolumeCount => {
                        format!("limit of {max} volumes exceeded: {current} exist")
                    }
                    Limit::VolumeSpace => {
                        format!("limit exceeded: volumes have at most {max} MiB, {current} in use")
                    }
                };
                Self {
                    status: StatusCode::PAYMENT_REQUIRED,
                    code: "limit_exceeded",
                    message,
                    details: Some(json!({
                        "limit": limit_name(*limit),
                        "resource": resource,
                        "requested": requested,
                        "current": current,
                        "max": max,
                    })),
                }
            }
            ErrorKind::NoCapacity(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "no_capacity"),
            ErrorKind::Unavailable(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            ErrorKind::Timeout(_) => plain(StatusCode::GATEWAY_TIMEOUT, "timeout"),
            ErrorKind::Internal => {
                tracing::error!(error = error as &dyn std::error::Error, "a Rigbox call failed");
                Self::internal()
            }
        }
    }
}

impl From<&Fault> for RigboxError {
    fn from(fault: &Fault) -> Self {
        match fault {
            Fault::NoSuchRoute => {
                Self::plain(StatusCode::NOT_FOUND, "not_found", "no such endpoint")
            }
            Fault::MethodNotAllowed => Self::plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "the endpoint does not have this method",
            ),
            Fault::BodyTooLarge => Self::plain(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "the request body is too large",
            ),
            Fault::BodyIncomplete => Self::plain(
                StatusCode::BAD_REQUEST,
                "invalid_request",
                "the request body did not arrive completely",
            ),
            Fault::BadJson(problem) => {
                let path = problem.path_text();
                let field = if path.is_empty() { "body" } else { &path };
                Self {
                    status: StatusCode::BAD_REQUEST,
                    code: "invalid_request",
                    message: format!("{field}: {}", problem.message()),
                    details: Some(json!({ "field": field, "problem": problem.message() })),
                }
            }
            Fault::BadUrl { parameter, problem } => Self {
                status: StatusCode::BAD_REQUEST,
                code: "invalid_request",
                message: problem.clone(),
                details: parameter.as_ref().map(|name| json!({ "field": name })),
            },
            Fault::HandlerPanicked => Self::internal(),
        }
    }
}

impl Dialect for Rigbox {
    const NAME: &'static str = "rigbox";
    const ROOTS: &'static [&'static str] = &["/api"];

    fn error(error: &Error) -> Response {
        RigboxError::from(error).into_response()
    }

    fn fault(fault: &Fault) -> Response {
        RigboxError::from(fault).into_response()
    }
}

impl IntoResponse for RigboxError {
    fn into_response(self) -> Response {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let Some(details) = self.details {
            error["details"] = details;
        }
        (self.status, Json(json!({ "error": error }))).into_response()
    }
}
