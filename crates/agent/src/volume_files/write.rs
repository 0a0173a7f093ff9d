//! Writing a file of a volume in one step. Its bytes have no name until all of them are on the disk, so
//! that nothing is left of a write that was broken off, by whatever.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, openat, renameat2},
    sys::stat::{Mode, fstatat},
    unistd::{UnlinkatFlags, linkat, unlinkat},
};
use skerry_agent_protocol::{
    message::{FailureCode, WriteMode, Written},
    volume_files::Write,
};
use tokio::io::AsyncWriteExt;

use super::{
    confined::{Below, about},
    listing::is_directory,
    open_root,
};
use crate::{
    AgentError, Guest,
    body::{self, Answer, RequestBody},
    freeze::OffThread,
};

/// Names that are taken by somebody else, or were left by a machine that lost its power in the one
/// moment in which such a name is there.
const NAMES_TRIED: u32 = 1000;

/// A file under way, in the directory where it will have its name.
struct Draft<F> {
    file: F,
    directory: File,
    name: PathBuf,
}

pub(super) async fn write(
    guest: &Arc<Guest>,
    request: Write,
    content: &mut RequestBody,
) -> Result<Answer, AgentError> {
    let path = Below::parse(&request.path)?;
    let (how, mode) = (request.how, request.mode & 0o7777);
    let (shared, target) = (Arc::clone(guest), path.clone());
    let draft = guest
        .blocking(move || {
            let root = open_root(&shared, &request.volume)?;
            let Some((parent, name)) = target.split() else { return Err(is_directory_at(&target)) };
            let directory = root.make_dirs(&parent).map_err(about(&target))?;
            match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(found) if is_directory(&found) => return Err(is_directory_at(&target)),
                Ok(_) if how == WriteMode::CreateNew => return Err(exists(&target)),
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(about(&target)(errno.into())),
            }
            if how == WriteMode::Append {
                return Err(AgentError::invalid("files of volumes are written as a whole"));
            }
            let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
            let file = openat(&directory, c".", flags, Mode::S_IRUSR | Mode::S_IWUSR)
                .map_err(|errno| about(&target)(errno.into()))?;
            let file = tokio::fs::File::from_std(File::from(file));
            Ok(Draft { file, directory, name: name.to_owned() })
        })
        .await?;

    // The host may go away at any moment: the draft is not given up on this thread.
    let mut draft = OffThread::new(draft);
    while let Some(bytes) = content.chunk().await? {
        let Some(Draft { file, .. }) = draft.get_mut() else { break };
        file.write_all(&bytes).await.map_err(about(&path))?;
    }
    if let Some(Draft { file, .. }) = draft.get_mut() {
        file.flush().await.map_err(about(&path))?;
    }

    let written = guest
        .blocking(move || {
            let lost = || AgentError::refused(FailureCode::Other, "the write was given up");
            let Draft { file, directory, name } = draft.into_inner().ok_or_else(lost)?;
            // Everything was flushed: nothing of it is under way any more.
            let file = file.try_into_std().map_err(|_| lost())?;
            let size_bytes = finish(&Draft { file, directory, name }, how, mode);
            Ok(Written { size_bytes: size_bytes.map_err(about(&path))? })
        })
        .await?;
    body::json(&written)
}

fn finish(draft: &Draft<File>, how: WriteMode, mode: u32) -> io::Result<u64> {
    let Draft { file, directory, name } = draft;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    let size_bytes = file.metadata()?.len();
    match how {
        WriteMode::CreateNew | WriteMode::Append => give_name(file, directory, name)?,
        WriteMode::Replace => replace(file, directory, name)?,
    }
    // The name is as durable as the bytes only once its directory is.
    directory.sync_all()?;
    Ok(size_bytes)
}

/// Gives the file a name that nothing has.
fn give_name(file: &File, directory: &File, name: &Path) -> io::Result<()> {
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(AT_FDCWD, &*itself, directory, name, AtFlags::AT_SYMLINK_FOLLOW)?;
    Ok(())
}

/// Gives the file the name that another may have, in one step.
fn replace(file: &File, directory: &File, name: &Path) -> io::Result<()> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    for _ in 0..NAMES_TRIED {
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let temporary = PathBuf::from(format!(".skerry-{number}"));
        match give_name(file, directory, &temporary) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            named => named?,
        }
        let renamed = renameat2(directory, &temporary, directory, name, RenameFlags::empty());
        return renamed.map_err(|errno| {
            // The first failure is the one to be told.
            let _ = unlinkat(directory, &temporary, UnlinkatFlags::NoRemoveDir);
            errno.into()
        });
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn is_directory_at(path: &Below) -> AgentError {
    let message = format!("{}: is a directory", path.shown().display());
    AgentError::refused(FailureCode::IsDirectory, message)
}

fn exists(path: &Below) -> AgentError {
    let message = format!("{}: file exists", path.shown().display());
    AgentError::refused(FailureCode::Exists, message)
}
