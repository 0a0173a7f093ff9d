//! Wishes: what may be asked of a workspace, and what follows at once.

use crate::{Cause, Desired, Event, Refusal, SnapshotId, StartFrom, State, Timestamp, Workspace};

/// What a request, or a rule, wants a workspace to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A VM runs; one that is paused or suspended goes on where it was.
    Start,
    /// A VM that is paused, suspended or being suspended goes on where it was. Refused where there is
    /// none.
    Resume,
    /// The virtual CPUs stand still; memory stays resident. Refused where no guest is ready.
    Pause,
    /// Memory goes to disk and the process ends. Refused where no guest is ready.
    Suspend,
    /// No VM; saved memory is discarded.
    Stop,
    /// A VM runs that began after now, booted; saved memory is discarded.
    Restart,
    /// Disk, and memory if it is in there, are those of a snapshot. What the workspace had is kept
    /// until that has succeeded; a [`Wish::Stop`] after it failed gives it up.
    Restore {
        /// Of which.
        snapshot_id: SnapshotId,
        /// What comes after it.
        then: AfterRestore,
    },
    /// Nothing is left, except a snapshot if the workspace is to leave one.
    Delete,
}

/// What a workspace is after a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterRestore {
    /// It runs.
    Run,
    /// It runs if it had, or was to have, a VM or saved memory; else its next start begins from the
    /// snapshot.
    AsBefore,
    /// It is stopped, without the memory it may have had at rest, and its next start begins from the
    /// snapshot. Refused while it runs or is to run.
    StayStopped,
}

impl Workspace {
    /// Records a wish: what is desired from now on, and the state that follows at once. Returns
    /// whether anything changed.
    ///
    /// # Errors
    /// [`Refusal::BeingDeleted`] for everything but a deletion once one was wished for. For a pause,
    /// resume or suspension, and a restore that leaves it stopped, why the workspace is not in a state
    /// for it.
    pub fn wish(&mut self, wish: Wish, by: Cause, now: Timestamp) -> Result<bool, Refusal> {
        let before = self.clone();
        match wish {
            Wish::Delete => {
                self.want(Desired::Deleted, by);
                self.lifecycle.restart_at = None;
                if !self.awaits_final_snapshot() {
                    self.apply(&Event::DeleteBegun, now);
                }
                return Ok(*self != before);
            }
            Wish::Start
            | Wish::Resume
            | Wish::Pause
            | Wish::Suspend
            | Wish::Stop
            | Wish::Restart
            | Wish::Restore { .. } => {
                if self.desired == Desired::Deleted || self.state == State::Deleting {
                    return Err(Refusal::BeingDeleted);
                }
            }
        }
        self.lifecycle.rest_failure = None;
        match wish {
            Wish::Start => self.want_running(by),
            Wish::Resume => {
                self.may_resume()?;
                self.want_running(by);
            }
            Wish::Pause => {
                self.may_rest(Desired::Paused)?;
                self.want(Desired::Paused, by);
            }
            Wish::Suspend => {
                self.may_rest(Desired::Suspended)?;
                self.want(Desired::Suspended, by);
            }
            Wish::Stop => {
                if let State::Failed(_) = self.state {
                    self.give_up_restore();
                }
                self.want(Desired::Stopped, by);
                self.lifecycle.restart_at = None;
                self.apply(&Event::StopBegun, now);
            }
            Wish::Restart => {
                self.give_up_restore();
                self.want_running(by);
                self.replace_vm(now);
            }
            Wish::Restore { snapshot_id, then } => self.restore(snapshot_id, then, by, now)?,
            Wish::Delete => {}
        }
        Ok(*self != before)
    }

    fn want(&mut self, desired: Desired, by: Cause) {
        if self.desired != desired {
            self.desired = desired;
            self.lifecycle.desired_by = by;
        }
    }

    /// A start that is asked for does not wait for the restart policy's pause, and ends its series.
    fn want_running(&mut self, by: Cause) {
        if self.desired != Desired::Running || self.lifecycle.restart_at.is_some() {
            self.lifecycle.restart_at = None;
            self.lifecycle.restart_count = 0;
            self.lifecycle.desired_by = by;
        }
        self.desired = Desired::Running;
    }

    fn may_resume(&self) -> Result<(), Refusal> {
        match self.state {
            State::Running { .. } | State::Paused { .. } | State::Suspending | State::Suspended => {
                Ok(())
            }
            // A resume from saved memory that is under way.
            State::Starting if self.lifecycle.start_from == StartFrom::SavedMemory => Ok(()),
            State::Starting => Err(Refusal::NotReady),
            State::Stopping => Err(Refusal::BeingStopped),
            State::Provisioned | State::Stopped | State::Failed(_) => Err(Refusal::NoVm),
            State::Deleting => Err(Refusal::BeingDeleted),
        }
    }

    fn may_rest(&self, rest: Desired) -> Result<(), Refusal> {
        match self.state {
            State::Running { .. } | State::Paused { .. } => Ok(()),
            State::Suspending | State::Suspended if rest == Desired::Suspended => Ok(()),
            State::Suspending => Err(Refusal::BeingSuspended),
            State::Starting => Err(Refusal::NotReady),
            State::Stopping => Err(Refusal::BeingStopped),
            State::Provisioned | State::Suspended | State::Stopped | State::Failed(_) => {
                Err(Refusal::NoVm)
            }
            State::Deleting => Err(Refusal::BeingDeleted),
        }
    }

    /// Forgets a restore that did not come about. A workspace that was made from a snapshot and has no
    /// disk yet has nothing else to begin with.
    fn give_up_restore(&mut self) {
        if self.lifecycle.start_from.snapshot_id().is_some() && self.owns_disk() {
            self.lifecycle.start_from = StartFrom::Disk;
        }
    }

    /// No VM of this incarnation satisfies what is desired any more, and no saved memory.
    fn replace_vm(&mut self, now: Timestamp) {
        self.replace_through = self.incarnation;
        if self.state.has_vm() || self.lifecycle.start_from == StartFrom::SavedMemory {
            self.apply(&Event::StopBegun, now);
        }
    }

    fn restore(
        &mut self,
        snapshot_id: SnapshotId,
        then: AfterRestore,
        by: Cause,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let lived = self.state.has_vm()
            || match self.desired {
                Desired::Running | Desired::Paused | Desired::Suspended => true,
                Desired::Stopped | Desired::Deleted => false,
            };
        let runs = match then {
            AfterRestore::Run => true,
            AfterRestore::AsBefore => lived,
            AfterRestore::StayStopped => {
                self.may_stay_stopped()?;
                self.want(Desired::Stopped, by);
                self.apply(&Event::StopBegun, now);
                false
            }
        };
        if runs {
            self.want_running(by);
        }
        self.replace_through = self.incarnation;
        // Asked to power off, not killed: if the restore fails, the old disk has everything.
        if self.state.has_vm() {
            self.apply(&Event::StopBegun, now);
        }
        self.lifecycle.start_from = StartFrom::Snapshot { snapshot_id };
        Ok(())
    }

    fn may_stay_stopped(&self) -> Result<(), Refusal> {
        if self.desired == Desired::Running {
            return Err(Refusal::VmPresent);
        }
        match self.state {
            State::Starting | State::Running { .. } | State::Suspending => Err(Refusal::VmPresent),
            State::Stopping => Err(Refusal::BeingStopped),
            State::Provisioned
            | State::Paused { .. }
            | State::Suspended
            | State::Stopped
            | State::Failed(_) => Ok(()),
            State::Deleting => Err(Refusal::BeingDeleted),
        }
    }
}
