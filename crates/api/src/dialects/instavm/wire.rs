//! InstaVM's answers. Requests are read field by field in [`super::convert`], because every bad field
//! of a request is reported at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{domains::DomainRecord, shares::ShareRecord};

/// The answer of `POST /v1/vms`. Without `Debug`: a share may have a token.
#[derive(Serialize)]
pub(super) struct VmCreated {
    pub(super) vm_id: Option<String>,
    pub(super) session_id: String,
    pub(super) status: &'static str,
    pub(super) share: Option<ShareRecord>,
    pub(super) custom_domain: Option<DomainRecord>,
    pub(super) env_status: &'static str,
    pub(super) env_error: Option<String>,
}

/// A VM's record.
#[derive(Debug, Serialize)]
pub(super) struct VmRecord {
    pub(super) vm_id: String,
    /// The same: some callers read this name.
    pub(super) id: String,
    pub(super) session_id: String,
    pub(super) status: &'static str,
    /// UTC, `YYYY-MM-DDTHH:MM:SS`: clients compare it as text.
    pub(super) created_at: String,
    pub(super) expires_at: Option<String>,
    pub(super) vm_lifetime_seconds: Option<u32>,
    pub(super) auto_suspend: bool,
    pub(super) auto_resume: bool,
    pub(super) snapshot_on_terminate: bool,
    pub(super) snapshot_name: Option<String>,
    pub(super) memory_mb: u32,
    pub(super) vcpu_count: u32,
    pub(super) image: String,
    pub(super) metadata: BTreeMap<String, Value>,
    /// The snapshot it was made from, which may be gone.
    pub(super) snapshot_id: Option<String>,
    /// Under which address others of the account see it, once it was started; absent without a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) private_ip: Option<String>,
    /// None: there is no SSH here.
    pub(super) ssh_host: Option<String>,
}

/// A session.
#[derive(Debug, Serialize)]
pub(super) struct SessionRecord {
    pub(super) session_id: String,
    pub(super) vm_id: Option<String>,
    pub(super) status: &'static str,
    pub(super) created_at: String,
    pub(super) expires_at: Option<String>,
    pub(super) vm_lifetime_seconds: Option<u32>,
    pub(super) memory_mb: u32,
    pub(super) vcpu_count: u32,
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) env_status: &'static str,
}

/// The answer of `GET /v1/sessions/status/{id}`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct SessionStatus {
    pub(super) session_id: String,
    pub(super) exists: bool,
    pub(super) vm_assigned: bool,
    pub(super) vm_alive: bool,
    pub(super) vm_status: Option<&'static str>,
    pub(super) vm_id: Option<String>,
    pub(super) uptime_seconds: Option<i64>,
    pub(super) expires_in_seconds: Option<i64>,
    pub(super) created_at: Option<String>,
}

/// What became of a VM.
#[derive(Debug, Serialize)]
pub(super) struct VmState {
    pub(super) vm_id: String,
    pub(super) session_id: String,
    pub(super) status: &'static str,
}

/// The answer of `POST /v1/vms/{id}/clone`.
#[derive(Debug, Serialize)]
pub(super) struct VmCloned {
    #[serde(flatten)]
    pub(super) vm: VmState,
    pub(super) snapshot_id: String,
    /// The snapshot was for the clone alone and is gone, or going by itself.
    pub(super) snapshot_deleted: bool,
}

/// A snapshot.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotRecord {
    pub(super) id: String,
    /// The same: some callers read this name.
    pub(super) snapshot_id: String,
    pub(super) name: String,
    pub(super) status: &'static str,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    /// The same as `type`.
    pub(super) snapshot_type: &'static str,
    pub(super) is_public: bool,
    /// The session whose VM it was taken of; it may be gone.
    pub(super) session_id: String,
    /// None: snapshots are not built from images here.
    pub(super) oci_image: Option<String>,
    pub(super) vcpu_count: u32,
    pub(super) memory_mb: u32,
    /// Zero until it is ready.
    pub(super) size_bytes: u64,
    /// Why it failed.
    pub(super) error: Option<String>,
    /// The same as `error`.
    pub(super) last_error: Option<String>,
    /// UTC, `YYYY-MM-DDTHH:MM:SS`.
    pub(super) created_at: String,
}

/// What became of a snapshot.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotDeleted {
    pub(super) id: String,
    pub(super) snapshot_id: String,
    pub(super) status: &'static str,
}

/// The account.
#[derive(Debug, Serialize)]
pub(super) struct Me {
    pub(super) id: String,
    /// None: accounts here have a handle, not an address.
    pub(super) email: Option<String>,
    pub(super) name: String,
    pub(super) is_verified: bool,
}

/// An SSH key.
#[derive(Debug, Serialize)]
pub(super) struct SshKeyRecord {
    /// A whole number: clients read it as one.
    pub(super) id: u64,
    /// As `ssh-keygen -l` prints it.
    pub(super) fingerprint: String,
    pub(super) comment: String,
    pub(super) public_key: String,
    pub(super) created_at: String,
}

