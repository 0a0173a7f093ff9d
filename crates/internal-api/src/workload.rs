//! What a guest supervises, as control and the node speak of it.

use std::time::Duration;

use async_trait::async_trait;
use skerry_model::{Timestamp, Workload, WorkloadId};

use crate::NodeError;

/// How far a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadPhase {
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
}

/// How a workload's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadEnd {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// It could not be started.
    NotStarted,
}

impl WorkloadEnd {
    /// Whether it ended as a program that succeeds does.
    #[must_use]
    pub const fn is_success(self) -> bool {
        match self {
            Self::Code(code) => code == 0,
            Self::Signal(_) | Self::NotStarted => false,
        }
    }
}

/// How a workload is, by its guest's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadReport {
    /// Which.
    pub id: WorkloadId,
    /// How far it is.
    pub phase: WorkloadPhase,
    /// Of which turn this speaks.
    pub turn: u64,
    /// How often it was started since the boot.
    pub starts: u64,
    /// Restarts in a row.
    pub restarts: u32,
    /// The process, while there is one.
    pub pid: Option<u32>,
    /// How the last process ended.
    pub last_end: Option<WorkloadEnd>,
    /// Why it could not be started the last time.
    pub start_error: Option<String>,
    /// When the last process was started.
    pub started_at: Option<Timestamp>,
    /// When the last process ended.
    pub ended_at: Option<Timestamp>,
    /// Whether its end was acted on.
    pub is_acknowledged: bool,
    /// CPU time of its processes, user and system.
    pub cpu_used_ms: u64,
    /// Memory of its processes.
    pub memory_bytes: u64,
    /// How many there are.
    pub processes: u32,
}

/// How all workloads of a guest are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadReports {
    /// Another one after each change, except in use of resources. Never 0.
    pub number: u64,
    /// In the order of the workloads.
    pub reports: Vec<WorkloadReport>,
}

/// Which part of a workload's output is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogPart {
    /// At most so many lines at its end.
    Tail {
        /// At most 10,000.
        lines: u32,
    },
    /// What comes after a position of an earlier answer; waits if there is nothing.
    After {
        /// The position.
        position: u64,
        /// For at most so long.
        wait: Duration,
    },
}

/// From which stream a line came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// What the supervisor has to say: starts, ends.
    Supervisor,
}

/// One line of a workload's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadLogLine {
    /// When the guest read it.
    pub at: Timestamp,
    /// From which stream.
    pub stream: LogStream,
    /// Without its end of line.
    pub text: String,
}

/// A part of a workload's output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadLog {
    /// Oldest first.
    pub lines: Vec<WorkloadLogLine>,
    /// What to ask for next.
    pub position: u64,
    /// Whether there is more already.
    pub has_more: bool,
}

/// The supervisor inside one running guest. All calls fail with [`NodeError::Unsupported`] where the
/// guest's agent is too old.
#[async_trait]
pub trait SupervisorApi: Send + Sync {
    /// Says everything that shall be supervised, in place of whatever was said before; saying the same
    /// again changes nothing. What is not named any more has ended when this returns.
    async fn set_workloads(&self, workloads: &[Workload]) -> Result<(), NodeError>;

    /// How the workloads are, once [`WorkloadReports::number`] is another than `seen` or `wait` (at most
    /// 20 s) is over. With 0 at once.
    async fn watch_workloads(
        &self,
        seen: u64,
        wait: Duration,
    ) -> Result<WorkloadReports, NodeError>;

    /// Notes that the end of this start is being acted on, so that it is not acted on twice.
    async fn acknowledge_end(&self, id: WorkloadId, starts: u64) -> Result<(), NodeError>;

    /// A part of a workload's output.
    async fn workload_log(&self, id: WorkloadId, part: LogPart) -> Result<WorkloadLog, NodeError>;

    /// Removes a workload's output.
    async fn clear_workload_log(&self, id: WorkloadId) -> Result<(), NodeError>;
}
