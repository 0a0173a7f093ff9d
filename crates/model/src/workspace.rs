//! The record of a workspace.

mod timers;
mod wish;

use crate::{
    AccountId, Cause, Desired, DisplayName, Event, Failure, FailureCode, FinalSnapshot,
    Incarnation, LastEnd, Lifecycle, NodeId, Origin, PrivateAddress, ProjectId, RestartMode,
    RestartPolicy, Secret, Slug, SnapshotContents, SnapshotId, StartFrom, State, Timestamp,
    Transition, WorkspaceId, WorkspaceSpec, lifecycle::after, transition,
};

pub use wish::{AfterRestore, Wish};

/// How long after a failed one a rule tries again to pause or suspend: a minute.
const REST_RETRY_SECONDS: u32 = 60;

/// Everything known of a workspace. `control::store` is the only writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// Its identity; dialects render it in their own form.
    pub id: WorkspaceId,
    /// Who owns it.
    pub account_id: AccountId,
    /// The project it belongs to; every account has a default one.
    pub project_id: ProjectId,
    /// A tenant's own grouping word (Oblien's namespace): `[A-Za-z0-9-]`, 1 to 63 characters.
    pub namespace: Option<String>,
    /// The name for people. Not unique.
    pub name: DisplayName,
    /// The name for addresses: unique within the installation.
    pub slug: Slug,
    /// What was asked for.
    pub spec: WorkspaceSpec,
    /// What it should be.
    pub desired: Desired,
    /// What it is.
    pub state: State,
    /// Which start the state speaks of.
    pub incarnation: Incarnation,
    /// A running VM of this incarnation or an older one does not satisfy `Desired::Running`:
    /// set by a restart to the incarnation it must replace.
    pub replace_through: Incarnation,
    /// How many starts in a row have failed.
    pub failed_starts: u32,
    /// When the current or last start began.
    pub start_began_at: Option<Timestamp>,
    /// The node it is placed on, once it was started.
    pub node_id: Option<NodeId>,
    /// Under which address others see it, as its node said last; it has it as long as it exists.
    pub private_address: Option<PrivateAddress>,
    /// When the workspace expires, by `spec.expiry` or as it was renewed; set each time it becomes
    /// running, kept while it is paused.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, as far as that is recorded: use is recorded coarsely. Set each time it
    /// becomes running.
    pub last_active_at: Option<Timestamp>,
    /// What the rules of its life remember.
    pub lifecycle: Lifecycle,
    /// Grants access to previews of the workspace's ports: 32 characters of `[a-z0-9]`.
    pub preview_token: Secret,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When the record last changed.
    pub updated_at: Timestamp,
    /// Counts the writes of this record; a write with a stale number is refused.
    pub revision: u64,
}

impl Workspace {
    /// Applies something that happened. The record changes only when the answer is
    /// [`Transition::Moved`].
    pub fn apply(&mut self, event: &Event, now: Timestamp) -> Transition {
        let outcome = transition(&self.state, self.incarnation, event);
        let Transition::Moved(moved) = &outcome else { return outcome };
        let before = std::mem::replace(&mut self.state, moved.next.clone());
        self.incarnation = moved.incarnation;
        self.remember_move(&before, event, now);
        if let Some(desired) = moved.desired {
            self.follow(desired, &before, event, now);
        }
        outcome
    }

