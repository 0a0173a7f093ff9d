//! `disk.json`: what a disk consists of, replaced as a whole and durably.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde::{Deserialize, Serialize};
use skerry_model::spec::ImageDigest;
use skerry_vmm::DiskSpec;

use super::qcow2::MAX_SIZE_BYTES;
use crate::{
    Error,
    layers::LayerId,
    layout::{write_durably, write_durably_naming},
    saved::open_regular,
};

pub(super) const FORMAT: u32 = 1;
/// Two chains of the most layers come to about 4 KiB.
const MAX_RECORD_BYTES: u64 = 64 * 1024;

/// A disk from the top to the bottom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskChain {
    /// The writable top. `None` when there is nothing above the layers yet: it is made at the next
    /// start.
    pub overlay: Option<LayerId>,
    /// Frozen layers, the uppermost first; at most [`DiskSpec::MAX_LAYERS`].
    pub layers: Vec<LayerId>,
    /// The image at the bottom.
    pub image_digest: ImageDigest,
    /// The size the guest sees. Never becomes smaller.
    pub size_bytes: u64,
}

/// More layers than this make every read that misses the upper ones slow: the disk wants to be
/// flattened ([`skerry_vmm::Vm::flatten_disk`]) the next time it runs.
pub(crate) const LAYERS_BEFORE_FLATTENING: usize = 8;

impl DiskChain {
    /// Whether so many layers have come together that they should become one.
    pub fn wants_flattening(&self) -> bool {
        self.layers.len() > LAYERS_BEFORE_FLATTENING
    }

    fn ids(&self) -> impl Iterator<Item = LayerId> {
        self.layers.iter().copied().chain(self.overlay)
    }
}

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskRecord {
    pub format: u32,
    /// What the disk is.
    pub chain: DiskChain,
    /// An overlay that is being put on top of a running VM's disk: whether it is already, only the
    /// VMM knows. Either way it may be read as the top, because until it is, it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushing: Option<LayerId>,
    /// What the disk was before it was replaced, until the replacement has proved itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<DiskChain>,
}

impl DiskRecord {
    pub fn new(chain: DiskChain) -> Self {
        Self { format: FORMAT, chain, pushing: None, previous: None }
    }

    /// Every layer, and every overlay that is or will be one.
    pub fn ids(&self) -> BTreeSet<LayerId> {
        let previous = self.previous.iter().flat_map(DiskChain::ids);
        self.chain.ids().chain(self.pushing).chain(previous).collect()
    }

    /// Every overlay that may lie in the disk's own directory.
    pub fn overlays(&self) -> BTreeSet<LayerId> {
        let previous = self.previous.iter().filter_map(|chain| chain.overlay);
        self.chain.overlay.into_iter().chain(self.pushing).chain(previous).collect()
    }

    /// Strict: what is not as we write it is damage, and damage is not guessed at.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        record.check()?;
        Ok(record)
    }

    pub fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("has layout {}, not {FORMAT}", self.format));
        }
        for chain in std::iter::once(&self.chain).chain(&self.previous) {
            if chain.layers.len() > DiskSpec::MAX_LAYERS {
                return Err(format!("names {} layers", chain.layers.len()));
            }
            if chain.ids().collect::<BTreeSet<_>>().len() != chain.ids().count() {
                return Err("names a layer twice".to_owned());
            }
            let size = chain.size_bytes;
            if size == 0 || size > MAX_SIZE_BYTES || !size.is_multiple_of(512) {
                return Err(format!("names the impossible size {size}"));
            }
        }
        if let Some(pushing) = self.pushing {
            let known = self.previous.iter().chain([&self.chain]).flat_map(DiskChain::ids);
            if self.chain.overlay.is_none() || known.into_iter().any(|id| id == pushing) {
                return Err("names an overlay that cannot be put on top".to_owned());
            }
        }
        Ok(())
    }

    /// The record at `path`; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Disk`] when it is damaged.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let file = match open_regular(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::path("opening", path)(error)),
        };
        let mut text = Vec::new();
        file.take(MAX_RECORD_BYTES).read_to_end(&mut text).map_err(Error::path("reading", path))?;
        match Self::parse(&text) {
            Ok(record) => Ok(Some(record)),
            Err(problem) => Err(Error::Disk { path: path.to_owned(), problem }),
        }
    }

    pub fn write(&self, path: &Path) -> Result<(), Error> {
        write_durably(path, &self.to_text()?)
    }

    /// Writes a record that names the new file `overlay`, which is made durable first.
    pub fn write_naming(&self, path: &Path, overlay: &File) -> Result<(), Error> {
        write_durably_naming(path, &self.to_text()?, overlay)
    }

    fn to_text(&self) -> Result<Vec<u8>, Error> {
        debug_assert_eq!(self.check(), Ok(()));
        serde_json::to_vec(self).map_err(|error| Error::io("writing the record")(error.into()))
    }
}

/// The layers that the disk in `dir` names, for the books; `None` when there is none.
pub(crate) fn layers_named_by(dir: &Path) -> Result<Option<BTreeSet<LayerId>>, Error> {
    Ok(DiskRecord::read(&dir.join(super::RECORD))?.map(|record| record.ids()))
}
