//! Paths that stay below a directory, however links and mounts below it are laid.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
};
use skerry_agent_protocol::{limits::PATH_MAX, message::FailureCode};

use crate::AgentError;

/// How often a path is looked up anew because somebody renamed a part of it meanwhile (openat2(2)).
const LOOKUPS: u32 = 64;

/// A relative path without `.`, `..` and NUL; empty for the directory itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Below(PathBuf);

impl Below {
    /// Checks a path.
    pub(super) fn parse(text: &str) -> Result<Self, AgentError> {
        if text.len() > PATH_MAX {
            let message = format!("a path has at most {PATH_MAX} bytes");
            return Err(AgentError::refused(FailureCode::TooLarge, message));
        }
        let path = PathBuf::from(text);
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || text.contains('\0') {
            let message = format!("{text:?} is not a path below the volume's top");
            return Err(AgentError::invalid(message));
        }
        Ok(Self(path))
    }

    pub(super) fn as_path(&self) -> &Path {
        &self.0
    }

    /// For messages.
    pub(super) fn shown(&self) -> &Path {
        if self.0.as_os_str().is_empty() { Path::new("/") } else { &self.0 }
    }

    /// The directory it is in and its name there; `None` for the top.
    pub(super) fn split(&self) -> Option<(Self, &Path)> {
        let name = self.0.file_name()?;
        Some((Self(self.0.parent().unwrap_or(Path::new("")).to_owned()), Path::new(name)))
    }
}

/// The directory that nothing leaves.
#[derive(Debug)]
pub(super) struct Root(File);

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Root {
    pub(super) fn new(directory: File) -> Self {
        Self(directory)
    }

    pub(super) fn directory(&self) -> &File {
        &self.0
    }

    /// Opens what is there. Links are followed as long as they stay inside.
    pub(super) fn open(&self, path: &Below, flags: OFlag) -> io::Result<OwnedFd> {
        self.open_with(&path.0, flags, ResolveFlag::empty())
    }

    /// The same where no part of the path may be a link.
    pub(super) fn open_plain(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        self.open_with(path, flags, ResolveFlag::RESOLVE_NO_SYMLINKS)
    }

    fn open_with(&self, path: &Path, flags: OFlag, further: ResolveFlag) -> io::Result<OwnedFd> {
        let inside = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let mut lookups = 0;
        loop {
            let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(inside | further);
            match openat2(&self.0, path, how) {
                Err(Errno::EAGAIN) if lookups < LOOKUPS => lookups += 1,
                opened => return opened.map_err(Into::into),
            }
        }
    }

    /// Opens a directory.
    pub(super) fn open_dir(&self, path: &Below) -> io::Result<File> {
        self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map(File::from)
    }

    /// Opens a directory, made with its parents where they are missing, each of them on the disk when
    /// this returns.
    pub(super) fn make_dirs(&self, path: &Below) -> io::Result<File> {
        let mut so_far = Below(PathBuf::new());
        let mut directory = self.open_dir(&so_far)?;
        for part in path.0.iter() {
            so_far.0.push(part);
            directory = match self.open_dir(&so_far) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let make = std::fs::DirBuilder::new()
                        .mode(0o755)
                        .create(path_in(&directory, Path::new(part)));
                    match make {
                        Ok(()) => directory.sync_all()?,
                        // Somebody else was faster, or a link leads to nothing: the next look says.
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                        Err(error) => return Err(error),
                    }
                    self.open_dir(&so_far)?
                }
                opened => opened?,
            };
        }
        Ok(directory)
    }
}

/// A name in an open directory, for calls that take a path: what the directory is called by now does not
/// matter. The name has one part.
pub(super) fn path_in(directory: &impl AsRawFd, name: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name)
}

/// Turns a failed system call about `path` into a refusal.
pub(super) fn about(path: &Below) -> impl Fn(io::Error) -> AgentError {
    let subject = path.shown().to_string_lossy().into_owned();
    move |error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EXDEV) => AgentError::refused(
            FailureCode::PermissionDenied,
            format!("{subject}: leads out of the volume"),
        ),
        Some(_) | None => AgentError::from_io(&subject, &error),
    }
}
