//! The one place where a failure becomes Aether's status and body: `{"error": string}`, and for wrong
//! values `{"error", "errors": [{"field", "message"}]}`.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::json;
use skerry_control::Error;
use skerry_model::{ErrorKind, error::Limit};

use super::{Aether, hardware::FieldError};
use crate::{Dialect, Fault};

/// A refusal as Aether words it.
#[derive(Debug)]
pub(super) struct AetherError {
    status: StatusCode,
    message: String,
    errors: Vec<FieldError>,
}

impl AetherError {
    fn plain(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), errors: Vec::new() }
    }

    /// Wrong values.
    pub(super) fn validation(errors: Vec<FieldError>) -> Self {
        let all: Vec<_> = errors.iter().map(|e| format!("{} {}", e.field, e.message)).collect();
        Self {
            status: StatusCode::BAD_REQUEST,
            message: format!("Validation failed: {}", all.join("; ")),
            errors,
        }
    }

    /// The workspace is not in a state for it; 400, as Aether documents for start and stop.
    pub(super) fn not_in_state(message: impl Into<String>) -> Self {
        Self::plain(StatusCode::BAD_REQUEST, message)
    }

    /// A part of Aether's API that this server does not have.
    pub(super) fn not_supported(what: &str) -> Self {
        let message = format!("{what} is not supported by this server");
        Self::plain(StatusCode::NOT_IMPLEMENTED, message)
    }

    fn internal() -> Self {
        Self::plain(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error")
    }
}

/// The core's name of a field as a path in Aether's words.
fn field_name(core: &'static str) -> &'static str {
    match core {
        "vcpu_count" => "hardware.cpus",
        "memory_mib" => "hardware.memory_mb",
        "disk_mib" => "hardware.volume_size_gb",
        same => same,
    }
}

impl From<FieldError> for AetherError {
    fn from(error: FieldError) -> Self {
        Self::validation(vec![error])
    }
}

impl From<Vec<FieldError>> for AetherError {
    fn from(errors: Vec<FieldError>) -> Self {
        Self::validation(errors)
    }
}

impl From<Error> for AetherError {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&Error> for AetherError {
    fn from(error: &Error) -> Self {
        let plain = |status| Self::plain(status, error.kind().to_string());
        match error.kind() {
            ErrorKind::NotFound { .. } => plain(StatusCode::NOT_FOUND),
            ErrorKind::Conflict(_) | ErrorKind::RefusedByState { .. } => {
                plain(StatusCode::CONFLICT)
            }
            ErrorKind::Invalid(invalid) => FieldError::new(
                field_name(invalid.field),
                format!("{}; allowed: {}", invalid.problem, invalid.allowed),
            )
            .into(),
            ErrorKind::Unauthenticated => Self::plain(StatusCode::UNAUTHORIZED, "Unauthorized"),
            ErrorKind::Forbidden(_) => plain(StatusCode::FORBIDDEN),
            ErrorKind::Quota { limit, what, requested, current, max } => {
                let resource = match *what {
                    "vcpu_count" => "CPUs",
                    "memory_mib" => "MB of memory",
                    "disk_mib" => "MB of volume",
                    same => same,
                };
                match limit {
                    // The hardware itself is beyond the plan, which no deletion elsewhere changes.
                    Limit::PerWorkspace => FieldError::new(
                        field_name(what),
                        format!("is beyond the plan: at most {max} {resource} for one workspace"),
                    )
                    .into(),
                    Limit::WorkspaceCount
                    | Limit::OwnedPool
                    | Limit::RunningPool
                    | Limit::SnapshotCount
                    | Limit::SnapshotSpace
                    | Limit::VolumeCount
                    | Limit::VolumeSpace => Self::plain(
                        StatusCode::PAYMENT_REQUIRED,
                        format!(
                            "Plan limit reached: {requested} {resource} requested, {current} in \
                             use, {max} allowed"
                        ),
                    ),
                }
            }
            ErrorKind::NoCapacity(_) | ErrorKind::Unavailable(_) => {
                plain(StatusCode::SERVICE_UNAVAILABLE)
            }
            ErrorKind::Timeout(_) => plain(StatusCode::GATEWAY_TIMEOUT),
            ErrorKind::Internal => {
                tracing::error!(error = error as &dyn std::error::Error, "an Aether call failed");
                Self::internal()
            }
        }
    }
}

impl From<&Fault> for AetherError {
    fn from(fault: &Fault) -> Self {
        match fault {
            Fault::NoSuchRoute => Self::plain(StatusCode::NOT_FOUND, "Not found"),
            Fault::MethodNotAllowed => {
                Self::plain(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed")
            }
            Fault::BodyTooLarge => {
                Self::plain(StatusCode::PAYLOAD_TOO_LARGE, "Request body too large")
            }
            Fault::BodyIncomplete => {
                Self::plain(StatusCode::BAD_REQUEST, "Request body did not arrive completely")
            }
            Fault::BadJson(problem) => {
                let path = problem.path_text();
                let field = if path.is_empty() { "body".to_owned() } else { path };
                FieldError::new(field, problem.message()).into()
            }
            Fault::BadUrl { parameter, problem } => match parameter {
                Some(name) => {
                    let named = format!("{name}: ");
                    let problem = problem.strip_prefix(&named).unwrap_or(problem);
                    FieldError::new(name, problem).into()
                }
                None => Self::plain(StatusCode::BAD_REQUEST, problem),
            },
            Fault::HandlerPanicked => Self::internal(),
        }
    }
}

impl Dialect for Aether {
    const NAME: &'static str = "aether";
    const ROOTS: &'static [&'static str] =
        &["/projects", "/workspaces", "/user", "/profile", "/tasks"];

    fn error(error: &Error) -> Response {
        AetherError::from(error).into_response()
    }

    fn fault(fault: &Fault) -> Response {
        AetherError::from(fault).into_response()
    }
}

impl IntoResponse for AetherError {
    fn into_response(self) -> Response {
        let mut body = json!({ "error": self.message });
        if !self.errors.is_empty() {
            body["errors"] = self
                .errors
                .into_iter()
                .map(|e| json!({ "field": e.field, "message": e.message }))
                .collect();
        }
        (self.status, Json(body)).into_response()
    }
}
