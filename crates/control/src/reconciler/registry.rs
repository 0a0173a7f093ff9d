//! Who is at work on which workspace, and who waits for which.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use skerry_model::{ApiKeyId, Timestamp};
use tokio::sync::Notify;

/// The workers, at most one for each workspace or snapshot.
pub(crate) struct Workers<K> {
    at_work: Mutex<HashMap<K, Worker>>,
}

impl<K> Default for Workers<K> {
    fn default() -> Self {
        Self { at_work: Mutex::default() }
    }
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

impl<K: Copy + Eq + Hash> Workers<K> {
    /// Wakes the workspace's worker; answers a post when there is none and one must be started.
    pub(crate) fn wake(&self, id: K) -> Option<Post> {
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
    pub(crate) fn may_leave(&self, id: K) -> bool {
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

    /// Whether nobody is at work.
    pub(crate) fn is_idle(&self) -> bool {
        held(&self.at_work).is_empty()
    }

    /// Takes the worker off the list whatever happened: it is going.
    pub(crate) fn left(&self, id: K, bell: &Arc<Notify>) {
        let mut workers = held(&self.at_work);
        // After `may_leave` the entry may be a successor's.
        if workers.get(&id).is_some_and(|worker| Arc::ptr_eq(&worker.bell, bell)) {
            workers.remove(&id);
        }
    }
}

/// Uses of keys that are being recorded.
#[derive(Default)]
pub(crate) struct KeyUses {
    touching: Mutex<HashMap<ApiKeyId, Timestamp>>,
}

impl KeyUses {
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

/// Requests waiting for a record to change: one bell for each workspace or snapshot that is waited for.
pub(crate) struct Watchers<K> {
    bells: Arc<Mutex<HashMap<K, Bell>>>,
}

impl<K> Default for Watchers<K> {
    fn default() -> Self {
        Self { bells: Arc::default() }
    }
}

struct Bell {
    bell: Arc<Notify>,
    listeners: usize,
}

/// One request's wait; gives its place back when dropped.
pub(crate) struct Watcher<K: Copy + Eq + Hash> {
    id: K,
    bells: Arc<Mutex<HashMap<K, Bell>>>,
    pub(crate) bell: Arc<Notify>,
}

impl<K: Copy + Eq + Hash> Watchers<K> {
    pub(crate) fn watch(&self, id: K) -> Watcher<K> {
        let mut bells = held(&self.bells);
        let entry =
            bells.entry(id).or_insert_with(|| Bell { bell: Arc::new(Notify::new()), listeners: 0 });
        entry.listeners += 1;
        Watcher { id, bells: Arc::clone(&self.bells), bell: Arc::clone(&entry.bell) }
    }

    pub(crate) fn announce(&self, id: K) {
        if let Some(entry) = held(&self.bells).get(&id) {
            entry.bell.notify_waiters();
        }
    }
}

impl<K: Copy + Eq + Hash> Drop for Watcher<K> {
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
