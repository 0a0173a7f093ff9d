//! Chooses how guest instructions are executed, by executing some.
//!
//! `/dev/kvm` exists on hosts where no guest ever runs (nested virtualisation switched off half-way,
//! containers with other rules than their host). So the proof is a guest that boots and powers off.

use std::{
    fs::{self, OpenOptions},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::libc;
use skerry_model::{MemMib, VcpuCount, spec::CpuKind};

use super::driver::Driver;
use crate::{Accelerator, BootSpec, Cable, CpuModel, Exit, Sandbox, VmmError};

/// The device of the host's kernel that runs guests.
const KVM_DEVICE: &str = "/dev/kvm";

/// The only version of the interface there ever was since 2007 (kernel `Documentation/virt/kvm/api.rst`).
const KVM_API_VERSION: i32 = 12;

/// The word that makes the agent power off as soon as it runs.
const PROBE_WORD: &str = "skerry.probe";

/// Enough for the kernel and the agent.
const PROBE_MEMORY_MIB: u32 = 256;

const PROBE_CONSOLE_LIMIT_BYTES: u64 = 64 * 1024;

/// Which accelerator the operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceleratorChoice {
    /// KVM if a guest proves to run under it, emulation otherwise.
    Auto(Probe),
    /// KVM without proof.
    Kvm,
    /// Emulation.
    Tcg,
}

/// How to prove that an accelerator works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The kernel of ordinary guests.
    pub kernel: PathBuf,
    /// Their initial file system; its agent powers off at once on the word `skerry.probe`.
    pub initramfs: PathBuf,
    /// An existing directory for the probe's files, used by nobody else; at most 80 bytes long.
    pub scratch_dir: PathBuf,
    /// The rights of ordinary guests: a probe with others would prove nothing.
    pub sandbox: Sandbox,
    /// By when the guest must have powered off. A guest under KVM needs less than a second.
    pub deadline: Duration,
}

/// What a cheap look at the host says about KVM.
pub(super) enum KvmOutlook {
    /// Worth a probe. The group is the one whose members may open the device, if it needs one.
    Possible { group: Option<u32> },
    /// It cannot work, and why.
    Impossible(String),
}

/// Looks at the device without running anything.
pub(super) fn kvm_outlook(uid: Option<u32>) -> KvmOutlook {
    let path = Path::new(KVM_DEVICE);
    let device = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(device) => device,
        Err(error) => return KvmOutlook::Impossible(format!("{KVM_DEVICE}: {error}")),
    };
    // SAFETY: this request takes no argument and touches no memory of ours (kvm/api.rst).
    let version =
        unsafe { libc::ioctl(device.as_raw_fd(), nix::request_code_none!(0xAE, 0) as _, 0) };
    if version != KVM_API_VERSION {
        return KvmOutlook::Impossible(format!("{KVM_DEVICE} speaks interface version {version}"));
    }
    let Some(uid) = uid else { return KvmOutlook::Possible { group: None } };
    match fs::metadata(path) {
        Ok(meta) => {
            let mode = meta.permissions().mode();
            if mode & 0o006 == 0o006 || (meta.uid() == uid && mode & 0o600 == 0o600) {
                KvmOutlook::Possible { group: None }
            } else if mode & 0o060 == 0o060 && meta.gid() != 0 {
                KvmOutlook::Possible { group: Some(meta.gid()) }
            } else {
                KvmOutlook::Impossible(format!(
                    "{KVM_DEVICE} (mode {:03o}, {}:{}) is closed to the VM's unprivileged user",
                    mode & 0o777,
                    meta.uid(),
                    meta.gid(),
                ))
            }
        }
        Err(error) => KvmOutlook::Impossible(format!("{KVM_DEVICE}: {error}")),
    }
}

/// Boots a guest that powers off, and says how long that took. The driver is used for nothing else,
/// so that waiting for all its tasks waits for the guest's process alone. Leaves nothing behind.
pub(super) async fn probe(
    driver: Driver,
    accelerator: Accelerator,
    probe: &Probe,
) -> Result<Duration, VmmError> {
    let spec = BootSpec {
        label: "probe".into(),
        run_dir: probe.scratch_dir.clone(),
        kernel: probe.kernel.clone(),
        initramfs: probe.initramfs.clone(),
        memory_file: None,
        memory_mib: MemMib(PROBE_MEMORY_MIB),
        vcpu_count: VcpuCount(1),
        cpu_kind: CpuKind::Shared,
        cpu_model: CpuModel::Default,
        disk: None,
        mac: [0x52, 0x54, 0, 0, 0, 1],
        cable: Cable::Loose,
        console_log: probe.scratch_dir.join("probe-console.log"),
        console_limit_bytes: PROBE_CONSOLE_LIMIT_BYTES,
        kernel_args: vec![PROBE_WORD.into()],
        sandbox: probe.sandbox.clone(),
    };
    let driver = Arc::new(driver);
    let began = Instant::now();
    // No record: a probe that loses its parent in mid-boot powers off by itself.
    let outcome = tokio::time::timeout(probe.deadline, async {
        let vm = driver.boot(accelerator, &spec, &mut |_| Ok(())).await?;
        let guard = super::process::KillOnDrop::new(vm.process.clone());
        let exit = vm.wait_exit().await;
        guard.let_live();
        Ok::<_, VmmError>(exit)
    })
    .await;
    let took = began.elapsed();
    // Past the deadline the process was killed; wait until it is gone.
    driver.settle().await;
    remove_traces(&spec);
    match outcome {
        Ok(Ok(Exit::PoweredOff)) => Ok(took),
        Ok(Ok(exit)) => Err(VmmError::EndedEarly(format!("{exit:?}"))),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(VmmError::Timeout("powering off a probe guest")),
    }
}

fn remove_traces(spec: &BootSpec) {
    let sockets = super::files::Sockets::in_dir(&spec.run_dir);
    let vmm_log = spec.run_dir.join(super::driver::VMM_LOG);
    let others = [&spec.console_log, &vmm_log].map(PathBuf::as_path);
    for path in sockets.all().into_iter().chain(others) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a probe's file stays behind");
            }
            Ok(()) | Err(_) => {}
        }
    }
}
