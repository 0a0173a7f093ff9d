//! Pausing, suspending and resuming.

use skerry_model::{Desired, ErrorKind, State, Wish, Workspace};

use super::{Wait, WorkspaceRef};
use crate::{Caller, Control, Error};

impl Control {
    /// Stops a running workspace's virtual CPUs; memory stays resident. One that is paused already is
    /// a success.
    ///
    /// # Errors
    /// `NotFound`; `RefusedByState` unless it runs or is paused; `Unavailable` when it was waited for
    /// and could not be done: the workspace then runs as before, and
    /// [`skerry_model::Lifecycle::rest_failure`] says why.
    pub async fn pause_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wait: Wait,
    ) -> Result<Workspace, Error> {
        self.rest(caller, which, Wish::Pause, wait).await
    }

    /// Writes a running or paused workspace's memory to disk and ends its VM; the next start goes on
    /// where it was. One that is suspended already is a success. A resume, start, stop or deletion
    /// asked for meanwhile cancels it.
    ///
    /// # Errors
    /// `NotFound`; `RefusedByState` unless it runs, is paused, or is being suspended; `Unavailable`
    /// as for [`Control::pause_workspace`].
    pub async fn suspend_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wait: Wait,
    ) -> Result<Workspace, Error> {
        self.rest(caller, which, Wish::Suspend, wait).await
    }

    /// Lets a paused, suspended or being suspended workspace go on where it was. One that runs is a
    /// success. From saved memory this is a new start with a new incarnation; saved memory that
    /// cannot be used makes the workspace failed with code `saved_state_unusable` (a stop then
    /// discards it, and a start boots).
    ///
    /// # Errors
    /// `NotFound`; `Quota` (running pool); `RefusedByState` where there is nothing to go on with:
    /// [`Control::start_workspace`] is for any state.
    pub async fn resume_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wait: Wait,
    ) -> Result<Workspace, Error> {
        let wished = self.inner.wish(caller, which, Wish::Resume).await?;
        self.inner.until_settled(wished, wait).await
    }

    async fn rest(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wish: Wish,
        wait: Wait,
    ) -> Result<Workspace, Error> {
        let wished = self.inner.wish(caller, which, wish).await?;
        let settled = self.inner.until_settled(wished, wait).await?;
        let runs = matches!(settled.state, State::Running { .. } | State::Paused { .. });
        match &settled.lifecycle.rest_failure {
            Some(failure) if runs && settled.desired != Desired::Suspended => {
                Err(ErrorKind::Unavailable(failure.message.clone()).into())
            }
            Some(_) | None => Ok(settled),
        }
    }
}
