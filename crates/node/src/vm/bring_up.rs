//! Bringing a VM up: a table of steps. Whatever fails, and wherever, the undo is the same one
//! function, [`crate::release::release_all`], because the ledger names everything beforehand.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use skerry_internal_api::{NodeError, VmSpec};
use skerry_model::{Timestamp, spec::LogRetention};
use skerry_vmm::{BootSpec, CpuModel, DiskSpec, Exit, Sandbox, Vm};
use tokio_util::sync::CancellationToken;

use crate::{
    capacity::{MemoryPromise, disk_free_mib},
    cgroups::CpuWeight,
    disk::{self, Base},
    error::{Error, blocking},
    faults::Next,
    guest::GuestLink,
    host::{Host, StepFailed},
    identity::GuestIdentity,
    layout::{VmPaths, make_private_dir, remove_file, remove_tree, write_durably},
    ledger::{Entry, Holdings, Ledger},
    logs::older,
    uids::UidLease,
    vm::link,
};

/// A guest that hangs is killed and booted once more.
const MAX_BOOTS: u32 = 2;
/// Without a cgroup the process may map its guest's memory and this much more: libraries, thread
/// stacks and the cache of translated code.
const ADDRESS_SPACE_OVERHEAD_BYTES: u64 = 4 << 30;

/// The steps in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Image, memory, uid: whatever is missing is found before anything is touched.
    Reserve,
    /// The VM's directory with the guest's identity and specification.
    VmDirectory,
    /// Everything the next steps acquire is named.
    LedgerIntent,
    /// The directory of the sockets.
    RunDirectory,
    /// The control groups.
    Cgroup,
    /// The overlay.
    Disk,
    /// Room for the guest's memory; the driver makes the file.
    MemoryFile,
    /// The console's log.
    ConsoleLog,
    /// The VMM process; its record is in the ledger before the guest runs.
    Boot,
    /// The guest's agent has answered.
    GuestReady,
    /// The start is complete.
    Ready,
}

impl Step {
    pub const ORDER: [Self; 11] = [
        Self::Reserve,
        Self::VmDirectory,
        Self::LedgerIntent,
        Self::RunDirectory,
        Self::Cgroup,
        Self::Disk,
        Self::MemoryFile,
        Self::ConsoleLog,
        Self::Boot,
        Self::GuestReady,
        Self::Ready,
    ];

    /// The name in logs, errors and planned faults.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::VmDirectory => "vm_directory",
            Self::LedgerIntent => "ledger_intent",
            Self::RunDirectory => "run_directory",
            Self::Cgroup => "cgroup",
            Self::Disk => "disk",
            Self::MemoryFile => "memory_file",
            Self::ConsoleLog => "console_log",
            Self::Boot => "boot",
            Self::GuestReady => "guest_ready",
            Self::Ready => "ready",
        }
    }
}

/// What a running VM has of the host's books; given back when dropped.
#[derive(Debug)]
pub(crate) struct Leases {
    pub uid: Option<UidLease>,
    pub _memory: MemoryPromise,
}

/// A VM that is up.
pub(crate) struct BroughtUp {
    pub vm: Arc<dyn Vm>,
    pub link: Arc<GuestLink>,
    pub ready_at: Timestamp,
    pub leases: Leases,
}

/// A bring-up under way: what the steps have acquired so far.
pub(crate) struct BringUp<'a> {
    host: &'a Host,
    paths: &'a VmPaths,
    spec: &'a VmSpec,
    cancel: &'a CancellationToken,
    /// The ledger, once the directory is there.
    pub ledger: Option<Ledger>,
    base: Option<Base>,
    kernel: PathBuf,
    initramfs: PathBuf,
    identity: Option<GuestIdentity>,
    /// What the host's books have for this start.
    pub leases: Option<Leases>,
    cgroup_procs: Vec<PathBuf>,
    /// The process, so that a release need not adopt it.
    pub vm: Option<Arc<dyn Vm>>,
    link: Option<Arc<GuestLink>>,
    ready_at: Option<Timestamp>,
    boots: u32,
}

impl<'a> BringUp<'a> {
    pub fn new(
        host: &'a Host,
        paths: &'a VmPaths,
        spec: &'a VmSpec,
        cancel: &'a CancellationToken,
        ledger: Option<Ledger>,
    ) -> Self {
        Self {
            host,
            paths,
            spec,
            cancel,
            ledger,
            base: None,
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            identity: None,
            leases: None,
            cgroup_procs: Vec::new(),
            vm: None,
            link: None,
            ready_at: None,
            boots: 0,
        }
    }

