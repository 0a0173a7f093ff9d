//! Volumes.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{FileKind, WriteMode};

/// What a workspace may do with a volume.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MountMode {
    /// Read and write. Then no other workspace has the volume.
    Rw,
    /// Read what was there when it was mounted.
    Ro,
}

/// How far a volume is.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Being made.
    Creating,
    /// It can be attached.
    Ready,
    /// It did not come about, or is gone.
    Failed,
    /// Being removed.
    Deleting,
}

/// A volume: a file system that outlives workspaces.
#[derive(Debug, Serialize, ToSchema)]
pub struct Volume {
    /// Its identity, a UUID.
    pub id: String,
    /// Its name, of which the account has one.
    pub name: String,
    /// How large the disk of its file system is.
    pub size_mib: u64,
    /// What it takes on the server's disk; null while that is not known.
    pub used_bytes: Option<u64>,
    /// How far it is.
    pub state: VolumeState,
    /// Why it failed; present in the state `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<VolumeFailure>,
    /// Who has it.
    pub attachments: Vec<VolumeAttachment>,
    /// When it was made.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When the record last changed.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

/// Why a volume failed.
#[derive(Debug, Serialize, ToSchema)]
pub struct VolumeFailure {
    /// Stable word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// When it happened.
    #[schema(format = DateTime)]
    pub at: String,
}

/// Who has a volume.
#[derive(Debug, Serialize, ToSchema)]
pub struct VolumeAttachment {
    /// The workspace's identity.
    pub workspace_id: String,
    /// Where it is mounted there.
    pub mount_path: String,
    /// For what.
    pub mode: MountMode,
    /// Which checkpoint, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_id: Option<String>,
}

/// The account's volumes.
#[derive(Debug, Serialize, ToSchema)]
pub struct VolumeList {
    /// Newest first.
    pub volumes: Vec<Volume>,
}

/// A volume to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// A name that no other volume of the account has.
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    /// How large it is to be, MiB. Only what is written takes room.
    #[schema(minimum = 16, maximum = 4_194_304)]
    pub size_mib: u64,
}

/// A volume whose deletion has begun.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedVolume {
    /// Whether everything of it is gone.
    pub complete: bool,
}

/// What to change of a volume.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateVolume {
    /// Another name; absent: it stays.
    #[schema(min_length = 1, max_length = 255)]
    pub name: Option<String>,
    /// How large it is to be, MiB, not less than it is; absent: it stays.
    #[schema(minimum = 16, maximum = 4_194_304)]
    pub size_mib: Option<u64>,
}

/// What to list of a volume.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListVolumeFilesQuery {
    /// A path below the volume's top; absent: the top.
    #[param(example = "models")]
    pub path: Option<String>,
    /// Whether everything below is listed; links are not followed. Absent: no.
    pub recursive: Option<bool>,
    /// At most so many entries; absent: 1000.
    #[param(minimum = 1, maximum = 10_000)]
    pub limit: Option<u32>,
}

/// What to remove of a volume.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RemoveVolumeFileQuery {
    /// A path below the volume's top.
    pub path: String,
    /// Whether a directory goes with everything in it; absent: no.
    pub recursive: Option<bool>,
}

/// Which part of a volume's file to read.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReadVolumeFileQuery {
    /// A path below the volume's top.
    pub path: String,
    /// Skip this many bytes.
    #[serde(default)]
    pub offset: u64,
    /// At most this many bytes; absent: to the end.
    pub length: Option<u64>,
}

/// How to write a volume's file.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WriteVolumeFileQuery {
    /// A path below the volume's top; missing parents are made.
    pub path: String,
    /// Permission bits in octal; absent: `644`.
    #[param(example = "644", pattern = "^[0-7]{1,4}$")]
    pub mode: Option<String>,
    /// What to do when the file exists; absent: `replace`. `append` is refused.
    #[param(inline)]
    pub how: Option<WriteMode>,
}

/// What a directory of a volume holds.
#[derive(Debug, Serialize, ToSchema)]
pub struct VolumeFileList {
    /// By path.
    pub entries: Vec<VolumeFile>,
    /// Whether there are more; which of them are listed is not determined then.
    pub truncated: bool,
}

/// One file, directory or link of a volume.
#[derive(Debug, Serialize, ToSchema)]
pub struct VolumeFile {
    /// Its path below the volume's top.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Permission bits in octal, four digits.
    #[schema(example = "0644")]
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was last changed.
    #[schema(format = DateTime)]
    pub modified_at: String,
}

/// A volume that a workspace should have.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachVolume {
    /// Its identity or its name.
    pub volume: String,
    /// Where: an absolute path.
    #[schema(min_length = 2, max_length = 255)]
    pub mount_path: String,
    /// For what; absent: `rw`, and `ro` with a checkpoint.
    pub mode: Option<MountMode>,
    /// A checkpoint's identity or name (the newest ready one of it), or `latest`: the newest ready one, or
    /// the volume as it is where there is none. Absent: the volume as it is.
    pub checkpoint: Option<String>,
}

/// A volume that a workspace has.
#[derive(Debug, Serialize, ToSchema)]
pub struct VolumeMount {
    /// Which.
    pub volume_id: String,
    /// Where.
    pub mount_path: String,
    /// For what.
    pub mode: MountMode,
    /// Which checkpoint, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_id: Option<String>,
}

/// A checkpoint: what a volume was at a moment, kept unchanged. It goes with its volume.
#[derive(Debug, Serialize, ToSchema)]
pub struct Checkpoint {
    /// Its identity, a UUID.
    pub id: String,
    /// Of which volume.
    pub volume_id: String,
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: VolumeState,
    /// Why it failed; present in the state `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<VolumeFailure>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When the record last changed.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

/// The checkpoints of a volume.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckpointList {
    /// Newest first.
    pub checkpoints: Vec<Checkpoint>,
}

/// A checkpoint to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCheckpoint {
    /// A name; absent: the time.
    #[schema(min_length = 1, max_length = 255)]
    pub name: Option<String>,
}

/// The volumes of a workspace.
#[derive(Debug, Serialize, ToSchema)]
pub struct VolumeMountList {
    /// In the order in which they are mounted.
    pub volumes: Vec<VolumeMount>,
}
