//! Saved states: directories that are written once, sealed, and from then on only read or removed.
//! One mechanism for templates, snapshots, promoted snapshots and the memory of suspended VMs.
//!
//! ```text
//! <place>/manifest.json      what it is, and every file with its length and digest
//! <place>/state, ram ...     0444, ours
//! <parent>/.new-<name>[.N]/  being made; rubbish after a crash
//! <parent>/.gone-<name>/     being removed; rubbish after a crash
//! ```
//! A place appears whole, by a rename, after everything in it is durable; it is removed by another
//! rename first. Lengths are compared at every opening, contents at the first use in each life of the
//! server. What does not agree is refused with the name of the file, and nothing else is touched.

mod budget;
mod digest;
mod draft;
mod manifest;
mod room;
mod states;
mod storage;
#[cfg(test)]
pub(crate) mod test_ground;
#[cfg(test)]
mod tests;

/// The devices of a saved machine, and its memory where that is not in a file of its own.
pub(crate) const STATE_FILE: &str = "state";
/// The memory of a machine that others share.
pub(crate) const RAM_FILE: &str = "ram";

pub(crate) use self::{
    budget::{Budgeted, evict},
    digest::{ContentDigest, KnownDigests, open_regular},
    draft::{Draft, seal_unless},
    manifest::{About, Manifest, layers_named_by},
    room::{DiskRoom, RoomLease},
    states::{SavedStates, Sealed},
    storage::Storage,
};
