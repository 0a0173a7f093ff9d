//! Suspending a VM: its memory is saved beside its disk and its process ends.
//!
//! Until the saved memory has its place and name (a rename, made durable) nothing has happened that
//! cannot be taken back: the VM still has its memory and goes on as before, whether somebody changed
//! their mind, a step failed or the server died. From then on the process has no future, and whoever
//! finds it ends it. The two can never both be true, because the saved memory is removed, durably,
//! before a VM that has saved it runs again.

use std::{collections::BTreeMap, future::Future, path::Path, sync::Arc, time::Duration};

use skerry_internal_api::{NodeError, VmPhase, VmReport};
use skerry_model::{Incarnation, MemMib};
use skerry_vmm::{Capability, SaveProgress, SavedMemory, Vm, VmmError};
use tokio_util::sync::CancellationToken;

use super::owner::{Cpus, Owner};
use crate::{
    Error,
    disk::DiskChain,
    error::blocking,
    host::{Host, StepFailed},
    layout::VmPaths,
    ledger::{Entry, Ledger, SavePurpose},
    saved::{About, Draft, Manifest, STATE_FILE, seal_unless},
    spec_file,
};

/// What a state takes beside the memory.
const DEVICES_BYTES: u64 = 16 << 20;
/// The most that the drivers let a state of a VM that runs meanwhile come to beside twice its memory.
const DEVICES_LIMIT_BYTES: u64 = 64 << 20;
/// Each page of 4 KiB is written with its address.
const MEMORY_PER_ADDRESSES: u64 = 256;
/// Giving up a save waits for a last write.
pub(crate) const CANCEL_SAVE_WITHIN: Duration = Duration::from_secs(30);

impl Owner {
    pub(super) async fn ensure_suspended(
        &mut self,
        incarnation: Incarnation,
        cancel: &CancellationToken,
    ) -> Result<VmReport, NodeError> {
        let as_before = match self.phase_of_start(incarnation)? {
            VmPhase::Suspended => return Ok(self.report()),
            VmPhase::Running => Cpus::Running,
            VmPhase::Paused => Cpus::Paused,
            VmPhase::Stopping if self.memory_is_saved() => {
                // The memory was saved and something of the process could not be released.
                return self.end_suspended().await;
            }
            VmPhase::Starting | VmPhase::Suspending | VmPhase::Stopping | VmPhase::Stopped => {
                return Err(NodeError::NotRunning);
            }
        };
        self.require(Capability::Snapshot, "suspending")?;
        self.require(Capability::Restore, "suspending")?;
        self.withhold_guest(VmPhase::Suspending);
        match self.save_memory(as_before, cancel).await {
            Ok(()) => self.end_suspended().await,
            Err(failed) => {
                let answer = match &failed.error {
                    Error::Cancelled => NodeError::Cancelled,
                    _ => failed.report("suspending a VM"),
                };
                self.give_up_saving(as_before).await;
                Err(answer)
            }
        }
    }

    /// The saved memory is discarded: the workspace is its disk.
    pub(super) async fn forget_memory(&mut self) -> Result<(), StepFailed> {
        if let Some(ledger) = &self.ledger {
            forget_memory(&self.host, &self.paths, ledger).await?;
        }
        Ok(())
    }

