//! Snapshots' own workers: one for each snapshot that is being taken or removed, or that differs from
//! what its node has.

use std::{collections::HashMap, pin::pin, sync::Arc};

use skerry_internal_api::{NodeError, SnapshotInfo};
use skerry_model::{
    Cause, Failure, FailureCode, Snapshot, SnapshotEvent, SnapshotFacts, SnapshotId,
    SnapshotPurpose, SnapshotState, SnapshotStep, Wish, Workspace, WorkspaceId, next_snapshot_step,
};
use tokio::sync::Notify;

use super::{
    attend::{self, Subject},
    backoff,
    registry::Workers,
    rest::may_pass,
    worker::failure,
};
use crate::{Error, control::Inner, store::Write};

/// How many records are held at a time.
const BATCH: u32 = 500;
/// More steps than any snapshot needs in a row.
const MAX_STEPS: u32 = 20;
/// How often taking one is tried before it is given up.
const ATTEMPTS: u32 = 3;

impl Subject for SnapshotId {
    const WHAT: &'static str = "snapshot";

    fn workers(inner: &Inner) -> &Workers<Self> {
        &inner.snapshot_workers
    }

    async fn drive(self, inner: &Arc<Inner>, bell: &Arc<Notify>) -> Result<(), Error> {
        SnapshotWorker { inner, id: self, bell }.drive().await
    }
}

impl Inner {
    /// Has a worker look at the snapshot: the one that is at work on it already, or a new one.
    pub(crate) fn wake_snapshot(self: &Arc<Self>, id: SnapshotId) {
        if self.ending.is_cancelled() {
            return;
        }
        if let Some(post) = self.snapshot_workers.wake(id) {
            self.tasks.spawn(attend::work(Arc::clone(self), id, post));
        }
    }

    /// Compares every snapshot's record with what the node has, and wakes a worker where they differ.
    /// The node is asked first, as for workspaces: a snapshot made in between is then one that is not
    /// there yet, never one without a record.
    pub(super) async fn sweep_snapshots(self: &Arc<Self>) -> Result<(), Error> {
        let on_node = self.bounded("snapshots", self.node.snapshots()).await?;
        let mut on_node: HashMap<SnapshotId, SnapshotFacts> =
            on_node.iter().map(|info| (info.id, facts(info))).collect();
        let mut after = None;
        loop {
            let batch = self.store.snapshots_after(after, BATCH).await?;
            let Some(last) = batch.last() else { break };
            after = Some(last.id);
            let now = self.now();
            for snapshot in &batch {
                let observed = on_node.remove(&snapshot.id);
                if next_snapshot_step(snapshot, observed.as_ref(), now) != SnapshotStep::Nothing {
                    self.wake_snapshot(snapshot.id);
                }
            }
        }
        for unknown in on_node.into_keys() {
            self.wake_snapshot(unknown);
        }
        for unneeded in self.store.unneeded_fork_snapshots(BATCH).await? {
            if let Some(snapshot) = self.store.snapshot(unneeded).await? {
                self.release(snapshot).await?;
            }
        }
        Ok(())
    }

    /// A workspace was written that had needed this snapshot: if it does no more, the snapshot may go.
    pub(crate) fn release_unless_needed(
        self: &Arc<Self>,
        needed: Option<SnapshotId>,
        written: &Workspace,
    ) {
        if let Some(snapshot_id) = needed.filter(|_| written.needed_snapshot() != needed) {
            self.wake_snapshot(snapshot_id);
        }
    }

    /// Deletes a fork's snapshot unless a workspace needs it.
    async fn release(self: &Arc<Self>, snapshot: Snapshot) -> Result<(), Error> {
        if snapshot.purpose != SnapshotPurpose::Fork {
            return Ok(());
        }
        match self.store.workspaces_needing(snapshot.id, 1).await?.is_empty() {
            // Whoever needs it since then keeps it: the store decides in one transaction.
            true => match self.begin_snapshot_deletion(snapshot).await {
                Ok(_) => Ok(()),
                Err(error) if matches!(error.kind(), skerry_model::ErrorKind::Conflict(_)) => {
                    Ok(())
                }
                Err(error) => Err(error),
            },
            false => Ok(()),
        }
    }
}

