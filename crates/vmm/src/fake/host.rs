//! The machine on which fake VMs run.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    io::DuplexStream,
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    DRIVER_NAME,
    channel::{Cutter, cuttable},
};
use crate::{BootSpec, Channel, Exit, VmmError, VmmRecord, console_log::ConsoleLog};

/// Above the highest process id that Linux ever gives (2^22): whoever signals it by mistake hits
/// nothing.
const FIRST_PID: u32 = 1 << 30;

/// What a channel holds in each direction before its writer waits.
const CHANNEL_BYTES: usize = 64 * 1024;

/// Connections a guest has not taken yet; all but the newest are dead anyway.
const WAITING_CONNECTIONS: usize = 64;

/// Something that goes wrong with one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The boot fails before the record is committed.
    FailBeforeCommit,
    /// The boot fails after the record is committed, before the guest runs.
    FailAfterCommit,
    /// The boot times out after the record is committed.
    HangInBoot,
    /// The VM crashes this long after it started.
    DieAfter(Duration),
    /// Every connection to the guest is refused.
    RefuseConnect,
    /// Connections open but the guest never answers: its agent did not come up.
    SilentGuest,
}

/// How a guest ends by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// It powered off.
    PoweredOff,
    /// It asked for a reboot.
    Rebooted,
    /// Its VMM broke, in words.
    Crashed(String),
}

impl From<GuestEnd> for Exit {
    fn from(end: GuestEnd) -> Self {
        match end {
            GuestEnd::PoweredOff => Self::PoweredOff,
            GuestEnd::Rebooted => Self::Rebooted,
            GuestEnd::Crashed(reason) => Self::Crashed(reason),
        }
    }
}

/// What a guest is given.
#[derive(Debug)]
pub struct FakeGuestIo {
    /// How it was booted.
    pub spec: BootSpec,
    /// Each new connection of the host to the agent. An older one is dead when a newer comes.
    pub connections: mpsc::Receiver<DuplexStream>,
    /// The serial console.
    pub console: FakeConsole,
    /// Cancelled when the VM is gone: for tasks the guest spawned. The guest's own future is
    /// dropped then, like a killed machine.
    pub ended: CancellationToken,
}

/// The guest's serial console: its text goes to [`BootSpec::console_log`] with its limit.
#[derive(Debug)]
pub struct FakeConsole(ConsoleLog);

impl FakeConsole {
    pub(super) fn new(log: ConsoleLog) -> Self {
        Self(log)
    }

    /// Prints.
    ///
    /// # Errors
    /// Those of writing the log.
    pub fn print(&mut self, text: &str) -> io::Result<()> {
        self.0.append(text.as_bytes())
    }
}

/// A guest: runs from boot until it ends by itself. While the VM is paused it is not polled.
pub type FakeGuest = Arc<dyn Fn(FakeGuestIo) -> BoxFuture<'static, GuestEnd> + Send + Sync>;

/// The machine. Clones are the same machine.
#[derive(Clone)]
pub struct FakeHost(Arc<Inner>);

impl fmt::Debug for FakeHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeHost").field("running", &self.running()).finish_non_exhaustive()
    }
}

struct Inner {
    guest: FakeGuest,
    /// Where VMs run: they outlive the runtime of the server that booted them.
    runtime: Option<Handle>,
    state: Mutex<HostState>,
}

struct HostState {
    boot: u64,
    /// Counts everything that ever started: pids and start times follow from it.
    started: u32,
    machines: BTreeMap<u32, Arc<Machine>>,
    faults: VecDeque<Fault>,
    tasks: JoinSet<()>,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, HostState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostState {
    fn boot_id(&self) -> String {
        format!("fake-boot-{}", self.boot)
    }
}

impl FakeHost {
    /// A machine whose every VM runs `guest`, on the runtime on which this is called (if any), so
    /// that VMs outlive a server with a runtime of its own.
    #[must_use]
    pub fn new(guest: FakeGuest) -> Self {
        let runtime = Handle::try_current().ok();
        let state = HostState {
            boot: 1,
            started: 0,
            machines: BTreeMap::new(),
            faults: VecDeque::new(),
            tasks: JoinSet::new(),
        };
        Self(Arc::new(Inner { guest, runtime, state: Mutex::new(state) }))
    }

