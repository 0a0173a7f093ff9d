//! Taking a snapshot: the disk, or disk and memory, of one instant.
//!
//! The disk is not copied: the overlay the guest writes to becomes a frozen layer, shared by the
//! workspace and the snapshot, and the guest goes on in a new one above it. Memory is written while
//! the guest runs; it stands still only for what changed meanwhile, from the freezing of its file
//! systems to their thawing, which is measured and reported.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use skerry_internal_api::{NodeError, SnapshotContents, SnapshotInfo, VmPhase};
use skerry_model::{Shape, SnapshotId, VolumeSlot};
use skerry_vmm::{Capability, DiskSpec, SaveProgress, Vm, VmmError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    flatten::Target,
    owner::{Cpus, Owner},
    suspend::{
        begin_save, cancel_save, no_disk, running_state_bytes, save_within, state_bytes,
        unless_cancelled,
    },
};
use crate::{
    Error,
    disk::{Disk, DiskChain},
    error::{blocking, chain},
    guest::{Frozen, GuestLink},
    host::StepFailed,
    ledger::{Entry, SavePurpose},
    saved::{About, Draft, Manifest, seal_unless},
    snapshots::info_of,
    spec_file,
};

/// Putting an overlay on top waits for the disk's requests under way.
const PUSH_WITHIN: Duration = Duration::from_secs(30);
/// Writing back everything a guest holds takes as long as its disk is slow.
const SYNCED_WITHIN: Duration = Duration::from_secs(120);
/// A manifest and its directory.
const MANIFEST_BYTES: u64 = 1 << 20;

/// Which disk of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Top {
    /// Its own.
    Root,
    /// The volume in this slot.
    Volume(VolumeSlot),
}

/// A snapshot under way.
struct Taking {
    contents: SnapshotContents,
    draft: Draft,
    shape: Shape,
    /// Under which its memory is saved.
    fingerprint: Option<String>,
    overlay: Overlay,
}

/// The new overlay of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overlay {
    /// Surely not on top.
    Below,
    /// Only the VMM knows.
    Unknown,
    /// Where the guest writes.
    OnTop,
}

impl Owner {
    pub(super) async fn take_snapshot(
        &mut self,
        id: SnapshotId,
        contents: SnapshotContents,
        cancel: &CancellationToken,
    ) -> Result<SnapshotInfo, NodeError> {
        let workspace_id = self.slot.workspace_id;
        let _under_way = self.host.snapshots.begin(id, workspace_id, cancel)?;
        if let Some(info) = self.snapshot_taken_already(id).await? {
            return Ok(info);
        }
        let deleting = self.ledger.as_ref().is_some_and(|ledger| ledger.state().deleting);
        if !self.present || deleting {
            return Err(NodeError::NoSuchVm);
        }
        if contents == SnapshotContents::DiskAndMemory && self.has_volumes() {
            // Whoever goes on from that memory would have them mounted.
            let what = "a snapshot with memory while volumes are attached";
            return Err(NodeError::Unsupported(what.to_owned()));
        }
        let taken = match (self.phase, contents) {
            (VmPhase::Running, _) => self.snapshot_of_vm(id, contents, Cpus::Running, cancel).await,
            (VmPhase::Paused, _) => self.snapshot_of_vm(id, contents, Cpus::Paused, cancel).await,
            (VmPhase::Stopped | VmPhase::Suspended, SnapshotContents::Disk) => {
                self.snapshot_at_rest(id, cancel).await
            }
            (VmPhase::Stopped | VmPhase::Suspended, SnapshotContents::DiskAndMemory)
            | (VmPhase::Starting | VmPhase::Suspending | VmPhase::Stopping, _) => {
                return Err(NodeError::NotRunning);
            }
        };
        match taken {
            Ok(info) => {
                tracing::info!(
                    workspace.id = %workspace_id,
                    snapshot.id = %id,
                    blackout = ?info.blackout,
                    "snapshot taken"
                );
                self.flatten_if_deep().await;
                Ok(info)
            }
            Err(failed) => Err(match &failed.error {
                Error::Cancelled => NodeError::Cancelled,
                _ => failed.report("taking a snapshot"),
            }),
        }
    }

