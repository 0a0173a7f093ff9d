//! A worker's steps between running and resting: pause, resume, suspend.

use std::future::Future;

use skerry_internal_api::{NodeError, VmReport};
use skerry_model::{
    Desired, ErrorKind, Event, Failure, FailureCode, Incarnation, StillThere, Timestamp,
    Transition, VmViewPhase, Workspace,
};

use super::{
    backoff, view,
    worker::{Call, Worker, failure},
};
use crate::{Error, store::Write};

/// How often a pause or suspension is tried before it is given up.
const ATTEMPTS: u32 = 3;

/// What became of a call that may be repeated.
enum Tried {
    Done(VmReport),
    /// Something else is wanted, or the VM is not there any more.
    DecideAnew,
    GivenUp(Failure),
}

impl Worker {
    pub(super) async fn pause(&self, incarnation: Incarnation) -> Result<(), Error> {
        let call = || self.inner.node.ensure_paused(self.id, incarnation);
        let wanted = |fresh: &Workspace| wants(fresh, incarnation, Desired::Paused);
        match self.tried("pausing the VM", call, wanted).await? {
            Tried::Done(report) => {
                self.record_outcome(&Event::VmPaused(incarnation, self.ready_at(&report))).await
            }
            Tried::DecideAnew => Ok(()),
            Tried::GivenUp(why) => self.rest_failed(incarnation, why).await,
        }
    }

    pub(super) async fn suspend(
        &self,
        workspace: Workspace,
        incarnation: Incarnation,
    ) -> Result<(), Error> {
        let inner = &self.inner;
        let mut suspending = workspace;
        let begun = Event::SuspendBegun(incarnation);
        if let Transition::Moved(_) = suspending.apply(&begun, inner.now()) {
            match inner.write(&suspending, None).await? {
                Write::Done(_) => {}
                Write::Stale | Write::Taken => return Ok(()),
            }
        }
        let call = || async {
            let turn = inner.saves.acquire().await;
            let outcome = inner.node.ensure_suspended(self.id, incarnation).await;
            drop(turn);
            outcome
        };
        let wanted = |fresh: &Workspace| wants(fresh, incarnation, Desired::Suspended);
        match self.tried("suspending the VM", call, wanted).await? {
            Tried::Done(_) => self.record_outcome(&Event::VmSuspended(incarnation)).await,
            Tried::DecideAnew => Ok(()),
            Tried::GivenUp(why) => self.rest_failed(incarnation, why).await,
        }
    }

    /// Repeated until it succeeds or something else is wanted: only the tenant may decide that memory
    /// is given up.
    pub(super) async fn resume(&self, incarnation: Incarnation) -> Result<(), Error> {
        let inner = &self.inner;
        let bound = inner.config.node_call_timeout;
        let call = tokio::time::timeout(bound, inner.node.ensure_resumed(self.id, incarnation));
        let wanted = |fresh: &Workspace| {
            wants(fresh, incarnation, Desired::Running)
                || wants(fresh, incarnation, Desired::Paused)
        };
        match self.while_wanted(call, wanted).await? {
            Call::Returned(Ok(report)) => {
                self.record_outcome(&Event::VmResumed(incarnation, self.ready_at(&report))).await
            }
            // Its memory is saved already, or it is gone: what the node says of it now decides.
            Call::Overtaken
            | Call::Returned(Err(
                NodeError::NotRunning | NodeError::NoSuchVm | NodeError::Cancelled,
            )) => Ok(()),
            Call::Returned(Err(error)) => Err(error.into()),
            Call::TooLong => Err(ErrorKind::Timeout("resuming the VM".to_owned()).into()),
        }
    }

