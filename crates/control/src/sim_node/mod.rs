//! The simulated node: a [`NodeApi`] in memory, for tests.
//!
//! It keeps the node's promises (idempotence, incarnations, a stop that cancels a bring-up, a resume
//! that cancels a suspension, events for what nobody asked for) without a host. Like a real node it
//! goes on when control is dropped: a bring-up or a suspension is its own task, and a caller that goes
//! away does not end it. Tests may slow it down, make it fail or hang at a named [`Point`], end VMs,
//! lose them, grow unknown ones, damage what is saved, or restart the host.

mod boot;
mod guest;
mod network;
mod point;
mod saved;
mod turns;
mod vm;
mod volume_files;
mod volumes;
mod workloads;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use skerry_internal_api::{
    ByteStream, DoctorCheck, DoctorLevel, EgressRefusals, GuestApi, ImageInfo, ImagePull,
    InjectedRequest, Injections, LogSource, NodeApi, NodeCapacity, NodeDoctor, NodeError,
    NodeEvent, NodeNetwork, PullFailure, PullStep, SnapshotContents, SnapshotInfo, StartStatistics,
    StopMode, VmExit, VmPhase, VmReport, VmSpec, VolumeFiles, VolumeInfo,
};
use skerry_model::{
    CheckpointId, Incarnation, NetworkPolicy, NodeId, OutboundProxy, PrivateAddress, SnapshotId,
    Timestamp, VolumeId, VolumeMount, WorkspaceId,
    spec::{ImageDigest, ImageRef},
};
use tokio::{
    runtime::Handle,
    sync::{broadcast, watch},
    task::AbortHandle,
};

pub use guest::{SimCommand, SimGuest};
pub use point::Point;
pub use workloads::SimSupervisor;

use guest::{Disk, Memory};
use saved::SimSnapshot;
use vm::{Beginning, Begun, Job, Saved, SimVm};
use volumes::SimVolumes;

/// The simulated node.
pub struct SimNode {
    id: NodeId,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    state: Mutex<SimState>,
    events: broadcast::Sender<NodeEvent>,
    injected: broadcast::Sender<InjectedRequest>,
    /// How often it was asked whether a start waits for its turn.
    turn_questions: watch::Sender<u32>,
    /// True while calls at the point hang.
    hanging: HashMap<Point, watch::Sender<bool>>,
    /// Where its own work goes on, also when the runtime that control is in ends.
    runtime: Option<Handle>,
    myself: Weak<Self>,
}

struct SimState {
    vms: HashMap<WorkspaceId, SimVm>,
    images: Vec<ImageInfo>,
    /// What can be pulled; a node without a registry permits none.
    registry: Vec<ImageInfo>,
    pulls: Vec<ImagePull>,
    failures: HashMap<Point, VecDeque<NodeError>>,
    boot_time: Duration,
    /// Boots wait for their turn, however long.
    boots_wait: bool,
    /// VMs that wait in the pool.
    pool: u32,
    pool_hits: u64,
    calls: watch::Sender<Vec<String>>,
    next_pid: u32,
    boots: u64,
    memory_restores: u64,
    snapshots: HashMap<SnapshotId, SimSnapshot>,
    network: Option<NodeNetwork>,
    volumes: SimVolumes,
    /// Whose they are, also while there is no VM.
    addresses: BTreeMap<PrivateAddress, WorkspaceId>,
    broken_proxies: BTreeMap<(std::net::Ipv4Addr, u16), String>,
}

impl SimState {
    /// Notes a call and answers the failure that was ordered for it.
    fn called(&mut self, point: Point, what: String) -> Result<(), NodeError> {
        self.calls.send_modify(|calls| calls.push(what));
        let failure = self.failures.get_mut(&point).and_then(VecDeque::pop_front);
        failure.map_or(Ok(()), Err)
    }
}

