//! What to do next with one workspace, decided from its record and from what its node says.
//!
//! This function is everything the reconciler knows. It is used alike after a request, after a
//! report of the node, by the periodic comparison and when control starts, so that recovering from
//! a crash is no special case.

use crate::{
    Desired, Event, Failure, FailureCode, Incarnation, StartFrom, StartPath, State, Timestamp,
    Workspace,
};

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
    /// How it came to run, while it runs and that is known.
    pub start_path: Option<StartPath>,
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
        /// What it begins with.
        from: StartFrom,
    },
    /// Have the node stop the virtual CPUs of the VM of this start, then record it.
    Pause {
        /// The start.
        incarnation: Incarnation,
    },
    /// Have the node let the VM of this start run on, which cancels a suspension under way, then
    /// record it.
    Resume {
        /// The start.
        incarnation: Incarnation,
    },
    /// Record that the suspension begins (unless it is recorded already), then have the node save the
    /// memory of the VM of this start and record what came of it.
    Suspend {
        /// The start.
        incarnation: Incarnation,
    },
    /// Have the node stop every VM up to this incarnation, then record that it is stopped.
    Stop {
        /// The newest incarnation to stop.
        through: Incarnation,
    },
    /// See that the snapshot before the deletion is taken, or given up, and record which.
    TakeFinalSnapshot,
    /// Have the node remove everything, then remove the record.
    Delete,
    /// Record this and decide again.
    Record(Event),
    /// The workspace is as it should be, or the node is at work on it and will report.
    Nothing,
}

/// Decides the next step. `observed` is what the node says of the workspace now; `None` when it has
/// nothing of it. Pure and total; repeated application reaches [`Step::Nothing`],
/// [`Step::TakeFinalSnapshot`] or [`Step::Delete`] if the node obeys.
#[must_use]
pub fn next_step(workspace: &Workspace, observed: Option<&NodeView>, now: Timestamp) -> Step {
    let live = observed.filter(|view| view.is_live());
    if let State::Deleting = workspace.state {
        return Step::Delete;
    }
    match workspace.desired {
        Desired::Deleted => towards_deleted(workspace, live),
        Desired::Stopped => towards_stopped(workspace, live),
        Desired::Running => towards_running(workspace, observed, live, now),
        Desired::Paused => towards_rest(workspace, observed, live, now, Aim::Paused),
        Desired::Suspended => towards_rest(workspace, observed, live, now, Aim::Suspended),
    }
}

/// What a VM that is there should be.
#[derive(Clone, Copy)]
enum Aim {
    Running,
    Paused,
    Suspended,
}

fn stop(workspace: &Workspace, live: Option<&NodeView>) -> Step {
    let newest = live.map_or(workspace.incarnation, |view| view.incarnation);
    Step::Stop { through: newest.max(workspace.incarnation) }
}

fn towards_deleted(workspace: &Workspace, live: Option<&NodeView>) -> Step {
    if !workspace.awaits_final_snapshot() {
        return Step::Record(Event::DeleteBegun);
    }
    match workspace.state {
        // What is neither up nor down is brought down: its disk is what the snapshot is of.
        State::Starting | State::Suspending | State::Stopping => towards_stopped(workspace, live),
        State::Provisioned
        | State::Running { .. }
        | State::Paused { .. }
        | State::Suspended
        | State::Stopped
        | State::Failed(_) => Step::TakeFinalSnapshot,
        State::Deleting => Step::Delete,
    }
}

