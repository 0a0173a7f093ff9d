//! The machine on which fake VMs run.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;
use skerry_model::VolumeSlot;
use tokio::{io::DuplexStream, runtime::Handle, sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    DRIVER_NAME,
    fault::{Fault, Step, StepFault},
    machine::{FakeDisk, Machine, VmState},
    saved::FakeMemory,
};
use crate::{BootSpec, DiskSpec, Exit, GuestMemory, VmmRecord, console_log::ConsoleLog};

/// Above the highest process id that Linux ever gives (2^22): whoever signals it by mistake hits
/// nothing.
const FIRST_PID: u32 = 1 << 30;

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

/// How a guest came to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestStart {
    /// It was booted.
    Booted,
    /// It goes on from a saved state: [`FakeGuestIo::memory`] holds what it held then. The function
    /// is called anew, so what else the guest is to remember it has to keep there.
    Restored,
}

/// What a guest is given.
#[derive(Debug)]
pub struct FakeGuestIo {
    /// How it was booted, or the machine into which it was restored.
    pub spec: BootSpec,
    /// Which of the two.
    pub start: GuestStart,
    /// What a saved state keeps.
    pub memory: FakeMemory,
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

/// A guest: runs from boot (or restore) until it ends by itself. While the VM is paused it is not
/// polled.
pub type FakeGuest = Arc<dyn Fn(FakeGuestIo) -> BoxFuture<'static, GuestEnd> + Send + Sync>;

/// The machine. Clones are the same machine.
#[derive(Clone)]
pub struct FakeHost(pub(super) Arc<Inner>);

impl fmt::Debug for FakeHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeHost").field("running", &self.running()).finish_non_exhaustive()
    }
}

pub(super) struct Inner {
    pub(super) guest: FakeGuest,
    /// Where VMs run: they outlive the runtime of the server that booted them.
    runtime: Option<Handle>,
    state: Mutex<HostState>,
}

struct HostState {
    boot: u64,
    /// Counts drivers: a save belongs to the one that began it.
    lives: u64,
    /// Counts everything that ever started: pids and start times follow from it.
    started: u32,
    machines: BTreeMap<u32, Arc<Machine>>,
    faults: VecDeque<Fault>,
    step_faults: VecDeque<(Step, StepFault)>,
    tasks: JoinSet<()>,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, HostState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take_step_fault(&self, step: Step) -> Option<StepFault> {
        let faults = &mut self.state().step_faults;
        let at = faults.iter().position(|(of, _)| *of == step)?;
        faults.remove(at).map(|(_, fault)| fault)
    }

    pub(super) fn machines(&self) -> Vec<Arc<Machine>> {
        self.state().machines.values().cloned().collect()
    }

    pub(super) fn forget(&self, pid: u32) {
        self.state().machines.remove(&pid);
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
            lives: 0,
            started: 0,
            machines: BTreeMap::new(),
            faults: VecDeque::new(),
            step_faults: VecDeque::new(),
            tasks: JoinSet::new(),
        };
        Self(Arc::new(Inner { guest, runtime, state: Mutex::new(state) }))
    }

    /// Gives the next start that has none this fault.
    pub fn inject(&self, fault: Fault) {
        self.0.state().faults.push_back(fault);
    }

    /// Gives the next `step` of any VM this fault; several for one step are met one after the other.
    pub fn inject_at(&self, step: Step, fault: StepFault) {
        self.0.state().step_faults.push_back((step, fault));
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

    /// Whether the VM waits, runs or stands still; `None` when it is gone.
    #[must_use]
    pub fn state_of(&self, record: &VmmRecord) -> Option<VmState> {
        self.find(record).map(|machine| machine.state())
    }

    /// The disk as the VM has it now; `None` when it has none or is gone.
    #[must_use]
    pub fn disk_of(&self, record: &VmmRecord) -> Option<FakeDisk> {
        self.find(record)?.disk()
    }

    /// The volumes in the VM's slots now; none when it is gone.
    #[must_use]
    pub fn volumes_of(&self, record: &VmmRecord) -> BTreeMap<VolumeSlot, DiskSpec> {
        self.find(record).map(|machine| machine.volumes()).unwrap_or_default()
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

    /// The number of a driver that begins.
    pub(super) fn next_life(&self) -> u64 {
        let mut state = self.0.state();
        state.lives += 1;
        state.lives
    }

    pub(super) fn take_fault(&self) -> Option<Fault> {
        self.0.state().faults.pop_front()
    }

    pub(super) fn find(&self, record: &VmmRecord) -> Option<Arc<Machine>> {
        let state = self.0.state();
        let machine = state.machines.get(&record.pid)?;
        (machine.record.is_same_process(record) && !machine.has_ended()).then(|| machine.clone())
    }

    /// The record of a process that exists but runs nothing yet. Until it is started it is no VM, as
    /// the real driver's waiting child ends with its parent.
    pub(super) fn reserve(
        &self,
        spec: &BootSpec,
        fingerprint: String,
        memory: GuestMemory,
    ) -> VmmRecord {
        let mut state = self.0.state();
        state.started += 1;
        VmmRecord {
            driver: DRIVER_NAME.into(),
            pid: FIRST_PID + state.started,
            start_time_ticks: u64::from(state.started) * 100,
            boot_id: state.boot_id(),
            run_dir: spec.run_dir.clone(),
            console_log: spec.console_log.clone(),
            console_limit_bytes: spec.console_limit_bytes,
            fingerprint,
            memory,
            memory_mib: spec.memory_mib.get(),
        }
    }

    /// Makes it a VM.
    pub(super) fn start(&self, machine: &Arc<Machine>, running: BoxFuture<'static, ()>) {
        let mut state = self.0.state();
        state.machines.insert(machine.record.pid, machine.clone());
        while state.tasks.try_join_next().is_some() {}
        match &self.0.runtime {
            Some(runtime) => state.tasks.spawn_on(running, runtime),
            None => state.tasks.spawn(running),
        };
    }
}
