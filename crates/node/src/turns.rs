//! Whose turn it is to start. A boot keeps a CPU busy for seconds, a restore for a moment: each kind waits
//! for its own, so that many boots do not hold up what is nearly there. A VM of the pool is there, and
//! waits for nobody.

use std::{
    collections::HashSet,
    num::NonZero,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use skerry_model::WorkspaceId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{Error, NodeConfig};

/// What a start costs the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// The kernel starts.
    Boot,
    /// A saved state is loaded.
    Restore,
}

/// Those who start and those who wait for it.
#[derive(Debug)]
pub(crate) struct Turns {
    boots: Arc<Semaphore>,
    restores: Arc<Semaphore>,
    waiting: Arc<Mutex<HashSet<WorkspaceId>>>,
}

/// The permission to start; given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    effort: Effort,
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    /// For what it is.
    pub const fn effort(&self) -> Effort {
        self.effort
    }
}

impl Turns {
    pub fn new(config: &NodeConfig) -> Self {
        let semaphore = |count: NonZero<usize>| {
            Arc::new(Semaphore::new(count.get().min(Semaphore::MAX_PERMITS)))
        };
        Self {
            boots: semaphore(config.boot_concurrency),
            restores: semaphore(config.restore_concurrency),
            waiting: Arc::default(),
        }
    }

    /// Waits for a turn; those who came first go first.
    pub async fn take(
        &self,
        effort: Effort,
        workspace_id: WorkspaceId,
        cancel: &CancellationToken,
    ) -> Result<Turn, Error> {
        let queue = match effort {
            Effort::Boot => &self.boots,
            Effort::Restore => &self.restores,
        };
        let _waits = Waits::begin(&self.waiting, workspace_id);
        let permit = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Error::Cancelled),
            permit = Arc::clone(queue).acquire_owned() => permit,
        };
        // Nobody closes it.
        let permit = permit.map_err(|_| Error::Cancelled)?;
        Ok(Turn { effort, _permit: permit })
    }

    /// Whether a start of this workspace waits for its turn now.
    pub fn is_awaited_by(&self, workspace_id: WorkspaceId) -> bool {
        lock(&self.waiting).contains(&workspace_id)
    }
}

/// A workspace is among those who wait; until dropped.
struct Waits {
    workspace_id: WorkspaceId,
    waiting: Arc<Mutex<HashSet<WorkspaceId>>>,
}

impl Waits {
    fn begin(waiting: &Arc<Mutex<HashSet<WorkspaceId>>>, workspace_id: WorkspaceId) -> Self {
        lock(waiting).insert(workspace_id);
        Self { workspace_id, waiting: Arc::clone(waiting) }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.workspace_id);
    }
}

fn lock(waiting: &Mutex<HashSet<WorkspaceId>>) -> MutexGuard<'_, HashSet<WorkspaceId>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
