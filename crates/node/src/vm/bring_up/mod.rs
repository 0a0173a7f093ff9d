//! Bringing a VM up: tables of steps, one for each way in which a machine comes to run. Whatever
//! fails, and wherever, the undo is the same one function, [`crate::release::release_all`], because
//! the ledger names everything beforehand.
//!
//! A workspace's first start tries what is fastest and falls back: a VM that waits in the pool, a
//! clone of a template, a boot. What a tenant asked to be restored is restored or refused.

mod acquire;
mod aside;
mod boot;
mod claim;
mod ground;
mod guest;
mod machine;
mod network;
mod restore;
mod shared;
mod source;
mod volumes;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use skerry_internal_api::{NodeError, StartPath, VmSpec};
use skerry_model::{SnapshotId, Timestamp};
use skerry_vmm::{Exit, Vm};
use tokio_util::sync::CancellationToken;

use self::{aside::Aside, ground::Ground, shared::SnapshotMemory, source::Source};
use crate::{
    capacity::MemoryPromise,
    cgroups::CpuWeight,
    disk::DiskChain,
    error::{Error, blocking, chain},
    faults::Next,
    guest::GuestLink,
    host::{Host, StepFailed},
    identity::GuestIdentity,
    layout::VmPaths,
    ledger::Ledger,
    pool::Nobodys,
    release::{Remains, release_all},
    saved::Sealed,
    templates::{Recipe, Template},
    turns::Turn,
    uids::UidLease,
};

pub(crate) use self::{
    machine::{machine_of, neutral_spec},
    restore::RESUME_WITHIN,
};

/// A guest that hangs is killed and booted once more.
const MAX_BOOTS: u32 = 2;

/// Everything that may have to be done; which of it, and in which order, [`Source::steps`] says.
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
    /// The place on the network.
    Network,
    /// The disk.
    Disk,
    /// Room for the guest's memory; the driver makes the file.
    MemoryFile,
    /// The console's log.
    ConsoleLog,
    /// The VMM process, which boots; its record is in the ledger before the guest runs.
    Boot,
    /// The VMM process, which waits for a saved state; recorded like a booted one.
    Park,
    /// A VM of the pool becomes the workspace's, with everything it has.
    Claim,
    /// The saved state is loaded; the CPUs stand still.
    Load,
    /// The volumes that a suspended guest has mounted are in their slots.
    AttachVolumes,
    /// The saved memory is spent: it must not be loaded a second time, on a disk that has changed.
    SpendMemory,
    /// The CPUs run.
    Resume,
    /// The guest's agent has answered and has made the guest the workspace's.
    GuestReady,
    /// The volumes are in their slots and mounted.
    MountVolumes,
    /// The start is complete.
    Ready,
}

impl Step {
    /// The name in logs, errors and planned faults.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::VmDirectory => "vm_directory",
            Self::LedgerIntent => "ledger_intent",
            Self::RunDirectory => "run_directory",
            Self::Cgroup => "cgroup",
            Self::Network => "network",
            Self::Disk => "disk",
            Self::MemoryFile => "memory_file",
            Self::ConsoleLog => "console_log",
            Self::Boot => "boot",
            Self::Park => "park",
            Self::Claim => "claim",
            Self::Load => "load",
            Self::AttachVolumes => "attach_volumes",
            Self::SpendMemory => "spend_memory",
            Self::Resume => "resume",
            Self::GuestReady => "guest_ready",
            Self::MountVolumes => "mount_volumes",
            Self::Ready => "ready",
        }
    }
}

/// Who a VM is brought up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// A workspace.
    Workspace,
    /// Nobody yet, or never: it lies in the pool's directory, and nothing of it outlives this life of
    /// the server.
    Nobody,
}

/// What a running VM has of the host's books; given back when dropped.
#[derive(Debug)]
pub(crate) struct Leases {
    pub uid: Option<UidLease>,
    /// Only given back.
    pub memory: MemoryPromise,
}

/// A VM that is up.
pub(crate) struct BroughtUp {
    pub vm: Arc<dyn Vm>,
    pub link: Arc<GuestLink>,
    pub ready_at: Timestamp,
    pub start_path: StartPath,
    pub leases: Leases,
}

