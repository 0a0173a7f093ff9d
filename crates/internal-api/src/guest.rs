//! What can be done inside a running guest. Tenant bytes travel as streams with back-pressure: a
//! slow reader stalls only its own stream.

use std::{collections::BTreeMap, fmt, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::{NodeError, SupervisorApi};

/// A stream of bytes with errors, in pieces of at most 64 KiB.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, NodeError>> + Send>>;

/// As whom a process runs or a file is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// uid 0.
    Root,
    /// Whom the workspace's image names for its programs; root if it names nobody. For files it is
    /// root.
    OfImage,
    /// By login name, looked up in the guest's own `/etc/passwd`.
    Named(String),
}

/// A terminal's size in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pty {
    /// Columns, 1 to 1000.
    pub columns: u16,
    /// Rows, 1 to 1000.
    pub rows: u16,
}

/// A command to run.
#[derive(Clone)]
pub struct ExecRequest {
    /// Program and arguments; the program is looked up in the guest's `PATH`. Not empty.
    pub argv: Vec<String>,
    /// Added to (and overriding) the workspace's own environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; `None` means the user's home.
    pub working_dir: Option<String>,
    /// As whom.
    pub user: User,
    /// With a terminal of this size, or with three pipes.
    pub pty: Option<Pty>,
    /// After this long the whole process group is killed and the exit is `TimedOut`.
    pub timeout: Option<Duration>,
}

/// Neither arguments nor values of variables: both may hold secrets.
impl fmt::Debug for ExecRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecRequest")
            .field("program", &self.argv.first())
            .field("env_names", &self.env.keys())
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// What a running command is told. Sent in order with its input.
#[derive(Clone, Debug)]
pub enum ExecControl {
    /// Bytes for standard input (or the terminal).
    Stdin(Bytes),
    /// End of standard input.
    CloseStdin,
    /// The terminal's new size.
    Resize(Pty),
    /// A signal for the process group, by number.
    Signal(i32),
}

/// What a running command says.
#[derive(Clone, Debug)]
pub enum ExecOutput {
    /// Standard output; with a terminal, everything.
    Stdout(Bytes),
    /// Standard error; never with a terminal.
    Stderr(Bytes),
    /// It ended: the last item.
    Exit(ExecExit),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecExit {
    /// With this code, 0 to 255.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
    /// Killed because its time was over.
    TimedOut,
}

/// Both directions of a running command. Dropping the session hangs up: the guest kills the process
/// group.
#[derive(Debug)]
pub struct ExecSession {
    /// To the command. Bounded: awaiting `send` is the back-pressure.
    pub control: mpsc::Sender<ExecControl>,
    /// From the command. Bounded; ends after `Exit`, or with an error if the guest is lost.
    pub output: mpsc::Receiver<Result<ExecOutput, NodeError>>,
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// One entry of a directory, or one file (symbolic links are not followed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// Last component of the path, lossily decoded.
    pub name: String,
    /// Absolute path.
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
    /// Where a symbolic link points.
    pub link_target: Option<String>,
}

/// What to do when the file is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// Replace it atomically (temporary file, sync, rename).
    Replace,
    /// Append to it.
    Append,
    /// Refuse with code `exists`.
    CreateNew,
}

/// The guest's own view of its resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestStats {
    /// Seconds since the guest's kernel started, in milliseconds.
    pub uptime_ms: u64,
    /// CPU time used since boot, all CPUs, user and system, in milliseconds.
    pub cpu_used_ms: u64,
    /// Number of online CPUs.
    pub cpus_online: u32,
    /// Memory in all.
    pub memory_total_bytes: u64,
    /// Memory that could still be given to programs.
    pub memory_available_bytes: u64,
    /// Size of the root file system.
    pub disk_total_bytes: u64,
    /// Space on it that is in use.
    pub disk_used_bytes: u64,
    /// Number of processes.
    pub processes: u32,
}

/// A TCP port somebody in the guest listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListeningPort {
    /// The port.
    pub port: u16,
    /// The address it is bound to, as text.
    pub address: String,
    /// Process id, when it could be found.
    pub pid: Option<u32>,
    /// Process name, when it could be found.
    pub process: Option<String>,
}

/// Both directions of a TCP connection inside the guest. Shutting it down ends what is sent alone, its
/// end when read is the other side's; dropped before both, the connection is reset, as soon as the guest has
/// taken what was sent before.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Some [`Duplex`].
pub type GuestStream = Box<dyn Duplex>;

