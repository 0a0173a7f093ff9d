//! The node: the register of VMs and what control may ask.

mod open;
mod volumes;

use std::{
    collections::{HashMap, hash_map},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use skerry_internal_api::{
    ByteStream, EgressRefusals, GuestApi, ImageInfo, ImagePull, InjectedRequest, Injections,
    LogSource, NodeApi, NodeCapacity, NodeDoctor, NodeError, NodeEvent, NodeNetwork,
    SnapshotContents, SnapshotInfo, StartStatistics, StopMode, VmPhase, VmReport, VmSpec,
    VolumeFiles, VolumeInfo,
};
use skerry_model::{
    CheckpointId, Incarnation, NetworkPolicy, NodeId, OutboundProxy, SnapshotId, VolumeId,
    VolumeMount, WorkspaceId,
};
use skerry_vmm::Vmm;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    NodeConfig, NodeEnvironment,
    capacity::disk_free_mib,
    doctor,
    error::{Error, blocking, chain},
    guest::HANDSHAKE_WITHIN,
    host::{Host, StepFailed},
    ledger::Ledger,
    logs,
    network::GUEST_GATEWAY,
    pool,
    recovery::{Recovered, recover},
    saving::{ended_by, replaced_by},
    snapshots, spec_file,
    vm::{
        Answer, Request, Slot, Status, Undertaking,
        owner::{Found, Owner},
    },
    volumes::{Helpers, Volumes},
};

/// Events a slow subscriber may be behind.
const EVENTS: usize = 1024;
/// How long a call waits for the agent of a VM that was just taken over.
const GUEST_WAIT: Duration = Duration::from_secs(30);
/// One try to meet an agent may be lost; the next must still be in time.
const _: () = assert!(GUEST_WAIT.as_secs() > 2 * HANDSHAKE_WITHIN.as_secs());

type Slots = HashMap<WorkspaceId, Arc<Slot>>;

/// One machine that runs VMs.
///
/// Clones are the same node. Dropping the last one without [`Node::shutdown`] is a crash as far as
/// the VMs are concerned: they keep running and the next [`Node::open`] takes them over.
#[derive(Clone)]
pub struct Node {
    host: Arc<Host>,
    slots: Arc<Mutex<Slots>>,
    _last: Arc<AbandonOnDrop>,
}

