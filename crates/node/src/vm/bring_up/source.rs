//! The ways in which a machine comes to run, and the steps of each.

use std::sync::Arc;

use skerry_internal_api::StartPath;
use skerry_vmm::RestoredMemory;
use tokio::time::Instant;

use super::{BringUp, Step, Whose, ground::Begin, shared::SnapshotMemory};
use crate::{
    error::Error,
    host::{Host, StepFailed},
    pool::{Tier, Waiting},
    saved::Sealed,
    templates::Template,
    turns::{Effort, Turn},
};

/// Where a start begins.
pub(super) enum Source {
    /// The kernel, on the workspace's own disk.
    Boot,
    /// A template: its memory and disk, both copied on write.
    Template(Arc<Template>),
    /// A VM that waits in the pool.
    Pool {
        /// Until it is the workspace's.
        waiting: Option<Box<Waiting>>,
        /// It is restored and only paused; otherwise it has not loaded its state.
        warm: bool,
    },
    /// The memory that a suspension saved, on the workspace's own disk.
    SavedMemory(Sealed),
    /// A snapshot's disk and memory.
    SnapshotMemory(SnapshotMemory),
    /// A snapshot's disk, booted.
    SnapshotDisk(Sealed),
}

/// A boot on the workspace's own disk.
const BOOT: &[Step] = &[
    Step::VmDirectory,
    Step::LedgerIntent,
    Step::RunDirectory,
    Step::Cgroup,
    Step::Network,
    Step::Disk,
    Step::MemoryFile,
    Step::ConsoleLog,
    Step::Boot,
    Step::GuestReady,
    Step::MountVolumes,
    Step::Ready,
];
/// A private copy of memory that many share: there is no memory file.
const CLONE: &[Step] = &[
    Step::VmDirectory,
    Step::LedgerIntent,
    Step::RunDirectory,
    Step::Cgroup,
    Step::Network,
    Step::Disk,
    Step::ConsoleLog,
    Step::Park,
    Step::Load,
    Step::Resume,
    Step::GuestReady,
    Step::MountVolumes,
    Step::Ready,
];
/// Memory of its own, filled from the saved state.
const RESTORE: &[Step] = &[
    Step::VmDirectory,
    Step::LedgerIntent,
    Step::RunDirectory,
    Step::Cgroup,
    Step::Network,
    Step::Disk,
    Step::MemoryFile,
    Step::ConsoleLog,
    Step::Park,
    Step::Load,
    Step::Resume,
    Step::GuestReady,
    Step::MountVolumes,
    Step::Ready,
];
/// The same, once only.
const GO_ON: &[Step] = &[
    Step::VmDirectory,
    Step::LedgerIntent,
    Step::RunDirectory,
    Step::Cgroup,
    Step::Network,
    Step::Disk,
    Step::MemoryFile,
    Step::ConsoleLog,
    Step::Park,
    Step::Load,
    Step::AttachVolumes,
    Step::SpendMemory,
    Step::Resume,
    Step::GuestReady,
    Step::MountVolumes,
    Step::Ready,
];
const CLAIM_WARM: &[Step] =
    &[Step::Claim, Step::Resume, Step::GuestReady, Step::MountVolumes, Step::Ready];
const CLAIM_PARKED: &[Step] =
    &[Step::Claim, Step::Load, Step::Resume, Step::GuestReady, Step::MountVolumes, Step::Ready];

impl Source {
    /// What has to be done once everything is reserved.
    pub fn steps(&self) -> &'static [Step] {
        match self {
            Self::Boot | Self::SnapshotDisk(_) => BOOT,
            Self::Template(_) => CLONE,
            Self::Pool { warm: true, .. } => CLAIM_WARM,
            Self::Pool { warm: false, .. } => CLAIM_PARKED,
            Self::SavedMemory(_) => GO_ON,
            Self::SnapshotMemory(SnapshotMemory { memory, .. }) => match memory {
                RestoredMemory::CloneOf { .. } => CLONE,
                RestoredMemory::InState | RestoredMemory::InStateToFile => RESTORE,
            },
        }
    }

    /// As it is reported.
    pub fn path(&self) -> StartPath {
        match self {
            Self::Boot | Self::SnapshotDisk(_) => StartPath::Boot,
            Self::Template(_) => StartPath::Template,
            Self::Pool { .. } => StartPath::Pool,
            Self::SavedMemory(_) => StartPath::SavedMemory,
            Self::SnapshotMemory(_) => StartPath::SnapshotMemory,
        }
    }

    /// What it costs the host beyond that; `None` where the machine is there.
    fn effort(&self) -> Option<Effort> {
        match self {
            Self::Boot | Self::SnapshotDisk(_) => Some(Effort::Boot),
            Self::Template(_) | Self::SavedMemory(_) | Self::SnapshotMemory(_) => {
                Some(Effort::Restore)
            }
            Self::Pool { .. } => None,
        }
    }

    /// For the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Template(_) => "template",
            Self::Pool { .. } => "pool",
            Self::SavedMemory(_) => "saved memory",
            Self::SnapshotMemory(_) => "snapshot's memory",
            Self::SnapshotDisk(_) => "snapshot's disk",
        }
    }

    /// Whether a process that has a uid already comes with it.
    pub fn brings_uid(&self) -> bool {
        matches!(self, Self::Pool { .. })
    }

    /// Whether the disk it stands on is made for it.
    pub fn is_of_a_first_start(&self) -> bool {
        match self {
            Self::Template(_) | Self::Pool { .. } => true,
            Self::Boot | Self::SavedMemory(_) | Self::SnapshotMemory(_) | Self::SnapshotDisk(_) => {
                false
            }
        }
    }

    /// Lets go of what was taken and did not become the workspace's.
    pub async fn give_up(&mut self, host: &Host) {
        if let Self::Pool { waiting, .. } = self
            && let Some(waiting) = waiting.take()
        {
            host.pool.discard(host, waiting.into_nobodys()).await;
        }
    }
}

