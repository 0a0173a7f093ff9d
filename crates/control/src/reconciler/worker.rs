//! One worker: the owner of one workspace while something is to be done for it.

use std::{future::Future, pin::pin, sync::Arc};

use skerry_internal_api::{NodeError, StopMode, VmReport, VmSpec};
use skerry_model::{
    Desired, ErrorKind, Event, Failure, FailureCode, Incarnation, PrivateAddress, StartFrom, State,
    Step, Transition, Workspace, WorkspaceId, next_step,
};
use tokio::{
    sync::Notify,
    time::{Instant, error::Elapsed},
};

use super::{attend::Subject, final_snapshot::FinalStep, registry::Workers, view};
use crate::{Error, control::Inner, network::Place, store::Write};

/// More steps than any workspace needs in a row. Passing it means that record and node never come to
/// agree; the worker then pauses instead of spinning.
const MAX_STEPS: u32 = 100;
/// How often it is looked, within the bound of a start, whether it still waits for its turn.
const LOOKS_AT_A_START: u32 = 16;

impl Subject for WorkspaceId {
    const WHAT: &'static str = "workspace";

    fn workers(inner: &Inner) -> &Workers<Self> {
        &inner.workers
    }

    async fn drive(self, inner: &Arc<Inner>, bell: &Arc<Notify>) -> Result<(), Error> {
        Worker { inner: Arc::clone(inner), id: self, bell: Arc::clone(bell) }.drive().await
    }
}

pub(super) struct Worker {
    pub(super) inner: Arc<Inner>,
    pub(super) id: WorkspaceId,
    bell: Arc<Notify>,
}

/// What became of a call to the node.
pub(super) enum Call<T> {
    Returned(T),
    /// Something else is wanted now; the call was dropped.
    Overtaken,
    /// It took too long and was dropped.
    TooLong,
}

impl Worker {
    /// Takes steps until nothing is to be done.
    async fn drive(&self) -> Result<(), Error> {
        let inner = &self.inner;
        for _ in 0..MAX_STEPS {
            let record = inner.store.workspace(self.id).await?;
            let observed = inner.bounded("inspect", inner.node.inspect(self.id)).await?;
            let Some(workspace) = record else {
                if observed.is_some() {
                    tracing::warn!(workspace.id = %self.id, "removing a VM without a record");
                    self.delete_on_node().await?;
                }
                return Ok(());
            };
            let address = observed.as_ref().and_then(|vm| vm.private_address);
            let observed = observed.as_ref().map(view);
            let observed = observed.map(|view| inner.ended_mains.explained(self.id, view));
            let step = next_step(&workspace, observed.as_ref(), inner.now());
            tracing::debug!(workspace.id = %self.id, state = workspace.state.name(), ?step);
            match step {
                Step::Nothing => return Ok(()),
                Step::Record(event) => self.record(workspace, &event, address).await?,
                Step::Start { incarnation, from } => {
                    if self.waits_for_snapshot(&workspace, from).await? {
                        return Ok(());
                    }
                    self.start(workspace, incarnation, from).await?;
                }
                Step::Pause { incarnation } => self.pause(incarnation).await?,
                Step::Resume { incarnation } => self.resume(incarnation).await?,
                Step::Suspend { incarnation } => self.suspend(workspace, incarnation).await?,
                Step::Stop { through } => self.stop(&workspace, through).await?,
                Step::TakeFinalSnapshot => match self.take_final_snapshot(workspace).await? {
                    // Its worker wakes this one.
                    FinalStep::UnderWay => return Ok(()),
                    FinalStep::Taken => {}
                },
                Step::Delete => {
                    inner.leave_network(&workspace).await?;
                    self.delete_on_node().await?;
                    // Only this record: one that changed is looked at again.
                    let removed = inner.store.remove_workspace(self.id, workspace.revision).await?;
                    if removed == Write::Done(()) {
                        inner.forget_policy(self.id);
                        inner.ended_mains.forget(self.id);
                        inner.announce(self.id);
                        if let Some(unneeded) = workspace.lifecycle.start_from.snapshot_id() {
                            inner.wake_snapshot(unneeded);
                        }
                    }
                }
            }
        }
        Err(Error::internal("record and node do not come to agree"))
    }

    /// Applies an event to the record as it was read. A record that changed since is left alone:
    /// the next step is decided anew. A VM that is found is at `address`, and gets its policy first.
    async fn record(
        &self,
        mut workspace: Workspace,
        event: &Event,
        address: Option<PrivateAddress>,
    ) -> Result<(), Error> {
        let needed = workspace.needed_snapshot();
        let known_at = workspace.private_address;
        if let Event::VmFound(incarnation, ..) = event {
            let place = Place { incarnation: *incarnation, address };
            self.inner.join_network(self.id, place).await?;
            workspace.private_address = address;
        }
        match workspace.apply(event, self.inner.now()) {
            Transition::Moved(_) => {
                if let Write::Done(written) = self.inner.write(&workspace, None).await? {
                    self.inner.release_unless_needed(needed, &written);
                    self.inner.settled_at(known_at, &written).await?;
                    self.look_at_policy_after(event);
                    self.look_at_workloads_after(event, &written);
                }
                Ok(())
            }
            Transition::AlreadySo => Ok(()),
            Transition::Refused(refusal) => {
                Err(Error::internal(format!("{event:?} was decided and then refused: {refusal:?}")))
            }
        }
    }

