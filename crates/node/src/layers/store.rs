//! The directory of layers and the books of who needs which.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    libc,
    unistd::{getegid, geteuid},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    error::chain,
    faults::Faults,
    layers::{Holder, LayerId, LayerSeal},
    layout::{make_private_dir, names_in, remove_file, sync_parent, write_durably},
    saved::{KnownDigests, open_regular},
};

/// More than the description of a layer ever is.
const MAX_SEAL_BYTES: u64 = 4096;

/// What the files that name layers say, gathered once at start.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Who needs what.
    pub held: BTreeMap<Holder, BTreeSet<LayerId>>,
    /// Files that could not be read: what they name is not known.
    pub unreadable: Vec<PathBuf>,
}

/// The frozen layers of a node. All of it blocks.
#[derive(Debug)]
pub(crate) struct LayerStore {
    dir: PathBuf,
    books: Mutex<Books>,
    digests: KnownDigests,
    faults: Faults,
}

#[derive(Debug, Default)]
struct Books {
    present: BTreeSet<LayerId>,
    held: BTreeMap<Holder, BTreeSet<LayerId>>,
    /// Holders and guards of each.
    counts: HashMap<LayerId, usize>,
    /// Not while something that may name layers cannot be read.
    removes: bool,
}

/// Keeps layers from being removed while an operation is about to name them in a file.
#[derive(Debug)]
pub(crate) struct LayerGuard {
    store: Arc<LayerStore>,
    layers: BTreeSet<LayerId>,
}

impl Drop for LayerGuard {
    fn drop(&mut self) {
        let unneeded = {
            let mut books = self.store.books();
            let layers = std::mem::take(&mut self.layers);
            books.uncount(&layers);
            books.take_unneeded(&layers)
        };
        self.store.remove_logged(&unneeded);
    }
}

impl Books {
    fn count(&mut self, layers: &BTreeSet<LayerId>) {
        for id in layers {
            *self.counts.entry(*id).or_default() += 1;
        }
    }

    fn uncount(&mut self, layers: &BTreeSet<LayerId>) {
        for id in layers {
            if let Some(count) = self.counts.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(id);
                }
            }
        }
    }

    /// Strikes those of `candidates` that nobody needs off the books; the caller removes the files.
    /// Ids are never given twice, so nobody can begin to need one after this.
    fn take_unneeded(&mut self, candidates: &BTreeSet<LayerId>) -> Vec<LayerId> {
        if !self.removes {
            return Vec::new();
        }
        let unneeded = candidates.iter().filter(|id| !self.counts.contains_key(*id));
        let unneeded: Vec<LayerId> = unneeded.copied().collect();
        unneeded.into_iter().filter(|id| self.present.remove(id)).collect()
    }
}

impl LayerStore {
    /// Opens the store in `dir`, which is made when it is not there, and removes what `named` does
    /// not name. When something that may name layers could not be read, nothing is removed in this
    /// life of the server.
    pub fn open(
        dir: &Path,
        named: Named,
        digests: KnownDigests,
        faults: Faults,
    ) -> Result<Arc<Self>, Error> {
        make_private_dir(dir)?;
        let mut books = Books { removes: named.unreadable.is_empty(), ..Books::default() };
        let mut strangers = Vec::new();
        for name in names_in(dir)? {
            match LayerId::of_file_name(&name) {
                Some(id) => {
                    books.present.insert(id);
                }
                None => strangers.push(name),
            }
        }
        for (holder, layers) in named.held {
            books.count(&layers);
            books.held.insert(holder, layers);
        }
        for file in &named.unreadable {
            tracing::error!(file = %file.display(), "what names disk layers cannot be read: no layer is removed until the next start");
        }
        let all = books.present.clone();
        let unneeded = books.take_unneeded(&all);
        let store =
            Arc::new(Self { dir: dir.to_owned(), books: Mutex::new(books), digests, faults });
        store.remove_logged(&unneeded);
        store.tidy(strangers)?;
        Ok(store)
    }