    pub(super) fn memory_is_saved(&self) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| ledger.state().memory_saved)
    }

    async fn save_memory(
        &mut self,
        as_before: Cpus,
        cancel: &CancellationToken,
    ) -> Result<(), StepFailed> {
        let purpose = SavePurpose::Suspension;
        self.note("suspension_noted", Entry::Saving { purpose }).await?;
        let (draft, manifest) = self.step("suspension_drafted", || self.draft_memory()).await?;
        if as_before == Cpus::Paused {
            // What the guest has not written back could not be seen on its disk alone.
            self.let_cpus_run("suspension_woken").await?;
        }
        if let Err(failed) = self.write_memory(&draft, manifest.shape.memory_mib, cancel).await {
            // All of it is removed where blocking is allowed.
            let removed = blocking(move || {
                drop(draft);
                Ok(())
            });
            removed.await.map_err(StepFailed::at("suspension_sealed"))?;
            return Err(failed);
        }
        let created_at = self.host.environment.now();
        let manifest = move |_: &CancellationToken| Ok(Manifest { created_at, ..manifest });
        let sealed = seal_unless(&self.host, cancel, draft, manifest).await;
        sealed.map_err(StepFailed::at("suspension_sealed"))?;
        self.passed("suspension_sealed").await?;
        self.record("suspension_committed", Entry::MemorySaved).await
    }

    /// Makes the guest stand still and writes its state, unless `cancel` says otherwise first.
    async fn write_memory(
        &mut self,
        draft: &Draft,
        memory_mib: MemMib,
        cancel: &CancellationToken,
    ) -> Result<(), StepFailed> {
        let link = self.reach().await.map_err(StepFailed::at("suspension_frozen"))?;
        unless_cancelled(cancel, "suspension_frozen", self.freeze(&link, "suspension_frozen"))
            .await?;
        self.stop_cpus("suspension_stopped").await?;
        let vm = Arc::clone(&self.process("suspension_begun")?.vm);
        self.step("suspension_begun", || begin_save(&vm, draft, memory_mib)).await?;
        let complete = self.step("suspension_saved", || complete_save(&vm, memory_mib));
        unless_cancelled(cancel, "suspension_saved", complete).await
    }

    /// Room for the memory, and what will be said of it.
    async fn draft_memory(&self) -> Result<(Draft, Manifest), Error> {
        let (storage, paths) = (self.host.storage.clone(), self.paths.clone());
        let fingerprint = match &self.running {
            Some(running) => running.vm.record().fingerprint.clone(),
            None => return Err(Error::Guest(NodeError::NotRunning)),
        };
        let (incarnation, created_at) = (self.incarnation, self.host.environment.now());
        blocking(move || {
            // What an earlier suspension left and nobody can use.
            storage.states.delete(&paths.suspended)?;
            let spec = spec_file::read_unopened(&paths.spec)?;
            let chain = storage.disks.at(&paths.dir).chain()?;
            let DiskChain { image_digest, size_bytes, .. } =
                chain.ok_or_else(|| no_disk(&paths.dir))?;
            let room = storage.room.reserve(state_bytes(spec.shape.memory_mib))?;
            let manifest = Manifest {
                about: About::SuspendedMemory { workspace_id: spec.workspace_id, incarnation },
                created_at,
                shape: spec.shape,
                fingerprint: Some(fingerprint),
                image_digest,
                disk_size_bytes: size_bytes,
                layers: Vec::new(),
                files: BTreeMap::new(),
            };
            Ok((storage.states.begin(&paths.suspended, room)?, manifest))
        })
        .await
    }

    /// The memory is saved: what the process holds is released.
    async fn end_suspended(&mut self) -> Result<VmReport, NodeError> {
        let vm = match self.running.take() {
            Some(running) => {
                let vm = self.close(running).await;
                tracing::info!(
                    workspace.id = %self.slot.workspace_id,
                    incarnation = %self.incarnation,
                    "VM is suspended"
                );
                Some(vm)
            }
            None => None,
        };
        self.release(vm.as_ref()).await.map_err(|failed| failed.report("ending a suspended VM"))?;
        Ok(self.report())
    }

    /// The VM goes on as before, unless its process is gone: then that is found next.
    async fn give_up_saving(&mut self, as_before: Cpus) {
        if let Err(failed) = self.unsave().await {
            failed.report("giving up the saving of a VM");
            // It must not run while its saved memory may be taken for the truth: it stands still, and
            // a resume tries again.
            self.settle_as(Cpus::Paused);
            return;
        }
        self.go_on(as_before, "suspension_undone").await;
        if let Err(failed) = self.note("suspension_ended", Entry::SaveEnded).await {
            failed.report("recording that a VM goes on");
        }
    }

    /// The VMM saves nothing any more, and no saved memory lies beside the disk.
    pub(super) async fn unsave(&self) -> Result<(), StepFailed> {
        if let Some(running) = &self.running {
            let vm = &running.vm;
            self.step("save_cancelled", || cancel_save(&**vm)).await?;
        }
        let (states, place) = (&self.host.storage.states, &self.paths.suspended);
        self.step("saved_memory_removed", || {
            let (states, place) = (states.clone(), place.clone());
            blocking(move || states.delete(&place))
        })
        .await
    }
}

