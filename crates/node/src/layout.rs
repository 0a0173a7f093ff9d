//! Where everything of the node lies on the host's file systems, and the durable file operations
//! used there.
//!
//! ```text
//! <data-dir>/lock, node-id
//! <data-dir>/vms/<workspace uuid>/ledger.jsonl, spec.json, machine-id, disk.json,
//!                                 console.log[.1], commands.log[.1], run/, suspended/
//! <data-dir>/layers/<layer id>.qcow2
//! <data-dir>/templates/<key>/, snapshots/<snapshot uuid>/[promoted/]
//! <data-dir>/pool/<number>/, run/<number>/
//! <memory-dir>/<tag>-<workspace uuid>.ram
//! ```
//! When `<data-dir>` is too deep for a socket's address, `run/` lies below a short private directory
//! instead; the ledger names it either way.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{TMPFS_MAGIC, statfs},
    unistd::geteuid,
};
use sha2::{Digest, Sha256};
use skerry_model::{NodeId, SnapshotId, WorkspaceId};

use crate::{Error, NodeConfig, NodeEnvironment};

/// The longest path a VM's run directory may have, so that every socket in it has a valid address.
const MAX_RUN_DIR_BYTES: usize = 80;

/// How long another server's lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The paths of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmPaths {
    pub dir: PathBuf,
    pub ledger: PathBuf,
    pub spec: PathBuf,
    pub machine_id: PathBuf,
    pub disk: PathBuf,
    pub console_log: PathBuf,
    pub command_log: PathBuf,
    pub run_dir: PathBuf,
    pub memory_file: PathBuf,
    /// The memory of a suspended VM.
    pub suspended: PathBuf,
}

/// The directories of one node.
#[derive(Debug)]
pub(crate) struct Layout {
    pub data_dir: PathBuf,
    pub memory_dir: PathBuf,
    /// Parent of the run directories when they do not fit below the data directory.
    pub short_run_base: Option<PathBuf>,
    /// Eight hexadecimal digits that tell two data directories of one host apart.
    pub tag: String,
    /// Held as long as the node lives: one server for one data directory.
    _lock: Flock<File>,
}

impl Layout {
    /// Makes and locks the directories.
    pub fn open(config: &NodeConfig) -> Result<Self, Error> {
        for (setting, path) in [("data_dir", &config.data_dir), ("image_dir", &config.image_dir)] {
            if !path.is_absolute() {
                let problem = format!("{} is not absolute", path.display());
                return Err(Error::Config { setting, problem });
            }
        }
        fs::create_dir_all(&config.data_dir).map_err(Error::path("making", &config.data_dir))?;
        // One name for one directory, however it is reached: the tag depends on it.
        let data_dir =
            config.data_dir.canonicalize().map_err(Error::path("resolving", &config.data_dir))?;
        let lock = lock(&data_dir)?;
        make_private_dir(&data_dir.join("vms"))?;
        let tag = tag_of(&data_dir);
        let memory_dir = match &config.memory_dir {
            Some(dir) => {
                // Somebody else's choice and perhaps shared (`/dev/shm`): its rights stay as they are.
                fs::create_dir_all(dir).map_err(Error::path("making", dir))?;
                dir.clone()
            }
            None => {
                let dir = default_memory_dir(&data_dir, &tag);
                make_private_dir(&dir)?;
                dir
            }
        };
        let short_run_base = short_run_base(config, &data_dir, &tag)?;
        if short_run_base.is_none() {
            make_private_dir(&data_dir.join("run"))?;
        }
        Ok(Self { data_dir, memory_dir, short_run_base, tag, _lock: lock })
    }

    /// Parent of all VM directories.
    pub fn vms_dir(&self) -> PathBuf {
        self.data_dir.join("vms")
    }

    /// Frozen disk layers.
    pub fn layers_dir(&self) -> PathBuf {
        self.data_dir.join("layers")
    }

