//! Looking at files and small changes to the tree.

use std::{
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, Seek, SeekFrom},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown},
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use nix::libc;
use skerry_agent_protocol::{
    limits::{LISTING_ENTRIES_MAX, PATH_MAX},
    message::{self, Empty, FailureCode, FileKind, Listing, Stat},
};
use tokio::io::AsyncReadExt;

use crate::{
    AgentError, Guest,
    body::{self, Answer},
    freeze::OffThread,
    users::Account,
};

/// What is read from a file at a time.
const PIECE: usize = 64 * 1024;

/// `path` if it is one we take: absolute, without NUL, short enough.
pub(crate) fn checked(path: &str) -> Result<PathBuf, AgentError> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(AgentError::invalid(format!("{path:?} is not an absolute path")));
    }
    if path.len() > PATH_MAX {
        return Err(AgentError::refused(
            FailureCode::TooLarge,
            format!("a path has at most {PATH_MAX} bytes"),
        ));
    }
    Ok(PathBuf::from(path))
}

pub(crate) async fn stat(guest: &Guest, request: message::Path) -> Result<Answer, AgentError> {
    let path = checked(&request.path)?;
    let stat = guest
        .blocking(move || {
            let metadata = fs::symlink_metadata(&path).map_err(about(&path))?;
            Ok(describe(&path, path.file_name().unwrap_or(OsStr::new("/")), &metadata))
        })
        .await?;
    body::json(&stat)
}

pub(crate) async fn list(guest: &Guest, request: message::Path) -> Result<Answer, AgentError> {
    let path = checked(&request.path)?;
    let listing = guest.blocking(move || read_dir(&path)).await?;
    body::listing_json(&listing)
}

fn read_dir(dir: &Path) -> Result<Listing, AgentError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(about(dir))? {
        let entry = entry.map_err(about(dir))?;
        if entries.len() == LISTING_ENTRIES_MAX {
            return Err(AgentError::refused(
                FailureCode::TooLarge,
                format!("{}: more than {LISTING_ENTRIES_MAX} entries", dir.display()),
            ));
        }
        match entry.metadata() {
            Ok(metadata) => entries.push(describe(&entry.path(), &entry.file_name(), &metadata)),
            // It went away in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(about(&entry.path())(error)),
        }
    }
    entries.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(Listing { entries })
}

fn describe(path: &Path, name: &OsStr, metadata: &Metadata) -> Stat {
    let file_type = metadata.file_type();
    let kind = if file_type.is_file() {
        FileKind::File
    } else if file_type.is_dir() {
        FileKind::Directory
    } else if file_type.is_symlink() {
        FileKind::Symlink
    } else {
        FileKind::Other
    };
    let link_target = if kind == FileKind::Symlink { fs::read_link(path).ok() } else { None };
    Stat {
        name: name.to_string_lossy().into_owned(),
        kind,
        size_bytes: metadata.size(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified_unix_ms: metadata
            .mtime()
            .saturating_mul(1000)
            .saturating_add(metadata.mtime_nsec() / 1_000_000),
        link_target: link_target.map(|target| target.to_string_lossy().into_owned()),
    }
}

/// Streams a regular file. No thread is held while the host does not read.
pub(crate) async fn read(guest: &Guest, request: message::Read) -> Result<Answer, AgentError> {
    let path = checked(&request.path)?;
    let offset = request.offset;
    let file = guest.blocking(move || open_regular(&path, offset)).await?;
    Ok(stream(file, request.length))
}

/// Answers with the file's bytes from where it stands, at most `length` of them.
pub(crate) fn stream(file: File, length: Option<u64>) -> Answer {
    // The tenant may remove the file meanwhile: closing it is the end of its blocks then.
    let file = OffThread::new(tokio::fs::File::from_std(file));
    body::stream(futures::stream::try_unfold((file, length.unwrap_or(u64::MAX)), next_piece))
}

async fn next_piece(
    (mut reading, left): (OffThread<tokio::fs::File>, u64),
) -> io::Result<Option<(Bytes, (OffThread<tokio::fs::File>, u64))>> {
    let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
    let Some(file) = reading.get_mut().filter(|_| wanted > 0) else { return Ok(None) };
    let mut piece = BytesMut::with_capacity(wanted);
    let length = file.take(wanted as u64).read_buf(&mut piece).await?;
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((piece.freeze(), (reading, left - length as u64))))
}

