//! Who is at work on which workspace, and who waits for which.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use skerry_model::{ApiKeyId, Timestamp, WorkspaceId};
use tokio::sync::Notify;

/// The workers, at most one for each workspace.
#[derive(Default)]
pub(crate) struct Workers {
    at_work: Mutex<HashMap<WorkspaceId, Worker>>,
    touching: Mutex<HashMap<ApiKeyId, Timestamp>>,
}

struct Worker {
    bell: Arc<Notify>,
    /// Woken since it last began to look: it must look once more before it goes.
    again: bool,
}

/// A worker's own side of its entry: rung when the workspace should be looked at again.
pub(crate) struct Post {
    pub(crate) bell: Arc<Notify>,
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded sections cannot panic halfway through a change.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workers {
    /// Wakes the workspace's worker; answers a post when there is none and one must be started.
    pub(crate) fn wake(&self, id: WorkspaceId) -> Option<Post> {
        match held(&self.at_work).entry(id) {
            Entry::Occupied(mut entry) => {
                entry.get_mut().again = true;
                entry.get().bell.notify_one();
                None
            }
            Entry::Vacant(entry) => {
                let bell = Arc::new(Notify::new());
                entry.insert(Worker { bell: Arc::clone(&bell), again: false });
                Some(Post { bell })
            }
        }
    }

    /// Takes the worker off the list, unless it was woken since it last asked.
    pub(crate) fn may_leave(&self, id: WorkspaceId) -> bool {
        let mut workers = held(&self.at_work);
        match workers.get_mut(&id) {
            Some(worker) if worker.again => {
                worker.again = false;
                false
            }
            Some(_) | None => {
                workers.remove(&id);
                true
            }
        }
    }

    /// Takes the worker off the list whatever happened: it is going.
    pub(crate) fn left(&self, id: WorkspaceId, bell: &Arc<Notify>) {
        let mut workers = held(&self.at_work);
        // After `may_leave` the entry may be a successor's.
        if workers.get(&id).is_some_and(|worker| Arc::ptr_eq(&worker.bell, bell)) {
            workers.remove(&id);
        }
    }

    /// Whether the caller is the one to record this use of the key now.
    pub(crate) fn begin_touch(&self, key: ApiKeyId, at: Timestamp) -> bool {
        match held(&self.touching).entry(key) {
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                entry.insert(at);
                true
            }
        }
    }

    /// The uses that are being recorded.
    pub(crate) fn touching(&self) -> HashMap<ApiKeyId, Timestamp> {
        held(&self.touching).clone()
    }

    /// The use is recorded.
    pub(crate) fn end_touch(&self, key: ApiKeyId) {
        held(&self.touching).remove(&key);
    }
}

/// Requests waiting for a record to change: one bell for each workspace that is waited for.
#[derive(Default)]
pub(crate) struct Watchers {
    bells: Arc<Mutex<HashMap<WorkspaceId, Bell>>>,
}

struct Bell {
    bell: Arc<Notify>,
    listeners: usize,
}

/// One request's wait; gives its place back when dropped.
pub(crate) struct Watcher {
    id: WorkspaceId,
    bells: Arc<Mutex<HashMap<WorkspaceId, Bell>>>,
    pub(crate) bell: Arc<Notify>,
}

impl Watchers {
    pub(crate) fn watch(&self, id: WorkspaceId) -> Watcher {
        let mut bells = held(&self.bells);
        let entry =
            bells.entry(id).or_insert_with(|| Bell { bell: Arc::new(Notify::new()), listeners: 0 });
        entry.listeners += 1;
        Watcher { id, bells: Arc::clone(&self.bells), bell: Arc::clone(&entry.bell) }
    }

    pub(crate) fn announce(&self, id: WorkspaceId) {
        if let Some(entry) = held(&self.bells).get(&id) {
            entry.bell.notify_waiters();
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut bells = held(&self.bells);
        if let Some(entry) = bells.get_mut(&self.id) {
            entry.listeners -= 1;
            if entry.listeners == 0 {
                bells.remove(&self.id);
            }
        }
    }
}
