//! What the node does to volumes beside any VM, and whom it asks where a VM has one.

use std::sync::Arc;

use skerry_internal_api::NodeError;
use skerry_model::{CheckpointId, VolumeId};

use super::Node;
use crate::{
    error::{Error, blocking},
    host::StepFailed,
    vm::{Request, Slot},
    volumes::Volumes,
};

/// How often the writer of a volume may change while a checkpoint of it is asked for.
const CHANGES_OF_WRITER: u32 = 8;

impl Node {
    pub(super) async fn with_volumes<T: Send + 'static>(
        &self,
        step: &'static str,
        work: impl FnOnce(&Volumes) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, NodeError> {
        if let Some(error) = self.ending() {
            return Err(error);
        }
        let volumes = Arc::clone(&self.host.volumes);
        blocking(move || work(&volumes))
            .await
            .map_err(StepFailed::at(step))
            .map_err(|failed| failed.report("working on volumes"))
    }

    /// Makes a checkpoint: by the VM that writes the volume, or of its files.
    pub(super) async fn make_checkpoint(
        &self,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), NodeError> {
        for _ in 0..CHANGES_OF_WRITER {
            let writer = move |volumes: &Volumes| volumes.writer(volume_id);
            let made = match self.with_volumes("checkpoint_drafted", writer).await? {
                Some(workspace_id) => {
                    let request =
                        |_: &Slot, answer| Request::Checkpoint { volume_id, checkpoint_id, answer };
                    self.ask_owner(workspace_id, request).await
                }
                None => {
                    self.with_volumes("checkpoint_recorded", move |volumes| {
                        volumes.checkpoint_at_rest(volume_id, checkpoint_id)
                    })
                    .await
                }
            };
            match made {
                // Another came, or the one that was asked has gone.
                Err(NodeError::VolumeInUse | NodeError::NoSuchVm) => {}
                made => return made,
            }
        }
        Err(NodeError::VolumeInUse)
    }
}
