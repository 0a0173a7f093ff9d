//! Disks that become larger under a running guest: first the size is recorded, so that whatever happens
//! then the next opening makes the disk so large; then the VMM's disk grows, and then the guest's file
//! system. Repeating any of it changes nothing.

use std::{sync::Arc, time::Duration};

use skerry_internal_api::{NodeError, VmPhase, VmSpec};
use skerry_model::{MountMode, VolumeId, VolumeMount};
use skerry_vmm::Capability;

use super::{
    owner::Owner,
    snapshot::{Top, settle_push},
};
use crate::{
    disk::most_file_bytes,
    error::{Error, blocking},
    guest::GuestVolume,
    host::StepFailed,
    layout::write_durably,
    ledger::Ledger,
    spec_file,
};

/// Growing a disk waits for the requests under way.
const GROWN_WITHIN: Duration = Duration::from_secs(30);
/// The guest writes tables for all that it gained.
const FILE_SYSTEM_WITHIN: Duration = Duration::from_secs(120);

impl Owner {
    /// The files of a volume that this VM writes.
    ///
    /// # Errors
    /// [`NodeError::VolumeInUse`] when it does not (any more); [`NodeError::NotRunning`] when it does and
    /// stands still, or has not mounted it yet.
    pub(super) async fn volume_files(
        &mut self,
        volume_id: VolumeId,
    ) -> Result<GuestVolume, NodeError> {
        let mount = self.written_volume(volume_id)?;
        let (_, _, link) = self.running_guest(self.incarnation).await?;
        Ok(GuestVolume::new(link, &mount))
    }

    /// Makes a volume that this VM writes at least so large.
    ///
    /// # Errors
    /// As [`Owner::volume_files`], and the guest's.
    pub(super) async fn grow_volume(
        &mut self,
        volume_id: VolumeId,
        size_bytes: u64,
    ) -> Result<(), NodeError> {
        let mount = self.written_volume(volume_id)?;
        self.require(Capability::Volumes, "growing volumes")?;
        let (_, vm, link) = self.running_guest(self.incarnation).await?;
        self.leave_flattening().await;
        let grown = async {
            let (volumes, disk) =
                (Arc::clone(&self.host.volumes), self.host.volumes.disk_of(volume_id));
            settle_push(&*vm, Top::Volume(mount.slot), &disk).await?;
            let recorded = blocking(move || {
                volumes.grow(volume_id, size_bytes)?;
                disk.intend_size(size_bytes)
            });
            let size_bytes = recorded.await?;
            self.pass_growth("growth_recorded").await?;
            let most = most_file_bytes(size_bytes);
            vm.grow_volume(mount.slot, size_bytes, most, GROWN_WITHIN).await?;
            self.pass_growth("disk_grown").await?;
            let volume = GuestVolume::new(link, &mount);
            volume.grow(size_bytes).await.map_err(Error::Guest)?;
            self.pass_growth("file_system_grown").await
        };
        let grown = grown.await;
        self.flatten_if_deep().await;
        reported(grown, "growing a volume")
    }

    /// Makes the VM's own disk at least so large as this specification says.
    ///
    /// # Errors
    /// [`NodeError::NotRunning`], and the guest's.
    pub(super) async fn grow_disk(&mut self, spec: &VmSpec) -> Result<(), NodeError> {
        if self.phase_of_start(spec.incarnation)? != VmPhase::Running {
            return Err(NodeError::NotRunning);
        }
        self.require(Capability::Snapshot, "growing disks")?;
        let (_, vm, link) = self.running_guest(spec.incarnation).await?;
        self.leave_flattening().await;
        let grown = async {
            let disk = self.host.storage.disks.at(&self.paths.dir);
            settle_push(&*vm, Top::Root, &disk).await?;
            let (host, paths, spec) = (Arc::clone(&self.host), self.paths.clone(), spec.clone());
            let recorded = blocking(move || {
                let chain = disk.chain()?.ok_or(Error::StepMissing("disk"))?;
                let image = host.images.by_digest(&chain.image_digest).map_err(|error| {
                    tracing::warn!(%error, "image not usable");
                    Error::NoSuchImage(chain.image_digest.to_string())
                })?;
                let wanted_bytes = image.disk_bytes().saturating_add(spec.shape.disk_mib.bytes());
                let size_bytes = disk.intend_size(wanted_bytes)?;
                // What is saved of the VM from now on is of this shape.
                write_durably(&paths.spec, &spec_file::text(&spec, &*host.environment.seal)?)?;
                Ok(size_bytes)
            });
            let size_bytes = recorded.await?;
            self.pass_growth("growth_recorded").await?;
            vm.grow_disk(size_bytes, most_file_bytes(size_bytes), GROWN_WITHIN).await?;
            self.pass_growth("disk_grown").await?;
            link.grow_root(size_bytes, FILE_SYSTEM_WITHIN).await.map_err(Error::Guest)?;
            self.pass_growth("file_system_grown").await
        };
        let grown = grown.await;
        self.flatten_if_deep().await;
        reported(grown, "growing a disk")
    }

    fn written_volume(&self, volume_id: VolumeId) -> Result<VolumeMount, NodeError> {
        let state = self.ledger.as_ref().map(Ledger::state).unwrap_or_default();
        let mut held = state.volumes.values();
        let written = |mount: &&VolumeMount| {
            mount.volume_id == volume_id && mount.mode == MountMode::ReadWrite
        };
        let Some(mount) = held.find(written) else { return Err(NodeError::VolumeInUse) };
        if self.phase != VmPhase::Running || !state.mounted.contains(&mount.slot) {
            return Err(NodeError::NotRunning);
        }
        Ok(mount.clone())
    }

    /// Passes a point after something that is not to be taken twice.
    async fn pass_growth(&self, point: &'static str) -> Result<(), Error> {
        self.host.config.faults.after(point).await.map(|_| ())
    }
}

fn reported(grown: Result<(), Error>, doing: &'static str) -> Result<(), NodeError> {
    grown.map_err(|error| match error {
        Error::Guest(refusal) => refusal,
        error => StepFailed { step: "grow", error }.report(doing),
    })
}
