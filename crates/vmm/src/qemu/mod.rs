//! VMs as QEMU processes.
//!
//! The guest is QEMU's `microvm` machine; the process runs as its own user under QEMU's seccomp
//! sandbox, reads its files by descriptors it inherits, and is controlled over three sockets in the
//! VM's directory: control (QMP), the agent's port and the console. All three are bound by us before
//! the start and outlive us, so a later life of this program takes the VM over by its record.
//!
//! One process owns a VM's sockets at a time: QEMU answers one connection, and lets a second wait.
//!
//! States are QEMU's migration streams: [`states`] says what a VM may be asked, [`save`] writes one,
//! [`sealed_memory`] is what clones are made from, [`fingerprint`] what a state depends on, and
//! [`chain`] changes the disk under a running VM.

mod accelerator;
mod chain;
mod clock;
mod command_line;
mod control;
mod driver;
mod files;
mod fingerprint;
mod flatten;
mod host_cpu;
mod process;
mod qmp;
mod save;
mod sealed_memory;
mod spawn;
mod states;
mod vm;
mod volumes;

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;

pub use accelerator::{AcceleratorChoice, Probe};
use accelerator::{KvmOutlook, kvm_outlook};
use driver::{Driver, io_error};
use vm::QemuVm;

use crate::{
    Accelerator, BootSpec, Capabilities, Capability, Commit, RestoreSpec, RestoredMemory, Vm, Vmm,
    VmmError, VmmRecord, procfs, spec_check::MAX_VCPU_COUNT,
};

/// The program looked for when none is configured.
const PROGRAM: &str = "qemu-system-x86_64";

/// Where it is looked for after the search path: services often run with a short one.
const USUAL_DIRS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/libexec"];

/// The oldest version whose options are all known to work.
const OLDEST_VERSION: (u32, u32) = (7, 2);

/// Since this version a file can be opened for reading only and mapped privately for writing
/// (`readonly=on,rom=off` of `memory-backend-file`).
const READ_ONLY_FILES_VERSION: (u32, u32) = (8, 2);

/// `--version` takes 22 ms on a quiet host.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// How the driver is to be opened.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// The program; `None` looks for `qemu-system-x86_64`.
    pub binary: Option<PathBuf>,
    /// How instructions run.
    pub accelerator: AcceleratorChoice,
}

/// QEMU on this host. Cheap to clone; dropping the last clone and the last VM handle leaves the VMs
/// running.
#[derive(Clone, Debug)]
pub struct QemuVmm {
    driver: Arc<Driver>,
    capabilities: Capabilities,
    accelerator_reason: String,
}

impl QemuVmm {
    /// Finds the program and decides the accelerator.
    ///
    /// With [`AcceleratorChoice::Auto`] this may boot a guest and take up to the probe's deadline.
    ///
    /// # Errors
    /// [`VmmError::NotUsable`] when there is no program or it is too old.
    pub async fn open(config: QemuConfig) -> Result<Self, VmmError> {
        let binary = match config.binary {
            Some(binary) => binary,
            None => find_program()?,
        };
        let version = version_of(&binary).await?;
        let boot_id = procfs::boot_id().map_err(|source| io_error("read the boot id", source))?;
        let tsc_khz = tokio::task::spawn_blocking(clock::measure_tsc_khz)
            .await
            .map_err(|error| io_error("measure the clock", std::io::Error::other(error)))?;

        let (choice, accelerator_reason) =
            choose(&binary, tsc_khz, &boot_id, config.accelerator).await;
        let cpu = host_cpu::identity(choice.accelerator)
            .map_err(|source| io_error("read which processor this is", source))?;
        let program = fingerprint::of_program(&binary, &version.text, &cpu)
            .map_err(|source| io_error("read the hypervisor program", source))?;
        let maps_read_only = version.number >= READ_ONLY_FILES_VERSION;

        let mut driver = Driver::new(binary, tsc_khz, boot_id);
        driver.accelerator = choice.accelerator;
        driver.kvm_group = choice.kvm_group;
        driver.program = program;
        driver.maps_read_only = maps_read_only;
        let mut supported =
            vec![Capability::Pause, Capability::Snapshot, Capability::Restore, Capability::Volumes];
        if maps_read_only || sealed_memory::is_possible() {
            supported.push(Capability::CloneMemory);
        }
        let capabilities = Capabilities {
            accelerator: choice.accelerator,
            supported,
            max_vcpu_count: MAX_VCPU_COUNT,
            version: version.text,
        };
        Ok(Self { driver: Arc::new(driver), capabilities, accelerator_reason })
    }

    /// Why this accelerator was chosen, in one line for people.
    #[must_use]
    pub fn accelerator_reason(&self) -> &str {
        &self.accelerator_reason
    }

    /// The program in use.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.driver.binary
    }

    /// Boots a guest that powers off at once, with the given accelerator whatever was chosen, and
    /// says how long that took. Nothing is left running.
    ///
    /// # Errors
    /// Whatever kept the guest from powering off by the probe's deadline.
    pub async fn probe(
        &self,
        accelerator: Accelerator,
        probe: &Probe,
    ) -> Result<Duration, VmmError> {
        let mut trial = self.driver.like_this();
        if let KvmOutlook::Possible { group } = kvm_outlook(probe.sandbox.uid) {
            trial.kvm_group = group;
        }
        accelerator::probe(trial, accelerator, probe).await
    }

    /// Stops watching all VMs and returns when every task has ended. The VMs keep running; their
    /// handles report [`crate::Exit::Unknown`].
    pub async fn close(&self) {
        self.driver.close().await;
    }
}

