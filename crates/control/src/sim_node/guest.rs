//! The simulated guest: files in a map and a handful of commands.

mod listener;
mod shell;

use std::{
    collections::BTreeMap,
    io::Read as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use skerry_internal_api::{
    ByteStream, ConnectFailure, ExecControl, ExecExit, ExecOutput, ExecRequest, ExecSession,
    FileKind, FileStat, GuestApi, GuestListener, GuestStats, GuestStream, ListeningPort, NodeError,
    SupervisorApi, User, VmSpec, WriteMode,
};
use skerry_model::{Shape, Timestamp};
use tokio::{io::DuplexStream, sync::mpsc};

use super::workloads::{SimSupervisor, Supervised};
use shell::wait_for_signal;

const PIECE: usize = 64 * 1024;
const HOME: &str = "/root";

/// What a programmed command does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimCommand {
    /// What it writes to standard output.
    pub stdout: Vec<u8>,
    /// What it writes to standard error.
    pub stderr: Vec<u8>,
    /// Its exit code.
    pub code: i32,
}

/// The inside of a simulated VM.
///
/// Commands: `echo`, `printf` (the text alone), `true`, `false`, `pwd`, `env`, `whoami`, `hostname`,
/// `cat` (files, or its input), `sleep` (until killed or timed out; 0 returns at once), `sh -c`,
/// `bash -c`, `bash -lc` (those commands and `exit N`, joined by `;`, `&&` and `||`, words in quotes,
/// `>&2` at the end), and what [`SimGuest::program`] adds. Everything else is `no_such_command`.
pub struct SimGuest {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    inner: Mutex<Inner>,
    pub(super) supervisor: Arc<SimSupervisor>,
}

struct Inner {
    hostname: String,
    shape: Shape,
    files: BTreeMap<String, Node>,
    env: BTreeMap<String, String>,
    programs: BTreeMap<String, SimCommand>,
    ports: Vec<ListeningPort>,
    services: BTreeMap<u16, mpsc::Sender<DuplexStream>>,
    log: Vec<u8>,
    /// What a running program would hold: lost by a boot, kept by what saves memory.
    held: BTreeMap<String, String>,
}

/// What is on a disk.
#[derive(Clone)]
pub(super) struct Disk {
    files: BTreeMap<String, Node>,
    programs: BTreeMap<String, SimCommand>,
}

impl Disk {
    pub(super) fn bytes(&self) -> u64 {
        let contents = self.files.values().filter_map(|node| node.content.as_ref());
        contents.map(|content| content.len() as u64).sum()
    }
}

/// What is in the memory of a machine of this shape.
#[derive(Clone)]
pub(super) struct Memory {
    shape: Shape,
    held: BTreeMap<String, String>,
    ports: Vec<ListeningPort>,
    supervised: Supervised,
}

impl Memory {
    /// Whether a machine of this shape can take it over.
    pub(super) fn is_of(&self, shape: Shape) -> bool {
        self.shape.vcpu_count == shape.vcpu_count && self.shape.memory_mib == shape.memory_mib
    }
}

#[derive(Clone)]
struct Node {
    /// `None` for a directory.
    content: Option<Vec<u8>>,
    mode: u32,
    uid: u32,
    modified_unix_ms: i64,
}

/// `bytes` as a stream in pieces.
pub(super) fn byte_stream(bytes: &[u8]) -> ByteStream {
    let pieces: Vec<_> =
        bytes.chunks(PIECE).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces).boxed()
}

fn refused(code: &'static str, message: String) -> NodeError {
    NodeError::Guest { code, message }
}

