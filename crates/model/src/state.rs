//! The state machine as a value: which event moves which state where, and what is refused.
//!
//! ```text
//!   provisioned ──start──▶ starting ──ready──▶ running ◀──pause, resume──▶ paused
//!        ▲                  │    ▲               │ ▲                         │
//!        │               failed  │        suspend│ │cancelled         suspend│
//!        │                  │    │               ▼ │                         │
//!   (create)             start   └──start── suspending ◀─────────────────────┘
//!                                   ▲            │
//!                                   └─ suspended ◀┘
//!
//!   every state with a VM, and suspended ──stop──▶ stopping ──▶ stopped ──start──▶ starting
//!   every state ──delete──▶ deleting ──▶ (the record is gone)
//! ```

use serde::{Deserialize, Serialize};

use crate::{Failure, Incarnation, StartPath, Timestamp};

/// What the tenant wants the workspace to be. Written by requests (and by rules such as "the guest
/// powered itself off"); the reconciler works towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// A VM runs.
    Running,
    /// A VM is there whose virtual CPUs are stopped; memory is resident. Where there is no VM any
    /// more, none is made for this.
    Paused,
    /// No process; memory and disk are kept. Where there is no VM any more, none is made for this.
    Suspended,
    /// No VM; the disk is kept.
    Stopped,
    /// Nothing is left.
    Deleted,
}

impl Desired {
    /// The stable word, as used in the store, in logs and in the native API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }
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
    /// Whether there is, or may be, a VM in this state: a process and memory on a node.
    #[must_use]
    pub const fn has_vm(&self) -> bool {
        match self {
            Self::Starting
            | Self::Running { .. }
            | Self::Paused { .. }
            | Self::Suspending
            | Self::Stopping => true,
            Self::Provisioned
            | Self::Suspended
            | Self::Stopped
            | Self::Failed(_)
            | Self::Deleting => false,
        }
    }

    /// Since when the guest has been ready, while a VM runs or is paused.
    #[must_use]
    pub const fn ready_since(&self) -> Option<Timestamp> {
        match self {
            Self::Running { since } | Self::Paused { since } => Some(*since),
            Self::Provisioned
            | Self::Starting
            | Self::Suspending
            | Self::Suspended
            | Self::Stopping
            | Self::Stopped
            | Self::Failed(_)
            | Self::Deleting => None,
        }
    }

    /// Why the last start failed or the VM died, in [`State::Failed`].
    #[must_use]
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::Provisioned
            | Self::Starting
            | Self::Running { .. }
            | Self::Paused { .. }
            | Self::Suspending
            | Self::Suspended
            | Self::Stopping
            | Self::Stopped
            | Self::Deleting => None,
        }
    }

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

/// What is left of a VM that should have come to rest and did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StillThere {
    /// It runs.
    Running {
        /// Since when its guest has been ready.
        since: Timestamp,
    },
    /// It is paused, as it was before.
    Paused {
        /// Since when its guest has been ready.
        since: Timestamp,
    },
}

/// Something that happened to a workspace. Events of the node carry the incarnation they speak of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A start begins; the number is the new start's.
    StartBegun(Incarnation),
    /// The guest of this start is ready since then, and came to run in this way as far as is known.
    GuestReady(Incarnation, Timestamp, Option<StartPath>),
    /// A VM of this start was found running on the node although the record did not say so (a
    /// report was lost, or control was). Built only from what the node says at this moment.
    VmFound(Incarnation, Timestamp, Option<StartPath>),
    /// This start failed and left nothing behind but the disk and what it was to begin with.
    StartFailed(Incarnation, Failure),
    /// The virtual CPUs of the VM of this start stand still; its guest had been ready since then.
    VmPaused(Incarnation, Timestamp),
    /// The VM of this start runs on after a pause or a cancelled suspension; its guest has been ready
    /// since then.
    VmResumed(Incarnation, Timestamp),
    /// A suspension of the VM of this start begins.
    SuspendBegun(Incarnation),
    /// The memory of the VM of this start is on disk and its process is gone.
    VmSuspended(Incarnation),
    /// A pause or suspension was given up; the VM of this start is there as before.
    RestFailed(Incarnation, StillThere, Failure),
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
    /// It speaks of a start that was never recorded.
    Ahead,
    /// The VM is being stopped; what its start came to no longer matters.
    BeingStopped,
    /// The VM's memory is being saved; a resume cancels that.
    BeingSuspended,
    /// The workspace is being deleted; nothing else may happen to it.
    BeingDeleted,
    /// There is no VM to which it could apply.
    NoVm,
    /// The guest is not ready yet.
    NotReady,
    /// It is possible only where no VM is, or is to be.
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

