//! Who is being used. Kept in memory, because use happens often; recorded coarsely, so that a server
//! that dies does not take a busy workspace for an idle one.

mod guest;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use skerry_model::{IdlePolicy, Timestamp, Workspace, WorkspaceId};

use crate::{Error, control::Inner, store::Write};

pub(crate) use guest::ActiveGuest;

/// Use is recorded again when this much of the idle time has passed since it was recorded...
const RECORDED_PART: i64 = 4;
/// ...and in any case after this long.
const RECORDED_EVERY_SECONDS: i64 = 60;

/// Uses that are not in the records, and sessions that are open.
#[derive(Default)]
pub(crate) struct Activity {
    entries: Mutex<HashMap<WorkspaceId, Entry>>,
}

#[derive(Clone, Copy)]
struct Entry {
    last_at: Timestamp,
    sessions: usize,
    is_being_recorded: bool,
}

impl Activity {
    fn entries(&self) -> MutexGuard<'_, HashMap<WorkspaceId, Entry>> {
        // The guarded sections cannot panic halfway through a change.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a use.
    fn note(&self, id: WorkspaceId, at: Timestamp) {
        let mut entries = self.entries();
        let fresh = Entry { last_at: at, sessions: 0, is_being_recorded: false };
        let entry = entries.entry(id).or_insert(fresh);
        entry.last_at = entry.last_at.max(at);
    }

    /// When the workspace was last used as far as is remembered here; now while a session is open.
    pub(crate) fn last(&self, id: WorkspaceId, now: Timestamp) -> Option<Timestamp> {
        let entry = *self.entries().get(&id)?;
        Some(if entry.sessions > 0 { now } else { entry.last_at })
    }

    fn open_session(&self, id: WorkspaceId, at: Timestamp) {
        self.note(id, at);
        if let Some(entry) = self.entries().get_mut(&id) {
            entry.sessions += 1;
        }
    }

    fn close_session(&self, id: WorkspaceId, at: Timestamp) {
        self.note(id, at);
        if let Some(entry) = self.entries().get_mut(&id) {
            entry.sessions = entry.sessions.saturating_sub(1);
        }
    }

    /// Whether the caller is the one to record this workspace's use now.
    fn begin_recording(&self, id: WorkspaceId) -> bool {
        self.entries()
            .get_mut(&id)
            .is_some_and(|entry| !std::mem::replace(&mut entry.is_being_recorded, true))
    }

    /// A use up to `recorded` is in the record: nothing older has to be remembered.
    fn end_recording(&self, id: WorkspaceId, recorded: Option<Timestamp>) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&id) else { return };
        entry.is_being_recorded = false;
        if entry.sessions == 0 && recorded.is_some_and(|at| entry.last_at <= at) {
            entries.remove(&id);
        }
    }

    /// The workspaces whose last use may not be recorded.
    fn unrecorded(&self) -> Vec<WorkspaceId> {
        self.entries().keys().copied().collect()
    }

    /// Forgets a workspace no rule asks about, unless a session is open.
    fn forget(&self, id: WorkspaceId) {
        let mut entries = self.entries();
        if entries.get(&id).is_some_and(|entry| entry.sessions == 0) {
            entries.remove(&id);
        }
    }
}

/// A session that is open; closed when dropped.
pub(crate) struct Session {
    inner: Arc<Inner>,
    id: WorkspaceId,
}

impl Session {
    fn open(inner: &Arc<Inner>, id: WorkspaceId) -> Self {
        inner.activity.open_session(id, inner.now());
        Self { inner: Arc::clone(inner), id }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.inner.activity.close_session(self.id, self.inner.now());
    }
}

impl Inner {
    /// Notes a use, and records it off the request's path if the recorded one is old.
    pub(crate) fn note_activity(self: &Arc<Self>, workspace: &Workspace) {
        // Where no rule asks, nobody has to remember.
        let Some(policy) = idle_rule(workspace) else { return };
        let now = self.now();
        let id = workspace.id;
        self.activity.note(id, now);
        let every = (i64::from(policy.after_seconds) / RECORDED_PART).min(RECORDED_EVERY_SECONDS);
        let is_fresh =
            workspace.last_active_at.is_some_and(|at| now.duration_since(at).as_secs() < every);
        if is_fresh || self.ending.is_cancelled() || !self.activity.begin_recording(id) {
            return;
        }
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            let recorded = match inner.ending.run_until_cancelled(inner.record_activity(id)).await {
                Some(Ok(recorded)) => recorded,
                Some(Err(error)) => {
                    tracing::warn!(workspace.id = %id, %error, "a use could not be recorded");
                    None
                }
                None => None,
            };
            inner.activity.end_recording(id, recorded);
        });
    }

    /// Records the last use that is remembered, if it is later than the recorded one; answers which
    /// use is in the record afterwards.
    async fn record_activity(&self, id: WorkspaceId) -> Result<Option<Timestamp>, Error> {
        loop {
            let Some(mut workspace) = self.store.workspace(id).await? else {
                // Nothing is left that could be idle.
                return Ok(Some(Timestamp::MAX));
            };
            let last = self.activity.last(id, self.now());
            if last <= workspace.last_active_at {
                return Ok(workspace.last_active_at);
            }
            workspace.last_active_at = last;
            match self.write_activity(&workspace).await? {
                Write::Done(()) => return Ok(last),
                Write::Stale | Write::Taken => {}
            }
        }
    }

    /// Writes a record's last use and the timers that follow from it, and nothing else.
    pub(crate) async fn write_activity(&self, workspace: &Workspace) -> Result<Write<()>, Error> {
        let at = workspace.last_active_at.unwrap_or(workspace.created_at);
        let due_at = workspace.due_at();
        self.store.note_activity(workspace.id, workspace.revision, at, due_at).await
    }

    /// Records every use that is remembered, and forgets those that no rule asks about.
    pub(crate) async fn record_all_activity(&self) -> Result<(), Error> {
        for id in self.activity.unrecorded() {
            let asked =
                self.store.workspace(id).await?.is_some_and(|found| idle_rule(&found).is_some());
            if asked && self.activity.begin_recording(id) {
                let recorded = self.record_activity(id).await;
                self.activity.end_recording(id, *recorded.as_ref().unwrap_or(&None));
                recorded?;
            } else if !asked {
                self.activity.forget(id);
            }
        }
        Ok(())
    }
}

/// The rule about idleness that holds for the workspace.
fn idle_rule(workspace: &Workspace) -> Option<IdlePolicy> {
    workspace.spec.idle.filter(|_| !workspace.spec.keep_active)
}