    /// Gives the next boot that has none this fault.
    pub fn inject(&self, fault: Fault) {
        self.0.state().faults.push_back(fault);
    }

    /// The records of all VMs that exist, oldest first: whoever holds none of a record here has a VM
    /// without a record.
    #[must_use]
    pub fn running(&self) -> Vec<VmmRecord> {
        self.0.state().machines.values().map(|machine| machine.record.clone()).collect()
    }

    /// How many VMs ever existed.
    #[must_use]
    pub fn started_count(&self) -> u32 {
        self.0.state().started
    }

    /// Ends a VM as a signal from outside would. Returns once it is gone; one that is gone is fine.
    pub async fn crash(&self, record: &VmmRecord) {
        if let Some(machine) = self.find(record) {
            machine.end(Exit::Crashed("the VMM was ended by SIGKILL".into()));
            machine.wait_exit().await;
        }
    }

    /// The host itself restarts: every VM is gone and no record means anything any more.
    pub async fn reboot(&self) {
        let machines: Vec<_> = {
            let mut state = self.0.state();
            state.boot += 1;
            state.machines.values().cloned().collect()
        };
        for machine in machines {
            machine.end(Exit::Unknown);
            machine.wait_exit().await;
        }
    }

    pub(super) fn take_fault(&self) -> Option<Fault> {
        self.0.state().faults.pop_front()
    }

    pub(super) fn find(&self, record: &VmmRecord) -> Option<Arc<Machine>> {
        let state = self.0.state();
        let machine = state.machines.get(&record.pid)?;
        (machine.record == *record && machine.exit.borrow().is_none()).then(|| machine.clone())
    }

    /// A process that exists but runs nothing yet.
    pub(super) fn reserve(&self, spec: &BootSpec) -> Reserved {
        let mut state = self.0.state();
        state.started += 1;
        let record = VmmRecord {
            driver: DRIVER_NAME.into(),
            pid: FIRST_PID + state.started,
            start_time_ticks: u64::from(state.started) * 100,
            boot_id: state.boot_id(),
            run_dir: spec.run_dir.clone(),
            console_log: spec.console_log.clone(),
            console_limit_bytes: spec.console_limit_bytes,
        };
        Reserved { host: self.clone(), record }
    }
}

/// Until started it is no VM, and dropping it ends it, as the real driver's waiting child ends.
pub(super) struct Reserved {
    host: FakeHost,
    record: VmmRecord,
}

impl Reserved {
    pub(super) fn record(&self) -> &VmmRecord {
        &self.record
    }