#[async_trait]
impl Vmm for QemuVmm {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn boot(
        &self,
        spec: &BootSpec,
        committed: &mut Commit<'_>,
    ) -> Result<Arc<dyn Vm>, VmmError> {
        let shared = self.driver.boot(self.driver.accelerator, spec, committed).await?;
        Ok(Arc::new(QemuVm { shared, driver: self.driver.clone() }))
    }

    fn fingerprint(&self, machine: &BootSpec) -> String {
        self.driver.fingerprint(machine, self.driver.accelerator)
    }

    async fn park(
        &self,
        spec: &RestoreSpec,
        committed: &mut Commit<'_>,
    ) -> Result<Arc<dyn Vm>, VmmError> {
        let needed = match &spec.memory {
            RestoredMemory::InState | RestoredMemory::InStateToFile => Capability::Restore,
            RestoredMemory::CloneOf { .. } => Capability::CloneMemory,
        };
        if !self.capabilities.supported.contains(&needed) {
            return Err(VmmError::Unsupported(needed));
        }
        let shared = self.driver.park(spec, committed).await?;
        Ok(Arc::new(QemuVm { shared, driver: self.driver.clone() }))
    }

    async fn adopt(&self, record: &VmmRecord) -> Result<Arc<dyn Vm>, VmmError> {
        let shared = self.driver.adopt(record).await?;
        Ok(Arc::new(QemuVm { shared, driver: self.driver.clone() }))
    }
}

struct Choice {
    accelerator: Accelerator,
    kvm_group: Option<u32>,
}

async fn choose(
    binary: &Path,
    tsc_khz: u64,
    boot_id: &str,
    wish: AcceleratorChoice,
) -> (Choice, String) {
    let tcg = Choice { accelerator: Accelerator::Tcg, kvm_group: None };
    match wish {
        AcceleratorChoice::Tcg => (tcg, "emulation, as configured".into()),
        AcceleratorChoice::Kvm => {
            // Any user but root: which one is only known at each boot.
            let kvm_group = match kvm_outlook(Some(u32::MAX)) {
                KvmOutlook::Possible { group } => group,
                KvmOutlook::Impossible(_) => None,
            };
            (Choice { accelerator: Accelerator::Kvm, kvm_group }, "KVM, as configured".into())
        }
        AcceleratorChoice::Auto(probe) => {
            let kvm_group = match kvm_outlook(probe.sandbox.uid) {
                KvmOutlook::Possible { group } => group,
                KvmOutlook::Impossible(reason) => {
                    return (tcg, format!("emulation: {reason}"));
                }
            };
            let mut trial = Driver::new(binary.to_owned(), tsc_khz, boot_id.to_owned());
            trial.kvm_group = kvm_group;
            match accelerator::probe(trial, Accelerator::Kvm, &probe).await {
                Ok(took) => {
                    let reason = format!("KVM: a guest booted and powered off in {took:.1?}");
                    (Choice { accelerator: Accelerator::Kvm, kvm_group }, reason)
                }
                Err(error) => (tcg, format!("emulation: no guest runs under KVM ({error})")),
            }
        }
    }
}

fn find_program() -> Result<PathBuf, VmmError> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(USUAL_DIRS.map(PathBuf::from))
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(PROGRAM))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| VmmError::NotUsable(format!("{PROGRAM} is not installed")))
}

/// The version as the program prints it, without its name.
async fn version_of(binary: &Path) -> Result<Version, VmmError> {
    let unusable = |reason: String| VmmError::NotUsable(format!("{}: {reason}", binary.display()));
    let output = tokio::process::Command::new(binary)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(VERSION_DEADLINE, output)
        .await
        .map_err(|_| VmmError::Timeout("asking QEMU for its version"))?
        .map_err(|error| unusable(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = parse_version(&text).ok_or_else(|| unusable("prints no version".into()))?;
    if version.number < OLDEST_VERSION {
        let (major, minor) = OLDEST_VERSION;
        return Err(unusable(format!("version {} is older than {major}.{minor}", version.text)));
    }
    Ok(version)
}

#[derive(Debug, PartialEq, Eq)]
struct Version {
    number: (u32, u32),
    text: String,
}

fn parse_version(text: &str) -> Option<Version> {
    let text = text.lines().next()?.strip_prefix("QEMU emulator version ")?.trim();
    let mut parts = text.split(['.', ' ']);
    let number = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(Version { number, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distributions_version_line_is_understood() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright\n";
        let version = parse_version(text).unwrap();
        assert_eq!(version.number, (7, 2));
        assert_eq!(version.text, "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)");
    }

    #[tokio::test]
    async fn a_program_that_is_not_qemu_is_not_usable() {
        let error = version_of(Path::new("/bin/true")).await.unwrap_err();
        assert!(matches!(&error, VmmError::NotUsable(reason) if reason.contains("/bin/true")));
    }
}
