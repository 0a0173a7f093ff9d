//! Opens and makes what a boot hands to the process.

use std::{
    fs::{self, OpenOptions, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{OpenOptionsExt, PermissionsExt, fchown},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use nix::libc;

use super::{command_line::File, volumes::Files};
use crate::{BootSpec, Cable, DiskSpec, VmmError};

/// The sockets of a VM, by the names under which later lives of ours find them.
#[derive(Clone, Debug)]
pub(super) struct Sockets {
    pub(super) qmp: PathBuf,
    pub(super) agent: PathBuf,
    pub(super) console: PathBuf,
}

impl Sockets {
    pub(super) fn in_dir(run_dir: &Path) -> Self {
        Self {
            qmp: run_dir.join("qmp.sock"),
            agent: run_dir.join("agent.sock"),
            console: run_dir.join("console.sock"),
        }
    }

    pub(super) fn all(&self) -> [&Path; 3] {
        [&self.qmp, &self.agent, &self.console]
    }
}

/// What a boot that fails has to take away again.
#[derive(Debug, Default)]
pub(super) struct Made(Vec<PathBuf>);

impl Made {
    /// The boot succeeded: the files are the caller's now.
    pub(super) fn keep(mut self) {
        self.0.clear();
    }

    fn listen(&mut self, path: PathBuf) -> Result<OwnedFd, VmmError> {
        self.0.push(path.clone());
        listen(&path).map_err(|source| failed("bind", &path, source))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // Gone already is as good; anything else the caller's removal of the directory meets.
            let _ = fs::remove_file(path);
        }
    }
}

/// What a restored VM has in place of a kernel and of memory of its own.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) state: fs::File,
    /// The memory that it shares; `None` for one that gets its own.
    pub(super) memory: Option<fs::File>,
}

/// Makes sockets and memory, opens everything, and gives the writable files to the VM's user. The
/// answer is in the order of `files`.
pub(super) fn open_all(
    spec: &BootSpec,
    files: &[File],
    mut restored: Option<Restored>,
    made: &mut Made,
) -> Result<Vec<OwnedFd>, VmmError> {
    private_dir(&spec.run_dir)?;
    files.iter().map(|file| open(*file, spec, restored.as_mut(), made)).collect()
}

fn open(
    file: File,
    spec: &BootSpec,
    restored: Option<&mut Restored>,
    made: &mut Made,
) -> Result<OwnedFd, VmmError> {
    let uid = spec.sandbox.uid;
    let sockets = Sockets::in_dir(&spec.run_dir);
    let disk = || spec.disk.as_ref().ok_or_else(|| missing("disk"));
    match file {
        File::Qmp => made.listen(sockets.qmp),
        File::Agent => made.listen(sockets.agent),
        File::Console => made.listen(sockets.console),
        File::Memory => match restored.and_then(|restored| restored.memory.take()) {
            Some(memory) => Ok(memory.into()),
            None => {
                let path = spec.memory_file.as_ref().ok_or_else(|| missing("memory_file"))?;
                made.0.push(path.clone());
                make_memory(path, spec.memory_mib.bytes(), uid)
                    .map_err(|source| failed("make the memory file", path, source))
            }
        },
        File::State => {
            let restored = restored.ok_or_else(|| missing("state"))?;
            let copy = restored.state.try_clone();
            Ok(copy.map_err(|source| failed("open", Path::new("the saved state"), source))?.into())
        }
        File::Kernel => open_shared(&spec.kernel, uid),
        File::Initramfs => open_shared(&spec.initramfs, uid),
        File::Base => open_shared(&disk()?.base, uid),
        File::Layer(from_base) => {
            let layer = disk()?.layers.iter().rev().nth(from_base);
            open_shared(layer.ok_or_else(|| missing("disk.layers"))?, uid)
        }
        File::Overlay => give_overlay(&disk()?.overlay, uid),
        File::Tap => match &spec.cable {
            Cable::Tap { tap: Some(tap) } => {
                let copy = tap.as_fd().try_clone_to_owned();
                copy.map_err(|source| failed("copy", Path::new("the tap"), source))
            }
            Cable::Tap { tap: None } | Cable::Loose => Err(missing("cable")),
        },
    }
}

fn missing(field: &'static str) -> VmmError {
    VmmError::InvalidSpec { field, reason: "is missing".into() }
}

/// Gives an overlay to the VM's user and opens it. The descriptor names the file and cannot write
/// it: the process opens it again for writing, so that it holds nothing writable of ours once the
/// overlay is frozen and somebody else's.
pub(super) fn give_overlay(path: &Path, uid: Option<u32>) -> Result<OwnedFd, VmmError> {
    open_own(path, uid).map_err(|source| failed("open the overlay", path, source))
}

/// Opens a volume's files, as those of the root disk are opened.
pub(super) fn open_volume(disk: &DiskSpec, uid: Option<u32>) -> Result<Files, VmmError> {
    let layers = disk.layers.iter().rev().map(|layer| open_shared(layer, uid));
    Ok(Files {
        base: open_shared(&disk.base, uid)?,
        layers: layers.collect::<Result<_, _>>()?,
        overlay: give_overlay(&disk.overlay, uid)?,
    })
}

/// A sealed memory file that the process opens for reading.
pub(super) fn open_sealed_memory(path: &Path, uid: Option<u32>) -> Result<fs::File, VmmError> {
    Ok(open_shared(path, uid)?.into())
}

/// A pipe for the process's messages: our reading end, its writing end.
pub(super) fn log_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // A full pipe must lose messages, not stop the machine.
    nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

fn private_dir(path: &Path) -> Result<(), VmmError> {
    fs::set_permissions(path, Permissions::from_mode(0o700))
        .map_err(|source| failed("make private", path, source))
}

/// Connecting to a socket needs the right to write it, so its mode keeps everybody else out even
/// where the directory would not.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    remove_if_there(path)?;
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener.into())
}

/// Made anew each time: an older file may still be mapped by a process that is ending.
fn make_memory(path: &Path, bytes: u64, uid: Option<u32>) -> io::Result<OwnedFd> {
    remove_if_there(path)?;
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(bytes)?;
    give_to(&file, uid)?;
    Ok(file.into())
}

/// A file that every VM reads and none may write.
fn open_shared(path: &Path, uid: Option<u32>) -> Result<OwnedFd, VmmError> {
    let open = || {
        let file = OpenOptions::new().read(true).open(path)?;
        let mode = file.metadata()?.mode_bits();
        if uid.is_some() && mode & 0o004 == 0 {
            let reason = format!("mode {mode:03o} does not let the VM's user read it");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        Ok(file.into())
    };
    open().map_err(|source| failed("open", path, source))
}

/// The VM's own file. Its last path component is not followed: what we give away must be the file
/// itself.
fn open_own(path: &Path, uid: Option<u32>) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    give_to(&file, uid)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file.into())
}

fn give_to(file: &fs::File, uid: Option<u32>) -> io::Result<()> {
    match uid {
        Some(uid) => fchown(file, Some(uid), Some(uid)),
        None => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(action: &str, path: &Path, source: io::Error) -> VmmError {
    VmmError::Io { context: format!("{action} {}", path.display()), source }
}

trait ModeBits {
    fn mode_bits(&self) -> u32;
}

impl ModeBits for fs::Metadata {
    fn mode_bits(&self) -> u32 {
        self.permissions().mode() & 0o777
    }
}
