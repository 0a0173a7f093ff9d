//! Opening, checking and removing sealed directories.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Draft, KnownDigests, Manifest, RoomLease, manifest::FileSeal};
use crate::{
    Error,
    error::chain,
    faults::Faults,
    layers::{Holder, LayerStore},
    layout::{names_in, remove_tree, sync_parent},
};

pub(super) const MANIFEST: &str = "manifest.json";
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// The saved states of a node, wherever they lie. Clones are the same. All of it blocks.
#[derive(Clone, Debug)]
pub(crate) struct SavedStates {
    pub(super) layers: Arc<LayerStore>,
    pub(super) digests: KnownDigests,
    pub(super) faults: Faults,
}

/// A saved state whose manifest was read and whose files have the lengths it says. Their contents
/// are only known after [`SavedStates::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sealed {
    place: PathBuf,
    /// What it is.
    pub manifest: Manifest,
}

/// A name, and the saved state of that name or why it cannot be used.
pub(crate) type Listed = (String, Result<Sealed, Error>);

impl Sealed {
    pub(super) fn new(place: PathBuf, manifest: Manifest) -> Self {
        Self { place, manifest }
    }

    /// Where it is.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The path of one of its files; `None` when it has none of that name.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        self.manifest.files.contains_key(name).then(|| self.place.join(name))
    }

    fn wrong(&self, name: &str, problem: impl Into<String>) -> Error {
        Error::SavedState { path: self.place.join(name), problem: problem.into() }
    }
}

impl SavedStates {
    pub fn new(layers: Arc<LayerStore>, digests: KnownDigests, faults: Faults) -> Self {
        Self { layers, digests, faults }
    }

    /// Begins a saved state that will be at `place`, whose parent exists. `room` is what was reserved
    /// for its files.
    ///
    /// # Errors
    /// [`Error::SavedState`] when something is there already.
    pub fn begin(&self, place: &Path, room: RoomLease) -> Result<Draft, Error> {
        Draft::begin(self.clone(), place, room)
    }

    /// The saved state at `place`; `None` when there is none. Costs the reading of the manifest.
    ///
    /// # Errors
    /// [`Error::SavedState`] when the manifest is damaged or another's, or a file or layer is missing
    /// or has another length.
    pub fn open(&self, place: &Path) -> Result<Option<Sealed>, Error> {
        if fs::symlink_metadata(place).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let path = place.join(MANIFEST);
        let Some(manifest) = Manifest::read(&path, name_of(place)?)? else {
            return Err(Error::SavedState { path, problem: "is missing".to_owned() });
        };
        let sealed = Sealed::new(place.to_owned(), manifest);
        for (name, seal) in &sealed.manifest.files {
            check_length(&sealed, name, seal)?;
        }
        for layer in &sealed.manifest.layers {
            self.layers.check_length(layer)?;
        }
        Ok(Some(sealed))
    }

    /// Whether every byte is as it was sealed, its layers included. Files are read the first time in
    /// a life of the server, and again when they have changed; otherwise it costs a look at each.
    ///
    /// # Errors
    /// [`Error::SavedState`] with the name of the file that is not.
    pub fn verify(&self, sealed: &Sealed) -> Result<(), Error> {
        for (name, seal) in &sealed.manifest.files {
            check_length(sealed, name, seal)?;
            let (_, digest) = self.digests.of(&sealed.place.join(name))?;
            if digest != seal.digest {
                return Err(sealed.wrong(name, "is damaged"));
            }
        }
        self.verify_disk(sealed)
    }

    /// [`SavedStates::verify`] of the layers alone: for who only wants the disk.
    pub fn verify_disk(&self, sealed: &Sealed) -> Result<(), Error> {
        sealed.manifest.layers.iter().try_for_each(|layer| self.layers.verify(layer))
    }

    /// Removes what is at `place`; a success when nothing is. Whoever has its files open or mapped
    /// keeps them. Layers that nobody else needs go with it.
    pub fn delete(&self, place: &Path) -> Result<(), Error> {
        let gone = beside(place, GONE)?;
        if place.exists() {
            remove_tree(&gone)?;
            fs::rename(place, &gone).map_err(Error::path("removing", place))?;
            sync_parent(place)?;
            self.faults.after_blocking("state_condemned")?;
        }
        self.digests.forget(place);
        self.layers.release(&Holder(place.to_owned()));
        remove_tree(&gone)?;
        self.faults.after_blocking("state_removed")
    }

    /// What lies in `parent`, by name: saved states, and why others cannot be used. What was being
    /// made or removed does not count.
    pub fn list(&self, parent: &Path) -> Result<Vec<Listed>, Error> {
        let mut found = Vec::new();
        for name in names_in(parent)?.into_iter().filter(|name| !is_rubbish(name)) {
            match self.open(&parent.join(&name)) {
                Ok(Some(sealed)) => found.push((name, Ok(sealed))),
                Ok(None) => {}
                Err(error) => found.push((name, Err(error))),
            }
        }
        Ok(found)
    }

    /// Removes what crashes left in `parent`: states being made or removed. Only where nothing is
    /// under way.
    pub fn sweep(&self, parent: &Path) -> Result<(), Error> {
        sweep(parent)
    }

    /// Reads everything in `parent` in full and removes what is damaged: for what can be made again.
    /// Returns the names that were removed.
    pub fn remove_damaged(&self, parent: &Path) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        for (name, found) in self.list(parent)? {
            let verdict = found.and_then(|sealed| self.verify(&sealed));
            let Err(error) = verdict else { continue };
            if !parent.join(&name).exists() {
                // Removed by somebody else while it was read.
                continue;
            }
            tracing::warn!(name, error = chain(&error), "damaged saved state removed");
            self.delete(&parent.join(&name))?;
            removed.push(name);
        }
        Ok(removed)
    }
}

/// See [`SavedStates::sweep`].
pub(super) fn sweep(parent: &Path) -> Result<(), Error> {
    for name in names_in(parent)?.into_iter().filter(|name| is_rubbish(name)) {
        remove_tree(&parent.join(name))?;
    }
    Ok(())
}

fn check_length(sealed: &Sealed, name: &str, seal: &FileSeal) -> Result<(), Error> {
    let path = sealed.place.join(name);
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.is_file() => Err(sealed.wrong(name, "is not a regular file")),
        Ok(found) if found.len() != seal.length_bytes => {
            let problem = format!("has {} bytes instead of {}", found.len(), seal.length_bytes);
            Err(sealed.wrong(name, problem))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(sealed.wrong(name, "is missing"))
        }
        Err(error) => Err(Error::path("looking at", &path)(error)),
    }
}

fn is_rubbish(name: &str) -> bool {
    name.starts_with(NEW) || name.starts_with(GONE)
}

/// The last component of a place.
pub(super) fn name_of(place: &Path) -> Result<&str, Error> {
    let name = place.file_name().and_then(|name| name.to_str());
    name.ok_or_else(|| Error::SavedState {
        path: place.to_owned(),
        problem: "has no name that we would give".to_owned(),
    })
}

fn beside(place: &Path, prefix: &str) -> Result<PathBuf, Error> {
    Ok(place.with_file_name(format!("{prefix}{}", name_of(place)?)))
}

/// Where the state that will be at `place` is made; by which number, says who makes it.
pub(super) fn draft_place(place: &Path, number: u32) -> Result<PathBuf, Error> {
    match number {
        0 => beside(place, NEW),
        _ => Ok(place.with_file_name(format!("{NEW}{}.{number}", name_of(place)?))),
    }
}