/// A connection that somebody inside the guest has made to a port that is listened on for us.
pub struct GuestVisitor {
    /// Both directions.
    pub stream: GuestStream,
    /// Where it comes from, by the guest's word.
    pub peer: SocketAddr,
}

/// A TCP port of the guest's loopback that is listened on for us. Dropping it closes the port and turns
/// away who waits; connections that were accepted stay.
#[async_trait]
pub trait GuestListener: Send {
    /// The port.
    fn port(&self) -> u16;

    /// The next connection, however long it takes. A wait that is given up loses at most one, which is
    /// reset.
    ///
    /// # Errors
    /// The end of the listener: the guest, or the line to it, is gone.
    async fn accept(&mut self) -> Result<GuestVisitor, NodeError>;
}

/// The inside of one running VM.
#[async_trait]
pub trait GuestApi: Send + Sync {
    /// Starts a command. Errors before it runs (no such command, user, directory) come from here.
    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, NodeError>;

    /// What is at `path` (absolute), not following a final symbolic link.
    async fn stat(&self, path: &str) -> Result<FileStat, NodeError>;

    /// The entries of a directory, sorted by name, at most 50,000.
    async fn list_dir(&self, path: &str) -> Result<Vec<FileStat>, NodeError>;

    /// The bytes of a file from `offset`, at most `length` of them.
    async fn read_file(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<ByteStream, NodeError>;

    /// Writes a file as `user` with permission bits `mode`, making missing parents. Returns its size.
    async fn write_file(
        &self,
        path: &str,
        mode: u32,
        how: WriteMode,
        user: User,
        content: ByteStream,
    ) -> Result<u64, NodeError>;

    /// Makes a directory and its missing parents.
    async fn make_dir(&self, path: &str, mode: u32, user: User) -> Result<(), NodeError>;

    /// Renames, replacing a file at `to`.
    async fn rename(&self, from: &str, to: &str) -> Result<(), NodeError>;

    /// Removes a file, or a directory with everything in it.
    async fn remove(&self, path: &str) -> Result<(), NodeError>;

    /// Unpacks a tar stream below the directory `path`, made if missing. Entries that would leave
    /// it are refused. Returns the number of entries.
    async fn upload_tree(&self, path: &str, user: User, tar: ByteStream) -> Result<u64, NodeError>;

    /// The file or directory at `path` as a tar stream; entry names start with its last component.
    async fn download_tree(&self, path: &str) -> Result<ByteStream, NodeError>;

    /// Resource use.
    async fn stats(&self) -> Result<GuestStats, NodeError>;

    /// Connects to a TCP port from inside the guest. `host` is an address, `localhost` (which tries
    /// 127.0.0.1, then ::1) or a name in the guest's `/etc/hosts`; `port` is not 0. A reader that stops
    /// holds back its connection alone.
    ///
    /// # Errors
    /// [`NodeError::NotConnected`]; [`NodeError::Unsupported`] by a guest whose agent is too old.
    async fn connect(&self, host: &str, port: u16) -> Result<GuestStream, NodeError>;

    /// Listens on a TCP port of the guest's loopback (127.0.0.1, and ::1 if the guest has it), 0 for a free
    /// one. Below 1024 for root alone, as in the guest itself.
    ///
    /// # Errors
    /// [`NodeError::Guest`] (`busy`, `permission_denied`, `too_large` beyond 32 of one guest);
    /// [`NodeError::Unsupported`] by a guest whose agent is too old.
    async fn listen(&self, port: u16, user: User) -> Result<Box<dyn GuestListener>, NodeError>;

    /// Listening TCP ports, sorted.
    async fn listening_ports(&self) -> Result<Vec<ListeningPort>, NodeError>;

    /// What runs in it by itself.
    fn supervisor(&self) -> Arc<dyn SupervisorApi>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_shows_neither_its_arguments_nor_values_of_variables() {
        let request = ExecRequest {
            argv: vec!["curl".to_owned(), "-utoken".to_owned()],
            env: BTreeMap::from([("KEY".to_owned(), "hunter2".to_owned())]),
            working_dir: None,
            user: User::Root,
            pty: None,
            timeout: None,
        };
        let shown = format!("{request:?}");
        assert!(shown.contains("curl") && shown.contains("KEY"), "{shown}");
        assert!(!shown.contains("token") && !shown.contains("hunter2"), "{shown}");
    }
}