impl BringUp<'_> {
    /// Decides where this start begins. From the pool, a VM is taken by that.
    pub(super) fn choose_source(&mut self) -> Result<Source, Error> {
        let ground = self.ground.as_mut().ok_or(Error::StepMissing("reserve"))?;
        Ok(match std::mem::replace(&mut ground.begin, Begin::Disk) {
            Begin::Nothing => {
                ground.begin = Begin::Nothing;
                self.choose_first_start()
            }
            Begin::Disk => Source::Boot,
            Begin::Suspended(sealed) => Source::SavedMemory(sealed),
            Begin::SnapshotDisk(snapshot) => Source::SnapshotDisk(snapshot),
            Begin::SnapshotMemory(snapshot) => Source::SnapshotMemory(snapshot),
        })
    }

    /// The fastest way to a machine that is the same to a tenant as one that was booted.
    fn choose_first_start(&self) -> Source {
        let Some(key) = self.ground.as_ref().and_then(|ground| ground.key.clone()) else {
            return Source::Boot;
        };
        if let Some(waiting) = self.host.pool.claim(&key) {
            let warm = waiting.tier() == Tier::Warm;
            return Source::Pool { waiting: Some(Box::new(waiting)), warm };
        }
        self.template().map_or(Source::Boot, Source::Template)
    }

    /// Waits until the host has a CPU for what was chosen. Of that which is nobody's, whoever makes it
    /// bounds how much is made at a time.
    pub(super) async fn await_turn(&mut self) -> Result<(), Error> {
        let effort = match self.whose {
            Whose::Workspace => self.source()?.effort(),
            Whose::Nobody => None,
        };
        if self.turn.as_ref().map(Turn::effort) == effort {
            return Ok(());
        }
        // Nobody waits for one kind of turn with the other in hand.
        self.turn = None;
        if let Some(effort) = effort {
            let turns = &self.host.turns;
            self.turn = Some(turns.take(effort, self.spec.workspace_id, self.cancel).await?);
        }
        Ok(())
    }

    /// Among those that booted while this start waited there may have been the first of its kind.
    pub(super) fn choose_again(&mut self) {
        let is_first = self.ground.as_ref().is_some_and(|ground| match ground.begin {
            Begin::Nothing => true,
            Begin::Disk
            | Begin::Suspended(_)
            | Begin::SnapshotDisk(_)
            | Begin::SnapshotMemory(_) => false,
        });
        if is_first
            && matches!(self.source, Some(Source::Boot))
            && let Some(template) = self.template()
        {
            self.source = Some(Source::Template(template));
        }
    }

    /// What to try instead of a source that failed, if anything: only where the tenant cannot tell
    /// the difference.
    pub(super) fn fallback(&self, failed: &StepFailed) -> Option<Source> {
        // Another machine would not mount it either.
        let hopeless = matches!(failed.error, Error::Cancelled | Error::NoCapacity(_))
            || failed.step == Step::MountVolumes.name();
        if hopeless || self.cancel.is_cancelled() || self.whose == Whose::Nobody {
            return None;
        }
        let next = match self.source.as_ref()? {
            Source::Pool { .. } => self.template().map_or(Source::Boot, Source::Template),
            Source::Template(template) => {
                self.host.templates.failed(template, Instant::now());
                Source::Boot
            }
            Source::SnapshotMemory(memory) => {
                let stream = memory.instead()?;
                self.host.promotions.not_kept(memory.id, Instant::now());
                Source::SnapshotMemory(stream)
            }
            Source::Boot | Source::SavedMemory(_) | Source::SnapshotDisk(_) => return None,
        };
        if let Source::Boot = next {
            self.host.starts.count_fallback();
        }
        Some(next)
    }

    fn template(&self) -> Option<Arc<Template>> {
        self.host.templates.find(self.ground.as_ref()?.key.as_ref()?)
    }
}
