//! VMs without a hypervisor: deterministic, in memory, for fast tests of everything above.
//!
//! A [`FakeHost`] is the machine: it holds the running VMs and survives its drivers, so dropping a
//! [`FakeVmm`] and all its handles is the death of the server, and a new one on the same host is its
//! next life. The guest is a function of the test. The promises are those of the real driver and the
//! same suite checks them; files outside the run directory are neither chowned nor written, except
//! saved states and the memory file.
//!
//! Saved states are real files, and every one of their bytes is checked when they are loaded. What
//! they keep of a guest is its [`FakeMemory`]; a restored guest is the test's function called again
//! with that memory and [`GuestStart::Restored`]. Disks are not read: their chain is recorded
//! ([`FakeHost::disk_of`]).

mod channel;
mod fault;
mod host;
mod machine;
mod saved;

use std::{fs::File, io, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use skerry_model::VolumeSlot;

pub use fault::{Fault, Step, StepFault};
pub use host::{FakeConsole, FakeGuest, FakeGuestIo, FakeHost, GuestEnd, GuestStart};
use machine::{Awaited, Machine};
pub use machine::{FakeDisk, VmState};
pub use saved::FakeMemory;

use crate::{
    Accelerator, BootSpec, Cable, Capabilities, Capability, Channel, Commit, DiskSpec, Exit,
    GuestMemory, RestoreSpec, RestoredMemory, SaveProgress, SavedMemory, Vm, Vmm, VmmError,
    VmmRecord,
    console_log::ConsoleLog,
    spec_check::{self, MAX_VCPU_COUNT},
    state_file,
};

/// The name in records.
const DRIVER_NAME: &str = "fake";

/// As long as the real driver waits for a control socket.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// The driver of a [`FakeHost`].
#[derive(Clone, Debug)]
pub struct FakeVmm {
    host: FakeHost,
    capabilities: Capabilities,
    /// Which driver of the host this is.
    life: u64,
}

impl FakeVmm {
    /// A driver for the VMs of `host`.
    #[must_use]
    pub fn new(host: FakeHost) -> Self {
        let capabilities = Capabilities {
            accelerator: Accelerator::None,
            supported: vec![
                Capability::Pause,
                Capability::Snapshot,
                Capability::Restore,
                Capability::CloneMemory,
                Capability::Volumes,
            ],
            max_vcpu_count: MAX_VCPU_COUNT,
            version: "1".into(),
        };
        let life = host.next_life();
        Self { host, capabilities, life }
    }

    async fn start(
        &self,
        spec: &BootSpec,
        awaited: Option<Awaited>,
        committed: &mut Commit<'_>,
    ) -> Result<Arc<dyn Vm>, VmmError> {
        for path in &spec.sandbox.cgroup_procs {
            std::fs::metadata(path).map_err(|source| io_error("join", path, source))?;
        }
        let file = match &awaited {
            None | Some(Awaited { memory: RestoredMemory::InStateToFile, .. }) => {
                spec.memory_file.as_deref()
            }
            Some(Awaited {
                memory: RestoredMemory::InState | RestoredMemory::CloneOf { .. },
                ..
            }) => None,
        };
        let (memory, memory_file) = match file {
            None => (GuestMemory::Private, MemoryFile(None)),
            Some(path) => {
                let made = MemoryFile::make(path, spec.memory_mib.bytes())
                    .map_err(|source| io_error("make the memory file", path, source))?;
                (GuestMemory::Own, made)
            }
        };
        let console = ConsoleLog::open(&spec.console_log, spec.console_limit_bytes)
            .map_err(|source| io_error("open the console log", &spec.console_log, source))?;

        let fault = self.host.take_fault();
        if let Some(Fault::FailBeforeCommit) = fault {
            return Err(VmmError::EndedEarly("injected before the record".into()));
        }
        let record = self.host.reserve(spec, self.fingerprint(spec), memory);
        committed(&record)
            .map_err(|source| VmmError::Io { context: "record the VMM".into(), source })?;
        match fault {
            Some(Fault::FailAfterCommit) => {
                return Err(VmmError::EndedEarly("injected after the record".into()));
            }
            Some(Fault::HangInBoot) => {
                tokio::time::sleep(START_DEADLINE).await;
                return Err(VmmError::Timeout("the VMM's control socket"));
            }
            Some(
                Fault::FailBeforeCommit
                | Fault::DieAfter(_)
                | Fault::RefuseConnect
                | Fault::SilentGuest,
            )
            | None => {}
        }
        let console = FakeConsole::new(console);
        let machine = Machine::start(&self.host, record, spec.clone(), console, fault, awaited);
        memory_file.keep();
        Ok(Arc::new(FakeVm { machine, life: self.life }))
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn fingerprint(&self, machine: &BootSpec) -> String {
        let disk = if machine.disk.is_some() { "disk" } else { "diskless" };
        let (vcpus, memory) = (machine.vcpu_count.get(), machine.memory_mib.get());
        let cable = match machine.cable {
            Cable::Loose => "",
            Cable::Tap { .. } => "-tap",
        };
        format!("fake-{}-{vcpus}-{memory}-{disk}{cable}", self.capabilities.version)
    }

    async fn boot(
        &self,
        spec: &BootSpec,
        committed: &mut Commit<'_>,
    ) -> Result<Arc<dyn Vm>, VmmError> {
        spec_check::check(spec)?;
        self.start(spec, None, committed).await
    }

    async fn park(
        &self,
        spec: &RestoreSpec,
        committed: &mut Commit<'_>,
    ) -> Result<Arc<dyn Vm>, VmmError> {
        spec_check::check_restore(spec)?;
        let kind = spec.memory.saved_as();
        let state = state_file::open(&spec.state, &self.fingerprint(&spec.machine), kind)?;
        let awaited = Awaited { state, memory: spec.memory.clone() };
        self.start(&spec.machine, Some(awaited), committed).await
    }

    async fn adopt(&self, record: &VmmRecord) -> Result<Arc<dyn Vm>, VmmError> {
        if record.driver != DRIVER_NAME {
            let reason = format!("the record was made by the driver {:?}", record.driver);
            return Err(VmmError::NotUsable(reason));
        }
        let machine = self.host.find(record).ok_or(VmmError::Gone)?;
        Ok(Arc::new(FakeVm { machine, life: self.life }))
    }
}

struct FakeVm {
    machine: Arc<Machine>,
    life: u64,
}

#[async_trait]
impl Vm for FakeVm {
    fn record(&self) -> &VmmRecord {
        &self.machine.record
    }

    async fn connect_guest(&self) -> Result<Box<dyn Channel>, VmmError> {
        self.machine.connect()
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.machine.end(Exit::Killed);
        self.machine.wait_exit().await;
        Ok(())
    }

    async fn wait_exit(&self) -> Exit {
        self.machine.wait_exit().await
    }

    async fn pause(&self, within: Duration) -> Result<(), VmmError> {
        self.machine.step(Step::Pause, within, || self.machine.pause()).await
    }

    async fn resume(&self, within: Duration) -> Result<(), VmmError> {
        self.machine.step(Step::Resume, within, || self.machine.resume()).await
    }

    async fn load(&self, within: Duration) -> Result<(), VmmError> {
        self.machine.step(Step::Load, within, || self.machine.load()).await
    }

    async fn begin_save(&self, state: File, memory: SavedMemory) -> Result<(), VmmError> {
        let begin = || self.machine.begin_save(state, memory, self.life);
        self.machine.step(Step::BeginSave, START_DEADLINE, begin).await
    }

    async fn wait_save(&self, progress: SaveProgress, within: Duration) -> Result<(), VmmError> {
        if self.machine.has_ended() {
            return Err(VmmError::Gone);
        }
        self.machine.wait_save(progress, within, self.life).await
    }

    async fn cancel_save(&self, within: Duration) -> Result<(), VmmError> {
        let cancel = || {
            self.machine.cancel_save();
            Ok(())
        };
        self.machine.step(Step::CancelSave, within, cancel).await
    }

    async fn push_overlay(&self, overlay: &Path, within: Duration) -> Result<(), VmmError> {
        spec_check::check_overlay(overlay)?;
        self.machine.step(Step::PushOverlay, within, || self.machine.push_overlay(overlay)).await
    }

    async fn flatten_disk(&self, within: Duration) -> Result<(), VmmError> {
        self.machine.step(Step::FlattenDisk, within, || self.machine.flatten_disk()).await
    }

    async fn grow_disk(
        &self,
        size_bytes: u64,
        _most_file_bytes: u64,
        within: Duration,
    ) -> Result<(), VmmError> {
        spec_check::check_disk_size(size_bytes)?;
        self.machine.step(Step::GrowDisk, within, || self.machine.grow_disk(size_bytes)).await
    }

    async fn attach_volume(
        &self,
        slot: VolumeSlot,
        disk: &DiskSpec,
        _most_file_bytes: u64,
        within: Duration,
    ) -> Result<(), VmmError> {
        spec_check::check_disk(disk)?;
        let attach = || self.machine.attach_volume(slot, disk);
        self.machine.step(Step::AttachVolume, within, attach).await
    }

    async fn push_volume_overlay(
        &self,
        slot: VolumeSlot,
        overlay: &Path,
        within: Duration,
    ) -> Result<(), VmmError> {
        spec_check::check_overlay(overlay)?;
        let push = || self.machine.push_volume_overlay(slot, overlay);
        self.machine.step(Step::PushVolumeOverlay, within, push).await
    }

    async fn flatten_volume(&self, slot: VolumeSlot, within: Duration) -> Result<(), VmmError> {
        let flatten = || self.machine.flatten_volume(slot);
        self.machine.step(Step::FlattenVolume, within, flatten).await
    }

    async fn grow_volume(
        &self,
        slot: VolumeSlot,
        size_bytes: u64,
        _most_file_bytes: u64,
        within: Duration,
    ) -> Result<(), VmmError> {
        let grow = || self.machine.grow_volume(slot, size_bytes);
        self.machine.step(Step::GrowVolume, within, grow).await
    }

    async fn detach_volume(&self, slot: VolumeSlot, within: Duration) -> Result<(), VmmError> {
        self.machine.step(Step::DetachVolume, within, || self.machine.detach_volume(slot)).await
    }
}

/// The guest's memory file: real, so that its removal is tested, but sparse. Removed when the boot
/// fails.
#[derive(Debug)]
struct MemoryFile<'a>(Option<&'a Path>);

impl<'a> MemoryFile<'a> {
    fn make(path: &'a Path, bytes: u64) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        File::create_new(path)?.set_len(bytes)?;
        Ok(Self(Some(path)))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for MemoryFile<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn io_error(action: &str, path: &Path, source: io::Error) -> VmmError {
    VmmError::Io { context: format!("{action} {}", path.display()), source }
}