    /// A guest that runs has to know what it shall supervise.
    fn look_at_workloads_after(&self, event: &Event, written: &Workspace) {
        if let Event::VmEnded(_) | Event::VmCrashed(..) = event {
            self.inner.ended_mains.forget(self.id);
        }
        self.inner.attend_workloads(written);
    }

    /// A VM that was being suspended could not be told what changed meanwhile.
    fn look_at_policy_after(&self, event: &Event) {
        match event {
            Event::VmResumed(..) | Event::RestFailed(..) => self.inner.wake_policy(self.id),
            Event::StartBegun(_)
            | Event::GuestReady(..)
            | Event::VmFound(..)
            | Event::VmEnded(_)
            | Event::VmCrashed(..)
            | Event::StartFailed(..)
            | Event::VmPaused(..)
            | Event::SuspendBegun(_)
            | Event::VmSuspended(_)
            | Event::StopBegun
            | Event::VmStopped(_)
            | Event::DeleteBegun => {}
        }
    }

    /// Applies what came of a call that took time. The state machine drops what no longer fits.
    pub(super) async fn record_outcome(&self, event: &Event) -> Result<(), Error> {
        self.record_outcome_and(event, |_| ()).await
    }

    /// The same, with what else has become known of the workspace.
    async fn record_outcome_and(
        &self,
        event: &Event,
        learn: impl Fn(&mut Workspace),
    ) -> Result<(), Error> {
        loop {
            let Some(mut workspace) = self.inner.store.workspace(self.id).await? else {
                return Ok(());
            };
            let needed = workspace.needed_snapshot();
            let known_at = workspace.private_address;
            match workspace.apply(event, self.inner.now()) {
                Transition::Moved(_) => {
                    learn(&mut workspace);
                    if let Write::Done(written) = self.inner.write(&workspace, None).await? {
                        self.inner.release_unless_needed(needed, &written);
                        self.inner.settled_at(known_at, &written).await?;
                        self.look_at_policy_after(event);
                        self.look_at_workloads_after(event, &written);
                        return Ok(());
                    }
                }
                Transition::AlreadySo => return Ok(()),
                Transition::Refused(refusal) => {
                    tracing::debug!(workspace.id = %self.id, ?refusal, "an outcome was overtaken");
                    return Ok(());
                }
            }
        }
    }

    async fn start(
        &self,
        workspace: Workspace,
        incarnation: Incarnation,
        from: StartFrom,
    ) -> Result<(), Error> {
        let inner = &self.inner;
        let begun = Event::StartBegun(incarnation);
        let mut starting = workspace;
        if let Transition::Moved(_) = starting.apply(&begun, inner.now()) {
            starting.node_id = Some(inner.node.id());
            match inner.write(&starting, None).await? {
                Write::Done(written) => starting = written,
                Write::Stale | Write::Taken => return Ok(()),
            }
        }
        let spec = VmSpec {
            workspace_id: self.id,
            incarnation,
            hostname: starting.slug.as_str().to_owned(),
            image_digest: starting.spec.image_digest.clone(),
            shape: starting.spec.shape,
            env: inner.env_of(&starting).await?,
            log_retention: starting.spec.log_retention,
            start_from: from,
            volumes: inner.store.mounts_of(self.id).await?,
        };
        let boot = self.bring_up(spec);
        let wanted = |fresh: &Workspace| {
            let again = Step::Start { incarnation, from };
            fresh.incarnation == incarnation && next_step(fresh, None, inner.now()) == again
        };
        let event = match self.while_wanted(boot, wanted).await? {
            // What is wanted instead includes the call that cancels this bring-up on the node.
            Call::Overtaken | Call::Returned(Err(NodeError::Cancelled)) => return Ok(()),
            Call::Returned(Ok(report)) if report.incarnation == incarnation => {
                return self.came_up(&report).await;
            }
            Call::Returned(Ok(report)) => {
                let (wanted, got) = (incarnation, report.incarnation);
                return Err(Error::internal(format!("the node runs {got} instead of {wanted}")));
            }
            Call::Returned(Err(error)) => {
                tracing::info!(workspace.id = %self.id, %incarnation, %error, "a start failed");
                Event::StartFailed(incarnation, failure(&error, inner.now()))
            }
            Call::TooLong => {
                let kill = inner.node.ensure_stopped(self.id, incarnation, StopMode::Kill);
                inner.bounded("ensure_stopped", kill).await??;
                let message = "the VM did not become ready in time";
                let failure = Failure::new(FailureCode::BootTimeout, message, inner.now());
                Event::StartFailed(incarnation, failure)
            }
        };
        self.record_outcome(&event).await
    }

