//! Boots and adopts QEMU processes and owns the tasks that watch them.

use std::{
    collections::HashMap,
    io::Write,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::sys::resource::Resource;
use tokio::{
    net::{UnixStream, unix::pipe},
    sync::watch,
    task::JoinSet,
};

use super::{
    command_line::{self, Beginning, Host, Mapping},
    files::{self, Made, Restored, Sockets},
    fingerprint,
    process::{self, Facts, KillOnDrop, Process},
    qmp,
    sealed_memory::SealedMemories,
    spawn::{Blocked, Launch, Limit},
    vm::{KILL_DEADLINE, Shared, connect},
};
use crate::{
    Accelerator, BootSpec, Commit, Exit, GuestMemory, RestoreSpec, RestoredMemory, VmmError,
    VmmRecord,
    console_log::{ConsoleLog, drain},
    procfs, spec_check, state_file,
};

/// The name in records.
pub(super) const DRIVER_NAME: &str = "qemu";

/// From the process's start until its control socket answers: 40 ms on a quiet host, seconds on one
/// that swaps.
pub(super) const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long an adopted process may take to answer. Kept short: there may be many at start.
const ADOPT_DEADLINE: Duration = Duration::from_secs(5);

/// What the hypervisor says of itself, in the VM's directory.
pub(super) const VMM_LOG: &str = "vmm.log";

/// It is kept up to this.
const VMM_LOG_LIMIT_BYTES: u64 = 64 * 1024;

/// Its own threads beside the virtual CPUs: main, I/O workers (at most 64), RCU, signals.
const SPARE_THREADS: u64 = 96;

/// Files one VM has open at most: its own, sockets, event descriptors of its devices.
const OPEN_FILES: u64 = 512;

/// The driver's insides, shared by all handles.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) binary: PathBuf,
    pub(super) tsc_khz: u64,
    /// The accelerator of ordinary boots; a probe may try another.
    pub(super) accelerator: Accelerator,
    /// The group that opens `/dev/kvm` to the VM's user, where a group does.
    pub(super) kvm_group: Option<u32>,
    pub(super) boot_id: String,
    /// Program and host as fingerprints have them.
    pub(super) program: String,
    /// Whether the program can map a file privately that it opens for reading only.
    pub(super) maps_read_only: bool,
    sealed_memories: SealedMemories,
    vms: Mutex<HashMap<u32, Arc<Shared>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// One start.
struct Plan<'a> {
    spec: &'a BootSpec,
    accelerator: Accelerator,
    beginning: Beginning,
    restored: Option<Restored>,
}

