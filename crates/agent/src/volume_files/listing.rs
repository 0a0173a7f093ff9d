//! What a volume holds.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag},
    libc,
    sys::stat::{FileStat, SFlag, fstat, fstatat},
};
use skerry_agent_protocol::{
    limits::LISTING_MAX,
    message::FileKind,
    volume_files::{Depth, Entry, LISTING_ENTRIES_MAX, List, Listing},
};

use super::{
    confined::{Below, Root, about},
    fits, open_root,
};
use crate::{AgentError, Guest, body::Answer};

/// What an entry takes in the answer beside its path.
const ENTRY_BYTES: usize = 256;
/// A byte of a path takes so many at most: `\u0001`.
const ESCAPED: usize = 6;
/// The file system's own directory, in which nobody looks for files.
const RECOVERED: &str = "lost+found";

pub(super) async fn list(guest: &Arc<Guest>, request: List) -> Result<Answer, AgentError> {
    let path = Below::parse(&request.path)?;
    if !(1..=LISTING_ENTRIES_MAX).contains(&request.limit) {
        return Err(AgentError::invalid(format!("limit: 1 to {LISTING_ENTRIES_MAX}")));
    }
    let shared = Arc::clone(guest);
    let listing = guest
        .blocking(move || {
            let root = open_root(&shared, &request.volume)?;
            collect(&root, &path, request.depth, request.limit).map_err(about(&path))
        })
        .await?;
    crate::body::listing_json(&listing)
}

/// What is being collected.
struct Collected {
    entries: Vec<Entry>,
    truncated: bool,
    limit: usize,
    bytes_left: usize,
}

impl Collected {
    /// False when nothing more has room.
    fn add(&mut self, path: &Path, found: &FileStat) -> bool {
        let entry = describe(path, found);
        let bytes = entry.path.len() * ESCAPED + ENTRY_BYTES;
        if self.entries.len() == self.limit || bytes > self.bytes_left {
            self.truncated = true;
            return false;
        }
        self.bytes_left -= bytes;
        self.entries.push(entry);
        true
    }
}

pub(super) fn collect(root: &Root, path: &Below, depth: Depth, limit: u32) -> io::Result<Listing> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let bytes_left = LISTING_MAX - ENTRY_BYTES;
    let mut all = Collected { entries: Vec::new(), truncated: false, limit, bytes_left };
    let start = root.open(path, OFlag::O_PATH)?;
    let found = fstat(&start)?;
    if is_directory(&found) {
        let top = root.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut below = vec![(path.as_path().to_owned(), Some(top))];
        // Directories are entries themselves: no more of them wait than may be listed.
        while let Some((place, opened)) = below.pop() {
            let opened = match opened {
                Some(opened) => opened,
                None => match root.open_plain(&place, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
                    Ok(opened) => opened,
                    Err(error) if is_elsewhere_now(&error) => continue,
                    Err(error) => return Err(error),
                },
            };
            let go_on = entries_of(opened, &place, &mut all, |inner| match depth {
                Depth::One => {}
                Depth::All => below.push((inner, None)),
            })?;
            if !go_on {
                break;
            }
        }
    } else {
        all.add(path.as_path(), &found);
    }
    all.entries.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(Listing { entries: all.entries, truncated: all.truncated })
}

/// Adds the entries of one directory; false when nothing more has room.
fn entries_of(
    opened: OwnedFd,
    place: &Path,
    all: &mut Collected,
    mut directory: impl FnMut(PathBuf),
) -> io::Result<bool> {
    let mut dir = Dir::from_fd(opened)?;
    let descriptor = dir.as_fd().try_clone_to_owned()?;
    for entry in dir.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let is_own = place.as_os_str().is_empty() && name == RECOVERED;
        if name == "." || name == ".." || is_own {
            continue;
        }
        let path = place.join(name);
        if !fits(&path) {
            all.truncated = true;
            continue;
        }
        let found = match fstatat(&descriptor, Path::new(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            // It went away in between.
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if !all.add(&path, &found) {
            return Ok(false);
        }
        if is_directory(&found) {
            directory(path);
        }
    }
    Ok(true)
}

/// It went away, became something else, or something is mounted there.
fn is_elsewhere_now(error: &io::Error) -> bool {
    let gone = [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP, Errno::EXDEV];
    error.raw_os_error().is_some_and(|number| gone.contains(&Errno::from_raw(number)))
}

fn kind_of(found: &FileStat) -> FileKind {
    match SFlag::from_bits_truncate(found.st_mode & libc::S_IFMT) {
        SFlag::S_IFREG => FileKind::File,
        SFlag::S_IFDIR => FileKind::Directory,
        SFlag::S_IFLNK => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

pub(super) fn is_directory(found: &FileStat) -> bool {
    kind_of(found) == FileKind::Directory
}

pub(super) fn describe(path: &Path, found: &FileStat) -> Entry {
    Entry {
        path: path.to_string_lossy().into_owned(),
        kind: kind_of(found),
        size_bytes: u64::try_from(found.st_size).unwrap_or(0),
        mode: found.st_mode & 0o7777,
        uid: found.st_uid,
        gid: found.st_gid,
        modified_unix_ms: found
            .st_mtime
            .saturating_mul(1000)
            .saturating_add(found.st_mtime_nsec / 1_000_000),
    }
}