    /// What a change of state means for everything beside it.
    fn remember_move(&mut self, before: &State, event: &Event, now: Timestamp) {
        match &mut self.state {
            State::Starting => {
                self.start_began_at = Some(now);
                self.expires_at = None;
                self.lifecycle.start_path = None;
                self.lifecycle.resting_since = None;
                self.lifecycle.restart_at = None;
                self.lifecycle.rest_failure = None;
            }
            State::Running { since } => {
                // A time to live begins with the guest's being ready, or with the moment a VM goes
                // on whose time was over.
                let begins = if *before == State::Starting { *since } else { now };
                let expiry = self.spec.expiry;
                self.expires_at =
                    self.expires_at.or_else(|| expiry.map(|expiry| expiry.end_after(begins)));
                self.last_active_at = Some(now);
                self.failed_starts = 0;
                self.lifecycle.has_disk = true;
                self.lifecycle.start_from = StartFrom::Disk;
                if let Event::GuestReady(_, _, path) | Event::VmFound(_, _, path) = event {
                    self.lifecycle.start_path = *path;
                }
                self.lifecycle.resting_since = None;
                self.lifecycle.restart_at = None;
            }
            State::Paused { .. } => self.lifecycle.resting_since = Some(now),
            State::Suspending => {}
            State::Suspended => {
                self.expires_at = None;
                self.lifecycle.resting_since = Some(now);
                self.lifecycle.start_from = StartFrom::SavedMemory;
                self.lifecycle.last_end =
                    Some(LastEnd { cause: self.lifecycle.desired_by, at: now });
            }
            State::Failed(failure) => {
                if let Event::StartFailed(..) = event {
                    self.failed_starts += 1;
                }
                failure.attempts = self.failed_starts;
                self.expires_at = None;
                self.remember_end(before, event, now);
            }
            State::Stopped => {
                self.expires_at = None;
                self.remember_end(before, event, now);
                // Stopping discards saved memory on the node.
                if self.lifecycle.start_from == StartFrom::SavedMemory {
                    self.lifecycle.start_from = StartFrom::Disk;
                }
            }
            State::Stopping | State::Deleting => {
                self.expires_at = None;
                self.lifecycle.restart_at = None;
            }
            State::Provisioned => {}
        }
    }

    fn remember_end(&mut self, before: &State, event: &Event, now: Timestamp) {
        let cause = match event {
            Event::VmStopped(_) => self.lifecycle.desired_by,
            Event::VmEnded(_) | Event::VmCrashed(..) | Event::StartFailed(..) => {
                // A VM that ends while it is being stopped ends because of that.
                if *before == State::Stopping { self.lifecycle.desired_by } else { own_end(event) }
            }
            Event::StartBegun(_)
            | Event::GuestReady(..)
            | Event::VmFound(..)
            | Event::VmPaused(..)
            | Event::VmResumed(..)
            | Event::SuspendBegun(_)
            | Event::VmSuspended(_)
            | Event::RestFailed(..)
            | Event::StopBegun
            | Event::DeleteBegun => return,
        };
        self.lifecycle.last_end = Some(LastEnd { cause, at: now });
        self.lifecycle.resting_since = None;
        if let (State::Starting, Event::VmEnded(_) | Event::VmCrashed(..)) = (before, event) {
            // It did come up, so what it began with is used up.
            self.lifecycle.has_disk = true;
            self.lifecycle.start_from = StartFrom::Disk;
        }
    }

    /// Takes over what an event says is desired from now on, or what the rules make of it. A deletion
    /// that was wished for stays wished for.
    fn follow(&mut self, desired: Desired, before: &State, event: &Event, now: Timestamp) {
        match event {
            Event::DeleteBegun => self.desired = Desired::Deleted,
            Event::RestFailed(_, _, failure) => {
                if let Desired::Paused | Desired::Suspended = self.desired {
                    self.retry_rest_later(now);
                    self.desired = desired;
                    self.lifecycle.rest_failure = Some(failure.clone());
                }
            }
            Event::VmEnded(_) | Event::VmCrashed(..) | Event::StartFailed(..) => {
                if self.desired != Desired::Deleted {
                    self.after_own_end(desired, before, event, now);
                }
            }
            Event::StartBegun(_)
            | Event::GuestReady(..)
            | Event::VmFound(..)
            | Event::VmPaused(..)
            | Event::VmResumed(..)
            | Event::SuspendBegun(_)
            | Event::VmSuspended(_)
            | Event::StopBegun
            | Event::VmStopped(_) => self.desired = desired,
        }
    }