    /// The snapshot of this id, if an earlier call took it.
    async fn snapshot_taken_already(
        &self,
        id: SnapshotId,
    ) -> Result<Option<SnapshotInfo>, NodeError> {
        let (states, place) = (self.host.storage.states.clone(), self.host.layout.snapshot(id));
        let found = blocking(move || states.open(&place)).await;
        let found = found.map_err(|error| error.public("snapshot_drafted"))?;
        let Some(info) = found.as_ref().and_then(info_of) else { return Ok(None) };
        if info.workspace_id == self.slot.workspace_id {
            return Ok(Some(info));
        }
        let problem = "is the identifier of another workspace's snapshot".to_owned();
        Err(NodeError::Invalid { field: "snapshot_id", problem })
    }

    /// Of a disk that no process has open.
    async fn snapshot_at_rest(
        &mut self,
        id: SnapshotId,
        cancel: &CancellationToken,
    ) -> Result<SnapshotInfo, StepFailed> {
        check_depth(&self.disk(), &self.paths.dir).await?;
        let contents = SnapshotContents::Disk;
        let stands = || self.draft(id, contents, Cpus::Paused);
        let taking = self.step("snapshot_drafted", stands).await?;
        let disk = self.disk();
        let chain = self.step("disk_frozen", || on_disk(&disk, Disk::freeze)).await?;
        self.seal(taking, chain, Duration::ZERO, cancel).await
    }

    async fn snapshot_of_vm(
        &mut self,
        id: SnapshotId,
        contents: SnapshotContents,
        as_before: Cpus,
        cancel: &CancellationToken,
    ) -> Result<SnapshotInfo, StepFailed> {
        if !self.host.vmm.capabilities().supported.contains(&Capability::Snapshot) {
            let error = Error::Guest(NodeError::Unsupported("snapshots".to_owned()));
            return Err(StepFailed { step: "snapshot_drafted", error });
        }
        self.flatten_if_full(&Target::root(self.disk()), cancel).await?;
        self.leave_flattening().await;
        let disk = self.disk();
        let vm = Arc::clone(&self.process("snapshot_drafted")?.vm);
        let settled = settle_push(&*vm, Top::Root, &disk).await;
        settled.map_err(StepFailed::at("overlay_settled"))?;
        check_depth(&disk, &self.paths.dir).await?;
        let drafted = || self.draft(id, contents, as_before);
        let mut taking = self.step("snapshot_drafted", drafted).await?;
        let purpose = SavePurpose::Snapshot { snapshot_id: id };
        self.note("snapshot_noted", Entry::Saving { purpose }).await?;
        let outcome = match self.copy(&mut taking, &vm, as_before, cancel).await {
            Ok(blackout) => match self.step("overlay_kept", || keep_overlay(&disk)).await {
                Ok(chain) => self.seal(taking, chain, blackout, cancel).await,
                Err(failed) => Err(failed),
            },
            Err(failed) => {
                self.give_up_copying(taking, &vm, as_before).await;
                Err(failed)
            }
        };
        if let Err(failed) = self.note("snapshot_ended", Entry::SaveEnded).await {
            failed.report("recording that a VM goes on");
        }
        outcome
    }

    /// Copies what the VM is at one instant. Returns how long it stood still; it goes on as before.
    async fn copy(
        &mut self,
        taking: &mut Taking,
        vm: &Arc<dyn Vm>,
        as_before: Cpus,
        cancel: &CancellationToken,
    ) -> Result<Duration, StepFailed> {
        if as_before == Cpus::Paused {
            // What the guest has not written back is not on its disk: it runs for that moment.
            self.let_cpus_run("snapshot_woken").await?;
        }
        let link = self.reach().await.map_err(StepFailed::at("snapshot_synced"))?;
        // What is written back now need not be while the guest stands still.
        let synced = self.step("snapshot_synced", || sync(&link));
        unless_cancelled(cancel, "snapshot_synced", synced).await?;
        let memory_mib = taking.shape.memory_mib;
        let while_it_runs =
            taking.contents == SnapshotContents::DiskAndMemory && as_before == Cpus::Running;
        if while_it_runs {
            let begun = || begin_save(vm, &taking.draft, memory_mib);
            self.step("snapshot_begun", begun).await?;
            let converged =
                self.save_reaches("snapshot_converged", vm, SaveProgress::Converged, taking);
            unless_cancelled(cancel, "snapshot_converged", converged).await?;
        }
        let disk = self.disk();
        let overlay = self.step("overlay_intended", || intend_overlay(&disk)).await?;

        let began = Instant::now();
        unless_cancelled(cancel, "snapshot_frozen", self.freeze(&link, "snapshot_frozen")).await?;
        if taking.contents == SnapshotContents::DiskAndMemory {
            self.stop_cpus("snapshot_stopped").await?;
        }
        taking.overlay = Overlay::Unknown;
        let (found, pushed) = push(&**vm, Top::Root, &overlay).await;
        taking.overlay = found;
        pushed.map_err(StepFailed::at("overlay_pushed"))?;
        self.passed("overlay_pushed").await?;
        if taking.contents == SnapshotContents::DiskAndMemory {
            if !while_it_runs {
                // A VM that is saved while it stands still lets go of its disk, so this comes last.
                let begun = || begin_save(vm, &taking.draft, memory_mib);
                self.step("snapshot_begun", begun).await?;
            }
            let captured =
                self.save_reaches("snapshot_captured", vm, SaveProgress::Captured, taking);
            unless_cancelled(cancel, "snapshot_captured", captured).await?;
        }
        let went_on = self.go_on(as_before, "snapshot_went_on").await;
        let blackout = went_on.at.saturating_duration_since(began);
        match went_on.frozen {
            Frozen::UntilNow => {}
            Frozen::NoMore => {
                return Err(StepFailed { step: "snapshot_went_on", error: Error::NotOfOneMoment });
            }
        }
        if taking.contents == SnapshotContents::DiskAndMemory {
            // The file is still being written when the guest runs again.
            let complete = self.save_reaches("snapshot_saved", vm, SaveProgress::Complete, taking);
            unless_cancelled(cancel, "snapshot_saved", complete).await?;
        }
        Ok(blackout)
    }

