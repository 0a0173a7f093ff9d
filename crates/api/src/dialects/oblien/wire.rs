//! Oblien's wire types. Field names, units and defaults are those of its reference page "Workspaces"
//! and of its client 2.4.0; sizes in MB are what this server calls MiB.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{public_access::PublicPort, ssh::Connection};

/// `POST /workspace`. The client moves sizes into `config`; other callers leave them outside, some
/// under other names. Without `Debug`: values of variables may be secrets. Fields it does not know are
/// let through, except those that [`super::convert`] refuses.
#[derive(Default, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct CreateBody {
    pub(super) name: Option<String>,
    pub(super) slug: Option<String>,
    pub(super) image: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) mode: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) config: Option<Config>,
    pub(super) cpus: Option<Value>,
    pub(super) vcpus: Option<Value>,
    pub(super) memory_mb: Option<Value>,
    pub(super) ram_mb: Option<Value>,
    pub(super) writable_size_mb: Option<Value>,
    pub(super) disk_size_mb: Option<Value>,
    pub(super) disk_mb: Option<Value>,
    pub(super) wait_ready: Option<bool>,
    #[serde(flatten)]
    pub(super) others: Map<String, Value>,
}

/// The `config` object of create and update. Sizes and variables are read by [`super::convert`],
/// which names what they may be.
#[derive(Default, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Config {
    pub(super) cpus: Option<Value>,
    pub(super) memory_mb: Option<Value>,
    pub(super) writable_size_mb: Option<Value>,
    pub(super) disk_size_mb: Option<Value>,
    pub(super) ttl: Option<Value>,
    pub(super) ttl_action: Option<String>,
    pub(super) remove_on_exit: Option<bool>,
    pub(super) restart_policy: Option<Value>,
    pub(super) max_restarts: Option<Value>,
    pub(super) idle: Option<Value>,
    pub(super) keep_logs: Option<bool>,
    pub(super) env: Option<Value>,
    pub(super) wait_for_init: Option<bool>,
    #[serde(flatten)]
    pub(super) others: Map<String, Value>,
}

/// `PUT /workspace/:id`. `null` clears a slug and a logo, so it is told apart from absence.
#[derive(Default, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct UpdateBody {
    pub(super) name: Option<String>,
    pub(super) config: Option<Config>,
    #[serde(flatten)]
    pub(super) others: Map<String, Value>,
}

/// `POST /workspace/:id/start`. `force` starts a workspace that is only believed to run; here belief
/// and machine are compared all the time, so it changes nothing.
#[derive(Debug, Default, Deserialize)]
pub(super) struct StartBody {
    #[serde(rename = "force")]
    pub(super) _force: Option<bool>,
}

/// `GET /workspace`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ListQuery {
    pub(super) page: Option<String>,
    pub(super) limit: Option<String>,
    pub(super) mode: Option<String>,
    pub(super) status: Option<String>,
    pub(super) namespace: Option<String>,
}

/// `GET /workspace/images`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ImagesQuery {
    pub(super) search: Option<String>,
    pub(super) category: Option<String>,
}

