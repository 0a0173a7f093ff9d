//! What this host can do, and what to do about what it cannot.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use skerry_internal_api::{DoctorCheck, DoctorLevel, NodeDoctor, StartStatistics};
use skerry_vmm::{Accelerator, Vmm};

use crate::{
    NodeConfig,
    capacity::{disk_free_mib, guest_memory_limit_mib, host_memory_mib},
    cgroups::{Cgroups, Flavour},
    config::NetworkChoice,
    error::blocking,
    host::Host,
    images::{ImageStore, KernelChoice},
    layout::planned_memory_dir,
    network::Network,
    templates::{self, Templates},
    uids::UidPool,
};

/// Below this a few workspaces fill the disk.
const COMFORTABLE_DISK_MIB: u64 = 10 * 1024;

/// How images and boot files come about.
const BUILD: &str = "make setup, or `skerry image build`";

/// How the small kernel comes about.
const BUILD_KERNEL: &str = "make kernel, or `skerry kernel build`";

/// What the checks look at.
struct Subject<'a> {
    config: &'a NodeConfig,
    /// `Err` says why there is no hypervisor.
    vmm: Result<&'a dyn Vmm, &'a str>,
    images: Option<&'a ImageStore>,
    cgroups: &'a Cgroups,
    /// `Err` says why VMs do not get uids of their own.
    uids: Result<(), &'a str>,
    data_dir: &'a Path,
    memory_dir: &'a Path,
    guest_memory_mib: u64,
    /// Why VMs cannot have a network, where they cannot.
    no_network: Option<String>,
    /// Why no machine can be cloned, where none can.
    templates_off: Option<&'static str>,
    ready: Ready,
}

/// What is ready for the next start; nothing on a host where no node runs.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    templates: u64,
    template_bytes: u64,
    warm: u64,
    parked: u64,
    /// Places on the network that wait, and addresses in use.
    places: usize,
    addresses: usize,
}

/// Looks at this host without a running node: nothing is locked, and nothing is left behind. `Err`
/// in `vmm` says why no hypervisor could be opened.
pub async fn doctor(config: NodeConfig, vmm: Result<Arc<dyn Vmm>, String>) -> NodeDoctor {
    let look = move || {
        let images =
            config.image_dir.is_dir().then(|| ImageStore::open(&config.image_dir).ok()).flatten();
        let images = images.map(|images| images.with_kernel_choice(config.kernel));
        let cgroups = Cgroups::open(config.cgroups, &format!("doctor-{}", std::process::id()));
        let uids = UidPool::available(config.uids);
        let data_dir = nearest_existing(&config.data_dir);
        let memory_dir =
            config.memory_dir.clone().unwrap_or_else(|| planned_memory_dir(&config.data_dir));
        let subject = Subject {
            config: &config,
            vmm: vmm.as_deref().map_err(String::as_str),
            images: images.as_ref(),
            cgroups: &cgroups,
            uids: uids.as_ref().copied().map_err(String::as_str),
            data_dir: &data_dir,
            memory_dir: &memory_dir,
            guest_memory_mib: guest_memory_limit_mib(&config, &nearest_existing(&memory_dir)),
            no_network: Network::unavailable(),
            templates_off: match &vmm {
                Ok(vmm) => Templates::new(config.template_budget_mib, &**vmm).off(),
                Err(_) => Some("there is no hypervisor"),
            },
            ready: Ready::default(),
        };
        let doctor = examine(&subject);
        cgroups.leave();
        Ok(doctor)
    };
    blocking(look).await.unwrap_or_else(|_| nothing_found())
}

/// Looks at the host of a running node. Blocks.
pub(crate) fn examine_host(host: &Host) -> NodeDoctor {
    examine(&Subject {
        config: &host.config,
        vmm: Ok(&*host.vmm),
        images: Some(&host.images),
        cgroups: &host.cgroups,
        uids: host.uids.as_ref().map(|_| ()).map_err(String::as_str),
        data_dir: &host.layout.data_dir,
        memory_dir: &host.layout.memory_dir,
        guest_memory_mib: host.memory.limit_mib(),
        no_network: Network::unavailable(),
        templates_off: host.templates.off(),
        ready: ready(host),
    })
}