impl SimNode {
    /// A node with the images `base` and `node-20` and nothing else. `now` is its clock. What it does
    /// on its own, it does in the runtime in which it is made.
    #[must_use]
    pub fn new(now: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Arc<Self> {
        let image = |name: &str, fill: char, description: &str, category: &str| ImageInfo {
            name: ImageRef(name.to_owned()),
            digest: ImageDigest(format!("sha256:{}", fill.to_string().repeat(64))),
            description: description.to_owned(),
            category: category.to_owned(),
            size_bytes: 64 * 1024 * 1024,
            built_at: now(),
        };
        let images = vec![
            image("base", 'a', "Debian 12 with Python and git", "os"),
            image("node-20", 'b', "Debian 12 with Node 20", "runtime"),
        ];
        let hanging = Point::ALL.map(|point| (point, watch::Sender::new(false)));
        Arc::new_cyclic(|myself| Self {
            id: NodeId::from_u128(0x5eed_0000_0000_4000_8000_0000_0000_0001),
            now,
            state: Mutex::new(SimState {
                vms: HashMap::new(),
                images,
                registry: Vec::new(),
                pulls: Vec::new(),
                failures: HashMap::new(),
                boot_time: Duration::ZERO,
                boots_wait: false,
                pool: 0,
                pool_hits: 0,
                calls: watch::Sender::new(Vec::new()),
                next_pid: 1000,
                boots: 0,
                memory_restores: 0,
                snapshots: HashMap::new(),
                network: None,
                volumes: SimVolumes::default(),
                addresses: BTreeMap::new(),
                broken_proxies: BTreeMap::new(),
            }),
            events: broadcast::Sender::new(64),
            injected: broadcast::Sender::new(64),
            turn_questions: watch::Sender::new(0),
            hanging: hanging.into_iter().collect(),
            runtime: Handle::try_current().ok(),
            myself: myself.clone(),
        })
    }

    fn state(&self) -> MutexGuard<'_, SimState> {
        // A test that panicked while holding the lock has failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every boot takes this long from now on.
    pub fn set_boot_time(&self, boot_time: Duration) {
        self.state().boot_time = boot_time;
    }

    /// Replaces the catalogue.
    pub fn set_images(&self, images: Vec<ImageInfo>) {
        self.state().images = images;
    }

    /// The images of the one registry that this node may pull from, under their whole names.
    pub fn set_registry(&self, images: Vec<ImageInfo>) {
        self.state().registry = images;
    }

    /// The calls that changed something so far, such as `ensure_running #1`, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.borrow().clone()
    }

    /// How many boots succeeded; restores from memory not counted.
    #[must_use]
    pub fn boots(&self) -> u64 {
        self.state().boots
    }

    /// How many starts from a suspension's or a snapshot's memory succeeded.
    #[must_use]
    pub fn memory_restores(&self) -> u64 {
        self.state().memory_restores
    }

    /// Everything the node has of any workspace, in order of identifiers.
    #[must_use]
    pub fn vms(&self) -> Vec<VmReport> {
        let mut state = self.state();
        let mut vms: Vec<_> = state.vms.values().map(|vm| vm.report.clone()).collect();
        for report in &mut vms {
            report.volumes = state.held_by(report.workspace_id);
        }
        drop(state);
        vms.sort_by_key(|report| report.workspace_id);
        vms
    }

    /// What the workspace's VM was last told to be.
    #[must_use]
    pub fn spec(&self, id: WorkspaceId) -> Option<VmSpec> {
        self.state().vms.get(&id).map(|vm| vm.spec.clone())
    }

    /// The guest of the workspace, to prepare files and commands or to look at them.
    #[must_use]
    pub fn sim_guest(&self, id: WorkspaceId) -> Option<Arc<SimGuest>> {
        self.state().vms.get(&id).map(|vm| Arc::clone(&vm.guest))
    }

