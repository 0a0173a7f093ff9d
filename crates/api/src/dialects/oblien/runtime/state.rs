//! What was begun in workspaces through their runtimes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use skerry_model::{Timestamp, WorkspaceId};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{task::Tasks, terminals::Terminals};

/// All of the server. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runtimes {
    all: Arc<Mutex<HashMap<WorkspaceId, Arc<Inside>>>>,
    /// What runs without a call.
    pub(super) running: TaskTracker,
}

/// What was begun in one workspace.
#[derive(Debug, Default)]
pub(super) struct Inside {
    pub(super) tasks: Tasks,
    pub(super) terminals: Terminals,
    /// The connection for terminals: a new one replaces the one before.
    connection: Mutex<Option<CancellationToken>>,
    /// Cancelled when what was opened into ports has to end.
    ports: Mutex<Arc<CancellationToken>>,
}

impl Inside {
    fn is_idle(&self, now: Timestamp) -> bool {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever is on the way to a port holds it.
        Arc::strong_count(&ports) == 1 && self.tasks.is_empty(now) && self.terminals.is_idle()
    }

    /// Takes the connection's place; what is answered is cancelled when another takes it.
    pub(super) fn connect(&self) -> CancellationToken {
        let ours = CancellationToken::new();
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = connection.replace(ours.clone()) {
            before.cancel();
        }
        ours
    }

    /// What is cancelled when requests under way to its ports have to end.
    pub(super) fn ports(&self) -> Arc<CancellationToken> {
        Arc::clone(&self.ports.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn disconnect(&self) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *ports).cancel();
        drop(ports);
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = connection.take() {
            before.cancel();
        }
    }
}

impl Runtimes {
    fn all(&self) -> MutexGuard<'_, HashMap<WorkspaceId, Arc<Inside>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was begun in this workspace. What has ended in others is forgotten when its time is over.
    pub(super) fn of(&self, workspace: WorkspaceId, now: Timestamp) -> Arc<Inside> {
        let mut all = self.all();
        if let Some(inside) = all.get(&workspace) {
            return Arc::clone(inside);
        }
        // Whoever works with one holds it.
        all.retain(|_, one| Arc::strong_count(one) > 1 || !one.is_idle(now));
        Arc::clone(all.entry(workspace).or_default())
    }

    /// Ends everything that was begun in this workspace.
    pub(super) fn close(&self, workspace: WorkspaceId) {
        if let Some(inside) = self.all().remove(&workspace) {
            inside.disconnect();
            inside.tasks.kill_all();
            inside.terminals.kill_all();
        }
    }

    /// Ends connections that were opened by a token that opens nothing any more.
    pub(super) fn disconnect(&self, workspace: WorkspaceId) {
        if let Some(inside) = self.all().get(&workspace) {
            inside.disconnect();
        }
    }

    /// Resolves when nothing runs any more; to be awaited after the listener has ended.
    pub(crate) async fn ended(&self) {
        self.running.close();
        self.running.wait().await;
    }
}
