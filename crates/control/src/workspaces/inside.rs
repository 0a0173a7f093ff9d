//! The inside of a workspace. Control hands out the handle; the bytes do not pass through it.

use std::sync::Arc;

use skerry_internal_api::{ByteStream, GuestApi, GuestStats, LogSource};
use skerry_model::{Cause, Desired, ErrorKind, State, Wish, Workspace};

use super::{ConditionalWish, Wait, WorkspaceRef};
use crate::{Caller, Control, Error, activity::ActiveGuest, control::Inner};

impl Control {
    /// The inside of a running workspace: exec, files, ports. Using it counts as activity, and a
    /// command or stream that is open holds the idle timer.
    ///
    /// A workspace that may be woken ([`Workspace::wakes_on_use`]) is, and one that is waking already is
    /// waited for, at most as long as configured; many callers cause one wake.
    ///
    /// # Errors
    /// `NotFound`; `RefusedByState` unless it runs or wakes; `Quota` (running pool), `Timeout` and
    /// `Unavailable` when it cannot be woken.
    pub async fn guest(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Arc<dyn GuestApi>, Error> {
        let workspace = self.inner.find(caller, which).await?;
        Ok(self.inner.entered(caller, workspace).await?.0)
    }

    /// Resource use as the guest sees it. Looking is no activity and wakes nobody.
    ///
    /// # Errors
    /// `NotFound`, `RefusedByState` unless running.
    pub async fn workspace_stats(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<GuestStats, Error> {
        let inner = &self.inner;
        let workspace = inner.find(caller, which).await?;
        must_run(&workspace)?;
        let guest = inner.bounded("guest", inner.node.guest(workspace.id)).await??;
        Ok(inner.bounded("stats", guest.stats()).await??)
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

/// Whether whoever uses it has it woken, or waits for that.
fn sleeps(workspace: &Workspace) -> bool {
    workspace.wakes_on_use() || is_waking(workspace)
}

/// Whether it is on its way to running again, and is one whose users wait for that.
fn is_waking(workspace: &Workspace) -> bool {
    workspace.spec.auto_resume
        && workspace.desired == Desired::Running
        && match workspace.state {
            State::Starting
            | State::Paused { .. }
            | State::Suspending
            | State::Suspended
            | State::Stopping
            | State::Stopped => true,
            State::Provisioned | State::Running { .. } | State::Failed(_) | State::Deleting => {
                false
            }
        }
}

fn must_run(workspace: &Workspace) -> Result<(), Error> {
    match &workspace.state {
        State::Running { .. } => Ok(()),
        State::Provisioned
        | State::Starting
        | State::Paused { .. }
        | State::Suspending
        | State::Suspended
        | State::Stopping
        | State::Stopped
        | State::Failed(_)
        | State::Deleting => Err(ErrorKind::RefusedByState {
            state: workspace.state.name(),
            reason: "the workspace must be running".to_owned(),
        }
        .into()),
    }
}

impl Inner {
    /// The inside of a workspace of the caller's, and whether that was woken for it or waited for.
    pub(crate) async fn entered(
        self: &Arc<Self>,
        caller: &Caller,
        mut workspace: Workspace,
    ) -> Result<(Arc<dyn GuestApi>, bool), Error> {
        let sleeps = sleeps(&workspace);
        if sleeps {
            workspace = self.woken(caller, &workspace).await?;
        }
        Ok((self.inside_of(&workspace).await?, sleeps))
    }

    /// The same for somebody who visits one of its ports: whose account it is matters only to a
    /// workspace that has to be woken, and is asked only then.
    pub(crate) async fn entered_by_visitor(
        self: &Arc<Self>,
        workspace: Workspace,
    ) -> Result<(Arc<dyn GuestApi>, bool), Error> {
        if sleeps(&workspace) {
            let tenant = self.store.tenant(workspace.account_id).await?;
            let tenant = tenant.ok_or_else(|| Error::internal("a workspace without an account"))?;
            return self.entered(&Caller::of(tenant), workspace).await;
        }
        Ok((self.inside_of(&workspace).await?, false))
    }

    async fn inside_of(
        self: &Arc<Self>,
        workspace: &Workspace,
    ) -> Result<Arc<dyn GuestApi>, Error> {
        must_run(workspace)?;
        let guest = self.bounded("guest", self.node.guest(workspace.id)).await??;
        self.note_activity(workspace);
        let env = self.env_of_vaults(workspace).await?;
        Ok(Arc::new(ActiveGuest::new(guest, Arc::clone(self), workspace.id, env)))
    }

    /// Wakes a workspace for somebody who uses its inside; answers it once it has settled.
    async fn woken(
        self: &Arc<Self>,
        caller: &Caller,
        workspace: &Workspace,
    ) -> Result<Workspace, Error> {
        let which = WorkspaceRef::Id(workspace.id);
        let sleeps = Workspace::wakes_on_use;
        let wished = self.wish_if(caller, &which, Wish::Start, Cause::AutoResume, sleeps).await?;
        let (ConditionalWish::Recorded(now) | ConditionalWish::NotMet(now)) = wished;
        let woken = self.until_settled(now, Wait::UpTo(self.config.wake_timeout)).await?;
        match &woken.state {
            State::Failed(failure) => {
                let why = format!("the workspace could not be woken: {}", failure.message);
                Err(ErrorKind::Unavailable(why).into())
            }
            _ if woken.is_settled() => Ok(woken),
            _ => Err(ErrorKind::Timeout("waking the workspace".to_owned()).into()),
        }
    }
}
