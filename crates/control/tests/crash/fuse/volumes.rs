//! What control has the store do of volumes.

use async_trait::async_trait;
use skerry_control::{
    Error,
    store::{
        Attaching, CheckpointDeletion, CheckpointInsertion, VolumeDeletion, VolumeStore,
        WantedMount, Write,
    },
};
use skerry_model::{
    AccountId, Attachment, Checkpoint, CheckpointId, Plan, Timestamp, Volume, VolumeId,
    VolumeMount, WorkspaceId,
};

use super::FusedStore;

#[async_trait]
impl VolumeStore for FusedStore {
    async fn insert_volume(&self, volume: &Volume, plan: &Plan) -> Result<Write<Volume>, Error> {
        self.1.counted(self.0.insert_volume(volume, plan)).await
    }

    async fn update_volume(&self, volume: &Volume) -> Result<Write<Volume>, Error> {
        self.1.counted(self.0.update_volume(volume)).await
    }

    async fn grow_volume(&self, volume: &Volume, plan: &Plan) -> Result<Write<Volume>, Error> {
        self.1.counted(self.0.grow_volume(volume, plan)).await
    }

    async fn begin_volume_deletion(&self, volume: &Volume) -> Result<VolumeDeletion, Error> {
        self.1.counted(self.0.begin_volume_deletion(volume)).await
    }

    async fn remove_volume(&self, id: VolumeId, revision: u64) -> Result<Write<()>, Error> {
        self.1.counted(self.0.remove_volume(id, revision)).await
    }

    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, Error> {
        self.1.uncounted(self.0.volume(id)).await
    }

    async fn list_volumes(&self, account_id: AccountId) -> Result<Vec<Volume>, Error> {
        self.1.uncounted(self.0.list_volumes(account_id)).await
    }

    async fn volumes_after(
        &self,
        after: Option<VolumeId>,
        limit: u32,
    ) -> Result<Vec<Volume>, Error> {
        self.1.uncounted(self.0.volumes_after(after, limit)).await
    }

    async fn attach_volumes(
        &self,
        account_id: AccountId,
        workspace_id: WorkspaceId,
        wanted: &[WantedMount],
        now: Timestamp,
    ) -> Result<Attaching, Error> {
        self.1.counted(self.0.attach_volumes(account_id, workspace_id, wanted, now)).await
    }

    async fn detach_volume(
        &self,
        workspace_id: WorkspaceId,
        volume_id: VolumeId,
    ) -> Result<bool, Error> {
        self.1.counted(self.0.detach_volume(workspace_id, volume_id)).await
    }

    async fn mounts_of(&self, workspace_id: WorkspaceId) -> Result<Vec<VolumeMount>, Error> {
        self.1.uncounted(self.0.mounts_of(workspace_id)).await
    }

    async fn mounts_between(
        &self,
        after: Option<WorkspaceId>,
        through: WorkspaceId,
    ) -> Result<Vec<Attachment>, Error> {
        self.1.uncounted(self.0.mounts_between(after, through)).await
    }

    async fn attachments_of(&self, volume_id: VolumeId) -> Result<Vec<Attachment>, Error> {
        self.1.uncounted(self.0.attachments_of(volume_id)).await
    }

    async fn insert_checkpoint(
        &self,
        checkpoint: &Checkpoint,
    ) -> Result<CheckpointInsertion, Error> {
        self.1.counted(self.0.insert_checkpoint(checkpoint)).await
    }

    async fn update_checkpoint(&self, checkpoint: &Checkpoint) -> Result<Write<Checkpoint>, Error> {
        self.1.counted(self.0.update_checkpoint(checkpoint)).await
    }

    async fn begin_checkpoint_deletion(
        &self,
        checkpoint: &Checkpoint,
    ) -> Result<CheckpointDeletion, Error> {
        self.1.counted(self.0.begin_checkpoint_deletion(checkpoint)).await
    }

    async fn remove_checkpoint(&self, id: CheckpointId, revision: u64) -> Result<Write<()>, Error> {
        self.1.counted(self.0.remove_checkpoint(id, revision)).await
    }

    async fn checkpoint(&self, id: CheckpointId) -> Result<Option<Checkpoint>, Error> {
        self.1.uncounted(self.0.checkpoint(id)).await
    }

    async fn list_checkpoints(&self, volume_id: VolumeId) -> Result<Vec<Checkpoint>, Error> {
        self.1.uncounted(self.0.list_checkpoints(volume_id)).await
    }

    async fn checkpoints_after(
        &self,
        after: Option<CheckpointId>,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, Error> {
        self.1.uncounted(self.0.checkpoints_after(after, limit)).await
    }

    async fn detach_from_unrecorded(&self, before: Timestamp) -> Result<u64, Error> {
        self.1.uncounted(self.0.detach_from_unrecorded(before)).await
    }
}
