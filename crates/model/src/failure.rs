//! Why a workspace failed: a closed set of codes, and which of them are worth repeating.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// The codes a [`Failure`] may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureCode {
    /// The guest did not become ready in time.
    BootTimeout,
    /// The node has no room.
    NoCapacity,
    /// The hypervisor process died.
    VmCrashed,
    /// The VM is no longer on its node, and how it ended is not known (the machine was restarted).
    VmLost,
    /// The image is not on the node.
    ImageMissing,
    /// The VM runs but its agent does not answer.
    GuestUnreachable,
    /// A saved state (suspension or snapshot) is damaged, incomplete or gone.
    SavedStateUnusable,
    /// A step on the host failed.
    HostStepFailed,
    /// A fault of ours.
    Internal,
}

impl FailureCode {
    /// Every code.
    pub const ALL: [Self; 9] = [
        Self::BootTimeout,
        Self::NoCapacity,
        Self::VmCrashed,
        Self::VmLost,
        Self::ImageMissing,
        Self::GuestUnreachable,
        Self::SavedStateUnusable,
        Self::HostStepFailed,
        Self::Internal,
    ];

    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BootTimeout => "boot_timeout",
            Self::NoCapacity => "no_capacity",
            Self::VmCrashed => "vm_crashed",
            Self::VmLost => "vm_lost",
            Self::ImageMissing => "image_missing",
            Self::GuestUnreachable => "guest_unreachable",
            Self::SavedStateUnusable => "saved_state_unusable",
            Self::HostStepFailed => "host_step_failed",
            Self::Internal => "internal",
        }
    }

    /// Whether the same request may succeed if repeated: the one list of what is.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::BootTimeout
            | Self::NoCapacity
            | Self::VmCrashed
            | Self::VmLost
            | Self::GuestUnreachable
            | Self::HostStepFailed => true,
            Self::ImageMissing | Self::SavedStateUnusable | Self::Internal => false,
        }
    }
}

/// Why a workspace is in the failed state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable word for programs, for example `boot_timeout`, `no_capacity`, `vm_crashed`.
    pub code: String,
    /// A sentence for people, without internal paths or secrets.
    pub message: String,
    /// How many starts in a row have failed, this one included.
    pub attempts: u32,
    /// Whether the same request may succeed if repeated.
    pub retryable: bool,
    /// When it happened.
    pub at: Timestamp,
}

impl Failure {
    /// A failure of this kind. `attempts` is counted when it is applied to a workspace
    /// ([`crate::Workspace::apply`]).
    #[must_use]
    pub fn new(code: FailureCode, message: impl Into<String>, at: Timestamp) -> Self {
        Self {
            code: code.as_str().to_owned(),
            message: message.into(),
            attempts: 0,
            retryable: code.is_retryable(),
            at,
        }
    }
}
