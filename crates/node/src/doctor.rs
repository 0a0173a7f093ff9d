//! What this host can do, and what to do about what it cannot.

use std::path::{Path, PathBuf};

use skerry_internal_api::{DoctorCheck, DoctorLevel};
use skerry_vmm::{Accelerator, Vmm};

use crate::{
    capacity::{disk_free_mib, host_memory_mib},
    cgroups::Flavour,
    host::Host,
};

/// Below this a few workspaces fill the disk.
const COMFORTABLE_DISK_MIB: u64 = 10 * 1024;

/// `kvm` or `tcg` (`none` for a driver without a real guest).
pub(crate) fn accelerator(vmm: &dyn Vmm) -> &'static str {
    match vmm.capabilities().accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
        Accelerator::None => "none",
    }
}

/// Every check, in the order in which a person would look. Blocks.
pub(crate) fn checks(host: &Host) -> Vec<DoctorCheck> {
    vec![
        hypervisor(host),
        acceleration(&*host.vmm, Path::new("/dev/kvm").exists()),
        images(host),
        boot_files(host),
        qemu_img(),
        uid_separation(host),
        cgroups(host),
        memory(host),
        disk(host),
    ]
}

fn check(
    name: &str,
    level: DoctorLevel,
    found: impl Into<String>,
    remedy: Option<&str>,
) -> DoctorCheck {
    DoctorCheck {
        name: name.to_owned(),
        level,
        found: found.into(),
        remedy: remedy.map(str::to_owned),
    }
}

fn hypervisor(host: &Host) -> DoctorCheck {
    let version = &host.vmm.capabilities().version;
    check("hypervisor", DoctorLevel::Ok, version.clone(), None)
}

fn acceleration(vmm: &dyn Vmm, kvm_device: bool) -> DoctorCheck {
    let name = "acceleration";
    match (vmm.capabilities().accelerator, kvm_device) {
        (Accelerator::Kvm, _) => check(name, DoctorLevel::Ok, "a guest ran under KVM", None),
        (Accelerator::None, _) => check(name, DoctorLevel::Ok, "no real guests", None),
        (Accelerator::Tcg, true) => check(
            name,
            DoctorLevel::Degraded,
            "/dev/kvm exists but no guest ran under it; guests are emulated, 10 to 30 times slower",
            Some(
                "on a virtual machine, enable nested virtualisation; see that the server may open /dev/kvm (group kvm)",
            ),
        ),
        (Accelerator::Tcg, false) => check(
            name,
            DoctorLevel::Degraded,
            "no /dev/kvm; guests are emulated, 10 to 30 times slower",
            Some("enable virtualisation in the firmware, or give the container /dev/kvm"),
        ),
    }
}

fn images(host: &Host) -> DoctorCheck {
    let mut names: Vec<String> =
        host.images.list().iter().map(|image| image.manifest.name.to_string()).collect();
    names.dedup();
    if names.is_empty() {
        let found = format!("none in {}", host.images.directory().display());
        return check("images", DoctorLevel::Missing, found, Some("make setup"));
    }
    check("images", DoctorLevel::Ok, names.join(", "), None)
}

fn boot_files(host: &Host) -> DoctorCheck {
    match host.images.boot_files() {
        Ok(boot) => {
            let found = format!("kernel {}", boot.manifest.kernel_release);
            check("boot files", DoctorLevel::Ok, found, None)
        }
        Err(error) => {
            check("boot files", DoctorLevel::Missing, error.to_string(), Some("make setup"))
        }
    }
}

fn qemu_img() -> DoctorCheck {
    // The directories in which disks' `qemu-img` is looked for.
    let found = ["/usr/local/bin", "/usr/bin", "/bin"]
        .iter()
        .map(|dir| PathBuf::from(dir).join("qemu-img"))
        .find(|path| path.exists());
    match found {
        Some(path) => check("qemu-img", DoctorLevel::Ok, path.display().to_string(), None),
        None => check(
            "qemu-img",
            DoctorLevel::Missing,
            "not found",
            Some("install the Debian package qemu-utils"),
        ),
    }
}

fn uid_separation(host: &Host) -> DoctorCheck {
    let name = "uid of its own for each VM";
    let range = host.config.uids;
    match &host.uids {
        Ok(_) => {
            let found = format!("{} from {}", range.count, range.first);
            check(name, DoctorLevel::Ok, found, None)
        }
        Err(reason) => check(
            name,
            DoctorLevel::Degraded,
            format!("{reason}: every VM runs as the server's own user"),
            Some("run the server as root"),
        ),
    }
}

fn cgroups(host: &Host) -> DoctorCheck {
    let name = "cgroups";
    match host.cgroups.flavour() {
        Flavour::V2 => check(name, DoctorLevel::Ok, "version 2", None),
        Flavour::V1 => check(name, DoctorLevel::Ok, "version 1", None),
        Flavour::None => {
            let reason = host.cgroups.reason().unwrap_or("none");
            check(
                name,
                DoctorLevel::Degraded,
                format!("{reason}; VMs are limited by resource limits only"),
                Some("run the server as root, or as a systemd unit with Delegate=yes"),
            )
        }
    }
}

fn memory(host: &Host) -> DoctorCheck {
    let limit_mib = host.memory.limit_mib();
    let dir = host.layout.memory_dir.display();
    let found = format!("{limit_mib} of {} MiB for guests, in {dir}", host_memory_mib());
    let on_disk = host.layout.memory_dir.starts_with(&host.layout.data_dir);
    if limit_mib < 512 {
        check("memory", DoctorLevel::Missing, found, Some("a guest needs about 256 MiB"))
    } else if on_disk {
        let remedy = "a tmpfs of at least half the memory at /dev/shm (docker: --shm-size) makes guests faster";
        check("memory", DoctorLevel::Degraded, found, Some(remedy))
    } else {
        check("memory", DoctorLevel::Ok, found, None)
    }
}

fn disk(host: &Host) -> DoctorCheck {
    let free_mib = disk_free_mib(&host.layout.data_dir);
    let found = format!("{free_mib} MiB free in {}", host.layout.data_dir.display());
    let remedy = "free some space, or choose another --data-dir";
    if free_mib < host.config.min_disk_free_mib {
        check("disk space", DoctorLevel::Missing, found, Some(remedy))
    } else if free_mib < COMFORTABLE_DISK_MIB {
        check("disk space", DoctorLevel::Degraded, found, Some(remedy))
    } else {
        check("disk space", DoctorLevel::Ok, found, None)
    }
}
