//! Making a saved state: under a temporary name, sealed by a rename.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    libc,
    unistd::{getegid, geteuid},
};
use tokio_util::sync::CancellationToken;

use super::{
    Manifest, RoomLease, SavedStates, Sealed,
    manifest::{FileSeal, is_file_name},
    states::{MANIFEST, draft_place, name_of},
};
use crate::{
    Error,
    error::{blocking, chain, outcome_of},
    host::Host,
    layers::Holder,
    layout::{remove_tree, sync_parent},
};

/// A saved state under way. Dropping it unsealed removes everything that was made.
#[derive(Debug)]
pub(crate) struct Draft {
    states: SavedStates,
    place: PathBuf,
    dir: PathBuf,
    sealed: bool,
    _room: RoomLease,
}

/// A saved state whose files are complete: read-only, digested, durable.
#[derive(Debug)]
pub(crate) struct Closed {
    draft: Draft,
    files: BTreeMap<String, FileSeal>,
}

/// Drafts of one place at the same time: one that is being made, and some that were given up and not
/// removed yet.
const MAX_DRAFTS: u32 = 64;

impl Draft {
    pub(super) fn begin(states: SavedStates, place: &Path, room: RoomLease) -> Result<Self, Error> {
        if place.exists() {
            return Err(Error::SavedState {
                path: place.to_owned(),
                problem: "is there already".to_owned(),
            });
        }
        let dir = make_draft_dir(place)?;
        Ok(Self { states, place: place.to_owned(), dir, sealed: false, _room: room })
    }

    /// The path a file of the state is made at, by us or by a VMM.
    pub fn path(&self, name: &str) -> PathBuf {
        debug_assert!(is_file_name(name), "{name:?} is no name of a file");
        self.dir.join(name)
    }

    /// Makes a file, empty, opened for reading and writing. Room for `expected_bytes` is taken from
    /// the file system at once where it can be (fallocate(2)); what of it is not needed is given back
    /// by the sealing.
    ///
    /// # Errors
    /// When there is no room, among others.
    pub fn create(&self, name: &str, expected_bytes: u64) -> Result<File, Error> {
        let path = self.path(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::path("making", &path))?;
        let length = i64::try_from(expected_bytes).unwrap_or(i64::MAX);
        if length > 0 {
            match fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
                Err(errno) => return Err(Error::path("taking room for", &path)(errno.into())),
            }
        }
        Ok(file)
    }

    /// Seals the state: every file in the directory becomes ours and read-only and is digested and
    /// made durable, and the directory takes its place. `manifest.files` is filled in here.
    ///
    /// Nothing may write the files any more. The layers that the manifest names must be held by
    /// somebody until this returns; from then on the state holds them.
    ///
    /// # Errors
    /// When the disk is full, among others. After any error nothing of the state is left.
    #[cfg(test)]
    pub fn seal(self, manifest: Manifest) -> Result<Sealed, Error> {
        self.close(&CancellationToken::new())?.seal(manifest)
    }

    /// The first part of [`Draft::seal`], which takes as long as the files are large, given up when
    /// `stop` is cancelled: nothing has its place before the second, [`Closed::seal`].
    ///
    /// # Errors
    /// When the disk is full, among others. After any error nothing of the state is left.
    pub fn close(self, stop: &CancellationToken) -> Result<Closed, Error> {
        let files = self.seal_files(stop)?;
        Ok(Closed { draft: self, files })
    }

    fn take(mut self, manifest: Manifest) -> Result<Sealed, Error> {
        manifest
            .check()
            .map_err(|problem| Error::SavedState { path: self.place.clone(), problem })?;
        self.states.faults.after_blocking("state_sealed")?;
        let path = self.dir.join(MANIFEST);
        let text =
            manifest.to_text(name_of(&self.place)?).map_err(Error::path("writing", &path))?;
        write_new(&path, &text).map_err(Error::path("writing", &path))?;
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(Error::path("syncing", &self.dir))?;
        self.states.faults.after_blocking("state_described")?;
        let holder = Holder(self.place.clone());
        let layers: BTreeSet<_> = manifest.layer_ids().into_iter().collect();
        self.states.layers.hold_also(&holder, &layers);
        if let Err(error) = self.take_place() {
            self.states.layers.release(&holder);
            return Err(error);
        }
        self.states.digests.moved(&self.dir, &self.place);
        self.sealed = true;
        if let Err(error) = self.states.faults.after_blocking("state_in_place") {
            self.states.delete(&self.place)?;
            return Err(error);
        }
        Ok(Sealed::new(self.place.clone(), manifest))
    }

    /// When the place cannot be made durable it is given up again: the caller is told that there is
    /// no such state.
    fn take_place(&self) -> Result<(), Error> {
        fs::rename(&self.dir, &self.place).map_err(Error::path("sealing", &self.place))?;
        sync_parent(&self.place).inspect_err(|_| {
            if let Err(error) = fs::rename(&self.place, &self.dir) {
                tracing::error!(place = %self.place.display(), %error, "unfinished saved state left");
            }
        })
    }

    fn seal_files(&self, stop: &CancellationToken) -> Result<BTreeMap<String, FileSeal>, Error> {
        let mut files = BTreeMap::new();
        let entries = fs::read_dir(&self.dir).map_err(Error::path("listing", &self.dir))?;
        for entry in entries {
            let entry = entry.map_err(Error::path("listing", &self.dir))?;
            let path = entry.path();
            let name = entry.file_name().into_string().ok().filter(|name| is_file_name(name));
            let name = name.ok_or_else(|| Error::SavedState {
                path: path.clone(),
                problem: "does not belong there".to_owned(),
            })?;
            files.insert(name, self.seal_file(&path, stop)?);
        }
        Ok(files)
    }

    fn seal_file(&self, path: &Path, stop: &CancellationToken) -> Result<FileSeal, Error> {
        let file = close_for_writing(path).map_err(Error::path("sealing", path))?;
        // Reading for the digest and writing to the disk go on at the same time.
        let (synced, digested) = thread::scope(|scope| {
            let syncing = scope.spawn(|| file.sync_all());
            let digested = self.states.digests.of_unless(path, stop);
            let synced = syncing.join().unwrap_or_else(|_| Err(io::Error::other("lost thread")));
            (synced, digested)
        });
        synced.map_err(Error::path("syncing", path))?;
        let (length_bytes, digest) = digested?;
        Ok(FileSeal { length_bytes, digest })
    }
}