    /// Descriptions of layers that are gone, and those that were being written, are removed.
    fn tidy(&self, names: Vec<String>) -> Result<(), Error> {
        for name in names {
            let path = self.dir.join(&name);
            let described = name.strip_suffix(".json").map(str::parse::<LayerId>);
            match described {
                Some(Ok(id)) if self.books().present.contains(&id) => {}
                Some(Ok(_)) => remove_file(&path)?,
                _ if name.ends_with(".new") => remove_file(&path)?,
                Some(Err(_)) | None => {
                    tracing::warn!(
                        name,
                        "something in the directory of layers is not a layer; left alone"
                    );
                }
            }
        }
        Ok(())
    }

    /// Where a layer is.
    pub fn path(&self, id: LayerId) -> PathBuf {
        self.dir.join(id.file_name())
    }

    /// Whether the layer is there.
    pub fn is_present(&self, id: LayerId) -> bool {
        self.books().present.contains(&id)
    }

    /// From now on `holder` needs exactly `layers`; what it needed before and nobody needs now is
    /// removed. Overlays count like the layers they will be.
    ///
    /// The caller's file must say so already when the set becomes smaller, and not yet when it
    /// becomes larger: then a crash in between loses nothing.
    pub fn hold(&self, holder: &Holder, layers: BTreeSet<LayerId>) {
        let unneeded = {
            let mut books = self.books();
            books.count(&layers);
            let before = if layers.is_empty() {
                books.held.remove(holder)
            } else {
                books.held.insert(holder.clone(), layers)
            };
            let before = before.unwrap_or_default();
            books.uncount(&before);
            books.take_unneeded(&before)
        };
        self.remove_logged(&unneeded);
    }

    /// `holder` needs `layers` besides what it needs already.
    pub fn hold_also(&self, holder: &Holder, layers: &BTreeSet<LayerId>) {
        let mut books = self.books();
        let held = books.held.entry(holder.clone()).or_default();
        let new: BTreeSet<LayerId> =
            layers.iter().filter(|id| held.insert(**id)).copied().collect();
        books.count(&new);
    }

    /// A holder's directory was renamed: `new` needs what `old` needed, and `old` nothing any more.
    pub fn moved(&self, old: &Holder, new: &Holder) {
        let layers = self.books().held.get(old).cloned().unwrap_or_default();
        self.hold(new, layers);
        self.release(old);
    }

    /// `holder` is gone.
    pub fn release(&self, holder: &Holder) {
        self.hold(holder, BTreeSet::new());
    }

    /// Keeps `layers`, all of which must be there, until the guard is dropped: for an operation that
    /// read their names and is about to write them into a file of its own.
    ///
    /// # Errors
    /// [`Error::Disk`] when one is not there.
    pub fn guard(self: &Arc<Self>, layers: &[LayerId]) -> Result<LayerGuard, Error> {
        let layers: BTreeSet<LayerId> = layers.iter().copied().collect();
        let mut books = self.books();
        if let Some(missing) = layers.iter().find(|id| !books.present.contains(*id)) {
            return Err(self.missing(*missing));
        }
        books.count(&layers);
        drop(books);
        Ok(LayerGuard { store: Arc::clone(self), layers })
    }

    /// Everybody who needs `id`.
    pub fn holders(&self, id: LayerId) -> Vec<Holder> {
        let books = self.books();
        let holders = books.held.iter().filter(|(_, layers)| layers.contains(&id));
        holders.map(|(holder, _)| holder.clone()).collect()
    }

    /// Makes the overlay `file` the layer `id`: ours, read-only, durable, moved into the store.
    /// Repeating it after a crash is a success. The caller holds `id` already.
    ///
    /// Nothing may write it any more. A VMM that had it as its top keeps its writable handle until it
    /// ends: what a process taken over by its guest could still do to it shows in the digest.
    ///
    /// # Errors
    /// [`Error::Disk`] when there is no such overlay, or it is not a file of one name.
    pub fn freeze(&self, file: &Path, id: LayerId) -> Result<(), Error> {
        let target = self.path(id);
        if !target.exists() {
            seal_overlay(file)?;
            self.faults.after_blocking("layer_sealed")?;
            fs::rename(file, &target).map_err(Error::path("moving", file))?;
        }
        // The new name before the old one is gone: each directory has its own place in the journal.
        sync_parent(&target)?;
        sync_parent(file)?;
        self.books().present.insert(id);
        self.faults.after_blocking("layer_moved")
    }

