//! The owner task of one VM.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use skerry_internal_api::{NodeError, NodeEvent, StopMode, VmExit, VmPhase, VmReport, VmSpec};
use skerry_model::{Incarnation, Timestamp};
use skerry_vmm::{Exit, Vm};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    command_log::{CommandLog, CommandLogWriter},
    error::{Error, blocking},
    faults::Next,
    guest::GuestLink,
    host::{Host, StepFailed},
    identity::GuestIdentity,
    layout::VmPaths,
    ledger::{Entry, Ledger},
    logged_guest::LoggedGuest,
    release::{Remains, release_all},
    vm::{
        Answer, Request, Slot, Status,
        bring_up::{BringUp, BroughtUp, Leases},
        link,
        tear_down::{end_guest, exit_of},
    },
};

/// After this a release that failed is tried again.
const RELEASE_RETRY: Duration = Duration::from_secs(10);

type Connecting = Pin<Box<dyn Future<Output = Arc<GuestLink>> + Send>>;

/// A VM that runs.
struct Running {
    vm: Arc<dyn Vm>,
    /// `None` while the agent of a VM that was taken over has not answered yet.
    link: Option<Arc<GuestLink>>,
    logging: Option<Logging>,
    /// The try to reach it.
    connecting: Option<Connecting>,
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
    Running { vm: Arc<dyn Vm>, leases: Leases, spec: Box<VmSpec>, identity: GuestIdentity },
}

/// Everything known of one VM, and the only one who changes it.
pub(crate) struct Owner {
    host: Arc<Host>,
    slot: Arc<Slot>,
    requests: mpsc::Receiver<Request>,
    paths: VmPaths,
    ledger: Option<Ledger>,
    incarnation: Incarnation,
    ready_at: Option<Timestamp>,
    last_exit: Option<VmExit>,
    phase: VmPhase,
    /// Whether the workspace has a disk or a VM here.
    present: bool,
    running: Option<Running>,
    /// Kept until the release has succeeded: a uid must not go to another VM while a process has it.
    leases: Option<Leases>,
    /// When to try again to release what could not be released.
    retry_release: Option<Instant>,
}

