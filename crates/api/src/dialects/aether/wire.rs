//! Aether's wire types. `memory_mb` is mebibytes and `volume_size_gb` gibibytes.

use serde::{Deserialize, Serialize};
use skerry_model::Timestamp;

use crate::{number::WholeNumber, object::Object};

/// Body of `POST /projects/{id}/workspaces`. A field Skerry does not know is refused rather than
/// dropped.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateWorkspaceBody {
    #[serde(default)]
    pub hardware: Option<Object<HardwareBody>>,
    #[serde(default)]
    pub keep_active: Option<bool>,
}

/// Body of `PATCH /workspaces/{id}`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateWorkspaceBody {
    #[serde(default)]
    pub hardware: Option<Object<HardwareBody>>,
    #[serde(default)]
    pub keep_active: Option<bool>,
}

/// Hardware as a request gives it: unchecked, so that every wrong field is reported at once.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HardwareBody {
    #[serde(default)]
    pub cpu_kind: Option<String>,
    #[serde(default)]
    pub cpus: Option<WholeNumber>,
    #[serde(default)]
    pub memory_mb: Option<WholeNumber>,
    #[serde(default)]
    pub volume_size_gb: Option<WholeNumber>,
    #[serde(default)]
    pub gpu_kind: Option<String>,
}

/// Body of `POST /projects`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateProjectBody {
    /// Required; optional here so that its absence is answered like any other wrong value.
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub description: Option<String>,
}

/// A workspace's state in Aether's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Creating,
    Starting,
    Running,
    Stopping,
    Stopped,
    Error,
}

impl Status {
    /// All of them.
    pub(super) const ALL: [Self; 6] =
        [Self::Creating, Self::Starting, Self::Running, Self::Stopping, Self::Stopped, Self::Error];

    /// The word on the wire.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Error => "error",
        }
    }
}

/// CPU share class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CpuKind {
    Shared,
    Performance,
}

/// Hardware as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Hardware {
    pub cpu_kind: CpuKind,
    pub cpus: u32,
    pub memory_mb: u32,
    pub volume_size_gb: u32,
    /// Always null: there are no GPUs.
    pub gpu_kind: Option<&'static str>,
}

/// A workspace. No `Debug`: the preview token is a secret.
#[derive(Serialize)]
pub(super) struct Workspace {
    pub id: String,
    pub project_id: String,
    pub status: Status,
    pub hardware: Hardware,
    pub keep_active: bool,
    pub machine_id: Option<String>,
    /// Under which address others of the account see it; null before the first start and without a network.
    pub private_ip: Option<String>,
    /// Null until workspaces have a repository.
    pub git_ref: Option<String>,
    pub preview_token: String,
    pub error_message: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Answer of the two lists of workspaces.
#[derive(Serialize)]
pub(super) struct Workspaces {
    pub workspaces: Vec<Workspace>,
}

/// Answer of start and stop.
#[derive(Debug, Serialize)]
pub(super) struct StatusOnly {
    pub status: Status,
}

/// A project.
#[derive(Debug, Serialize)]
pub(super) struct Project {
    pub id: String,
    pub name: String,
    pub description: Option<String>,
    /// Null until projects have a repository.
    pub repo_url: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Answer of `GET /projects`.
#[derive(Debug, Serialize)]
pub(super) struct Projects {
    pub projects: Vec<Project>,
}

/// Answer of `GET /profile`. An account here has no mail address, so there is no `email`.
#[derive(Debug, Serialize)]
pub(super) struct Profile {
    pub id: String,
    pub display_name: String,
    pub onboarding_completed: bool,
}

/// Answer of `GET /user/settings`.
#[derive(Debug, Serialize)]
pub(super) struct Settings {
    pub default_hardware: Hardware,
    /// After how long without use a workspace stops that is not kept active.
    pub default_idle_timeout_minutes: u32,
}
