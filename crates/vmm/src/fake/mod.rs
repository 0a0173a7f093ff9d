//! VMs without a hypervisor: deterministic, in memory, for fast tests of everything above.
//!
//! A [`FakeHost`] is the machine: it holds the running VMs and survives its drivers, so dropping a
//! [`FakeVmm`] and all its handles is the death of the server, and a new one on the same host is its
//! next life. The guest is a function of the test. The promises are those of the real driver and the
//! same suite checks them; files outside the run directory are neither chowned nor written.

mod channel;
mod host;

use std::{io, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;

use host::Machine;
pub use host::{FakeConsole, FakeGuest, FakeGuestIo, FakeHost, Fault, GuestEnd};

use crate::{
    Accelerator, BootSpec, Capabilities, Capability, Channel, Commit, Exit, Vm, Vmm, VmmError,
    VmmRecord,
    console_log::ConsoleLog,
    spec_check::{self, MAX_VCPU_COUNT},
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
}

impl FakeVmm {
    /// A driver for the VMs of `host`.
    #[must_use]
    pub fn new(host: FakeHost) -> Self {
        let capabilities = Capabilities {
            accelerator: Accelerator::None,
            supported: vec![Capability::Pause],
            max_vcpu_count: MAX_VCPU_COUNT,
            version: "1".into(),
        };
        Self { host, capabilities }
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn boot(
        &self,
        spec: &BootSpec,
        committed: &mut Commit<'_>,
    ) -> Result<Arc<dyn Vm>, VmmError> {
        spec_check::check(spec)?;
        for path in &spec.sandbox.cgroup_procs {
            std::fs::metadata(path).map_err(|source| io_error("join", path, source))?;
        }
        let memory = MemoryFile::make(&spec.memory_file, spec.memory_mib.bytes())
            .map_err(|source| io_error("make the memory file", &spec.memory_file, source))?;
        let console = ConsoleLog::open(&spec.console_log, spec.console_limit_bytes)
            .map_err(|source| io_error("open the console log", &spec.console_log, source))?;

        let fault = self.host.take_fault();
        if let Some(Fault::FailBeforeCommit) = fault {
            return Err(VmmError::EndedEarly("injected before the record".into()));
        }
        let reserved = self.host.reserve(spec);
        committed(reserved.record())
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
        let machine = reserved.start(spec.clone(), FakeConsole::new(console), fault);
        memory.keep();
        Ok(Arc::new(FakeVm { machine }))
    }

    async fn adopt(&self, record: &VmmRecord) -> Result<Arc<dyn Vm>, VmmError> {
        if record.driver != DRIVER_NAME {
            let reason = format!("the record was made by the driver {:?}", record.driver);
            return Err(VmmError::NotUsable(reason));
        }
        let machine = self.host.find(record).ok_or(VmmError::Gone)?;
        Ok(Arc::new(FakeVm { machine }))
    }
}

#[derive(Debug)]
struct FakeVm {
    machine: Arc<Machine>,
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

    async fn pause(&self, _within: Duration) -> Result<(), VmmError> {
        self.machine.set_paused(host::Cpus::Stopped)
    }

    async fn resume(&self, _within: Duration) -> Result<(), VmmError> {
        self.machine.set_paused(host::Cpus::Running)
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
        std::fs::File::create_new(path)?.set_len(bytes)?;
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
