//! One fake VM.

mod volumes;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use skerry_model::VolumeSlot;
use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    channel::{Cutter, cuttable},
    fault::{Fault, Step, StepFault},
    host::{FakeConsole, FakeGuestIo, FakeHost, GuestEnd, GuestStart, Inner},
    saved::{self, FakeMemory},
};
use crate::{
    BootSpec, Channel, DiskSpec, Exit, GuestMemory, RestoredMemory, SaveProgress, SavedMemory,
    VmmError, VmmRecord,
    state_file::{self, Label, Opened},
};

/// What a channel holds in each direction before its writer waits.
const CHANNEL_BYTES: usize = 64 * 1024;

/// Connections a guest has not taken yet; all but the newest are dead anyway.
const WAITING_CONNECTIONS: usize = 64;

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    /// It waits for its saved state.
    Parked,
    /// Its guest runs.
    Running,
    /// Its guest stands still.
    Paused,
}

/// A VM's disk as the VM has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeDisk {
    /// Where the guest writes.
    pub overlay: PathBuf,
    /// The frozen layers below, the uppermost first.
    pub layers: Vec<PathBuf>,
    /// At the bottom.
    pub base: PathBuf,
    /// What it was grown to while the VM lives, if it was.
    pub grown_to_bytes: Option<u64>,
}

/// A state to come.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) state: Opened,
    pub(super) memory: RestoredMemory,
}

/// One VM.
pub(super) struct Machine {
    pub(super) record: VmmRecord,
    memory_file: Option<PathBuf>,
    host: Weak<Inner>,
    connections: mpsc::Sender<DuplexStream>,
    fault: Option<Fault>,
    /// To end, and as what.
    order: watch::Sender<Option<Exit>>,
    state: watch::Sender<VmState>,
    exit: watch::Sender<Option<Exit>>,
    open: Mutex<Option<Cutter>>,
    /// The end of a connection that a silent guest never takes.
    silent: Mutex<Option<DuplexStream>>,
    inside: Mutex<Inside>,
}

/// What the steps of a VM change.
struct Inside {
    disk: Option<FakeDisk>,
    volumes: BTreeMap<VolumeSlot, DiskSpec>,
    /// What those were grown to that were.
    grown_volumes: BTreeMap<VolumeSlot, u64>,
    memory: FakeMemory,
    /// The guest that is still to be started, and where it then goes.
    parked: Option<Parked>,
    save: Save,
}

struct Parked {
    awaited: Awaited,
    io: FakeGuestIo,
    start: oneshot::Sender<BoxFuture<'static, GuestEnd>>,
}

enum Save {
    None,
    Writing {
        file: File,
        memory: SavedMemory,
        life: u64,
    },
    /// With what the memory held.
    Captured {
        file: File,
        memory: SavedMemory,
        life: u64,
        content: Vec<u8>,
    },
    Complete(SavedMemory),
}

impl Save {
    /// Of which life it is still a save under way.
    fn life(&self) -> Option<u64> {
        match self {
            Self::Writing { life, .. } | Self::Captured { life, .. } => Some(*life),
            Self::None | Self::Complete(_) => None,
        }
    }

    /// Whether the memory of the VM belongs to a saved state now.
    fn has_the_memory(&self) -> bool {
        match self {
            Self::Captured { memory, .. } | Self::Complete(memory) => {
                *memory == SavedMemory::InMemoryFile
            }
            Self::None | Self::Writing { .. } => false,
        }
    }
}