/// A bring-up under way: what the steps have acquired so far.
pub(crate) struct BringUp<'a> {
    host: &'a Arc<Host>,
    paths: &'a VmPaths,
    spec: &'a VmSpec,
    cancel: &'a CancellationToken,
    whose: Whose,
    /// What its control groups are made with.
    weight: CpuWeight,
    /// Where it begins, once that is decided.
    source: Option<Source>,
    /// The permission to begin there, where one is needed.
    turn: Option<Turn>,
    /// The ledger, once the directory is there.
    pub ledger: Option<Ledger>,
    ground: Option<Ground>,
    disk: Option<DiskChain>,
    pub identity: Option<GuestIdentity>,
    pub uid: Option<UidLease>,
    pub memory: Option<MemoryPromise>,
    place: Option<network::Joining>,
    cgroup_procs: Vec<PathBuf>,
    /// The process, so that a release need not adopt it.
    pub vm: Option<Arc<dyn Vm>>,
    pub link: Option<Arc<GuestLink>>,
    /// What has to be done before the guest runs, and goes on beside the steps until then.
    before_resume: Option<Aside>,
    /// What has to be done before the start is complete.
    before_ready: Option<Aside>,
    /// The saved state is loaded.
    loaded: bool,
    /// The guest is whose it should be.
    configured: bool,
    ready_at: Option<Timestamp>,
    boots: u32,
}

impl<'a> BringUp<'a> {
    /// A workspace's start.
    pub fn new(
        host: &'a Arc<Host>,
        paths: &'a VmPaths,
        spec: &'a VmSpec,
        cancel: &'a CancellationToken,
        ledger: Option<Ledger>,
    ) -> Self {
        let whose = Whose::Workspace;
        Self { ledger, ..Self::empty(host, paths, spec, cancel, whose) }
    }

    /// A guest that a template is made of, or the first of a kind that will have one: it boots, and
    /// with a workspace's share of the CPUs. Every start of its kind boots until there is a template:
    /// one made at the lowest weight would never be done on a host that is busy with those boots.
    /// `memory` is what was set aside for it.
    pub fn for_template(
        host: &'a Arc<Host>,
        paths: &'a VmPaths,
        spec: &'a VmSpec,
        cancel: &'a CancellationToken,
        memory: MemoryPromise,
    ) -> Self {
        let (memory, source) = (Some(memory), Some(Source::Boot));
        Self { memory, source, ..Self::empty(host, paths, spec, cancel, Whose::Nobody) }
            .waited_for()
    }

    /// A VM that will wait in the pool.
    pub fn for_slot(
        host: &'a Arc<Host>,
        paths: &'a VmPaths,
        spec: &'a VmSpec,
        cancel: &'a CancellationToken,
        memory: MemoryPromise,
        template: Arc<Template>,
    ) -> Self {
        let (memory, source) = (Some(memory), Some(Source::Template(template)));
        Self { memory, source, ..Self::empty(host, paths, spec, cancel, Whose::Nobody) }
    }

    /// A VM that loads a snapshot's memory into a file that others can share.
    pub fn for_promotion(
        host: &'a Arc<Host>,
        paths: &'a VmPaths,
        spec: &'a VmSpec,
        cancel: &'a CancellationToken,
        memory: MemoryPromise,
        (snapshot_id, snapshot): (SnapshotId, &Sealed),
    ) -> Result<Self, Error> {
        let stream = SnapshotMemory::stream(snapshot_id, snapshot.clone())?;
        let source = Some(Source::SnapshotMemory(stream.into_file()));
        let memory = Some(memory);
        Ok(Self { memory, source, ..Self::empty(host, paths, spec, cancel, Whose::Nobody) })
    }

    /// Somebody waits for it, whosever it is: it gets a workspace's share of the CPUs, or whoever waits
    /// would wait for everybody else's work.
    pub fn waited_for(self) -> Self {
        Self { weight: CpuWeight::OfShape, ..self }
    }