    async fn save_reaches(
        &self,
        step: &'static str,
        vm: &Arc<dyn Vm>,
        progress: SaveProgress,
        taking: &Taking,
    ) -> Result<(), StepFailed> {
        let within = save_within(taking.shape.memory_mib);
        self.step(step, || async { Ok(vm.wait_save(progress, within).await?) }).await
    }

    /// The VM goes on as before, its disk with or without the new overlay, and nothing is left of the
    /// snapshot.
    async fn give_up_copying(&mut self, taking: Taking, vm: &Arc<dyn Vm>, as_before: Cpus) {
        if let Err(error) = cancel_save(&**vm).await {
            StepFailed { step: "save_cancelled", error }.report("giving up a snapshot");
        }
        self.go_on(as_before, "snapshot_undone").await;
        let (disk, Taking { overlay, draft, .. }) = (self.disk(), taking);
        let settled = blocking(move || {
            drop(draft);
            match overlay {
                Overlay::Below => disk.abort_push(),
                // Asked again before the next one, or decided by what is in it once the VM has ended.
                Overlay::Unknown => Ok(()),
                Overlay::OnTop => disk.complete_push().map(|_| ()),
            }
        });
        if let Err(error) = settled.await {
            StepFailed { step: "overlay_settled", error }.report("giving up a snapshot");
        }
    }

    /// Room for the snapshot, and what is known of it.
    async fn draft(
        &self,
        id: SnapshotId,
        contents: SnapshotContents,
        cpus: Cpus,
    ) -> Result<Taking, Error> {
        let (storage, place) = (self.host.storage.clone(), self.host.layout.snapshot(id));
        let (spec, running) = (self.paths.spec.clone(), self.running.as_ref());
        let fingerprint = running.map(|running| running.vm.record().fingerprint.clone());
        blocking(move || {
            let shape = spec_file::read_unopened(&spec)?.shape;
            let (room, fingerprint) = match (contents, cpus) {
                (SnapshotContents::DiskAndMemory, Cpus::Running) => {
                    (running_state_bytes(shape.memory_mib), fingerprint)
                }
                (SnapshotContents::DiskAndMemory, Cpus::Paused) => {
                    (state_bytes(shape.memory_mib), fingerprint)
                }
                (SnapshotContents::Disk, _) => (0, None),
            };
            let room = storage.room.reserve(room + MANIFEST_BYTES)?;
            let draft = storage.states.begin(&place, room)?;
            Ok(Taking { contents, draft, shape, fingerprint, overlay: Overlay::Below })
        })
        .await
    }

