//! The closed set of ways a request can fail, shared by every layer. How a kind looks on a wire
//! (status code, body) is decided in `api`, once per dialect.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A field of a request that was not acceptable, and what would have been.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {problem}; allowed: {allowed}")]
pub struct Invalid {
    /// The core's name of the field (`memory_mib`, `name`, `env`); a dialect maps it to its own.
    pub field: &'static str,
    /// What is wrong with the value, without repeating a secret value.
    pub problem: String,
    /// The allowed values, in words or as a range with unit.
    pub allowed: String,
}

/// Which limit of the plan a request would pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Number of workspaces of the account.
    WorkspaceCount,
    /// A single workspace asks for more of a resource than the plan allows for one.
    PerWorkspace,
    /// Sum over all workspaces the account owns.
    OwnedPool,
    /// Sum over the workspaces that are running or starting.
    RunningPool,
    /// Number of snapshots of the account.
    SnapshotCount,
    /// Space of the account's snapshots together.
    SnapshotSpace,
    /// Number of volumes of the account.
    VolumeCount,
    /// Size of the account's volumes together.
    VolumeSpace,
}

/// What kind of failure it was, so that a caller can decide what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ErrorKind {
    /// No such object, or it belongs to somebody else: the two are indistinguishable on purpose.
    #[error("{what} not found")]
    NotFound {
        /// `workspace`, `project`, `image`, `file`...
        what: &'static str,
    },
    /// The request contradicts something that exists (a name or slug already taken).
    #[error("{0}")]
    Conflict(String),
    /// The workspace is in a state that does not permit the operation.
    #[error("not possible while the workspace is {state}: {reason}")]
    RefusedByState {
        /// The state's name.
        state: &'static str,
        /// What would have been needed.
        reason: String,
    },
    /// A value was not acceptable.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No credential, or not a valid one.
    #[error("missing or invalid credential")]
    Unauthenticated,
    /// The credential is valid but does not permit this.
    #[error("{0}")]
    Forbidden(String),
    /// A limit of the account's plan.
    #[error("{what}: {requested} requested, {current} in use, {max} allowed")]
    Quota {
        /// Which limit.
        limit: Limit,
        /// The resource with unit: `workspaces`, `vcpu_count`, `memory_mib`, `disk_mib`,
        /// `snapshots`, `snapshot_mib`, `volumes`, `volume_mib`.
        what: &'static str,
        /// What this request adds.
        requested: u64,
        /// What is in use already (0 for a limit on one workspace).
        current: u64,
        /// What the plan allows.
        max: u64,
    },
    /// No machine has room for it now.
    #[error("no capacity: {0}")]
    NoCapacity(String),
    /// Something needed is out of reach (the node, the guest's agent).
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// It did not finish within its bound.
    #[error("timed out: {0}")]
    Timeout(String),
    /// A fault of ours. The text is safe to show; the cause is in the log.
    #[error("internal error")]
    Internal,
}
