//! Rigbox's wire types. Field names, optionality and units are Rigbox's: `*_mb` are mebibytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skerry_model::Timestamp;

use crate::number::WholeNumber;

/// Body of `POST /workspaces`. A field Skerry does not know is refused rather than dropped.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateWorkspaceBody {
    /// Required; optional here so that its absence is answered like any other wrong value.
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub template_id: Option<String>,
    #[serde(default)]
    pub image: Option<String>,
    #[serde(default)]
    pub ram_mb: Option<WholeNumber>,
    #[serde(default)]
    pub vcpu_count: Option<WholeNumber>,
    #[serde(default)]
    pub disk_size_mb: Option<WholeNumber>,
    #[serde(default)]
    pub catalog_ids: Option<Vec<String>>,
    #[serde(default)]
    pub service_spec_ids: Option<Vec<String>>,
    #[serde(default)]
    pub setup_script_ids: Option<Vec<String>>,
}

/// Body of `PUT /workspaces/{id}/resources`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResourcesBody {
    #[serde(default)]
    pub ram_mb: Option<WholeNumber>,
    #[serde(default)]
    pub vcpu_count: Option<WholeNumber>,
    #[serde(default)]
    pub disk_size_mb: Option<WholeNumber>,
}

/// Body of `POST /workspaces/{id}/env`. No `Debug`: the values may be secrets.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EnvBody {
    /// Required; optional here so that its absence is answered like any other wrong value.
    #[serde(default)]
    pub env_vars: Option<BTreeMap<String, String>>,
}

/// Body of `POST /api-keys`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateApiKeyBody {
    #[serde(default)]
    pub name: Option<String>,
}

/// Body of `POST /workspaces/{id}/snapshots`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateSnapshotBody {
    #[serde(default)]
    pub name: Option<String>,
}

/// A workspace's state in Rigbox's words (`VmStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum VmStatus {
    Provisioned,
    Provisioning,
    Starting,
    Running,
    Stopping,
    Stopped,
    Deleting,
    Failed,
}

impl VmStatus {
    /// The word on the wire.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Provisioned => "provisioned",
            Self::Provisioning => "provisioning",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Deleting => "deleting",
            Self::Failed => "failed",
        }
    }
}

/// A workspace. No `Debug`: `env_vars` may hold secrets.
#[derive(Serialize)]
pub(super) struct Vm {
    pub id: String,
    pub user_id: String,
    /// Empty until the workspace was first placed on a node.
    pub node_id: String,
    pub name: String,
    pub status: VmStatus,
    pub image: String,
    pub image_digest: String,
    pub ram_mb: u32,
    pub vcpu_count: u32,
    pub disk_size_mb: u32,
    /// Under which address others of the account see it, while it runs; absent without a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<String>,
    pub env_vars: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    pub setup_script_ids: Vec<String>,
    pub service_spec_ids: Vec<String>,
    pub creation_attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Why a workspace is `failed`.
#[derive(Serialize)]
pub(super) struct FailureView {
    pub code: String,
    pub message: String,
    pub attempts: u32,
    pub occurred_at: Timestamp,
    pub retryable: bool,
}

/// Answer of everything that returns one workspace.
#[derive(Serialize)]
pub(super) struct VmEnvelope {
    pub vm: Vm,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureView>,
}

/// Answer of `GET /workspaces`, for both generations of clients: `vms` for those that know no
/// paging, `items` and `next_cursor` for those that do.
#[derive(Serialize)]
pub(super) struct VmList {
    pub vms: Vec<Vm>,
    pub items: Vec<Vm>,
    pub next_cursor: Option<String>,
}

/// Answer of `PUT /workspaces/{id}/resources`.
#[derive(Serialize)]
pub(super) struct VmAndMessage {
    pub vm: Vm,
    pub message: String,
}

/// Answer of calls that only say that they were done.
#[derive(Serialize)]
pub(super) struct Message {
    pub message: String,
}

/// Answer of `GET /capacity`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Capacity {
    pub available: bool,
    pub total: u64,
    pub used: u64,
}

/// Answer of `GET /users/me/limits`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct AccountLimits {
    pub plan: String,
    pub custom: bool,
    pub limits: LimitValues,
    pub usage: UsageValues,
}

/// What the plan allows.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct LimitValues {
    pub max_vms: u64,
    pub max_ram_per_vm_mb: u32,
    pub max_ram_total_mb: u64,
    pub max_disk_total_mb: u64,
    pub max_vcpu_per_vm: u32,
    pub max_running_vcpus: u64,
}

/// What is in use.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct UsageValues {
    pub workspace_count: u64,
    pub running_vcpus: u64,
    pub total_ram_mb: u64,
    pub total_disk_mb: u64,
}

/// A key in `GET /api-keys`.
#[derive(Clone, Serialize)]
pub(super) struct ApiKeyView {
    pub id: String,
    pub key_preview: String,
    pub name: String,
    pub created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
}

/// Answer of `GET /api-keys`, for both generations of clients.
#[derive(Serialize)]
pub(super) struct ApiKeyList {
    pub api_keys: Vec<ApiKeyView>,
    pub items: Vec<ApiKeyView>,
    pub next_cursor: Option<String>,
}

/// Answer of `POST /api-keys`: the only place where the secret is shown.
#[derive(Serialize)]
pub(super) struct CreatedApiKey {
    pub id: String,
    pub key: String,
}

/// A snapshot.
#[derive(Clone, Serialize)]
pub(super) struct SnapshotView {
    pub id: String,
    pub workspace_id: String,
    pub name: String,
    pub size_mb: u64,
    /// What Rigbox's guides read in place of `size_mb`.
    pub size_bytes: u64,
    pub created_at: Timestamp,
}

/// Answer of `POST /workspaces/{id}/snapshots`.
#[derive(Serialize)]
pub(super) struct SnapshotEnvelope {
    pub snapshot: SnapshotView,
}

/// Answer of `GET /snapshots` and `GET /workspaces/{id}/snapshots`, for both generations of clients.
#[derive(Serialize)]
pub(super) struct SnapshotList {
    pub snapshots: Vec<SnapshotView>,
    pub items: Vec<SnapshotView>,
    pub next_cursor: Option<String>,
}

/// Answer of a restore.
#[derive(Serialize)]
pub(super) struct Restored {
    pub message: String,
    pub workspace_id: String,
}

/// Answer of `GET /workspaces/{id}/metrics`.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Metrics {
    pub workspace_id: String,
    /// 0 to 100: share of all the workspace's virtual CPUs.
    pub cpu_percent: f64,
    pub ram_used_mb: u64,
    pub ram_total_mb: u64,
    pub disk_used_mb: u64,
    pub disk_total_mb: u64,
    pub updated_at: Timestamp,
}

/// One line of a log.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct LogLine {
    pub line_number: u64,
    pub message: String,
}

/// Answer of `GET /workspaces/{id}/logs`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct LogLines {
    pub lines: Vec<LogLine>,
    pub has_more: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}