    /// Takes every step. On an error the caller releases what the ledger names.
    pub async fn run(&mut self) -> Result<BroughtUp, StepFailed> {
        let mut next = 0;
        while let Some(step) = Step::ORDER.get(next).copied() {
            if self.cancel.is_cancelled() {
                return Err(StepFailed { step: step.name(), error: Error::Cancelled });
            }
            let began = Instant::now();
            match self.take(step).await {
                Ok(()) => {
                    tracing::debug!(step = step.name(), took = ?began.elapsed(), "step taken");
                    next += 1;
                }
                // The same boot may well succeed: a guest's kernel can hang on a host that is busy.
                Err(error)
                    if step == Step::GuestReady && is_hang(&error) && self.boots < MAX_BOOTS =>
                {
                    tracing::warn!(bound = ?began.elapsed(), "the guest hangs: booted once more");
                    self.host.count_repeated_boot();
                    self.undo_boot().await.map_err(StepFailed::at("boot"))?;
                    next = position(Step::RunDirectory);
                }
                Err(error) => return Err(StepFailed { step: step.name(), error }),
            }
        }
        self.finish()
    }

    /// Takes one step. Taking it again changes nothing.
    pub async fn take(&mut self, step: Step) -> Result<(), Error> {
        loop {
            match step {
                Step::Reserve => self.reserve().await,
                Step::VmDirectory => self.make_vm_directory().await,
                Step::LedgerIntent => self.write_intent().await,
                Step::RunDirectory => self.make_run_directory().await,
                Step::Cgroup => self.make_cgroup().await,
                Step::Disk => self.make_disk().await,
                Step::MemoryFile => self.check_memory_room().await,
                Step::ConsoleLog => self.prepare_logs().await,
                Step::Boot => self.boot().await,
                Step::GuestReady => self.wait_for_guest().await,
                Step::Ready => self.commit().await,
            }?;
            match self.host.config.faults.after(step.name()).await? {
                Next::Proceed => return Ok(()),
                Next::Again => {}
            }
        }
    }

    async fn reserve(&mut self) -> Result<(), Error> {
        if self.leases.is_some() {
            return Ok(());
        }
        let (images, digest) = (self.host.images.clone(), self.spec.image_digest.clone());
        let (image, boot) = blocking(move || {
            let image = images.by_digest(&digest).map_err(|error| {
                tracing::warn!(%error, "image not usable");
                Error::NoSuchImage(digest.to_string())
            })?;
            let boot =
                images.boot_files().map_err(|error| Error::NoBootFiles(error.to_string()))?;
            Ok((image, boot))
        })
        .await?;
        let capabilities = self.host.vmm.capabilities();
        if self.spec.shape.vcpu_count.get() > capabilities.max_vcpu_count {
            return Err(Error::NoCapacity(format!(
                "at most {} virtual CPUs are possible here",
                capabilities.max_vcpu_count
            )));
        }
        let needed_mib = self.host.config.min_disk_free_mib;
        let free_mib = disk_free_mib(&self.host.layout.data_dir);
        if free_mib < needed_mib {
            return Err(Error::NoCapacity(format!(
                "{free_mib} MiB of disk are free, {needed_mib} MiB have to stay free"
            )));
        }
        let memory = self.host.memory.promise(self.spec.shape.memory_mib)?;
        let uid = self.host.uids.as_ref().ok().map(|pool| pool.lease()).transpose()?;
        self.base = Some(Base { size_bytes: image.disk_bytes(), path: image.disk });
        (self.kernel, self.initramfs) = (boot.kernel, boot.initramfs);
        self.leases = Some(Leases { uid, _memory: memory });
        Ok(())
    }

    async fn make_vm_directory(&mut self) -> Result<(), Error> {
        let (paths, environment) = (self.paths.clone(), self.host.environment.clone());
        let spec = serde_json::to_vec(self.spec)
            .map_err(|error| Error::io("writing the specification")(error.into()))?;
        self.identity = Some(
            blocking(move || {
                make_private_dir(&paths.dir)?;
                crate::layout::sync_parent(&paths.dir)?;
                // Kept for taking the VM over after a restart; it holds the tenant's environment,
                // so nobody but us may read it.
                write_durably(&paths.spec, &spec)?;
                GuestIdentity::ensure(&paths, &environment)
            })
            .await?,
        );
        Ok(())
    }