struct SnapshotWorker<'a> {
    inner: &'a Arc<Inner>,
    id: SnapshotId,
    bell: &'a Notify,
}

impl SnapshotWorker<'_> {
    async fn drive(&self) -> Result<(), Error> {
        let inner = self.inner;
        for _ in 0..MAX_STEPS {
            let Some(snapshot) = inner.store.snapshot(self.id).await? else {
                return self.remove_unknown().await;
            };
            let observed = match snapshot.state {
                // Taking and removing repeat harmlessly: no need to look first.
                SnapshotState::Creating | SnapshotState::Deleting => None,
                SnapshotState::Ready | SnapshotState::Failed(_) => self.on_node().await?,
            };
            match next_snapshot_step(&snapshot, observed.as_ref(), inner.now()) {
                SnapshotStep::Nothing => return self.settled(snapshot).await,
                SnapshotStep::Record(event) => self.record(&event).await?,
                SnapshotStep::Take => self.take(&snapshot).await?,
                SnapshotStep::Delete => {
                    self.remove_on_node().await?;
                    let removed = inner.store.remove_snapshot(self.id, snapshot.revision).await?;
                    if removed == Write::Done(()) {
                        inner.snapshot_watchers.announce(self.id);
                        self.tell_its_workspace(&snapshot);
                        return Ok(());
                    }
                }
            }
        }
        Err(Error::internal("record and node do not come to agree"))
    }

    async fn on_node(&self) -> Result<Option<SnapshotFacts>, Error> {
        let all = self.inner.bounded("snapshots", self.inner.node.snapshots()).await?;
        Ok(all.iter().find(|info| info.id == self.id).map(facts))
    }

    async fn remove_unknown(&self) -> Result<(), Error> {
        if self.on_node().await?.is_some() {
            tracing::warn!(snapshot.id = %self.id, "removing a snapshot without a record");
            self.remove_on_node().await?;
        }
        Ok(())
    }

    async fn remove_on_node(&self) -> Result<(), Error> {
        let call = self.inner.node.ensure_snapshot_deleted(self.id);
        Ok(self.inner.bounded("ensure_snapshot_deleted", call).await??)
    }

    async fn take(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let event = match self.taken(snapshot).await? {
            Some(Ok(info)) => SnapshotEvent::Taken(facts(&info)),
            Some(Err(why)) => {
                tracing::warn!(snapshot.id = %self.id, workspace.id = %snapshot.workspace_id,
                    why = why.message, "a snapshot could not be taken");
                SnapshotEvent::Failed(why)
            }
            None => return Ok(()),
        };
        self.record(&event).await
    }

    /// Has the node take it, a few times if need be; `None` when it is not wanted any more.
    async fn taken(
        &self,
        snapshot: &Snapshot,
    ) -> Result<Option<Result<SnapshotInfo, Failure>>, Error> {
        let inner = self.inner;
        let mut attempt = 1;
        loop {
            let call = async {
                let turn = inner.saves.acquire().await;
                let call =
                    inner.node.take_snapshot(snapshot.workspace_id, self.id, snapshot.contents);
                let outcome = tokio::time::timeout(inner.config.node_call_timeout, call).await;
                drop(turn);
                outcome
            };
            let error = match self.while_wanted(call).await? {
                None => return Ok(None),
                Some(Ok(Ok(info))) => return Ok(Some(Ok(info))),
                Some(Ok(Err(error))) => {
                    // The VM stands still where letting it run on failed as well.
                    inner.wake(snapshot.workspace_id);
                    error
                }
                Some(Err(_)) => {
                    // Whatever the node is still at is given up.
                    self.remove_on_node().await?;
                    let why = "the snapshot was not complete in time";
                    let failure = Failure::new(FailureCode::HostStepFailed, why, inner.now());
                    return Ok(Some(Err(failure)));
                }
            };
            if attempt == ATTEMPTS || !may_pass(&error) {
                return Ok(Some(Err(refusal(&error, inner.now()))));
            }
            tracing::info!(snapshot.id = %self.id, %error, attempt, "a snapshot failed; once more");
            if self.while_wanted(tokio::time::sleep(backoff(attempt))).await?.is_none() {
                return Ok(None);
            }
            attempt += 1;
        }
    }

    /// Awaits something for as long as the snapshot is to be taken.
    async fn while_wanted<T>(&self, what: impl Future<Output = T>) -> Result<Option<T>, Error> {
        let mut what = pin!(what);
        loop {
            tokio::select! {
                biased;
                outcome = &mut what => return Ok(Some(outcome)),
                () = self.bell.notified() => {
                    let fresh = self.inner.store.snapshot(self.id).await?;
                    if fresh.is_none_or(|fresh| fresh.state != SnapshotState::Creating) {
                        return Ok(None);
                    }
                }
            }
        }
    }

    async fn record(&self, event: &SnapshotEvent) -> Result<(), Error> {
        loop {
            let Some(mut snapshot) = self.inner.store.snapshot(self.id).await? else {
                return Ok(());
            };
            if !snapshot.apply(event) {
                return Ok(());
            }
            match self.inner.write_snapshot(&snapshot).await? {
                Write::Done(_) => return Ok(()),
                Write::Stale | Write::Taken => {}
            }
        }
    }

    /// What follows for others once it is ready or has failed.
    async fn settled(&self, snapshot: Snapshot) -> Result<(), Error> {
        let inner = self.inner;
        self.tell_its_workspace(&snapshot);
        let never_came_about = match &snapshot.state {
            SnapshotState::Failed(_) => snapshot.taken_at.is_none(),
            SnapshotState::Creating | SnapshotState::Ready | SnapshotState::Deleting => false,
        };
        loop {
            let waiting = inner.store.workspaces_needing(self.id, BATCH).await?;
            for workspace in &waiting {
                if never_came_about && !workspace.owns_disk() {
                    self.remove_fork(workspace.id).await?;
                } else {
                    inner.wake(workspace.id);
                }
            }
            // Those that are removed need it no more; the others stay on the list.
            let all_seen = waiting.len() < BATCH as usize;
            if all_seen || !never_came_about {
                break;
            }
        }
        match snapshot.state {
            SnapshotState::Ready => inner.release(snapshot).await,
            // One that failed stays until the next comparison, for the caller who waits for it.
            SnapshotState::Failed(_) | SnapshotState::Creating | SnapshotState::Deleting => Ok(()),
        }
    }

    /// A fork whose snapshot never came about has nothing to be made from.
    async fn remove_fork(&self, id: WorkspaceId) -> Result<(), Error> {
        let inner = self.inner;
        loop {
            let Some(mut workspace) = inner.store.workspace(id).await? else { return Ok(()) };
            // Accepted in every state.
            let _accepted = workspace.wish(Wish::Delete, Cause::StartFailed, inner.now());
            match inner.write(&workspace, None).await? {
                Write::Done(_) => {
                    inner.wake(id);
                    return Ok(());
                }
                Write::Stale | Write::Taken => {}
            }
        }
    }

    /// A deletion may wait for it.
    fn tell_its_workspace(&self, snapshot: &Snapshot) {
        if snapshot.purpose == SnapshotPurpose::Terminate {
            self.inner.wake(snapshot.workspace_id);
        }
    }
}

fn facts(info: &SnapshotInfo) -> SnapshotFacts {
    SnapshotFacts {
        contents: info.contents,
        shape: info.shape,
        size_bytes: info.size_bytes,
        blackout: info.blackout,
        taken_at: info.created_at,
    }
}

/// Why a snapshot could not be taken, for the record.
fn refusal(error: &NodeError, at: skerry_model::Timestamp) -> Failure {
    match error {
        NodeError::NoSuchVm | NodeError::NotRunning => {
            let why = "the workspace had no VM of which to take it";
            Failure::new(FailureCode::VmLost, why, at)
        }
        _ => failure(error, at),
    }
}
