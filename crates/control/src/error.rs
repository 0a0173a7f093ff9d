//! The crate's error: a kind from the closed set of `model`, fit to be shown, and a cause for the log.

use skerry_internal_api::{NodeError, PullFailure};
use skerry_model::{ErrorKind, Invalid};

/// Why a use case failed.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct Error {
    kind: ErrorKind,
    #[source]
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of this kind without a cause to keep.
    #[must_use]
    pub fn new(kind: ErrorKind) -> Self {
        Self { kind, cause: None }
    }

    /// A fault of ours; `cause` is for the log only.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { kind: ErrorKind::Internal, cause: Some(cause.into()) }
    }

    /// An error of this kind; `cause` is for the log only.
    pub fn with_cause(
        kind: ErrorKind,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, cause: Some(cause.into()) }
    }

    /// A value that was not acceptable.
    #[must_use]
    pub fn invalid(
        field: &'static str,
        problem: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        Invalid { field, problem: problem.into(), allowed: allowed.into() }.into()
    }

    /// No such object, or not the caller's.
    #[must_use]
    pub fn not_found(what: &'static str) -> Self {
        Self::new(ErrorKind::NotFound { what })
    }

    /// The kind: public.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::new(ErrorKind::Invalid(invalid))
    }
}

impl From<NodeError> for Error {
    fn from(error: NodeError) -> Self {
        let kind = match &error {
            NodeError::NoSuchVm | NodeError::NotRunning => ErrorKind::RefusedByState {
                state: "stopped",
                reason: "the workspace must be running".to_owned(),
            },
            NodeError::NoSuchImage(_) => ErrorKind::NotFound { what: "image" },
            NodeError::Pull { why, message } => not_pulled(*why, message),
            NodeError::NoSuchSnapshot => ErrorKind::NotFound { what: "snapshot" },
            NodeError::NoSuchVolume => ErrorKind::NotFound { what: "volume" },
            NodeError::NoSuchCheckpoint => ErrorKind::NotFound { what: "checkpoint" },
            NodeError::Cancelled | NodeError::SavedStateUnusable(_) | NodeError::VolumeInUse => {
                ErrorKind::Conflict(error.to_string())
            }
            NodeError::NoSuchFile(_) => ErrorKind::NotFound { what: "file" },
            NodeError::Guest { message, .. } => ErrorKind::Conflict(message.clone()),
            NodeError::Invalid { field, problem } => ErrorKind::Invalid(Invalid {
                field,
                problem: problem.clone(),
                allowed: "see the field's documentation".to_owned(),
            }),
            NodeError::NoCapacity(what) => ErrorKind::NoCapacity(what.clone()),
            NodeError::Timeout { .. } => ErrorKind::Timeout(error.to_string()),
            NodeError::GuestUnreachable(_) | NodeError::NotConnected { .. } => {
                ErrorKind::Unavailable(error.to_string())
            }
            NodeError::Step { .. } | NodeError::Unsupported(_) => {
                ErrorKind::Unavailable(error.to_string())
            }
        };
        Self { kind, cause: Some(Box::new(error)) }
    }
}

/// An image that could not be pulled: the caller's fault as far as another reference would help.
fn not_pulled(why: PullFailure, message: &str) -> ErrorKind {
    let invalid = |allowed: &str| {
        ErrorKind::Invalid(Invalid {
            field: "image",
            problem: message.to_owned(),
            allowed: allowed.to_owned(),
        })
    };
    match why {
        PullFailure::InvalidReference | PullFailure::NotFound => {
            invalid("the name of an image here, or a reference such as docker.io/library/debian:12")
        }
        PullFailure::NotPermitted => invalid("images of the registries this server permits"),
        PullFailure::Unauthorized => invalid("images that this server's credentials may read"),
        PullFailure::TooLarge => invalid("images within this server's limits"),
        PullFailure::Refused => invalid("images for linux/amd64 whose layers hold what layers may"),
        PullFailure::BadDigest | PullFailure::Unreachable | PullFailure::Host => {
            ErrorKind::Unavailable(message.to_owned())
        }
    }
}