    /// Parent of all templates.
    pub fn templates_dir(&self) -> PathBuf {
        self.data_dir.join("templates")
    }

    /// Where the template with this key is.
    pub fn template(&self, key: &str) -> PathBuf {
        self.templates_dir().join(key)
    }

    /// Parent of all snapshots.
    pub fn snapshots_dir(&self) -> PathBuf {
        self.data_dir.join("snapshots")
    }

    /// Where a snapshot is.
    pub fn snapshot(&self, snapshot_id: SnapshotId) -> PathBuf {
        self.snapshots_dir().join(snapshot_id.to_string())
    }

    /// Where a snapshot's memory is in the form that VMs can share, once it was made.
    pub fn promoted(&self, snapshot_id: SnapshotId) -> PathBuf {
        self.snapshot(snapshot_id).join("promoted")
    }

    /// Parent of all volumes.
    pub fn volumes_dir(&self) -> PathBuf {
        self.data_dir.join("volumes")
    }

    /// Parent of the pool's slots.
    pub fn pool_dir(&self) -> PathBuf {
        self.data_dir.join("pool")
    }

    /// Parent of the directories for the sockets of VMs whose own directory may be renamed while
    /// they run.
    pub fn run_base(&self) -> PathBuf {
        self.short_run_base.clone().unwrap_or_else(|| self.data_dir.join("run"))
    }

    /// The paths of a VM that is nobody's: in the pool's directory, with the sockets elsewhere,
    /// because that directory is renamed when it is claimed.
    pub fn nobodys(&self, number: WorkspaceId) -> VmPaths {
        let run_dir = self.run_base().join(number.as_uuid().simple().to_string());
        VmPaths { run_dir, ..self.paths_in(self.pool_dir().join(number.to_string()), number) }
    }

    /// The paths of a workspace's VM.
    pub fn vm(&self, workspace_id: WorkspaceId) -> VmPaths {
        self.paths_in(self.vms_dir().join(workspace_id.to_string()), workspace_id)
    }

    fn paths_in(&self, dir: PathBuf, workspace_id: WorkspaceId) -> VmPaths {
        VmPaths {
            ledger: dir.join("ledger.jsonl"),
            spec: dir.join("spec.json"),
            machine_id: dir.join("machine-id"),
            disk: dir.join("disk.qcow2"),
            console_log: dir.join("console.log"),
            command_log: dir.join("commands.log"),
            run_dir: match &self.short_run_base {
                Some(base) => base.join(workspace_id.as_uuid().simple().to_string()),
                None => dir.join("run"),
            },
            memory_file: self.memory_dir.join(format!("{}-{workspace_id}.ram", self.tag)),
            suspended: dir.join("suspended"),
            dir,
        }
    }

    /// Memory files of ours of which `known` says that no VM uses them.
    pub fn stray_memory_files(&self, known: impl Fn(WorkspaceId) -> bool) -> Vec<PathBuf> {
        let id_of = |name: &str| {
            let name = name.strip_prefix(&self.tag)?.strip_prefix('-')?;
            name.strip_suffix(".ram")?.parse::<WorkspaceId>().ok()
        };
        let names = names_in(&self.memory_dir).unwrap_or_default().into_iter();
        names
            .filter(|name| id_of(name).is_some_and(|id| !known(id)))
            .map(|name| self.memory_dir.join(name))
            .collect()
    }

    /// Directories of sockets of ours of which `known` says that no VM uses them.
    pub fn stray_run_dirs(&self, known: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
        let base = self.run_base();
        // As we write it: 32 digits and nothing else.
        let is_ours = |name: &str| {
            name.parse::<WorkspaceId>().is_ok_and(|id| id.as_uuid().simple().to_string() == name)
        };
        let names = names_in(&base).unwrap_or_default().into_iter();
        let ours = names.filter(|name| is_ours(name)).map(|name| base.join(name));
        ours.filter(|dir| !known(dir)).collect()
    }

