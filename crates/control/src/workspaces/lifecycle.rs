//! The rules of a workspace's life, changed while it lives.

use std::sync::Arc;

use skerry_model::{
    Desired, DisplayName, ErrorKind, Expiry, ExpiryAction, IdlePolicy, Lifetime, Refusal,
    RestartPolicy, SnapshotOnTerminate, State, Timestamp, Workspace,
};

use super::{WorkspaceRef, wishes::refused};
use crate::{Caller, Control, Error};

/// What becomes of a setting that may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Setting<T> {
    /// It stays as it is.
    #[default]
    Keep,
    /// It is taken away.
    Clear,
    /// It is this from now on.
    To(T),
}

impl<T: Clone> Setting<T> {
    fn write_to(&self, setting: &mut Option<T>) {
        match self {
            Self::Keep => {}
            Self::Clear => *setting = None,
            Self::To(value) => *setting = Some(value.clone()),
        }
    }
}

/// Which rules to change; what is not named stays. They hold from now on, also for a VM that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LifecycleChange {
    /// Permanent or temporary.
    pub lifetime: Option<Lifetime>,
    /// Time to live. A new one begins now if the workspace has a VM that runs or is paused; without
    /// one the running time ends.
    pub expiry: Setting<Expiry>,
    /// What happens at the end of the time to live there is; its end stays. Not together with
    /// `expiry`.
    pub expiry_action: Option<ExpiryAction>,
    /// What happens when nobody uses it.
    pub idle: Setting<IdlePolicy>,
    /// What happens when its VM ends by itself. A restart that is waited for is given up when the new
    /// policy knows none.
    pub restart: Option<RestartPolicy>,
    /// It is deleted when its VM ends by itself.
    pub remove_on_exit: Option<bool>,
    /// A deletion takes a snapshot first.
    pub snapshot_on_terminate: Setting<SnapshotOnTerminate>,
    /// Using its inside wakes it.
    pub auto_resume: Option<bool>,
    /// Exempt from what the idle policy would do.
    pub keep_active: Option<bool>,
}

impl LifecycleChange {
    fn check(&self) -> Result<(), Error> {
        if let Setting::To(expiry) = self.expiry {
            expiry.check()?;
        }
        if self.expiry_action.is_some() && self.expiry != Setting::Keep {
            let problem = "is given together with expiry, which has its own";
            return Err(Error::invalid("expiry_action", problem, "one of the two"));
        }
        if let Setting::To(idle) = self.idle {
            idle.check()?;
        }
        if let Some(restart) = self.restart {
            restart.check()?;
        }
        if let Setting::To(last) = &self.snapshot_on_terminate {
            check_snapshot_on_terminate(last)?;
        }
        Ok(())
    }
}

/// Checks the name a snapshot before the deletion is to have.
pub(super) fn check_snapshot_on_terminate(asked: &SnapshotOnTerminate) -> Result<(), Error> {
    let Some(name) = &asked.name else { return Ok(()) };
    DisplayName::parse(name)
        .map(drop)
        .map_err(|invalid| Error::invalid("snapshot_name", invalid.problem, invalid.allowed))
}

/// How a time to live is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryRenewal {
    /// It begins anew now, with the length in the specification.
    Anew,
    /// It begins anew now with this length in seconds, this once.
    AnewFor(u32),
    /// It ends this many seconds later than it would.
    By(u32),
    /// It ends then.
    At(Timestamp),
}

impl Control {
    /// Changes the rules of a workspace's life.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (`expiry`, `expiry_action`, `idle`, `restart`, `snapshot_name`),
    /// `Conflict` for another action where there is no time to live, `RefusedByState` while it is
    /// deleted.
    pub async fn set_lifecycle(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        change: LifecycleChange,
    ) -> Result<Workspace, Error> {
        change.check()?;
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        self.inner
            .to_the_end(async move {
                let apply = |workspace: &mut Workspace, now| {
                    if workspace.desired == Desired::Deleted {
                        return Err(refused(Refusal::BeingDeleted));
                    }
                    if change.expiry_action.is_some() && workspace.spec.expiry.is_none() {
                        return Err(no_time_to_live());
                    }
                    apply(workspace, &change, now);
                    Ok(None)
                };
                let changed = inner.change(&caller, &which, apply).await?;
                inner.wake(changed.id);
                Ok(changed)
            })
            .await
    }

