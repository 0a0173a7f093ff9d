//! Why an image could not be pulled.

use skerry_internal_api::{NodeError, PullFailure};
use thiserror::Error;

use super::super::ImageError;

/// A failure of a pull. The text is fit to be shown; it never has a credential in it.
#[derive(Debug, Error)]
pub enum PullError {
    /// What was asked for is no reference.
    #[error("not an image reference: {problem}")]
    Reference {
        /// Why.
        problem: String,
    },
    /// The operator has not named this registry.
    #[error("this server does not pull images from {registry}")]
    NotPermitted {
        /// The registry of the reference.
        registry: String,
    },
    /// The registry has no such image, or none for this machine.
    #[error("{what} is not there")]
    NotFound {
        /// What is missing.
        what: String,
    },
    /// The registry wants other credentials.
    #[error("the registry {host} does not let this server read the image")]
    Unauthorized {
        /// Which registry.
        host: String,
    },
    /// Larger than the limits permit.
    #[error("{what} is larger than the {limit} that are permitted")]
    TooLarge {
        /// What.
        what: String,
        /// The limit with its unit.
        limit: String,
    },
    /// What came is not what was promised.
    #[error("{what} is not what its digest says")]
    BadDigest {
        /// What.
        what: String,
    },
    /// The image is of a kind, or holds something, that is not taken.
    #[error("the image is refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The registry could not be reached or broke off.
    #[error("{host} cannot be reached: {problem}")]
    Unreachable {
        /// Which host.
        host: String,
        /// What happened.
        problem: String,
    },
    /// The host failed us.
    #[error(transparent)]
    Host(#[from] ImageError),
}

impl PullError {
    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }

    /// Whether the next source may have a better answer. A refusal of the image itself holds
    /// wherever it comes from.
    pub(super) fn is_of_the_source(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::BadDigest { .. }
            | Self::Unreachable { .. } => true,
            Self::Reference { .. }
            | Self::NotPermitted { .. }
            | Self::TooLarge { .. }
            | Self::Refused { .. }
            | Self::Host(_) => false,
        }
    }

    /// For control.
    #[must_use]
    pub fn to_node_error(&self) -> NodeError {
        let why = match self {
            Self::Reference { .. } => PullFailure::InvalidReference,
            Self::NotPermitted { .. } => PullFailure::NotPermitted,
            Self::NotFound { .. } => PullFailure::NotFound,
            Self::Unauthorized { .. } => PullFailure::Unauthorized,
            Self::TooLarge { .. } => PullFailure::TooLarge,
            Self::BadDigest { .. } => PullFailure::BadDigest,
            Self::Refused { .. } => PullFailure::Refused,
            Self::Unreachable { .. } => PullFailure::Unreachable,
            Self::Host(error) => {
                tracing::error!(%error, "an image could not be made of what was pulled");
                let message = "the host could not make the image; the server's log says why";
                return NodeError::Pull { why: PullFailure::Host, message: message.to_owned() };
            }
        };
        NodeError::Pull { why, message: self.to_string() }
    }
}