/// What an owner waits for.
enum Happened {
    Shutdown,
    Request(Option<Request>),
    Exit(Exit),
    Connected(Arc<GuestLink>),
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
            last_exit: state.last_exit,
            phase: VmPhase::Stopped,
            present: true,
            running: None,
            leases: None,
            retry_release: None,
        };
        match found {
            Found::Nothing => owner.present = false,
            Found::Disk => {}
            Found::Leftovers { leases } => {
                owner.leases = leases;
                owner.phase = VmPhase::Stopping;
                owner.retry_release = Some(Instant::now() + RELEASE_RETRY);
            }
            Found::Running { vm, leases, spec, identity } => {
                owner.phase = VmPhase::Running;
                owner.ready_at = state.ready_at;
                let environment = owner.host.environment.clone();
                let connecting =
                    Box::pin(link::reconnect(Arc::clone(&vm), *spec, identity, environment));
                owner.leases = Some(leases);
                owner.running =
                    Some(Running { vm, link: None, logging: None, connecting: Some(connecting) });
            }
        }
        owner.publish();
        owner
    }

    /// Owns the VM until it is gone from this node or the node ends. `retire` is called when nothing
    /// is left, and says whether the slot could be removed.
    pub async fn run(mut self, retire: impl Fn(&Slot, &mut mpsc::Receiver<Request>) -> bool) {
        loop {
            match self.next().await {
                Happened::Shutdown | Happened::Request(None) => break,
                Happened::Request(Some(Request::Run { spec, cancel, answer })) => {
                    let result = self.ensure_running(*spec, &cancel).await;
                    self.slot.forget_start(&cancel);
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
                Some(connecting) => connecting.await,
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
            () = retry => Happened::RetryRelease,
        }
    }

    async fn ensure_running(
        &mut self,
        spec: VmSpec,
        cancel: &CancellationToken,
    ) -> Result<VmReport, NodeError> {
        if cancel.is_cancelled() {
            return Err(NodeError::NotRunning);
        }
        if self.ledger.as_ref().is_some_and(|ledger| ledger.state().deleting)
            || spec.incarnation < self.incarnation
        {
            return Err(NodeError::NoSuchVm);
        }
        if self.running.is_some() {
            if spec.incarnation == self.incarnation {
                return Ok(self.report());
            }
            let mode = StopMode::Graceful { within: self.host.config.replace_grace };
            self.stop(mode).await.map_err(|failed| failed.report("replacing a VM"))?;
        }
        if self.retry_release.is_some() {
            self.release(None).await.map_err(|failed| failed.report("releasing a VM"))?;
        }
        self.bring_up(&spec, cancel).await.map_err(|failed| failed.report("starting a VM"))?;
        Ok(self.report())
    }

    async fn bring_up(
        &mut self,
        spec: &VmSpec,
        cancel: &CancellationToken,
    ) -> Result<(), StepFailed> {
        let began = Instant::now();
        let had_disk = self.present;
        self.incarnation = spec.incarnation;
        self.last_exit = None;
        self.ready_at = None;
        self.present = true;
        self.set_phase(VmPhase::Starting);
        let host = Arc::clone(&self.host);
        let paths = self.paths.clone();
        let mut bring_up = BringUp::new(&host, &paths, spec, cancel, self.ledger.take());
        let result = bring_up.run().await;
        bring_up.close_link().await;
        self.ledger = bring_up.ledger.take();
        match result {
            Ok(up) => {
                tracing::info!(
                    workspace.id = %spec.workspace_id,
                    incarnation = %spec.incarnation,
                    pid = up.vm.record().pid,
                    took = ?began.elapsed(),
                    "VM is running"
                );
                self.took_off(up);
                Ok(())
            }
            Err(failed) => {
                let vm = bring_up.vm.take();
                self.leases = bring_up.leases.take();
                drop(bring_up);
                if self.ledger.is_none() && !had_disk {
                    // Nothing is named yet; at most the directory is there.
                    self.present = self.paths.dir.exists();
                }
                if let Err(left) = self.release(vm.as_ref()).await {
                    left.report("undoing a start");
                }
                Err(failed)
            }
        }
    }

    fn took_off(&mut self, up: BroughtUp) {
        let BroughtUp { vm, link, ready_at, leases } = up;
        self.ready_at = Some(ready_at);
        self.leases = Some(leases);
        self.running = Some(Running { vm, link: None, logging: None, connecting: None });
        self.phase = VmPhase::Running;
        self.attach(link);
        self.publish();
    }

    /// Hands out the guest, with its command log.
    fn attach(&mut self, link: Arc<GuestLink>) {
        let Some(running) = &mut self.running else { return };
        let (log, writer) = CommandLog::start(
            self.paths.command_log.clone(),
            self.host.config.command_log_limit_bytes,
        );
        let relays = TaskTracker::new();
        let closed = CancellationToken::new();
        let guest = LoggedGuest::new(
            Arc::clone(&link) as _,
            log,
            self.host.environment.clone(),
            relays.clone(),
            closed.clone(),
        );
        running.connecting = None;
        running.link = Some(link);
        running.logging = Some(Logging { writer, relays, closed });
        self.slot.status.send_modify(|status| status.guest = Some(Arc::new(guest)));
    }

    async fn ensure_stopped(
        &mut self,
        through: Incarnation,
        mode: StopMode,
    ) -> Result<(), NodeError> {
        if self.incarnation > through {
            // It speaks of an older start, which is gone.
            return Ok(());
        }
        if self.running.is_some() {
            return self.stop(mode).await.map_err(|failed| failed.report("stopping a VM"));
        }
        if self.retry_release.is_some() {
            return self.release(None).await.map_err(|failed| failed.report("stopping a VM"));
        }
        Ok(())
    }

    async fn stop(&mut self, mode: StopMode) -> Result<(), StepFailed> {
        let Some(running) = self.running.take() else { return Ok(()) };
        self.set_phase(VmPhase::Stopping);
        let ended = end_guest(&self.host, &running.vm, running.link.as_ref(), mode).await;
        let vm = self.close(running).await;
        // Whatever became of the guest, what it holds is released.
        let released = self.release(Some(&vm)).await;
        ended.and(released)
    }

    async fn ensure_deleted(&mut self) -> Result<(), NodeError> {
        let outcome = self.delete().await;
        outcome.map_err(|failed| failed.report("deleting a VM"))
    }

    async fn delete(&mut self) -> Result<(), StepFailed> {
        if !self.present && self.ledger.is_none() {
            return Ok(());
        }
        if self.ledger.is_none() {
            let path = self.paths.ledger.clone();
            if self.paths.dir.exists() {
                let open = blocking(move || Ledger::open(&path)).await;
                self.ledger = Some(open.map_err(StepFailed::at("tombstone"))?);
            }
        }
        // From here on a crash leads to the end of the deletion, not back.
        if let Some(ledger) = self.ledger.clone()
            && !ledger.state().deleting
        {
            self.write_tombstone(ledger).await.map_err(StepFailed::at("tombstone"))?;
        }
        match self.running.take() {
            Some(running) => {
                self.set_phase(VmPhase::Stopping);
                let vm = self.close(running).await;
                self.release(Some(&vm)).await
            }
            None => self.release(None).await,
        }
    }

    async fn write_tombstone(&mut self, ledger: Ledger) -> Result<(), Error> {
        loop {
            ledger.append(Entry::Deleting).await?;
            match self.host.config.faults.after("tombstone").await? {
                Next::Proceed => return Ok(()),
                Next::Again => {}
            }
        }
    }

    /// The VM ended and nobody here asked it to.
    async fn ended_by_itself(&mut self, exit: &Exit) {
        let Some(running) = self.running.take() else { return };
        let exit = exit_of(exit);
        tracing::info!(
            workspace.id = %self.slot.workspace_id,
            incarnation = %self.incarnation,
            ?exit,
            "VM ended by itself"
        );
        self.last_exit = Some(exit.clone());
        self.set_phase(VmPhase::Stopping);
        let vm = self.close(running).await;
        if let Some(ledger) = &self.ledger
            && let Err(error) = ledger.append(Entry::Exited { exit: exit.clone() }).await
        {
            StepFailed { step: "exited", error }.report("recording the end of a VM");
        }
        if let Err(failed) = self.release(Some(&vm)).await {
            failed.report("releasing a VM that ended");
        }
        // Nobody may be listening: control compares lists anyway.
        let _ = self.host.events.send(NodeEvent::Exited {
            workspace_id: self.slot.workspace_id,
            incarnation: self.incarnation,
            exit,
        });
    }

    /// Ends our side of the connection to the guest.
    async fn close(&mut self, running: Running) -> Arc<dyn Vm> {
        let Running { vm, link, logging, connecting } = running;
        self.slot.status.send_modify(|status| status.guest = None);
        drop(connecting);
        if let Some(logging) = logging {
            logging.close().await;
        }
        if let Some(link) = link {
            link.close().await;
        }
        vm
    }

    /// Clean slate. On an error it is tried again later, and by the next request.
    async fn release(&mut self, vm: Option<&Arc<dyn Vm>>) -> Result<(), StepFailed> {
        let outcome = match &self.ledger {
            Some(ledger) => release_all(&self.host, &self.paths, ledger, vm).await,
            None => release_unnamed(&self.paths).await,
        };
        match outcome {
            Ok(remains) => {
                self.retry_release = None;
                self.leases = None;
                self.ready_at = None;
                self.present = remains == Remains::Disk;
                if !self.present {
                    self.ledger = None;
                }
                self.set_phase(VmPhase::Stopped);
                Ok(())
            }
            Err(failed) => {
                self.retry_release = Some(Instant::now() + RELEASE_RETRY);
                self.set_phase(VmPhase::Stopping);
                Err(failed)
            }
        }
    }

    /// The node ends; the VM keeps running.
    async fn detach(mut self) {
        if let Some(running) = self.running.take() {
            self.close(running).await;
        }
    }

    fn set_phase(&mut self, phase: VmPhase) {
        self.phase = phase;
        self.publish();
    }

    fn publish(&self) {
        let report = self.present.then(|| self.report());
        self.slot.status.send_modify(|status: &mut Status| status.report = report);
    }

    fn report(&self) -> VmReport {
        VmReport {
            start_path: None,
            workspace_id: self.slot.workspace_id,
            incarnation: self.incarnation,
            phase: self.phase,
            ready_at: self.ready_at,
            pid: self.running.as_ref().map(|running| running.vm.record().pid),
            last_exit: self.last_exit.clone(),
        }
    }
}

impl Logging {
    async fn close(self) {
        self.closed.cancel();
        self.relays.close();
        self.relays.wait().await;
        self.writer.close().await;
    }
}

/// Without a ledger there is at most a directory that a failed start has just made.
async fn release_unnamed(paths: &VmPaths) -> Result<Remains, StepFailed> {
    if paths.disk.exists() {
        return Ok(Remains::Disk);
    }
    let dir = paths.dir.clone();
    blocking(move || crate::layout::remove_tree(&dir))
        .await
        .map_err(StepFailed::at("release_logs"))?;
    Ok(Remains::Nothing)
}

/// The caller may be gone; what was done stays done.
fn reply<T>(answer: Answer<T>, result: Result<T, NodeError>) {
    let _ = answer.send(result);
}
