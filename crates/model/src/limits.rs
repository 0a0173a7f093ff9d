//! What an account may have: ranges for one workspace and sums over many.

use serde::{Deserialize, Serialize};

/// An inclusive range with the value used when nothing is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Smallest allowed.
    pub min: u32,
    /// Largest allowed.
    pub max: u32,
    /// Used by the native API when the request is silent; a dialect has defaults of its own.
    pub default: u32,
}

/// Sums over several workspaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Virtual CPUs.
    pub vcpu_count: u64,
    /// Memory.
    pub memory_mib: u64,
    /// Writable disk.
    pub disk_mib: u64,
}

/// The limits of an account, from configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name: `[a-z0-9-]+`.
    pub name: String,
    /// Its name for people.
    pub label: String,
    /// Virtual CPUs of one workspace.
    pub vcpu_count: Range,
    /// Memory of one workspace, MiB.
    pub memory_mib: Range,
    /// Writable disk of one workspace, MiB.
    pub disk_mib: Range,
    /// Workspaces in all.
    pub max_workspaces: u64,
    /// Sum over all workspaces.
    pub owned_pool: Pool,
    /// Sum over workspaces that run or start.
    pub running_pool: Pool,
}

/// What an account uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Workspaces in all.
    pub workspaces: u64,
    /// Sum over all of them.
    pub owned: Pool,
    /// Sum over those that run or start.
    pub running: Pool,
}