/// The whole state machine. Pure and total: `current` is the incarnation the state speaks of.
///
/// Three rules hold everywhere: a deletion is accepted in every state and nothing is accepted after
/// it; an event that speaks of an older start is refused; the incarnation never goes back.
#[must_use]
pub fn transition(state: &State, current: Incarnation, event: &Event) -> Transition {
    if let State::Deleting = state {
        return match event {
            Event::DeleteBegun => Transition::AlreadySo,
            Event::StartBegun(_)
            | Event::GuestReady(..)
            | Event::VmFound(..)
            | Event::StartFailed(..)
            | Event::VmPaused(..)
            | Event::VmResumed(..)
            | Event::SuspendBegun(_)
            | Event::VmSuspended(_)
            | Event::RestFailed(..)
            | Event::StopBegun
            | Event::VmStopped(_)
            | Event::VmEnded(_)
            | Event::VmCrashed(..) => Transition::Refused(Refusal::BeingDeleted),
        };
    }
    match event {
        Event::DeleteBegun => moved(State::Deleting, current, Some(Desired::Deleted)),
        Event::StopBegun => stop_begun(state, current),
        Event::StartBegun(new) => start_begun(state, current, *new),
        Event::VmFound(found, since, _) => vm_found(state, current, *found, *since),
        Event::GuestReady(of, since, _) => {
            of_current(*of, current, || guest_ready(state, current, *since))
        }
        Event::StartFailed(of, failure) => {
            of_current(*of, current, || start_failed(state, current, failure))
        }
        Event::VmPaused(of, since) => of_current(*of, current, || {
            at_rest(state, current, |running_since| State::Paused {
                since: running_since.unwrap_or(*since),
            })
        }),
        Event::VmResumed(of, since) => {
            of_current(*of, current, || vm_resumed(state, current, *since))
        }
        Event::SuspendBegun(of) => {
            of_current(*of, current, || at_rest(state, current, |_| State::Suspending))
        }
        Event::VmSuspended(of) => {
            of_current(*of, current, || at_rest(state, current, |_| State::Suspended))
        }
        Event::RestFailed(of, still, _) => {
            of_current(*of, current, || rest_failed(state, current, *still))
        }
        Event::VmStopped(of) => of_current(*of, current, || vm_stopped(state, current)),
        Event::VmEnded(of) => of_current(*of, current, || vm_ended(state, current)),
        Event::VmCrashed(of, failure) => {
            of_current(*of, current, || vm_crashed(state, current, failure))
        }
    }
}

fn moved(next: State, incarnation: Incarnation, desired: Option<Desired>) -> Transition {
    Transition::Moved(Moved { next, incarnation, desired })
}

/// Lets only an event of the current start through.
fn of_current(
    of: Incarnation,
    current: Incarnation,
    decide: impl FnOnce() -> Transition,
) -> Transition {
    match of.cmp(&current) {
        std::cmp::Ordering::Less => Transition::Refused(Refusal::Stale),
        std::cmp::Ordering::Greater => Transition::Refused(Refusal::Ahead),
        std::cmp::Ordering::Equal => decide(),
    }
}