    async fn write_intent(&mut self) -> Result<(), Error> {
        let ledger = match &self.ledger {
            Some(ledger) => ledger.clone(),
            None => {
                let path = self.paths.ledger.clone();
                blocking(move || Ledger::open(&path)).await?
            }
        };
        self.ledger = Some(ledger.clone());
        let holdings = Holdings {
            run_dir: Some(self.paths.run_dir.clone()),
            memory_file: Some(self.paths.memory_file.clone()),
            cgroups: self.host.cgroups.paths(self.spec.workspace_id),
            uid: self.uid(),
            memory_mib: self.spec.shape.memory_mib,
        };
        ledger.begin(self.spec.incarnation, holdings).await
    }

    async fn make_run_directory(&mut self) -> Result<(), Error> {
        let dir = self.paths.run_dir.clone();
        blocking(move || {
            remove_tree(&dir)?;
            make_private_dir(&dir)
        })
        .await
    }

    async fn make_cgroup(&mut self) -> Result<(), Error> {
        let cgroups = self.host.cgroups.clone();
        let (id, shape) = (self.spec.workspace_id, self.spec.shape);
        self.cgroup_procs = blocking(move || cgroups.ensure(id, &shape, CpuWeight::OfShape)).await?;
        Ok(())
    }

    async fn make_disk(&mut self) -> Result<(), Error> {
        let base = self.base()?;
        disk::ensure_overlay(&self.paths.disk, base, self.spec.shape.disk_mib).await
    }

    async fn check_memory_room(&mut self) -> Result<(), Error> {
        let (file, dir) = (self.paths.memory_file.clone(), self.host.layout.memory_dir.clone());
        let needed_mib = u64::from(self.spec.shape.memory_mib.get());
        blocking(move || {
            remove_file(&file)?;
            // A guest that touches memory its file system cannot hold would be killed.
            let free_mib = disk_free_mib(&dir);
            if free_mib < needed_mib {
                return Err(Error::NoCapacity(format!(
                    "{needed_mib} MiB of memory are needed, its file system has {free_mib} MiB"
                )));
            }
            Ok(())
        })
        .await
    }

    async fn prepare_logs(&mut self) -> Result<(), Error> {
        let logs = [self.paths.console_log.clone(), self.paths.command_log.clone()];
        let retention = self.spec.log_retention;
        blocking(move || match retention {
            // Both are appended to, and kept below their limits.
            LogRetention::AcrossStarts => Ok(()),
            LogRetention::ThisStart => {
                logs.iter().try_for_each(|log| remove_file(log).and(remove_file(&older(log))))
            }
        })
        .await
    }

    async fn boot(&mut self) -> Result<(), Error> {
        if self.vm.is_some() {
            return Ok(());
        }
        self.boots += 1;
        let spec = self.boot_spec()?;
        let ledger = self.ledger.clone().ok_or(Error::StepMissing("boot"))?;
        let faults = self.host.config.faults.clone();
        let mut committed = move |record: &skerry_vmm::VmmRecord| {
            ledger.append_blocking(Entry::Process { record: record.clone() })?;
            faults.after_blocking("boot_commit").map_err(std::io::Error::other)
        };
        let bound = self.bound_of_one_boot();
        // Dropping the driver's future is safe: the process is either not let go yet, and ends by
        // itself, or it is in the ledger.
        tokio::select! {
            vm = self.host.vmm.boot(&spec, &mut committed) => self.vm = Some(vm?),
            () = self.cancel.cancelled() => return Err(Error::Cancelled),
            () = tokio::time::sleep(bound) => {
                return Err(Error::Timeout { bound_seconds: bound.as_secs() });
            }
        }
        Ok(())
    }

    fn boot_spec(&self) -> Result<BootSpec, Error> {
        let identity = self.identity.as_ref().ok_or(Error::StepMissing("vm_directory"))?;
        let shape = &self.spec.shape;
        let without_cgroup =
            || shape.memory_mib.bytes().saturating_add(ADDRESS_SPACE_OVERHEAD_BYTES);
        Ok(BootSpec {
            label: format!("vm-{}", self.spec.workspace_id.as_uuid().simple()),
            run_dir: self.paths.run_dir.clone(),
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            memory_file: self.paths.memory_file.clone(),
            memory_mib: shape.memory_mib,
            vcpu_count: shape.vcpu_count,
            cpu_kind: shape.cpu_kind,
            cpu_model: CpuModel::Default,
            disk: Some(DiskSpec {
                overlay: self.paths.disk.clone(),
                layers: Vec::new(),
                base: self.base()?.path.clone(),
            }),
            mac: identity.mac,
            console_log: self.paths.console_log.clone(),
            console_limit_bytes: self.host.config.console_limit_bytes,
            kernel_args: Vec::new(),
            sandbox: Sandbox {
                uid: self.uid(),
                rlimit_address_space_bytes: self.cgroup_procs.is_empty().then(without_cgroup),
                cgroup_procs: self.cgroup_procs.clone(),
            },
        })
    }

