//! What every part of the node shares: this machine, its books and its configuration.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use skerry_internal_api::{NodeError, NodeEvent, StartPath, StartStatistics};
use skerry_model::NodeId;
use skerry_vmm::{Accelerator, Cable, Vmm};
use tokio::sync::{Semaphore, broadcast};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    NodeConfig, NodeEnvironment,
    capacity::MemoryBooks,
    cgroups::Cgroups,
    error::{Error, chain},
    images::{ImageStore, Puller},
    layout::Layout,
    network::Network,
    pool::Pool,
    promotion::Promotions,
    saved::Storage,
    snapshots::SnapshotsUnderWay,
    templates::Templates,
    turns::Turns,
    uids::UidPool,
    volumes::{Helpers, Volumes},
};

/// This machine.
pub(crate) struct Host {
    pub id: NodeId,
    pub config: NodeConfig,
    pub environment: NodeEnvironment,
    pub layout: Layout,
    pub storage: Storage,
    pub volumes: Arc<Volumes>,
    /// Who serves files of volumes that no VM has.
    pub helpers: Helpers,
    pub vmm: Arc<dyn Vmm>,
    pub images: ImageStore,
    /// What brings images from registries.
    pub puller: Arc<Puller>,
    pub cgroups: Cgroups,
    /// `Err` says why VMs do not get uids of their own.
    pub uids: Result<UidPool, String>,
    pub memory: MemoryBooks,
    pub templates: Templates,
    pub pool: Pool,
    pub promotions: Promotions,
    /// Whose turn it is to start.
    pub turns: Turns,
    /// `None` where VMs have no network.
    pub network: Option<Arc<Network>>,
    /// How starts went.
    pub starts: StartCounters,
    pub events: broadcast::Sender<NodeEvent>,
    /// Cancelled when the node is to end in good order.
    pub shutdown: CancellationToken,
    /// Cancelled when every task is to be dropped where it is, as in a crash.
    pub abandon: CancellationToken,
    /// Every task of the node.
    pub tasks: TaskTracker,
    /// Snapshots that are being taken.
    pub snapshots: SnapshotsUnderWay,
    /// Whose turn it is to make one layer of many: it reads and writes whole disks.
    pub flattening: Arc<Semaphore>,
    /// Guests that hung during boot and were booted once more.
    pub repeated_boots: AtomicU64,
}

impl Host {
    /// How long a guest may take from boot to its first answer.
    pub fn boot_bound(&self) -> std::time::Duration {
        let seconds = match self.vmm.capabilities().accelerator {
            Accelerator::Kvm | Accelerator::None => 30,
            Accelerator::Tcg => 180,
        };
        self.config.boot_timeout.unwrap_or(std::time::Duration::from_secs(seconds))
    }

    /// How long a saved machine may take to load, and again to answer: without a boot it is far
    /// quicker, but a host that restores many at once is slow.
    pub fn restore_bound(&self) -> std::time::Duration {
        self.boot_bound() / 2
    }

    /// What every VM's network card is plugged into here, as far as it belongs to the machine.
    pub fn cable(&self) -> Cable {
        match self.network {
            None => Cable::Loose,
            Some(_) => Cable::Tap { tap: None },
        }
    }

    pub fn count_repeated_boot(&self) {
        self.repeated_boots.fetch_add(1, Ordering::Relaxed);
    }
}

/// How starts went since the node was opened.
#[derive(Debug, Default)]
pub(crate) struct StartCounters {
    pool_hits: AtomicU64,
    template_restores: AtomicU64,
    boots: AtomicU64,
    restore_fallbacks: AtomicU64,
    memory_restores: AtomicU64,
    memory_clones: AtomicU64,
}

impl StartCounters {
    /// A start that took this path is complete.
    pub fn count(&self, path: StartPath) {
        let counter = match path {
            StartPath::Pool => &self.pool_hits,
            StartPath::Template => &self.template_restores,
            StartPath::Boot => &self.boots,
            StartPath::SavedMemory | StartPath::SnapshotMemory => &self.memory_restores,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A start boots because a restore failed.
    pub fn count_fallback(&self) {
        self.restore_fallbacks.fetch_add(1, Ordering::Relaxed);
    }

    /// A start from a snapshot mapped memory that others share.
    pub fn count_memory_clone(&self) {
        self.memory_clones.fetch_add(1, Ordering::Relaxed);
    }

    /// All of it; what is ready for the next start is for others to fill in.
    pub fn statistics(&self) -> StartStatistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StartStatistics {
            pool_hits: read(&self.pool_hits),
            template_restores: read(&self.template_restores),
            boots: read(&self.boots),
            restore_fallbacks: read(&self.restore_fallbacks),
            memory_restores: read(&self.memory_restores),
            memory_clones: read(&self.memory_clones),
            ..StartStatistics::default()
        }
    }
}

/// A step that failed, and why.
#[derive(Debug)]
pub(crate) struct StepFailed {
    pub step: &'static str,
    pub error: Error,
}

impl StepFailed {
    /// A closure for `map_err`.
    pub fn at(step: &'static str) -> impl FnOnce(Error) -> Self {
        move |error| Self { step, error }
    }

    /// What the caller is told; the cause goes to the log.
    pub fn report(&self, doing: &'static str) -> NodeError {
        match &self.error {
            Error::Cancelled | Error::NoCapacity(_) => {
                tracing::info!(step = self.step, reason = %self.error, "{doing} ended early");
            }
            other => {
                tracing::error!(step = self.step, error = chain(other), "{doing} failed");
            }
        }
        self.error.public(self.step)
    }
}
