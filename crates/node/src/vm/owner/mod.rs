//! The owner task of one VM.

mod end;
mod network;
mod start;

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use skerry_internal_api::{GuestApi, NodeError, StartPath, VmExit, VmPhase, VmReport, VmSpec};
use skerry_model::{Incarnation, Timestamp};
use skerry_vmm::{Exit, Vm};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error,
    command_log::{CommandLog, CommandLogWriter},
    guest::GuestLink,
    host::Host,
    identity::GuestIdentity,
    images::ImageDefaults,
    layout::VmPaths,
    ledger::Ledger,
    logged_guest::LoggedGuest,
    vm::{Answer, Request, Slot, Status, bring_up::Leases, flatten::Flattening, link},
};

/// After this a release that failed is tried again.
const RELEASE_RETRY: Duration = Duration::from_secs(10);

/// Locked only so that the owner may be looked at from several tasks' futures; never waited for.
pub(super) type Connecting = Mutex<Pin<Box<dyn Future<Output = Arc<GuestLink>> + Send>>>;

/// A VM that has a process.
pub(super) struct Running {
    pub vm: Arc<dyn Vm>,
    pub cpus: Cpus,
    /// `None` while the agent of a VM that was taken over has not answered yet.
    pub link: Option<Arc<GuestLink>>,
    /// What is handed out of it while its CPUs run.
    guest: Option<Arc<dyn GuestApi>>,
    logging: Option<Logging>,
    /// The try to reach it.
    pub connecting: Option<Connecting>,
    /// With what it is reached when its CPUs run again: of a VM that was taken over paused.
    contact: Option<Contact>,
}

/// Whether a VM's virtual CPUs run, as its users know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cpus {
    /// They run.
    Running,
    /// They stand still until a resume.
    Paused,
}

/// What a guest is told on a connection.
pub(crate) struct Contact {
    pub spec: Box<VmSpec>,
    pub identity: GuestIdentity,
    /// What the image says about the programs in it.
    pub defaults: ImageDefaults,
}

/// The tasks that write what passes through the guest's handle.
struct Logging {
    writer: CommandLogWriter,
    relays: TaskTracker,
    closed: CancellationToken,
}

/// What recovery found of a VM.
pub(crate) enum Found {
    /// Nothing yet.
    Nothing,
    /// A disk without a VM.
    Disk,
    /// Things that could not be released, with what they have of the host's books.
    Leftovers { leases: Option<Leases> },
    /// A VM that still runs.
    Running { vm: Arc<dyn Vm>, cpus: Cpus, leases: Leases, contact: Contact },
}

/// Everything known of one VM, and the only one who changes it.
pub(crate) struct Owner {
    pub(super) host: Arc<Host>,
    pub(super) slot: Arc<Slot>,
    requests: mpsc::Receiver<Request>,
    pub(super) paths: VmPaths,
    pub(super) ledger: Option<Ledger>,
    pub(super) incarnation: Incarnation,
    ready_at: Option<Timestamp>,
    start_path: Option<StartPath>,
    last_exit: Option<VmExit>,
    pub(super) phase: VmPhase,
    /// Whether the workspace has a disk or a VM here.
    pub(super) present: bool,
    pub(super) running: Option<Running>,
    /// Kept until the release has succeeded: a uid must not go to another VM while a process has it.
    leases: Option<Leases>,
    /// When to try again to release what could not be released.
    retry_release: Option<Instant>,
    /// Layers that become one while the VM runs.
    pub(super) flattening: Option<Flattening>,
}

/// What an owner waits for.
enum Happened {
    Shutdown,
    Request(Option<Request>),
    Exit(Exit),
    Connected(Arc<GuestLink>),
    Flattened(Result<(), Error>),
    RetryRelease,
}

impl Owner {
    /// An owner in the state that was found, already published.
    pub fn new(
        host: Arc<Host>,
        slot: Arc<Slot>,
        requests: mpsc::Receiver<Request>,
        ledger: Option<Ledger>,
        found: Found,
    ) -> Self {
        let paths = host.layout.vm(slot.workspace_id);
        let state = ledger.as_ref().map(Ledger::state).unwrap_or_default();
        let mut owner = Self {
            host,
            slot,
            requests,
            paths,
            ledger,
            incarnation: state.incarnation,
            ready_at: None,
            start_path: None,
            last_exit: state.last_exit,
            phase: VmPhase::Stopped,
            present: true,
            running: None,
            leases: None,
            retry_release: None,
            flattening: None,
        };
        match found {
            Found::Nothing => owner.present = false,
            Found::Disk => owner.phase = owner.phase_at_rest(),
            Found::Leftovers { leases } => {
                owner.leases = leases;
                owner.phase = VmPhase::Stopping;
                owner.retry_release = Some(Instant::now() + RELEASE_RETRY);
            }
            Found::Running { vm, cpus, leases, contact } => {
                owner.ready_at = state.ready_at;
                owner.start_path = state.start_path;
                owner.leases = Some(leases);
                owner.running = Some(Running {
                    vm,
                    cpus,
                    link: None,
                    guest: None,
                    logging: None,
                    connecting: None,
                    contact: Some(contact),
                });
                match cpus {
                    Cpus::Running => owner.connect(),
                    // Nobody answers before it is resumed.
                    Cpus::Paused => {}
                }
                owner.phase = phase_of(cpus);
            }
        }
        owner.publish();
        owner
    }