    pub(super) fn start(
        self,
        spec: BootSpec,
        console: FakeConsole,
        fault: Option<Fault>,
    ) -> Arc<Machine> {
        let (connections, to_guest) = mpsc::channel(WAITING_CONNECTIONS);
        let ended = CancellationToken::new();
        let io = FakeGuestIo { spec, connections: to_guest, console, ended: ended.clone() };
        let guest = (self.host.0.guest)(io);

        let machine = Arc::new(Machine {
            record: self.record,
            connections,
            fault,
            order: watch::Sender::new(None),
            cpus: watch::Sender::new(Cpus::Running),
            exit: watch::Sender::new(None),
            open: Mutex::new(None),
            silent: Mutex::new(None),
        });
        let running = run(machine.clone(), guest, ended, Arc::downgrade(&self.host.0));
        let mut state = self.host.0.state();
        state.machines.insert(machine.record.pid, machine.clone());
        while state.tasks.try_join_next().is_some() {}
        match &self.host.0.runtime {
            Some(runtime) => state.tasks.spawn_on(running, runtime),
            None => state.tasks.spawn(running),
        };
        machine
    }
}

/// The VM's life from its first instruction to its end.
async fn run(
    machine: Arc<Machine>,
    guest: BoxFuture<'static, GuestEnd>,
    ended: CancellationToken,
    host: Weak<Inner>,
) {
    // A guest that panics is cancelled and reported by these.
    let _cancel_its_tasks = ended.drop_guard();
    let mut order = machine.order.subscribe();
    let cpus = machine.cpus.subscribe();
    let death = async {
        match machine.fault {
            Some(Fault::DieAfter(after)) => tokio::time::sleep(after).await,
            Some(
                Fault::FailBeforeCommit
                | Fault::FailAfterCommit
                | Fault::HangInBoot
                | Fault::RefuseConnect
                | Fault::SilentGuest,
            )
            | None => std::future::pending().await,
        }
    };
    let exit = tokio::select! {
        biased;
        ordered = order.wait_for(Option::is_some) => {
            ordered.ok().and_then(|exit| exit.clone()).unwrap_or(Exit::Unknown)
        }
        () = death => Exit::Crashed("the VMM was ended by SIGSEGV".into()),
        end = run_unless_paused(guest, cpus) => end.into(),
    };
    if let Some(host) = host.upgrade() {
        host.state().machines.remove(&machine.record.pid);
    }
    machine.disconnect();
    machine.exit.send_replace(Some(exit));
}

async fn run_unless_paused(
    mut guest: BoxFuture<'static, GuestEnd>,
    mut cpus: watch::Receiver<Cpus>,
) -> GuestEnd {
    loop {
        // An error means the machine is gone, and this future with it.
        let _ = cpus.wait_for(|cpus| *cpus == Cpus::Running).await;
        tokio::select! {
            biased;
            _ = cpus.wait_for(|cpus| *cpus == Cpus::Stopped) => {}
            end = &mut guest => return end,
        }
    }
}

/// Whether the virtual CPUs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cpus {
    Running,
    Stopped,
}

/// One VM.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) record: VmmRecord,
    connections: mpsc::Sender<DuplexStream>,
    fault: Option<Fault>,
    /// To end, and as what.
    order: watch::Sender<Option<Exit>>,
    cpus: watch::Sender<Cpus>,
    exit: watch::Sender<Option<Exit>>,
    open: Mutex<Option<Cutter>>,
    /// The end of a connection that a silent guest never takes.
    silent: Mutex<Option<DuplexStream>>,
}

impl Machine {
    pub(super) fn connect(&self) -> Result<Box<dyn Channel>, VmmError> {
        if self.exit.borrow().is_some() {
            return Err(VmmError::Gone);
        }
        let refused = || VmmError::Io {
            context: "connect to the guest channel".into(),
            source: io::ErrorKind::ConnectionRefused.into(),
        };
        if self.fault == Some(Fault::RefuseConnect) {
            return Err(refused());
        }
        let (ours, theirs) = tokio::io::duplex(CHANNEL_BYTES);
        let (ours, cutter) = cuttable(ours);
        self.disconnect();
        if self.fault == Some(Fault::SilentGuest) {
            *lock(&self.silent) = Some(theirs);
        } else {
            // Full: the guest takes none; closed: it is ending.
            self.connections.try_send(theirs).map_err(|_| refused())?;
        }
        *lock(&self.open) = Some(cutter);
        Ok(Box::new(ours))
    }

    /// Orders the end; the first order stands.
    pub(super) fn end(&self, exit: Exit) {
        self.order.send_if_modified(|order| {
            let first = order.is_none();
            order.get_or_insert(exit);
            first
        });
    }

    pub(super) async fn wait_exit(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await;
        exit.ok().and_then(|exit| exit.clone()).unwrap_or(Exit::Unknown)
    }

    pub(super) fn set_paused(&self, cpus: Cpus) -> Result<(), VmmError> {
        if self.exit.borrow().is_some() {
            return Err(VmmError::Gone);
        }
        self.cpus.send_replace(cpus);
        Ok(())
    }

    fn disconnect(&self) {
        if let Some(older) = lock(&self.open).take() {
            older.cut();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