fn ready(host: &Host) -> Ready {
    let mut statistics = StartStatistics::default();
    host.pool.count(&mut statistics);
    Ready {
        templates: host.templates.all().len() as u64,
        template_bytes: templates::allocated_bytes(host),
        warm: statistics.pool_warm,
        parked: statistics.pool_parked,
        places: host.network.as_ref().map_or(0, |network| network.ready()),
        addresses: host.network.as_ref().map_or(0, |network| network.addresses_in_use()),
    }
}

/// The answer when the runtime goes down under the question.
pub(crate) fn nothing_found() -> NodeDoctor {
    NodeDoctor { accelerator: "none".to_owned(), checks: Vec::new() }
}

/// Every check, in the order in which a person would look.
fn examine(subject: &Subject<'_>) -> NodeDoctor {
    let accelerator = match subject.vmm.map(|vmm| vmm.capabilities().accelerator) {
        Ok(Accelerator::Kvm) => "kvm",
        Ok(Accelerator::Tcg) => "tcg",
        Ok(Accelerator::None) | Err(_) => "none",
    };
    let checks = vec![
        hypervisor(subject),
        acceleration(subject, Path::new("/dev/kvm").exists()),
        images(subject),
        boot_files(subject),
        uid_separation(subject),
        cgroups(subject),
        memory(subject),
        disk(subject),
        templates(subject),
        pool(subject),
        network(subject),
    ];
    NodeDoctor { accelerator: accelerator.to_owned(), checks }
}

fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
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

fn hypervisor(subject: &Subject<'_>) -> DoctorCheck {
    let name = "hypervisor";
    match subject.vmm {
        Ok(vmm) => check(name, DoctorLevel::Ok, vmm.capabilities().version.clone(), None),
        Err(reason) => {
            // Which accelerator works is found by booting a guest, so that this comes first.
            let bootable = matches!(subject.images.map(ImageStore::boot_files), Some(Ok(_)));
            let remedy = match bootable {
                true => "install the Debian package qemu-system-x86",
                false => "make setup, or `skerry image build`; then ask again",
            };
            check(name, DoctorLevel::Missing, reason, Some(remedy))
        }
    }
}