    /// The VM ends by itself, and the node reports it. Nothing happens when it does not run.
    pub fn end_vm(&self, id: WorkspaceId, exit: VmExit) {
        let mut state = self.state();
        let Some(vm) = state.vms.get_mut(&id) else { return };
        match vm.report.phase {
            VmPhase::Running | VmPhase::Paused | VmPhase::Suspending => {}
            VmPhase::Starting | VmPhase::Suspended | VmPhase::Stopping | VmPhase::Stopped => return,
        }
        vm.put_down(VmPhase::Stopped);
        vm.report.last_exit = Some(exit.clone());
        let incarnation = vm.report.incarnation;
        drop(state);
        // Nobody listening is no fault: control may be down.
        let _nobody = self.events.send(NodeEvent::Exited { workspace_id: id, incarnation, exit });
    }

    /// The node forgets the workspace without a word, as after a reinstallation of the host.
    pub fn lose(&self, id: WorkspaceId) {
        let mut state = self.state();
        state.vms.remove(&id);
        state.addresses.retain(|_, owner| *owner != id);
    }

    /// A VM runs that nobody asked for now: of an unknown workspace, or of another incarnation.
    pub fn grow(&self, spec: VmSpec) {
        let now = (self.now)();
        let mut state = self.state();
        state.next_pid += 1;
        let pid = state.next_pid;
        let vm = SimVm::new(spec, VmPhase::Running, &self.now);
        let private_address = state.address_of(vm.report.workspace_id);
        let (ready_at, pid) = (Some(now), Some(pid));
        let report = VmReport { ready_at, pid, private_address, ..vm.report.clone() };
        let is_networked = private_address.is_some();
        state.vms.insert(report.workspace_id, SimVm { report, is_networked, ..vm });
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        match &self.runtime {
            Some(runtime) => runtime.spawn(work).abort_handle(),
            None => tokio::spawn(work).abort_handle(),
        }
    }

    async fn gate(&self, point: Point) {
        if let Some(gate) = self.hanging.get(&point) {
            // The sender lives as long as the node.
            let mut gate = gate.subscribe();
            let _closed = gate.wait_for(|hangs| !hangs).await;
        }
    }

    /// The host is restarted: no VM is there any more; disks, saved memory and snapshots are.
    pub fn restart_host(&self) {
        for vm in self.state().vms.values_mut() {
            if vm.report.phase != VmPhase::Suspended {
                vm.put_down(VmPhase::Stopped);
                vm.report.last_exit = None;
            }
        }
    }
}

#[async_trait]
impl NodeApi for SimNode {
    fn id(&self) -> NodeId {
        self.id
    }

    async fn ensure_running(&self, spec: VmSpec) -> Result<VmReport, NodeError> {
        // Only a stop or a deletion cancels a bring-up.
        self.begin_boot(&spec)?.outcome(NodeError::Cancelled).await
    }

    async fn ensure_stopped(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        mode: StopMode,
    ) -> Result<(), NodeError> {
        let how = match mode {
            StopMode::Graceful { within: _ } => "gracefully",
            StopMode::Kill => "by force",
        };
        self.state()
            .called(Point::EnsureStopped, format!("ensure_stopped #{incarnation} {how}"))?;
        self.gate(Point::EnsureStopped).await;
        let mut state = self.state();
        let Some(vm) = state.vms.get_mut(&workspace_id) else { return Ok(()) };
        if vm.report.incarnation <= incarnation {
            match vm.report.phase {
                VmPhase::Running | VmPhase::Paused | VmPhase::Suspending => {
                    vm.report.last_exit = Some(VmExit::PoweredOff);
                }
                // Only what came up can end.
                VmPhase::Starting | VmPhase::Suspended | VmPhase::Stopping | VmPhase::Stopped => {}
            }
            vm.put_down(VmPhase::Stopped);
            vm.saved = None;
        }
        Ok(())
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
        self.begin_suspension(workspace_id, incarnation)?.outcome(NodeError::Cancelled).await
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
        let what = "ensure_snapshot_deleted".to_owned();
        self.state().called(Point::EnsureSnapshotDeleted, what)?;
        self.gate(Point::EnsureSnapshotDeleted).await;
        self.state().snapshots.remove(&snapshot_id);
        Ok(())
    }

