//! The inside of a workspace. Control hands out the handle; the bytes do not pass through it.

use std::sync::Arc;

use skerry_internal_api::{ByteStream, GuestApi, GuestStats, LogSource};
use skerry_model::{ErrorKind, State};

use super::WorkspaceRef;
use crate::{Caller, Control, Error};

impl Control {
    /// The inside of a running workspace: exec, files, ports.
    ///
    /// # Errors
    /// `NotFound`, `RefusedByState` unless running.
    pub async fn guest(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Arc<dyn GuestApi>, Error> {
        let workspace = self.inner.find(caller, which).await?;
        match &workspace.state {
            State::Running { .. } => {}
            State::Provisioned
            | State::Starting
            | State::Paused { .. }
            | State::Suspending
            | State::Suspended
            | State::Stopping
            | State::Stopped
            | State::Failed(_)
            | State::Deleting => {
                return Err(ErrorKind::RefusedByState {
                    state: workspace.state.name(),
                    reason: "the workspace must be running".to_owned(),
                }
                .into());
            }
        }
        Ok(self.inner.bounded("guest", self.inner.node.guest(workspace.id)).await??)
    }

    /// Resource use as the guest sees it.
    ///
    /// # Errors
    /// As [`Control::guest`].
    pub async fn workspace_stats(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<GuestStats, Error> {
        let guest = self.guest(caller, which).await?;
        Ok(self.inner.bounded("stats", guest.stats()).await??)
    }

    /// The end of a log, in any state.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn workspace_log(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        source: LogSource,
        tail_bytes: u64,
    ) -> Result<ByteStream, Error> {
        let workspace = self.inner.find(caller, which).await?;
        let log = self.inner.node.log(workspace.id, source, tail_bytes);
        Ok(self.inner.bounded("log", log).await??)
    }
}