    /// The snapshot is complete: digests, manifest, and its place.
    async fn seal(
        &self,
        taking: Taking,
        chain: DiskChain,
        blackout: Duration,
        cancel: &CancellationToken,
    ) -> Result<SnapshotInfo, StepFailed> {
        let layers = Arc::clone(&self.host.storage.layers);
        let (workspace_id, now) = (self.slot.workspace_id, self.host.environment.clone());
        let Taking { contents, draft, shape, fingerprint, overlay: _ } = taking;
        let sealed = seal_unless(&self.host, cancel, draft, move |stop| {
            let described: Result<Vec<_>, Error> =
                chain.layers.iter().map(|id| layers.describe(*id, stop)).collect();
            Ok(Manifest {
                about: About::Snapshot { workspace_id, contents, blackout },
                layers: described?,
                created_at: now.now(),
                shape,
                fingerprint,
                image_digest: chain.image_digest,
                disk_size_bytes: chain.size_bytes,
                files: std::collections::BTreeMap::new(),
            })
        });
        let sealed = sealed.await.map_err(StepFailed::at("snapshot_sealed"))?;
        self.passed("snapshot_sealed").await?;
        let info = info_of(&sealed).ok_or(Error::StepMissing("snapshot_sealed"));
        info.map_err(StepFailed::at("snapshot_sealed"))
    }

    pub(super) fn disk(&self) -> Disk {
        self.host.storage.disks.at(&self.paths.dir)
    }
}

/// That another layer is permitted on the disk.
pub(super) async fn check_depth(disk: &Disk, dir: &Path) -> Result<(), StepFailed> {
    let at = StepFailed::at("disk_depth");
    let chain = match on_disk(disk, Disk::chain).await {
        Ok(Some(chain)) => chain,
        Ok(None) => return Err(at(no_disk(dir))),
        Err(error) => return Err(at(error)),
    };
    if chain.layers.len() < DiskSpec::MAX_LAYERS {
        return Ok(());
    }
    Err(at(Error::NoCapacity(format!(
        "the disk consists of {} layers, the most there may be: they become one in the \
         background while the workspace runs",
        chain.layers.len()
    ))))
}

/// Brings a push to its end that was begun earlier, also in an earlier life of the server.
///
/// # Errors
/// When the VMM does not say whether the overlay is on top. It may be asked again.
pub(crate) async fn settle_push(vm: &dyn Vm, top: Top, disk: &Disk) -> Result<(), Error> {
    let Some(overlay) = on_disk(disk, Disk::pending_overlay).await? else { return Ok(()) };
    let (found, pushed) = push(vm, top, &overlay).await;
    match found {
        Overlay::OnTop => keep_overlay(disk).await.map(|_| ()),
        Overlay::Below => on_disk(disk, Disk::abort_push).await,
        Overlay::Unknown => pushed,
    }
}

/// Asks the VMM to write to `overlay`, and once more when its answer is lost: what it does already it
/// does not do again.
pub(super) async fn push(vm: &dyn Vm, top: Top, overlay: &Path) -> (Overlay, Result<(), Error>) {
    let ask = || async {
        match top {
            Top::Root => vm.push_overlay(overlay, PUSH_WITHIN).await,
            Top::Volume(slot) => vm.push_volume_overlay(slot, overlay, PUSH_WITHIN).await,
        }
    };
    let first = match ask().await {
        Ok(()) => return (Overlay::OnTop, Ok(())),
        Err(error) => error,
    };
    match &first {
        VmmError::InvalidSpec { .. } | VmmError::Refused { .. } | VmmError::Unsupported(_) => {
            return (Overlay::Below, Err(first.into()));
        }
        VmmError::NotUsable(_)
        | VmmError::EndedEarly(_)
        | VmmError::Timeout(_)
        | VmmError::Gone
        | VmmError::InvalidState(_)
        | VmmError::Io { .. } => {}
    }
    tracing::warn!(error = chain(&first), "the VMM did not say whether a new overlay is on top");
    match ask().await {
        Ok(()) => (Overlay::OnTop, Ok(())),
        Err(_) => (Overlay::Unknown, Err(first.into())),
    }
}

pub(super) async fn intend_overlay(disk: &Disk) -> Result<PathBuf, Error> {
    on_disk(disk, |disk| match disk.pending_overlay()? {
        Some(overlay) => Ok(overlay),
        None => disk.begin_push(),
    })
    .await
}

pub(super) async fn keep_overlay(disk: &Disk) -> Result<DiskChain, Error> {
    on_disk(disk, Disk::complete_push).await
}

pub(super) async fn sync(link: &GuestLink) -> Result<(), Error> {
    link.sync(SYNCED_WITHIN).await.map_err(Error::Guest)
}

/// Does something to a disk where blocking is allowed.
pub(super) async fn on_disk<T: Send + 'static>(
    disk: &Disk,
    work: impl FnOnce(&Disk) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let disk = disk.clone();
    blocking(move || work(&disk)).await
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
