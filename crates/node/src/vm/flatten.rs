//! Making one layer of many, in the background: a disk of many layers reads slowly, and only so many
//! are permitted.
//!
//! The VMM copies into the overlay what it needs from the layers; the record of the disk follows when
//! it is done. Until then, and also when the server dies in between, the record names the layers, on
//! which nothing depends any more: they go a little later, that is all.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use skerry_model::{MountMode, VolumeSlot};
use skerry_vmm::{Capability, DiskSpec};
use tokio_util::sync::CancellationToken;

use super::{
    owner::Owner,
    snapshot::{Top, on_disk},
};
use crate::{
    Error,
    disk::{Disk, DiskChain},
    error::blocking,
    host::StepFailed,
    ledger::Ledger,
};

/// Longer than the largest disk takes on a slow host.
const FLATTENED_WITHIN: Duration = Duration::from_secs(4 * 3600);
/// How long a snapshot waits for it that nothing else makes possible.
const WAITED_FOR: Duration = Duration::from_secs(120);

/// The VMM's part of it.
type Work = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// A disk of a VM: its own, or that of a volume it writes.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub top: Top,
    pub disk: Disk,
}

impl Target {
    pub fn root(disk: Disk) -> Self {
        Self { top: Top::Root, disk }
    }

    pub fn volume(slot: VolumeSlot, disk: Disk) -> Self {
        Self { top: Top::Volume(slot), disk }
    }
}

/// A flattening that is wanted or under way.
pub(super) struct Flattening {
    disk: Disk,
    chain: DiskChain,
    /// Locked only so that the owner may be looked at from several tasks; never waited for.
    work: Mutex<Work>,
}

impl Flattening {
    /// Completes when the VMM is done.
    pub async fn done(&mut self) -> Result<(), Error> {
        self.work.get_mut().unwrap_or_else(PoisonError::into_inner).await
    }
}

impl Owner {
    /// Begins to flatten the first disk of a VM that wants to be. One disk of the node at a time.
    pub(super) async fn flatten_if_deep(&mut self) {
        let mut targets = vec![Target::root(self.disk())];
        let state = self.ledger.as_ref().map(Ledger::state).unwrap_or_default();
        for mount in state.volumes.values() {
            let is_mounted = state.mounted.contains(&mount.slot);
            if is_mounted && mount.mode == MountMode::ReadWrite {
                let disk = self.host.volumes.disk_of(mount.volume_id);
                targets.push(Target::volume(mount.slot, disk));
            }
        }
        for target in targets {
            if self.flattening.is_some() {
                return;
            }
            self.flatten_if_it_is_deep(target).await;
        }
    }

    async fn flatten_if_it_is_deep(&mut self, target: Target) {
        let Some(running) = &self.running else { return };
        let able = self.host.vmm.capabilities().supported.contains(&Capability::Snapshot);
        if self.flattening.is_some() || !able {
            return;
        }
        let Target { top, disk } = target;
        let found = on_disk(&disk, |disk| Ok((disk.chain()?, disk.push_is_pending()?))).await;
        let chain = match found {
            Ok((Some(chain), false)) if chain.wants_flattening() => chain,
            Ok(_) => return,
            Err(error) => {
                StepFailed { step: "flattened", error }.report("looking at a disk's layers");
                return;
            }
        };
        let (vm, turn) = (Arc::clone(&running.vm), Arc::clone(&self.host.flattening));
        let work = async move {
            let _turn = turn.acquire().await.map_err(|_| Error::Cancelled)?;
            match top {
                Top::Root => vm.flatten_disk(FLATTENED_WITHIN).await?,
                Top::Volume(slot) => vm.flatten_volume(slot, FLATTENED_WITHIN).await?,
            }
            Ok(())
        };
        tracing::debug!(
            workspace.id = %self.slot.workspace_id,
            layers = chain.layers.len(),
            "the disk's layers are to become one"
        );
        self.flattening = Some(Flattening { disk, chain, work: Mutex::new(Box::pin(work)) });
    }

    /// Waits until the layers have become one where no further one is permitted. Taking a snapshot ends
    /// the VMM's copying: without this, one that comes too early would be refused, and by asking it
    /// would have made sure that the next one is, too.
    pub(super) async fn flatten_if_full(
        &mut self,
        target: &Target,
        cancel: &CancellationToken,
    ) -> Result<(), StepFailed> {
        let chain = on_disk(&target.disk, Disk::chain).await;
        let chain = chain.map_err(StepFailed::at("disk_depth"))?;
        if chain.is_none_or(|chain| chain.layers.len() < DiskSpec::MAX_LAYERS) {
            return Ok(());
        }
        // Another disk's may be under way.
        self.leave_flattening().await;
        self.flatten_if_it_is_deep(target.clone()).await;
        let Some(flattening) = &mut self.flattening else { return Ok(()) };
        let outcome = tokio::select! {
            outcome = flattening.done() => outcome,
            () = tokio::time::sleep(WAITED_FOR) => return Ok(()),
            () = cancel.cancelled() => {
                return Err(StepFailed { step: "disk_depth", error: Error::Cancelled });
            }
        };
        self.flattened(outcome).await;
        Ok(())
    }

    /// The VMM has copied, or failed to. A failure is tried again after the next snapshot or start.
    pub(super) async fn flattened(&mut self, outcome: Result<(), Error>) {
        let Some(Flattening { disk, chain, .. }) = self.flattening.take() else { return };
        let recorded = match outcome {
            Ok(()) => self.step("flattened", || record(disk.clone(), chain.clone())).await,
            Err(error) => Err(StepFailed { step: "flattened", error }),
        };
        match recorded {
            Ok(_) => tracing::info!(
                workspace.id = %self.slot.workspace_id,
                layers = chain.layers.len(),
                "the disk's layers have become one"
            ),
            Err(failed) => {
                failed.report("making one layer of many");
            }
        }
    }

    /// A new overlay or a save ends the VMM's copying. What is copied stays copied, and the rest is
    /// taken up again later.
    pub(super) async fn leave_flattening(&mut self) {
        let Some(flattening) = &mut self.flattening else { return };
        match flattening.done().now_or_never() {
            Some(outcome) => self.flattened(outcome).await,
            None => self.flattening = None,
        }
    }
}

async fn record(disk: Disk, chain: DiskChain) -> Result<DiskChain, Error> {
    blocking(move || disk.flattened(&chain)).await
}
