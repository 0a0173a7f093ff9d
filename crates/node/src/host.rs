//! What every part of the node shares: this machine, its books and its configuration.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use skerry_internal_api::{NodeError, NodeEvent};
use skerry_model::NodeId;
use skerry_vmm::{Accelerator, Vmm};
use tokio::sync::broadcast;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    NodeConfig, NodeEnvironment,
    capacity::MemoryBooks,
    cgroups::Cgroups,
    error::{Error, chain},
    images::ImageStore,
    layout::Layout,
    saved::Storage,
    uids::UidPool,
};

/// This machine.
pub(crate) struct Host {
    pub id: NodeId,
    pub config: NodeConfig,
    pub environment: NodeEnvironment,
    pub layout: Layout,
    pub storage: Storage,
    pub vmm: Arc<dyn Vmm>,
    pub images: ImageStore,
    pub cgroups: Cgroups,
    /// `Err` says why VMs do not get uids of their own.
    pub uids: Result<UidPool, String>,
    pub memory: MemoryBooks,
    pub events: broadcast::Sender<NodeEvent>,
    /// Cancelled when the node is to end in good order.
    pub shutdown: CancellationToken,
    /// Cancelled when every task is to be dropped where it is, as in a crash.
    pub abandon: CancellationToken,
    /// Every task of the node.
    pub tasks: TaskTracker,
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

    pub fn count_repeated_boot(&self) {
        self.repeated_boots.fetch_add(1, Ordering::Relaxed);
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
