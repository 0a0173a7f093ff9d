//! The record of a workspace.

use crate::{
    AccountId, Desired, DisplayName, Event, ExpiryAction, Incarnation, NodeId, ProjectId, Refusal,
    Secret, Slug, State, Timestamp, Transition, WorkspaceId, WorkspaceSpec, transition,
};

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
    /// When the workspace expires, by `spec.expiry`; set each time it becomes running.
    pub expires_at: Option<Timestamp>,
    /// Grants access to previews of the workspace's ports: 32 characters of `[a-z0-9]`.
    pub preview_token: Secret,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When the record last changed.
    pub updated_at: Timestamp,
    /// Counts the writes of this record; a write with a stale number is refused.
    pub revision: u64,
}

/// What a request wants a workspace to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A VM runs.
    Start,
    /// No VM.
    Stop,
    /// A VM runs that began after now.
    Restart,
    /// Nothing is left.
    Delete,
}

impl Workspace {
    /// Applies something that happened. The record changes only when the answer is
    /// [`Transition::Moved`].
    pub fn apply(&mut self, event: &Event, now: Timestamp) -> Transition {
        let outcome = transition(&self.state, self.incarnation, event);
        let Transition::Moved(moved) = &outcome else { return outcome };
        self.state = moved.next.clone();
        self.incarnation = moved.incarnation;
        if let Some(desired) = moved.desired {
            self.desired = desired;
        }
        match &mut self.state {
            State::Starting => {
                self.start_began_at = Some(now);
                self.expires_at = None;
            }
            State::Running { since } => {
                self.failed_starts = 0;
                self.expires_at = self.spec.expiry.map(|expiry| expiry.end_after(*since));
            }
            State::Failed(failure) => {
                match event {
                    Event::StartFailed(..) => self.failed_starts += 1,
                    Event::StartBegun(_)
                    | Event::GuestReady(..)
                    | Event::VmFound(..)
                    | Event::StopBegun
                    | Event::VmStopped(_)
                    | Event::VmEnded(_)
                    | Event::VmCrashed(..)
                    | Event::DeleteBegun => {}
                }
                failure.attempts = self.failed_starts;
                self.expires_at = None;
            }
            State::Provisioned
            | State::Suspending
            | State::Suspended
            | State::Stopping
            | State::Stopped
            | State::Deleting => self.expires_at = None,
            State::Paused { .. } => {}
        }
        outcome
    }

    /// Records a wish: what is desired from now on, and the state that follows at once. Returns
    /// whether anything changed.
    ///
    /// # Errors
    /// [`Refusal::BeingDeleted`] for everything but a deletion once one was wished for.
    pub fn wish(&mut self, wish: Wish, now: Timestamp) -> Result<bool, Refusal> {
        let deleted = self.desired == Desired::Deleted || self.state == State::Deleting;
        let before = self.clone();
        match wish {
            Wish::Delete => {
                self.apply(&Event::DeleteBegun, now);
                self.desired = Desired::Deleted;
            }
            Wish::Start | Wish::Stop | Wish::Restart if deleted => {
                return Err(Refusal::BeingDeleted);
            }
            Wish::Start => self.desired = Desired::Running,
            Wish::Stop => {
                self.desired = Desired::Stopped;
                self.apply(&Event::StopBegun, now);
            }
            Wish::Restart => {
                self.desired = Desired::Running;
                self.replace_through = self.incarnation;
                if self.state.has_vm() {
                    self.apply(&Event::StopBegun, now);
                }
            }
        }
        Ok(*self != before)
    }

    /// What is to be wished for because the time to live is over; `None` while it is not.
    #[must_use]
    pub fn expired(&self, now: Timestamp) -> Option<Wish> {
        let over = self.expires_at.is_some_and(|end| end <= now);
        let expiry = self.spec.expiry.filter(|_| over && self.desired == Desired::Running)?;
        Some(match expiry.action {
            ExpiryAction::Stop => Wish::Stop,
            ExpiryAction::Delete => Wish::Delete,
        })
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
            Desired::Stopped => !self.state.has_vm() && self.state != State::Deleting,
            Desired::Running => {
                let guest_is_ready =
                    matches!(self.state, State::Running { .. } | State::Paused { .. });
                guest_is_ready && self.incarnation > self.replace_through
            }
        }
    }
}

#[cfg(test)]
#[path = "workspace_tests.rs"]
mod tests;
