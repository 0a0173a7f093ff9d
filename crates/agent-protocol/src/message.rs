//! The JSON of the calls. Unknown fields are ignored, so that a newer peer may say more.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// Makes the guest a particular workspace's guest. Sent first on every connection; applying it again
/// is harmless. What it does, and in which order: [`CONFIGURE`](crate::call::CONFIGURE).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// A DNS label.
    pub hostname: String,
    /// 32 lower-case hexadecimal digits. Empty (since revision 1) in a guest that belongs to nobody yet
    /// because it is going to be cloned: it keeps no identity at all.
    pub machine_id: String,
    /// Fresh random bytes for the guest's kernel,
    /// [`ENTROPY_MIN`](crate::limits::ENTROPY_MIN) to [`ENTROPY_MAX`](crate::limits::ENTROPY_MAX).
    pub entropy: Vec<u8>,
    /// Wall clock, nanoseconds since 1970.
    pub unix_time_ns: i64,
    /// Environment of every process that is started from now on, in place of any earlier one.
    pub env: BTreeMap<String, String>,
    /// Which start of the workspace this is; repeated in the answer.
    pub incarnation: u64,
}

impl fmt::Debug for Configure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configure")
            .field("hostname", &self.hostname)
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}

/// Answer to [`Configure`]: the guest is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// The agent's version.
    pub agent_version: String,
    /// The guest kernel's boot id: changes when the guest restarted behind our back.
    pub boot_id: String,
    /// The generation the agent serves.
    pub generation: u16,
    /// How much of it: [`REVISION`](crate::REVISION).
    #[serde(default)]
    pub revision: u16,
    /// As asked.
    pub incarnation: u64,
    /// The guest was this already, and its clock goes on as it was: what it was told had only grown old
    /// on the way (since revision 7).
    #[serde(default)]
    pub clock_kept: bool,
}

/// Sets the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Nanoseconds since 1970.
    pub unix_time_ns: i64,
}

/// For how long the file systems may stay frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// The agent thaws by itself after so many milliseconds of the guest's own time, 1 to
    /// [`THAW_AFTER_MAX_MS`](crate::limits::THAW_AFTER_MAX_MS): a host that dies must not leave a guest
    /// that cannot write. While a VM is paused or saved its time stands still.
    pub thaw_after_ms: u64,
}

/// The file systems take writes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thawed {
    /// Whether they had been frozen without a gap since the last freeze call: a copy of the disk made
    /// in between is of one moment. False also when nothing was frozen.
    pub held: bool,
}

/// The root disk was made larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grow {
    /// Its size now. The agent waits for the guest's kernel to see it.
    pub disk_size_bytes: u64,
}

/// The root file system is as large as its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grown {
    /// What it gained.
    pub gained_bytes: u64,
}

/// A disk to be mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The disk's serial number.
    pub serial: String,
    /// Where: absolute, without `.` and `..`.
    pub path: String,
    /// Whether files can only be read.
    pub read_only: bool,
}

/// A disk to be let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmount {
    /// The disk's serial number: what else may be mounted at the path is left alone.
    pub serial: String,
    /// Where it was mounted.
    pub path: String,
}

/// What to do to a guest that is going to be cloned, beside removing what must not be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Give up what the kernel keeps of files already read.
    pub drop_caches: bool,
}

/// The guest can be cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Memory that is in use for anything, caches included.
    pub memory_used_bytes: u64,
}

/// No parameters, or nothing to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// As whom something is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum User {
    /// uid 0.
    Root,
    /// By login name.
    Named(String),
}

/// A terminal's size in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// A command to run.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the environment of the configure call.
    pub env: BTreeMap<String, String>,
    /// Working directory; the user's home if missing.
    pub working_dir: Option<String>,
    /// As whom.
    pub user: User,
    /// With a terminal, or with pipes if missing.
    pub terminal: Option<Terminal>,
    /// The process group is killed after this long.
    pub timeout_ms: Option<u64>,
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec")
            .field("program", &self.argv.first())
            .field("user", &self.user)
            .field("terminal", &self.terminal)
            .finish_non_exhaustive()
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// Killed because its time was over.
    TimedOut,
}

/// A path and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Absolute.
    pub path: String,
}

/// Part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Absolute.
    pub path: String,
    /// First byte.
    pub offset: u64,
    /// At most so many; to the end if missing.
    pub length: Option<u64>,
}

/// What to do with a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteMode {
    /// Replace it in one step.
    Replace,
    /// Add to its end.
    Append,
    /// Refuse.
    CreateNew,
}

