//! Checkpoints of volumes: what one was at a moment, kept as the frozen layers that it then consisted of.
//!
//! ```text
//! <data-dir>/volumes/<volume id>/checkpoints/<checkpoint id>/disk.json   a chain without a top
//! ```
//! Making one freezes the volume's top and writes this record: what it costs does not depend on how large
//! the volume is, or how much is on it. The volume goes on in a new top above the same layers; each layer
//! stays for as long as the volume, a checkpoint or a reader names it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use skerry_model::{CheckpointId, VolumeId, WorkspaceId};
use skerry_vmm::DiskSpec;

use super::{EMPTY_OVERLAY_BYTES, Volumes, foundation, read_record};
use crate::{
    Error,
    disk::{Disk, layers_named_by},
    layers::LayerId,
    layout::{make_private_dir, names_in, remove_tree, sync_parent},
};

const CHECKPOINTS: &str = "checkpoints";

/// The directories of a volume's checkpoints, complete or not.
pub(crate) fn checkpoints_dir(place: &Path) -> PathBuf {
    place.join(CHECKPOINTS)
}

/// Removes checkpoints of the volume in `place` whose record was not written.
pub(super) fn sweep(place: &Path) -> Result<(), Error> {
    let dir = checkpoints_dir(place);
    if !dir.exists() {
        return Ok(());
    }
    for name in names_in(&dir)? {
        let one = dir.join(name);
        // A record that cannot be read is not taken for one that is not there.
        if matches!(layers_named_by(&one), Ok(None)) {
            remove_tree(&one)?;
        }
    }
    Ok(())
}

impl Volumes {
    /// The disk of a volume.
    pub fn disk_of(&self, id: VolumeId) -> Disk {
        self.disks.at(&self.place(id))
    }

    /// Whose VM writes the volume.
    pub fn writer(&self, id: VolumeId) -> Result<Option<WorkspaceId>, Error> {
        let writers = self.writers();
        let Some(dir) = writers.get(&id) else { return Ok(None) };
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let workspace_id = name.parse().map_err(|_| Error::VolumeInUse)?;
        Ok(Some(workspace_id))
    }

    /// Whether the VM in this directory writes the volume, or may.
    pub fn is_written_by(&self, id: VolumeId, vm_dir: &Path) -> bool {
        self.writers().get(&id).is_some_and(|writer| writer == vm_dir)
    }

    /// Whether there is a complete checkpoint of this identifier.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`].
    pub fn has_checkpoint(&self, id: VolumeId, checkpoint: CheckpointId) -> Result<bool, Error> {
        let place = self.place(id);
        read_record(&place)?.ok_or(Error::NoSuchVolume)?;
        Ok(layers_named_by(&self.checkpoint(id, checkpoint))?.is_some())
    }

    /// Makes a checkpoint of a volume that no VM writes; one that is there is a success.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`]; [`Error::VolumeInUse`] when a VM writes it; [`Error::NoCapacity`] when the
    /// volume consists of as many layers as it may.
    pub fn checkpoint_at_rest(&self, id: VolumeId, checkpoint: CheckpointId) -> Result<(), Error> {
        let writers = self.writers();
        if self.has_checkpoint(id, checkpoint)? {
            return Ok(());
        }
        if writers.contains_key(&id) {
            return Err(Error::VolumeInUse);
        }
        let _room = self.room.reserve(EMPTY_OVERLAY_BYTES)?;
        let own = self.disk_of(id);
        if let Some(chain) = own.chain()?
            && chain.layers.len() >= DiskSpec::MAX_LAYERS
        {
            return Err(Error::NoCapacity(format!(
                "the volume consists of {} layers, the most there may be: they become one in the \
                 background while a workspace that runs has it rw",
                chain.layers.len()
            )));
        }
        let layers = if own.exists() { own.freeze()?.layers } else { Vec::new() };
        self.keep_checkpoint(id, checkpoint, layers)
    }

    /// Records that a checkpoint consists of these layers.
    pub fn keep_checkpoint(
        &self,
        id: VolumeId,
        checkpoint: CheckpointId,
        layers: Vec<LayerId>,
    ) -> Result<(), Error> {
        let place = self.place(id);
        let record = read_record(&place)?.ok_or(Error::NoSuchVolume)?;
        let dir = self.checkpoint(id, checkpoint);
        for dir in [&checkpoints_dir(&place), &dir] {
            make_private_dir(dir)?;
            sync_parent(dir)?;
        }
        self.disks.at(&dir).keep(&foundation(id, record, layers))
    }

    /// Removes a checkpoint; a success when there is none. Who reads it keeps what it has.
    pub fn delete_checkpoint(&self, id: VolumeId, checkpoint: CheckpointId) -> Result<(), Error> {
        let _turn = self.writers();
        let dir = self.checkpoint(id, checkpoint);
        if !dir.exists() {
            return Ok(());
        }
        self.disks.at(&dir).remove()?;
        remove_tree(&dir)
    }

    /// The complete ones of a volume, in no order.
    pub(super) fn checkpoints(&self, id: VolumeId) -> Result<Vec<CheckpointId>, Error> {
        let dir = checkpoints_dir(&self.place(id));
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for name in names_in(&dir)? {
            let Ok(checkpoint) = name.parse::<CheckpointId>() else { continue };
            if layers_named_by(&dir.join(name))?.is_some() {
                found.push(checkpoint);
            }
        }
        Ok(found)
    }

    /// The layers of a volume's checkpoints.
    pub(super) fn layers_of_checkpoints(&self, id: VolumeId) -> Result<BTreeSet<LayerId>, Error> {
        let mut layers = BTreeSet::new();
        for checkpoint in self.checkpoints(id)? {
            let named = layers_named_by(&self.checkpoint(id, checkpoint))?;
            layers.extend(named.unwrap_or_default());
        }
        Ok(layers)
    }

    /// What a reader of a checkpoint stands on, the uppermost first.
    ///
    /// # Errors
    /// [`Error::NoSuchCheckpoint`].
    pub(super) fn layers_of(
        &self,
        id: VolumeId,
        checkpoint: CheckpointId,
    ) -> Result<Vec<LayerId>, Error> {
        let chain = self.disks.at(&self.checkpoint(id, checkpoint)).chain()?;
        Ok(chain.ok_or(Error::NoSuchCheckpoint)?.layers)
    }

    /// The checkpoints of a volume whose directory was renamed from `place` go with it.
    pub(super) fn forget_checkpoints(&self, place: &Path, gone: &Path) -> Result<(), Error> {
        let dir = checkpoints_dir(gone);
        if !dir.exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&dir).map_err(Error::path("reading", &dir))? {
            let name = entry.map_err(Error::path("reading", &dir))?.file_name();
            let one = dir.join(&name);
            self.disks.moved(&checkpoints_dir(place).join(&name), &one);
            self.disks.at(&one).remove()?;
        }
        Ok(())
    }

    fn checkpoint(&self, id: VolumeId, checkpoint: CheckpointId) -> PathBuf {
        checkpoints_dir(&self.place(id)).join(checkpoint.to_string())
    }
}
