//! The record of a snapshot, its small state machine, and what to do next with it.
//!
//! ```text
//!   creating ──taken──▶ ready ◀──found again── failed
//!      │                  │ └──lost──▶ failed     ▲
//!      └──────failed──────┼──────────────────────┘
//!   every state ──deletion begun──▶ deleting ──▶ (the record is gone)
//! ```
//!
//! A snapshot belongs to an account, not to the workspace it was taken of: it outlives it.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    AccountId, DisplayName, Failure, FailureCode, ImageRef, Shape, SnapshotId, Timestamp,
    WorkspaceId, spec::ImageDigest,
};

/// What a start begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum StartFrom {
    /// The workspace's own disk, made from its image the first time. The machine boots, or comes
    /// from the warm pool or a template where that is the same to the tenant.
    #[default]
    Disk,
    /// The memory that a suspension saved, on the workspace's own disk. Saved memory that is
    /// missing or damaged is an error, never a silent boot.
    SavedMemory,
    /// A snapshot: its disk replaces the workspace's, and its memory (if it has one and the shape
    /// is the same) is restored. What the workspace had is kept until the start has succeeded.
    Snapshot {
        /// Which.
        snapshot_id: SnapshotId,
    },
}

impl StartFrom {
    /// The snapshot it cannot do without.
    #[must_use]
    pub const fn snapshot_id(self) -> Option<SnapshotId> {
        match self {
            Self::Disk | Self::SavedMemory => None,
            Self::Snapshot { snapshot_id } => Some(snapshot_id),
        }
    }
}

/// How a VM came to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartPath {
    /// It was waiting in the pool, restored and paused.
    Pool,
    /// Restored from a template.
    Template,
    /// Booted.
    Boot,
    /// Restored from memory that a suspension saved.
    SavedMemory,
    /// Restored from a snapshot's memory.
    SnapshotMemory,
}

/// What a snapshot has to contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotContents {
    /// Disk and memory at one instant. Needs a running or paused VM.
    DiskAndMemory,
    /// The disk, with its file systems frozen and synced while a VM runs; of a stopped workspace as
    /// it lies there.
    Disk,
}

impl SnapshotContents {
    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DiskAndMemory => "disk_and_memory",
            Self::Disk => "disk",
        }
    }
}

/// Why a snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotPurpose {
    /// The tenant asked for it; stays until deleted. Counts against the plan.
    User,
    /// For a fork; deleted once no fork needs it any more.
    Fork,
    /// Before a deletion; stays until deleted. Counts against the plan but is never refused by it.
    Terminate,
}

impl SnapshotPurpose {
    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Fork => "fork",
            Self::Terminate => "terminate",
        }
    }
}

/// How far a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SnapshotState {
    /// Being taken.
    Creating,
    /// Complete and usable.
    Ready,
    /// It did not come about, or is gone from its node.
    Failed(Failure),
    /// Being removed.
    Deleting,
}

impl SnapshotState {
    /// The state's name, as used in logs, errors and the native API.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Failed(_) => "failed",
            Self::Deleting => "deleting",
        }
    }
}

/// What the node says of a complete snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// What it contains.
    pub contents: SnapshotContents,
    /// The shape of the machine it was taken of.
    pub shape: Shape,
    /// Bytes on the node's disk that are the snapshot's own, memory included.
    pub size_bytes: u64,
    /// How long the guest stood still for it; zero for a stopped one.
    pub blackout: Duration,
    /// When it was complete.
    pub taken_at: Timestamp,
}