/// An absolute path without `.`, `..` and doubled slashes.
fn normal(path: &str) -> Result<String, NodeError> {
    if !path.starts_with('/') || path.contains('\0') {
        let problem = "is not an absolute path".to_owned();
        return Err(NodeError::Invalid { field: "path", problem });
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

fn parent(path: &str) -> String {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/".to_owned(),
        Some((parent, _)) => parent.to_owned(),
    }
}

fn below(path: &str, top: &str) -> bool {
    top == "/" || path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'))
}

fn uid_of(user: &User) -> Result<u32, NodeError> {
    match user {
        User::Root | User::OfImage => Ok(0),
        User::Named(name) if name == "root" => Ok(0),
        User::Named(name) if name == "developer" => Ok(1000),
        User::Named(name) => Err(refused("no_such_user", format!("no user {name} in the guest"))),
    }
}

impl SimGuest {
    pub(super) fn new(spec: &VmSpec, now: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Arc<Self> {
        let guest = Self {
            supervisor: SimSupervisor::new(Arc::clone(&now)),
            now,
            inner: Mutex::new(Inner {
                hostname: spec.hostname.clone(),
                shape: spec.shape,
                files: BTreeMap::new(),
                env: BTreeMap::new(),
                programs: BTreeMap::new(),
                ports: Vec::new(),
                services: BTreeMap::new(),
                log: Vec::new(),
                held: BTreeMap::new(),
            }),
        };
        {
            let now = guest.now_ms();
            let mut inner = guest.inner();
            for path in ["/", "/etc", "/root", "/home", "/home/developer", "/tmp"] {
                inner.files.insert(path.to_owned(), Node::dir(0o755, 0, now));
            }
            let release = b"PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n".to_vec();
            inner.files.insert("/etc/os-release".to_owned(), Node::file(release, 0o644, 0, now));
        }
        Arc::new(guest)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> i64 {
        (self.now)().as_millisecond()
    }

    /// A boot: files stay, memory is empty.
    pub(super) fn boot(&self, spec: &VmSpec) {
        self.supervisor.boot();
        let mut inner = self.inner();
        inner.held.clear();
        inner.ports.clear();
        inner.services.clear();
        inner.configure(spec);
    }

    /// A restore: memory is as it was when it was saved.
    pub(super) fn wake(&self, spec: &VmSpec, memory: Memory) {
        self.supervisor.wake(memory.supervised);
        let mut inner = self.inner();
        inner.held = memory.held;
        inner.ports = memory.ports;
        inner.configure(spec);
    }

    pub(super) fn disk(&self) -> Disk {
        let inner = self.inner();
        Disk { files: inner.files.clone(), programs: inner.programs.clone() }
    }

    pub(super) fn replace_disk(&self, disk: Disk) {
        let mut inner = self.inner();
        inner.files = disk.files;
        inner.programs = disk.programs;
    }

    pub(super) fn memory(&self) -> Memory {
        let inner = self.inner();
        Memory {
            shape: inner.shape,
            held: inner.held.clone(),
            ports: inner.ports.clone(),
            supervised: self.supervisor.memory(),
        }
    }

    /// A program in the guest holds this in memory from now on.
    pub fn hold(&self, key: &str, value: &str) {
        self.inner().held.insert(key.to_owned(), value.to_owned());
    }

    /// What a program in the guest holds in memory.
    #[must_use]
    pub fn held(&self, key: &str) -> Option<String> {
        self.inner().held.get(key).cloned()
    }

    pub(super) fn command_log(&self) -> Vec<u8> {
        self.inner().log.clone()
    }

    /// From now on the command line `words` (joined by single spaces) does this; a single word does it with
    /// whichever arguments, unless there is a line of these.
    pub fn program(&self, words: &str, command: SimCommand) {
        self.inner().programs.insert(words.to_owned(), command);
    }

    /// From now on somebody in the guest listens on these ports.
    pub fn listen(&self, ports: Vec<ListeningPort>) {
        self.inner().ports = ports;
    }

    /// From now on connections to this port of the guest's loopback come out here.
    pub fn serve(&self, port: u16) -> mpsc::Receiver<DuplexStream> {
        let (service, connections) = mpsc::channel(16);
        self.inner().services.insert(port, service);
        connections
    }

    /// The content of a file, if it is there.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.inner().files.get(path).and_then(|node| node.content.clone())
    }

    /// Puts a file there as root, with its parents.
    pub fn put_file(&self, path: &str, content: &[u8]) {
        let now = self.now_ms();
        let mut inner = self.inner();
        inner.make_parents(path, 0, now);
        inner.files.insert(path.to_owned(), Node::file(content.to_vec(), 0o644, 0, now));
    }
}

impl Node {
    fn dir(mode: u32, uid: u32, now: i64) -> Self {
        Self { content: None, mode, uid, modified_unix_ms: now }
    }

    fn file(content: Vec<u8>, mode: u32, uid: u32, now: i64) -> Self {
        Self { content: Some(content), mode, uid, modified_unix_ms: now }
    }

    fn stat(&self, path: &str) -> FileStat {
        FileStat {
            name: path.rsplit('/').next().unwrap_or_default().to_owned(),
            path: path.to_owned(),
            kind: if self.content.is_some() { FileKind::File } else { FileKind::Directory },
            size_bytes: self.content.as_ref().map_or(4096, |content| content.len() as u64),
            mode: self.mode,
            uid: self.uid,
            gid: self.uid,
            modified_unix_ms: self.modified_unix_ms,
            link_target: None,
        }
    }
}

impl Inner {
    /// What each start gives the guest anew.
    fn configure(&mut self, spec: &VmSpec) {
        self.hostname.clone_from(&spec.hostname);
        self.shape = spec.shape;
        self.env = spec.env.iter().map(|v| (v.key.clone(), v.value.clone())).collect();
    }

    fn make_parents(&mut self, path: &str, uid: u32, now: i64) {
        let mut at = parent(path);
        while at != "/" {
            self.files.entry(at.clone()).or_insert_with(|| Node::dir(0o755, uid, now));
            at = parent(&at);
        }
    }

    fn get(&self, path: &str) -> Result<&Node, NodeError> {
        self.files.get(path).ok_or_else(|| NodeError::NoSuchFile(path.to_owned()))
    }
}

async fn collect(mut content: ByteStream) -> Result<Vec<u8>, NodeError> {
    let mut all = BytesMut::new();
    while let Some(piece) = content.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all.to_vec())
}

#[async_trait]
impl GuestApi for SimGuest {
    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, NodeError> {
        uid_of(&request.user)?;
        if let Some(dir) = &request.working_dir {
            self.inner().get(&normal(dir)?)?;
        }
        let Some(program) = request.argv.first() else {
            let problem = "is empty".to_owned();
            return Err(NodeError::Invalid { field: "argv", problem });
        };
        let sleeps =
            matches!(request.argv.as_slice(), [name, time] if name == "sleep" && time != "0");
        let reads_stdin = self.run(&request.argv, &request, b"\x01") // differs only if it reads
            != self.run(&request.argv, &request, b"");
        let done = self
            .run(&request.argv, &request, b"")
            .ok_or_else(|| refused("no_such_command", format!("{program}: no such command")))?;
        let (control, mut from_caller) = mpsc::channel(16);
        let (to_caller, output) = mpsc::channel(16);
        let log_line = format!("$ {}\n", request.argv.join(" "));
        self.inner().log.extend(log_line.into_bytes());
        if !reads_stdin && !sleeps {
            self.inner().log.extend(done.stdout.iter().chain(&done.stderr));
        }
        let echo = request.pty.is_some();
        // Ends with its caller: both channels close when the session is dropped.
        tokio::spawn(async move {
            if sleeps {
                let exit = wait_for_signal(&mut from_caller, request.timeout).await;
                let _gone = to_caller.send(Ok(ExecOutput::Exit(exit))).await;
                return;
            }
            if reads_stdin {
                while let Some(message) = from_caller.recv().await {
                    match message {
                        ExecControl::Stdin(bytes) => {
                            if to_caller.send(Ok(ExecOutput::Stdout(bytes))).await.is_err() {
                                return;
                            }
                        }
                        ExecControl::CloseStdin => break,
                        ExecControl::Resize(_) => {}
                        ExecControl::Signal(number) => {
                            let exit = ExecOutput::Exit(ExecExit::Signal(number));
                            let _gone = to_caller.send(Ok(exit)).await;
                            return;
                        }
                    }
                }
                let _gone = to_caller.send(Ok(ExecOutput::Exit(ExecExit::Code(0)))).await;
                return;
            }
            for piece in done.stdout.chunks(PIECE) {
                let piece = Bytes::copy_from_slice(piece);
                if to_caller.send(Ok(ExecOutput::Stdout(piece))).await.is_err() {
                    return;
                }
            }
            for piece in done.stderr.chunks(PIECE) {
                let piece = Bytes::copy_from_slice(piece);
                let output =
                    if echo { ExecOutput::Stdout(piece) } else { ExecOutput::Stderr(piece) };
                if to_caller.send(Ok(output)).await.is_err() {
                    return;
                }
            }
            let _gone = to_caller.send(Ok(ExecOutput::Exit(ExecExit::Code(done.code)))).await;
        });
        Ok(ExecSession { control, output })
    }

    async fn stat(&self, path: &str) -> Result<FileStat, NodeError> {
        let path = normal(path)?;
        self.inner().get(&path).map(|node| node.stat(&path))
    }

    async fn list_dir(&self, path: &str) -> Result<Vec<FileStat>, NodeError> {
        let path = normal(path)?;
        let inner = self.inner();
        if inner.get(&path)?.content.is_some() {
            return Err(refused("not_directory", format!("{path}: not a directory")));
        }
        let entries = inner.files.iter().filter(|(at, _)| **at != "/" && parent(at) == path);
        Ok(entries.map(|(at, node)| node.stat(at)).collect())
    }

    async fn read_file(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<ByteStream, NodeError> {
        let path = normal(path)?;
        let inner = self.inner();
        let Some(content) = &inner.get(&path)?.content else {
            return Err(refused("is_directory", format!("{path}: is a directory")));
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        let length = usize::try_from(length.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let end = start.saturating_add(length).min(content.len());
        Ok(byte_stream(&content[start..end]))
    }

    async fn write_file(
        &self,
        path: &str,
        mode: u32,
        how: WriteMode,
        user: User,
        content: ByteStream,
    ) -> Result<u64, NodeError> {
        let path = normal(path)?;
        let uid = uid_of(&user)?;
        let new = collect(content).await?;
        let now = self.now_ms();
        let mut inner = self.inner();
        let old = inner.files.get(&path).cloned();
        if old.as_ref().is_some_and(|node| node.content.is_none()) {
            return Err(refused("is_directory", format!("{path}: is a directory")));
        }
        let content = match (how, old.and_then(|node| node.content)) {
            (WriteMode::CreateNew, Some(_)) => {
                return Err(refused("exists", format!("{path}: already exists")));
            }
            (WriteMode::Append, Some(old)) => [old, new].concat(),
            (WriteMode::Replace | WriteMode::Append | WriteMode::CreateNew, _) => new,
        };
        let size = content.len() as u64;
        inner.make_parents(&path, uid, now);
        inner.files.insert(path, Node::file(content, mode, uid, now));
        Ok(size)
    }

    async fn make_dir(&self, path: &str, mode: u32, user: User) -> Result<(), NodeError> {
        let path = normal(path)?;
        let uid = uid_of(&user)?;
        let now = self.now_ms();
        let mut inner = self.inner();
        if inner.files.get(&path).is_some_and(|node| node.content.is_some()) {
            return Err(refused("exists", format!("{path}: already exists")));
        }
        inner.make_parents(&path, uid, now);
        inner.files.entry(path).or_insert_with(|| Node::dir(mode, uid, now));
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), NodeError> {
        let (from, to) = (normal(from)?, normal(to)?);
        let mut inner = self.inner();
        inner.get(&from)?;
        inner.get(&parent(&to))?;
        let moved: Vec<String> =
            inner.files.keys().filter(|at| **at == from || below(at, &from)).cloned().collect();
        for at in moved {
            if let Some(node) = inner.files.remove(&at) {
                inner.files.insert(format!("{to}{}", &at[from.len()..]), node);
            }
        }
        Ok(())
    }

    async fn remove(&self, path: &str) -> Result<(), NodeError> {
        let path = normal(path)?;
        let mut inner = self.inner();
        inner.get(&path)?;
        inner.files.retain(|at, _| at == "/" || (*at != path && !below(at, &path)));
        Ok(())
    }

    async fn upload_tree(&self, path: &str, user: User, tar: ByteStream) -> Result<u64, NodeError> {
        let top = normal(path)?;
        let uid = uid_of(&user)?;
        let bytes = collect(tar).await?;
        let now = self.now_ms();
        let bad = |error: std::io::Error| refused("other", format!("not a tar stream: {error}"));
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut count = 0;
        let mut inner = self.inner();
        inner.make_parents(&format!("{top}/x"), uid, now);
        for entry in archive.entries().map_err(bad)? {
            let mut entry = entry.map_err(bad)?;
            let name = entry.path().map_err(bad)?.to_string_lossy().into_owned();
            if name.starts_with('/') || name.split('/').any(|part| part == "..") {
                return Err(refused("other", format!("{name}: leaves the directory")));
            }
            let at = normal(&format!("{top}/{name}"))?;
            let mode = entry.header().mode().map_err(bad)? & 0o7777;
            let node = if entry.header().entry_type().is_dir() {
                Node::dir(mode, uid, now)
            } else {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).map_err(bad)?;
                Node::file(content, mode, uid, now)
            };
            inner.make_parents(&at, uid, now);
            inner.files.insert(at, node);
            count += 1;
        }
        Ok(count)
    }

    async fn download_tree(&self, path: &str) -> Result<ByteStream, NodeError> {
        let top = normal(path)?;
        let inner = self.inner();
        inner.get(&top)?;
        let prefix = parent(&top);
        let bad = |error: std::io::Error| refused("other", error.to_string());
        let mut archive = tar::Builder::new(Vec::new());
        for (at, node) in inner.files.iter().filter(|(at, _)| **at == top || below(at, &top)) {
            let name = at.strip_prefix(&prefix).unwrap_or(at).trim_start_matches('/');
            let content = node.content.as_deref().unwrap_or_default();
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(node.mode);
            header.set_uid(u64::from(node.uid));
            header.set_gid(u64::from(node.uid));
            header.set_mtime(u64::try_from(node.modified_unix_ms / 1000).unwrap_or(0));
            header.set_entry_type(if node.content.is_some() {
                tar::EntryType::Regular
            } else {
                tar::EntryType::Directory
            });
            archive.append_data(&mut header, name, content).map_err(bad)?;
        }
        Ok(byte_stream(&archive.into_inner().map_err(bad)?))
    }

    async fn stats(&self) -> Result<GuestStats, NodeError> {
        let shape = self.inner().shape;
        let (memory, disk) = (shape.memory_mib.bytes(), shape.disk_mib.bytes());
        Ok(GuestStats {
            uptime_ms: 1000,
            cpu_used_ms: 100,
            cpus_online: shape.vcpu_count.get(),
            memory_total_bytes: memory,
            memory_available_bytes: memory / 2,
            disk_total_bytes: disk,
            disk_used_bytes: disk / 4,
            processes: 3,
        })
    }

    async fn connect(&self, host: &str, port: u16) -> Result<GuestStream, NodeError> {
        let is_here = matches!(host, "localhost" | "127.0.0.1" | "::1");
        let service = self.inner().services.get(&port).cloned().filter(|_| is_here);
        let (near, far) = tokio::io::duplex(PIECE);
        if let Some(service) = service
            && service.send(far).await.is_ok()
        {
            return Ok(Box::new(near));
        }
        let why = if is_here { ConnectFailure::Refused } else { ConnectFailure::Unreachable };
        Err(NodeError::NotConnected { why, message: format!("{host} port {port}: {why:?}") })
    }

    async fn listen(&self, port: u16, user: User) -> Result<Box<dyn GuestListener>, NodeError> {
        listener::open(self, port, &user)
    }

    async fn listening_ports(&self) -> Result<Vec<ListeningPort>, NodeError> {
        Ok(self.inner().ports.clone())
    }

    fn supervisor(&self) -> Arc<dyn SupervisorApi> {
        Arc::clone(&self.supervisor) as Arc<dyn SupervisorApi>
    }
}