    /// Owns the VM until it is gone from this node or the node ends. `retire` is called when nothing
    /// is left, and says whether the slot could be removed.
    pub async fn run(mut self, retire: impl Fn(&Slot, &mut mpsc::Receiver<Request>) -> bool) {
        self.flatten_if_deep().await;
        loop {
            match self.next().await {
                Happened::Shutdown | Happened::Request(None) => break,
                Happened::Request(Some(Request::Run { spec, cancel, answer })) => {
                    let result = self.ensure_running(*spec, &cancel).await;
                    self.slot.forget(&cancel);
                    reply(answer, result);
                }
                Happened::Request(Some(Request::Pause { incarnation, answer })) => {
                    let result = self.ensure_paused(incarnation).await;
                    reply(answer, result);
                }
                Happened::Request(Some(Request::Resume { incarnation, answer })) => {
                    let result = self.ensure_resumed(incarnation).await;
                    reply(answer, result);
                }
                Happened::Request(Some(Request::Suspend { incarnation, cancel, answer })) => {
                    let result = self.ensure_suspended(incarnation, &cancel).await;
                    self.slot.forget(&cancel);
                    reply(answer, result);
                }
                Happened::Request(Some(Request::Snapshot {
                    snapshot_id,
                    contents,
                    cancel,
                    answer,
                })) => {
                    let result = self.take_snapshot(snapshot_id, contents, &cancel).await;
                    self.slot.forget(&cancel);
                    reply(answer, result);
                }
                Happened::Request(Some(Request::SetNetworkPolicy {
                    incarnation,
                    policy,
                    answer,
                })) => {
                    let result = self.set_network_policy(incarnation, policy).await;
                    reply(answer, result);
                }
                Happened::Request(Some(Request::SetInjections {
                    incarnation,
                    injections,
                    answer,
                })) => {
                    let result = self.set_injections(incarnation, &injections);
                    reply(answer, result);
                }
                Happened::Request(Some(Request::AttachVolume { incarnation, mount, answer })) => {
                    let result = self.attach_volume(incarnation, &mount).await;
                    reply(answer, result);
                }
                Happened::Request(Some(Request::DetachVolume {
                    incarnation,
                    volume_id,
                    answer,
                })) => {
                    let result = self.detach_volume(incarnation, volume_id).await;
                    reply(answer, result);
                }
                Happened::Request(Some(Request::Checkpoint {
                    volume_id,
                    checkpoint_id,
                    answer,
                })) => {
                    let result = self.checkpoint_volume(volume_id, checkpoint_id).await;
                    reply(answer, result);
                }
                Happened::Request(Some(Request::VolumeFiles { volume_id, answer })) => {
                    let result = self.volume_files(volume_id).await;
                    reply(answer, result);
                }
                Happened::Request(Some(Request::GrowVolume { volume_id, size_bytes, answer })) => {
                    let result = self.grow_volume(volume_id, size_bytes).await;
                    reply(answer, result);
                }
                Happened::Request(Some(Request::GrowDisk { spec, answer })) => {
                    let result = self.grow_disk(&spec).await;
                    reply(answer, result);
                }
                Happened::Request(Some(Request::Stop { through, mode, answer })) => {
                    let result = self.ensure_stopped(through, mode).await;
                    reply(answer, result);
                }
                Happened::Request(Some(Request::Delete { answer })) => {
                    let result = self.ensure_deleted().await;
                    reply(answer, result);
                }
                Happened::Exit(exit) => self.ended_by_itself(&exit).await,
                Happened::Connected(link) => {
                    tracing::info!(workspace.id = %self.slot.workspace_id, "the guest answers again");
                    self.attach(link);
                    self.publish();
                }
                Happened::Flattened(outcome) => self.flattened(outcome).await,
                Happened::RetryRelease => {
                    if let Err(failed) = self.release(None).await {
                        failed.report("releasing a VM");
                    }
                }
            }
            let nothing_left = !self.present && self.retry_release.is_none();
            if nothing_left && retire(&self.slot, &mut self.requests) {
                return;
            }
        }
        self.detach().await;
    }