/// Drops the tasks of a node that nobody has any more.
struct AbandonOnDrop(CancellationToken);

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Node {
    /// Opens the node: locks and makes its directories, and takes over or rolls back what an earlier
    /// life left. Control should `list` next.
    ///
    /// # Errors
    /// Another server has the data directory, a setting cannot work, or a directory cannot be made
    /// or read. A single VM that cannot be recovered is not an error: it is reported as stopping and
    /// tried again.
    pub async fn open(
        config: NodeConfig,
        vmm: Arc<dyn Vmm>,
        environment: NodeEnvironment,
    ) -> Result<Self, Error> {
        let host = Arc::new(blocking(move || open::host(config, vmm, environment)).await?);
        let last = Arc::new(AbandonOnDrop(host.abandon.clone()));
        let sealing = Arc::clone(&host);
        blocking(move || spec_file::seal_all(&sealing.layout, &*sealing.environment.seal)).await?;
        let node = Self { host, slots: Arc::default(), _last: last };
        pool::sweep(&node.host).await?;
        for Recovered { workspace_id, ledger, found } in recover(&node.host).await? {
            node.adopt_slot(workspace_id, ledger, found);
        }
        node.start_keeper();
        node.keep_network_ready();
        Ok(node)
    }

    /// Works until `shutdown` is cancelled, then ends in good order.
    pub async fn run(&self, shutdown: CancellationToken) {
        shutdown.cancelled().await;
        self.shutdown().await;
    }

    /// Ends every task: starts under way are undone, running VMs keep running. Later requests are
    /// refused.
    pub async fn shutdown(&self) {
        self.host.shutdown.cancel();
        self.host.tasks.close();
        self.host.tasks.wait().await;
        let host = Arc::clone(&self.host);
        // Nothing to be done about a failure: the directories are merely left.
        let _ = blocking(move || {
            if let Some(network) = &host.network {
                network.close()?;
            }
            host.cgroups.leave();
            host.layout.leave();
            Ok(())
        })
        .await;
    }

    /// Drops every task where it is, as a crash of the server would, and returns when they are gone.
    /// For tests of crash safety.
    pub async fn abandon(self) {
        self.host.abandon.cancel();
        self.host.tasks.close();
        self.host.tasks.wait().await;
    }

    /// Completes when no template and no waiting VM is being made or removed, and none is due. For
    /// tests.
    pub async fn settled(&self) {
        self.host.pool.settled().await;
    }

    /// How many guests hung during boot and were booted once more since the node was opened.
    #[must_use]
    pub fn repeated_boots(&self) -> u64 {
        self.host.repeated_boots.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, workspace_id: WorkspaceId) -> Option<Arc<Slot>> {
        self.slots().get(&workspace_id).cloned()
    }

    fn slot_or_new(&self, workspace_id: WorkspaceId) -> Arc<Slot> {
        match self.slots().entry(workspace_id) {
            hash_map::Entry::Occupied(entry) => Arc::clone(entry.get()),
            hash_map::Entry::Vacant(entry) => {
                let (slot, requests) = Slot::new(workspace_id);
                entry.insert(Arc::clone(&slot));
                self.start_owner(Arc::clone(&slot), requests, None, Found::Nothing);
                slot
            }
        }
    }

    fn adopt_slot(&self, workspace_id: WorkspaceId, ledger: Option<Ledger>, found: Found) {
        let (slot, requests) = Slot::new(workspace_id);
        self.slots().insert(workspace_id, Arc::clone(&slot));
        self.start_owner(slot, requests, ledger, found);
    }

    fn start_owner(
        &self,
        slot: Arc<Slot>,
        requests: mpsc::Receiver<Request>,
        ledger: Option<Ledger>,
        found: Found,
    ) {
        let owner = Owner::new(Arc::clone(&self.host), slot, requests, ledger, found);
        let slots = Arc::clone(&self.slots);
        let retire = move |slot: &Slot, requests: &mut mpsc::Receiver<Request>| {
            let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
            // Requests that wait already are answered by this owner; once it is out of the register,
            // callers who still hold the slot find it closed and ask again.
            if !requests.is_empty() {
                return false;
            }
            requests.close();
            slots.remove(&slot.workspace_id);
            true
        };
        let abandon = self.host.abandon.clone();
        self.host.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = abandon.cancelled() => {}
                () = owner.run(retire) => {}
            }
        });
    }

    /// Cancelled when the node is to end in good order.
    pub(crate) fn shutdown_token(&self) -> &CancellationToken {
        &self.host.shutdown
    }

    /// Asks the owner of a VM that is there.
    pub(crate) async fn ask_owner<T>(
        &self,
        workspace_id: WorkspaceId,
        request: impl Fn(&Slot, Answer<T>) -> Request,
    ) -> Result<T, NodeError> {
        loop {
            if let Some(error) = self.ending() {
                return Err(error);
            }
            let slot = self.slot(workspace_id).ok_or(NodeError::NoSuchVm)?;
            if let Some(result) = self.ask(&slot, |answer| request(&slot, answer)).await {
                return result;
            }
        }
    }

    /// Sends a request and waits for the answer; `None` when the owner has retired meanwhile, and
    /// whoever asks again finds another slot or none.
    async fn ask<T>(
        &self,
        slot: &Arc<Slot>,
        request: impl FnOnce(Answer<T>) -> Request,
    ) -> Option<Result<T, NodeError>> {
        let (answer, answered) = oneshot::channel();
        if slot.mailbox.send(request(answer)).await.is_ok()
            && let Ok(result) = answered.await
        {
            return Some(result);
        }
        // An owner that retires leaves the register first. One that is still in it ended otherwise
        // (its task was dropped or panicked), and nobody will answer however often it is asked.
        let registered = self.slot(slot.workspace_id);
        let is_lost = registered.is_some_and(|registered| Arc::ptr_eq(&registered, slot));
        let lost = is_lost.then_some(NodeError::Step { step: "vm_owner" });
        self.ending().or(lost).map(Err)
    }

    fn ending(&self) -> Option<NodeError> {
        let ending = self.host.shutdown.is_cancelled() || self.host.abandon.is_cancelled();
        ending.then_some(NodeError::Step { step: "node_shutdown" })
    }
}

#[async_trait]
impl NodeApi for Node {
    fn id(&self) -> NodeId {
        self.host.id
    }

    async fn ensure_running(&self, spec: VmSpec) -> Result<VmReport, NodeError> {
        loop {
            if let Some(error) = self.ending() {
                return Err(error);
            }
            let slot = self.slot_or_new(spec.workspace_id);
            // A newer start replaces an older one, also one that is still under way.
            slot.cancel(replaced_by(&spec), |start| start < spec.incarnation);
            let cancel = slot.announce(Undertaking::Start, spec.incarnation, &self.host.shutdown);
            let request = |answer| Request::Run { spec: Box::new(spec.clone()), cancel, answer };
            if let Some(result) = self.ask(&slot, request).await {
                return result;
            }
        }
    }

    async fn ensure_stopped(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        mode: StopMode,
    ) -> Result<(), NodeError> {
        loop {
            if let Some(error) = self.ending() {
                return Err(error);
            }
            let Some(slot) = self.slot(workspace_id) else { return Ok(()) };
            slot.cancel(ended_by(mode), |start| start <= incarnation);
            let request = |answer| Request::Stop { through: incarnation, mode, answer };
            if let Some(result) = self.ask(&slot, request).await {
                return result;
            }
        }
    }

