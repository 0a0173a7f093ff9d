//! The parts of the native API's answers that are shown to people. Fields that are not shown are not
//! named here, so that a newer server's answers are still understood.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    pub(crate) id: String,
    pub(crate) ids: BTreeMap<String, String>,
    pub(crate) name: String,
    pub(crate) slug: String,
    pub(crate) namespace: Option<String>,
    pub(crate) image: String,
    pub(crate) vcpu_count: u64,
    pub(crate) memory_mib: u64,
    pub(crate) disk_mib: u64,
    pub(crate) env_names: Vec<String>,
    pub(crate) state: String,
    pub(crate) running_since: Option<String>,
    #[serde(default)]
    pub(crate) start_path: Option<String>,
    pub(crate) failure: Option<Failure>,
    pub(crate) incarnation: u64,
    pub(crate) expires_at: Option<String>,
    #[serde(default)]
    pub(crate) lifecycle: Lifecycle,
    #[serde(default)]
    pub(crate) origin: Origin,
    pub(crate) created_at: String,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Lifecycle {
    pub(crate) idle_at: Option<String>,
    pub(crate) restart_at: Option<String>,
    pub(crate) resting_since: Option<String>,
    pub(crate) last_end: Option<LastEnd>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct LastEnd {
    pub(crate) cause: String,
    pub(crate) at: String,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Origin {
    pub(crate) snapshot_id: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) workspace_id: String,
    pub(crate) contents: String,
    pub(crate) state: String,
    pub(crate) failure: Option<Failure>,
    pub(crate) image: String,
    pub(crate) vcpu_count: u64,
    pub(crate) memory_mib: u64,
    pub(crate) disk_mib: u64,
    pub(crate) size_bytes: u64,
    pub(crate) blackout_ms: Option<f64>,
    pub(crate) created_at: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SnapshotList {
    pub(crate) snapshots: Vec<serde_json::Value>,
    pub(crate) total: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Forked {
    pub(crate) workspaces: Vec<Workspace>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Failure {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) retryable: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct WorkspaceList {
    pub(crate) workspaces: Vec<serde_json::Value>,
    pub(crate) total: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Stats {
    pub(crate) uptime_ms: u64,
    pub(crate) cpu_used_ms: u64,
    pub(crate) cpus_online: u64,
    pub(crate) memory_total_bytes: u64,
    pub(crate) memory_available_bytes: u64,
    pub(crate) disk_total_bytes: u64,
    pub(crate) disk_used_bytes: u64,
    pub(crate) processes: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PortList {
    pub(crate) ports: Vec<Port>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Port {
    pub(crate) port: u16,
    pub(crate) address: String,
    pub(crate) pid: Option<u32>,
    pub(crate) process: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Network {
    pub(crate) available: bool,
    pub(crate) uplink: bool,
    pub(crate) private_address: Option<String>,
    pub(crate) egress: Egress,
    pub(crate) outbound: Outbound,
    pub(crate) callers: Vec<Peer>,
    pub(crate) caller_networks: Vec<String>,
    pub(crate) open_ports: Vec<OpenPorts>,
    pub(crate) links: Vec<Peer>,
}

/// Both as it is shown and as it is asked for, apart from what a proxy is told.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Outbound {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) proxy: Option<Proxy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) server_proxy: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Proxy {
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) protocol: String,
    #[serde(skip_serializing)]
    pub(crate) has_credentials: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SshAccess {
    pub(crate) open: bool,
    pub(crate) has_password: bool,
    pub(crate) password_chosen: bool,
}

#[derive(Deserialize)]
pub(crate) struct SshOpened {
    pub(crate) password: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ServerProxies {
    pub(crate) proxies: Vec<ServerProxy>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ServerProxy {
    pub(crate) name: String,
    pub(crate) exit_address: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct NetworkRefusals {
    pub(crate) total: u64,
    pub(crate) last: Vec<NetworkRefusal>,
    pub(crate) refused_packets: u64,
    pub(crate) dropped_frames: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct NetworkRefusal {
    pub(crate) what: String,
    pub(crate) name: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) times: u64,
    pub(crate) last_at: String,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Egress {
    pub(crate) internet: String,
    pub(crate) package_managers: bool,
    pub(crate) allow: Vec<EgressEntry>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct EgressEntry {
    pub(crate) to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) transport: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ports: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct OpenPorts {
    pub(crate) transport: String,
    pub(crate) ports: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Peer {
    pub(crate) id: String,
    pub(crate) slug: String,
    pub(crate) private_address: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ImageList {
    pub(crate) images: Vec<Image>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ImagePullList {
    pub(crate) pulls: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ImagePull {
    pub(crate) reference: String,
    pub(crate) state: String,
    pub(crate) step: String,
    pub(crate) done_bytes: u64,
    pub(crate) total_bytes: u64,
    pub(crate) image: Option<Image>,
    pub(crate) error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) digest: String,
    pub(crate) description: String,
    pub(crate) size_bytes: u64,
    pub(crate) built_at: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct KeyList {
    pub(crate) keys: Vec<Key>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) secret_tail: String,
    pub(crate) created_at: String,
    pub(crate) last_used_at: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PublishedPortList {
    pub(crate) published_ports: Vec<PublishedPort>,
}

/// Without the token, which is read by who shows it.
#[derive(Debug, Deserialize)]
pub(crate) struct PublishedPort {
    pub(crate) port: u16,
    pub(crate) url: String,
    pub(crate) label: Option<String>,
    pub(crate) visibility: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct DomainList {
    pub(crate) domains: Vec<Domain>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Domain {
    pub(crate) domain: String,
    pub(crate) state: String,
    pub(crate) last_error: Option<String>,
    pub(crate) dns_provider: Option<String>,
    pub(crate) url: String,
    pub(crate) port: u16,
    pub(crate) txt_record: TxtRecord,
    pub(crate) target: String,
    pub(crate) certificate_expires_at: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct TxtRecord {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct VolumeList {
    pub(crate) volumes: Vec<Volume>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Volume {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) size_mib: u64,
    pub(crate) used_bytes: Option<u64>,
    pub(crate) state: String,
    pub(crate) failure: Option<VolumeFailure>,
    pub(crate) attachments: Vec<VolumeAttachment>,
    pub(crate) created_at: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct VolumeFileList {
    pub(crate) entries: Vec<VolumeFile>,
    pub(crate) truncated: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct VolumeFile {
    pub(crate) path: String,
    pub(crate) kind: String,
    pub(crate) size_bytes: u64,
    pub(crate) mode: String,
    pub(crate) modified_at: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct VolumeFailure {
    pub(crate) code: String,
    pub(crate) message: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct VolumeAttachment {
    pub(crate) workspace_id: String,
    pub(crate) mount_path: String,
    pub(crate) mode: String,
    pub(crate) checkpoint_id: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct CheckpointList {
    pub(crate) checkpoints: Vec<Checkpoint>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) failure: Option<VolumeFailure>,
    pub(crate) created_at: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Ssh {
    pub(crate) endpoint: Option<SshEndpoint>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SshEndpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) host_key: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SshKeyList {
    pub(crate) ssh_keys: Vec<SshKey>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SshKey {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) algorithm: String,
    pub(crate) fingerprint: String,
    pub(crate) created_at: String,
}

#[derive(Deserialize)]
pub(crate) struct CreatedKey {
    pub(crate) key: Key,
    pub(crate) secret: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Quota {
    pub(crate) plan: String,
    pub(crate) workspaces: Used,
    pub(crate) owned: Pool,
    pub(crate) running: Pool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Pool {
    pub(crate) vcpu_count: Used,
    pub(crate) memory_mib: Used,
    pub(crate) disk_mib: Used,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Used {
    pub(crate) used: u64,
    pub(crate) max: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Doctor {
    pub(crate) accelerator: String,
    pub(crate) checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Starts {
    pub(crate) pool_hits: u64,
    pub(crate) template_restores: u64,
    pub(crate) memory_restores: u64,
    pub(crate) boots: u64,
    pub(crate) restore_fallbacks: u64,
    pub(crate) templates: u64,
    pub(crate) pool_warm: u64,
    pub(crate) pool_parked: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) level: String,
    pub(crate) found: String,
    pub(crate) remedy: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct FileListing {
    pub(crate) file: File,
}

#[derive(Debug, Deserialize)]
pub(crate) struct File {
    pub(crate) kind: String,
    pub(crate) size_bytes: u64,
    pub(crate) mode: String,
}

/// A text message of the server on the exec stream.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ExecMessage {
    Started,
    Exit { exit_code: Option<i32>, signal: Option<i32>, timed_out: bool },
    Error { error: serde_json::Value },
}
