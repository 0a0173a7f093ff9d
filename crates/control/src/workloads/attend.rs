//! Keeping guests in step with the records: one worker for each running workspace that has, or once had,
//! workloads. It tells the guest what shall run, is told of every change, and acts on ends that mean
//! something for the workspace.

use std::{
    collections::HashMap,
    fmt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use skerry_internal_api::{
    NodeError, StopMode, SupervisorApi, WorkloadEnd, WorkloadPhase, WorkloadReport,
};
use skerry_model::{
    Cause, ErrorKind, Incarnation, NodeView, OnExit, State, VmEnd, VmViewPhase, Wish, Workload,
    Workspace, WorkspaceId,
};
use tokio::sync::Notify;

use crate::{
    Error,
    control::Inner,
    reconciler::{Subject, Workers, work},
    store::Write,
};

/// How long the guest is asked to wait for news at a time.
const NEWS_WITHIN: Duration = Duration::from_secs(20);

/// A workspace whose workloads somebody attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attended(WorkspaceId);

impl fmt::Display for Attended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Subject for Attended {
    const WHAT: &'static str = "workloads of workspace";

    fn workers(inner: &Inner) -> &Workers<Self> {
        &inner.attended
    }

    async fn drive(self, inner: &Arc<Inner>, _bell: &Arc<Notify>) -> Result<(), Error> {
        let Err(error) = attend(inner, self.0).await else { return Ok(()) };
        let record = inner.store.workspace(self.0).await?;
        if !record.as_ref().is_some_and(is_attended) {
            // The VM went away meanwhile.
            return Ok(());
        }
        if let ErrorKind::Invalid(_) = error.kind() {
            // Saying it again would not help; the next change of the record is tried.
            tracing::warn!(workspace.id = %self.0, %error, "the guest does not take its workloads");
            return Ok(());
        }
        Err(error)
    }
}

/// VMs that are ended because a workload has, until that is recorded. A server that dies in between
/// finds them ended as if by their guests.
#[derive(Default)]
pub(crate) struct EndedMains(Mutex<HashMap<WorkspaceId, (Incarnation, VmEnd)>>);

impl EndedMains {
    fn note(&self, id: WorkspaceId, of: Incarnation, end: VmEnd) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (of, end));
    }

    /// What the node says, with why the VM has ended where that is better known here.
    pub(crate) fn explained(&self, id: WorkspaceId, view: NodeView) -> NodeView {
        let ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match ended.get(&id) {
            Some((of, end)) if *of == view.incarnation && view.phase == VmViewPhase::Stopped => {
                NodeView { end: Some(end.clone()), ..view }
            }
            Some(_) | None => view,
        }
    }

    /// Its end is recorded.
    pub(crate) fn forget(&self, id: WorkspaceId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// Whether there is a guest that has to know of workloads.
pub(super) fn is_attended(workspace: &Workspace) -> bool {
    workspace.spec.workloads.were_ever() && matches!(workspace.state, State::Running { .. })
}

impl Inner {
    /// Has somebody attend the workloads of a workspace, if it needs that.
    pub(crate) fn attend_workloads(self: &Arc<Self>, workspace: &Workspace) {
        if !is_attended(workspace) || self.ending.is_cancelled() {
            return;
        }
        let subject = Attended(workspace.id);
        if let Some(post) = self.attended.wake(subject) {
            self.tasks.spawn(work(Arc::clone(self), subject, post));
        }
    }
}

async fn attend(inner: &Arc<Inner>, id: WorkspaceId) -> Result<(), Error> {
    let watcher = inner.watchers.watch(id);
    let mut told: Option<(Incarnation, u64)> = None;
    let mut seen = 0;
    loop {
        // Listening begins before the record is read, so no change falls between.
        let mut changed = pin!(watcher.bell.notified());
        changed.as_mut().enable();
        let Some(workspace) = inner.store.workspace(id).await? else { return Ok(()) };
        if !is_attended(&workspace) {
            return Ok(());
        }
        let guest = inner.bounded("guest", inner.node.guest(id)).await??;
        let supervisor = guest.supervisor();
        let workloads = &workspace.spec.workloads;
        let now = (workspace.incarnation, workloads.revision);
        if told != Some(now) {
            let set = supervisor.set_workloads(&workloads.items);
            match inner.bounded("set_workloads", set).await? {
                Ok(()) => {}
                Err(NodeError::Unsupported(what)) => {
                    tracing::warn!(workspace.id = %id, what, "workloads cannot run in this guest");
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
            told = Some(now);
            seen = 0;
        }
        let reports = tokio::select! {
            biased;
            () = changed => continue,
            reports = supervisor.watch_workloads(seen, NEWS_WITHIN) => reports?,
        };
        seen = reports.number;
        for report in &reports.reports {
            let of = workloads.items.iter().find(|one| one.id == report.id);
            if let Some(workload) = of.filter(|one| is_to_act_on(one, report)) {
                act(inner, &workspace, workload, report, &*supervisor).await?;
            }
        }
    }
}

fn is_to_act_on(workload: &Workload, report: &WorkloadReport) -> bool {
    workload.on_exit != OnExit::Nothing
        && report.phase == WorkloadPhase::Ended
        && report.turn == workload.turn
        && !report.is_acknowledged
}

async fn act(
    inner: &Arc<Inner>,
    workspace: &Workspace,
    workload: &Workload,
    report: &WorkloadReport,
    supervisor: &dyn SupervisorApi,
) -> Result<(), Error> {
    tracing::info!(workspace.id = %workspace.id, workload = %workload.name, end = ?report.last_end,
        then = ?workload.on_exit, "a workload has ended");
    match workload.on_exit {
        OnExit::Nothing => Ok(()),
        OnExit::Pause => {
            // First: a paused guest cannot be told, and would pause its workspace again when resumed.
            let noted = supervisor.acknowledge_end(report.id, report.starts);
            inner.bounded("acknowledge_end", noted).await??;
            wish(inner, workspace, Wish::Pause).await
        }
        OnExit::Stop => wish(inner, workspace, Wish::Stop).await,
        OnExit::Exit => end_vm(inner, workspace, workload, report).await,
    }
}

/// Wishes it of this VM's workspace, unless something else is wanted of that by now.
async fn wish(inner: &Arc<Inner>, of: &Workspace, wish: Wish) -> Result<(), Error> {
    loop {
        let Some(mut fresh) = inner.store.workspace(of.id).await? else { return Ok(()) };
        if fresh.incarnation != of.incarnation || !is_attended(&fresh) {
            return Ok(());
        }
        if let Err(refusal) = fresh.wish(wish, Cause::GuestExit, inner.now()) {
            tracing::debug!(workspace.id = %of.id, ?refusal, "what a workload's end asks is refused");
            return Ok(());
        }
        match inner.write(&fresh, None).await? {
            Write::Done(_) => {
                inner.wake(of.id);
                return Ok(());
            }
            Write::Stale | Write::Taken => {}
        }
    }
}

/// Has the guest power off. What follows is decided as for every VM that ends by itself.
async fn end_vm(
    inner: &Arc<Inner>,
    workspace: &Workspace,
    workload: &Workload,
    report: &WorkloadReport,
) -> Result<(), Error> {
    let (id, incarnation) = (workspace.id, workspace.incarnation);
    let name = &workload.name;
    let end = match report.last_end {
        Some(WorkloadEnd::Code(0)) => VmEnd::ByGuest,
        Some(WorkloadEnd::Code(code)) => {
            VmEnd::Crashed { reason: format!("{name} ended with code {code}") }
        }
        Some(WorkloadEnd::Signal(signal)) => {
            VmEnd::Crashed { reason: format!("{name} ended by signal {signal}") }
        }
        Some(WorkloadEnd::NotStarted) | None => {
            VmEnd::Crashed { reason: format!("{name} could not be started") }
        }
    };
    inner.ended_mains.note(id, incarnation, end);
    let mode = StopMode::Graceful { within: inner.config.stop_grace };
    let stop = inner.node.ensure_stopped(id, incarnation, mode);
    inner.bounded("ensure_stopped", stop).await??;
    inner.wake(id);
    Ok(())
}
