//! What a database has to offer for volumes.

use async_trait::async_trait;
use skerry_model::{
    AccountId, AttachRefusal, Attachment, Checkpoint, CheckpointId, MountMode, MountPath, Plan,
    Timestamp, Volume, VolumeId, VolumeMount, WorkspaceId,
};

use super::Write;
use crate::Error;

/// A volume that a workspace is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedMount {
    /// Which.
    pub volume_id: VolumeId,
    /// Where.
    pub path: MountPath,
    /// For what.
    pub mode: MountMode,
    /// Which of its checkpoints; `None`: the volume as it is.
    pub checkpoint_id: Option<CheckpointId>,
}

/// What came of attaching volumes to a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attaching {
    /// The workspace has all of them, in the order asked.
    Done(Vec<VolumeMount>),
    /// The account has no such volume.
    NoVolume(VolumeId),
    /// The volume is not ready; the word is its state's.
    NotReady(VolumeId, &'static str),
    /// The volume has no such checkpoint that is ready.
    NoCheckpoint(VolumeId),
    /// The workspace gets none of them because of this one.
    Refused(VolumeId, AttachRefusal),
}

/// What came of beginning a volume's deletion.
#[derive(Clone, Debug, PartialEq)]
pub enum VolumeDeletion {
    /// It is being deleted: the record as it now is.
    Begun(Box<Volume>),
    /// The record has changed since it was read, or is gone.
    Stale,
    /// This workspace has it.
    AttachedTo(WorkspaceId),
}

/// What came of recording a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckpointInsertion {
    /// It is recorded, with revision 1.
    Done(Checkpoint),
    /// The volume has as many as it may have: this many.
    TooMany(u32),
    /// There is no such volume, or it is not ready.
    NoVolume,
}

/// What came of beginning a checkpoint's deletion.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckpointDeletion {
    /// It is being deleted: the record as it now is.
    Begun(Checkpoint),
    /// The record has changed since it was read, or is gone.
    Stale,
    /// This workspace reads it.
    AttachedTo(WorkspaceId),
}

/// Volumes in the database.
#[async_trait]
pub trait VolumeStore: Send + Sync {
    /// Records a volume, if the plan admits it ([`skerry_model::limits::admit_volume`]);
    /// [`Write::Taken`] when the account has one of its name. The written record has revision 1.
    async fn insert_volume(&self, volume: &Volume, plan: &Plan) -> Result<Write<Volume>, Error>;

    /// Replaces name and state if the record's revision is still `volume.revision`; [`Write::Taken`]
    /// when the account has another one of the name. The written record has the next revision.
    async fn update_volume(&self, volume: &Volume) -> Result<Write<Volume>, Error>;

    /// Replaces the size by `volume`'s, which is larger, if the record's revision is still
    /// `volume.revision` and the plan admits it ([`skerry_model::limits::admit_volume_growth`]).
    async fn grow_volume(&self, volume: &Volume, plan: &Plan) -> Result<Write<Volume>, Error>;

    /// Replaces the record by `volume`, whose deletion has begun, if its revision is still
    /// `volume.revision` and no workspace has it at the moment of the write.
    async fn begin_volume_deletion(&self, volume: &Volume) -> Result<VolumeDeletion, Error>;

    /// Removes the record if its revision is still this one; `Stale` otherwise.
    async fn remove_volume(&self, id: VolumeId, revision: u64) -> Result<Write<()>, Error>;

    /// One volume, of any account.
    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, Error>;

    /// The account's volumes, newest first.
    async fn list_volumes(&self, account_id: AccountId) -> Result<Vec<Volume>, Error>;

    /// At most `limit` volumes of all accounts with an identifier after `after`, in order of
    /// identifiers: for walking over everything without holding it.
    async fn volumes_after(
        &self,
        after: Option<VolumeId>,
        limit: u32,
    ) -> Result<Vec<Volume>, Error>;

    /// Gives a workspace volumes of the account, all or none
    /// ([`skerry_model::admit_attachment`]). The workspace need not be recorded yet.
    async fn attach_volumes(
        &self,
        account_id: AccountId,
        workspace_id: WorkspaceId,
        wanted: &[WantedMount],
        now: Timestamp,
    ) -> Result<Attaching, Error>;

    /// Takes a volume from a workspace; answers whether it had it.
    async fn detach_volume(
        &self,
        workspace_id: WorkspaceId,
        volume_id: VolumeId,
    ) -> Result<bool, Error>;

    /// What the workspace has, in order of slots.
    async fn mounts_of(&self, workspace_id: WorkspaceId) -> Result<Vec<VolumeMount>, Error>;

    /// What workspaces have whose identifiers are above `after`, up to `through`.
    async fn mounts_between(
        &self,
        after: Option<WorkspaceId>,
        through: WorkspaceId,
    ) -> Result<Vec<Attachment>, Error>;

    /// Who has the volume.
    async fn attachments_of(&self, volume_id: VolumeId) -> Result<Vec<Attachment>, Error>;

    /// Records a checkpoint of a volume that is ready, if that has fewer than
    /// [`skerry_model::MAX_CHECKPOINTS_OF_A_VOLUME`].
    async fn insert_checkpoint(
        &self,
        checkpoint: &Checkpoint,
    ) -> Result<CheckpointInsertion, Error>;

    /// Replaces the state if the record's revision is still `checkpoint.revision`. The written record has
    /// the next revision.
    async fn update_checkpoint(&self, checkpoint: &Checkpoint) -> Result<Write<Checkpoint>, Error>;

    /// Replaces the record by `checkpoint`, whose deletion has begun, if its revision is still
    /// `checkpoint.revision` and no workspace reads it at the moment of the write.
    async fn begin_checkpoint_deletion(
        &self,
        checkpoint: &Checkpoint,
    ) -> Result<CheckpointDeletion, Error>;

    /// Removes the record if its revision is still this one; `Stale` otherwise.
    async fn remove_checkpoint(&self, id: CheckpointId, revision: u64) -> Result<Write<()>, Error>;

    /// One checkpoint, of any account.
    async fn checkpoint(&self, id: CheckpointId) -> Result<Option<Checkpoint>, Error>;

    /// The volume's checkpoints, newest first.
    async fn list_checkpoints(&self, volume_id: VolumeId) -> Result<Vec<Checkpoint>, Error>;

    /// At most `limit` checkpoints of all accounts with an identifier after `after`, in order of
    /// identifiers.
    async fn checkpoints_after(
        &self,
        after: Option<CheckpointId>,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, Error>;

    /// Takes volumes from workspaces that have not come to be recorded since `before`; answers from how
    /// many.
    async fn detach_from_unrecorded(&self, before: Timestamp) -> Result<u64, Error>;
}
