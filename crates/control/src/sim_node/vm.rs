//! One simulated VM, and what is under way with it.

use std::sync::Arc;

use skerry_internal_api::{EgressRefusals, Injections, NodeError, VmPhase, VmReport, VmSpec};
use skerry_model::{NetworkPolicy, Timestamp};
use tokio::{sync::watch, task::AbortHandle};

use super::guest::{Disk, Memory, SimGuest};

pub(super) struct SimVm {
    pub(super) report: VmReport,
    pub(super) spec: VmSpec,
    /// The disk and the processes: files outlive a stop.
    pub(super) guest: Arc<SimGuest>,
    pub(super) console: Vec<u8>,
    /// The bring-up or suspension under way.
    pub(super) job: Option<Job>,
    /// What the bring-up under way begins with.
    pub(super) beginning: Beginning,
    /// What a suspension saved.
    pub(super) saved: Option<Saved>,
    /// Whether the VM came up with a network.
    pub(super) is_networked: bool,
    /// What it was refused there.
    pub(super) refusals: EgressRefusals,
    /// What it may do on the network.
    pub(super) policy: NetworkPolicy,
    pub(super) injections: Injections,
}

/// What a bring-up makes of the guest once it succeeds.
pub(super) enum Beginning {
    /// A VM of the pool, on a disk of its own.
    Pool,
    /// A boot from the disk as it is.
    Disk,
    /// The memory is as it was.
    SavedMemory,
    /// Both are a snapshot's, or its disk alone.
    Snapshot(Disk, Option<Memory>),
}

pub(super) struct Saved {
    pub(super) memory: Memory,
    pub(super) is_damaged: bool,
}

pub(super) type Outcome = Option<Result<VmReport, NodeError>>;

/// A bring-up or suspension under way; every caller waits for the same outcome.
pub(super) struct Job {
    pub(super) outcome: watch::Receiver<Outcome>,
    pub(super) task: AbortHandle,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What became of a call that begins something.
pub(super) enum Begun {
    Already(VmReport),
    UnderWay(watch::Receiver<Outcome>),
}

impl Begun {
    /// The outcome; `cancelled` when something else ended the work.
    pub(super) async fn outcome(self, cancelled: NodeError) -> Result<VmReport, NodeError> {
        match self {
            Self::Already(report) => Ok(report),
            Self::UnderWay(mut outcome) => match outcome.wait_for(Option::is_some).await {
                Ok(finished) => finished.clone().unwrap_or(Err(NodeError::NoSuchVm)),
                Err(_) => Err(cancelled),
            },
        }
    }
}

impl SimVm {
    pub(super) fn new(
        spec: VmSpec,
        phase: VmPhase,
        now: &Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Self {
        Self {
            report: VmReport {
                start_path: None,
                workspace_id: spec.workspace_id,
                incarnation: spec.incarnation,
                phase,
                ready_at: None,
                pid: None,
                last_exit: None,
                private_address: None,
                volumes: Vec::new(),
            },
            guest: SimGuest::new(&spec, Arc::clone(now)),
            spec,
            console: Vec::new(),
            job: None,
            beginning: Beginning::Disk,
            saved: None,
            is_networked: false,
            refusals: EgressRefusals::default(),
            policy: NetworkPolicy::default(),
            injections: Injections::default(),
        }
    }

    /// There is no process any more, and nothing is under way.
    pub(super) fn put_down(&mut self, phase: VmPhase) {
        self.job = None;
        self.report.phase = phase;
        self.report.pid = None;
        self.report.ready_at = None;
        self.report.start_path = None;
        self.policy = NetworkPolicy::default();
        self.injections = Injections::default();
    }
}
