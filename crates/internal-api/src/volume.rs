//! Volumes as a node has them.

use serde::{Deserialize, Serialize};
use skerry_model::{CheckpointId, VolumeId};

/// A volume as the node has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Which.
    pub id: VolumeId,
    /// How large the disk of its file system is.
    pub size_bytes: u64,
    /// What it takes on the node's disk, its checkpoints included.
    pub used_bytes: u64,
    /// Its complete checkpoints, in no order.
    #[serde(default)]
    pub checkpoints: Vec<CheckpointId>,
}
