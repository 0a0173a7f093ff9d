//! The simulated node: a [`NodeApi`] in memory, for tests.
//!
//! It keeps the node's promises (idempotence, incarnations, a stop that cancels a bring-up, events
//! for what nobody asked for) without a host. Like a real node it goes on when control is dropped:
//! a bring-up is its own task, and a caller that goes away does not end it. Tests may slow it down,
//! make it fail or hang at a named [`Point`], end VMs, lose them or grow unknown ones.

mod guest;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use skerry_internal_api::{
    ByteStream, DoctorCheck, DoctorLevel, GuestApi, ImageInfo, LogSource, NodeApi, NodeCapacity,
    NodeDoctor, NodeError, NodeEvent, StopMode, VmExit, VmPhase, VmReport, VmSpec,
};
use skerry_model::{
    Incarnation, NodeId, Timestamp, WorkspaceId,
    spec::{ImageDigest, ImageRef},
};
use tokio::{
    sync::{broadcast, watch},
    task::AbortHandle,
};

pub use guest::{SimCommand, SimGuest};

/// Where the simulated node can be made to fail or hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// Bringing a VM up.
    EnsureRunning,
    /// Bringing a VM to a stop.
    EnsureStopped,
    /// Removing everything of a workspace.
    EnsureDeleted,
}

/// The simulated node.
pub struct SimNode {
    id: NodeId,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    state: Mutex<SimState>,
    events: broadcast::Sender<NodeEvent>,
    /// True while calls at the point hang.
    hanging: HashMap<Point, watch::Sender<bool>>,
    myself: Weak<Self>,
}

struct SimState {
    vms: HashMap<WorkspaceId, SimVm>,
    images: Vec<ImageInfo>,
    failures: HashMap<Point, VecDeque<NodeError>>,
    boot_time: Duration,
    calls: Vec<String>,
    next_pid: u32,
    boots: u64,
}

impl SimState {
    /// Notes a call and answers the failure that was ordered for it.
    fn called(&mut self, point: Point, what: String) -> Result<(), NodeError> {
        self.calls.push(what);
        let failure = self.failures.get_mut(&point).and_then(VecDeque::pop_front);
        failure.map_or(Ok(()), Err)
    }
}

struct SimVm {
    report: VmReport,
    spec: VmSpec,
    /// The disk and the processes: files outlive a stop.
    guest: Arc<SimGuest>,
    console: Vec<u8>,
    boot: Option<Boot>,
}

/// A bring-up under way; every caller waits for the same outcome.
struct Boot {
    outcome: watch::Receiver<Option<Result<VmReport, NodeError>>>,
    task: AbortHandle,
}

