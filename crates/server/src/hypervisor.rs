//! Opens the hypervisor and remembers which accelerator was proven to work on this host.

use std::{fs, os::unix::fs::DirBuilderExt, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use skerry_node::images::{BootFiles, ImageStore};
use skerry_vmm::{
    Accelerator, Sandbox, Vmm,
    qemu::{AcceleratorChoice as Choice, Probe, QemuConfig, QemuVmm},
};

use crate::config::{AcceleratorChoice, Config};

/// A guest under KVM powers off well within a second; a host on which it does not is not worth more.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// What was found the last time, so that a restart need not boot a guest to learn it again. A new
/// kernel of the host, a reboot, or new boot files make it worthless.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Proven {
    host_boot_id: String,
    guest_kernel: String,
    accelerator: Accelerator,
}

/// Opens QEMU with the configured accelerator; `auto` is decided by booting a guest once per boot of
/// the host.
///
/// # Errors
/// QEMU or the boot files are missing; the message says what to do.
pub async fn open(config: &Config) -> Result<Arc<dyn Vmm>> {
    let boot = boot_files(config)?;
    let remembered = config.data_dir.join("accelerator.json");
    let question = Proven {
        host_boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("reading the host's boot id")?
            .trim()
            .to_owned(),
        guest_kernel: boot.manifest.kernel.digest.to_string(),
        accelerator: Accelerator::None,
    };
    let answer = read_proven(&remembered, &question);
    let choice = match (config.accelerator, answer) {
        (AcceleratorChoice::Tcg, _) | (AcceleratorChoice::Auto, Some(Accelerator::Tcg)) => {
            Choice::Tcg
        }
        (AcceleratorChoice::Kvm, _) | (AcceleratorChoice::Auto, Some(Accelerator::Kvm)) => {
            Choice::Kvm
        }
        (AcceleratorChoice::Auto, Some(Accelerator::None) | None) => {
            Choice::Auto(probe(config, boot)?)
        }
    };
    let scratch_dir = match &choice {
        Choice::Auto(probe) => Some(probe.scratch_dir.clone()),
        Choice::Kvm | Choice::Tcg => None,
    };
    let opened = QemuVmm::open(QemuConfig { binary: None, accelerator: choice }).await;
    if let Some(dir) = &scratch_dir {
        // The driver has emptied it.
        let _ = fs::remove_dir(dir);
    }
    let vmm = opened.context("opening the hypervisor (Debian: install qemu-system-x86)")?;
    let accelerator = vmm.capabilities().accelerator;
    tracing::info!(?accelerator, reason = vmm.accelerator_reason(), "hypervisor opened");
    if scratch_dir.is_some() {
        // Losing this file only costs the next start a probe.
        let proven = Proven { accelerator, ..question };
        let written = serde_json::to_vec(&proven)
            .map_err(std::io::Error::other)
            .and_then(|json| fs::write(&remembered, json));
        if let Err(error) = written {
            tracing::warn!(%error, "the accelerator is not remembered");
        }
    }
    Ok(Arc::new(vmm))
}

/// The kernel and initial file system every guest starts with.
///
/// # Errors
/// They are not there.
pub fn boot_files(config: &Config) -> Result<BootFiles> {
    let store = ImageStore::open(&config.image_dir)
        .with_context(|| format!("opening the images in {}", config.image_dir.display()))?;
    store.boot_files().with_context(|| {
        format!(
            "{} has no boot files: run `skerry image build` (or `make setup` in the source tree)",
            config.image_dir.display()
        )
    })
}

fn read_proven(path: &Path, question: &Proven) -> Option<Accelerator> {
    let text = fs::read(path).ok()?;
    let proven: Proven = serde_json::from_slice(&text).ok()?;
    let same = proven.host_boot_id == question.host_boot_id
        && proven.guest_kernel == question.guest_kernel;
    same.then_some(proven.accelerator)
}

fn probe(config: &Config, boot: BootFiles) -> Result<Probe> {
    // Below the temporary directory, because a socket's path must be short.
    let scratch_dir = std::env::temp_dir().join(format!("skerry-probe-{}", std::process::id()));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&scratch_dir)
        .with_context(|| format!("making {}", scratch_dir.display()))?;
    let uid = nix::unistd::geteuid().is_root().then_some(config.uid_base);
    Ok(Probe {
        kernel: boot.kernel,
        initramfs: boot.initramfs,
        scratch_dir,
        sandbox: Sandbox { uid, ..Sandbox::default() },
        deadline: PROBE_DEADLINE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proven(host_boot_id: &str) -> Proven {
        Proven {
            host_boot_id: host_boot_id.to_owned(),
            guest_kernel: "sha256:00".to_owned(),
            accelerator: Accelerator::Tcg,
        }
    }

    #[test]
    fn what_was_proven_before_a_reboot_of_the_host_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accelerator.json");
        fs::write(&path, serde_json::to_vec(&proven("one")).unwrap()).unwrap();
        assert_eq!(read_proven(&path, &proven("one")), Some(Accelerator::Tcg));
        assert_eq!(read_proven(&path, &proven("two")), None);
    }

    #[test]
    fn a_damaged_memory_of_the_accelerator_is_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accelerator.json");
        fs::write(&path, "{").unwrap();
        assert_eq!(read_proven(&path, &proven("one")), None);
    }
}
