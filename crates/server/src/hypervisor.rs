//! Opens the hypervisor and remembers which accelerator was proven to work on this host.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};
use skerry_node::images::{BootFiles, ImageStore};
use skerry_vmm::{
    Accelerator, Sandbox, Vmm,
    qemu::{AcceleratorChoice as Choice, Probe, QemuConfig, QemuVmm},
};

use tempfile::TempDir;

use crate::config::{AcceleratorChoice, Config};

/// A guest under KVM powers off well within a second; a host on which it does not is not worth more.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// What was found the last time, so that a restart need not boot a guest to learn it again. A new
/// kernel of the host, a reboot, or new boot files make it worthless.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Proven {
    host_boot_id: String,
    guest_kernel: String,
    /// Rights on `/dev/kvm`: whoever gives us access wants to see the difference at the next start.
    kvm_device: String,
    accelerator: Accelerator,
}

/// Opens QEMU with the configured accelerator; `auto` is decided by booting a guest once per boot of
/// the host.
///
/// # Errors
/// QEMU or the boot files are missing; the message says what to do.
pub async fn open(config: &Config) -> Result<Arc<dyn Vmm>> {
    let boot = boot_files(config)?;
    tracing::info!(
        kernel = boot.kernel_variant.name(),
        release = boot.kernel_release,
        digest = %boot.digest(),
        "guests boot with"
    );
    let remembered = config.data_dir.join("accelerator.json");
    let question = Proven {
        host_boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("reading the host's boot id")?
            .trim()
            .to_owned(),
        guest_kernel: boot.kernel_digest.to_string(),
        kvm_device: kvm_device(Path::new("/dev/kvm")),
        accelerator: Accelerator::None,
    };
    let answer = read_proven(&remembered, &question);
    let (choice, scratch) = match (config.accelerator, answer) {
        (AcceleratorChoice::Tcg, _) | (AcceleratorChoice::Auto, Some(Accelerator::Tcg)) => {
            (Choice::Tcg, None)
        }
        (AcceleratorChoice::Kvm, _) | (AcceleratorChoice::Auto, Some(Accelerator::Kvm)) => {
            (Choice::Kvm, None)
        }
        (AcceleratorChoice::Auto, Some(Accelerator::None) | None) => {
            let scratch = scratch_dir()?;
            (Choice::Auto(probe(config, boot, scratch.path())), Some(scratch))
        }
    };
    let is_new = scratch.is_some();
    let opened = QemuVmm::open(QemuConfig { binary: None, accelerator: choice }).await;
    // With whatever the driver has left in it.
    drop(scratch);
    let vmm = opened.context("opening the hypervisor (Debian: install qemu-system-x86)")?;
    let accelerator = vmm.capabilities().accelerator;
    tracing::info!(?accelerator, reason = vmm.accelerator_reason(), "hypervisor opened");
    if is_new {
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
    let dir = config.image_dir.display();
    let remedy = "run `skerry image build` (or `make setup` in the source tree)";
    // Looking must not make it.
    if !config.image_dir.is_dir() {
        bail!("there is no image directory {dir}: {remedy}, or say where it is with --image-dir");
    }
    let store = ImageStore::open(&config.image_dir)
        .with_context(|| format!("opening the images in {dir}"))?
        .with_kernel_choice(config.kernel);
    let remedy = match store.boot_artefacts() {
        Ok(_) => "run `skerry kernel build`, or take another --kernel",
        Err(_) => remedy,
    };
    store.boot_files().with_context(|| format!("{dir} has no boot files: {remedy}"))
}

/// Who may open the device, and whether we may; only to be compared.
fn kvm_device(path: &Path) -> String {
    let Ok(device) = fs::metadata(path) else { return "absent".to_owned() };
    let ours = access(path, AccessFlags::R_OK | AccessFlags::W_OK).is_ok();
    format!("mode {:o}, {}:{}, open to us: {ours}", device.mode(), device.uid(), device.gid())
}

fn read_proven(path: &Path, question: &Proven) -> Option<Accelerator> {
    let text = fs::read(path).ok()?;
    let proven: Proven = serde_json::from_slice(&text).ok()?;
    let same = proven.host_boot_id == question.host_boot_id
        && proven.guest_kernel == question.guest_kernel
        && proven.kvm_device == question.kvm_device;
    same.then_some(proven.accelerator)
}

/// A directory nobody else can enter or have made before us. Below the temporary directory, because a
/// socket's path must be short; anybody may write there, so its name cannot be foretold.
fn scratch_dir() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("skerry-probe-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
        .context("making a directory for the probe")
}

fn probe(config: &Config, boot: BootFiles, scratch_dir: &Path) -> Probe {
    // The last of the range: a VM of an earlier life that still runs has one of the first.
    let uid = config.uid_base.saturating_add(config.uid_count - 1);
    let uid = nix::unistd::geteuid().is_root().then_some(uid);
    Probe {
        kernel: boot.kernel,
        initramfs: boot.initramfs,
        scratch_dir: scratch_dir.to_owned(),
        sandbox: Sandbox { uid, ..Sandbox::default() },
        deadline: PROBE_DEADLINE,
    }
}

#[cfg(test)]
mod tests {
    use skerry_model::spec::ImageDigest;
    use skerry_node::images::{BootManifest, KernelVariant, SealedFile};

    use super::*;
    use crate::config::{KernelSetting, Settings};

    fn proven(host_boot_id: &str) -> Proven {
        Proven {
            host_boot_id: host_boot_id.to_owned(),
            guest_kernel: "sha256:00".to_owned(),
            kvm_device: "absent".to_owned(),
            accelerator: Accelerator::Tcg,
        }
    }

    #[test]
    fn the_probe_has_a_fresh_directory_of_its_own_that_goes_with_it() {
        let (one, two) = (scratch_dir().unwrap(), scratch_dir().unwrap());
        assert_ne!(one.path(), two.path());
        let mode = fs::metadata(one.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let path = one.path().to_owned();
        fs::write(path.join("left"), "x").unwrap();
        drop(one);
        assert!(!path.exists());
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
    fn what_was_proven_without_access_to_kvm_does_not_count_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, device) = (dir.path().join("accelerator.json"), dir.path().join("kvm"));
        let before = Proven { kvm_device: kvm_device(&device), ..proven("one") };
        fs::write(&path, serde_json::to_vec(&before).unwrap()).unwrap();
        assert_eq!(read_proven(&path, &before), Some(Accelerator::Tcg));
        fs::write(&device, "").unwrap();
        fs::set_permissions(&device, fs::Permissions::from_mode(0o600)).unwrap();
        let closed = kvm_device(&device);
        assert_eq!(read_proven(&path, &Proven { kvm_device: closed.clone(), ..before }), None);
        fs::set_permissions(&device, fs::Permissions::from_mode(0o666)).unwrap();
        assert_ne!(kvm_device(&device), closed);
    }

    #[test]
    fn a_damaged_memory_of_the_accelerator_is_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accelerator.json");
        fs::write(&path, "{").unwrap();
        assert_eq!(read_proven(&path, &proven("one")), None);
    }

    #[test]
    fn looking_for_boot_files_makes_no_directory_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { data_dir: Some(dir.path().join("data")), ..Settings::default() };
        let config = settings.resolve().unwrap();
        let error = boot_files(&config).unwrap_err().to_string();
        assert!(error.contains("data/images") && error.contains("make setup"), "{error}");
        assert!(!dir.path().join("data").exists());
    }
    #[test]
    fn a_small_kernel_that_was_asked_for_and_is_not_there_is_told_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let boot = dir.path().join("images/boot");
        fs::create_dir_all(&boot).unwrap();
        let sealed = |name: &str| {
            fs::write(boot.join(name), name).unwrap();
            let metadata = fs::metadata(boot.join(name)).unwrap();
            SealedFile {
                digest: ImageDigest(format!("sha256:{}", "0".repeat(64))),
                length_bytes: metadata.len(),
                modified_ns: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
            }
        };
        let kernel = sealed("vmlinux");
        let manifest = BootManifest {
            format: 1,
            kernel_release: "6.1".to_owned(),
            kernel_source: "a package".to_owned(),
            agent_digest: kernel.digest.clone(),
            kernel,
            initramfs: sealed("initramfs.cpio"),
            modules: Vec::new(),
            built_at: skerry_model::Timestamp::UNIX_EPOCH,
        };
        let json = serde_json::to_vec(&manifest).unwrap();
        fs::write(boot.join("boot.json"), json).unwrap();
        let with_kernel = |kernel| {
            let data_dir = Some(dir.path().to_owned());
            let settings = Settings { data_dir, kernel: Some(kernel), ..Settings::default() };
            boot_files(&settings.resolve().unwrap())
        };
        let error = format!("{:#}", with_kernel(KernelSetting::Small).unwrap_err());
        assert!(
            error.contains("skerry kernel build") && error.contains("not been built"),
            "{error}"
        );
        let boot = with_kernel(KernelSetting::Auto).unwrap();
        assert_eq!(boot.kernel_variant, KernelVariant::Distribution);
    }
}
