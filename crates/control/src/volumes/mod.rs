//! Volumes: file systems that outlive workspaces, made, listed, given to workspaces and taken away.
//!
//! A workspace that stops, or is suspended, keeps what it has; deleting it gives its volumes back.

mod attach;
mod checkpoints;
mod compare;
mod files;
mod manage;

pub(crate) use compare::{MountTurns, Mounted};

use skerry_model::{Attachment, CheckpointId, MountMode, Volume, VolumeId};

/// How a request names a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeRef {
    /// By identity.
    Id(VolumeId),
    /// By its name, of which the account has one.
    Name(String),
}

/// What a new volume should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVolume {
    /// 1 to 255 characters, no control characters, unique in the account.
    pub name: String,
    /// 16 MiB to 4 TiB.
    pub size_mib: u64,
}

/// How a workspace should get a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachVolume {
    /// Which.
    pub volume: VolumeRef,
    /// Where: an absolute path.
    pub path: String,
    /// For what.
    pub mode: MountMode,
    /// Which of its checkpoints, to be read only; `None`: the volume as it is.
    pub checkpoint: Option<CheckpointRef>,
}

/// How a request names a checkpoint of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointRef {
    /// The newest one that is ready; where there is none, the volume as it is.
    Latest,
    /// By identity.
    Id(CheckpointId),
    /// By its name: the newest one of that name that is ready.
    Name(String),
}

/// A volume and who has it.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeView {
    /// The record.
    pub volume: Volume,
    /// What it takes on the node's disk; `None` when the node does not say.
    pub used_bytes: Option<u64>,
    /// Who has it.
    pub attachments: Vec<Attachment>,
}
