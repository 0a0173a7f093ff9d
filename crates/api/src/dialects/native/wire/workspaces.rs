//! Workspaces and what is done with them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{
    AttachVolume, CreateWorkload, IdlePolicy, LifecycleStatus, NetworkWish, Origin, RestartPolicy,
    SnapshotOnTerminate,
};

/// A workspace.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Workspace {
    /// Its identity, a UUID. Every form in `ids`, and the slug, work wherever a workspace is named.
    #[schema(example = "6f1c1d0e-6c0e-4d2b-9d2f-0f6d5f2f8a11")]
    pub id: String,
    /// The identity in the form of each API.
    pub ids: WorkspaceIds,
    /// The name for people; not unique.
    pub name: String,
    /// The name for addresses; unique in the installation.
    pub slug: String,
    /// The project it belongs to.
    pub project_id: String,
    /// The tenant's grouping word.
    pub namespace: Option<String>,
    /// What its disk was made from.
    pub origin: Origin,
    /// The image as it was asked for.
    pub image: String,
    /// What that name meant when the workspace was created.
    #[schema(example = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    pub image_digest: String,
    /// Number of virtual CPUs.
    pub vcpu_count: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Writable disk space in MiB beyond the image.
    pub disk_mib: u32,
    /// CPU share class.
    pub cpu_kind: CpuKind,
    /// Names of the environment variables. Their values are write-only.
    pub env_names: Vec<String>,
    /// Permanent or temporary.
    pub lifetime: Lifetime,
    /// Time to live.
    pub expiry: Option<Expiry>,
    /// What happens when nobody uses it.
    pub idle: Option<IdlePolicy>,
    /// Exempt from the idle policy.
    pub keep_active: bool,
    /// What happens when its VM ends without being asked.
    pub restart: RestartPolicy,
    /// Whether it is deleted when its VM ends by itself.
    pub remove_on_exit: bool,
    /// The snapshot that a deletion takes first.
    pub snapshot_on_terminate: Option<SnapshotOnTerminate>,
    /// Whether using its inside wakes it when it is paused or suspended.
    pub auto_resume: bool,
    /// What happens to the console log at a start.
    pub log_retention: LogRetention,
    /// The tenant's labels.
    #[schema(value_type = BTreeMap<String, Value>)]
    pub metadata: BTreeMap<String, Value>,
    /// What the workspace should be.
    pub desired: Desired,
    /// What it is.
    pub state: State,
    /// When the guest became ready; present while it runs.
    #[schema(format = DateTime, value_type = Option<String>)]
    pub running_since: Option<String>,
    /// How the VM there is, or else the last one, came to run; `null` before the first start, during
    /// a start, and where that is not known.
    pub start_path: Option<StartPath>,
    /// Why it failed; present in the state `failed`.
    pub failure: Option<Failure>,
    /// Counts the starts; 0 when it was never started.
    pub incarnation: u64,
    /// What is remembered for the rules of its life.
    pub lifecycle: LifecycleStatus,
    /// Under which address other workspaces see it, once it was started; `null` without a network.
    pub private_address: Option<String>,
    /// When its time to live ends; present while that passes.
    #[schema(format = DateTime, value_type = Option<String>)]
    pub expires_at: Option<String>,
    /// When it was made.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When the record last changed.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

/// One identity in the form of each API.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct WorkspaceIds {
    /// Oblien's form.
    pub oblien: String,
    /// Rigbox's form.
    pub rigbox: String,
    /// Aether's form.
    pub aether: String,
    /// InstaVM's form of the VM.
    pub instavm: String,
}

/// CPU share class.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CpuKind {
    /// Shares physical CPUs by weight.
    Shared,
    /// Shares them with four times the weight.
    Performance,
}

/// Permanent or temporary.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Lifetime {
    /// Lives until it is deleted.
    Permanent,
    /// May carry a time to live.
    Temporary,
}

/// What happens to the console log when the workspace starts again.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogRetention {
    /// Each start appends.
    AcrossStarts,
    /// Each start begins with an empty log.
    ThisStart,
}

/// A time to live, counted from each moment the workspace becomes running.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Expiry {
    /// Seconds.
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub after_seconds: u32,
    /// What then happens.
    pub action: ExpiryAction,
}

/// What happens when a workspace's time is over.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExpiryAction {
    /// It is stopped; its disk is kept.
    Stop,
    /// It is deleted.
    Delete,
    /// Its virtual CPUs are stopped; memory stays resident.
    Pause,
    /// Its memory goes to disk and its VM ends.
    Suspend,
}

/// What a workspace should be.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// A VM runs.
    Running,
    /// A VM is there whose virtual CPUs are stopped.
    Paused,
    /// No VM; memory and disk are kept.
    Suspended,
    /// No VM; the disk is kept.
    Stopped,
    /// Nothing is left.
    Deleted,
}

/// What a workspace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Recorded, never started.
    Provisioned,
    /// A VM is being brought up.
    Starting,
    /// The guest answers.
    Running,
    /// The virtual CPUs are stopped.
    Paused,
    /// Memory is being written to disk.
    Suspending,
    /// Memory is on disk.
    Suspended,
    /// The VM is being shut down.
    Stopping,
    /// No VM; the disk is kept.
    Stopped,
    /// The last start failed, or the VM died.
    Failed,
    /// Everything is being released.
    Deleting,
}

/// How a VM came to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
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