fn start_begun(state: &State, current: Incarnation, new: Incarnation) -> Transition {
    match state {
        State::Starting if new == current => Transition::AlreadySo,
        State::Starting
        | State::Running { .. }
        | State::Paused { .. }
        | State::Suspending
        | State::Stopping => {
            Transition::Refused(if new < current { Refusal::Stale } else { Refusal::VmPresent })
        }
        State::Provisioned | State::Suspended | State::Stopped | State::Failed(_) => {
            // The number of a start that is over is never used again: what that start left
            // behind must not be taken for the new one's.
            if new <= current {
                Transition::Refused(Refusal::Stale)
            } else {
                moved(State::Starting, new, None)
            }
        }
        State::Deleting => Transition::Refused(Refusal::BeingDeleted),
    }
}

fn guest_ready(state: &State, current: Incarnation, since: Timestamp) -> Transition {
    match state {
        State::Starting => moved(State::Running { since }, current, None),
        State::Running { .. } | State::Paused { .. } => Transition::AlreadySo,
        State::Stopping | State::Suspending => Transition::Refused(Refusal::BeingStopped),
        State::Provisioned | State::Suspended | State::Stopped | State::Failed(_) => {
            Transition::Refused(Refusal::NoVm)
        }
        State::Deleting => Transition::Refused(Refusal::BeingDeleted),
    }
}

fn vm_found(
    state: &State,
    current: Incarnation,
    found: Incarnation,
    since: Timestamp,
) -> Transition {
    if found < current {
        return Transition::Refused(Refusal::Stale);
    }
    match state {
        State::Running { .. } | State::Paused { .. } if found == current => Transition::AlreadySo,
        State::Running { .. }
        | State::Paused { .. }
        | State::Starting
        | State::Suspending
        | State::Provisioned
        | State::Suspended
        | State::Stopped
        | State::Failed(_) => moved(State::Running { since }, found, None),
        State::Stopping => Transition::Refused(Refusal::BeingStopped),
        State::Deleting => Transition::Refused(Refusal::BeingDeleted),
    }
}

/// A VM that is there comes to rest as `rest` says, given since when its guest was ready as far as the
/// state knows.
fn at_rest(
    state: &State,
    current: Incarnation,
    rest: impl FnOnce(Option<Timestamp>) -> State,
) -> Transition {
    let next = match state {
        State::Running { since } | State::Paused { since } => rest(Some(*since)),
        State::Suspending => rest(None),
        // What is suspended has no VM that could be paused, and is where a suspension leads.
        State::Suspended => match rest(None) {
            State::Suspending | State::Suspended => return Transition::AlreadySo,
            State::Provisioned
            | State::Starting
            | State::Running { .. }
            | State::Paused { .. }
            | State::Stopping
            | State::Stopped
            | State::Failed(_)
            | State::Deleting => return Transition::Refused(Refusal::NoVm),
        },
        State::Starting => return Transition::Refused(Refusal::NotReady),
        State::Stopping => return Transition::Refused(Refusal::BeingStopped),
        State::Provisioned | State::Stopped | State::Failed(_) => {
            return Transition::Refused(Refusal::NoVm);
        }
        State::Deleting => return Transition::Refused(Refusal::BeingDeleted),
    };
    if next == *state { Transition::AlreadySo } else { moved(next, current, None) }
}

fn vm_resumed(state: &State, current: Incarnation, found_since: Timestamp) -> Transition {
    match state {
        State::Paused { since } => moved(State::Running { since: *since }, current, None),
        State::Suspending => moved(State::Running { since: found_since }, current, None),
        State::Running { .. } => Transition::AlreadySo,
        State::Starting => Transition::Refused(Refusal::NotReady),
        State::Stopping => Transition::Refused(Refusal::BeingStopped),
        State::Provisioned | State::Suspended | State::Stopped | State::Failed(_) => {
            Transition::Refused(Refusal::NoVm)
        }
        State::Deleting => Transition::Refused(Refusal::BeingDeleted),
    }
}

