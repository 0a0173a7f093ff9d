//! What to do next with one workspace, decided from its record and from what its node says.
//!
//! This function is everything the reconciler knows. It is used alike after a request, after a
//! report of the node, by the periodic comparison and when control starts, so that recovering from
//! a crash is no special case.

use crate::{Desired, Event, Failure, FailureCode, Incarnation, State, Timestamp, Workspace};

/// How far a VM is, as its node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmViewPhase {
    /// Being brought up.
    Starting,
    /// The guest is ready.
    Running,
    /// Virtual CPUs stopped.
    Paused,
    /// Memory is being saved.
    Suspending,
    /// No process; memory is saved.
    Suspended,
    /// Being shut down.
    Stopping,
    /// No process.
    Stopped,
}

/// How a VM ended without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEnd {
    /// The guest powered off or rebooted.
    ByGuest,
    /// The hypervisor process died.
    Crashed {
        /// What is known, fit to be shown.
        reason: String,
    },
}

/// What a node says of one workspace's VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Of which start the VM is.
    pub incarnation: Incarnation,
    /// How far it is.
    pub phase: VmViewPhase,
    /// When the guest became ready.
    pub ready_at: Option<Timestamp>,
    /// How it ended, when it is stopped and that is known.
    pub end: Option<VmEnd>,
}

impl NodeView {
    fn is_live(&self) -> bool {
        match self.phase {
            VmViewPhase::Starting
            | VmViewPhase::Running
            | VmViewPhase::Paused
            | VmViewPhase::Suspending
            | VmViewPhase::Stopping => true,
            VmViewPhase::Suspended | VmViewPhase::Stopped => false,
        }
    }

    fn guest_is_ready(&self) -> bool {
        match self.phase {
            VmViewPhase::Running | VmViewPhase::Paused => true,
            VmViewPhase::Starting
            | VmViewPhase::Suspending
            | VmViewPhase::Suspended
            | VmViewPhase::Stopping
            | VmViewPhase::Stopped => false,
        }
    }
}

/// The reconciler's next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Record that this start begins (unless it is recorded already), then have the node make it
    /// run and record what came of it.
    Start {
        /// The start.
        incarnation: Incarnation,
    },
    /// Have the node stop every VM up to this incarnation, then record that it is stopped.
    Stop {
        /// The newest incarnation to stop.
        through: Incarnation,
    },
    /// Have the node remove everything, then remove the record.
    Delete,
    /// Record this and decide again.
    Record(Event),
    /// The workspace is as it should be, or the node is at work on it and will report.
    Nothing,
}

/// Decides the next step. `observed` is what the node says of the workspace now; `None` when it has
/// nothing of it. Pure and total; repeated application reaches [`Step::Nothing`] or
/// [`Step::Delete`] if the node obeys.
#[must_use]
pub fn next_step(workspace: &Workspace, observed: Option<&NodeView>, now: Timestamp) -> Step {
    let live = observed.filter(|view| view.is_live());
    if let State::Deleting = workspace.state {
        return Step::Delete;
    }
    match workspace.desired {
        Desired::Deleted => Step::Record(Event::DeleteBegun),
        Desired::Stopped => towards_stopped(workspace, live),
        Desired::Running => towards_running(workspace, observed, live, now),
    }
}

fn stop(workspace: &Workspace, live: Option<&NodeView>) -> Step {
    let newest = live.map_or(workspace.incarnation, |view| view.incarnation);
    Step::Stop { through: newest.max(workspace.incarnation) }
}

fn towards_stopped(workspace: &Workspace, live: Option<&NodeView>) -> Step {
    match workspace.state {
        State::Provisioned | State::Stopped | State::Suspended | State::Failed(_) => {
            if live.is_some() { stop(workspace, live) } else { Step::Nothing }
        }
        State::Starting | State::Running { .. } | State::Paused { .. } | State::Suspending => {
            Step::Record(Event::StopBegun)
        }
        State::Stopping => stop(workspace, live),
        State::Deleting => Step::Delete,
    }
}

fn towards_running(
    workspace: &Workspace,
    observed: Option<&NodeView>,
    live: Option<&NodeView>,
    now: Timestamp,
) -> Step {
    let current = workspace.incarnation;
    // A ready guest the record may adopt as it is.
    let adoptable = live.filter(|view| {
        view.guest_is_ready()
            && view.incarnation >= current
            && view.incarnation > workspace.replace_through
    });
    match workspace.state {
        State::Stopping => stop(workspace, live),
        State::Provisioned | State::Stopped | State::Suspended | State::Failed(_) => {
            if let Some(view) = adoptable {
                return Step::Record(found(view, now));
            }
            let newest = observed.map_or(current, |view| view.incarnation.max(current));
            Step::Start { incarnation: newest.max(workspace.replace_through).next() }
        }
        State::Starting => {
            if current <= workspace.replace_through {
                return Step::Record(Event::StopBegun);
            }
            if let Some(view) = adoptable {
                return Step::Record(found(view, now));
            }
            match observed {
                // It did come up, and ended before control could see it.
                Some(view) if view.incarnation == current && view.end.is_some() => {
                    Step::Record(ended(view, current, now))
                }
                Some(_) | None => Step::Start { incarnation: current },
            }
        }
        State::Running { .. } | State::Paused { .. } | State::Suspending => {
            if current <= workspace.replace_through {
                return Step::Record(Event::StopBegun);
            }
            match observed {
                // Its memory was to go to disk; since then a running VM is wanted, and it runs.
                Some(view)
                    if workspace.state == State::Suspending
                        && view.incarnation == current
                        && view.guest_is_ready() =>
                {
                    Step::Record(found(view, now))
                }
                Some(view) if view.incarnation == current => {
                    if view.is_live() {
                        Step::Nothing
                    } else {
                        Step::Record(ended(view, current, now))
                    }
                }
                Some(view) if view.incarnation > current && view.guest_is_ready() => {
                    Step::Record(found(view, now))
                }
                Some(_) | None => Step::Record(lost(current, now)),
            }
        }
        State::Deleting => Step::Delete,
    }
}

fn found(view: &NodeView, now: Timestamp) -> Event {
    Event::VmFound(view.incarnation, view.ready_at.unwrap_or(now))
}

fn lost(incarnation: Incarnation, now: Timestamp) -> Event {
    let message = "the VM is no longer on its node";
    Event::VmCrashed(incarnation, Failure::new(FailureCode::VmLost, message, now))
}

fn ended(view: &NodeView, current: Incarnation, now: Timestamp) -> Event {
    match &view.end {
        Some(VmEnd::ByGuest) => Event::VmEnded(current),
        Some(VmEnd::Crashed { reason }) => Event::VmCrashed(
            current,
            Failure::new(FailureCode::VmCrashed, format!("the VM died: {reason}"), now),
        ),
        None => lost(current, now),
    }
}

#[cfg(test)]
mod tests;