    async fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.snapshot_infos()
    }

    async fn ensure_volume(&self, id: VolumeId, size_bytes: u64) -> Result<(), NodeError> {
        self.state().called(Point::EnsureVolume, "ensure_volume".to_owned())?;
        self.gate(Point::EnsureVolume).await;
        self.make_volume(id, size_bytes)
    }

    async fn ensure_checkpoint(
        &self,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), NodeError> {
        self.state().called(Point::EnsureCheckpoint, "ensure_checkpoint".to_owned())?;
        self.gate(Point::EnsureCheckpoint).await;
        self.make_checkpoint(volume_id, checkpoint_id)
    }

    async fn ensure_checkpoint_deleted(
        &self,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), NodeError> {
        self.remove_checkpoint(volume_id, checkpoint_id);
        Ok(())
    }

    async fn ensure_volume_deleted(&self, id: VolumeId) -> Result<(), NodeError> {
        self.remove_volume(id)
    }

    async fn volume_files(&self, id: VolumeId) -> Result<Arc<dyn VolumeFiles>, NodeError> {
        self.files_of_volume(id)
    }

    async fn ensure_volume_size(&self, id: VolumeId, size_bytes: u64) -> Result<(), NodeError> {
        self.grow_volume(id, size_bytes)
    }

    async fn ensure_disk_size(&self, spec: VmSpec) -> Result<(), NodeError> {
        self.grow_disk(&spec)
    }

    async fn volumes(&self) -> Result<Vec<VolumeInfo>, NodeError> {
        Ok(self.all_volumes())
    }

    async fn ensure_volume_attached(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        mount: VolumeMount,
    ) -> Result<(), NodeError> {
        self.state().called(Point::AttachVolume, "attach_volume".to_owned())?;
        self.attach(workspace_id, incarnation, mount)
    }

    async fn ensure_volume_detached(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        volume_id: VolumeId,
    ) -> Result<(), NodeError> {
        self.state().called(Point::DetachVolume, "detach_volume".to_owned())?;
        self.detach(workspace_id, incarnation, volume_id)
    }

    async fn start_statistics(&self) -> StartStatistics {
        let state = self.state();
        StartStatistics {
            boots: state.boots,
            pool_hits: state.pool_hits,
            pool_warm: u64::from(state.pool),
            memory_restores: state.memory_restores,
            ..StartStatistics::default()
        }
    }

    async fn ensure_deleted(&self, workspace_id: WorkspaceId) -> Result<(), NodeError> {
        self.state().called(Point::EnsureDeleted, "ensure_deleted".to_owned())?;
        self.gate(Point::EnsureDeleted).await;
        let mut state = self.state();
        state.vms.remove(&workspace_id);
        state.volumes.release(workspace_id);
        state.addresses.retain(|_, owner| *owner != workspace_id);
        Ok(())
    }

    fn network(&self) -> Option<NodeNetwork> {
        self.state().network
    }

    async fn egress_refusals(&self, id: WorkspaceId) -> Result<Option<EgressRefusals>, NodeError> {
        Ok(self.refusals(id))
    }

    async fn set_network_policy(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        self.take_policy(workspace_id, incarnation, policy).await
    }

    async fn set_injections(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        injections: Injections,
    ) -> Result<(), NodeError> {
        self.take_injections(workspace_id, incarnation, injections).await
    }

    fn injected_requests(&self) -> broadcast::Receiver<InjectedRequest> {
        self.injected.subscribe()
    }

    async fn check_proxy(&self, proxy: OutboundProxy) -> Result<(), NodeError> {
        self.ask_proxy(&proxy).await
    }

    async fn inspect(&self, workspace_id: WorkspaceId) -> Option<VmReport> {
        let mut state = self.state();
        let report = state.vms.get(&workspace_id)?.report.clone();
        Some(VmReport { volumes: state.held_by(workspace_id), ..report })
    }

    async fn awaits_turn(&self, workspace_id: WorkspaceId) -> bool {
        self.turn_questions.send_modify(|asked| *asked += 1);
        let state = self.state();
        let vm = state.vms.get(&workspace_id);
        state.boots_wait && vm.is_some_and(|vm| vm.report.phase == VmPhase::Starting)
    }

    async fn list(&self) -> Vec<VmReport> {
        self.vms()
    }

    fn subscribe(&self) -> broadcast::Receiver<NodeEvent> {
        self.events.subscribe()
    }

    async fn guest(&self, workspace_id: WorkspaceId) -> Result<Arc<dyn GuestApi>, NodeError> {
        let state = self.state();
        let vm = state.vms.get(&workspace_id).ok_or(NodeError::NoSuchVm)?;
        if vm.report.phase != VmPhase::Running {
            return Err(NodeError::NotRunning);
        }
        let guest: Arc<dyn GuestApi> = vm.guest.clone();
        Ok(guest)
    }

    async fn log(
        &self,
        workspace_id: WorkspaceId,
        source: LogSource,
        tail_bytes: u64,
    ) -> Result<ByteStream, NodeError> {
        let state = self.state();
        let log = state.vms.get(&workspace_id).map(|vm| match source {
            LogSource::Console => vm.console.clone(),
            LogSource::Commands => vm.guest.command_log(),
        });
        let log = log.unwrap_or_default();
        let skip = log.len().saturating_sub(usize::try_from(tail_bytes).unwrap_or(usize::MAX));
        Ok(guest::byte_stream(log.get(skip..).unwrap_or_default()))
    }

    async fn images(&self) -> Vec<ImageInfo> {
        self.state().images.clone()
    }

    async fn ensure_image(&self, reference: &str) -> Result<ImageInfo, NodeError> {
        let pull = self.begin_image_pull(reference).await?;
        pull.outcome.unwrap_or(Err(NodeError::Cancelled))
    }

    /// A pull takes no time here.
    async fn begin_image_pull(&self, reference: &str) -> Result<ImagePull, NodeError> {
        let mut state = self.state();
        let failed = |why, message: &str| NodeError::Pull { why, message: message.to_owned() };
        if state.registry.is_empty() {
            return Err(failed(PullFailure::NotPermitted, "this server does not pull images"));
        }
        let found = state.registry.iter().find(|image| image.name.0 == reference).cloned();
        let outcome = match found {
            Some(image) => {
                if !state.images.contains(&image) {
                    state.images.push(image.clone());
                }
                Ok(image)
            }
            None => Err(failed(PullFailure::NotFound, "the image is not there")),
        };
        let pull = ImagePull {
            reference: reference.to_owned(),
            step: if outcome.is_ok() { PullStep::Building } else { PullStep::Resolving },
            done_bytes: 0,
            total_bytes: 0,
            outcome: Some(outcome),
        };
        state.pulls.push(pull.clone());
        Ok(pull)
    }

    async fn image_named(&self, name: &str) -> Option<ImageInfo> {
        self.state().images.iter().find(|image| image.name.0 == name).cloned()
    }

    async fn image_pulls(&self) -> Vec<ImagePull> {
        self.state().pulls.clone()
    }

    async fn capacity(&self) -> NodeCapacity {
        let state = self.state();
        let live = state.vms.values().filter(|vm| vm.report.pid.is_some());
        let memory = live.map(|vm| u64::from(vm.spec.shape.memory_mib.get()));
        NodeCapacity {
            cpus: 4,
            memory_mib: 16_384,
            memory_promised_mib: memory.sum(),
            disk_free_mib: 100_000,
        }
    }

    async fn doctor(&self) -> NodeDoctor {
        NodeDoctor {
            accelerator: "tcg".to_owned(),
            checks: vec![DoctorCheck {
                name: "node".to_owned(),
                level: DoctorLevel::Degraded,
                found: "a simulated node: nothing really runs".to_owned(),
                remedy: None,
            }],
        }
    }
}