impl Driver {
    pub(super) fn new(binary: PathBuf, tsc_khz: u64, boot_id: String) -> Self {
        Self {
            binary,
            tsc_khz,
            accelerator: Accelerator::Tcg,
            kvm_group: None,
            boot_id,
            program: String::new(),
            maps_read_only: false,
            sealed_memories: SealedMemories::default(),
            vms: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// Another driver for the same program that watches nothing yet.
    pub(super) fn like_this(&self) -> Self {
        Self {
            accelerator: self.accelerator,
            kvm_group: self.kvm_group,
            program: self.program.clone(),
            maps_read_only: self.maps_read_only,
            ..Self::new(self.binary.clone(), self.tsc_khz, self.boot_id.clone())
        }
    }

    /// See [`crate::Vmm::boot`].
    pub(super) async fn boot(
        self: &Arc<Self>,
        accelerator: Accelerator,
        spec: &BootSpec,
        committed: &mut Commit<'_>,
    ) -> Result<Arc<Shared>, VmmError> {
        spec_check::check(spec)?;
        let plan = Plan { spec, accelerator, beginning: Beginning::Boot, restored: None };
        self.start(plan, committed).await
    }

    /// See [`crate::Vmm::park`].
    pub(super) async fn park(
        self: &Arc<Self>,
        spec: &RestoreSpec,
        committed: &mut Commit<'_>,
    ) -> Result<Arc<Shared>, VmmError> {
        spec_check::check_restore(spec)?;
        let machine = &spec.machine;
        let fingerprint = self.fingerprint(machine, self.accelerator);
        let state = state_file::open(&spec.state, &fingerprint, spec.memory.saved_as())?;
        let clock = fingerprint::clock_of(self.accelerator, self.tsc_khz);
        fingerprint::check_clock(state.label.tsc_khz, clock)?;

        let (mapping, memory, template) = match &spec.memory {
            RestoredMemory::InState => (Mapping::Anonymous, None, None),
            RestoredMemory::InStateToFile => (Mapping::Own, None, None),
            RestoredMemory::CloneOf { file } if self.maps_read_only => {
                let memory = files::open_sealed_memory(file, machine.sandbox.uid)?;
                (Mapping::PrivateReadOnly, Some(memory), None)
            }
            RestoredMemory::CloneOf { file } => {
                let template = self.sealed_memories.of(file).await?;
                let memory = template
                    .open()
                    .map_err(|source| io_error("open a template's memory", source))?;
                (Mapping::Private, Some(memory), Some(template))
            }
        };
        let plan = Plan {
            spec: machine,
            accelerator: self.accelerator,
            beginning: Beginning::Restore(mapping),
            restored: Some(Restored { state: state.file, memory }),
        };
        let vm = self.start(plan, committed).await?;
        if let Some(template) = template {
            vm.use_template(template);
        }
        Ok(vm)
    }

    /// See [`crate::Vmm::fingerprint`].
    pub(super) fn fingerprint(&self, machine: &BootSpec, accelerator: Accelerator) -> String {
        fingerprint::of_machine(&self.program, machine, accelerator)
            // Such a machine does not start either.
            .unwrap_or_else(|error| format!("none: {error}"))
    }

    async fn start(
        self: &Arc<Self>,
        plan: Plan<'_>,
        committed: &mut Commit<'_>,
    ) -> Result<Arc<Shared>, VmmError> {
        let Plan { spec, accelerator, beginning, restored } = plan;
        let host = Host { accelerator, tsc_khz: self.tsc_khz };
        let args = command_line::arguments(spec, host, beginning)?;

        let mut made = Made::default();
        let order = command_line::files(spec, beginning);
        let files = files::open_all(spec, &order, restored, &mut made)?;
        let console_log = ConsoleLog::open(&spec.console_log, spec.console_limit_bytes)
            .map_err(|source| io_error("open the console log", source))?;
        let vmm_log = ConsoleLog::open(&spec.run_dir.join(VMM_LOG), VMM_LOG_LIMIT_BYTES)
            .map_err(|source| io_error("open the VMM's log", source))?;
        let (messages, log) =
            files::log_pipe().map_err(|source| io_error("make the VMM's log pipe", source))?;

        let launch = Launch {
            program: &self.binary,
            args,
            files,
            log,
            uid: spec.sandbox.uid,
            groups: self.kvm_group.into_iter().collect(),
            limits: limits(spec),
        };
        let blocked = Blocked::fork(launch).map_err(|source| io_error("fork the VMM", source))?;
        let vm = match self.watch_child(blocked.pid, spec, accelerator, beginning) {
            Ok(vm) => vm,
            Err(error) => {
                let pid = blocked.pid;
                // Closes the pipe it waits on.
                drop(blocked);
                process::bury(pid);
                return Err(error);
            }
        };
        let kill_on_drop = KillOnDrop::new(vm.process.clone());

        let started = async {
            join_cgroups(spec, vm.record.pid)?;
            committed(&vm.record).map_err(|source| io_error("record the VMM", source))?;
            blocked.release().await?;
            self.read_messages(&vm, messages, vmm_log)?;
            self.read_console(&vm, console_log).await?;
            self.open_control(&vm, START_DEADLINE).await?;
            vm.prepare_for(beginning).await
        }
        .await;
        match started {
            Ok(()) => {
                kill_on_drop.let_live();
                made.keep();
                self.vms().insert(vm.record.pid, vm.clone());
                // It may have ended before it was in the map.
                if vm.has_ended() {
                    self.vms().remove(&vm.record.pid);
                }
                Ok(vm)
            }
            Err(error) => Err(self.after_failed_start(&vm, error).await),
        }
    }

    /// See [`crate::Vmm::adopt`].
    pub(super) async fn adopt(
        self: &Arc<Self>,
        record: &VmmRecord,
    ) -> Result<Arc<Shared>, VmmError> {
        if record.driver != DRIVER_NAME {
            let reason = format!("the record was made by the driver {:?}", record.driver);
            return Err(VmmError::NotUsable(reason));
        }
        if record.boot_id != self.boot_id {
            return Err(VmmError::Gone);
        }
        let known = self.vms().get(&record.pid).cloned();
        if let Some(vm) = known
            && vm.record.is_same_process(record)
            && !vm.has_ended()
        {
            return Ok(vm);
        }
        let process = Process::find(record.pid)
            .map_err(|source| io_error("look for the VMM's process", source))?
            .filter(|process| process.start_time_ticks == record.start_time_ticks)
            .ok_or(VmmError::Gone)?;

        let unreleased = procfs::runs_our_program(record.pid);
        let vm = self.watch(Arc::new(process), record.clone())?;
        if unreleased {
            // A child of an earlier life that was never let go: its pipe is closed and it is ending.
            vm.kill().await?;
            return Err(VmmError::Gone);
        }
        // What cannot be controlled must still be ours to kill, so none of these fails the adoption.
        let controlled = match self.open_control(&vm, ADOPT_DEADLINE).await {
            Ok(()) => vm.learn_its_state(ADOPT_DEADLINE).await,
            Err(error) => Err(error),
        };
        if let Err(error) = controlled {
            if vm.has_ended() {
                return Err(VmmError::Gone);
            }
            tracing::warn!(pid = record.pid, %error, "adopted a VMM that does not answer");
        }
        let console = ConsoleLog::open(&record.console_log, record.console_limit_bytes)
            .map_err(|source| io_error("open the console log", source));
        let console = match console {
            Ok(log) => self.read_console(&vm, log).await,
            Err(error) => Err(error),
        };
        if let Err(error) = console {
            tracing::warn!(pid = record.pid, %error, "the console of an adopted VM is lost");
        }
        self.vms().insert(record.pid, vm.clone());
        if vm.has_ended() {
            self.vms().remove(&record.pid);
            return Err(VmmError::Gone);
        }
        Ok(vm)
    }

    /// Ends all watching; VMs keep running.
    pub(super) async fn close(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
    }

    /// Waits until every process watched has ended, but no longer than a killed one may take.
    pub(super) async fn settle(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(KILL_DEADLINE, all_ended).await.is_err() {
            tracing::error!("a killed VMM process does not end");
        }
    }

    fn watch_child(
        self: &Arc<Self>,
        pid: u32,
        spec: &BootSpec,
        accelerator: Accelerator,
        beginning: Beginning,
    ) -> Result<Arc<Shared>, VmmError> {
        let process = Process::find(pid)
            .map_err(|source| io_error("open the VMM's process", source))?
            .ok_or_else(|| VmmError::EndedEarly("its process vanished".into()))?;
        let record = VmmRecord {
            driver: DRIVER_NAME.into(),
            pid,
            start_time_ticks: process.start_time_ticks,
            boot_id: self.boot_id.clone(),
            run_dir: spec.run_dir.clone(),
            console_log: spec.console_log.clone(),
            console_limit_bytes: spec.console_limit_bytes,
            fingerprint: self.fingerprint(spec, accelerator),
            memory: match beginning.mapping(spec) {
                Mapping::Own => GuestMemory::Own,
                Mapping::Anonymous | Mapping::Private | Mapping::PrivateReadOnly => {
                    GuestMemory::Private
                }
            },
            memory_mib: spec.memory_mib.get(),
        };
        self.watch(Arc::new(process), record)
    }

    /// Makes the handle and the task that publishes the process's end.
    fn watch(
        self: &Arc<Self>,
        process: Arc<Process>,
        record: VmmRecord,
    ) -> Result<Arc<Shared>, VmmError> {
        let end =
            process.watch_end().map_err(|source| io_error("watch the VMM's process", source))?;
        let facts = Arc::new(Facts::default());
        let (exit_sender, exit) = watch::channel(None::<Exit>);
        let pid = process.pid;
        let driver = Arc::downgrade(self);
        let watched_facts = facts.clone();
        self.own(async move {
            let status = end.await;
            let exit = watched_facts.explain(status).await;
            if let Some(driver) = driver.upgrade() {
                driver.vms().remove(&pid);
            }
            tracing::debug!(pid, ?exit, "VMM process ended");
            exit_sender.send_replace(Some(exit));
        });
        Ok(Arc::new(Shared::new(record, process, facts, exit)))
    }

    fn read_messages(
        &self,
        vm: &Shared,
        messages: OwnedFd,
        log: ConsoleLog,
    ) -> Result<(), VmmError> {
        let reader = pipe::Receiver::from_owned_fd(messages)
            .map_err(|source| io_error("read the VMM's messages", source))?;
        let facts = vm.facts.clone();
        let reading = drain(reader, log, move |piece| facts.heard(piece));
        self.own(vm.facts.readers.track_future(reading));
        Ok(())
    }

    async fn read_console(&self, vm: &Shared, log: ConsoleLog) -> Result<(), VmmError> {
        let path = Sockets::in_dir(&vm.record.run_dir).console;
        let stream: UnixStream = connect(&path, "connect to the console").await?;
        self.own(vm.facts.readers.track_future(drain(stream, log, |_| {})));
        Ok(())
    }

    async fn open_control(&self, vm: &Shared, deadline: Duration) -> Result<(), VmmError> {
        let path = Sockets::in_dir(&vm.record.run_dir).qmp;
        let answered = async {
            let stream = connect(&path, "connect to the control socket").await?;
            qmp::negotiate(stream, vm.facts.notice.clone()).await
        };
        let (client, connection) = tokio::time::timeout(deadline, answered)
            .await
            .map_err(|_| VmmError::Timeout("the VMM's control socket"))??;
        vm.facts.control_is_watched();
        self.own(vm.facts.readers.track_future(connection.run()));
        // Only one negotiation is ever made for one handle.
        let _ = vm.qmp.set(client);
        Ok(())
    }

    /// Makes sure that nothing runs, and prefers the process's own reason to the symptom.
    async fn after_failed_start(&self, vm: &Shared, error: VmmError) -> VmmError {
        // A broken socket is the symptom of a process that is ending by itself: let it say why.
        if let VmmError::Io { .. } = error {
            let _ = tokio::time::timeout(Duration::from_secs(2), vm.wait_exit()).await;
        }
        let ended_by_itself = vm.has_ended();
        if let Err(error) = vm.kill().await {
            tracing::error!(pid = vm.record.pid, %error, "a failed boot could not be cleaned up");
        }
        match vm.exit.borrow().clone() {
            Some(Exit::Crashed(reason)) if ended_by_itself => VmmError::EndedEarly(reason),
            Some(_) | None => error,
        }
    }

    pub(super) fn own(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        // Finished ones would pile up otherwise.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn vms(&self) -> MutexGuard<'_, HashMap<u32, Arc<Shared>>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn limits(spec: &BootSpec) -> Vec<Limit> {
    let mut limits = vec![
        // A core file would hold the guest's memory.
        Limit { resource: Resource::RLIMIT_CORE, value: 0 },
        Limit { resource: Resource::RLIMIT_NOFILE, value: OPEN_FILES },
    ];
    if spec.sandbox.uid.is_some() {
        // Counted per user, so only meaningful when the user is the VM's own.
        let value = SPARE_THREADS + u64::from(spec.vcpu_count.get());
        limits.push(Limit { resource: Resource::RLIMIT_NPROC, value });
    }
    if let Some(value) = spec.sandbox.rlimit_address_space_bytes {
        limits.push(Limit { resource: Resource::RLIMIT_AS, value });
    }
    if let Some(value) = spec.sandbox.rlimit_file_size_bytes {
        limits.push(Limit { resource: Resource::RLIMIT_FSIZE, value });
    }
    limits
}

fn join_cgroups(spec: &BootSpec, pid: u32) -> Result<(), VmmError> {
    for path in &spec.sandbox.cgroup_procs {
        std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(pid.to_string().as_bytes()))
            .map_err(|source| io_error(&format!("join {}", path.display()), source))?;
    }
    Ok(())
}

pub(super) fn io_error(context: &str, source: std::io::Error) -> VmmError {
    VmmError::Io { context: context.into(), source }
}
