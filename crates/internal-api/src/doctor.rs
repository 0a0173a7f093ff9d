//! What a node finds out about its host.

use serde::{Deserialize, Serialize};

/// What this host can do, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDoctor {
    /// `kvm` or `tcg`, from a guest that was really booted.
    pub accelerator: String,
    /// The checks in order.
    pub checks: Vec<DoctorCheck>,
}

/// One check of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorCheck {
    /// What was looked at.
    pub name: String,
    /// How it came out.
    pub level: DoctorLevel,
    /// What was found.
    pub found: String,
    /// What to do about it, when something can be done.
    pub remedy: Option<String>,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoctorLevel {
    /// As it should be.
    Ok,
    /// Works, with something lost.
    Degraded,
    /// Workspaces cannot run.
    Missing,
}
