//! Putting a node together from its configuration and the host it finds.

use std::sync::{Arc, atomic::AtomicU64};

use skerry_vmm::Vmm;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{EVENTS, Node};
use crate::{
    NetworkChoice, NodeConfig, NodeEnvironment,
    capacity::{MemoryBooks, guest_memory_limit_mib},
    cgroups::Cgroups,
    error::{Error, chain},
    host::{Host, StartCounters},
    images::{ImageStore, Puller},
    layout::{Layout, node_id},
    network::Network,
    pool::{self, Pool},
    promotion::Promotions,
    saved::Storage,
    snapshots::SnapshotsUnderWay,
    templates::Templates,
    turns::Turns,
    uids::UidPool,
    volumes::{Helpers, Volumes},
};

impl Node {
    /// Makes templates and VMs that wait, if there are to be any.
    pub(super) fn start_keeper(&self) {
        if self.host.templates.off().is_some() {
            return;
        }
        let (host, abandon) = (Arc::clone(&self.host), self.host.abandon.clone());
        self.host.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = abandon.cancelled() => {}
                () = pool::keep(host) => {}
            }
        });
    }

    /// Makes places on the network ahead and serves guests there, if there is one.
    pub(super) fn keep_network_ready(&self) {
        let Some(network) = self.host.network.clone() else { return };
        let ends = [self.host.abandon.clone(), self.host.shutdown.clone()];
        self.host.tasks.spawn(Arc::clone(&network).keep_ready(ends.clone()));
        self.host.tasks.spawn(async move {
            if let Err(error) = network.serve(ends).await {
                tracing::error!(error = chain(&error), "guests are not served names");
            }
        });
    }
}

/// Everything a node has before it knows of any VM.
///
/// # Errors
/// A setting that cannot be; a directory or a network that cannot be opened.
pub(super) fn host(
    config: NodeConfig,
    vmm: Arc<dyn Vmm>,
    environment: NodeEnvironment,
) -> Result<Host, Error> {
    if config.uids.count == 0 || config.uids.first.checked_add(config.uids.count).is_none() {
        let problem = "the range of uids is empty or too long".to_owned();
        return Err(Error::Config { setting: "uids", problem });
    }
    let layout = Layout::open(&config)?;
    let storage = Storage::open(&layout, &config, &environment)?;
    let volumes = Arc::new(Volumes::new(
        layout.volumes_dir(),
        storage.disks.clone(),
        Arc::clone(&storage.layers),
        storage.room.clone(),
    ));
    let images = ImageStore::open(&config.image_dir)
        .map_err(|error| Error::Config { setting: "image_dir", problem: error.to_string() })?
        .with_kernel_choice(config.kernel);
    let cgroups = Cgroups::open(config.cgroups, &layout.tag);
    if let Some(reason) = cgroups.reason() {
        tracing::warn!(reason, "VMs run without cgroups");
    }
    let uids = UidPool::available(config.uids).map(|()| UidPool::new(config.uids));
    if let Err(reason) = &uids {
        tracing::warn!(reason, "VMs run without uids of their own");
    }
    let memory = MemoryBooks::new(guest_memory_limit_mib(&config, &layout.memory_dir));
    let network = open_network(&config, &layout)?;
    let (shutdown, abandon) = (CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();
    let puller = Arc::new(Puller::new(
        images.clone(),
        config.pull.clone(),
        Arc::clone(&environment.now),
        [shutdown.clone(), abandon.clone()],
        tasks.clone(),
    ));
    puller.sweep();
    let templates = Templates::new(config.template_budget_mib, &*vmm);
    let promotions = Promotions::new(templates.off().is_none());
    let pool = Pool::new(&config, memory.limit_mib(), &templates, &shutdown);
    Ok(Host {
        id: node_id(&layout.data_dir, &environment)?,
        turns: Turns::new(&config),
        config,
        environment,
        layout,
        storage,
        volumes,
        helpers: Helpers::default(),
        vmm,
        images,
        puller,
        cgroups,
        uids,
        memory,
        templates,
        pool,
        promotions,
        network,
        starts: StartCounters::default(),
        events: broadcast::Sender::new(EVENTS),
        shutdown,
        abandon,
        tasks,
        snapshots: SnapshotsUnderWay::default(),
        flattening: Arc::new(Semaphore::new(1)),
        repeated_boots: AtomicU64::new(0),
    })
}

fn open_network(config: &NodeConfig, layout: &Layout) -> Result<Option<Arc<Network>>, Error> {
    match (config.network, Network::unavailable()) {
        (NetworkChoice::Off, _) => Ok(None),
        (NetworkChoice::On, Some(problem)) => Err(Error::Config { setting: "network", problem }),
        (NetworkChoice::On, None) => {
            // A start that finds none waiting makes its own.
            let ahead = usize::try_from(config.pool_max_warm).unwrap_or(usize::MAX).clamp(1, 16);
            let (prefix, uplink) = (config.network_prefix, &config.uplink);
            let network = Network::open(&layout.tag, prefix, ahead, uplink, &layout.data_dir)?;
            Ok(Some(Arc::new(network)))
        }
    }
}