    /// Renews the time to live of a workspace that runs or is paused.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` (`expiry`) for a length of 0 or above a year, or an end that is over;
    /// `Conflict` when the workspace has no time to live; `RefusedByState` when none runs, which it
    /// does only while there is a VM.
    pub async fn extend_expiry(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        renewal: ExpiryRenewal,
    ) -> Result<Workspace, Error> {
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        self.inner
            .to_the_end(async move {
                let renew = |workspace: &mut Workspace, now| {
                    let end = renewed_end(workspace, renewal, now)?;
                    workspace.expires_at = Some(end);
                    Ok(None)
                };
                inner.change(&caller, &which, renew).await
            })
            .await
    }

    /// Notes that the workspace is used now, which begins its idle time anew. It is kept in memory and
    /// recorded coarsely: a server that dies loses at most a minute of it.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn touch_activity(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Workspace, Error> {
        let workspace = self.inner.find(caller, which).await?;
        self.inner.note_activity(&workspace);
        Ok(workspace)
    }
}

fn no_time_to_live() -> Error {
    ErrorKind::Conflict("the workspace has no time to live".to_owned()).into()
}

/// Whether a time to live passes.
fn has_running_time(workspace: &Workspace) -> bool {
    matches!(workspace.state, State::Running { .. } | State::Paused { .. } | State::Suspending)
}

fn apply(workspace: &mut Workspace, change: &LifecycleChange, now: Timestamp) {
    let spec = &mut workspace.spec;
    if let Some(lifetime) = change.lifetime {
        spec.lifetime = lifetime;
    }
    change.expiry.write_to(&mut spec.expiry);
    if let (Some(action), Some(expiry)) = (change.expiry_action, &mut spec.expiry) {
        expiry.action = action;
    }
    change.idle.write_to(&mut spec.idle);
    change.snapshot_on_terminate.write_to(&mut spec.snapshot_on_terminate);
    if let Some(restart) = change.restart {
        spec.restart = restart;
    }
    if let Some(remove_on_exit) = change.remove_on_exit {
        spec.remove_on_exit = remove_on_exit;
    }
    if let Some(auto_resume) = change.auto_resume {
        spec.auto_resume = auto_resume;
    }
    if let Some(keep_active) = change.keep_active {
        spec.keep_active = keep_active;
    }
    let expiry = spec.expiry;
    if change.expiry != Setting::Keep {
        let runs = has_running_time(workspace);
        workspace.expires_at = expiry.filter(|_| runs).map(|expiry| expiry.end_after(now));
    }
    // A new rule counts from now on, not from a use that nobody had to record.
    if change.idle != Setting::Keep || change.keep_active.is_some() {
        workspace.begin_idle_time_anew(now);
    }
    if change.restart.is_some() {
        workspace.give_up_restart_unless_permitted();
    }
}

fn renewed_end(
    workspace: &Workspace,
    renewal: ExpiryRenewal,
    now: Timestamp,
) -> Result<Timestamp, Error> {
    if workspace.desired == Desired::Deleted {
        return Err(refused(Refusal::BeingDeleted));
    }
    let Some(expiry) = workspace.spec.expiry else {
        return Err(no_time_to_live());
    };
    if !has_running_time(workspace) {
        return Err(ErrorKind::RefusedByState {
            state: workspace.state.name(),
            reason: "a time to live passes only while there is a VM".to_owned(),
        }
        .into());
    }
    let lasting = |seconds| Expiry { after_seconds: seconds, ..expiry }.check();
    Ok(match renewal {
        ExpiryRenewal::Anew => expiry.end_after(now),
        ExpiryRenewal::AnewFor(seconds) => lasting(seconds)?.end_after(now),
        ExpiryRenewal::By(seconds) => {
            lasting(seconds)?.end_after(workspace.expires_at.unwrap_or(now))
        }
        ExpiryRenewal::At(end) if end > now => end,
        ExpiryRenewal::At(_) => {
            return Err(Error::invalid("expiry", "is over already", "a time to come"));
        }
    })
}
