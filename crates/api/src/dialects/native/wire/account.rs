//! Images, keys, projects, limits, and the host.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ErrorDetail;

/// The images workspaces can be made from.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageList {
    /// The images by name.
    pub images: Vec<Image>,
}

/// An image.
#[derive(Debug, Serialize, ToSchema)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// Its content digest.
    pub digest: String,
    /// One line for people.
    pub description: String,
    /// `os`, `runtime`...
    pub category: String,
    /// Size of its disk file, as allocated.
    pub size_bytes: u64,
    /// When it was built.
    #[schema(format = DateTime)]
    pub built_at: String,
}

/// An image to be pulled.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// The image in its registry: `alpine`, `docker.io/library/debian:12`,
    /// `ghcr.io/owner/name@sha256:...`.
    pub reference: String,
}

/// A pull that is under way or has ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImagePull {
    /// The reference in full: the image's name.
    pub reference: String,
    /// `pulling`, `ready` or `failed`.
    pub state: &'static str,
    /// How far it is, or was when it ended: `waiting`, `resolving`, `downloading`, `unpacking`,
    /// `building`.
    pub step: &'static str,
    /// Bytes of it that are here.
    pub done_bytes: u64,
    /// Bytes that are transferred in all; 0 while that is not known.
    pub total_bytes: u64,
    /// The image, when it is ready.
    pub image: Option<Image>,
    /// Why it failed.
    pub error: Option<ErrorDetail>,
}

/// Pulls under way, and the last that ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImagePullList {
    /// By reference.
    pub pulls: Vec<ImagePull>,
}

/// The account's API keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyList {
    /// The keys, oldest first.
    pub keys: Vec<Key>,
}

/// An API key, without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct Key {
    /// Its identity, a UUID.
    pub id: String,
    /// The owner's name for it.
    pub name: String,
    /// The last four characters of the secret.
    pub secret_tail: String,
    /// When it was made.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it was last used, to the minute.
    #[schema(format = DateTime, value_type = Option<String>)]
    pub last_used_at: Option<String>,
}

/// An API key to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// A name to tell keys apart.
    #[schema(min_length = 1, max_length = 100)]
    pub name: String,
}

/// An API key just made.
#[derive(Serialize, ToSchema)]
pub struct CreatedKey {
    /// The record.
    pub key: Key,
    /// The secret, shown this once.
    pub secret: String,
}

/// The account's projects.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProjectList {
    /// The projects: the default one, then oldest first.
    pub projects: Vec<Project>,
}

/// A group of workspaces.
#[derive(Debug, Serialize, ToSchema)]
pub struct Project {
    /// Its identity, a UUID.
    pub id: String,
    /// Unique in the account.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Whether workspaces go there that name no project.
    pub is_default: bool,
    /// When it was made.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it last changed.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

/// A project to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateProject {
    /// Unique in the account.
    #[schema(min_length = 1, max_length = 100)]
    pub name: String,
    /// Free text.
    #[schema(max_length = 500)]
    pub description: Option<String>,
}

/// Limits and use of the account.
#[derive(Debug, Serialize, ToSchema)]
pub struct Quota {
    /// Name of the plan.
    pub plan: String,
    /// Its name for people.
    pub plan_label: String,
    /// What one workspace may have.
    pub per_workspace: PerWorkspace,
    /// How many workspaces there are and may be.
    pub workspaces: Used,
    /// What all workspaces together have.
    pub owned: PoolUsed,
    /// What those that run or start together have.
    pub running: PoolUsed,
    /// Why not even the smallest workspace could be created now; absent when one could.
    pub blocked: Option<ErrorDetail>,
}

/// What one workspace may have.
#[derive(Debug, Serialize, ToSchema)]
pub struct PerWorkspace {
    /// Virtual CPUs.
    pub vcpu_count: Range,
    /// Memory in MiB.
    pub memory_mib: Range,
    /// Writable disk in MiB.
    pub disk_mib: Range,
}

/// An inclusive range.
#[derive(Debug, Serialize, ToSchema)]
pub struct Range {
    /// The smallest value.
    pub min: u32,
    /// The largest.
    pub max: u32,
    /// The value when the request names none.
    pub default: u32,
}

/// How much of a limit is used.
#[derive(Debug, Serialize, ToSchema)]
pub struct Used {
    /// In use.
    pub used: u64,
    /// Allowed.
    pub max: u64,
}

/// How much of a pool is used.
#[derive(Debug, Serialize, ToSchema)]
pub struct PoolUsed {
    /// Virtual CPUs.
    pub vcpu_count: Used,
    /// Memory in MiB.
    pub memory_mib: Used,
    /// Writable disk in MiB.
    pub disk_mib: Used,
}

/// What the host can do.
#[derive(Debug, Serialize, ToSchema)]
pub struct Doctor {
    /// `kvm` or `tcg`, found by booting a guest.
    pub accelerator: String,
    /// The checks in order.
    pub checks: Vec<Check>,
}

/// How starts went since the server began, and what is ready for the next.
#[derive(Debug, Serialize, ToSchema)]
pub struct StartStatistics {
    /// Starts that took over a VM of the pool.
    pub pool_hits: u64,
    /// Starts that were restored from a template.
    pub template_restores: u64,
    /// Starts that went on from saved memory or a snapshot's.
    pub memory_restores: u64,
    /// Starts that booted.
    pub boots: u64,
    /// Those of the boots that happened because a restore failed.
    pub restore_fallbacks: u64,
    /// Templates there are.
    pub templates: u64,
    /// VMs that wait in the pool, restored and paused.
    pub pool_warm: u64,
    /// VMM processes that wait in the pool for a state.
    pub pool_parked: u64,
}

/// One check of the host.
#[derive(Debug, Serialize, ToSchema)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it came out.
    pub level: CheckLevel,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckLevel {
    /// As it should be.
    Ok,
    /// Works, with something lost.
    Degraded,
    /// Workspaces cannot run.
    Missing,
}