impl Closed {
    /// Describes the state and puts it in its place. `manifest.files` is filled in here.
    ///
    /// # Errors
    /// When the disk is full, among others. After any error nothing of the state is left.
    pub fn seal(self, manifest: Manifest) -> Result<Sealed, Error> {
        let Self { draft, files } = self;
        draft.take(Manifest { files, ..manifest })
    }
}

/// [`Draft::seal`] off the async threads, given up as soon as `cancel` says so: what is being read or
/// written then comes to its end by itself, which [`Host::tasks`] waits for, and is removed. `manifest`
/// may read layers, until the token it is given is cancelled.
///
/// # Errors
/// [`Error::Cancelled`], and those of [`Draft::seal`].
pub(crate) async fn seal_unless(
    host: &Host,
    cancel: &CancellationToken,
    draft: Draft,
    manifest: impl FnOnce(&CancellationToken) -> Result<Manifest, Error> + Send + 'static,
) -> Result<Sealed, Error> {
    let stop = cancel.clone();
    let close = move || -> Result<(Closed, Manifest), Error> {
        let manifest = manifest(&stop)?;
        Ok((draft.close(&stop)?, manifest))
    };
    let mut closing = host.tasks.spawn_blocking(close);
    let closed = tokio::select! {
        biased;
        () = cancel.cancelled() => {
            host.tasks.spawn(async move { remove(closing.await).await });
            return Err(Error::Cancelled);
        }
        closed = outcome_of(&mut closing) => closed,
    };
    let (closed, manifest) = closed?;
    let passed = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::Cancelled),
        passed = host.config.faults.after("state_closed") => passed.map(drop),
    };
    if let Err(error) = passed {
        remove(closed).await;
        return Err(error);
    }
    blocking(move || closed.seal(manifest)).await
}

/// Removes what was made, where blocking is allowed.
async fn remove<T: Send + 'static>(given_up: T) {
    let removed = blocking(move || {
        drop(given_up);
        Ok(())
    });
    if let Err(error) = removed.await {
        tracing::debug!(%error, "a draft that was given up is left to the next start");
    }
}

/// A directory that nobody else has: a draft that was given up may not be removed yet.
fn make_draft_dir(place: &Path) -> Result<PathBuf, Error> {
    for number in 0..MAX_DRAFTS {
        let dir = draft_place(place, number)?;
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::path("making", &dir)(error)),
        }
    }
    Err(Error::SavedState {
        path: place.to_owned(),
        problem: format!("has {MAX_DRAFTS} unfinished drafts"),
    })
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.sealed {
            return;
        }
        self.states.digests.forget(&self.dir);
        // What cannot be removed now is swept at the next start.
        if let Err(error) = remove_tree(&self.dir) {
            tracing::warn!(error = chain(&error), "unfinished saved state left behind");
        }
    }
}

/// The file is ours, read-only, and has no room beyond its end.
fn close_for_writing(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let found = file.metadata()?;
    // A second name would be a way to write it.
    if !found.is_file() || found.nlink() != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file of one name"));
    }
    file.set_len(found.len())?;
    fchown(&file, Some(geteuid().as_raw()), Some(getegid().as_raw()))?;
    file.set_permissions(Permissions::from_mode(0o444))?;
    Ok(file)
}

fn write_new(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    file.set_permissions(Permissions::from_mode(0o444))?;
    file.sync_all()
}
