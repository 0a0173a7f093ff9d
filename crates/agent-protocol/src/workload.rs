//! The JSON of the calls about workloads: processes that the agent supervises by itself, so that they go
//! on, and are started again, while no host is connected. Since revision 6.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::message::User;

/// Everything the agent shall supervise, in place of whatever it was told before. Saying the same again
/// changes nothing; what is not named any more ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetWorkloads {
    /// At most [`WORKLOADS_MAX`](crate::limits::WORKLOADS_MAX), in the order in which they are started.
    pub workloads: Vec<Workload>,
}

/// What a workload is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Started once all setup has ended.
    Service,
    /// Setup runs one after the other. Once in the life of the disk.
    SetupOnce,
    /// At each boot.
    SetupAtBoot,
}

/// After which ends a process is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// After none.
    Never,
    /// After every end but code 0, and a start that failed.
    OnFailure,
    /// After each.
    Always,
}

/// One workload.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// The name of its directory: 1 to 64 of `[a-z0-9-]`.
    pub id: String,
    /// What it is for.
    pub kind: Kind,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the environment of the configure call.
    pub env: BTreeMap<String, String>,
    /// Working directory; the user's home if missing.
    pub working_dir: Option<String>,
    /// As whom.
    pub user: User,
    /// Whether it shall run.
    pub runs: bool,
    /// Another number than before makes a process run anew. What else has changed takes effect at the
    /// next start.
    pub turn: u64,
    /// When it is started again.
    pub restart: Restart,
    /// How often in a row; 0 means without limit.
    pub restarts_max: u32,
    /// Before the first restart of a row.
    pub pause_ms: u64,
    /// Each pause is twice the one before, up to this.
    pub pause_max_ms: u64,
    /// A run this long ends a row.
    pub steady_ms: u64,
    /// The most of its output that is kept.
    pub log_max_bytes: u64,
    /// Whether output of before this boot is kept.
    pub keeps_log: bool,
}

impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workload")
            .field("id", &self.id)
            .field("program", &self.argv.first())
            .field("runs", &self.runs)
            .field("turn", &self.turn)
            .finish_non_exhaustive()
    }
}

/// Asks how the workloads are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchWorkloads {
    /// The number of the last answer; the call waits until it is another. 0 never waits.
    pub seen: u64,
    /// For at most so long, at most
    /// [`WORKLOAD_WAIT_MAX_MS`](crate::limits::WORKLOAD_WAIT_MAX_MS).
    pub wait_ms: u64,
}

/// How the workloads are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadReports {
    /// Another one after each change of what follows, except in use of resources. Never 0.
    pub number: u64,
    /// In the order of the workloads.
    pub workloads: Vec<WorkloadReport>,
}

/// How far a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits: for setup, or for its next restart.
    Waiting,
    /// There is a process.
    Running,
    /// It is being stopped.
    Stopping,
    /// It was stopped, or never started.
    Stopped,
    /// It ended and is not started again.
    Ended,
    /// Also every word a newer agent may say.
    #[serde(other)]
    Unknown,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// It could not be started.
    NotStarted,
}

/// How one workload is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadReport {
    /// Which.
    pub id: String,
    /// How far it is.
    pub phase: Phase,
    /// Of which turn this speaks.
    pub turn: u64,
    /// Starts since the boot or since the agent was told of it.
    pub starts: u64,
    /// Restarts in a row.
    pub restarts: u32,
    /// The process, while there is one.
    pub pid: Option<u32>,
    /// How the last process ended.
    pub last_end: Option<End>,
    /// Why it could not be started the last time.
    pub start_error: Option<String>,
    /// When the last process was started, milliseconds since 1970.
    pub started_unix_ms: Option<i64>,
    /// When the last process ended.
    pub ended_unix_ms: Option<i64>,
    /// Whether a host has said that it acts on the end.
    pub is_acknowledged: bool,
    /// CPU time of its processes that are there, user and system.
    pub cpu_used_ms: u64,
    /// Memory of its processes.
    pub memory_bytes: u64,
    /// How many there are.
    pub processes: u32,
}

/// Says that the end of a workload is being acted on, so that it is not acted on twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcknowledgeEnd {
    /// Whose.
    pub id: String,
    /// The end of this start; one that is over is left alone.
    pub starts: u64,
}

/// Asks for a workload's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLog {
    /// Whose.
    pub id: String,
    /// What comes after this position; if missing, the end of what is there.
    pub after: Option<u64>,
    /// Without `after`: at most so many lines, at most
    /// [`LOG_LINES_MAX`](crate::limits::LOG_LINES_MAX).
    pub lines: u32,
    /// Waits for more if there is nothing, for at most so long.
    pub wait_ms: u64,
}

/// From which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The supervisor's own words: starts, ends.
    Supervisor,
}

/// One line of output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was read, milliseconds since 1970.
    pub unix_ms: i64,
    /// From which stream.
    pub stream: Stream,
    /// Without its end of line; longer ones are cut into pieces of
    /// [`LOG_LINE_MAX`](crate::limits::LOG_LINE_MAX) bytes.
    pub text: String,
}

/// Output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLines {
    /// Oldest first.
    pub lines: Vec<LogLine>,
    /// What to ask for next with `after`.
    pub position: u64,
    /// Whether there is more already.
    pub has_more: bool,
}

/// Removes a workload's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearLog {
    /// Whose.
    pub id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_of_the_future_is_unknown_and_no_error() {
        let phase: Phase = serde_json::from_str("\"meditating\"").unwrap();
        assert_eq!(phase, Phase::Unknown);
    }

    #[test]
    fn a_workload_shows_neither_its_arguments_nor_values_of_variables() {
        let said = r#"{"id":"a","kind":"service","argv":["run","hunter2"],"env":{"K":"swordfish"},
            "working_dir":null,"user":"root","runs":true,"turn":1,"restart":"never","restarts_max":0,
            "pause_ms":0,"pause_max_ms":0,"steady_ms":0,"log_max_bytes":0,"keeps_log":true}"#;
        let shown = format!("{:?}", serde_json::from_str::<Workload>(said).unwrap());
        assert!(shown.contains("run"), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("swordfish"), "{shown}");
    }
}
