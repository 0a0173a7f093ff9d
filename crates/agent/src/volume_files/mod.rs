//! Files of a mounted volume, as its owner has them from outside: everything happens below the mount,
//! whatever the tenant has put there.

mod confined;
mod listing;
mod write;

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::Path,
    sync::Arc,
};

use nix::{
    fcntl::{AtFlags, OFlag},
    sys::stat::{fstatat, major, minor},
    unistd::{UnlinkatFlags, unlinkat},
};
use skerry_agent_protocol::{
    limits::PATH_MAX,
    message::{Empty, FailureCode, Grown},
    volume_files::{self as call, Grow, Read, Remove, Volume},
};

use self::confined::{Below, Root, about};
use crate::{
    AgentError, Guest,
    body::{self, Answer, RequestBody},
    files::{self, checked, refuse_irregular},
    init::disk,
};

/// The inode of the top directory of every ext4.
const TOP_INODE: u64 = 2;

/// Answers a call of [`skerry_agent_protocol::volume_files`]; `None` for any other path.
pub(crate) async fn answer(
    guest: &Arc<Guest>,
    path: &str,
    body: &mut RequestBody,
) -> Result<Option<Answer>, AgentError> {
    Ok(Some(match path {
        call::STAT => stat(guest, body.head().await?).await?,
        call::LIST => listing::list(guest, body.head().await?).await?,
        call::READ => read(guest, body.head().await?).await?,
        call::WRITE => write::write(guest, body.head().await?, body).await?,
        call::REMOVE => remove(guest, body.head().await?).await?,
        call::GROW => body::json(&grow(guest, body.head().await?).await?)?,
        _ => return Ok(None),
    }))
}

/// The mounted file system, held on to: what is mounted there later is another.
fn open_root(guest: &Guest, volume: &Volume) -> Result<Root, AgentError> {
    let mount_path = checked(&volume.mount_path)?;
    if let Some(home) = guest.hosted_home() {
        return open_hosted(home, &volume.serial);
    }
    let directory = File::open(&mount_path).map_err(files::about(&mount_path))?;
    let found = directory.metadata().map_err(files::about(&mount_path))?;
    let device = disk::by_serial(&volume.serial)
        .and_then(|device| disk::number(&device).ok())
        .is_some_and(|number| number == (major(found.dev()), minor(found.dev())));
    if !device || found.ino() != TOP_INODE {
        let place = mount_path.display();
        let message = format!("{place}: the volume is not mounted there, or something is above it");
        return Err(AgentError::refused(FailureCode::Busy, message));
    }
    Ok(Root::new(directory))
}

/// A guest in name only has no disks: a directory of its home stands for each.
fn open_hosted(home: &Path, serial: &str) -> Result<Root, AgentError> {
    let name = Below::parse(serial)?;
    let place = home.join(name.as_path());
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&place)
        .map_err(files::about(&place))?;
    Ok(Root::new(File::open(&place).map_err(files::about(&place))?))
}

async fn stat(guest: &Arc<Guest>, request: call::Path) -> Result<Answer, AgentError> {
    let path = Below::parse(&request.path)?;
    let shared = Arc::clone(guest);
    let entry = guest
        .blocking(move || {
            let root = open_root(&shared, &request.volume)?;
            let found = match path.split() {
                None => fstatat(&root, c".", AtFlags::AT_SYMLINK_NOFOLLOW),
                Some((parent, name)) => {
                    let parent = root.open_dir(&parent).map_err(about(&path))?;
                    fstatat(parent.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)
                }
            };
            let found = found.map_err(io::Error::from).map_err(about(&path))?;
            Ok(listing::describe(path.as_path(), &found))
        })
        .await?;
    body::json(&entry)
}

async fn read(guest: &Arc<Guest>, request: Read) -> Result<Answer, AgentError> {
    let path = Below::parse(&request.path)?;
    let shared = Arc::clone(guest);
    let file = guest
        .blocking(move || {
            let root = open_root(&shared, &request.volume)?;
            // Opening a pipe would otherwise wait for its writer.
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            let mut file = File::from(root.open(&path, flags).map_err(about(&path))?);
            refuse_irregular(path.shown(), &file.metadata().map_err(about(&path))?)?;
            file.seek(SeekFrom::Start(request.offset)).map_err(about(&path))?;
            Ok(file)
        })
        .await?;
    Ok(files::stream(file, request.length))
}

async fn remove(guest: &Arc<Guest>, request: Remove) -> Result<Answer, AgentError> {
    let path = Below::parse(&request.path)?;
    let shared = Arc::clone(guest);
    guest
        .blocking(move || {
            let root = open_root(&shared, &request.volume)?;
            let Some((parent, name)) = path.split() else {
                return Err(AgentError::invalid("the volume itself cannot be removed"));
            };
            let parent = root.open_dir(&parent).map_err(about(&path))?;
            let found = fstatat(parent.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(io::Error::from)
                .map_err(about(&path))?;
            let removed = match (listing::is_directory(&found), request.recursive) {
                (false, _) => {
                    unlinkat(parent.as_fd(), name, UnlinkatFlags::NoRemoveDir).map_err(Into::into)
                }
                (true, false) => {
                    unlinkat(parent.as_fd(), name, UnlinkatFlags::RemoveDir).map_err(Into::into)
                }
                // Goes down by descriptors and follows no link.
                (true, true) => fs::remove_dir_all(confined::path_in(&parent, name)),
            };
            removed.map_err(about(&path))?;
            parent.sync_all().map_err(about(&path))
        })
        .await?;
    body::json(&Empty {})
}

async fn grow(guest: &Arc<Guest>, request: Grow) -> Result<Grown, AgentError> {
    if guest.as_machine().is_none() {
        return Ok(Grown { gained_bytes: 0 });
    }
    let shared = Arc::clone(guest);
    guest
        .blocking(move || {
            let failed = |error| AgentError::from_io("the volume's file system", &error);
            let root = open_root(&shared, &request.volume)?;
            let device = disk::by_serial(&request.volume.serial)
                .ok_or_else(|| AgentError::refused(FailureCode::Other, "its disk is gone"))?;
            disk::wait_for_size(&device, request.disk_size_bytes).map_err(failed)?;
            let gained_bytes = disk::grow_file_system(&device, root.directory()).map_err(failed)?;
            Ok(Grown { gained_bytes })
        })
        .await
}

/// Whether so long a path can be answered and asked for again.
fn fits(path: &Path) -> bool {
    path.as_os_str().len() <= PATH_MAX
}

#[cfg(test)]
mod tests;