fn towards_stopped(workspace: &Workspace, live: Option<&NodeView>) -> Step {
    match workspace.state {
        State::Provisioned | State::Stopped | State::Failed(_) => {
            if live.is_some() {
                stop(workspace, live)
            } else {
                Step::Nothing
            }
        }
        State::Starting
        | State::Running { .. }
        | State::Paused { .. }
        | State::Suspending
        | State::Suspended => Step::Record(Event::StopBegun),
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
    let adoptable = adoptable(workspace, live);
    match workspace.state {
        State::Stopping => stop(workspace, live),
        State::Provisioned | State::Stopped | State::Suspended | State::Failed(_) => {
            if let Some(view) = adoptable {
                return Step::Record(found(view, now));
            }
            // The restart policy has it wait. Its timer rings when that is over.
            if workspace.lifecycle.restart_at.is_some_and(|at| at > now) {
                return live.map_or(Step::Nothing, |_| stop(workspace, live));
            }
            let newest = observed.map_or(current, |view| view.incarnation.max(current));
            let incarnation = newest.max(workspace.replace_through).next();
            Step::Start { incarnation, from: workspace.lifecycle.start_from }
        }
        State::Starting => starting(workspace, observed, adoptable, now),
        State::Running { .. } | State::Paused { .. } | State::Suspending => {
            if current <= workspace.replace_through {
                return Step::Record(Event::StopBegun);
            }
            with_vm(workspace, observed, now, Aim::Running)
        }
        State::Deleting => Step::Delete,
    }
}

/// Towards a pause or a suspension. No VM is made for it: one that is gone stays gone.
fn towards_rest(
    workspace: &Workspace,
    observed: Option<&NodeView>,
    live: Option<&NodeView>,
    now: Timestamp,
    aim: Aim,
) -> Step {
    match workspace.state {
        State::Stopping => stop(workspace, live),
        State::Starting => starting(workspace, observed, adoptable(workspace, live), now),
        State::Running { .. } | State::Paused { .. } | State::Suspending => {
            with_vm(workspace, observed, now, aim)
        }
        State::Provisioned | State::Stopped | State::Suspended | State::Failed(_) => {
            match (adoptable(workspace, live), live) {
                (Some(view), _) => Step::Record(found(view, now)),
                // Only what is older: the memory that is saved belongs to the current start.
                (None, Some(view)) if view.incarnation < workspace.incarnation => {
                    Step::Stop { through: view.incarnation }
                }
                (None, Some(_) | None) => Step::Nothing,
            }
        }
        State::Deleting => Step::Delete,
    }
}

/// A ready guest the record may adopt as it is.
fn adoptable<'a>(workspace: &Workspace, live: Option<&'a NodeView>) -> Option<&'a NodeView> {
    live.filter(|view| {
        view.guest_is_ready()
            && view.incarnation >= workspace.incarnation
            && view.incarnation > workspace.replace_through
    })
}

fn starting(
    workspace: &Workspace,
    observed: Option<&NodeView>,
    adoptable: Option<&NodeView>,
    now: Timestamp,
) -> Step {
    let current = workspace.incarnation;
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
        Some(_) | None => {
            Step::Start { incarnation: current, from: workspace.lifecycle.start_from }
        }
    }
}

/// The next step with a VM that is, or should be, there.
fn with_vm(workspace: &Workspace, observed: Option<&NodeView>, now: Timestamp, aim: Aim) -> Step {
    let incarnation = workspace.incarnation;
    let view = match observed {
        Some(view) if view.incarnation == incarnation => view,
        Some(view) if view.incarnation > incarnation && view.guest_is_ready() => {
            return Step::Record(found(view, now));
        }
        Some(_) | None => return Step::Record(lost(incarnation, now)),
    };
    let ready_at = view.ready_at.unwrap_or(now);
    let is_suspending = workspace.state == State::Suspending;
    let is_paused = matches!(workspace.state, State::Paused { .. });
    match (view.phase, aim) {
        (VmViewPhase::Stopped, _) => Step::Record(ended(view, incarnation, now)),
        (VmViewPhase::Suspended, _) => Step::Record(Event::VmSuspended(incarnation)),
        (VmViewPhase::Starting | VmViewPhase::Stopping, _) => Step::Nothing,
        (VmViewPhase::Running, Aim::Running) if is_suspending || is_paused => {
            Step::Record(Event::VmResumed(incarnation, ready_at))
        }
        (VmViewPhase::Running, Aim::Running) => Step::Nothing,
        (VmViewPhase::Running, Aim::Paused) if is_suspending => {
            Step::Record(Event::VmResumed(incarnation, ready_at))
        }
        (VmViewPhase::Running, Aim::Paused) => Step::Pause { incarnation },
        (VmViewPhase::Paused, Aim::Paused) if is_paused => Step::Nothing,
        (VmViewPhase::Paused, Aim::Paused) => Step::Record(Event::VmPaused(incarnation, ready_at)),
        (VmViewPhase::Paused, Aim::Running)
        | (VmViewPhase::Suspending, Aim::Running | Aim::Paused) => Step::Resume { incarnation },
        (VmViewPhase::Running | VmViewPhase::Paused | VmViewPhase::Suspending, Aim::Suspended) => {
            Step::Suspend { incarnation }
        }
    }
}

fn found(view: &NodeView, now: Timestamp) -> Event {
    Event::VmFound(view.incarnation, view.ready_at.unwrap_or(now), view.start_path)
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