impl Machine {
    /// Starts the process of a boot, or one that waits for a state.
    pub(super) fn start(
        host: &FakeHost,
        record: VmmRecord,
        spec: BootSpec,
        console: FakeConsole,
        fault: Option<Fault>,
        awaited: Option<Awaited>,
    ) -> Arc<Self> {
        let (connections, to_guest) = mpsc::channel(WAITING_CONNECTIONS);
        let (start, started) = oneshot::channel();
        let ended = CancellationToken::new();
        let memory = FakeMemory::default();
        let memory_file = spec.memory_file.clone();
        let disk = spec.disk.clone().map(|DiskSpec { overlay, layers, base }| FakeDisk {
            overlay,
            layers,
            base,
            grown_to_bytes: None,
        });
        let io = FakeGuestIo {
            spec,
            start: GuestStart::Booted,
            memory: memory.clone(),
            connections: to_guest,
            console,
            ended: ended.clone(),
        };
        let (state, parked) = match awaited {
            Some(awaited) => (VmState::Parked, Some(Parked { awaited, io, start })),
            None => {
                // The receiver is below.
                let _ = start.send((host.0.guest)(io));
                (VmState::Running, None)
            }
        };
        let machine = Arc::new(Self {
            record,
            memory_file,
            host: Arc::downgrade(&host.0),
            connections,
            fault,
            order: watch::Sender::new(None),
            state: watch::Sender::new(state),
            exit: watch::Sender::new(None),
            open: Mutex::new(None),
            silent: Mutex::new(None),
            inside: Mutex::new(Inside {
                disk,
                volumes: BTreeMap::new(),
                grown_volumes: BTreeMap::new(),
                memory,
                parked,
                save: Save::None,
            }),
        });
        host.start(&machine, run(machine.clone(), started, ended).boxed());
        machine
    }

    pub(super) fn state(&self) -> VmState {
        *self.state.borrow()
    }