    fn empty(
        host: &'a Arc<Host>,
        paths: &'a VmPaths,
        spec: &'a VmSpec,
        cancel: &'a CancellationToken,
        whose: Whose,
    ) -> Self {
        Self {
            host,
            paths,
            spec,
            cancel,
            whose,
            weight: match whose {
                Whose::Workspace => CpuWeight::OfShape,
                Whose::Nobody => CpuWeight::Background,
            },
            source: None,
            turn: None,
            ledger: None,
            ground: None,
            disk: None,
            identity: None,
            uid: None,
            memory: None,
            place: None,
            cgroup_procs: Vec::new(),
            vm: None,
            link: None,
            before_resume: None,
            before_ready: None,
            loaded: false,
            configured: false,
            ready_at: None,
            boots: 0,
        }
    }

    /// Takes every step. On an error the caller releases what the ledger names.
    pub async fn run(&mut self) -> Result<BroughtUp, StepFailed> {
        loop {
            let failed = match self.attempt().await {
                Ok(()) => return self.finish(),
                Err(failed) => failed,
            };
            let Some(next) = self.fallback(&failed) else { return Err(failed) };
            tracing::warn!(
                workspace.id = %self.spec.workspace_id,
                step = failed.step,
                error = chain(&failed.error),
                to = next.name(),
                "a start falls back"
            );
            self.undo_attempt().await?;
            self.source = Some(next);
        }
    }

    async fn attempt(&mut self) -> Result<(), StepFailed> {
        self.take_all(&[Step::Reserve]).await?;
        let steps = self.source().map_err(StepFailed::at("reserve"))?.steps();
        let mut rest = steps;
        while !rest.is_empty() {
            match self.take_all(rest).await {
                Ok(()) => break,
                // The same boot may well succeed: a guest's kernel can hang on a host that is busy.
                Err(failed)
                    if failed.step == Step::GuestReady.name()
                        && is_hang(&failed.error)
                        && (1..MAX_BOOTS).contains(&self.boots) =>
                {
                    tracing::warn!("the guest hangs: booted once more");
                    self.host.count_repeated_boot();
                    self.undo_boot().await.map_err(StepFailed::at("boot"))?;
                    let again = steps.iter().position(|step| *step == Step::RunDirectory);
                    rest = &steps[again.unwrap_or(0)..];
                }
                Err(failed) => return Err(failed),
            }
        }
        Ok(())
    }

    /// Takes these steps in order.
    pub async fn take_all(&mut self, steps: &[Step]) -> Result<(), StepFailed> {
        for step in steps {
            if self.cancel.is_cancelled() {
                return Err(StepFailed { step: step.name(), error: Error::Cancelled });
            }
            let began = Instant::now();
            self.take(*step).await.map_err(StepFailed::at(step.name()))?;
            tracing::debug!(step = step.name(), took = ?began.elapsed(), "step taken");
        }
        Ok(())
    }

    /// Takes one step. Taking it again changes nothing.
    async fn take(&mut self, step: Step) -> Result<(), Error> {
        loop {
            match step {
                Step::Reserve => self.reserve().await,
                Step::VmDirectory => self.make_vm_directory().await,
                Step::LedgerIntent => self.write_intent().await,
                Step::RunDirectory => self.make_run_directory().await,
                Step::Cgroup => self.make_cgroup().await,
                Step::Network => self.join_network().await,
                Step::Disk => self.make_disk().await,
                Step::MemoryFile => self.check_memory_room().await,
                Step::ConsoleLog => self.prepare_logs().await,
                Step::Boot => self.boot().await,
                Step::Park => self.park().await,
                Step::Claim => self.claim().await,
                Step::Load => self.load().await,
                Step::AttachVolumes => self.attach_volumes().await,
                Step::SpendMemory => self.spend_memory().await,
                Step::Resume => self.resume().await,
                Step::GuestReady => self.wait_for_guest().await,
                Step::MountVolumes => self.mount_volumes().await,
                Step::Ready => self.commit().await,
            }?;
            match self.host.config.faults.after(step.name()).await? {
                Next::Proceed => return Ok(()),
                Next::Again => {}
            }
        }
    }

