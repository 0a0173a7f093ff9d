//! What can go wrong between control and a node.

use thiserror::Error;

/// Why no connection could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFailure {
    /// Nobody listens there.
    Refused,
    /// No way leads there.
    Unreachable,
    /// Nobody answered in time.
    TimedOut,
    /// The name has no address.
    NoSuchHost,
}

/// Why an image could not be pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullFailure {
    /// What was asked for is no reference to an image.
    InvalidReference,
    /// The operator has not permitted its registry.
    NotPermitted,
    /// The registry has no such image, or none for this machine.
    NotFound,
    /// The registry does not let this server read it.
    Unauthorized,
    /// Larger than this server takes.
    TooLarge,
    /// What came is not what its digest says.
    BadDigest,
    /// It holds something that no image has, or that is not safe.
    Refused,
    /// The registry could not be reached.
    Unreachable,
    /// The host failed.
    Host,
}

/// A node's refusal or failure. The text is fit to be shown to the tenant; causes are logged where
/// they happen.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NodeError {
    /// No VM of this workspace is there (or not of this incarnation).
    #[error("no such VM")]
    NoSuchVm,
    /// What was under way was given up because something else was asked for meanwhile.
    #[error("cancelled")]
    Cancelled,
    /// No complete snapshot of this identifier is there.
    #[error("no such snapshot")]
    NoSuchSnapshot,
    /// No complete volume of this identifier is there.
    #[error("no such volume")]
    NoSuchVolume,
    /// The volume has no complete checkpoint of this identifier.
    #[error("no such checkpoint")]
    NoSuchCheckpoint,
    /// Another workspace writes the volume.
    #[error("the volume is in use by another workspace")]
    VolumeInUse,
    /// A saved state cannot be used: damaged, incomplete, or of another machine.
    #[error("the saved state cannot be used: {0}")]
    SavedStateUnusable(String),
    /// The VM is there but does not run.
    #[error("the VM is not running")]
    NotRunning,
    /// The image is not on this node.
    #[error("image {0} is not present on the node")]
    NoSuchImage(String),
    /// An image could not be pulled.
    #[error("{message}")]
    Pull {
        /// Which kind.
        why: PullFailure,
        /// A sentence.
        message: String,
    },
    /// A file or directory in the guest does not exist.
    #[error("{0}: no such file or directory")]
    NoSuchFile(String),
    /// The guest refused: permission, wrong kind of file, already there.
    #[error("{message}")]
    Guest {
        /// Stable word: `exists`, `is_directory`, `not_directory`, `permission_denied`,
        /// `too_large`, `no_space`, `no_such_user`, `no_such_command`, `busy`, `other`.
        code: &'static str,
        /// A sentence with the path it is about.
        message: String,
    },
    /// No connection could be made inside the guest.
    #[error("{message}")]
    NotConnected {
        /// Which kind.
        why: ConnectFailure,
        /// A sentence with the address it is about.
        message: String,
    },
    /// A value the node or guest cannot take.
    #[error("{field}: {problem}")]
    Invalid {
        /// Which one.
        field: &'static str,
        /// Why.
        problem: String,
    },
    /// The host has no room (memory, disk, uids).
    #[error("no capacity: {0}")]
    NoCapacity(String),
    /// Did not finish within its bound; `step` names what.
    #[error("{step} did not finish within {bound_seconds} s")]
    Timeout {
        /// The step that took too long.
        step: &'static str,
        /// The bound.
        bound_seconds: u64,
    },
    /// The guest's agent does not answer.
    #[error("the guest does not answer: {0}")]
    GuestUnreachable(String),
    /// A step of bringing a VM up or down failed on the host.
    #[error("{step} failed")]
    Step {
        /// The step's name (`create_overlay`, `boot`).
        step: &'static str,
    },
    /// This node or this driver cannot do that.
    #[error("not supported here: {0}")]
    Unsupported(String),
}