    async fn next(&mut self) -> Happened {
        let mut nobody = None;
        let (vm, connecting) = match &mut self.running {
            Some(running) => (Some(Arc::clone(&running.vm)), &mut running.connecting),
            None => (None, &mut nobody),
        };
        let exit = async {
            match &vm {
                Some(vm) => vm.wait_exit().await,
                None => std::future::pending().await,
            }
        };
        let connected = async {
            match connecting {
                Some(connecting) => unlocked(connecting).await,
                None => std::future::pending().await,
            }
        };
        let flattening = &mut self.flattening;
        let flattened = async {
            match flattening {
                Some(flattening) => flattening.done().await,
                None => std::future::pending().await,
            }
        };
        let retry_at = self.retry_release;
        let retry = async {
            match retry_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.host.shutdown.cancelled() => Happened::Shutdown,
            exit = exit => Happened::Exit(exit),
            link = connected => Happened::Connected(link),
            request = self.requests.recv() => Happened::Request(request),
            outcome = flattened => Happened::Flattened(outcome),
            () = retry => Happened::RetryRelease,
        }
    }

    /// Begins to reach the agent of a VM that was taken over.
    pub(super) fn connect(&mut self) {
        let environment = self.host.environment.clone();
        let Some(running) = &mut self.running else { return };
        if let Some(contact) = running.contact.take() {
            let vm = Arc::clone(&running.vm);
            let connecting = link::reconnect(vm, contact, environment);
            running.connecting = Some(Mutex::new(Box::pin(connecting)));
        }
    }

    /// Hands out the guest, with its command log.
    pub(super) fn attach(&mut self, link: Arc<GuestLink>) {
        let Some(running) = &mut self.running else { return };
        let (log, writer) = CommandLog::start(
            self.paths.command_log.clone(),
            self.host.config.command_log_limit_bytes,
        );
        let relays = TaskTracker::new();
        let closed = CancellationToken::new();
        let guest: Arc<dyn GuestApi> = Arc::new(LoggedGuest::new(
            Arc::clone(&link) as _,
            log,
            self.host.environment.clone(),
            relays.clone(),
            closed.clone(),
        ));
        running.connecting = None;
        running.link = Some(link);
        running.logging = Some(Logging { writer, relays, closed });
        running.guest = Some(guest);
        self.publish_guest();
    }

    /// Hands the guest out while its CPUs run. Whoever has it already keeps it.
    pub(super) fn publish_guest(&self) {
        let guest = self.running.as_ref().and_then(|running| match running.cpus {
            Cpus::Running => running.guest.clone(),
            Cpus::Paused => None,
        });
        self.slot.status.send_modify(|status| status.guest = guest);
    }

    /// Ends our side of the connection to the guest.
    pub(super) async fn close(&mut self, running: Running) -> Arc<dyn Vm> {
        self.flattening = None;
        let Running { vm, cpus: _, link, guest, logging, connecting, contact: _ } = running;
        self.slot.status.send_modify(|status| status.guest = None);
        drop((connecting, guest));
        if let Some(logging) = logging {
            logging.close().await;
        }
        if let Some(link) = link {
            link.close().await;
        }
        vm
    }

    /// The node ends; the VM keeps running.
    async fn detach(mut self) {
        if let Some(running) = self.running.take() {
            self.close(running).await;
        }
    }

    /// What it is without a process.
    fn phase_at_rest(&self) -> VmPhase {
        let saved = self.ledger.as_ref().is_some_and(|ledger| ledger.state().memory_saved);
        if saved { VmPhase::Suspended } else { VmPhase::Stopped }
    }

    pub(super) fn set_phase(&mut self, phase: VmPhase) {
        self.phase = phase;
        self.publish();
    }

    pub(super) fn publish(&self) {
        let report = self.present.then(|| self.report());
        self.slot.status.send_modify(|status: &mut Status| status.report = report);
    }

    pub(super) fn report(&self) -> VmReport {
        VmReport {
            start_path: self.start_path,
            workspace_id: self.slot.workspace_id,
            incarnation: self.incarnation,
            phase: self.phase,
            ready_at: self.ready_at,
            pid: self.running.as_ref().map(|running| running.vm.record().pid),
            last_exit: self.last_exit.clone(),
            private_address: self.private_address(),
            volumes: self
                .ledger
                .as_ref()
                .map(|ledger| ledger.state().held_volumes())
                .unwrap_or_default(),
        }
    }
}

pub(super) const fn phase_of(cpus: Cpus) -> VmPhase {
    match cpus {
        Cpus::Running => VmPhase::Running,
        Cpus::Paused => VmPhase::Paused,
    }
}

/// The future of a try that is ours alone.
pub(super) fn unlocked(
    connecting: &mut Connecting,
) -> &mut Pin<Box<dyn Future<Output = Arc<GuestLink>> + Send>> {
    connecting.get_mut().unwrap_or_else(PoisonError::into_inner)
}

impl Logging {
    async fn close(self) {
        self.closed.cancel();
        self.relays.close();
        self.relays.wait().await;
        self.writer.close().await;
    }
}

/// The caller may be gone; what was done stays done.
fn reply<T>(answer: Answer<T>, result: Result<T, NodeError>) {
    let _ = answer.send(result);
}
