//! Checkpoints' own workers: one for each checkpoint that is being made or removed, or that differs from
//! what its node has.

use std::{collections::HashSet, sync::Arc};

use skerry_internal_api::VolumeInfo;
use skerry_model::{
    CheckpointId, OnNode, VolumeEvent, VolumeState, VolumeStep, next_checkpoint_step,
};
use tokio::sync::Notify;

use super::{
    attend::{self, Subject},
    registry::Workers,
    worker::failure,
};
use crate::{Error, control::Inner, store::Write};

const BATCH: u32 = 500;
/// More steps than any checkpoint needs in a row.
const MAX_STEPS: u32 = 20;

impl Subject for CheckpointId {
    const WHAT: &'static str = "checkpoint";

    fn workers(inner: &Inner) -> &Workers<Self> {
        &inner.checkpoint_workers
    }

    async fn drive(self, inner: &Arc<Inner>, _bell: &Arc<Notify>) -> Result<(), Error> {
        drive(inner, self).await
    }
}

fn on_node(volumes: &[VolumeInfo]) -> HashSet<CheckpointId> {
    volumes.iter().flat_map(|volume| &volume.checkpoints).copied().collect()
}

fn seen(on_node: &HashSet<CheckpointId>, id: CheckpointId) -> OnNode {
    if on_node.contains(&id) { OnNode::Present } else { OnNode::Absent }
}

impl Inner {
    /// Has a worker look at the checkpoint: the one that is at work on it already, or a new one.
    pub(crate) fn wake_checkpoint(self: &Arc<Self>, id: CheckpointId) {
        if self.ending.is_cancelled() {
            return;
        }
        if let Some(post) = self.checkpoint_workers.wake(id) {
            self.tasks.spawn(attend::work(Arc::clone(self), id, post));
        }
    }

    /// Compares every checkpoint's record with what the node has, and wakes a worker where they differ.
    pub(super) async fn sweep_checkpoints(self: &Arc<Self>) -> Result<(), Error> {
        let on_node = on_node(&self.bounded("volumes", self.node.volumes()).await??);
        let mut after = None;
        loop {
            let batch = self.store.checkpoints_after(after, BATCH).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            after = Some(last.id);
            for checkpoint in &batch {
                let observed = seen(&on_node, checkpoint.id);
                if next_checkpoint_step(checkpoint, observed, self.now()) != VolumeStep::Nothing {
                    self.wake_checkpoint(checkpoint.id);
                }
            }
        }
    }
}

async fn drive(inner: &Arc<Inner>, id: CheckpointId) -> Result<(), Error> {
    for _ in 0..MAX_STEPS {
        let Some(checkpoint) = inner.store.checkpoint(id).await? else { return Ok(()) };
        let volume_id = checkpoint.volume_id;
        let observed = match checkpoint.state {
            // Making and removing repeat harmlessly: no need to look first.
            VolumeState::Creating | VolumeState::Deleting => OnNode::Absent,
            VolumeState::Ready | VolumeState::Failed(_) => {
                let all = inner.bounded("volumes", inner.node.volumes()).await??;
                seen(&on_node(&all), id)
            }
        };
        match next_checkpoint_step(&checkpoint, observed, inner.now()) {
            // A checkpoint has the size it was made with.
            VolumeStep::Nothing | VolumeStep::Grow => return Ok(()),
            VolumeStep::Record(event) => record(inner, id, &event).await?,
            VolumeStep::Make => {
                let call = inner.node.ensure_checkpoint(volume_id, id);
                let event = match inner.bounded("ensure_checkpoint", call).await? {
                    Ok(()) => VolumeEvent::Made,
                    Err(error) => {
                        tracing::warn!(checkpoint.id = %id, volume.id = %volume_id, %error,
                            "a checkpoint could not be made");
                        VolumeEvent::Failed(failure(&error, inner.now()))
                    }
                };
                record(inner, id, &event).await?;
            }
            VolumeStep::Delete => {
                let call = inner.node.ensure_checkpoint_deleted(volume_id, id);
                inner.bounded("ensure_checkpoint_deleted", call).await??;
                let removed = inner.store.remove_checkpoint(id, checkpoint.revision).await?;
                if removed == Write::Done(()) {
                    inner.checkpoint_watchers.announce(id);
                    return Ok(());
                }
            }
        }
    }
    Err(Error::internal("record and node do not come to agree"))
}

async fn record(inner: &Inner, id: CheckpointId, event: &VolumeEvent) -> Result<(), Error> {
    loop {
        let Some(mut checkpoint) = inner.store.checkpoint(id).await? else { return Ok(()) };
        if !checkpoint.apply(event) {
            return Ok(());
        }
        checkpoint.updated_at = inner.now();
        match inner.store.update_checkpoint(&checkpoint).await? {
            Write::Done(_) => {
                inner.checkpoint_watchers.announce(id);
                return Ok(());
            }
            Write::Stale | Write::Taken => {}
        }
    }
}