/// The workspace object.
#[derive(Debug, Serialize)]
pub(super) struct WorkspaceObject {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) slug: String,
    pub(super) logo: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) mode: &'static str,
    pub(super) image: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<String>,
    pub(super) status: &'static str,
    pub(super) ready: bool,
    pub(super) provisioning: Provisioning,
    /// Empty before the first start, and where workspaces have no network.
    pub(super) ip: String,
    /// Seconds.
    pub(super) uptime: i64,
    /// When it became ready, or when its last start began; empty before the first.
    pub(super) start_time: String,
    pub(super) info: Info,
    pub(super) access: Access,
    pub(super) network: Network,
    pub(super) public_ports: Vec<PublicPort>,
    pub(super) resources: Resources,
    pub(super) lifecycle: Lifecycle,
    pub(super) created_at: String,
    pub(super) updated_at: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Provisioning {
    pub(super) state: &'static str,
    pub(super) phase: &'static str,
    pub(super) message: String,
    pub(super) error: Option<ProvisioningError>,
    pub(super) created_at: String,
    pub(super) updated_at: String,
    pub(super) completed_at: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct ProvisioningError {
    pub(super) code: String,
    pub(super) message: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Info {
    pub(super) status: &'static str,
    pub(super) is_running: bool,
    pub(super) user_requested_stop: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Access {
    pub(super) ssh_enabled: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Network {
    pub(super) allow_internet: bool,
    pub(super) ingress_ports: Vec<u16>,
    pub(super) egress_ports: Vec<u16>,
    pub(super) egress: Vec<String>,
    pub(super) public_access: bool,
    pub(super) ingress: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Resources {
    pub(super) cpus: u32,
    pub(super) memory_mb: u32,
    pub(super) disk_size_mb: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Lifecycle {
    pub(super) ttl: Option<String>,
    pub(super) ttl_action: Option<&'static str>,
    pub(super) remove_on_exit: bool,
    pub(super) restart_policy: &'static str,
    pub(super) max_restarts: u32,
    pub(super) idle: Option<Idle>,
    pub(super) ttl_expires_at: Option<String>,
}

/// Whole seconds; 0 means never.
#[derive(Debug, Serialize)]
pub(super) struct Idle {
    pub(super) suspend_after: u32,
    pub(super) stop_after: u32,
}

/// `GET …/lifecycle`, the client's `LifecycleStatus`.
#[derive(Debug, Serialize)]
pub(super) struct LifecycleStatus {
    pub(super) mode: &'static str,
    pub(super) status: &'static str,
    #[serde(flatten)]
    pub(super) policy: Lifecycle,
    pub(super) restart_info: RestartInfo,
    pub(super) uptime: i64,
    /// The older name of `ttl_expires_at`.
    pub(super) expires_at: Option<String>,
    pub(super) created_at: String,
    pub(super) snapshot_supported: bool,
    pub(super) snapshot_unavailable_reason: Option<String>,
}

/// What the restart policy has done and will do.
#[derive(Debug, Serialize)]
pub(super) struct RestartInfo {
    pub(super) restart_count: u32,
    pub(super) next_restart_at: Option<String>,
    /// Why the last VM ended, in the native API's words.
    pub(super) last_exit: Option<&'static str>,
    pub(super) last_exit_at: Option<String>,
}

/// The workspace object with the additions of `/details`.
#[derive(Debug, Serialize)]
pub(super) struct Details {
    #[serde(flatten)]
    pub(super) workspace: WorkspaceObject,
    /// The runtime's token: none, because the runtime is not served.
    pub(super) token: Option<String>,
    pub(super) stats: Option<Stats>,
    pub(super) ssh: Ssh,
    pub(super) api_access: ApiAccess,
    pub(super) lifecycle: DetailedLifecycle,
    pub(super) config: DetailedConfig,
}

/// Use of resources as the guest sees it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stats {
    /// Percent of all CPUs, on average since the boot.
    pub(super) cpu_usage: f64,
    /// Percent.
    pub(super) memory_usage: f64,
    #[serde(rename = "memoryUsedMB")]
    pub(super) memory_used_mb: u64,
    #[serde(rename = "memoryTotalMB")]
    pub(super) memory_total_mb: u64,
    pub(super) network_in: &'static str,
    pub(super) network_out: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct Ssh {
    pub(super) ssh_enabled: bool,
    pub(super) ssh_id: Option<String>,
    pub(super) connection: Option<Connection>,
}

#[derive(Debug, Serialize)]
pub(super) struct ApiAccess {
    pub(super) terminal: bool,
    pub(super) preview: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct DetailedLifecycle {
    pub(super) mode: &'static str,
    #[serde(flatten)]
    pub(super) policy: Lifecycle,
    pub(super) uptime: i64,
}

/// What the VM was configured with. Values of variables may be secrets: only the names are shown.
#[derive(Debug, Serialize)]
pub(super) struct DetailedConfig {
    pub(super) cpus: u32,
    pub(super) memory_mb: u32,
    pub(super) writable_size_mb: u32,
    pub(super) image_digest: String,
    pub(super) keep_logs: bool,
    pub(super) env_keys: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct QuotaBody {
    pub(super) success: bool,
    pub(super) plan: String,
    #[serde(rename = "planLabel")]
    pub(super) plan_label: String,
    pub(super) limits: QuotaLimits,
    pub(super) pool: Pool,
    pub(super) pool_usage: Pool,
    pub(super) running_pool: Pool,
    pub(super) running_pool_usage: Pool,
    #[serde(rename = "maxSandboxes")]
    pub(super) max_sandboxes: u64,
    #[serde(rename = "currentSandboxes")]
    pub(super) current_sandboxes: u64,
    #[serde(rename = "canCreate")]
    pub(super) can_create: bool,
    pub(super) reason: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct QuotaLimits {
    pub(super) cpus: Limits,
    pub(super) memory_mb: Limits,
    pub(super) writable_size_mb: Limits,
}

#[derive(Debug, Serialize)]
pub(super) struct Limits {
    pub(super) min: u32,
    pub(super) max: u32,
    pub(super) default: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Pool {
    pub(super) cpus: u64,
    pub(super) memory_mb: u64,
    pub(super) disk_mb: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Image {
    pub(super) id: String,
    /// What create takes.
    pub(super) image: String,
    pub(super) label: String,
    pub(super) desc: String,
    pub(super) category: String,
}

#[derive(Debug, Serialize)]
pub(super) struct ImageCategory {
    pub(super) id: String,
    pub(super) label: String,
}