fn open_regular(path: &Path, offset: u64) -> Result<File, AgentError> {
    // Opening a pipe would otherwise wait for its writer.
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(about(path))?;
    refuse_irregular(path, &file.metadata().map_err(about(path))?)?;
    file.seek(SeekFrom::Start(offset)).map_err(about(path))?;
    Ok(file)
}

/// Refuses what is not a regular file.
pub(crate) fn refuse_irregular(path: &Path, metadata: &Metadata) -> Result<(), AgentError> {
    let file_type = metadata.file_type();
    if file_type.is_file() {
        return Ok(());
    }
    if file_type.is_dir() {
        return Err(AgentError::refused(
            FailureCode::IsDirectory,
            format!("{}: is a directory", path.display()),
        ));
    }
    let what = if file_type.is_char_device() || file_type.is_block_device() {
        "a device"
    } else {
        "not a regular file"
    };
    Err(AgentError::invalid(format!("{}: {what}", path.display())))
}

pub(crate) async fn make_dir(
    guest: &Arc<Guest>,
    request: message::MakeDir,
) -> Result<Answer, AgentError> {
    let path = checked(&request.path)?;
    let shared = Arc::clone(guest);
    guest
        .blocking(move || {
            let account = shared.account(&request.user)?;
            if make_dirs(&path, &account)? {
                let mode = fs::Permissions::from_mode(request.mode & 0o7777);
                fs::set_permissions(&path, mode).map_err(about(&path))?;
            }
            Ok(())
        })
        .await?;
    body::json(&Empty {})
}

/// Makes `path` and its missing parents, owned by `account`. Returns whether `path` itself was
/// missing.
pub(crate) fn make_dirs(path: &Path, account: &Account) -> Result<bool, AgentError> {
    let mut made = false;
    let mut so_far = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            Component::ParentDir => so_far.push(".."),
            Component::Normal(name) => so_far.push(name),
        }
        match fs::metadata(&so_far) {
            Ok(metadata) if metadata.is_dir() => made = false,
            Ok(_) => {
                return Err(AgentError::refused(
                    FailureCode::NotDirectory,
                    format!("{}: not a directory", so_far.display()),
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                made = match fs::DirBuilder::new().mode(0o755).create(&so_far) {
                    Ok(()) => {
                        give_to(&so_far, account)?;
                        true
                    }
                    // Somebody else was faster.
                    Err(error)
                        if error.kind() == io::ErrorKind::AlreadyExists && so_far.is_dir() =>
                    {
                        false
                    }
                    Err(error) => return Err(about(&so_far)(error)),
                };
            }
            Err(error) => return Err(about(&so_far)(error)),
        }
    }
    Ok(made)
}

/// Makes `account` the owner of `path` itself, not of what it may point to.
pub(crate) fn give_to(path: &Path, account: &Account) -> Result<(), AgentError> {
    if account.switch {
        lchown(path, Some(account.uid), Some(account.gid)).map_err(about(path))?;
    }
    Ok(())
}

pub(crate) async fn rename(guest: &Guest, request: message::Rename) -> Result<Answer, AgentError> {
    let (from, to) = (checked(&request.from)?, checked(&request.to)?);
    guest
        .blocking(move || {
            fs::symlink_metadata(&from).map_err(about(&from))?;
            fs::rename(&from, &to).map_err(about(&to))
        })
        .await?;
    body::json(&Empty {})
}

pub(crate) async fn remove(guest: &Guest, request: message::Path) -> Result<Answer, AgentError> {
    let path = checked(&request.path)?;
    if path.file_name().is_none() {
        return Err(AgentError::invalid(format!("{}: cannot be removed", path.display())));
    }
    guest
        .blocking(move || {
            let metadata = fs::symlink_metadata(&path).map_err(about(&path))?;
            if metadata.is_dir() {
                fs::remove_dir_all(&path).map_err(about(&path))
            } else {
                fs::remove_file(&path).map_err(about(&path))
            }
        })
        .await?;
    body::json(&Empty {})
}

/// Turns a failed system call about `path` into a refusal.
pub(crate) fn about(path: &Path) -> impl Fn(io::Error) -> AgentError {
    let subject = String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
    move |error| AgentError::from_io(&subject, &error)
}
