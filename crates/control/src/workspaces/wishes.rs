//! Starting, stopping, restarting and deleting: each records a wish, wakes the worker and waits.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use skerry_model::{Cause, Demand, ErrorKind, Refusal, State, Timestamp, Wish, Workspace};

use super::{ConditionalWish, Deleted, Wait, WorkspaceRef};
use crate::{Caller, Control, Error, control::Inner, store::Write};

/// How often a change is computed anew because the record changed meanwhile.
const MAX_REDOS: u32 = 32;

impl Control {
    /// Starts a workspace; one that runs or starts already is a success, and one that is paused or
    /// suspended goes on where it was.
    ///
    /// # Errors
    /// `NotFound`, `Quota` (running pool), `RefusedByState` while it is deleted.
    pub async fn start_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wait: Wait,
    ) -> Result<Workspace, Error> {
        let wished = self.inner.wish(caller, which, Wish::Start).await?;
        self.inner.until_settled(wished, wait).await
    }

    /// Stops a workspace; one that is stopped already is a success. Saved memory is discarded.
    ///
    /// # Errors
    /// `NotFound`, `RefusedByState` while it is deleted.
    pub async fn stop_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wait: Wait,
    ) -> Result<Workspace, Error> {
        let wished = self.inner.wish(caller, which, Wish::Stop).await?;
        self.inner.until_settled(wished, wait).await
    }

    /// Stops and starts again, durably: a crash in between does not lose the start.
    ///
    /// # Errors
    /// As [`Control::start_workspace`].
    pub async fn restart_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wait: Wait,
    ) -> Result<Workspace, Error> {
        let wished = self.inner.wish(caller, which, Wish::Restart).await?;
        self.inner.until_settled(wished, wait).await
    }

    /// Records a wish if the workspace meets `condition`, and answers at once. It is the record that the
    /// wish is written over that meets it: of several callers who ask for what only one can have,
    /// one gets it.
    ///
    /// # Errors
    /// As [`Control::start_workspace`] where the condition is met, else only `NotFound`.
    pub async fn wish_if(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wish: Wish,
        condition: impl Fn(&Workspace) -> bool + Send + Sync + 'static,
    ) -> Result<ConditionalWish, Error> {
        self.inner.wish_if(caller, which, wish, Cause::User, condition).await
    }

    /// Deletes a workspace from any state. If it is to leave a snapshot, that is taken first, and the
    /// deletion goes on also when that fails: the snapshot's record then says why. Returns the record as it was last; with
    /// [`Wait::UpTo`], after everything is gone unless the wait was over first (state `deleting`).
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wait: Wait,
    ) -> Result<Deleted, Error> {
        let workspace = self.inner.wish(caller, which, Wish::Delete).await?;
        // The node has to confirm, so the record is never gone already when the wish is recorded.
        let complete = match wait {
            Wait::No => false,
            Wait::UpTo(bound) => {
                self.inner.wait_for(workspace.id, bound, |_| false).await?.is_none()
            }
        };
        Ok(Deleted { workspace, complete })
    }
}

impl Inner {
    pub(super) async fn wish(
        self: &Arc<Self>,
        caller: &Caller,
        which: &WorkspaceRef,
        wish: Wish,
    ) -> Result<Workspace, Error> {
        match self.wish_if(caller, which, wish, Cause::User, |_| true).await? {
            ConditionalWish::Recorded(workspace) | ConditionalWish::NotMet(workspace) => {
                Ok(workspace)
            }
        }
    }

    pub(super) async fn wish_if(
        self: &Arc<Self>,
        caller: &Caller,
        which: &WorkspaceRef,
        wish: Wish,
        by: Cause,
        condition: impl Fn(&Workspace) -> bool + Send + Sync + 'static,
    ) -> Result<ConditionalWish, Error> {
        let (inner, caller, which) = (Arc::clone(self), caller.clone(), which.clone());
        self.to_the_end(async move {
            let met = AtomicBool::new(false);
            let changed = inner
                .change(&caller, &which, |workspace, now| {
                    met.store(condition(workspace), Ordering::Relaxed);
                    if !met.load(Ordering::Relaxed) {
                        return Ok(None);
                    }
                    let ran = workspace.counts_as_running();
                    let state = workspace.state.name();
                    let wished = workspace.wish(wish, by, now);
                    wished.map_err(|refusal| refused_in(state, refusal))?;
                    Ok((!ran && workspace.counts_as_running()).then_some(Demand::Start))
                })
                .await?;
            if !met.into_inner() {
                return Ok(ConditionalWish::NotMet(changed));
            }
            inner.wake(changed.id);
            Ok(ConditionalWish::Recorded(changed))
        })
        .await
    }

    /// Changes a record of the caller's. `change` is computed anew from the record as it then is
    /// whenever somebody else changed it first; it answers what the plan has to admit.
    pub(crate) async fn change(
        self: &Arc<Self>,
        caller: &Caller,
        which: &WorkspaceRef,
        change: impl Fn(&mut Workspace, Timestamp) -> Result<Option<Demand>, Error>,
    ) -> Result<Workspace, Error> {
        for _ in 0..MAX_REDOS {
            let before = self.find(caller, which).await?;
            let mut after = before.clone();
            let demand = change(&mut after, self.now())?;
            if after == before {
                return Ok(before);
            }
            match self.write(&after, demand).await? {
                Write::Done(written) => {
                    self.release_unless_needed(before.needed_snapshot(), &written);
                    return Ok(written);
                }
                Write::Stale => {}
                Write::Taken => {
                    let taken = format!("the slug {} is already in use", after.slug);
                    return Err(ErrorKind::Conflict(taken).into());
                }
            }
        }
        Err(ErrorKind::Unavailable("the workspace changes too quickly".to_owned()).into())
    }
}

/// A refusal that can only be that of a deletion.
pub(crate) fn refused(refusal: Refusal) -> Error {
    refused_in(State::Deleting.name(), refusal)
}

/// Why a wish was refused in this state.
pub(super) fn refused_in(state: &'static str, refusal: Refusal) -> Error {
    let (state, reason) = match refusal {
        Refusal::BeingDeleted => (State::Deleting.name(), "it is being deleted"),
        Refusal::BeingStopped => (state, "it is being stopped"),
        Refusal::BeingSuspended => (state, "it is being suspended: resume it first"),
        Refusal::NoVm => (state, "it has no VM: start it first"),
        Refusal::NotReady => (state, "its guest is not ready yet"),
        Refusal::VmPresent => (state, "it has a VM or is to have one: stop it first"),
        Refusal::Stale | Refusal::Ahead => {
            return Error::internal(format!("a wish was refused: {refusal:?}"));
        }
    };
    ErrorKind::RefusedByState { state, reason: reason.to_owned() }.into()
}
