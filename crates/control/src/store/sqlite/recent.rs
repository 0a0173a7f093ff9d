//! The records written last, in memory: whoever works on a workspace reads its record between any two
//! of its own writes, and asking the database each time costs more than the rest of the work.
//!
//! Only the task that writes adds records, after the commit that made them what they are, and it takes
//! a record out before the commit that changes it. So what is found here is what is in the database;
//! what is not found is asked of the database. This rests on there being one process that writes.

use std::{
    num::NonZero,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;
use skerry_model::{Timestamp, Workspace, WorkspaceId};

use super::picture::WorkspaceWrite;
use crate::store::row::WorkspaceRow;

/// How many records are kept; together with [`MOST_BYTES`], 32 MiB at the very most.
const CAPACITY: NonZero<usize> = NonZero::new(2048).expect("more than zero");
/// A record whose row is longer than this is not kept.
const MOST_BYTES: usize = 16 * 1024;

/// The records written last. Clones are one.
#[derive(Clone)]
pub(super) struct Recent(Arc<Mutex<LruCache<WorkspaceId, Workspace>>>);

impl Recent {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(CAPACITY))))
    }

    fn held(&self) -> MutexGuard<'_, LruCache<WorkspaceId, Workspace>> {
        // The guarded sections cannot panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record, if it is here.
    pub(super) fn get(&self, id: WorkspaceId) -> Option<Workspace> {
        self.held().get(&id).cloned()
    }

    /// Takes out what a commit is about to change.
    pub(super) fn forget(&self, ids: impl IntoIterator<Item = WorkspaceId>) {
        let mut records = self.held();
        for id in ids {
            records.pop(&id);
        }
    }

    /// Takes over what was committed.
    pub(super) fn take_over(&self, write: &WorkspaceWrite) {
        let mut records = self.held();
        // A transaction may have changed it more than once.
        records.pop(&write.id());
        match write {
            WorkspaceWrite::Insert { row, .. } | WorkspaceWrite::Update { row, .. } => {
                if size(row) <= MOST_BYTES {
                    records.put(row.record.id, row.record.clone());
                }
            }
            WorkspaceWrite::Remove { .. } => {}
        }
    }

    /// Takes over a use that was noted in the record of this revision.
    pub(super) fn note_activity(&self, id: WorkspaceId, revision: u64, at: Timestamp) {
        if let Some(record) = self.held().peek_mut(&id).filter(|found| found.revision == revision) {
            record.last_active_at = record.last_active_at.max(Some(at));
        }
    }
}

fn size(row: &WorkspaceRow) -> usize {
    row.spec_json.len() + row.state_json.len() + row.lifecycle_json.len() + row.sealed.len()
}