    /// The workspaces that have a directory here, and names that are not of ours.
    pub fn scan(&self) -> Result<(Vec<WorkspaceId>, Vec<String>), Error> {
        numbers_in(&self.vms_dir())
    }

    /// The VMs that are nobody's, and names that are not of ours.
    pub fn scan_nobodys(&self) -> Result<(Vec<WorkspaceId>, Vec<String>), Error> {
        numbers_in(&self.pool_dir())
    }

    /// Removes the directories outside the data directory as far as they are empty.
    pub fn leave(&self) {
        if self.memory_dir.ends_with(format!("skerry-{}", self.tag)) {
            remove_if_empty(&self.memory_dir);
        }
        if let Some(own) = &self.short_run_base {
            remove_if_empty(own);
            // Other data directories may have theirs beside it.
            own.parent().into_iter().for_each(remove_if_empty);
        }
    }
}

fn numbers_in(parent: &Path) -> Result<(Vec<WorkspaceId>, Vec<String>), Error> {
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for name in names_in(parent)? {
        match WorkspaceId::from_str(&name) {
            // Only the form we write: another spelling of the id would be another directory.
            Ok(id) if id.to_string() == name => ours.push(id),
            Ok(_) | Err(_) => others.push(name),
        }
    }
    Ok((ours, others))
}

fn remove_if_empty(dir: &Path) {
    if let Err(error) = fs::remove_dir(dir)
        && !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound)
    {
        tracing::debug!(dir = %dir.display(), %error, "directory left");
    }
}

/// Locks the directory. A server that was killed holds its lock until the kernel has taken it apart,
/// and a child of it until that child runs its own program: who starts the next server at once must
/// not be turned away for that, so the lock is waited for a little.
fn lock(data_dir: &Path) -> Result<Flock<File>, Error> {
    let path = data_dir.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(Error::path("opening", &path))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((held, Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                file = held;
                thread::sleep(LOCK_PAUSE);
            }
            Err((_, Errno::EWOULDBLOCK)) => return Err(Error::DataDirInUse(data_dir.to_owned())),
            Err((_, errno)) => return Err(Error::path("locking", &path)(errno.into())),
        }
    }
}

/// `/dev/shm` when guests fit there, else the data directory's own disk: slower, but a small tmpfs
/// (a container's 64 MiB) would kill guests that touch their memory.
/// Where guest memory of a node with this data directory will be, which need not be there yet.
pub(crate) fn planned_memory_dir(data_dir: &Path) -> PathBuf {
    let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    default_memory_dir(&data_dir, &tag_of(&data_dir))
}

fn tag_of(data_dir: &Path) -> String {
    hex(&Sha256::digest(data_dir.as_os_str().as_bytes())[..4])
}

fn default_memory_dir(data_dir: &Path, tag: &str) -> PathBuf {
    let shm = Path::new("/dev/shm");
    let memory_bytes = crate::capacity::host_memory_mib() * 1024 * 1024;
    let large = statfs(shm).is_ok_and(|fs| {
        let size = fs.blocks().saturating_mul(u64::try_from(fs.block_size()).unwrap_or(0));
        fs.filesystem_type() == TMPFS_MAGIC && size >= memory_bytes / 2
    });
    let writable = nix::unistd::access(shm, nix::unistd::AccessFlags::W_OK).is_ok();
    if large && writable { shm.join(format!("skerry-{tag}")) } else { data_dir.join("memory") }
}

fn short_run_base(
    config: &NodeConfig,
    data_dir: &Path,
    tag: &str,
) -> Result<Option<PathBuf>, Error> {
    let longest = data_dir.join("vms").join("-".repeat(36)).join("run");
    if longest.as_os_str().len() <= MAX_RUN_DIR_BYTES {
        return Ok(None);
    }
    let base = match &config.runtime_dir {
        Some(dir) => dir.join("skerry"),
        None if geteuid().is_root() => PathBuf::from("/run/skerry"),
        None => PathBuf::from(format!("/tmp/skerry-{}", geteuid())),
    };
    let own = base.join(tag);
    if own.as_os_str().len() + 33 > MAX_RUN_DIR_BYTES {
        return Err(Error::Config {
            setting: "data_dir",
            problem: format!(
                "{} and {} are both too deep for socket addresses",
                data_dir.display(),
                own.display()
            ),
        });
    }
    make_private_dir(&base)?;
    make_private_dir(&own)?;
    Ok(Some(own))
}