impl Drop for Boot {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SimNode {
    /// A node with the images `base` and `node-20` and nothing else. `now` is its clock.
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
        let points = [Point::EnsureRunning, Point::EnsureStopped, Point::EnsureDeleted];
        let hanging = points.map(|point| (point, watch::Sender::new(false)));
        Arc::new_cyclic(|myself| Self {
            id: NodeId::from_u128(0x5eed_0000_0000_4000_8000_0000_0000_0001),
            now,
            state: Mutex::new(SimState {
                vms: HashMap::new(),
                images,
                failures: HashMap::new(),
                boot_time: Duration::ZERO,
                calls: Vec::new(),
                next_pid: 1000,
                boots: 0,
            }),
            events: broadcast::Sender::new(64),
            hanging: hanging.into_iter().collect(),
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

    /// The next call at `point` fails with `error` (several are used up in order).
    pub fn fail_next(&self, point: Point, error: NodeError) {
        self.state().failures.entry(point).or_default().push_back(error);
    }

    /// Calls at `point` hang until [`SimNode::release`]. A hanging boot is under way: it can be
    /// cancelled by a stop.
    pub fn hang(&self, point: Point) {
        if let Some(gate) = self.hanging.get(&point) {
            gate.send_replace(true);
        }
    }

    /// Calls that hang at `point` go on, and later ones no longer hang.
    pub fn release(&self, point: Point) {
        if let Some(gate) = self.hanging.get(&point) {
            gate.send_replace(false);
        }
    }

    /// The calls that changed something so far, such as `ensure_running #1`, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// How many boots succeeded.
    #[must_use]
    pub fn boots(&self) -> u64 {
        self.state().boots
    }

    /// Everything the node has of any workspace, in order of identifiers.
    #[must_use]
    pub fn vms(&self) -> Vec<VmReport> {
        let mut vms: Vec<_> = self.state().vms.values().map(|vm| vm.report.clone()).collect();
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
        if vm.report.phase != VmPhase::Running {
            return;
        }
        vm.report.phase = VmPhase::Stopped;
        vm.report.pid = None;
        vm.report.ready_at = None;
        vm.report.last_exit = Some(exit.clone());
        let incarnation = vm.report.incarnation;
        drop(state);
        // Nobody listening is no fault: control may be down.
        let _nobody = self.events.send(NodeEvent::Exited { workspace_id: id, incarnation, exit });
    }

    /// The node forgets the workspace without a word, as after a reinstallation of the host.
    pub fn lose(&self, id: WorkspaceId) {
        self.state().vms.remove(&id);
    }

    /// A VM runs that nobody asked for now: of an unknown workspace, or of another incarnation.
    pub fn grow(&self, spec: VmSpec) {
        let now = (self.now)();
        let mut state = self.state();
        state.next_pid += 1;
        let pid = state.next_pid;
        let vm = SimVm::new(spec, VmPhase::Running, &self.now);
        let report = VmReport { ready_at: Some(now), pid: Some(pid), ..vm.report.clone() };
        state.vms.insert(report.workspace_id, SimVm { report, ..vm });
    }

    async fn gate(&self, point: Point) {
        if let Some(gate) = self.hanging.get(&point) {
            // The sender lives as long as the node.
            let mut gate = gate.subscribe();
            let _closed = gate.wait_for(|hangs| !hangs).await;
        }
    }

    /// Begins a bring-up, or finds the one under way. Answers at once when the VM runs already.
    fn begin_boot(&self, spec: &VmSpec) -> Result<BeginBoot, NodeError> {
        let mut state = self.state();
        if let Some(vm) = state.vms.get(&spec.workspace_id) {
            let same = vm.report.incarnation == spec.incarnation;
            if same && vm.report.phase == VmPhase::Running {
                return Ok(BeginBoot::Runs(vm.report.clone()));
            }
            if same && let Some(boot) = &vm.boot {
                return Ok(BeginBoot::UnderWay(boot.outcome.clone()));
            }
            let newer_runs =
                vm.report.incarnation > spec.incarnation && vm.report.phase != VmPhase::Stopped;
            if newer_runs {
                return Err(NodeError::NoSuchVm);
            }
        }
        state.called(Point::EnsureRunning, format!("ensure_running #{}", spec.incarnation))?;
        if !state.images.iter().any(|image| image.digest == spec.image_digest) {
            return Err(NodeError::NoSuchImage(spec.image_digest.to_string()));
        }
        let (report_outcome, outcome) = watch::channel(None);
        let (node, id, incarnation) = (self.myself.clone(), spec.workspace_id, spec.incarnation);
        let boot_time = state.boot_time;
        let task = tokio::spawn(async move {
            let Some(node) = node.upgrade() else { return };
            node.gate(Point::EnsureRunning).await;
            tokio::time::sleep(boot_time).await;
            report_outcome.send_replace(Some(node.finish_boot(id, incarnation)));
        });
        let boot = Boot { outcome: outcome.clone(), task: task.abort_handle() };
        let mut vm = SimVm::new(spec.clone(), VmPhase::Starting, &self.now);
        if let Some(old) = state.vms.remove(&spec.workspace_id) {
            vm.guest = old.guest.clone();
        }
        vm.guest.begin_start(spec);
        vm.boot = Some(boot);
        state.vms.insert(spec.workspace_id, vm);
        Ok(BeginBoot::UnderWay(outcome))
    }

    fn finish_boot(&self, id: WorkspaceId, of: Incarnation) -> Result<VmReport, NodeError> {
        let now = (self.now)();
        let mut state = self.state();
        state.next_pid += 1;
        let pid = state.next_pid;
        let vm = state.vms.get_mut(&id).filter(|vm| vm.report.incarnation == of);
        let vm = vm.ok_or(NodeError::NoSuchVm)?;
        vm.report.phase = VmPhase::Running;
        vm.report.ready_at = Some(now);
        vm.report.pid = Some(pid);
        vm.console.extend_from_slice(format!("[    0.000000] start {of}\n").as_bytes());
        let report = vm.report.clone();
        state.boots += 1;
        Ok(report)
    }
}

enum BeginBoot {
    Runs(VmReport),
    UnderWay(watch::Receiver<Option<Result<VmReport, NodeError>>>),
}

impl SimVm {
    fn new(spec: VmSpec, phase: VmPhase, now: &Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Self {
        Self {
            report: VmReport {
                start_path: None,
                workspace_id: spec.workspace_id,
                incarnation: spec.incarnation,
                phase,
                ready_at: None,
                pid: None,
                last_exit: None,
            },
            guest: SimGuest::new(&spec, Arc::clone(now)),
            spec,
            console: Vec::new(),
            boot: None,
        }
    }
}

#[async_trait]
impl NodeApi for SimNode {
    fn id(&self) -> NodeId {
        self.id
    }

    async fn ensure_running(&self, spec: VmSpec) -> Result<VmReport, NodeError> {
        let mut outcome = match self.begin_boot(&spec)? {
            BeginBoot::Runs(report) => return Ok(report),
            BeginBoot::UnderWay(outcome) => outcome,
        };
        match outcome.wait_for(Option::is_some).await {
            Ok(finished) => finished.clone().unwrap_or(Err(NodeError::NoSuchVm)),
            // The bring-up was cancelled by a stop or a deletion.
            Err(_) => Err(NodeError::Step { step: "bring_up_cancelled" }),
        }
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
            vm.boot = None;
            if vm.report.phase != VmPhase::Stopped {
                vm.report.last_exit = Some(VmExit::PoweredOff);
            }
            vm.report.phase = VmPhase::Stopped;
            vm.report.pid = None;
            vm.report.ready_at = None;
        }
        Ok(())
    }

    async fn ensure_deleted(&self, workspace_id: WorkspaceId) -> Result<(), NodeError> {
        self.state().called(Point::EnsureDeleted, "ensure_deleted".to_owned())?;
        self.gate(Point::EnsureDeleted).await;
        self.state().vms.remove(&workspace_id);
        Ok(())
    }

    async fn inspect(&self, workspace_id: WorkspaceId) -> Option<VmReport> {
        self.state().vms.get(&workspace_id).map(|vm| vm.report.clone())
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

    async fn capacity(&self) -> NodeCapacity {
        let state = self.state();
        let live = state.vms.values().filter(|vm| vm.report.phase != VmPhase::Stopped);
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
