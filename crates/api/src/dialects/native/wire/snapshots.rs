//! Snapshots, restoring and forking.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{Failure, Workspace};

/// What a snapshot contains.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotContents {
    /// Disk and memory at one instant.
    DiskAndMemory,
    /// The disk, its file systems synced.
    Disk,
}

/// Why a snapshot was taken.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotPurpose {
    /// It was asked for.
    User,
    /// For a fork; it goes away by itself.
    Fork,
    /// Before a deletion.
    Terminate,
}

/// How far a snapshot is.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Being taken.
    Creating,
    /// Complete and usable.
    Ready,
    /// It did not come about, or is lost.
    Failed,
    /// Being removed.
    Deleting,
}

/// A saved state of a workspace. It outlives the workspace and never changes.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Snapshot {
    /// Its identity, a UUID.
    pub id: String,
    /// The name for people; not unique.
    pub name: String,
    /// Of which workspace it was taken; that may be gone.
    pub workspace_id: String,
    /// Why it was taken.
    pub purpose: SnapshotPurpose,
    /// What it contains.
    pub contents: SnapshotContents,
    /// How far it is.
    pub state: SnapshotState,
    /// Why it failed; present in the state `failed`.
    pub failure: Option<Failure>,
    /// The image at the bottom of its disk.
    pub image: String,
    /// The same by content.
    pub image_digest: String,
    /// Virtual CPUs of the machine it was taken of.
    pub vcpu_count: u32,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// Its writable disk space in MiB.
    pub disk_mib: u32,
    /// Bytes on the host's disk that are the snapshot's own; 0 until it is ready.
    pub size_bytes: u64,
    /// How long the guest stood still for it, in milliseconds.
    pub blackout_ms: Option<f64>,
    /// When it was complete.
    #[schema(format = DateTime, value_type = Option<String>)]
    pub taken_at: Option<String>,
    /// The tenant's labels.
    #[schema(value_type = BTreeMap<String, Value>)]
    pub metadata: BTreeMap<String, Value>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When the record last changed.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

/// A snapshot to take. Everything has a default.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Absent: made from the workspace's name.
    #[schema(min_length = 1, max_length = 255)]
    pub name: Option<String>,
    /// Absent: disk and memory of a workspace that runs or is paused, else the disk.
    pub contents: Option<SnapshotContents>,
    /// Labels: at most 64 KiB as JSON.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Value>)]
    pub metadata: BTreeMap<String, Value>,
}

/// What to change of a snapshot; what is absent stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSnapshot {
    /// New name.
    #[schema(min_length = 1, max_length = 255)]
    pub name: Option<String>,
    /// New labels, replacing the old ones.
    #[schema(value_type = Option<BTreeMap<String, Value>>)]
    pub metadata: Option<BTreeMap<String, Value>>,
}

/// Which snapshots to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListSnapshotsQuery {
    /// Only those taken of this workspace: its id in any API's form, also of one that is gone, or the
    /// slug or name of one that is there.
    pub workspace: Option<String>,
    /// Only those of this name.
    pub name: Option<String>,
    /// Only those in one of these states, separated by commas.
    #[param(example = "ready")]
    pub state: Option<String>,
    /// Skip this many.
    #[serde(default)]
    pub offset: u64,
    /// At most this many, 1 to 1000. Absent: 100.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u64>,
}

/// Part of the caller's snapshots, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct SnapshotList {
    /// The snapshots.
    pub snapshots: Vec<Snapshot>,
    /// How many there are in all with this filter.
    pub total: u64,
    /// How many were skipped.
    pub offset: u64,
    /// How many were asked for.
    pub limit: u64,
}

/// What is left of a snapshot that was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedSnapshot {
    /// The record as it was last.
    pub snapshot: Snapshot,
    /// Whether everything is gone already; if not, it goes on by itself.
    pub complete: bool,
}

/// To what a workspace is restored.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreWorkspace {
    /// A snapshot of the account: its id, or its name (the newest ready one of that name).
    pub snapshot: String,
    /// Whether it runs afterwards in any case; absent: if it ran, or had memory, before. One that is
    /// not to run is restored by its next start.
    #[serde(default)]
    pub start: bool,
}

/// Workspaces that go on where this one is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkWorkspace {
    /// How many.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 256, default = 1)]
    pub count: u32,
    /// Their name, numbered from 1 when there are several; absent: made from the source's.
    #[schema(min_length = 1, max_length = 255)]
    pub name: Option<String>,
    /// Their labels; absent: the source's.
    #[schema(value_type = Option<BTreeMap<String, Value>>)]
    pub metadata: Option<BTreeMap<String, Value>>,
    /// Keeps the snapshot they are made from, under this name; absent: it is deleted once no fork
    /// needs it.
    #[schema(min_length = 1, max_length = 255)]
    pub snapshot_name: Option<String>,
    /// Whether they are started at once; absent: yes.
    #[serde(default = "yes")]
    pub start: bool,
}

const fn one() -> u32 {
    1
}

const fn yes() -> bool {
    true
}

/// What came of a fork.
#[derive(Debug, Serialize, ToSchema)]
pub struct Forked {
    /// The snapshot the forks are made from.
    pub snapshot_id: String,
    /// The same as it is now; `null` once no fork needs it any more.
    pub snapshot: Option<Snapshot>,
    /// The forks in order of their numbers.
    pub workspaces: Vec<Workspace>,
}