/// Why a workspace failed.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Failure {
    /// Stable word for programs (`boot_timeout`, `vm_crashed`).
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// How many starts in a row have failed.
    pub attempts: u32,
    /// Whether starting again may succeed.
    pub retryable: bool,
    /// When it happened.
    #[schema(format = DateTime)]
    pub at: String,
}

/// What a new workspace should be. Everything has a default.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWorkspace {
    /// Absent: made from the image's name.
    #[schema(min_length = 1, max_length = 255)]
    pub name: Option<String>,
    /// Absent: made from the name.
    #[schema(min_length = 3, max_length = 63, pattern = "^[a-z0-9][a-z0-9-]*[a-z0-9]$")]
    pub slug: Option<String>,
    /// Absent: the default project.
    pub project_id: Option<String>,
    /// Grouping word.
    #[schema(min_length = 1, max_length = 63, pattern = "^[A-Za-z0-9-]+$")]
    pub namespace: Option<String>,
    /// Name of an image; absent: the installation's default.
    #[schema(example = "base")]
    pub image: Option<String>,
    /// A snapshot instead of an image: its id, or its name (the newest ready one of that name). Sizes
    /// that are absent are then the snapshot's; its memory is used when vCPUs and memory are the same.
    pub from_snapshot: Option<String>,
    /// Number of virtual CPUs; absent: the plan's default. So for the next two.
    #[schema(minimum = 1)]
    pub vcpu_count: Option<u64>,
    /// Memory in MiB.
    #[schema(minimum = 1)]
    pub memory_mib: Option<u64>,
    /// Writable disk space in MiB beyond the image.
    #[schema(minimum = 1)]
    pub disk_mib: Option<u64>,
    /// CPU share class; absent: shared.
    pub cpu_kind: Option<CpuKind>,
    /// Environment of every process in the workspace.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Absent: permanent.
    pub lifetime: Option<Lifetime>,
    /// Time to live.
    pub expiry: Option<Expiry>,
    /// What happens when nobody uses it; absent: nothing.
    pub idle: Option<IdlePolicy>,
    /// Exempt from the idle policy.
    #[serde(default)]
    pub keep_active: bool,
    /// What happens when its VM ends without being asked; absent: it stays as it is.
    pub restart: Option<RestartPolicy>,
    /// Deleted when its VM ends by itself and is not restarted.
    #[serde(default)]
    pub remove_on_exit: bool,
    /// The snapshot that a deletion takes first; absent: none.
    pub snapshot_on_terminate: Option<SnapshotOnTerminate>,
    /// Whether using its inside wakes it when it is paused or suspended.
    #[serde(default)]
    pub auto_resume: bool,
    /// Absent: across starts.
    pub log_retention: Option<LogRetention>,
    /// What it asks of the network; absent: what the server gives who does not ask.
    pub network: Option<NetworkWish>,
    /// Volumes it has from its first start on: at most 4, mounted before it is ready.
    #[serde(default)]
    pub volumes: Vec<AttachVolume>,
    /// Processes that its guest supervises: at most 32.
    #[serde(default)]
    pub workloads: Vec<CreateWorkload>,
    /// Labels: at most 64 KiB as JSON.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Value>)]
    pub metadata: BTreeMap<String, Value>,
    /// Whether it is started at once; absent: yes.
    #[serde(default = "yes")]
    pub start: bool,
}

const fn yes() -> bool {
    true
}

/// What to change; what is absent stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateWorkspace {
    /// New name.
    pub name: Option<String>,
    /// New slug.
    pub slug: Option<String>,
    /// New number of virtual CPUs; sizes change only while no VM is there.
    pub vcpu_count: Option<u64>,
    /// New CPU share class; only while no VM is there.
    pub cpu_kind: Option<CpuKind>,
    /// New memory in MiB.
    pub memory_mib: Option<u64>,
    /// New writable disk space in MiB; it may only grow.
    pub disk_mib: Option<u64>,
    /// New environment, replacing the old one; takes effect at the next start.
    pub env: Option<BTreeMap<String, String>>,
    /// Exempt from the idle policy.
    pub keep_active: Option<bool>,
    /// New labels, replacing the old ones.
    #[schema(value_type = Option<BTreeMap<String, Value>>)]
    pub metadata: Option<BTreeMap<String, Value>>,
}

/// How long the call stays for the work it asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Seconds, 0 to 600. The answer comes when the workspace has settled or after this time,
    /// whichever is first; the work goes on either way. Absent: 0.
    #[param(minimum = 0, maximum = 600)]
    #[serde(default)]
    pub wait: u32,
}

/// Which workspaces to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only those of this project.
    pub project_id: Option<String>,
    /// Only those of this namespace.
    pub namespace: Option<String>,
    /// Only permanent or temporary ones.
    #[param(inline)]
    pub lifetime: Option<Lifetime>,
    /// Only those in one of these states, separated by commas.
    #[param(example = "running,starting")]
    pub state: Option<String>,
    /// Skip this many.
    #[serde(default)]
    pub offset: u64,
    /// At most this many, 1 to 1000. Absent: 100.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u64>,
}

/// Part of the caller's workspaces, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkspaceList {
    /// The workspaces.
    pub workspaces: Vec<Workspace>,
    /// How many there are in all with this filter.
    pub total: u64,
    /// How many were skipped.
    pub offset: u64,
    /// How many were asked for.
    pub limit: u64,
}

/// What is left of a workspace that was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedWorkspace {
    /// The record as it was last.
    pub workspace: Workspace,
    /// Whether everything is gone already; if not, it goes on by itself.
    pub complete: bool,
}
