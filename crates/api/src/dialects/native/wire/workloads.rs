//! Workloads.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::RestartPolicy;

/// What a workload is for.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadKind {
    /// Runs on. Started once all setup has ended.
    #[default]
    Service,
    /// Runs to its end once in the life of the disk. Setup runs one after the other, in the order of the
    /// list.
    SetupOnce,
    /// Runs to its end at every boot.
    SetupAtBoot,
}

/// What the end of a workload means for the workspace.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnExit {
    /// Nothing.
    #[default]
    Nothing,
    /// It is paused.
    Pause,
    /// It is stopped.
    Stop,
    /// Its VM ends as if by itself: `remove_on_exit` and the restart policy decide what follows. A code
    /// other than 0 is a failure.
    Exit,
}

/// A workload to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWorkload {
    /// 1 to 64 of `[A-Za-z0-9._-]`, unique in the workspace; absent: made from the program's name.
    pub name: Option<String>,
    /// What it is for.
    #[serde(default)]
    pub kind: WorkloadKind,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Added to the workspace's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Absolute; absent: the image's, or else the user's home.
    pub working_dir: Option<String>,
    /// A login name; absent: the image's, or else root.
    pub user: Option<String>,
    /// When it is started again; absent: never. A run of a minute begins a new row of restarts.
    pub restart: Option<RestartPolicy>,
    /// What its end means for the workspace.
    #[serde(default)]
    pub on_exit: OnExit,
    /// How much of its output is kept: 16 to 102400 KiB; absent: 1024.
    pub log_limit_kib: Option<u32>,
    /// Whether output of before the last boot is kept; absent: yes.
    pub keep_log: Option<bool>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether it starts; absent: yes.
    pub start: Option<bool>,
}

/// Neither arguments nor values of variables: both may be secrets.
impl std::fmt::Debug for CreateWorkload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateWorkload")
            .field("name", &self.name)
            .field("program", &self.command.first())
            .finish_non_exhaustive()
    }
}

/// What to change; what is absent stays. It takes effect at the next start of the process.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateWorkload {
    /// Another name.
    pub name: Option<String>,
    /// Another command.
    pub command: Option<Vec<String>>,
    /// Other variables; replaces all of them.
    pub env: Option<BTreeMap<String, String>>,
    /// Another directory. `null`: the default.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub working_dir: Option<Option<String>>,
    /// Another login. `null`: the default.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub user: Option<Option<String>>,
    /// When it is started again.
    pub restart: Option<RestartPolicy>,
    /// What its end means for the workspace.
    pub on_exit: Option<OnExit>,
    /// How much of its output is kept.
    pub log_limit_kib: Option<u32>,
    /// Other labels; replaces all of them.
    pub labels: Option<BTreeMap<String, String>>,
}

/// Tells `null` from what is absent.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::<String>::deserialize(deserializer).map(Some)
}

/// How far a workload is.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadState {
    /// It will be started: when the workspace runs, when setup has ended, or when the pause before a
    /// restart is over.
    Waiting,
    /// There is a process.
    Running,
    /// It is being stopped.
    Stopping,
    /// It was stopped.
    Stopped,
    /// It ended and is not started again.
    Ended,
}

/// A supervised process.
#[derive(Debug, Serialize, ToSchema)]
pub struct Workload {
    /// Its identity, a UUID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: WorkloadKind,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Names of its variables; values are not shown.
    pub env_names: Vec<String>,
    /// Its directory, if one was given.
    pub working_dir: Option<String>,
    /// Its login, if one was given.
    pub user: Option<String>,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// What its end means for the workspace.
    pub on_exit: OnExit,
    /// How much of its output is kept.
    pub log_limit_kib: u32,
    /// Whether output of before the last boot is kept.
    pub keep_log: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it should run.
    pub should_run: bool,
    /// How far it is.
    pub state: WorkloadState,
    /// The process, while there is one.
    pub pid: Option<u32>,
    /// The exit code of the last process that ended by itself.
    pub exit_code: Option<u8>,
    /// The signal that ended the last process.
    pub exit_signal: Option<u8>,
    /// Why it could not be started.
    pub start_error: Option<String>,
    /// Starts since the guest's boot.
    pub starts: u64,
    /// Restarts in a row.
    pub restarts: u32,
    /// When the last process was started.
    #[schema(format = DateTime)]
    pub started_at: Option<String>,
    /// When the last process ended.
    #[schema(format = DateTime)]
    pub ended_at: Option<String>,
    /// CPU time of its processes since the boot.
    pub cpu_used_ms: u64,
    /// Memory of its processes.
    pub memory_bytes: u64,
    /// How many processes it has.
    pub processes: u32,
    /// When it was made.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it was last changed.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

/// The workloads of a workspace, in the order in which they are started.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkloadList {
    /// The workloads.
    pub workloads: Vec<Workload>,
}

/// Which part of the output is asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct WorkloadLogQuery {
    /// At most so many lines at its end: 1 to 10000; absent: 1000. Not together with `after`.
    pub tail: Option<u32>,
    /// What comes after this position of an earlier answer.
    pub after: Option<u64>,
    /// With `after`: waits for more if there is nothing, at most so many seconds: 0 to 20.
    pub wait_seconds: Option<u64>,
}

/// From which stream a line came.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// What the supervisor has to say: how processes ended.
    Supervisor,
}

/// One line.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkloadLogLine {
    /// When the guest read it.
    #[schema(format = DateTime)]
    pub at: String,
    /// From which stream.
    pub stream: WorkloadStream,
    /// Without its end of line.
    pub text: String,
}

/// A part of a workload's output.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkloadLog {
    /// Oldest first.
    pub lines: Vec<WorkloadLogLine>,
    /// What to ask for next with `after`.
    pub position: u64,
    /// Whether there is more already.
    pub has_more: bool,
}
