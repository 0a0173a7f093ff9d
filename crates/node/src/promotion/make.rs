//! Promoting a snapshot's memory: a VM that is nobody's loads the stream into a memory file, never
//! runs, and is saved at once.
//!
//! It is a VM like any other, with a ledger in the pool's directory, so that a crash at any moment
//! leaves nothing of it. Nothing of it is repeated: what failed begins anew.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use skerry_internal_api::{StartFrom, VmSpec};
use skerry_model::{Shape, SnapshotId, WorkspaceId};
use skerry_vmm::{SaveProgress, SavedMemory};
use tokio_util::sync::CancellationToken;

use super::Wanted;
use crate::{
    cgroups::CpuWeight,
    error::{Error, blocking, chain},
    host::{Host, StepFailed},
    layout::VmPaths,
    saved::{About, Draft, Manifest, RAM_FILE, STATE_FILE, Sealed, seal_unless},
    vm::bring_up::{BringUp, Step, neutral_spec},
};

/// The devices of a machine take a few hundred KiB.
const STATE_BYTES: u64 = 1024 * 1024;
/// Saving the state of devices takes milliseconds.
const SAVE_WITHIN: Duration = Duration::from_secs(60);

/// What is there before anything takes long.
const ACQUIRE: &[Step] =
    &[Step::Reserve, Step::VmDirectory, Step::LedgerIntent, Step::RunDirectory, Step::Cgroup];

/// What brings the memory into its file. The guest does not run.
const LOAD: &[Step] =
    &[Step::Network, Step::Disk, Step::MemoryFile, Step::ConsoleLog, Step::Park, Step::Load];

/// Promotes the memory of this snapshot. Cancelled or failed, nothing is left of it.
pub(crate) async fn promote(
    host: &Arc<Host>,
    Wanted { id, cancel, waited_for }: &Wanted,
) -> Result<(), StepFailed> {
    let id = *id;
    let began = tokio::time::Instant::now();
    let (snapshot, draft) = begin(host, id).await.map_err(StepFailed::at("promotion_reserve"))?;
    let manifest = &snapshot.manifest;
    let memory = host.memory.set_aside(u64::from(manifest.shape.memory_mib.get()));
    let memory = memory.map_err(StepFailed::at("promotion_reserve"))?;
    let number = WorkspaceId::from_random(host.environment.random());
    let paths = VmPaths { memory_file: draft.path(RAM_FILE), ..host.layout.nobodys(number) };
    let spec = VmSpec {
        start_from: StartFrom::Snapshot { snapshot_id: id },
        ..neutral_spec(number, &manifest.image_digest, &manifest.shape)
    };
    let bring_up = BringUp::for_promotion(host, &paths, &spec, cancel, memory, (id, &snapshot));
    let mut bring_up = bring_up.map_err(StepFailed::at("promotion_reserve"))?;
    let made = async {
        bring_up.take_all(ACQUIRE).await?;
        let load = async {
            bring_up.take_all(LOAD).await?;
            // A stream with a wrong byte must not become memory that is sealed as right.
            bring_up.checked().await.map_err(StepFailed::at("promotion_loaded"))?;
            let saved = save(host, &mut bring_up, &draft, cancel).await;
            saved.map_err(StepFailed::at("promotion_saved"))
        };
        hastened(host, (number, manifest.shape), waited_for, load).await?;
        seal(host, id, &snapshot, draft, cancel).await.map_err(StepFailed::at("promotion_sealed"))
    }
    .await;
    // Whatever came of it, the VM has served its purpose.
    let nobodys = bring_up.give_up().await;
    host.pool.discard(host, nobodys).await;
    made?;
    tracing::info!(snapshot.id = %id, took = ?began.elapsed(), "a snapshot's memory is promoted");
    Ok(())
}

/// Does the work of a VM with the weight of what is nobody's, until somebody waits for it: then with
/// the weight of a workspace, or whoever waits would wait for everybody else's work.
async fn hastened<T>(
    host: &Host,
    (number, shape): (WorkspaceId, Shape),
    waited_for: &CancellationToken,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = waited_for.cancelled() => {}
    }
    let cgroups = host.cgroups.clone();
    let hastened = async {
        blocking(move || cgroups.reweigh(number, &shape, CpuWeight::OfShape)).await?;
        host.config.faults.after("promotion_hastened").await
    };
    if let Err(error) = hastened.await {
        tracing::warn!(error = chain(&error), "memory that is waited for is not made faster");
    }
    work.await
}

async fn begin(host: &Arc<Host>, id: SnapshotId) -> Result<(Sealed, Draft), Error> {
    let host = Arc::clone(host);
    blocking(move || {
        let states = &host.storage.states;
        let snapshot = states.open(&host.layout.snapshot(id))?.ok_or(Error::NoSuchSnapshot)?;
        let place = host.layout.promoted(id);
        // An earlier one was of no use, or nobody would ask for this.
        states.delete(&place)?;
        let memory_bytes = snapshot.manifest.shape.memory_mib.bytes();
        let room = host.storage.room.reserve(memory_bytes + STATE_BYTES)?;
        let draft = states.begin(&place, room)?;
        Ok((snapshot, draft))
    })
    .await
}

/// Saves the machine as it was loaded, and ends it: its memory file belongs to the promoted memory
/// from here on.
async fn save(
    host: &Host,
    bring_up: &mut BringUp<'_>,
    draft: &Draft,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    host.config.faults.after("promotion_loaded").await.map(drop)?;
    let vm = bring_up.vm.clone().ok_or(Error::StepMissing("park"))?;
    let state = draft.create(STATE_FILE, STATE_BYTES)?;
    let saved = async {
        vm.begin_save(state, SavedMemory::InMemoryFile).await?;
        vm.wait_save(SaveProgress::Complete, SAVE_WITHIN).await
    };
    tokio::select! {
        saved = saved => saved?,
        () = cancel.cancelled() => return Err(Error::Cancelled),
    }
    vm.kill().await?;
    host.config.faults.after("promotion_saved").await.map(drop)
}

async fn seal(
    host: &Arc<Host>,
    id: SnapshotId,
    snapshot: &Sealed,
    draft: Draft,
    cancel: &CancellationToken,
) -> Result<Sealed, Error> {
    let (now, of) = (host.environment.now(), snapshot.manifest.clone());
    seal_unless(host, cancel, draft, move |_| {
        Ok(Manifest {
            about: About::PromotedMemory { snapshot_id: id },
            created_at: now,
            // The disk is the snapshot's own.
            layers: Vec::new(),
            files: BTreeMap::new(),
            ..of
        })
    })
    .await
}