    /// What a manifest says of the layer: read once in the layer's life, then kept beside it. Given up
    /// when `stop` is cancelled.
    ///
    /// # Errors
    /// Also [`Error::Cancelled`].
    pub fn describe(&self, id: LayerId, stop: &CancellationToken) -> Result<LayerSeal, Error> {
        let beside = self.dir.join(format!("{id}.json"));
        if let Some(seal) = read_seal(&beside)
            && seal.id == id
        {
            return Ok(seal);
        }
        if !self.is_present(id) {
            return Err(self.missing(id));
        }
        let (length_bytes, digest) = self.digests.of_unless(&self.path(id), stop)?;
        if stop.is_cancelled() {
            // Whoever is next describes it.
            return Err(Error::Cancelled);
        }
        let seal = LayerSeal { id, length_bytes, digest };
        let text = serde_json::to_vec(&seal).map_err(|error| Error::io("writing")(error.into()))?;
        write_durably(&beside, &text)?;
        Ok(seal)
    }

    /// Whether the layer's file has the length it was sealed with, without reading it.
    ///
    /// # Errors
    /// [`Error::SavedState`] when it is missing or cut.
    pub fn check_length(&self, seal: &LayerSeal) -> Result<(), Error> {
        let path = self.path(seal.id);
        let problem = match fs::symlink_metadata(&path) {
            Ok(found) if !found.is_file() => "is not a regular file".to_owned(),
            Ok(found) if found.len() != seal.length_bytes => {
                format!("has {} bytes instead of {}", found.len(), seal.length_bytes)
            }
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => "is missing".to_owned(),
            Err(error) => return Err(Error::path("looking at", &path)(error)),
        };
        Err(Error::SavedState { path, problem })
    }

    /// Whether the layer is as it was sealed; read only when it was not yet in this life of the
    /// server or has changed since.
    ///
    /// # Errors
    /// [`Error::SavedState`] when it is missing or differs.
    pub fn verify(&self, seal: &LayerSeal) -> Result<(), Error> {
        self.check_length(seal)?;
        let path = self.path(seal.id);
        match self.digests.of(&path)? {
            (_, digest) if digest == seal.digest => Ok(()),
            _ => Err(Error::SavedState { path, problem: "is damaged".to_owned() }),
        }
    }

    /// Bytes the layer takes on the host's disk; 0 when it is not there.
    pub fn allocated_bytes(&self, id: LayerId) -> u64 {
        fs::symlink_metadata(self.path(id)).map_or(0, |found| found.blocks() * 512)
    }

    fn missing(&self, id: LayerId) -> Error {
        Error::Disk { path: self.path(id), problem: "the layer is missing".to_owned() }
    }

    /// A file that cannot be removed now is unreferenced at the next start.
    fn remove_logged(&self, layers: &[LayerId]) {
        for id in layers {
            let path = self.path(*id);
            self.digests.forget(&path);
            let beside = self.dir.join(format!("{id}.json"));
            match remove_file(&path).and_then(|()| remove_file(&beside)) {
                Ok(()) => tracing::debug!(layer = %id, "layer removed"),
                Err(error) => {
                    tracing::error!(layer = %id, error = chain(&error), "layer not removed");
                }
            }
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the file from the VM's user, closes it for writing and makes its content durable.
fn seal_overlay(path: &Path) -> Result<(), Error> {
    let seal = || -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        let found = file.metadata()?;
        // A second name would be a way to write it.
        if !found.is_file() || found.nlink() != 1 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file of one name"));
        }
        fchown(&file, Some(geteuid().as_raw()), Some(getegid().as_raw()))?;
        file.set_permissions(Permissions::from_mode(0o444))?;
        file.sync_all()?;
        Ok(file)
    };
    seal().map(drop).map_err(Error::path("freezing", path))
}

fn read_seal(path: &Path) -> Option<LayerSeal> {
    let mut text = Vec::new();
    open_regular(path).ok()?.take(MAX_SEAL_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}
