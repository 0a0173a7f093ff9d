//! Starts from a snapshot's memory: from the stream that it is, or, where many start from it, from
//! memory that they share.

use std::{path::PathBuf, time::Duration};

use skerry_model::SnapshotId;
use skerry_vmm::RestoredMemory;
use tokio::time::Instant;

use super::{
    BringUp, Whose,
    ground::{Begin, Ground},
};
use crate::{
    Error,
    promotion::{Arrival, Relation},
    saved::{About, RAM_FILE, STATE_FILE, SavedStates, Sealed},
};

/// How long a start waits for memory that is being promoted. Then it loads the stream: it has waited
/// for longer than that takes.
const PROMOTED_WITHIN: Duration = Duration::from_secs(30);

/// A snapshot's disk and a form of its memory.
#[derive(Clone, Debug)]
pub(super) struct SnapshotMemory {
    pub id: SnapshotId,
    pub snapshot: Sealed,
    /// What has to be whole before the guest runs.
    pub checked: Vec<Checked>,
    pub state: PathBuf,
    pub memory: RestoredMemory,
}

/// What has to be as it was sealed.
#[derive(Clone, Debug)]
pub(super) enum Checked {
    /// All of it.
    All(Sealed),
    /// The layers of its disk.
    Disk(Sealed),
}

impl Checked {
    /// Reads what was not read before in this life of the server. Blocks.
    pub fn verify(&self, states: &SavedStates) -> Result<(), Error> {
        match self {
            Self::All(sealed) => states.verify(sealed),
            Self::Disk(sealed) => states.verify_disk(sealed),
        }
    }
}

impl SnapshotMemory {
    /// The memory as it was saved: each start loads it.
    pub fn stream(id: SnapshotId, snapshot: Sealed) -> Result<Self, Error> {
        let state = file_of(&snapshot, STATE_FILE)?;
        let (checked, memory) = (vec![Checked::All(snapshot.clone())], RestoredMemory::InState);
        Ok(Self { id, snapshot, checked, state, memory })
    }

    /// The same, mapped from `promoted`.
    pub fn shared(self, promoted: Sealed) -> Result<Self, Error> {
        let state = file_of(&promoted, STATE_FILE)?;
        let memory = RestoredMemory::CloneOf { file: file_of(&promoted, RAM_FILE)? };
        let checked = vec![Checked::Disk(self.snapshot.clone()), Checked::All(promoted)];
        Ok(Self { checked, state, memory, ..self })
    }

    /// The same, loaded into a file that others can share.
    pub fn into_file(self) -> Self {
        Self { memory: RestoredMemory::InStateToFile, ..self }
    }

    /// Whether it is mapped from memory that others share.
    pub fn is_shared(&self) -> bool {
        match self.memory {
            RestoredMemory::CloneOf { .. } => true,
            RestoredMemory::InState | RestoredMemory::InStateToFile => false,
        }
    }

    /// From what to start when this fails.
    pub fn instead(&self) -> Option<Self> {
        self.is_shared().then(|| Self::stream(self.id, self.snapshot.clone()).ok()).flatten()
    }
}

impl BringUp<'_> {
    /// Looks again once the memory is promoted that this start could share, if it is being promoted.
    pub(super) async fn await_promotion(&self, ground: Ground) -> Result<Ground, Error> {
        let Begin::SnapshotMemory(memory) = &ground.begin else { return Ok(ground) };
        if memory.is_shared() || self.whose == Whose::Nobody {
            return Ok(ground);
        }
        let arrival =
            self.host.promotions.arrive(memory.id, self.relation_to(memory), Instant::now());
        let over = match arrival {
            Arrival::Load => return Ok(ground),
            Arrival::Wait(over) => over,
        };
        self.host.pool.wake();
        tokio::select! {
            () = over.cancelled() => {}
            () = tokio::time::sleep(PROMOTED_WITHIN) => {
                tracing::warn!(snapshot.id = %memory.id, "memory to share is not there in time");
            }
            () = self.cancel.cancelled() => return Err(Error::Cancelled),
        }
        self.look().await
    }

    /// A start from a snapshot's memory has succeeded: the next may be faster.
    pub(super) fn has_started_from(&self, memory: &SnapshotMemory) {
        if memory.is_shared() {
            self.host.starts.count_memory_clone();
            self.host.promotions.worked(memory.id);
        } else if self.host.promotions.loaded(memory.id, self.relation_to(memory)) {
            self.host.pool.wake();
        }
    }

    fn relation_to(&self, memory: &SnapshotMemory) -> Relation {
        match memory.snapshot.manifest.about {
            About::Snapshot { workspace_id, .. } if workspace_id == self.spec.workspace_id => {
                Relation::Own
            }
            About::Snapshot { .. }
            | About::Template
            | About::PromotedMemory { .. }
            | About::SuspendedMemory { .. } => Relation::Fork,
        }
    }
}

fn file_of(sealed: &Sealed, name: &str) -> Result<PathBuf, Error> {
    sealed.file(name).ok_or_else(|| Error::SavedState {
        path: sealed.place().to_owned(),
        problem: format!("has no {name}"),
    })
}
