//! Files of a mounted volume, and its growth: calls that never leave the file system they are about. All
//! since revision 4.
//!
//! Which file system is meant says the disk's serial number and where it is mounted; both have to be so
//! when the call is made. Paths lie below the mount: relative, without `.` and `..`, at most
//! [`PATH_MAX`](crate::limits::PATH_MAX) bytes; the empty path is the mounted directory itself. Links
//! are followed as far as they stay inside; whatever leads out, or into something else that is mounted
//! there, is refused.

use serde::{Deserialize, Serialize};

use crate::message::{FileKind, WriteMode};

/// What a path is, a link at its end not followed. [`Path`], [`Entry`].
pub const STAT: &str = "/1/volumes/stat";
/// A directory, or everything below it. [`List`], [`Listing`].
pub const LIST: &str = "/1/volumes/list";
/// Bytes of a file. [`Read`], raw bytes.
pub const READ: &str = "/1/volumes/read";
/// Writes a file, making missing parents; answered when it is on the disk. A link at the end of the path
/// is replaced, not followed. [`Write`] and raw bytes, [`Written`](crate::message::Written).
pub const WRITE: &str = "/1/volumes/write";
/// Removes a file, or a directory; answered when that is on the disk. [`Remove`], empty object.
pub const REMOVE: &str = "/1/volumes/remove";
/// Grows the file system to the size of its disk, which was made larger under it. [`Grow`],
/// [`Grown`](crate::message::Grown).
pub const GROW: &str = "/1/volumes/grow";

/// Entries in one listing at most.
pub const LISTING_ENTRIES_MAX: u32 = 10_000;

/// A mounted volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The serial number of its disk.
    pub serial: String,
    /// Where it is mounted: absolute.
    pub mount_path: String,
}

/// Something in a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Which volume.
    pub volume: Volume,
    /// Below its mount.
    pub path: String,
}

/// How far a listing goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// The entries of the directory.
    One,
    /// Everything below it. Links are not followed.
    All,
}

/// A directory to list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Which volume.
    pub volume: Volume,
    /// The directory; a file is listed as itself.
    pub path: String,
    /// How far down.
    pub depth: Depth,
    /// At most so many entries, 1 to [`LISTING_ENTRIES_MAX`].
    pub limit: u32,
}

/// A file or directory in a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Below the mount, lossily decoded.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Milliseconds since 1970.
    pub modified_unix_ms: i64,
}

/// Entries, sorted by path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<Entry>,
    /// There are more than could be listed. Which of them are listed is not determined then.
    pub truncated: bool,
}

/// Part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Which volume.
    pub volume: Volume,
    /// The file.
    pub path: String,
    /// First byte.
    pub offset: u64,
    /// At most so many; to the end if missing.
    pub length: Option<u64>,
}

/// A file to write; its bytes follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Which volume.
    pub volume: Volume,
    /// The file. It belongs to root, as do parents that are made.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// If it exists; [`WriteMode::Append`] is refused.
    pub how: WriteMode,
}

/// A file or directory to remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remove {
    /// Which volume.
    pub volume: Volume,
    /// Not the mounted directory itself.
    pub path: String,
    /// Whether a directory goes with everything in it; if not, only an empty one goes.
    pub recursive: bool,
}

/// A volume whose disk was made larger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grow {
    /// Which volume.
    pub volume: Volume,
    /// The size of its disk now. The agent waits for the guest's kernel to see it.
    pub disk_size_bytes: u64,
}
