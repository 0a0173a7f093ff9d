//! Files in the guest, its logs, and its resources.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Names a path in the guest.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PathQuery {
    /// Absolute path, at most 4096 bytes.
    #[param(example = "/etc/os-release")]
    pub path: String,
}

/// Which path to look at, and how closely.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListFilesQuery {
    /// Absolute path.
    #[param(example = "/etc")]
    pub path: String,
    /// Whether to list a directory's entries; absent: yes.
    pub entries: Option<bool>,
}

/// Which part of a file to read.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReadFileQuery {
    /// Absolute path.
    pub path: String,
    /// Skip this many bytes.
    #[serde(default)]
    pub offset: u64,
    /// At most this many bytes; absent: to the end.
    pub length: Option<u64>,
}

/// How to write a file.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WriteFileQuery {
    /// Absolute path; missing parents are made.
    pub path: String,
    /// Permission bits in octal; absent: `644`.
    #[param(example = "644", pattern = "^[0-7]{1,4}$")]
    pub mode: Option<String>,
    /// What to do when the file exists; absent: `replace`.
    #[param(inline)]
    pub how: Option<WriteMode>,
    /// Login name of the owner; absent: `root`.
    pub user: Option<String>,
}

/// What to do when a file exists already.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WriteMode {
    /// Replace it in one step.
    Replace,
    /// Append to it.
    Append,
    /// Refuse.
    CreateNew,
}

/// Where to unpack a tree.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WriteTreeQuery {
    /// Absolute path of a directory; made if missing.
    pub path: String,
    /// Login name of the owner; absent: `root`.
    pub user: Option<String>,
}

/// What was written.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileWritten {
    /// Where.
    pub path: String,
    /// The file's size afterwards.
    pub size_bytes: u64,
}

/// What was unpacked.
#[derive(Debug, Serialize, ToSchema)]
pub struct TreeWritten {
    /// Where.
    pub path: String,
    /// Number of entries.
    pub entries: u64,
}

/// A file, and the entries when it is a directory.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileListing {
    /// What the path is.
    pub file: File,
    /// The entries of a directory by name; `null` for anything else, and when not asked for.
    pub entries: Option<Vec<File>>,
}

/// One file, directory or link. Links are not followed.
#[derive(Debug, Serialize, ToSchema)]
pub struct File {
    /// Last component of the path.
    pub name: String,
    /// Absolute path.
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
    /// Where a link points.
    pub link_target: Option<String>,
}

/// What a path is.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// A directory to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MakeDirectory {
    /// Absolute path; missing parents are made.
    pub path: String,
    /// Permission bits in octal; absent: `755`.
    #[schema(pattern = "^[0-7]{1,4}$")]
    pub mode: Option<String>,
    /// Login name of the owner; absent: `root`.
    pub user: Option<String>,
}

/// A file or directory to rename.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameFile {
    /// Absolute path.
    pub from: String,
    /// Absolute path; a file there is replaced.
    pub to: String,
}

/// Which log, and how much of it.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Absent: the console.
    #[param(inline)]
    pub source: Option<LogSource>,
    /// How much of the log's end, up to 16 MiB; absent: 64 KiB.
    #[param(maximum = 16_777_216)]
    pub tail_bytes: Option<u64>,
}

/// Which log.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// The guest's serial console.
    Console,
    /// Commands run without a terminal, with their output.
    Commands,
}

/// The guest's view of its resources.
#[derive(Debug, Serialize, ToSchema)]
pub struct Stats {
    /// Milliseconds since the guest's kernel started.
    pub uptime_ms: u64,
    /// CPU time used since then by all CPUs, in milliseconds.
    pub cpu_used_ms: u64,
    /// Number of CPUs.
    pub cpus_online: u32,
    /// Memory in all.
    pub memory_total_bytes: u64,
    /// Memory that programs could still get.
    pub memory_available_bytes: u64,
    /// Size of the root file system.
    pub disk_total_bytes: u64,
    /// Space in use on it.
    pub disk_used_bytes: u64,
    /// Number of processes.
    pub processes: u32,
}

/// The TCP ports the guest listens on.
#[derive(Debug, Serialize, ToSchema)]
pub struct PortList {
    /// The ports in ascending order.
    pub ports: Vec<Port>,
}

/// A TCP port somebody in the guest listens on.
#[derive(Debug, Serialize, ToSchema)]
pub struct Port {
    /// The port.
    pub port: u16,
    /// The address it is bound to.
    pub address: String,
    /// Process id, when known.
    pub pid: Option<u32>,
    /// Process name, when known.
    pub process: Option<String>,
}
