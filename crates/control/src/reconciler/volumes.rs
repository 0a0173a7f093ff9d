//! Volumes' own workers: one for each volume that is being made or removed, or that differs from what
//! its node has.

use std::{collections::HashMap, sync::Arc, time::Duration};

use skerry_model::{
    OnNode, Volume, VolumeEvent, VolumeId, VolumeState, VolumeStep, next_volume_step,
};
use tokio::sync::Notify;

use super::{
    attend::{self, Subject},
    registry::Workers,
    worker::failure,
};
use crate::{Error, control::Inner, store::Write};

const BATCH: u32 = 500;
/// More steps than any volume needs in a row.
const MAX_STEPS: u32 = 20;
/// A workspace is recorded at once after it was given its volumes.
const RECORDED_WITHIN: Duration = Duration::from_secs(600);

impl Subject for VolumeId {
    const WHAT: &'static str = "volume";

    fn workers(inner: &Inner) -> &Workers<Self> {
        &inner.volume_workers
    }

    async fn drive(self, inner: &Arc<Inner>, _bell: &Arc<Notify>) -> Result<(), Error> {
        drive(inner, self).await
    }
}

impl Inner {
    /// Has a worker look at the volume: the one that is at work on it already, or a new one.
    pub(crate) fn wake_volume(self: &Arc<Self>, id: VolumeId) {
        if self.ending.is_cancelled() {
            return;
        }
        if let Some(post) = self.volume_workers.wake(id) {
            self.tasks.spawn(attend::work(Arc::clone(self), id, post));
        }
    }

    /// The volumes that the node has, with their sizes in bytes.
    async fn volumes_on_node(&self) -> Result<HashMap<VolumeId, u64>, Error> {
        let all = self.bounded("volumes", self.node.volumes()).await??;
        Ok(all.iter().map(|one| (one.id, one.size_bytes)).collect())
    }

    /// Compares every volume's record with what the node has, and wakes a worker where they differ.
    /// What the node has without a record is left alone: it may be somebody's only data.
    pub(super) async fn sweep_volumes(self: &Arc<Self>) -> Result<(), Error> {
        let on_node = self.volumes_on_node().await?;
        let mut after = None;
        loop {
            let batch = self.store.volumes_after(after, BATCH).await?;
            let Some(last) = batch.last() else { break };
            after = Some(last.id);
            for volume in &batch {
                let observed = seen(&on_node, volume);
                if next_volume_step(volume, observed, self.now()) != VolumeStep::Nothing {
                    self.wake_volume(volume.id);
                }
            }
        }
        let before = self.now() - RECORDED_WITHIN;
        match self.store.detach_from_unrecorded(before).await? {
            0 => {}
            freed => tracing::warn!(freed, "volumes taken from workspaces that were never made"),
        }
        Ok(())
    }
}

fn seen(on_node: &HashMap<VolumeId, u64>, volume: &Volume) -> OnNode {
    match on_node.get(&volume.id) {
        None => OnNode::Absent,
        Some(bytes) if *bytes < volume.size_bytes() => OnNode::Smaller,
        Some(_) => OnNode::Present,
    }
}

async fn drive(inner: &Arc<Inner>, id: VolumeId) -> Result<(), Error> {
    for _ in 0..MAX_STEPS {
        let Some(volume) = inner.store.volume(id).await? else { return Ok(()) };
        let observed = match volume.state {
            // Making and removing repeat harmlessly: no need to look first.
            VolumeState::Creating | VolumeState::Deleting => OnNode::Absent,
            VolumeState::Ready | VolumeState::Failed(_) => {
                seen(&inner.volumes_on_node().await?, &volume)
            }
        };
        match next_volume_step(&volume, observed, inner.now()) {
            VolumeStep::Nothing => return Ok(()),
            VolumeStep::Record(event) => record(inner, id, &event).await?,
            VolumeStep::Make => {
                let call = inner.node.ensure_volume(id, volume.size_bytes());
                let event = match inner.bounded("ensure_volume", call).await? {
                    Ok(()) => VolumeEvent::Made,
                    Err(error) => {
                        tracing::warn!(volume.id = %id, %error, "a volume could not be made");
                        VolumeEvent::Failed(failure(&error, inner.now()))
                    }
                };
                record(inner, id, &event).await?;
            }
            VolumeStep::Grow => {
                let call = inner.node.ensure_volume_size(id, volume.size_bytes());
                inner.bounded("ensure_volume_size", call).await??;
                inner.volume_watchers.announce(id);
            }
            VolumeStep::Delete => {
                let call = inner.node.ensure_volume_deleted(id);
                inner.bounded("ensure_volume_deleted", call).await??;
                let removed = inner.store.remove_volume(id, volume.revision).await?;
                if removed == Write::Done(()) {
                    inner.volume_watchers.announce(id);
                    return Ok(());
                }
            }
        }
    }
    Err(Error::internal("record and node do not come to agree"))
}

async fn record(inner: &Inner, id: VolumeId, event: &VolumeEvent) -> Result<(), Error> {
    loop {
        let Some(mut volume) = inner.store.volume(id).await? else { return Ok(()) };
        if !volume.apply(event) {
            return Ok(());
        }
        volume.updated_at = inner.now();
        match inner.store.update_volume(&volume).await? {
            Write::Done(_) => {
                inner.volume_watchers.announce(id);
                return Ok(());
            }
            Write::Stale | Write::Taken => {}
        }
    }
}
