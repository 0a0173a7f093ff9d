//! The disk budget of saved states that can be made again: the least recently used go first.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use skerry_model::Timestamp;

use super::{SavedStates, Sealed};
use crate::Error;

/// A saved state as the budget sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Budgeted {
    /// Which.
    pub sealed: Sealed,
    /// What it takes on the disk: its files as allocated, and the layers that only it needs.
    pub allocated_bytes: u64,
    /// When it was last used or made.
    pub last_used_at: Timestamp,
}

impl SavedStates {
    /// Records that a state was used: the directory's modification time, which nothing else changes
    /// once it is sealed. Not made durable: after a power cut a use may be forgotten.
    pub fn used(&self, sealed: &Sealed, now: Timestamp) -> Result<(), Error> {
        let place = sealed.place();
        let since_epoch = Duration::try_from(now.as_duration()).unwrap_or_default();
        File::open(place)
            .and_then(|dir| dir.set_modified(SystemTime::UNIX_EPOCH + since_epoch))
            .map_err(Error::path("recording the use of", place))
    }

    /// Every usable state that lies in `parent`.
    pub fn usable(&self, parent: &Path) -> Result<Vec<Sealed>, Error> {
        Ok(self.list(parent)?.into_iter().filter_map(|(_, sealed)| sealed.ok()).collect())
    }

    /// These states with what they take, the least recently used first.
    pub fn by_last_use(&self, all: Vec<Sealed>) -> Vec<Budgeted> {
        let mut found = Vec::new();
        for sealed in all {
            // One that was removed meanwhile takes nothing.
            let Ok(metadata) = fs::symlink_metadata(sealed.place()) else { continue };
            let last_used_at = Timestamp::new(metadata.mtime(), 0).unwrap_or(Timestamp::UNIX_EPOCH);
            let nanoseconds =
                Duration::from_nanos(u64::try_from(metadata.mtime_nsec()).unwrap_or(0));
            let last_used_at = last_used_at.checked_add(nanoseconds).unwrap_or(last_used_at);
            let allocated_bytes = self.allocated_bytes(&sealed);
            found.push(Budgeted { sealed, allocated_bytes, last_used_at });
        }
        found.sort_by(|one, other| {
            let places = || one.sealed.place().cmp(other.sealed.place());
            one.last_used_at.cmp(&other.last_used_at).then_with(places)
        });
        found
    }

    fn allocated_bytes(&self, sealed: &Sealed) -> u64 {
        let files: Vec<PathBuf> =
            sealed.manifest.files.keys().filter_map(|name| sealed.file(name)).collect();
        let files = files
            .iter()
            .map(|path| fs::symlink_metadata(path).map_or(0, |found| found.blocks() * 512));
        let own = sealed.manifest.layer_ids().into_iter();
        let own = own.filter(|id| self.layers.holders(*id).len() <= 1);
        files.chain(own.map(|id| self.layers.allocated_bytes(id))).sum()
    }
}

/// Removes some of these states, the least recently used first, until the rest fits into
/// `budget_bytes`; those in `kept` stay whatever they take. Returns the places that were removed.
/// Clones of a removed state keep running: they have its files open.
pub(crate) fn evict(
    states: &SavedStates,
    all: Vec<Sealed>,
    budget_bytes: u64,
    kept: &BTreeSet<PathBuf>,
) -> Result<Vec<PathBuf>, Error> {
    let found = states.by_last_use(all);
    let mut taken: u64 = found.iter().map(|one| one.allocated_bytes).sum();
    let mut removed = Vec::new();
    for one in found.into_iter().filter(|one| !kept.contains(one.sealed.place())) {
        if taken <= budget_bytes {
            break;
        }
        states.delete(one.sealed.place())?;
        taken = taken.saturating_sub(one.allocated_bytes);
        removed.push(one.sealed.place().to_owned());
    }
    Ok(removed)
}