    async fn ensure_paused(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        self.pause(workspace_id, incarnation).await
    }

    async fn ensure_resumed(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        self.resume(workspace_id, incarnation).await
    }

    async fn ensure_suspended(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        self.suspend(workspace_id, incarnation).await
    }

    async fn take_snapshot(
        &self,
        workspace_id: WorkspaceId,
        snapshot_id: SnapshotId,
        contents: SnapshotContents,
    ) -> Result<SnapshotInfo, NodeError> {
        self.snapshot(workspace_id, snapshot_id, contents).await
    }

    async fn ensure_snapshot_deleted(&self, snapshot_id: SnapshotId) -> Result<(), NodeError> {
        if let Some(error) = self.ending() {
            return Err(error);
        }
        snapshots::delete(&self.host, snapshot_id).await
    }

    async fn snapshots(&self) -> Vec<SnapshotInfo> {
        snapshots::list(&self.host).await.unwrap_or_else(|error| {
            tracing::error!(error = chain(&error), "the snapshots cannot be listed");
            Vec::new()
        })
    }

    async fn ensure_volume(&self, id: VolumeId, size_bytes: u64) -> Result<(), NodeError> {
        self.with_volumes("make_volume", move |volumes| volumes.ensure(id, size_bytes)).await
    }

    async fn ensure_checkpoint(
        &self,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), NodeError> {
        self.make_checkpoint(volume_id, checkpoint_id).await
    }

    async fn ensure_checkpoint_deleted(
        &self,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), NodeError> {
        self.with_volumes("remove_checkpoint", move |volumes| {
            volumes.delete_checkpoint(volume_id, checkpoint_id)
        })
        .await
    }

    async fn ensure_volume_deleted(&self, id: VolumeId) -> Result<(), NodeError> {
        let _no_helper = Helpers::without(&self.host, id).await;
        self.with_volumes("remove_volume", move |volumes| volumes.delete(id)).await
    }

    async fn volumes(&self) -> Result<Vec<VolumeInfo>, NodeError> {
        self.with_volumes("list_volumes", Volumes::list).await
    }

    async fn volume_files(&self, id: VolumeId) -> Result<Arc<dyn VolumeFiles>, NodeError> {
        self.files_of_volume(id).await
    }

    async fn ensure_volume_size(&self, id: VolumeId, size_bytes: u64) -> Result<(), NodeError> {
        self.grow_volume(id, size_bytes).await
    }

    async fn ensure_disk_size(&self, spec: VmSpec) -> Result<(), NodeError> {
        self.grow_disk(spec).await
    }

    async fn ensure_volume_attached(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        mount: VolumeMount,
    ) -> Result<(), NodeError> {
        let mount = Arc::new(mount);
        let request = |_: &Slot, answer| {
            let mount = Arc::clone(&mount);
            Request::AttachVolume { incarnation, mount, answer }
        };
        self.ask_owner(workspace_id, request).await
    }

    async fn ensure_volume_detached(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        volume_id: VolumeId,
    ) -> Result<(), NodeError> {
        let request = |_: &Slot, answer| Request::DetachVolume { incarnation, volume_id, answer };
        self.ask_owner(workspace_id, request).await
    }

    async fn start_statistics(&self) -> StartStatistics {
        let mut statistics = self.host.starts.statistics();
        statistics.templates = self.host.templates.all().len() as u64;
        self.host.pool.count(&mut statistics);
        statistics
    }

    async fn ensure_deleted(&self, workspace_id: WorkspaceId) -> Result<(), NodeError> {
        loop {
            if let Some(error) = self.ending() {
                return Err(error);
            }
            let Some(slot) = self.slot(workspace_id) else { return Ok(()) };
            slot.cancel(Undertaking::ALL, |_| true);
            if let Some(result) = self.ask(&slot, |answer| Request::Delete { answer }).await {
                return result;
            }
        }
    }

    async fn inspect(&self, workspace_id: WorkspaceId) -> Option<VmReport> {
        self.slot(workspace_id)?.status.borrow().report.clone()
    }

    fn network(&self) -> Option<NodeNetwork> {
        let network = self.host.network.as_ref()?;
        Some(NodeNetwork { gateway: GUEST_GATEWAY, has_uplink: network.has_uplink() })
    }

    async fn egress_refusals(
        &self,
        workspace_id: WorkspaceId,
    ) -> Result<Option<EgressRefusals>, NodeError> {
        let Some(network) = self.host.network.clone() else { return Ok(None) };
        let dir = self.host.layout.vm(workspace_id).dir;
        let Some(address) = network.known_address(&dir) else { return Ok(None) };
        blocking(move || network.egress_refusals(address))
            .await
            .map_err(StepFailed::at("egress_refusals"))
            .map_err(|failed| failed.report("reading what a guest was refused"))
    }