/// Makes `dir` for us alone, or checks that what is there is ours alone: in a shared place such as
/// `/tmp` somebody else may have been first.
pub(crate) fn make_private_dir(dir: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(dir)
                .map_err(Error::path("making", dir));
        }
        Err(error) => return Err(Error::path("making", dir)(error)),
    }
    let found = fs::symlink_metadata(dir).map_err(Error::path("looking at", dir))?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() {
        let source = io::Error::new(io::ErrorKind::PermissionDenied, "not our own directory");
        return Err(Error::path("using", dir)(source));
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(Error::path("closing", dir))?;
    }
    Ok(())
}

/// The names in a directory; none when it is not there. Names that are not UTF-8 are not ours and
/// are shown lossily.
pub(crate) fn names_in(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::path("listing", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::path("listing", dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Writes a whole file so that after a crash either the old or the new content is there.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> Result<(), Error> {
    put_durably(path, |temporary| stage(temporary, content))
}

/// [`write_durably`] of content that names `also`, which is durable before it is named. Both go to
/// the disk at the same time: one wait instead of two.
pub(crate) fn write_durably_naming(path: &Path, content: &[u8], also: &File) -> Result<(), Error> {
    put_durably(path, |temporary| {
        thread::scope(|scope| {
            let syncing = scope.spawn(|| also.sync_all());
            let staged = stage(temporary, content);
            let lost = |_| Err(io::Error::other("the thread that synced was lost"));
            syncing.join().unwrap_or_else(lost).and(staged)
        })
    })
}

fn put_durably(path: &Path, stage: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Error> {
    let temporary = path.with_extension("new");
    stage(&temporary)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(Error::path("writing", path))?;
    sync_parent(path)
}

fn stage(temporary: &Path, content: &[u8]) -> io::Result<()> {
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(temporary)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes the directory entry of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(Error::path("syncing", parent))
}

/// Removes a file; one that is not there is a success.
pub(crate) fn remove_file(path: &Path) -> Result<(), Error> {
    absent_is_success(fs::remove_file(path)).map_err(Error::path("removing", path))
}

/// Removes a directory with everything in it; one that is not there is a success. Symbolic links are
/// removed, not followed.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    absent_is_success(fs::remove_dir_all(path)).map_err(Error::path("removing", path))
}

/// Removes an empty directory; one that is not there is a success.
pub(crate) fn remove_dir(path: &Path) -> Result<(), Error> {
    absent_is_success(fs::remove_dir(path)).map_err(Error::path("removing", path))
}

fn absent_is_success(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The node's id: made once, then read.
pub(crate) fn node_id(data_dir: &Path, environment: &NodeEnvironment) -> Result<NodeId, Error> {
    let path = data_dir.join("node-id");
    match fs::read_to_string(&path) {
        Ok(text) => NodeId::from_str(text.trim()).map_err(|error| Error::Config {
            setting: "data_dir",
            problem: format!("{} holds no id: {error}", path.display()),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = NodeId::from_random(environment.random());
            write_durably(&path, format!("{id}\n").as_bytes())?;
            Ok(id)
        }
        Err(error) => Err(Error::path("reading", &path)(error)),
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_of_a_server_that_is_just_ending_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        thread::scope(|scope| {
            let next = scope.spawn(|| lock(dir.path()).map(drop));
            drop(held);
            next.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_directory_that_stays_locked_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let _held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(Error::DataDirInUse(_))));
    }
}
