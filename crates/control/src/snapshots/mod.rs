//! Use cases on snapshots: taking, listing, renaming, deleting. A snapshot belongs to an account and
//! outlives the workspace it was taken of.

mod create;
mod manage;

use std::collections::BTreeMap;

use skerry_model::{Snapshot, SnapshotContents, SnapshotId, SnapshotPurpose, WorkspaceId};

/// How a request names a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotRef {
    /// By identity.
    Id(SnapshotId),
    /// The newest ready one of this name, or the newest one if none is ready.
    Name(String),
    /// The newest ready one that was taken of this workspace; not one of a fork.
    LatestOf(WorkspaceId),
}

/// What a new snapshot should be.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateSnapshot {
    /// 1 to 255 characters, no control characters; `None`: made from the workspace's name. Not unique.
    pub name: Option<String>,
    /// `None`: disk and memory of a workspace that runs or is paused, else the disk.
    pub contents: Option<SnapshotContents>,
    /// Labels: at most 64 KiB as JSON.
    pub metadata: BTreeMap<String, serde_json::Value>,
}

/// What to change; `None` leaves as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpdateSnapshot {
    /// New name.
    pub name: Option<String>,
    /// New labels (replace).
    pub metadata: Option<BTreeMap<String, serde_json::Value>>,
}

/// Which snapshots to list; newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListSnapshots {
    /// Only of this workspace, which may be gone.
    pub workspace_id: Option<WorkspaceId>,
    /// Only of this name.
    pub name: Option<String>,
    /// Only taken for one of these purposes; empty means all.
    pub purposes: Vec<SnapshotPurpose>,
    /// Only in a state of one of these names ([`skerry_model::SnapshotState::name`]); empty means all.
    pub states: Vec<&'static str>,
    /// Skip this many.
    pub offset: u64,
    /// At most this many; `None` means all.
    pub limit: Option<u64>,
}

/// What is left of a snapshot that was deleted.
#[derive(Clone, Debug, PartialEq)]
pub struct DeletedSnapshot {
    /// The record as it was last.
    pub snapshot: Snapshot,
    /// Whether everything is gone already; `false` means it goes on in the background.
    pub complete: bool,
}