    /// A rule whose pause or suspension failed tries again: nobody else would.
    fn retry_rest_later(&mut self, now: Timestamp) {
        match self.lifecycle.desired_by {
            Cause::Expiry => self.expires_at = Some(after(now, REST_RETRY_SECONDS)),
            Cause::Idle => self.last_active_at = Some(now),
            Cause::User
            | Cause::Operator
            | Cause::AutoResume
            | Cause::RestartPolicy
            | Cause::RemoveOnExit
            | Cause::GuestExit
            | Cause::Crash
            | Cause::Lost
            | Cause::StartFailed => {}
        }
    }

    /// What follows when a VM ended without being asked: it is removed, started again or left.
    fn after_own_end(&mut self, left: Desired, before: &State, event: &Event, now: Timestamp) {
        let cause = own_end(event);
        let exited = match cause {
            Cause::GuestExit | Cause::Crash => true,
            Cause::User
            | Cause::Operator
            | Cause::Expiry
            | Cause::Idle
            | Cause::AutoResume
            | Cause::RestartPolicy
            | Cause::RemoveOnExit
            | Cause::Lost
            | Cause::StartFailed => false,
        };
        if exited && self.spec.remove_on_exit {
            self.desired = Desired::Deleted;
            self.lifecycle.desired_by = Cause::RemoveOnExit;
            return;
        }
        if let State::Running { since } | State::Paused { since } = before
            && now.duration_since(*since).as_secs() >= RestartPolicy::STEADY_SECONDS
        {
            self.lifecycle.restart_count = 0;
        }
        // One that was to rest is not brought back up.
        if self.desired == Desired::Running && self.restarts_after(cause, event) {
            self.lifecycle.restart_count = self.lifecycle.restart_count.saturating_add(1);
            let pause = self.spec.restart.backoff.seconds_before(self.lifecycle.restart_count);
            self.lifecycle.restart_at = Some(after(now, pause));
            self.desired = Desired::Running;
            self.lifecycle.desired_by = Cause::RestartPolicy;
            return;
        }
        self.desired = left;
        self.lifecycle.desired_by = cause;
    }

    fn restarts_after(&self, cause: Cause, event: &Event) -> bool {
        let policy = self.spec.restart;
        let count = self.lifecycle.restart_count;
        if policy.max_restarts != 0 && count >= policy.max_restarts {
            return false;
        }
        match (policy.mode, cause) {
            (RestartMode::Never, _) => false,
            // Only a start that the policy made itself.
            (RestartMode::OnFailure | RestartMode::Always, Cause::StartFailed) => {
                let retryable = match event {
                    Event::StartFailed(_, failure) => failure.retryable,
                    _ => false,
                };
                count > 0 && retryable
            }
            (RestartMode::OnFailure | RestartMode::Always, Cause::Crash | Cause::Lost)
            | (RestartMode::Always, Cause::GuestExit) => true,
            (RestartMode::OnFailure | RestartMode::Always, _) => false,
        }
    }

    /// Whether the workspace has a disk with something on it.
    #[must_use]
    pub fn owns_disk(&self) -> bool {
        // Older records do not say; all of theirs are made from images, by their first start.
        self.lifecycle.has_disk
            || (self.spec.origin == Origin::Image && self.incarnation > Incarnation::default())
    }

    /// The snapshot that it cannot start without.
    #[must_use]
    pub fn needed_snapshot(&self) -> Option<SnapshotId> {
        // What is being deleted starts no more.
        if self.desired == Desired::Deleted || self.state == State::Deleting {
            return None;
        }
        self.lifecycle.start_from.snapshot_id()
    }

    /// Whether a deletion has to take, or is taking, a snapshot first.
    #[must_use]
    pub fn awaits_final_snapshot(&self) -> bool {
        let settled = match self.lifecycle.final_snapshot {
            FinalSnapshot::NotBegun | FinalSnapshot::Begun { .. } => false,
            FinalSnapshot::Settled => true,
        };
        self.spec.snapshot_on_terminate.is_some()
            && !settled
            && self.owns_disk()
            && self.state != State::Deleting
    }

