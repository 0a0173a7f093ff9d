//! Volumes that become larger. What a volume's size is says its record; its disk is made that large by
//! whoever opens it next, and its file system by the guest that mounts it. So growing one that nobody has
//! is a matter of one file, and a crash at any moment leaves the old size or the new one.

use std::path::PathBuf;

use skerry_model::VolumeId;

use super::{FORMAT, RECORD, Record, Volumes, read_record};
use crate::{Error, layout::write_durably};

impl Volumes {
    /// Makes a volume that nobody writes at least so large.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`]; [`Error::VolumeInUse`] when somebody writes it, or will go on to.
    pub fn grow_at_rest(&self, id: VolumeId, size_bytes: u64) -> Result<(), Error> {
        let writers = self.writers();
        if writers.contains_key(&id) || self.asleep().contains_key(&id) {
            return Err(Error::VolumeInUse);
        }
        self.record_size(id, size_bytes)
    }

    /// Records that the volume is at least so large, for the VM that writes it: it makes the disk so large.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`].
    pub fn grow(&self, id: VolumeId, size_bytes: u64) -> Result<(), Error> {
        let _turn = self.writers();
        self.record_size(id, size_bytes)
    }

    fn record_size(&self, id: VolumeId, size_bytes: u64) -> Result<(), Error> {
        let place = self.place(id);
        let record = read_record(&place)?.ok_or(Error::NoSuchVolume)?;
        if record.size_bytes >= size_bytes {
            return Ok(());
        }
        let text = serde_json::to_vec(&Record { format: FORMAT, size_bytes })
            .map_err(|error| Error::io("writing the record")(error.into()))?;
        write_durably(&place.join(RECORD), &text)
    }

    /// Who writes the volume.
    pub fn user(&self, id: VolumeId) -> Result<VolumeUser, Error> {
        let writers = self.writers();
        read_record(&self.place(id))?.ok_or(Error::NoSuchVolume)?;
        if let Some(dir) = writers.get(&id) {
            return Ok(VolumeUser::Vm(dir.clone()));
        }
        match self.asleep().contains_key(&id) {
            true => Ok(VolumeUser::Asleep),
            false => Ok(VolumeUser::Nobody),
        }
    }
}

/// Who writes a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VolumeUser {
    /// Nobody: it is at rest.
    Nobody,
    /// The VM that lies in this directory.
    Vm(PathBuf),
    /// A VM that is saved: it will go on with what it knows of the volume.
    Asleep,
}
