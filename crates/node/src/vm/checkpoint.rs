//! A checkpoint of a volume that a running VM writes: what is on it becomes a frozen layer, and the
//! guest goes on in a new overlay above it.
//!
//! The guest's file systems are frozen for that moment, written back: the checkpoint has no journal to
//! replay but what an orderly one has. In what a crash leaves behind nothing is lost either way: the new
//! overlay is recorded before the VMM hears of it (see [`crate::disk`]), and the checkpoint is there once
//! its record is.

use std::sync::Arc;

use skerry_internal_api::{NodeError, VmPhase};
use skerry_model::{CheckpointId, MountMode, VolumeId};
use skerry_vmm::{Capability, Vm};
use tokio_util::sync::CancellationToken;

use super::{
    flatten::Target,
    owner::{Cpus, Owner},
    snapshot::{Overlay, check_depth, intend_overlay, keep_overlay, push, settle_push, sync},
};
use crate::{
    Error,
    error::blocking,
    guest::{Frozen, GuestLink},
    host::StepFailed,
    ledger::Ledger,
    volumes::EMPTY_OVERLAY_BYTES,
};

impl Owner {
    /// Makes a checkpoint of a volume that this VM writes.
    ///
    /// # Errors
    /// [`NodeError::VolumeInUse`] when it does not (any more); [`NodeError::NotRunning`] when it does and
    /// stands still: its guest could not write back.
    pub(super) async fn checkpoint_volume(
        &mut self,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), NodeError> {
        let state = self.ledger.as_ref().map(Ledger::state).unwrap_or_default();
        let mut held = state.volumes.values();
        let written = |mount: &&skerry_model::VolumeMount| {
            mount.volume_id == volume_id && mount.mode == MountMode::ReadWrite
        };
        let Some(mount) = held.find(written) else { return Err(NodeError::VolumeInUse) };
        if self.phase != VmPhase::Running {
            return Err(NodeError::NotRunning);
        }
        self.require(Capability::Volumes, "checkpoints of volumes")?;
        let volumes = Arc::clone(&self.host.volumes);
        let is_there = blocking(move || volumes.has_checkpoint(volume_id, checkpoint_id)).await;
        if is_there.map_err(|error| error.public("checkpoint_drafted"))? {
            return Ok(());
        }
        let (_, vm, link) = self.running_guest(self.incarnation).await?;
        let target = Target::volume(mount.slot, self.host.volumes.disk_of(volume_id));
        let mut taken = self.take_checkpoint(&vm, &link, &target, volume_id, checkpoint_id).await;
        if let Err(StepFailed { error: Error::NotOfOneMoment, .. }) = &taken {
            // The guest thawed by itself before the new top was in place: a host that is busy.
            taken = self.take_checkpoint(&vm, &link, &target, volume_id, checkpoint_id).await;
        }
        self.flatten_if_deep().await;
        match taken {
            Ok(()) => {
                tracing::info!(
                    workspace.id = %self.slot.workspace_id,
                    volume.id = %volume_id,
                    checkpoint.id = %checkpoint_id,
                    "checkpoint taken"
                );
                Ok(())
            }
            Err(failed) => Err(failed.report("taking a checkpoint of a volume")),
        }
    }

    async fn take_checkpoint(
        &mut self,
        vm: &Arc<dyn Vm>,
        link: &GuestLink,
        target: &Target,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), StepFailed> {
        // It ends with the bound of the wait for flattening.
        self.flatten_if_full(target, &CancellationToken::new()).await?;
        self.leave_flattening().await;
        let Target { top, disk } = target;
        let settled = settle_push(&**vm, *top, disk).await;
        settled.map_err(StepFailed::at("overlay_settled"))?;
        check_depth(disk, &self.paths.dir).await?;
        let room = self.host.storage.room.clone();
        let room = blocking(move || room.reserve(EMPTY_OVERLAY_BYTES)).await;
        let _room = room.map_err(StepFailed::at("checkpoint_drafted"))?;
        // What is written back now need not be while the guest stands still.
        self.step("checkpoint_synced", || sync(link)).await?;
        let overlay = self.step("checkpoint_intended", || intend_overlay(disk)).await?;

        let mut found = Overlay::Below;
        let pushed = async {
            self.freeze(link, "checkpoint_frozen").await?;
            let (seen, pushed) = push(&**vm, *top, &overlay).await;
            found = seen;
            pushed.map_err(StepFailed::at("checkpoint_pushed"))?;
            self.passed("checkpoint_pushed").await
        };
        let pushed = pushed.await;
        let went_on = self.go_on(Cpus::Running, "checkpoint_went_on").await;
        let kept = match found {
            Overlay::Below => {
                let disk = disk.clone();
                blocking(move || disk.abort_push().map(|()| None)).await
            }
            // Asked again before the next one, or decided by what is in it once the VM has ended.
            Overlay::Unknown => Ok(None),
            Overlay::OnTop => keep_overlay(disk).await.map(Some),
        };
        pushed?;
        let kept = kept.map_err(StepFailed::at("checkpoint_overlay_kept"))?;
        self.passed("checkpoint_overlay_kept").await?;
        match went_on.frozen {
            Frozen::UntilNow => {}
            Frozen::NoMore => {
                return Err(StepFailed { step: "checkpoint_frozen", error: Error::NotOfOneMoment });
            }
        }
        let chain = kept.ok_or(Error::StepMissing("checkpoint_pushed"));
        let chain = chain.map_err(StepFailed::at("checkpoint_recorded"))?;
        let volumes = Arc::clone(&self.host.volumes);
        let recorded =
            blocking(move || volumes.keep_checkpoint(volume_id, checkpoint_id, chain.layers));
        recorded.await.map_err(StepFailed::at("checkpoint_recorded"))?;
        self.passed("checkpoint_recorded").await
    }
}
