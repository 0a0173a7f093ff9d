//! The volumes of a fake VM.

use std::{collections::BTreeMap, io, path::Path};

use skerry_model::VolumeSlot;

use super::{Machine, VmState, refused};
use crate::{DiskSpec, VmmError, fake::fault::Step};

impl Machine {
    pub(in crate::fake) fn volumes(&self) -> BTreeMap<VolumeSlot, DiskSpec> {
        self.inside().volumes.clone()
    }

    /// As with the real one, the file that a process writes is written by no other.
    pub(in crate::fake) fn attach_volume(
        &self,
        slot: VolumeSlot,
        disk: &DiskSpec,
    ) -> Result<(), VmmError> {
        let refused = |reason| Err(refused(Step::AttachVolume, reason));
        if self.state() == VmState::Parked {
            return refused("it waits for its saved state");
        }
        if self.inside().disk.is_none() {
            return refused("it has no slots");
        }
        if let Some(there) = self.inside().volumes.get(&slot) {
            return match there.overlay == disk.overlay {
                true => Ok(()),
                false => refused("the slot has another volume"),
            };
        }
        let host = self.host.upgrade().ok_or(VmmError::Gone)?;
        if host.machines().iter().any(|other| other.writes(&disk.overlay)) {
            return refused("another process writes the file");
        }
        if let Some(missing) =
            [&disk.overlay, &disk.base].into_iter().chain(&disk.layers).find(|file| !file.exists())
        {
            let source = io::ErrorKind::NotFound.into();
            return Err(VmmError::Io { context: format!("open {}", missing.display()), source });
        }
        self.inside().volumes.insert(slot, disk.clone());
        Ok(())
    }

    fn writes(&self, file: &Path) -> bool {
        let inside = self.inside();
        let mut overlays = inside.volumes.values().map(|disk| disk.overlay.as_path());
        !self.has_ended()
            && (overlays.any(|overlay| overlay == file)
                || inside.disk.as_ref().is_some_and(|disk| disk.overlay == file))
    }

    pub(in crate::fake) fn push_volume_overlay(
        &self,
        slot: VolumeSlot,
        overlay: &Path,
    ) -> Result<(), VmmError> {
        let refused = |reason| Err(refused(Step::PushVolumeOverlay, reason));
        if self.state() == VmState::Parked {
            return refused("it waits for its saved state");
        }
        let mut inside = self.inside();
        let Some(disk) = inside.volumes.get_mut(&slot) else {
            return refused("the slot is empty");
        };
        if disk.overlay == overlay {
            return Ok(());
        }
        if disk.layers.len() == DiskSpec::MAX_LAYERS {
            return refused("it has as many layers as it may have");
        }
        if disk.layers.iter().any(|layer| layer == overlay) {
            return refused("the file is a layer of it already");
        }
        let frozen = std::mem::replace(&mut disk.overlay, overlay.to_owned());
        disk.layers.insert(0, frozen);
        Ok(())
    }

    pub(in crate::fake) fn flatten_volume(&self, slot: VolumeSlot) -> Result<(), VmmError> {
        match self.inside().volumes.get_mut(&slot) {
            Some(disk) => {
                disk.layers.clear();
                Ok(())
            }
            None => Err(refused(Step::FlattenVolume, "the slot is empty")),
        }
    }

    pub(in crate::fake) fn grow_volume(
        &self,
        slot: VolumeSlot,
        size_bytes: u64,
    ) -> Result<(), VmmError> {
        let refused = |reason| Err(refused(Step::GrowVolume, reason));
        if self.state() == VmState::Parked {
            return refused("it waits for its saved state");
        }
        let mut inside = self.inside();
        if !inside.volumes.contains_key(&slot) {
            return refused("the slot is empty");
        }
        match inside.grown_volumes.get(&slot) {
            Some(now) if size_bytes < *now => refused("it never shrinks"),
            Some(_) | None => {
                inside.grown_volumes.insert(slot, size_bytes);
                Ok(())
            }
        }
    }

    pub(in crate::fake) fn detach_volume(&self, slot: VolumeSlot) -> Result<(), VmmError> {
        if self.state() == VmState::Parked {
            return Err(refused(Step::DetachVolume, "it waits for its saved state"));
        }
        let mut inside = self.inside();
        inside.volumes.remove(&slot);
        inside.grown_volumes.remove(&slot);
        Ok(())
    }
}