    /// Records that a VM came up, once it has its network policy; one that cannot be given it is ended.
    async fn came_up(&self, report: &VmReport) -> Result<(), Error> {
        let inner = &self.inner;
        let incarnation = report.incarnation;
        let place = Place::of(report);
        let Err(error) = inner.join_network(self.id, place).await else {
            inner.install_trust_at_start(self.id).await?;
            let since = report.ready_at.unwrap_or_else(|| inner.now());
            let ready = Event::GuestReady(incarnation, since, report.start_path);
            return self
                .record_outcome_and(&ready, |workspace| workspace.private_address = place.address)
                .await;
        };
        tracing::warn!(workspace.id = %self.id, %error, "a VM could not be given its network policy");
        let kill = inner.node.ensure_stopped(self.id, incarnation, StopMode::Kill);
        inner.bounded("ensure_stopped", kill).await??;
        let code = FailureCode::HostStepFailed;
        let failure = Failure::new(code, format!("the network policy: {error}"), inner.now());
        self.record_outcome(&Event::StartFailed(incarnation, failure)).await
    }

    /// Has the node bring a VM up. Waiting for a turn is not bounded by itself: each start before it is.
    async fn bring_up(&self, spec: VmSpec) -> Result<Result<VmReport, NodeError>, Elapsed> {
        let node = &self.inner.node;
        let bound = self.inner.config.node_call_timeout;
        let mut call = pin!(node.ensure_running(spec));
        let mut deadline = Instant::now() + bound;
        loop {
            let look_at = deadline.min(Instant::now() + bound / LOOKS_AT_A_START);
            match tokio::time::timeout_at(look_at, &mut call).await {
                Ok(outcome) => return Ok(outcome),
                Err(_) if node.awaits_turn(self.id).await => deadline = Instant::now() + bound,
                Err(elapsed) if look_at == deadline => return Err(elapsed),
                Err(_) => {}
            }
        }
    }

    async fn stop(&self, workspace: &Workspace, through: Incarnation) -> Result<(), Error> {
        let inner = &self.inner;
        // Only a stop somebody asked for lets the guest finish; a VM that should not be there goes.
        let mode = if workspace.state == State::Stopping {
            StopMode::Graceful { within: inner.config.stop_grace }
        } else {
            StopMode::Kill
        };
        let bound = inner.config.node_call_timeout;
        let call = tokio::time::timeout(bound, inner.node.ensure_stopped(self.id, through, mode));
        let wanted =
            |fresh: &Workspace| fresh.desired != Desired::Deleted || fresh.awaits_final_snapshot();
        match self.while_wanted(call, wanted).await? {
            Call::Overtaken => Ok(()),
            Call::Returned(Ok(())) => {
                self.record_outcome(&Event::VmStopped(workspace.incarnation)).await
            }
            Call::Returned(Err(error)) => Err(error.into()),
            Call::TooLong => Err(ErrorKind::Timeout("stopping the VM".to_owned()).into()),
        }
    }

    async fn delete_on_node(&self) -> Result<(), Error> {
        let call = self.inner.node.ensure_deleted(self.id);
        Ok(self.inner.bounded("ensure_deleted", call).await??)
    }

    /// Awaits a call to the node for as long as its outcome is wanted: each time the bell rings the
    /// record is read again.
    pub(super) async fn while_wanted<T>(
        &self,
        call: impl Future<Output = Result<T, tokio::time::error::Elapsed>>,
        wanted: impl Fn(&Workspace) -> bool,
    ) -> Result<Call<T>, Error> {
        let mut call = pin!(call);
        loop {
            tokio::select! {
                biased;
                outcome = &mut call => {
                    return Ok(outcome.map_or(Call::TooLong, Call::Returned));
                }
                () = self.bell.notified() => {
                    let fresh = self.inner.store.workspace(self.id).await?;
                    if !fresh.as_ref().is_some_and(&wanted) {
                        return Ok(Call::Overtaken);
                    }
                }
            }
        }
    }
}

/// Why a start, pause or suspension failed, for the record.
pub(super) fn failure(error: &NodeError, at: skerry_model::Timestamp) -> Failure {
    let code = match error {
        NodeError::Timeout { .. } => FailureCode::BootTimeout,
        NodeError::NoCapacity(_) => FailureCode::NoCapacity,
        NodeError::NoSuchImage(_) | NodeError::Pull { .. } => FailureCode::ImageMissing,
        NodeError::GuestUnreachable(_) => FailureCode::GuestUnreachable,
        NodeError::Step { .. } => FailureCode::HostStepFailed,
        NodeError::SavedStateUnusable(_)
        | NodeError::NoSuchSnapshot
        | NodeError::NoSuchVolume
        | NodeError::NoSuchCheckpoint => FailureCode::SavedStateUnusable,
        NodeError::NoSuchVm
        | NodeError::NotRunning
        | NodeError::VolumeInUse
        | NodeError::Cancelled
        | NodeError::NoSuchFile(_)
        | NodeError::Guest { .. }
        | NodeError::NotConnected { .. }
        | NodeError::Invalid { .. }
        | NodeError::Unsupported(_) => FailureCode::Internal,
    };
    Failure::new(code, error.to_string(), at)
}
