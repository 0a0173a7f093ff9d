//! The reconciler: brings every workspace from what it is to what it should be.
//!
//! Each workspace that needs work has one worker, which asks `model` for the next step, has the node
//! do it and records what came of it, until nothing is left to do. A request records its wish, wakes
//! the worker and waits for the record to change; reports of the node, the periodic comparison and a
//! start of control wake the same worker. So there is one path to every state, and recovery from a
//! crash is that path.
//!
//! A start that a request asked for and that fails is not repeated by itself: the workspace becomes
//! `failed`, stopped is what is desired from then on, and the failures in a row are counted until a
//! start succeeds. A pause or suspension is tried a few times and then given up: the workspace goes on
//! as before. Resuming, stopping and deleting are repeated until they succeed, with growing pauses.
//!
//! Snapshots have workers of their own kind, so that one that takes long holds up nobody.

mod attend;
mod checkpoints;
mod final_snapshot;
mod registry;
mod rest;
mod snapshots;
mod timers;
mod volumes;
mod worker;

use std::{collections::HashMap, sync::Arc, time::Duration};

use skerry_internal_api::{NodeEvent, VmExit, VmPhase, VmReport};
use skerry_model::{NodeView, Step, VmEnd, VmViewPhase, VolumeMount, WorkspaceId, next_step};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::{Control, Error, control::Inner, domains, network::Place, vaults::note_requests};

pub(crate) use attend::{Subject, work};
pub(crate) use registry::{KeyUses, Watchers, Workers};
pub(crate) use rest::may_pass;

/// How many records the periodic comparison holds at a time.
const SWEEP_BATCH: u32 = 500;
/// How long recording the last uses may take at the end.
const LAST_WRITES: Duration = Duration::from_secs(5);

impl Control {
    /// Does the background work until `shutdown` is cancelled: compares records and VMs first (so
    /// that what runs is adopted before anything is done), then follows the node's reports, compares
    /// again periodically and watches the timers. Returns after every task of control has
    /// ended. VMs go on running; requests made after that are recorded and worked on after the next
    /// start.
    pub async fn run(&self, shutdown: CancellationToken) {
        let inner = &self.inner;
        inner.tasks.spawn(domains::attend(Arc::clone(inner)));
        inner.tasks.spawn(note_requests(Arc::clone(inner), inner.node.injected_requests()));
        let mut events = inner.node.subscribe();
        let mut events_end = false;
        let mut sweep = tokio::time::interval(inner.config.reconcile_interval);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // The first tick comes at once.
                _ = sweep.tick() => inner.sweep_or_warn().await,
                event = events.recv(), if !events_end => match event {
                    Ok(NodeEvent::Exited { workspace_id, .. }) => inner.wake(workspace_id),
                    Err(RecvError::Lagged(_)) => inner.sweep_or_warn().await,
                    Err(RecvError::Closed) => events_end = true,
                },
                () = inner.next_timer() => inner.ring_or_warn().await,
            }
        }
        inner.ending.cancel();
        inner.tasks.close();
        inner.tasks.wait().await;
        match tokio::time::timeout(LAST_WRITES, inner.record_all_activity()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "not every use could be recorded"),
            Err(_) => tracing::warn!("not every use could be recorded in time"),
        }
    }
}

impl Inner {
    async fn sweep_or_warn(self: &Arc<Self>) {
        if let Err(error) = self.sweep().await {
            tracing::warn!(%error, "records and VMs could not be compared; will try again");
        }
        if let Err(error) = self.sweep_volumes().await {
            tracing::warn!(%error, "volumes could not be compared; will try again");
        }
        if let Err(error) = self.sweep_checkpoints().await {
            tracing::warn!(%error, "checkpoints could not be compared; will try again");
        }
        if let Err(error) = self.sweep_snapshots().await {
            tracing::warn!(%error, "snapshots could not be compared; will try again");
        }
        if let Err(error) = self.record_all_activity().await {
            tracing::warn!(%error, "not every use could be recorded; will try again");
        }
        self.comparisons.send_modify(|done| *done += 1);
    }

