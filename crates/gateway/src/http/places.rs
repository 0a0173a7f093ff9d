//! How many connections lead into one workspace at a time.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use skerry_model::WorkspaceId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::Limits;

/// One entry for each workspace with a visitor.
pub(super) struct Places {
    by_workspace: Arc<Mutex<HashMap<WorkspaceId, Arc<Door>>>>,
    limits: Limits,
}

struct Door {
    connections: Arc<Semaphore>,
    /// Those who have a connection or wait for one.
    visitors: AtomicUsize,
}

/// The right to a connection.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    _visitor: Visitor,
}

/// Counted until dropped.
struct Visitor {
    by_workspace: Arc<Mutex<HashMap<WorkspaceId, Arc<Door>>>>,
    workspace: WorkspaceId,
    door: Arc<Door>,
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let mut by_workspace = self.by_workspace.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody comes in while the map is held.
        if self.door.visitors.fetch_sub(1, Ordering::Relaxed) == 1 {
            by_workspace.remove(&self.workspace);
        }
    }
}

impl Places {
    pub(super) fn new(limits: Limits) -> Self {
        Self { by_workspace: Arc::default(), limits }
    }

    /// A place, when one is free soon enough.
    pub(super) async fn take(&self, workspace: WorkspaceId) -> Option<Place> {
        let visitor = self.enter(workspace)?;
        let connections = Arc::clone(&visitor.door.connections);
        let permit = timeout(self.limits.place_within, connections.acquire_owned()).await;
        // The semaphore is never closed.
        Some(Place { _permit: permit.ok()?.ok()?, _visitor: visitor })
    }

    fn enter(&self, workspace: WorkspaceId) -> Option<Visitor> {
        let mut by_workspace = self.by_workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let door = by_workspace.entry(workspace).or_insert_with(|| {
            let connections = Arc::new(Semaphore::new(self.limits.connections));
            Arc::new(Door { connections, visitors: AtomicUsize::new(0) })
        });
        if door.visitors.load(Ordering::Relaxed) >= self.limits.connections + self.limits.waiting {
            return None;
        }
        door.visitors.fetch_add(1, Ordering::Relaxed);
        let door = Arc::clone(door);
        Some(Visitor { by_workspace: Arc::clone(&self.by_workspace), workspace, door })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FIRST: WorkspaceId = WorkspaceId::from_u128(1);
    const SECOND: WorkspaceId = WorkspaceId::from_u128(2);

    #[tokio::test(start_paused = true)]
    async fn one_workspace_has_so_many_connections_and_so_many_who_wait() {
        let limits = Limits { connections: 2, waiting: 1, ..Limits::default() };
        let places = Arc::new(Places::new(limits));
        let first = places.take(FIRST).await.unwrap();
        let second = places.take(FIRST).await.unwrap();
        let third = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.take(FIRST).await }
        });
        tokio::task::yield_now().await;
        assert!(places.take(FIRST).await.is_none(), "two are in, one waits");
        assert!(places.take(SECOND).await.is_some());
        drop(first);
        assert!(third.await.unwrap().is_some());
        drop(second);
        assert!(places.by_workspace.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let limits =
            Limits { connections: 1, place_within: Duration::from_secs(1), ..Limits::default() };
        let places = Places::new(limits);
        let first = places.take(FIRST).await.unwrap();
        assert!(places.take(FIRST).await.is_none());
        drop(first);
        assert!(places.take(FIRST).await.is_some());
    }
}