    /// Repeats an idempotent call while its failure may pass and its outcome is wanted.
    async fn tried<F>(
        &self,
        what: &'static str,
        call: impl Fn() -> F,
        wanted: impl Fn(&Workspace) -> bool,
    ) -> Result<Tried, Error>
    where
        F: Future<Output = Result<VmReport, NodeError>>,
    {
        let inner = &self.inner;
        let bound = inner.config.node_call_timeout;
        let mut attempt = 1;
        loop {
            let bounded = tokio::time::timeout(bound, call());
            let error = match self.while_wanted(bounded, &wanted).await? {
                Call::Returned(Ok(report)) => return Ok(Tried::Done(report)),
                Call::Overtaken
                | Call::Returned(Err(NodeError::NotRunning | NodeError::NoSuchVm)) => {
                    return Ok(Tried::DecideAnew);
                }
                Call::Returned(Err(error)) => error,
                Call::TooLong => {
                    let why = format!("{what} did not finish in time");
                    let code = FailureCode::HostStepFailed;
                    return Ok(Tried::GivenUp(Failure::new(code, why, inner.now())));
                }
            };
            if attempt == ATTEMPTS || !may_pass(&error) {
                return Ok(Tried::GivenUp(failure(&error, inner.now())));
            }
            tracing::info!(workspace.id = %self.id, %error, attempt, "{what} failed; once more");
            let pause = async {
                tokio::time::sleep(backoff(attempt)).await;
                Ok(())
            };
            if let Call::Overtaken = self.while_wanted(pause, &wanted).await? {
                return Ok(Tried::DecideAnew);
            }
            attempt += 1;
        }
    }

    /// Records that the VM goes on as it was. One that is neither up nor at rest is brought back first.
    async fn rest_failed(&self, incarnation: Incarnation, why: Failure) -> Result<(), Error> {
        let inner = &self.inner;
        tracing::warn!(workspace.id = %self.id, why = why.message, "the workspace does not come to rest");
        let mut observed = inner.bounded("inspect", inner.node.inspect(self.id)).await?;
        if observed.as_ref().is_some_and(|vm| view(vm).phase == VmViewPhase::Suspending) {
            let back = inner.node.ensure_resumed(self.id, incarnation);
            match inner.bounded("ensure_resumed", back).await? {
                Ok(_) => {}
                Err(error) => {
                    tracing::info!(workspace.id = %self.id, %error, "a suspension was not cancelled");
                }
            }
            observed = inner.bounded("inspect", inner.node.inspect(self.id)).await?;
        }
        let Some(vm) = observed.filter(|vm| vm.incarnation == incarnation) else { return Ok(()) };
        let since = self.ready_at(&vm);
        let still = match view(&vm).phase {
            VmViewPhase::Running => StillThere::Running { since },
            VmViewPhase::Paused => StillThere::Paused { since },
            // The next step is decided from what the node says of it.
            VmViewPhase::Starting
            | VmViewPhase::Suspending
            | VmViewPhase::Suspended
            | VmViewPhase::Stopping
            | VmViewPhase::Stopped => return Ok(()),
        };
        self.record_outcome(&Event::RestFailed(incarnation, still, why)).await
    }

    fn ready_at(&self, report: &VmReport) -> Timestamp {
        report.ready_at.unwrap_or_else(|| self.inner.now())
    }
}

fn wants(fresh: &Workspace, incarnation: Incarnation, desired: Desired) -> bool {
    fresh.incarnation == incarnation
        && fresh.desired == desired
        && fresh.incarnation > fresh.replace_through
}

/// Whether the same call may succeed a moment later.
pub(crate) fn may_pass(error: &NodeError) -> bool {
    match error {
        NodeError::Cancelled
        | NodeError::Timeout { .. }
        | NodeError::GuestUnreachable(_)
        | NodeError::Step { .. } => true,
        NodeError::NoSuchVm
        | NodeError::NoSuchSnapshot
        | NodeError::NoSuchVolume
        | NodeError::NoSuchCheckpoint
        | NodeError::VolumeInUse
        | NodeError::SavedStateUnusable(_)
        | NodeError::NotRunning
        | NodeError::NoSuchImage(_)
        | NodeError::Pull { .. }
        | NodeError::NoSuchFile(_)
        | NodeError::Guest { .. }
        | NodeError::NotConnected { .. }
        | NodeError::Invalid { .. }
        | NodeError::NoCapacity(_)
        | NodeError::Unsupported(_) => false,
    }
}