    /// Compares every record with what the node says and wakes a worker where they differ. The node
    /// is asked before the records are read: a workspace made in between is then one without a VM,
    /// never a VM without a record. The worker looks again before it acts.
    async fn sweep(self: &Arc<Self>) -> Result<(), Error> {
        let reports = self.bounded("list", self.node.list()).await?;
        let places: HashMap<WorkspaceId, Place> = reports
            .iter()
            .filter(|report| is_up(report))
            .map(|of| (of.workspace_id, Place::of(of)))
            .collect();
        let by_id: HashMap<WorkspaceId, &VmReport> =
            reports.iter().map(|report| (report.workspace_id, report)).collect();
        let mut views: HashMap<WorkspaceId, NodeView> =
            reports.iter().map(|report| (report.workspace_id, view(report))).collect();
        let mut after = None;
        loop {
            let batch = self.store.workspaces_after(after, SWEEP_BATCH).await?;
            let Some(last) = batch.last() else { break };
            let mut wished: HashMap<WorkspaceId, Vec<VolumeMount>> = HashMap::new();
            for attached in self.store.mounts_between(after, last.id).await? {
                wished.entry(attached.workspace_id).or_default().push(attached.mount);
            }
            after = Some(last.id);
            let now = self.now();
            for workspace in &batch {
                let observed = views.remove(&workspace.id);
                if next_step(workspace, observed.as_ref(), now) != Step::Nothing {
                    self.wake(workspace.id);
                }
                self.attend_workloads(workspace);
                let wished = wished.remove(&workspace.id).unwrap_or_default();
                self.compare_mounts(workspace, &wished, by_id.get(&workspace.id).copied());
                let place = places.get(&workspace.id).copied();
                let place = place.filter(|place| place.incarnation == workspace.incarnation);
                self.compare_address(workspace, place).await?;
                let networked = workspace.private_address.is_some() && workspace.state.has_vm();
                if networked && !self.policies.knows(workspace.id) {
                    self.wake_policy(workspace.id);
                }
            }
        }
        for unknown in views.into_keys() {
            self.wake(unknown);
        }
        Ok(())
    }

    /// Has a worker look at the workspace: the one that is at work on it already, or a new one.
    pub(crate) fn wake(self: &Arc<Self>, id: WorkspaceId) {
        if self.ending.is_cancelled() {
            return;
        }
        if let Some(post) = self.workers.wake(id) {
            self.tasks.spawn(attend::work(Arc::clone(self), id, post));
        }
    }
}

/// Whether the VM is there and has been for more than a moment.
fn is_up(report: &VmReport) -> bool {
    match report.phase {
        VmPhase::Running | VmPhase::Paused => true,
        VmPhase::Starting
        | VmPhase::Suspending
        | VmPhase::Suspended
        | VmPhase::Stopping
        | VmPhase::Stopped => false,
    }
}

/// The node's report in `model`'s words.
fn view(report: &VmReport) -> NodeView {
    NodeView {
        incarnation: report.incarnation,
        phase: match report.phase {
            VmPhase::Starting => VmViewPhase::Starting,
            VmPhase::Running => VmViewPhase::Running,
            VmPhase::Paused => VmViewPhase::Paused,
            VmPhase::Suspending => VmViewPhase::Suspending,
            VmPhase::Suspended => VmViewPhase::Suspended,
            VmPhase::Stopping => VmViewPhase::Stopping,
            VmPhase::Stopped => VmViewPhase::Stopped,
        },
        ready_at: report.ready_at,
        start_path: report.start_path,
        end: report.last_exit.as_ref().map(|exit| match exit {
            VmExit::PoweredOff | VmExit::Rebooted => VmEnd::ByGuest,
            VmExit::Crashed { reason } => VmEnd::Crashed { reason: reason.clone() },
        }),
    }
}

/// How long to pause after this many failures in a row: 0.2 s doubled each time, at most 30 s.
pub(crate) fn backoff(failures: u32) -> Duration {
    let doubled =
        Duration::from_millis(200).saturating_mul(1 << failures.saturating_sub(1).min(10));
    doubled.min(Duration::from_secs(30))
}