    /// What the snapshot before the deletion has to contain, as the state permits.
    #[must_use]
    pub fn final_snapshot_contents(&self) -> Option<SnapshotContents> {
        let asked = self.spec.snapshot_on_terminate.as_ref()?.contents;
        Some(match self.state {
            State::Running { .. } | State::Paused { .. } => asked,
            State::Provisioned
            | State::Starting
            | State::Suspending
            | State::Suspended
            | State::Stopping
            | State::Stopped
            | State::Failed(_)
            | State::Deleting => SnapshotContents::Disk,
        })
    }

    /// Records that the snapshot before the deletion is there, or why it is not. See
    /// [`crate::SnapshotOnTerminate`] for what then follows.
    pub fn settle_final_snapshot(&mut self, outcome: Result<(), &Failure>, now: Timestamp) {
        if self.desired != Desired::Deleted || self.state == State::Deleting {
            return;
        }
        if outcome.is_ok() || self.lifecycle.desired_by.is_attended() {
            self.lifecycle.final_snapshot = FinalSnapshot::Settled;
            self.apply(&Event::DeleteBegun, now);
        } else {
            self.lifecycle.final_snapshot = FinalSnapshot::NotBegun;
            self.desired = Desired::Stopped;
            self.apply(&Event::StopBegun, now);
        }
    }

    /// Whether using its inside wakes it: it may be woken, and sleeps or is going to.
    #[must_use]
    pub fn wakes_on_use(&self) -> bool {
        self.spec.auto_resume
            && match self.desired {
                Desired::Paused | Desired::Suspended => {
                    self.state.has_vm() || self.state == State::Suspended
                }
                Desired::Stopped => {
                    self.lifecycle.desired_by == Cause::Idle
                        && matches!(self.state, State::Stopping | State::Stopped)
                }
                Desired::Running | Desired::Deleted => false,
            }
    }

    /// Whether its size counts against the running pool: it has a VM or is to have one.
    #[must_use]
    pub fn counts_as_running(&self) -> bool {
        self.state.has_vm() || self.desired == Desired::Running
    }

    /// Whether nothing is left to wait for: the state is what is desired, or the wish was given up
    /// because a start failed. A workspace being deleted is never settled; its record goes away.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        match self.desired {
            Desired::Deleted => false,
            Desired::Stopped => {
                let saved = self.state == State::Suspended;
                !self.state.has_vm() && !saved && self.state != State::Deleting
            }
            Desired::Running => {
                let runs = matches!(self.state, State::Running { .. });
                runs && self.incarnation > self.replace_through
            }
            Desired::Paused => {
                let paused = matches!(self.state, State::Paused { .. });
                (paused || !self.state.has_vm()) && self.state != State::Deleting
            }
            Desired::Suspended => !self.state.has_vm() && self.state != State::Deleting,
        }
    }
}

/// Why a VM ended that was not asked to.
fn own_end(event: &Event) -> Cause {
    match event {
        Event::VmEnded(_) => Cause::GuestExit,
        Event::VmCrashed(_, failure) if failure.code == FailureCode::VmLost.as_str() => Cause::Lost,
        Event::VmCrashed(..) => Cause::Crash,
        Event::StartFailed(..) => Cause::StartFailed,
        Event::StartBegun(_)
        | Event::GuestReady(..)
        | Event::VmFound(..)
        | Event::VmPaused(..)
        | Event::VmResumed(..)
        | Event::SuspendBegun(_)
        | Event::VmSuspended(_)
        | Event::RestFailed(..)
        | Event::StopBegun
        | Event::VmStopped(_)
        | Event::DeleteBegun => Cause::User,
    }
}

#[cfg(test)]
#[path = "workspace_tests.rs"]
mod tests;