/// The SSH keys of the account.
#[derive(Debug, Serialize)]
pub(super) struct SshKeys {
    pub(super) keys: Vec<SshKeyRecord>,
}

/// An API key.
#[derive(Debug, Serialize)]
pub(super) struct ApiKeyRecord {
    /// A whole number: clients read it as one.
    pub(super) id: u64,
    pub(super) description: String,
    /// The secret, in the answer that makes it alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// Its last four characters.
    pub(super) key_hint: String,
    pub(super) created_at: String,
    pub(super) last_used_at: Option<String>,
}

/// What became of something that has no more to say.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    pub(super) status: &'static str,
}

/// A sandbox: a session and its VM.
#[derive(Debug, Serialize)]
pub(super) struct Sandbox {
    /// The session's id.
    pub(super) sandbox_id: String,
    pub(super) vm_id: String,
    /// The image.
    pub(super) template_id: String,
    pub(super) name: String,
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) started_at: String,
    pub(super) end_at: Option<String>,
    pub(super) status: &'static str,
}

/// `?metadata=&limit=` of the list of sandboxes.
#[derive(Debug, Default, Deserialize)]
pub(super) struct SandboxesQuery {
    pub(super) metadata: Option<String>,
    pub(super) limit: Option<String>,
}

/// What a session's VM uses. Measured in the VM, since its last boot; `null` while it does not run.
#[derive(Debug, Default, Serialize)]
pub(super) struct Usage {
    pub(super) session_id: String,
    pub(super) vm_id: String,
    pub(super) status: &'static str,
    pub(super) vcpu_count: u32,
    pub(super) memory_mb: u32,
    pub(super) uptime_seconds: Option<f64>,
    pub(super) cpu_seconds: Option<f64>,
    pub(super) memory_used_bytes: Option<u64>,
    pub(super) disk_used_bytes: Option<u64>,
    pub(super) processes: Option<u32>,
}

/// The answer of `POST /v1/vms/{id}/stage-env`: the names alone.
#[derive(Debug, Serialize)]
pub(super) struct Staged {
    pub(super) status: &'static str,
    pub(super) staged: Vec<String>,
}

/// A terminal.
#[derive(Debug, Serialize)]
pub(super) struct PtyRecord {
    /// Of the terminal, as clients read it.
    pub(super) session_id: String,
    /// The same.
    pub(super) id: String,
    /// The session it belongs to.
    pub(super) code_session_id: String,
    pub(super) alive: bool,
    /// `null` while it is alive, and when it ended with its VM.
    pub(super) exit_code: Option<i32>,
    pub(super) cols: u16,
    pub(super) rows: u16,
}

/// Terminals, oldest first.
#[derive(Debug, Serialize)]
pub(super) struct PtyList {
    pub(super) sessions: Vec<PtyRecord>,
}

/// The answer of `POST /execute`.
#[derive(Debug, Serialize)]
pub(super) struct Executed {
    pub(super) session_id: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) exit_code: i32,
    /// Seconds.
    pub(super) execution_time: f64,
    /// None: not measured.
    pub(super) cpu_time: Option<f64>,
}

/// The answer of `POST /execute_async`.
#[derive(Debug, Serialize)]
pub(super) struct ExecutionBegun {
    pub(super) task_id: String,
    pub(super) session_id: String,
    pub(super) status: &'static str,
}

/// An asynchronous execution.
#[derive(Debug, Serialize)]
pub(super) struct ExecutionRecord {
    pub(super) task_id: String,
    /// The same: some callers read this name.
    pub(super) id: String,
    pub(super) session_id: String,
    pub(super) status: &'static str,
    pub(super) is_complete: bool,
    /// As it is, despite the name. Absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) serialized_stdout: Option<String>,
    /// As it is, despite the name; of one that failed, why. Absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) serialized_stderr: Option<String>,
    pub(super) exit_code: Option<i32>,
    /// Seconds.
    pub(super) execution_time: Option<f64>,
    /// None: not measured.
    pub(super) cpu_time: Option<f64>,
    /// UTC, `YYYY-MM-DDTHH:MM:SS`.
    pub(super) created_at: String,
}

/// The answer of `POST /upload`.
#[derive(Debug, Serialize)]
pub(super) struct Uploaded {
    pub(super) status: &'static str,
    pub(super) session_id: String,
    pub(super) remote_path: String,
    pub(super) size: u64,
}

/// `?wait=`, as text: which words are a boolean is InstaVM's matter.
#[derive(Debug, Default, Deserialize)]
pub(super) struct WaitQuery {
    pub(super) wait: Option<String>,
}

/// `?type=` of the list of snapshots. Other parameters are ignored.
#[derive(Debug, Default, Deserialize)]
pub(super) struct SnapshotsQuery {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
}