    fn finish(&mut self) -> Result<BroughtUp, StepFailed> {
        let missing = |_| StepFailed { step: "ready", error: Error::StepMissing("boot") };
        let start_path = self.source().map_err(missing)?.path();
        match (self.vm.take(), self.link.take(), self.ready_at, self.take_leases()) {
            (Some(vm), Some(link), Some(ready_at), Some(leases)) => {
                self.succeeded(start_path);
                Ok(BroughtUp { vm, link, ready_at, start_path, leases })
            }
            (_, _, _, _) => Err(StepFailed { step: "ready", error: Error::StepMissing("boot") }),
        }
    }

    /// The next start of the same may be faster.
    fn succeeded(&self, start_path: StartPath) {
        self.host.starts.count(start_path);
        let (Some(ground), Some(source)) = (&self.ground, &self.source) else { return };
        match (source, &ground.key) {
            (Source::Template(template), _) => self.host.templates.worked(&template.key),
            (Source::Boot, Some(key)) => {
                let recipe =
                    Recipe { image_digest: ground.image_digest.clone(), shape: self.spec.shape };
                if self.host.templates.want(key, recipe) {
                    self.host.pool.wake();
                }
            }
            (Source::SnapshotMemory(memory), _) => self.has_started_from(memory),
            (
                Source::Boot
                | Source::Pool { .. }
                | Source::SavedMemory(_)
                | Source::SnapshotDisk(_),
                _,
            ) => {}
        }
    }

    fn source(&self) -> Result<&Source, Error> {
        self.source.as_ref().ok_or(Error::StepMissing("reserve"))
    }

    /// What the host's books have for this start.
    pub fn take_leases(&mut self) -> Option<Leases> {
        let memory = self.memory.take()?;
        Some(Leases { uid: self.uid.take(), memory })
    }

    /// Closes what the ledger does not name: our own connection to the guest.
    pub async fn close_link(&mut self) {
        if let Some(link) = self.link.take() {
            link.close().await;
        }
        for aside in [self.before_resume.take(), self.before_ready.take()].into_iter().flatten() {
            aside.wait().await;
        }
    }

    /// Clean slate for another source: also a disk goes that was made for this one and was never the
    /// tenant's.
    async fn undo_attempt(&mut self) -> Result<(), StepFailed> {
        self.close_link().await;
        let mut disk_was_made_for_it = true;
        if let Some(mut source) = self.source.take() {
            disk_was_made_for_it = source.is_of_a_first_start();
            source.give_up(self.host).await;
        }
        let vm = self.vm.take();
        if let Some(ledger) = &self.ledger {
            match release_all(self.host, self.paths, ledger, vm.as_ref()).await? {
                Remains::Nothing => self.ledger = None,
                // What a snapshot's disk had replaced is there again.
                Remains::Disk if !disk_was_made_for_it => {}
                Remains::Disk => {
                    let disk = self.host.storage.disks.at(&self.paths.dir);
                    blocking(move || disk.remove()).await.map_err(StepFailed::at("disk"))?;
                }
            }
        }
        self.uid = None;
        self.place = None;
        self.disk = None;
        self.identity = None;
        self.loaded = false;
        self.configured = false;
        self.ready_at = None;
        Ok(())
    }

    /// What there is of a VM that is nobody's.
    pub async fn give_up(mut self) -> Nobodys {
        for aside in [self.before_resume.take(), self.before_ready.take()].into_iter().flatten() {
            aside.wait().await;
        }
        Nobodys {
            paths: self.paths.clone(),
            ledger: self.ledger.take(),
            vm: self.vm.take(),
            link: self.link.take(),
            uid: self.uid.take(),
            memory: self.memory.take(),
        }
    }

    /// Half of the whole, so that one repetition fits in.
    fn bound_of_one_boot(&self) -> Duration {
        self.host.boot_bound() / MAX_BOOTS
    }
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
        | Error::NoSuchSnapshot
        | Error::NoSuchVolume
        | Error::NoSuchCheckpoint
        | Error::VolumeInUse
        | Error::NotOfOneMoment
        | Error::Program { .. }
        | Error::Cancelled
        | Error::EndedEarly(_)
        | Error::Vmm(_)
        | Error::Seal(_)
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
