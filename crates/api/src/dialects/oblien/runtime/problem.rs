//! What can go wrong in a runtime, beside what can on the control plane.

use axum::response::Response;
use http::StatusCode;
use serde_json::json;
use skerry_control::internal_api::NodeError;

use crate::dialects::oblien::error_body::{Problem, Refusal, body};

/// Why a call of the runtime failed.
#[derive(Debug)]
pub(in crate::dialects::oblien) enum RuntimeProblem {
    /// No token, or none of a workspace.
    BadToken,
    /// The guest refused or failed.
    Inside(NodeError),
    /// A command did not begin.
    NotStarted(String),
    /// The workspace has as many as it may.
    TooMany { what: &'static str, max: usize },
    /// There is no such task, terminal or target.
    NoSuch(&'static str),
    /// It is not in the right state for that.
    Conflict(String),
    /// What the runtime does not touch.
    Protected,
    /// More than is answered at once.
    TooLarge(String),
    /// It took longer than it was given.
    TimedOut(String),
    /// Only for WebSockets.
    NotAWebSocket,
    /// This server or this guest does not have it.
    NotHere(&'static str),
}

impl From<RuntimeProblem> for Problem {
    fn from(problem: RuntimeProblem) -> Self {
        Self::Runtime(problem)
    }
}

impl From<NodeError> for Problem {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::NotRunning | NodeError::NoSuchVm => Self::NotRunning { state: "stopped" },
            error => Self::Runtime(RuntimeProblem::Inside(error)),
        }
    }
}

/// A parameter that is not acceptable.
pub(super) fn refusal(field: &str, problem: &str, allowed: &str) -> Problem {
    Problem::Refused(Refusal {
        code: "validation_error",
        field: field.to_owned(),
        problem: problem.to_owned(),
        allowed: allowed.to_owned(),
    })
}

impl RuntimeProblem {
    /// As an answer.
    pub(in crate::dialects::oblien) fn answer(&self) -> Response {
        match self {
            Self::BadToken => body(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "the token is not one of a workspace's runtime, or its time is over",
                None,
            ),
            Self::Inside(error) => inside(error),
            Self::NotStarted(why) => {
                body(StatusCode::INTERNAL_SERVER_ERROR, "start_failed", why, None)
            }
            Self::TooMany { what, max } => body(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                &format!("the workspace has {max} {what} already"),
                Some(json!({ "max": max })),
            ),
            Self::NoSuch(what) => {
                body(StatusCode::NOT_FOUND, "not_found", &format!("no such {what}"), None)
            }
            Self::Conflict(why) => body(StatusCode::CONFLICT, "conflict", why, None),
            Self::Protected => body(
                StatusCode::FORBIDDEN,
                "forbidden",
                "the path is one that the system needs: it is not deleted",
                None,
            ),
            Self::TooLarge(why) => {
                body(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", why, None)
            }
            Self::TimedOut(why) => body(StatusCode::GATEWAY_TIMEOUT, "timed_out", why, None),
            Self::NotAWebSocket => {
                body(StatusCode::BAD_REQUEST, "bad_request", "this path is for WebSockets", None)
            }
            Self::NotHere(why) => body(StatusCode::NOT_IMPLEMENTED, "not_implemented", why, None),
        }
    }
}

fn inside(error: &NodeError) -> Response {
    let text = error.to_string();
    match error {
        NodeError::NoSuchFile(_) => body(StatusCode::NOT_FOUND, "not_found", &text, None),
        NodeError::Guest { code, .. } => {
            let (status, code) = match *code {
                "is_directory" | "not_directory" | "no_such_user" => {
                    (StatusCode::BAD_REQUEST, "bad_request")
                }
                "permission_denied" => (StatusCode::FORBIDDEN, "forbidden"),
                "too_large" => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
                "no_space" => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
                _ => (StatusCode::CONFLICT, "conflict"),
            };
            body(status, code, &text, None)
        }
        NodeError::Invalid { field, .. } => body(
            StatusCode::BAD_REQUEST,
            "validation_error",
            &text,
            Some(json!({ "field": field })),
        ),
        NodeError::Unsupported(_) => {
            body(StatusCode::NOT_IMPLEMENTED, "not_implemented", &text, None)
        }
        NodeError::NoSuchVm
        | NodeError::Cancelled
        | NodeError::NoSuchSnapshot
        | NodeError::NoSuchVolume
        | NodeError::NoSuchCheckpoint
        | NodeError::VolumeInUse
        | NodeError::SavedStateUnusable(_)
        | NodeError::NotRunning
        | NodeError::NoSuchImage(_)
        | NodeError::Pull { .. }
        | NodeError::NotConnected { .. }
        | NodeError::NoCapacity(_)
        | NodeError::Timeout { .. }
        | NodeError::GuestUnreachable(_)
        | NodeError::Step { .. } => {
            body(StatusCode::SERVICE_UNAVAILABLE, "VM_UNAVAILABLE", &text, None)
        }
    }
}