    pub(super) fn disk(&self) -> Option<FakeDisk> {
        self.inside().disk.clone()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    pub(super) fn connect(&self) -> Result<Box<dyn Channel>, VmmError> {
        if self.has_ended() {
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

    /// Takes one step, with the fault injected for it.
    pub(super) async fn step(
        &self,
        step: Step,
        within: Duration,
        effect: impl FnOnce() -> Result<(), VmmError>,
    ) -> Result<(), VmmError> {
        if self.has_ended() {
            return Err(VmmError::Gone);
        }
        let fault = self.host.upgrade().and_then(|host| host.take_step_fault(step));
        match fault {
            None => effect(),
            Some(StepFault::Refuse) => Err(refused(step, "injected")),
            Some(StepFault::Hang) => Err(self.no_answer(step, within).await),
            Some(StepFault::LoseAnswer) => {
                effect()?;
                Err(self.no_answer(step, within).await)
            }
            Some(StepFault::Die) => {
                self.end(Exit::Crashed("the VMM was ended by SIGSEGV".into()));
                self.wait_exit().await;
                Err(VmmError::Gone)
            }
        }
    }

    async fn no_answer(&self, step: Step, within: Duration) -> VmmError {
        tokio::select! {
            _ = self.wait_exit() => VmmError::Gone,
            () = tokio::time::sleep(within) => VmmError::Timeout(step.name()),
        }
    }

    pub(super) fn pause(&self) -> Result<(), VmmError> {
        match self.state() {
            VmState::Parked => Err(refused(Step::Pause, "it waits for its saved state")),
            VmState::Running | VmState::Paused => {
                self.state.send_replace(VmState::Paused);
                Ok(())
            }
        }
    }

    pub(super) fn resume(&self) -> Result<(), VmmError> {
        if self.inside().save.has_the_memory() {
            return Err(refused(Step::Resume, "its memory belongs to a saved state"));
        }
        match self.state() {
            VmState::Parked => Err(refused(Step::Resume, "it waits for its saved state")),
            VmState::Running | VmState::Paused => {
                self.state.send_replace(VmState::Running);
                Ok(())
            }
        }
    }

    pub(super) fn load(&self) -> Result<(), VmmError> {
        let mut inside = self.inside();
        let Some(Parked { mut awaited, mut io, start }) = inside.parked.take() else {
            return Err(refused(Step::Load, "it waits for no state"));
        };
        let in_state = saved::read_state(&mut awaited.state)?;
        let memory = match &awaited.memory {
            RestoredMemory::InState | RestoredMemory::InStateToFile => in_state,
            RestoredMemory::CloneOf { file } => saved::read_memory(file).map_err(|source| {
                VmmError::Io { context: format!("read {}", file.display()), source }
            })?,
        };
        inside.memory = FakeMemory::holding(memory);
        io.start = GuestStart::Restored;
        io.memory = inside.memory.clone();
        let host = self.host.upgrade().ok_or(VmmError::Gone)?;
        // Nobody receives it when the VM is ending.
        let _ = start.send((host.guest)(io));
        self.state.send_replace(VmState::Paused);
        Ok(())
    }

    pub(super) fn begin_save(
        &self,
        mut file: File,
        memory: SavedMemory,
        life: u64,
    ) -> Result<(), VmmError> {
        let refused = |reason| Err(refused(Step::BeginSave, reason));
        let mut inside = self.inside();
        // One of another life ended with that.
        if inside.save.life() == Some(life) {
            return refused("a save is under way");
        }
        if inside.save.has_the_memory() {
            return refused("its memory belongs to a saved state");
        }
        match (self.state(), memory, self.record.memory) {
            (VmState::Parked, ..) => return refused("it waits for its saved state"),
            (VmState::Running, SavedMemory::InMemoryFile, _) => return refused("it runs"),
            (VmState::Paused, SavedMemory::InMemoryFile, GuestMemory::Private) => {
                return refused("its memory is in no file of its own");
            }
            (VmState::Running | VmState::Paused, SavedMemory::InState, _)
            | (VmState::Paused, SavedMemory::InMemoryFile, GuestMemory::Own) => {}
        }
        let label = Label { fingerprint: self.record.fingerprint.clone(), memory, tsc_khz: None };
        state_file::begin(&mut file, &label).map_err(save_failed)?;
        inside.save = Save::Writing { file, memory, life };
        Ok(())
    }

    pub(super) async fn wait_save(
        &self,
        progress: SaveProgress,
        within: Duration,
        life: u64,
    ) -> Result<(), VmmError> {
        let step = match progress {
            SaveProgress::Converged => Step::Converge,
            SaveProgress::Captured => Step::Capture,
            SaveProgress::Complete => Step::CompleteSave,
        };
        let is_captured = match &self.inside().save {
            Save::Writing { life: of, .. } if *of == life => false,
            Save::Captured { life: of, .. } if *of == life => true,
            Save::Complete(_) => true,
            Save::None | Save::Writing { .. } | Save::Captured { .. } => {
                return Err(refused(step, "nothing is being saved"));
            }
        };
        if progress != SaveProgress::Converged && !is_captured {
            let mut state = self.state.subscribe();
            let stopped = async { drop(state.wait_for(|state| *state == VmState::Paused).await) };
            tokio::select! {
                biased;
                _ = self.wait_exit() => return Err(VmmError::Gone),
                () = stopped => {}
                () = tokio::time::sleep(within) => return Err(VmmError::Timeout(step.name())),
            }
        }
        let effect = || match progress {
            SaveProgress::Converged => Ok(()),
            SaveProgress::Captured => {
                self.capture();
                Ok(())
            }
            SaveProgress::Complete => {
                self.capture();
                self.complete_save()
            }
        };
        self.step(step, within, effect).await
    }

    fn capture(&self) {
        let mut inside = self.inside();
        let content = inside.memory.read();
        inside.save = match std::mem::replace(&mut inside.save, Save::None) {
            Save::Writing { file, memory, life } => Save::Captured { file, memory, life, content },
            other @ (Save::None | Save::Captured { .. } | Save::Complete(_)) => other,
        };
    }

    fn complete_save(&self) -> Result<(), VmmError> {
        let mut inside = self.inside();
        inside.save = match std::mem::replace(&mut inside.save, Save::None) {
            Save::Captured { mut file, memory, content, .. } => {
                let memory_file = self.memory_file.as_deref();
                saved::write_state(&mut file, memory, &content, memory_file)
                    .and_then(|()| state_file::complete(&file))
                    .map_err(save_failed)?;
                Save::Complete(memory)
            }
            other @ (Save::None | Save::Writing { .. } | Save::Complete(_)) => other,
        };
        Ok(())
    }

    pub(super) fn cancel_save(&self) {
        let mut inside = self.inside();
        if inside.save.life().is_some() {
            inside.save = Save::None;
        }
    }

    pub(super) fn push_overlay(&self, overlay: &Path) -> Result<(), VmmError> {
        self.change_disk(Step::PushOverlay, |disk| {
            if disk.overlay == overlay {
                return Ok(());
            }
            if disk.layers.len() == DiskSpec::MAX_LAYERS {
                return Err(refused(Step::PushOverlay, "it has as many layers as it may have"));
            }
            if disk.layers.iter().any(|layer| layer == overlay) {
                return Err(refused(Step::PushOverlay, "the file is a layer of it already"));
            }
            let frozen = std::mem::replace(&mut disk.overlay, overlay.to_owned());
            disk.layers.insert(0, frozen);
            Ok(())
        })
    }

    pub(super) fn flatten_disk(&self) -> Result<(), VmmError> {
        self.change_disk(Step::FlattenDisk, |disk| {
            disk.layers.clear();
            Ok(())
        })
    }

    pub(super) fn grow_disk(&self, size_bytes: u64) -> Result<(), VmmError> {
        self.change_disk(Step::GrowDisk, |disk| {
            if disk.grown_to_bytes.is_some_and(|now| size_bytes < now) {
                return Err(refused(Step::GrowDisk, "the disk never shrinks"));
            }
            disk.grown_to_bytes = Some(size_bytes);
            Ok(())
        })
    }

    fn change_disk(
        &self,
        step: Step,
        change: impl FnOnce(&mut FakeDisk) -> Result<(), VmmError>,
    ) -> Result<(), VmmError> {
        if self.state() == VmState::Parked {
            return Err(refused(step, "it waits for its saved state"));
        }
        match &mut self.inside().disk {
            Some(disk) => change(disk),
            None => Err(refused(step, "it has no disk")),
        }
    }

    fn disconnect(&self) {
        if let Some(older) = lock(&self.open).take() {
            older.cut();
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        lock(&self.inside)
    }
}

/// The VM's life from its first instruction to its end.
async fn run(
    machine: Arc<Machine>,
    started: oneshot::Receiver<BoxFuture<'static, GuestEnd>>,
    ended: CancellationToken,
) {
    // A guest that panics is cancelled and reported by these.
    let _cancel_its_tasks = ended.drop_guard();
    let mut order = machine.order.subscribe();
    let state = machine.state.subscribe();
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
        end = run_guest(started, state) => end.into(),
    };
    if let Some(host) = machine.host.upgrade() {
        host.forget(machine.record.pid);
    }
    machine.disconnect();
    machine.exit.send_replace(Some(exit));
}

async fn run_guest(
    started: oneshot::Receiver<BoxFuture<'static, GuestEnd>>,
    mut state: watch::Receiver<VmState>,
) -> GuestEnd {
    // A state that is refused leaves a process without a guest, for good.
    let Ok(mut guest) = started.await else { return std::future::pending().await };
    loop {
        // An error means the machine is gone, and this future with it.
        let _ = state.wait_for(|state| *state == VmState::Running).await;
        tokio::select! {
            biased;
            _ = state.wait_for(|state| *state != VmState::Running) => {}
            end = &mut guest => return end,
        }
    }
}

fn refused(step: Step, reason: &str) -> VmmError {
    VmmError::Refused { command: step.name(), reason: reason.into() }
}

fn save_failed(source: io::Error) -> VmmError {
    VmmError::Io { context: "write the saved state".into(), source }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