    async fn wait_for_guest(&mut self) -> Result<(), Error> {
        if self.link.is_some() {
            return Ok(());
        }
        let vm = self.vm.clone().ok_or(Error::StepMissing("boot"))?;
        let identity = self.identity.as_ref().ok_or(Error::StepMissing("vm_directory"))?;
        let bound = self.bound_of_one_boot();
        let open = link::open(&vm, self.spec, identity, &self.host.environment, bound);
        let link = tokio::select! {
            link = open => link.map_err(Error::Guest)?,
            exit = vm.wait_exit() => return Err(Error::EndedEarly(in_words(&exit))),
            () = self.cancel.cancelled() => return Err(Error::Cancelled),
            // The link has the same bound; this one holds whatever the guest does to it.
            () = tokio::time::sleep(bound + Duration::from_secs(1)) => {
                return Err(Error::Timeout { bound_seconds: bound.as_secs() });
            }
        };
        self.link = Some(link);
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Error> {
        if self.ready_at.is_some() {
            return Ok(());
        }
        let at = self.host.environment.now();
        let ledger = self.ledger.as_ref().ok_or(Error::StepMissing("ledger_intent"))?;
        ledger.append(Entry::Ready { at }).await?;
        self.ready_at = Some(at);
        Ok(())
    }

    fn finish(&mut self) -> Result<BroughtUp, StepFailed> {
        match (self.vm.take(), self.link.take(), self.ready_at, self.leases.take()) {
            (Some(vm), Some(link), Some(ready_at), Some(leases)) => {
                Ok(BroughtUp { vm, link, ready_at, leases })
            }
            (_, _, _, _) => Err(StepFailed { step: "ready", error: Error::StepMissing("boot") }),
        }
    }

    /// Undoes the boot alone: the process, its sockets and its memory.
    async fn undo_boot(&mut self) -> Result<(), Error> {
        if let Some(vm) = self.vm.take() {
            vm.kill().await?;
        }
        Ok(())
    }

    /// Closes what the ledger does not name: our own connection to the guest.
    pub async fn close_link(&mut self) {
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    /// Half of the whole, so that one repetition fits in.
    fn bound_of_one_boot(&self) -> Duration {
        self.host.boot_bound() / MAX_BOOTS
    }

    fn uid(&self) -> Option<u32> {
        Some(self.leases.as_ref()?.uid.as_ref()?.uid())
    }

    fn base(&self) -> Result<&Base, Error> {
        self.base.as_ref().ok_or(Error::StepMissing("reserve"))
    }
}

fn position(step: Step) -> usize {
    Step::ORDER.iter().position(|other| *other == step).unwrap_or(0)
}

fn is_hang(error: &Error) -> bool {
    match error {
        Error::Timeout { .. } => true,
        Error::Guest(error) => {
            matches!(error, NodeError::Timeout { .. } | NodeError::GuestUnreachable(_))
        }
        Error::Io { .. }
        | Error::DataDirInUse(_)
        | Error::Config { .. }
        | Error::NoCapacity(_)
        | Error::NoSuchImage(_)
        | Error::NoBootFiles(_)
        | Error::Disk { .. }
        | Error::SavedState { .. }
        | Error::Program { .. }
        | Error::Cancelled
        | Error::EndedEarly(_)
        | Error::Vmm(_)
        | Error::RuntimeGone
        | Error::StepMissing(_)
        | Error::Planned(_) => false,
    }
}

/// An exit for the log.
pub(crate) fn in_words(exit: &Exit) -> String {
    match exit {
        Exit::PoweredOff => "it powered off".to_owned(),
        Exit::Rebooted => "it asked for a reboot".to_owned(),
        Exit::Killed => "it was killed".to_owned(),
        Exit::Crashed(reason) => reason.clone(),
        Exit::Unknown => "how it ended is not known".to_owned(),
    }
}