/// Also where the state stays: what changes is that the rest is no longer desired.
fn rest_failed(state: &State, current: Incarnation, still: StillThere) -> Transition {
    match state {
        State::Running { .. } | State::Paused { .. } | State::Suspending => {
            let (next, desired) = match still {
                StillThere::Running { since } => (State::Running { since }, Desired::Running),
                StillThere::Paused { since } => (State::Paused { since }, Desired::Paused),
            };
            moved(next, current, Some(desired))
        }
        State::Starting => Transition::Refused(Refusal::NotReady),
        State::Stopping => Transition::Refused(Refusal::BeingStopped),
        State::Provisioned | State::Suspended | State::Stopped | State::Failed(_) => {
            Transition::Refused(Refusal::NoVm)
        }
        State::Deleting => Transition::Refused(Refusal::BeingDeleted),
    }
}

fn start_failed(state: &State, current: Incarnation, failure: &Failure) -> Transition {
    match state {
        State::Starting => moved(State::Failed(failure.clone()), current, Some(Desired::Stopped)),
        // A stop came during the start; that nothing is left is what the stop wanted.
        State::Stopping => moved(State::Stopped, current, None),
        State::Failed(_) => Transition::AlreadySo,
        State::Running { .. } | State::Paused { .. } | State::Suspending => {
            Transition::Refused(Refusal::VmPresent)
        }
        State::Provisioned | State::Suspended | State::Stopped => {
            Transition::Refused(Refusal::NoVm)
        }
        State::Deleting => Transition::Refused(Refusal::BeingDeleted),
    }
}

fn stop_begun(state: &State, current: Incarnation) -> Transition {
    match state {
        // A failed workspace has no VM, but stopping it is how a tenant acknowledges the failure,
        // and the node is asked once more to leave nothing behind.
        State::Starting
        | State::Running { .. }
        | State::Paused { .. }
        | State::Suspending
        | State::Suspended
        | State::Failed(_) => moved(State::Stopping, current, None),
        State::Stopping | State::Stopped | State::Provisioned => Transition::AlreadySo,
        State::Deleting => Transition::Refused(Refusal::BeingDeleted),
    }
}

fn vm_stopped(state: &State, current: Incarnation) -> Transition {
    match state {
        State::Stopping
        | State::Starting
        | State::Running { .. }
        | State::Paused { .. }
        | State::Suspending => moved(State::Stopped, current, None),
        State::Stopped | State::Provisioned => Transition::AlreadySo,
        State::Suspended | State::Failed(_) => Transition::Refused(Refusal::NoVm),
        State::Deleting => Transition::Refused(Refusal::BeingDeleted),
    }
}

fn vm_ended(state: &State, current: Incarnation) -> Transition {
    match state {
        State::Starting | State::Running { .. } | State::Paused { .. } | State::Suspending => {
            moved(State::Stopped, current, Some(Desired::Stopped))
        }
        // Who asked for the stop also decided what comes after it: a restart goes on.
        State::Stopping => moved(State::Stopped, current, None),
        State::Stopped => Transition::AlreadySo,
        State::Provisioned | State::Suspended | State::Failed(_) => {
            Transition::Refused(Refusal::NoVm)
        }
        State::Deleting => Transition::Refused(Refusal::BeingDeleted),
    }
}

fn vm_crashed(state: &State, current: Incarnation, failure: &Failure) -> Transition {
    match state {
        State::Starting | State::Running { .. } | State::Paused { .. } | State::Suspending => {
            moved(State::Failed(failure.clone()), current, Some(Desired::Stopped))
        }
        State::Stopping => moved(State::Stopped, current, None),
        State::Failed(_) => Transition::AlreadySo,
        State::Provisioned | State::Suspended | State::Stopped => {
            Transition::Refused(Refusal::NoVm)
        }
        State::Deleting => Transition::Refused(Refusal::BeingDeleted),
    }
}

#[cfg(test)]
mod tests;
