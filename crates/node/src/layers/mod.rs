//! Frozen disk layers: former overlays that are never written again, shared by everything that
//! stands on them.
//!
//! ```text
//! <data-dir>/layers/<layer id>.qcow2   0444, ours
//! <data-dir>/layers/<layer id>.json    its length and digest, once somebody wanted to know
//! ```
//! An overlay carries the id of the layer it will be from its birth, so that freezing it is one
//! rename that can be repeated. Who needs a layer says so in a file of its own (`disk.json`,
//! `manifest.json`); the books here are in memory and made anew from those files at every start. A
//! layer that nobody names is removed at once, or at the next start when a crash came between.

mod store;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::saved::ContentDigest;

pub(crate) use store::{LayerStore, Named};

/// Names one layer, and before that the overlay it was.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct LayerId(Uuid);

impl LayerId {
    /// From random bytes drawn by the caller.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// Of the overlay and of the layer alike.
    pub fn file_name(self) -> String {
        format!("{self}{QCOW2}")
    }

    /// The id in a file's name, if it is one of ours.
    pub fn of_file_name(name: &str) -> Option<Self> {
        name.strip_suffix(QCOW2)?.parse().ok()
    }
}

const QCOW2: &str = ".qcow2";

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LayerId({self})")
    }
}

impl FromStr for LayerId {
    type Err = String;

    /// Only the form we write: another spelling would be another file.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Uuid::try_parse(text) {
            Ok(uuid) if uuid.hyphenated().to_string() == text => Ok(Self(uuid)),
            Ok(_) | Err(_) => Err(format!("{text:?} is not the id of a layer")),
        }
    }
}

impl TryFrom<String> for LayerId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<LayerId> for String {
    fn from(id: LayerId) -> Self {
        id.to_string()
    }
}

/// A layer as a manifest names it: with what its file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerSeal {
    /// Which.
    pub id: LayerId,
    /// The file's length.
    pub length_bytes: u64,
    /// The file's content.
    pub digest: ContentDigest,
}

/// Who needs layers: the directory whose `disk.json` or `manifest.json` names them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Holder(pub PathBuf);