/// A snapshot. `control::store` is the only writer.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Its identity; dialects render it in their own form.
    pub id: SnapshotId,
    /// Who owns it.
    pub account_id: AccountId,
    /// Of which workspace it was taken; that workspace may be gone.
    pub workspace_id: WorkspaceId,
    /// The name for people. Not unique.
    pub name: DisplayName,
    /// Why it was taken.
    pub purpose: SnapshotPurpose,
    /// What it contains.
    pub contents: SnapshotContents,
    /// How far it is.
    pub state: SnapshotState,
    /// The image at the bottom of its disk, by name.
    pub image: ImageRef,
    /// The same by content.
    pub image_digest: ImageDigest,
    /// The size of the machine it was taken of.
    pub shape: Shape,
    /// Bytes on the node's disk that are its own; zero until it is ready.
    pub size_bytes: u64,
    /// How long the guest stood still for it; `None` until it is ready.
    pub blackout: Option<Duration>,
    /// When it was complete.
    pub taken_at: Option<Timestamp>,
    /// The tenant's own labels: at most 64 KiB as JSON.
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When the record last changed.
    pub updated_at: Timestamp,
    /// Counts the writes of this record; a write with a stale number is refused.
    pub revision: u64,
}

/// Something that happened to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotEvent {
    /// It is complete on its node.
    Taken(SnapshotFacts),
    /// It did not come about; the node has nothing of it.
    Failed(Failure),
    /// It was ready and is no longer on its node.
    Lost(Failure),
    /// Its deletion begins.
    DeletionBegun,
}

impl Snapshot {
    /// Applies something that happened; answers whether the record changed. A deletion is accepted in
    /// every state and nothing after it.
    pub fn apply(&mut self, event: &SnapshotEvent) -> bool {
        let next = match (&self.state, event) {
            (SnapshotState::Deleting, _) => return false,
            (
                SnapshotState::Creating | SnapshotState::Ready | SnapshotState::Failed(_),
                SnapshotEvent::DeletionBegun,
            ) => SnapshotState::Deleting,
            (SnapshotState::Creating | SnapshotState::Failed(_), SnapshotEvent::Taken(facts)) => {
                self.contents = facts.contents;
                self.shape = facts.shape;
                self.size_bytes = facts.size_bytes;
                self.blackout = Some(facts.blackout);
                self.taken_at = Some(facts.taken_at);
                SnapshotState::Ready
            }
            (SnapshotState::Creating, SnapshotEvent::Failed(failure))
            | (SnapshotState::Ready, SnapshotEvent::Lost(failure)) => {
                self.size_bytes = 0;
                SnapshotState::Failed(failure.clone())
            }
            (SnapshotState::Ready, SnapshotEvent::Taken(_) | SnapshotEvent::Failed(_))
            | (SnapshotState::Creating, SnapshotEvent::Lost(_))
            | (SnapshotState::Failed(_), SnapshotEvent::Failed(_) | SnapshotEvent::Lost(_)) => {
                return false;
            }
        };
        self.state = next;
        true
    }
}

/// The next step with one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotStep {
    /// Have the node take it (a repetition is harmless) and record what came of it.
    Take,
    /// Have the node remove it, then remove the record.
    Delete,
    /// Record this and decide again.
    Record(SnapshotEvent),
    /// It is as it should be.
    Nothing,
}

/// Decides the next step from the record and from what its node has under its identifier. Pure and
/// total.
#[must_use]
pub fn next_snapshot_step(
    snapshot: &Snapshot,
    observed: Option<&SnapshotFacts>,
    now: Timestamp,
) -> SnapshotStep {
    match (&snapshot.state, observed) {
        (SnapshotState::Deleting, _) => SnapshotStep::Delete,
        (SnapshotState::Creating, None) => SnapshotStep::Take,
        // Its outcome was not heard, or it came about after it was given up.
        (SnapshotState::Creating | SnapshotState::Failed(_), Some(facts)) => {
            SnapshotStep::Record(SnapshotEvent::Taken(facts.clone()))
        }
        (SnapshotState::Ready, None) => {
            let message = "the snapshot is no longer on its node";
            let failure = Failure::new(FailureCode::SavedStateUnusable, message, now);
            SnapshotStep::Record(SnapshotEvent::Lost(failure))
        }
        (SnapshotState::Ready, Some(_)) | (SnapshotState::Failed(_), None) => SnapshotStep::Nothing,
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
