//! The one place where an error becomes a status code and a body of the native API.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use skerry_control::internal_api::NodeError;
use skerry_model::{ErrorKind, Invalid, error::Limit};

use super::{
    Native,
    wire::{ErrorBody, ErrorDetail, QuotaDetail},
};
use crate::{Dialect, Fault};

impl Dialect for Native {
    const NAME: &'static str = "native";
    const ROOTS: &'static [&'static str] = &["/skerry"];

    fn error(error: &skerry_control::Error) -> Response {
        NativeError::from(error.kind().clone()).into_response()
    }

    fn fault(fault: &Fault) -> Response {
        NativeError::from(fault).into_response()
    }
}

/// An error on its way to the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NativeError {
    pub(super) status: StatusCode,
    /// Boxed, so that what may fail does not return half a kilobyte when it succeeds.
    pub(super) detail: Box<ErrorDetail>,
}

/// What a handler returns.
pub(super) type NativeResult<T> = Result<T, NativeError>;

impl NativeError {
    /// An error with this status, code and message.
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            detail: Box::new(ErrorDetail {
                code,
                message: message.into(),
                field: None,
                allowed: None,
                quota: None,
                state: None,
            }),
        }
    }

    /// A field or parameter that is not acceptable.
    pub(super) fn invalid(
        field: impl Into<String>,
        problem: impl AsRef<str>,
        allowed: impl Into<String>,
    ) -> Self {
        let field = field.into();
        let mut error =
            Self::new(StatusCode::BAD_REQUEST, "invalid", format!("{field}: {}", problem.as_ref()));
        error.detail.field = Some(field);
        error.detail.allowed = Some(allowed.into());
        error
    }
}

impl IntoResponse for NativeError {
    fn into_response(self) -> Response {
        let unauthenticated = self.status == StatusCode::UNAUTHORIZED;
        let mut response = (self.status, Json(ErrorBody { error: *self.detail })).into_response();
        if unauthenticated {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<skerry_control::Error> for NativeError {
    fn from(error: skerry_control::Error) -> Self {
        if matches!(error.kind(), ErrorKind::Internal) {
            // The one kind whose cause the caller does not get to see.
            tracing::error!(error = &error as &dyn std::error::Error, "a request failed inside");
        }
        Self::from(error.kind().clone())
    }
}

impl From<&Fault> for NativeError {
    fn from(fault: &Fault) -> Self {
        match fault {
            Fault::NoSuchRoute => Self::new(
                StatusCode::NOT_FOUND,
                "no_such_route",
                "nothing is at this path; see /skerry/v1/openapi.json",
            ),
            Fault::MethodNotAllowed => Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this path does not take this method; see /skerry/v1/openapi.json",
            ),
            Fault::BodyTooLarge => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                "the body is larger than 1 MiB",
            ),
            Fault::BodyIncomplete => Self::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_incomplete",
                "the body ended early or took longer than 30 s",
            ),
            Fault::BadJson(problem) => {
                let mut error = Self::new(StatusCode::BAD_REQUEST, "bad_json", problem.to_string());
                error.detail.field = Some(problem.path_text()).filter(|path| !path.is_empty());
                error
            }
            Fault::BadUrl { parameter, problem } => {
                let mut error = Self::new(StatusCode::BAD_REQUEST, "invalid", problem.clone());
                error.detail.field = parameter.clone();
                error
            }
            Fault::HandlerPanicked => Self::from(ErrorKind::Internal),
        }
    }
}

impl From<Invalid> for NativeError {
    fn from(invalid: Invalid) -> Self {
        Self::invalid(invalid.field, invalid.problem, invalid.allowed)
    }
}

impl From<ErrorKind> for NativeError {
    fn from(kind: ErrorKind) -> Self {
        let message = kind.to_string();
        match kind {
            ErrorKind::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, "not_found", message),
            ErrorKind::Conflict(_) => Self::new(StatusCode::CONFLICT, "conflict", message),
            ErrorKind::RefusedByState { state, .. } => {
                let mut error = Self::new(StatusCode::CONFLICT, "refused_by_state", message);
                error.detail.state = Some(state);
                error
            }
            ErrorKind::Invalid(invalid) => Self::from(invalid),
            ErrorKind::Unauthenticated => {
                Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", message)
            }
            ErrorKind::Forbidden(_) => Self::new(StatusCode::FORBIDDEN, "forbidden", message),
            ErrorKind::Quota { limit, what, requested, current, max } => {
                let mut error = Self::new(StatusCode::FORBIDDEN, "quota", message);
                error.detail.quota =
                    Some(QuotaDetail { limit: limit_word(limit), what, requested, current, max });
                error
            }
            ErrorKind::NoCapacity(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_capacity", message)
            }
            ErrorKind::Unavailable(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
            }
            ErrorKind::Timeout(_) => Self::new(StatusCode::GATEWAY_TIMEOUT, "timed_out", message),
            ErrorKind::Internal => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
            }
        }
    }
}

const fn limit_word(limit: Limit) -> &'static str {
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

impl From<NodeError> for NativeError {
    /// What the guest answers has finer distinctions than the closed set: they are kept as codes.
    fn from(error: NodeError) -> Self {
        let NodeError::Guest { code, message } = &error else {
            let text = error.to_string();
            let mut converted = Self::from(skerry_control::Error::from(error.clone()));
            if matches!(error, NodeError::NoSuchFile(_)) {
                // The kind knows only that a file is missing; the caller wants to know which.
                converted.detail.message = text;
            }
            return converted;
        };
        let message = message.clone();
        match *code {
            "permission_denied" => Self::new(StatusCode::FORBIDDEN, "permission_denied", message),
            "no_such_user" => {
                let mut error = Self::new(StatusCode::BAD_REQUEST, "no_such_user", message);
                error.detail.field = Some("user".to_owned());
                error
            }
            "no_such_command" => {
                let mut error = Self::new(StatusCode::BAD_REQUEST, "no_such_command", message);
                error.detail.field = Some("argv".to_owned());
                error
            }
            "too_large" => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message),
            "no_space" => Self::new(StatusCode::INSUFFICIENT_STORAGE, "no_space", message),
            "exists" => Self::new(StatusCode::CONFLICT, "exists", message),
            "is_directory" => Self::new(StatusCode::CONFLICT, "is_directory", message),
            "not_directory" => Self::new(StatusCode::CONFLICT, "not_directory", message),
            _ => Self::new(StatusCode::CONFLICT, "guest_refused", message),
        }
    }
}
