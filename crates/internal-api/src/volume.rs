//! Volumes as a node has them, and their files.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use skerry_model::{CheckpointId, VolumeId};

use crate::{ByteStream, FileKind, NodeError, WriteMode};

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

/// A file or directory of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Its path below the volume's top, without a slash at either end; lossily decoded.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, milliseconds since 1970.
    pub modified_unix_ms: i64,
}

/// What a directory of a volume holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeListing {
    /// Sorted by path.
    pub entries: Vec<VolumeEntry>,
    /// There are more; which of them are listed is not determined.
    pub truncated: bool,
}

/// How far a listing goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListDepth {
    /// The entries of the directory.
    One,
    /// Everything below it; links are not followed.
    All,
}

/// What a removal takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveDepth {
    /// A file, or an empty directory.
    One,
    /// Also a directory with everything in it.
    All,
}

/// The files of one volume, for as long as whoever serves them has it: when a VM takes it over, or the one
/// that has it ends, what is under way fails and the next call has to ask the node anew.
///
/// Paths are relative to the volume's top; the empty one is the top itself. Nothing outside of the volume
/// is reached, whatever links are on it. What was written or removed is on the disk when the call answers.
#[async_trait]
pub trait VolumeFiles: Send + Sync {
    /// What is at `path`, not following a link at its end.
    async fn stat(&self, path: &str) -> Result<VolumeEntry, NodeError>;

    /// What the directory `path` holds; a file is listed as itself. At most `limit` entries, and at most
    /// 10,000.
    async fn list(
        &self,
        path: &str,
        depth: ListDepth,
        limit: u32,
    ) -> Result<VolumeListing, NodeError>;

    /// The bytes of a file from `offset`, at most `length` of them.
    async fn read(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<ByteStream, NodeError>;

    /// Writes a file with permission bits `mode`, owned by root, in one step, making missing parents.
    /// Returns its size. [`WriteMode::Append`] is refused.
    async fn write(
        &self,
        path: &str,
        mode: u32,
        how: WriteMode,
        content: ByteStream,
    ) -> Result<u64, NodeError>;

    /// Removes what is at `path`.
    async fn remove(&self, path: &str, depth: RemoveDepth) -> Result<(), NodeError>;
}
