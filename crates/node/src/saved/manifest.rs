//! `manifest.json`: what a saved state is, and what its files must be.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use skerry_internal_api::SnapshotContents;
use skerry_model::{Incarnation, Shape, SnapshotId, Timestamp, WorkspaceId, spec::ImageDigest};
use skerry_vmm::DiskSpec;

use super::{ContentDigest, open_regular};
use crate::{
    Error,
    layers::{LayerId, LayerSeal},
};

pub(super) const FORMAT: u32 = 1;
/// A manifest of the most layers comes to about 10 KiB.
const MAX_MANIFEST_BYTES: u64 = 256 * 1024;
const MAX_FILES: usize = 8;

/// What a saved state was saved for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum About {
    /// A neutral guest that many workspaces start from.
    Template,
    /// A snapshot of a workspace.
    Snapshot {
        /// Of which.
        workspace_id: WorkspaceId,
        /// What it contains.
        contents: SnapshotContents,
        /// How long the guest stood still for it.
        blackout: Duration,
    },
    /// A snapshot's memory in the form in which many VMs can share it.
    PromotedMemory {
        /// Of which snapshot.
        snapshot_id: SnapshotId,
    },
    /// The memory of a suspended VM; its disk is the workspace's own.
    SuspendedMemory {
        /// Whose.
        workspace_id: WorkspaceId,
        /// Of which start.
        incarnation: Incarnation,
    },
}

/// A file of a saved state as it was when it was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileSeal {
    /// Its length.
    pub length_bytes: u64,
    /// Its content.
    pub digest: ContentDigest,
}

/// Everything that is known of a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// What it was saved for.
    pub about: About,
    /// When it was complete.
    pub created_at: Timestamp,
    /// The shape of the machine.
    pub shape: Shape,
    /// [`skerry_vmm::Vmm::fingerprint`] of the machine, where its state was saved.
    pub fingerprint: Option<String>,
    /// The image at the bottom of its disk.
    pub image_digest: ImageDigest,
    /// The size of its disk.
    pub disk_size_bytes: u64,
    /// The layers of its disk, the uppermost first; none where the disk is somebody else's.
    pub layers: Vec<LayerSeal>,
    /// Its files by name; filled in by [`super::Draft::seal`].
    pub files: BTreeMap<String, FileSeal>,
}

/// The file: the manifest with its own digest, so that a changed digit does not pass for another
/// shape.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    format: u32,
    /// The name of the directory it was sealed for: one that was put in another's place is refused.
    name: String,
    digest: ContentDigest,
    manifest: Manifest,
}

impl Manifest {
    /// The ids of its layers, the uppermost first.
    pub fn layer_ids(&self) -> Vec<LayerId> {
        self.layers.iter().map(|layer| layer.id).collect()
    }

    /// The lengths of its own files together.
    pub fn files_bytes(&self) -> u64 {
        self.files.values().fold(0, |sum, file| sum.saturating_add(file.length_bytes))
    }

    pub(super) fn to_text(&self, name: &str) -> io::Result<Vec<u8>> {
        let digest = self.digest(name)?;
        let (name, manifest) = (name.to_owned(), self.clone());
        let mut text =
            serde_json::to_vec_pretty(&Envelope { format: FORMAT, name, digest, manifest })?;
        text.push(b'\n');
        Ok(text)
    }

    /// Strict: bounded, of our layout, of this name, nothing unknown, and exactly what was sealed.
    pub(super) fn parse(text: &[u8], name: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let unreadable = |error: serde_json::Error| format!("cannot be understood: {error}");
        let Format { format } = serde_json::from_slice(text).map_err(unreadable)?;
        if format != FORMAT {
            return Err(format!("has layout {format}, not {FORMAT}"));
        }
        let envelope: Envelope = serde_json::from_slice(text).map_err(unreadable)?;
        let Envelope { format: _, name: sealed_name, digest, manifest } = envelope;
        if sealed_name != name {
            return Err(format!("is that of {sealed_name:?}"));
        }
        let expected = manifest.digest(name).map_err(|error| error.to_string())?;
        if digest != expected {
            return Err("is damaged".to_owned());
        }
        manifest.check()?;
        Ok(manifest)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.layers.len() > DiskSpec::MAX_LAYERS {
            return Err(format!("names {} layers", self.layers.len()));
        }
        if self.layer_ids().into_iter().collect::<BTreeSet<_>>().len() != self.layers.len() {
            return Err("names a layer twice".to_owned());
        }
        if self.files.len() > MAX_FILES {
            return Err(format!("names {} files", self.files.len()));
        }
        match self.files.keys().find(|name| !is_file_name(name)) {
            Some(name) => Err(format!("names the file {name:?}")),
            None => Ok(()),
        }
    }

    fn digest(&self, name: &str) -> io::Result<ContentDigest> {
        Ok(ContentDigest::of_bytes(&serde_json::to_vec(&(FORMAT, name, self))?))
    }

    /// The manifest at `path` of the place called `name`; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::SavedState`] when it is damaged or another's.
    pub(super) fn read(path: &Path, name: &str) -> Result<Option<Self>, Error> {
        let file = match open_regular(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::path("opening", path)(error)),
        };
        let mut text = Vec::new();
        file.take(MAX_MANIFEST_BYTES)
            .read_to_end(&mut text)
            .map_err(Error::path("reading", path))?;
        Self::parse(&text, name)
            .map(Some)
            .map_err(|problem| Error::SavedState { path: path.to_owned(), problem })
    }
}

/// A plain word that cannot lead out of the directory, and not the manifest's own.
pub(super) fn is_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=32).contains(&name.len()) && name.bytes().all(plain)
}

/// The layers that the manifest in `place` names, for the books; `None` when there is none.
pub(crate) fn layers_named_by(place: &Path) -> Result<Option<BTreeSet<LayerId>>, Error> {
    let name = super::states::name_of(place)?;
    let manifest = Manifest::read(&place.join(super::states::MANIFEST), name)?;
    Ok(manifest.map(|manifest| manifest.layer_ids().into_iter().collect()))
}