fn acceleration(subject: &Subject<'_>, kvm_device: bool) -> DoctorCheck {
    let name = "acceleration";
    let Ok(vmm) = subject.vmm else {
        let found = if kvm_device { "/dev/kvm exists; not tried" } else { "no /dev/kvm" };
        return check(name, DoctorLevel::Degraded, found, None);
    };
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

fn images(subject: &Subject<'_>) -> DoctorCheck {
    let stored = subject.images.map(ImageStore::list).unwrap_or_default();
    let mut names: Vec<String> =
        stored.iter().map(|image| image.manifest.name.to_string()).collect();
    names.dedup();
    if names.is_empty() {
        let found = format!("none in {}", subject.config.image_dir.display());
        return check("images", DoctorLevel::Missing, found, Some(BUILD));
    }
    check("images", DoctorLevel::Ok, names.join(", "), None)
}

fn boot_files(subject: &Subject<'_>) -> DoctorCheck {
    let name = "boot files";
    let missing =
        |found: String, remedy: &str| check(name, DoctorLevel::Missing, found, Some(remedy));
    let Some(images) = subject.images else {
        return missing("no image directory".to_owned(), BUILD);
    };
    let boot = match images.boot_files() {
        Ok(boot) => boot,
        Err(error) if images.boot_artefacts().is_ok() => {
            return missing(error.to_string(), BUILD_KERNEL);
        }
        Err(error) => return missing(error.to_string(), BUILD),
    };
    let kernel = format!("{} kernel {}", boot.kernel_variant.name(), boot.kernel_release);
    match images.small_kernel_if_built() {
        Err(error) if images.kernel_choice() == KernelChoice::Auto => {
            let found = format!("{kernel}; {error}");
            check(name, DoctorLevel::Degraded, found, Some(BUILD_KERNEL))
        }
        Ok(_) | Err(_) => check(name, DoctorLevel::Ok, kernel, None),
    }
}

fn uid_separation(subject: &Subject<'_>) -> DoctorCheck {
    let name = "uid of its own for each VM";
    let range = subject.config.uids;
    match subject.uids {
        Ok(()) => {
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

fn cgroups(subject: &Subject<'_>) -> DoctorCheck {
    let name = "cgroups";
    match subject.cgroups.flavour() {
        Flavour::V2 => check(name, DoctorLevel::Ok, "version 2", None),
        Flavour::V1 => check(name, DoctorLevel::Ok, "version 1", None),
        Flavour::None => {
            let reason = subject.cgroups.reason().unwrap_or("none");
            check(
                name,
                DoctorLevel::Degraded,
                format!("{reason}; VMs are limited by resource limits only"),
                Some("run the server as root, or as a systemd unit with Delegate=yes"),
            )
        }
    }
}

fn memory(subject: &Subject<'_>) -> DoctorCheck {
    let limit_mib = subject.guest_memory_mib;
    let dir = subject.memory_dir.display();
    let found = format!("{limit_mib} of {} MiB for guests, in {dir}", host_memory_mib());
    let on_disk = subject.memory_dir.starts_with(subject.data_dir);
    if limit_mib < 512 {
        check("memory", DoctorLevel::Missing, found, Some("a guest needs about 256 MiB"))
    } else if on_disk {
        let remedy = "a tmpfs of at least half the memory at /dev/shm (docker: --shm-size) makes guests faster";
        check("memory", DoctorLevel::Degraded, found, Some(remedy))
    } else {
        check("memory", DoctorLevel::Ok, found, None)
    }
}

fn disk(subject: &Subject<'_>) -> DoctorCheck {
    let free_mib = disk_free_mib(subject.data_dir);
    let found = format!("{free_mib} MiB free in {}", subject.data_dir.display());
    let remedy = "free some space, or choose another --data-dir";
    if free_mib < subject.config.min_disk_free_mib {
        check("disk space", DoctorLevel::Missing, found, Some(remedy))
    } else if free_mib < COMFORTABLE_DISK_MIB {
        check("disk space", DoctorLevel::Degraded, found, Some(remedy))
    } else {
        check("disk space", DoctorLevel::Ok, found, None)
    }
}

fn templates(subject: &Subject<'_>) -> DoctorCheck {
    let name = "templates";
    let (budget_mib, ready) = (subject.config.template_budget_mib, subject.ready);
    match subject.templates_off {
        None => {
            let used_mib = ready.template_bytes.div_ceil(1024 * 1024);
            let found = format!("{}, {used_mib} of {budget_mib} MiB", ready.templates);
            check(name, DoctorLevel::Ok, found, None)
        }
        // It is what was asked for.
        Some(reason) if budget_mib == 0 => check(name, DoctorLevel::Ok, reason, None),
        Some(reason) => {
            check(name, DoctorLevel::Degraded, format!("none, every start boots: {reason}"), None)
        }
    }
}

fn pool(subject: &Subject<'_>) -> DoctorCheck {
    let name = "pool";
    let (config, ready) = (subject.config, subject.ready);
    let off = config.pool_max_warm == 0 || config.pool_memory_mib == Some(0);
    if off {
        return check(name, DoctorLevel::Ok, "switched off", None);
    }
    if subject.templates_off.is_some() {
        return check(name, DoctorLevel::Ok, "none: there are no templates", None);
    }
    let found = format!(
        "{} VMs wait, {} parked, at most {}",
        ready.warm, ready.parked, config.pool_max_warm
    );
    check(name, DoctorLevel::Ok, found, None)
}

/// What is missing means: without a network a workspace reaches nobody and nobody reaches it; exec,
/// files and terminals have a line of their own.
fn network(subject: &Subject<'_>) -> DoctorCheck {
    let name = "network of workspaces";
    let (config, ready) = (subject.config, subject.ready);
    let remedy = "run the server as root with CAP_NET_ADMIN and CAP_SYS_ADMIN where there is /dev/net/tun, or with --network off";
    match (config.network, &subject.no_network) {
        // It is what was asked for.
        (NetworkChoice::Off, _) => {
            check(name, DoctorLevel::Ok, "switched off: workspaces reach nobody", None)
        }
        (NetworkChoice::On, Some(reason)) => {
            check(name, DoctorLevel::Missing, reason, Some(remedy))
        }
        (NetworkChoice::On, None) => {
            let found = format!(
                "private addresses from {}, {} in use; {} places ready",
                config.network_prefix, ready.addresses, ready.places
            );
            check(name, DoctorLevel::Ok, found, None)
        }
    }
}