    async fn set_network_policy(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        let policy = Arc::new(policy);
        let request = |_: &Slot, answer| {
            let policy = Arc::clone(&policy);
            Request::SetNetworkPolicy { incarnation, policy, answer }
        };
        self.ask_owner(workspace_id, request).await
    }

    async fn set_injections(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        injections: Injections,
    ) -> Result<(), NodeError> {
        let injections = Arc::new(injections);
        let request = |_: &Slot, answer| {
            let injections = Arc::clone(&injections);
            Request::SetInjections { incarnation, injections, answer }
        };
        self.ask_owner(workspace_id, request).await
    }

    fn injected_requests(&self) -> broadcast::Receiver<InjectedRequest> {
        match &self.host.network {
            Some(network) => network.injected_requests(),
            None => broadcast::channel(1).1,
        }
    }

    async fn check_proxy(&self, proxy: OutboundProxy) -> Result<(), NodeError> {
        let network = self.host.network.clone();
        let network = network.ok_or_else(|| NodeError::Unsupported("networks".to_owned()))?;
        network.check_proxy(&proxy).await
    }

    async fn awaits_turn(&self, workspace_id: WorkspaceId) -> bool {
        self.host.turns.is_awaited_by(workspace_id)
    }

    async fn list(&self) -> Vec<VmReport> {
        let slots: Vec<Arc<Slot>> = self.slots().values().cloned().collect();
        slots.iter().filter_map(|slot| slot.status.borrow().report.clone()).collect()
    }

    fn subscribe(&self) -> broadcast::Receiver<NodeEvent> {
        self.host.events.subscribe()
    }

    async fn guest(&self, workspace_id: WorkspaceId) -> Result<Arc<dyn GuestApi>, NodeError> {
        let slot = self.slot(workspace_id).ok_or(NodeError::NoSuchVm)?;
        let mut status = slot.status.subscribe();
        let settled = |status: &Status| {
            let running = status.report.as_ref().map(|report| report.phase);
            status.guest.is_some() || running != Some(VmPhase::Running)
        };
        match tokio::time::timeout(GUEST_WAIT, status.wait_for(settled)).await {
            Ok(Ok(status)) => match (&status.guest, &status.report) {
                (Some(guest), _) => Ok(Arc::clone(guest)),
                (None, Some(_)) => Err(NodeError::NotRunning),
                (None, None) => Err(NodeError::NoSuchVm),
            },
            Ok(Err(_)) => Err(NodeError::NoSuchVm),
            Err(_) => {
                let reason = "its agent has not answered since the node was restarted".to_owned();
                Err(NodeError::GuestUnreachable(reason))
            }
        }
    }

    async fn log(
        &self,
        workspace_id: WorkspaceId,
        source: LogSource,
        tail_bytes: u64,
    ) -> Result<ByteStream, NodeError> {
        let paths = self.host.layout.vm(workspace_id);
        let log = match source {
            LogSource::Console => paths.console_log,
            LogSource::Commands => paths.command_log,
        };
        logs::tail(&log, tail_bytes).await
    }

    async fn images(&self) -> Vec<ImageInfo> {
        let images = self.host.images.clone();
        let list = move || Ok(images.list().iter().map(crate::images::StoredImage::info).collect());
        blocking(list).await.unwrap_or_default()
    }

    async fn ensure_image(&self, reference: &str) -> Result<ImageInfo, NodeError> {
        self.host.puller.ensure(reference).await
    }

    async fn begin_image_pull(&self, reference: &str) -> Result<ImagePull, NodeError> {
        self.host.puller.begin(reference)
    }

    async fn image_named(&self, name: &str) -> Option<ImageInfo> {
        let (puller, name) = (Arc::clone(&self.host.puller), name.to_owned());
        let found = blocking(move || Ok(puller.find(&name).map(|image| image.info()))).await;
        found.unwrap_or_default()
    }

    async fn image_pulls(&self) -> Vec<ImagePull> {
        self.host.puller.list()
    }

    async fn capacity(&self) -> NodeCapacity {
        let data_dir = self.host.layout.data_dir.clone();
        let disk_free_mib = blocking(move || Ok(disk_free_mib(&data_dir))).await.unwrap_or(0);
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        NodeCapacity {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory_mib: self.host.memory.limit_mib(),
            memory_promised_mib: self.host.memory.promised_mib(),
            disk_free_mib,
        }
    }

    async fn doctor(&self) -> NodeDoctor {
        let host = Arc::clone(&self.host);
        let look = move || Ok(doctor::examine_host(&host));
        blocking(look).await.unwrap_or_else(|_| doctor::nothing_found())
    }
}