/// Makes the saved memory of a suspended workspace unusable, durably, and removes it: before its disk
/// is written to again, and when it is given up.
///
/// # Errors
/// When either cannot be made durable. Repeating it is safe.
pub(crate) async fn forget_memory(
    host: &Host,
    paths: &VmPaths,
    ledger: &Ledger,
) -> Result<(), StepFailed> {
    if ledger.state().memory_saved {
        ledger.append(Entry::MemoryForgotten).await.map_err(StepFailed::at("memory_forgotten"))?;
        let passed = host.config.faults.after("memory_forgotten").await;
        passed.map_err(StepFailed::at("memory_forgotten"))?;
    }
    host.volumes.sleeps_no_more(&paths.dir);
    let (storage, place) = (host.storage.clone(), paths.suspended.clone());
    let removed = blocking(move || {
        let remains = storage.room.hold(&place)?;
        storage.states.delete(&place)?;
        Ok(remains)
    });
    // Nobody who waits for the guest waits for the disk to give back a whole guest's memory.
    let remains = removed.await.map_err(StepFailed::at("memory_removed"))?;
    host.tasks.spawn_blocking(move || drop(remains));
    let passed = host.config.faults.after("memory_removed").await;
    passed.map(|_| ()).map_err(StepFailed::at("memory_removed"))
}

/// Begins to write the state of a VM into the draft.
pub(super) async fn begin_save(
    vm: &Arc<dyn Vm>,
    draft: &Draft,
    memory_mib: MemMib,
) -> Result<(), Error> {
    let path = draft.path(STATE_FILE);
    // A repeated step begins anew.
    cancel_save(&**vm).await?;
    crate::layout::remove_file(&path)?;
    let file = draft.create(STATE_FILE, state_bytes(memory_mib))?;
    Ok(vm.begin_save(file, SavedMemory::InState).await?)
}

async fn complete_save(vm: &Arc<dyn Vm>, memory_mib: MemMib) -> Result<(), Error> {
    Ok(vm.wait_save(SaveProgress::Complete, save_within(memory_mib)).await?)
}

/// Gives up a save, or finds that there is none.
pub(crate) async fn cancel_save(vm: &dyn Vm) -> Result<(), Error> {
    match vm.cancel_save(CANCEL_SAVE_WITHIN).await {
        Ok(()) | Err(VmmError::Unsupported(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How long the memory may take to be written: a slow disk of 16 MiB/s, and a minute.
pub(super) fn save_within(memory_mib: MemMib) -> Duration {
    Duration::from_secs(60 + u64::from(memory_mib.get()) / 16)
}

/// The most a state of a VM takes that stands still.
pub(super) fn state_bytes(memory_mib: MemMib) -> u64 {
    let memory = memory_mib.bytes();
    memory.saturating_add(memory / MEMORY_PER_ADDRESSES).saturating_add(DEVICES_BYTES)
}

/// The most a state of a VM takes that runs while it is written: what changes meanwhile is written a
/// second time. The drivers stop a save that would come to more.
pub(super) fn running_state_bytes(memory_mib: MemMib) -> u64 {
    memory_mib.bytes().saturating_mul(2).saturating_add(DEVICES_LIMIT_BYTES)
}

/// Does `work`, or ends with [`Error::Cancelled`] as soon as `cancel` says so.
pub(super) async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    step: &'static str,
    work: impl Future<Output = Result<T, StepFailed>>,
) -> Result<T, StepFailed> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(StepFailed { step, error: Error::Cancelled }),
        done = work => done,
    }
}

pub(super) fn no_disk(dir: &Path) -> Error {
    Error::Disk { path: dir.to_owned(), problem: "there is no disk".to_owned() }
}