/// A file to write; its bytes follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Absolute.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// If it exists.
    pub how: WriteMode,
    /// Owner of the file and of parents that are made.
    pub user: User,
}

/// A file was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Its size now.
    pub size_bytes: u64,
}

/// A directory to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeDir {
    /// Absolute.
    pub path: String,
    /// Permission bits of the last component.
    pub mode: u32,
    /// Owner of what is made.
    pub user: User,
}

/// A renaming.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// Absolute.
    pub from: String,
    /// Absolute.
    pub to: String,
}

/// A tree to unpack; the tar stream follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Absolute; the directory to unpack into.
    pub path: String,
    /// Owner of what is made.
    pub user: User,
}

/// A tree was unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Number of entries.
    pub entries: u64,
}

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Other,
}

/// One entry. It carries no path: the asker knows where it asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Last component, lossily decoded.
    pub name: String,
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
    /// Where a symbolic link points.
    pub link_target: Option<String>,
}

/// A directory, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<Stat>,
}

/// Resource use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Since boot.
    pub uptime_ms: u64,
    /// All CPUs, user and system, since boot.
    pub cpu_used_ms: u64,
    /// CPUs online.
    pub cpus_online: u32,
    /// Memory in all.
    pub memory_total_bytes: u64,
    /// Memory that could be given out.
    pub memory_available_bytes: u64,
    /// Root file system.
    pub disk_total_bytes: u64,
    /// In use on it.
    pub disk_used_bytes: u64,
    /// Number of processes.
    pub processes: u32,
}

/// One listening TCP port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The number.
    pub port: u16,
    /// The address it is bound to.
    pub address: String,
    /// Owner, if found.
    pub pid: Option<u32>,
    /// Its name, if found.
    pub process: Option<String>,
}

/// Listening TCP ports, sorted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// The ports.
    pub ports: Vec<Port>,
}

/// A TCP connection to be made from inside the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// An address, `localhost`, or a name in the guest's `/etc/hosts`; at most
    /// [`HOST_MAX`](crate::limits::HOST_MAX) bytes.
    pub host: String,
    /// 1 to 65,535.
    pub port: u16,
}

/// A TCP port of the guest's loopback to listen on: of 127.0.0.1, and of ::1 where that can be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// 0 for one that is free; below [`UNPRIVILEGED_PORT_MIN`](crate::limits::UNPRIVILEGED_PORT_MIN) for
    /// root alone.
    pub port: u16,
    /// As whom.
    pub user: User,
}

/// First part of the answer to [`Listen`]: the port is listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// The port.
    pub port: u16,
}

/// Each further part: somebody in the guest has connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// What [`Accept`] calls it.
    pub connection: u64,
    /// Where it comes from.
    pub peer: SocketAddr,
}

/// A connection to be taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// As [`Incoming`] calls it.
    pub connection: u64,
}

/// Why a call failed, as stable words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// A path does not exist.
    NoSuchFile,
    /// A path exists and must not.
    Exists,
    /// A directory where a file is needed.
    IsDirectory,
    /// Not a directory where one is needed.
    NotDirectory,
    /// Permission denied.
    PermissionDenied,
    /// Beyond a limit.
    TooLarge,
    /// The guest's disk is full.
    NoSpace,
    /// No such login name.
    NoSuchUser,
    /// The program was not found.
    NoSuchCommand,
    /// The request makes no sense.
    Invalid,
    /// Configure comes first.
    NotConfigured,
    /// Nobody listens there (since revision 2, as the next three).
    ConnectionRefused,
    /// No way leads there.
    Unreachable,
    /// Nobody answered in time.
    ConnectTimeout,
    /// The name has no address.
    NoSuchHost,
    /// Something in the guest uses it (since revision 3).
    Busy,
    /// Anything else; also every word a newer agent may say.
    #[serde(other)]
    Other,
}

/// Body of an answer whose status is not 200.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which kind.
    pub code: FailureCode,
    /// A sentence.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_of_the_first_build_is_understood() {
        let said = r#"{"agent_version":"0.1.0","boot_id":"b","generation":1,"incarnation":7}"#;
        let configured: Configured = serde_json::from_str(said).unwrap();
        assert_eq!((configured.revision, configured.incarnation), (0, 7));
        assert!(!configured.clock_kept);
    }

    #[test]
    fn a_host_that_says_more_is_understood() {
        let said = r#"{"thaw_after_ms":5,"word_of_the_future":[1]}"#;
        assert_eq!(serde_json::from_str::<Freeze>(said).unwrap(), Freeze { thaw_after_ms: 5 });
    }
}
