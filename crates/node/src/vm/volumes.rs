//! Volumes in a VM: into its slots and its guest, and out again.
//!
//! The ledger says first which volume a slot may have, so that whatever happens in between, the
//! release of the VM (or of its start) gives it back. It also says whether the guest has it mounted:
//! what was broken off on its way in or out is shown as such, and whoever compares it with what should
//! be has it brought to an end.

use std::{sync::Arc, time::Duration};

use skerry_internal_api::{NodeError, VmPhase};
use skerry_model::{Incarnation, MountMode, VolumeId, VolumeMount};
use skerry_vmm::{Capability, Vm};

use super::{
    owner::Owner,
    snapshot::{Top, settle_push},
};
use crate::{
    disk::most_file_bytes,
    error::{Error, blocking},
    guest::GuestLink,
    host::{Host, StepFailed},
    layout::VmPaths,
    ledger::{Entry, Ledger},
    volumes::{Helpers, Scratch},
};

/// Exchanging what is behind a device waits for the requests under way.
const EXCHANGED_WITHIN: Duration = Duration::from_secs(30);
/// A guest replays a journal first, and writes everything back at the end.
const MOUNTED_WITHIN: Duration = Duration::from_secs(120);

/// Puts a volume into its slot; the guest knows nothing of it yet. Whoever serves its files for the node
/// lets it go first.
pub(crate) async fn put_in(
    host: &Arc<Host>,
    paths: &VmPaths,
    ledger: &Ledger,
    vm: &Arc<dyn Vm>,
    mount: &VolumeMount,
) -> Result<(), Error> {
    let _no_helper = Helpers::without(host, mount.volume_id).await;
    put_in_slot(host, paths, ledger, vm, mount).await
}

/// [`put_in`] for the one who serves its files.
pub(crate) async fn put_in_slot(
    host: &Arc<Host>,
    paths: &VmPaths,
    ledger: &Ledger,
    vm: &Arc<dyn Vm>,
    mount: &VolumeMount,
) -> Result<(), Error> {
    if ledger.state().volumes.get(&mount.slot) != Some(mount) {
        ledger.append(Entry::VolumeAttaching { mount: mount.clone() }).await?;
    }
    pass(host, "volume_attaching").await?;
    settle_top(host, paths, vm, mount).await?;
    let (volumes, dir, asked) = (Arc::clone(&host.volumes), paths.dir.clone(), mount.clone());
    let open = blocking(move || volumes.open(&asked, &dir)).await?;
    let most = most_file_bytes(open.size_bytes);
    vm.attach_volume(mount.slot, &open.disk, most, EXCHANGED_WITHIN).await?;
    pass(host, "volume_in_slot").await
}

/// Has the guest mount what is in its slot.
pub(crate) async fn mount_in(link: &GuestLink, mount: &VolumeMount) -> Result<(), Error> {
    link.mount(mount, MOUNTED_WITHIN).await.map_err(Error::Guest)
}

/// Takes a volume that the guest has let go, or never had, out of its slot.
async fn take_out(
    host: &Arc<Host>,
    paths: &VmPaths,
    ledger: &Ledger,
    vm: &Arc<dyn Vm>,
    mount: &VolumeMount,
) -> Result<(), Error> {
    settle_top(host, paths, vm, mount).await?;
    vm.detach_volume(mount.slot, EXCHANGED_WITHIN).await?;
    pass(host, "volume_out_of_slot").await?;
    let (volumes, dir, held) = (Arc::clone(&host.volumes), paths.dir.clone(), mount.clone());
    blocking(move || volumes.close(&held, &dir, Scratch::Remove)).await?;
    pass(host, "volume_closed").await?;
    ledger.append(Entry::VolumeDetached { slot: mount.slot }).await?;
    pass(host, "volume_detached").await
}

/// Brings a checkpoint's new top to be recorded, or to be gone, that was being put into this VM: only the
/// VMM knows where the guest writes, and only for as long as it has the disk.
async fn settle_top(
    host: &Host,
    paths: &VmPaths,
    vm: &Arc<dyn Vm>,
    mount: &VolumeMount,
) -> Result<(), Error> {
    match mount.mode {
        MountMode::ReadWrite if host.volumes.is_written_by(mount.volume_id, &paths.dir) => {
            let disk = host.volumes.disk_of(mount.volume_id);
            settle_push(&**vm, Top::Volume(mount.slot), &disk).await
        }
        MountMode::ReadWrite | MountMode::ReadOnly => Ok(()),
    }
}

/// Passes a point after something that is not to be taken twice.
async fn pass(host: &Host, point: &'static str) -> Result<(), Error> {
    host.config.faults.after(point).await.map(|_| ())
}

impl Owner {
    pub(super) async fn attach_volume(
        &mut self,
        incarnation: Incarnation,
        mount: &VolumeMount,
    ) -> Result<(), NodeError> {
        self.require(Capability::Volumes, "attaching volumes")?;
        let (ledger, vm, link) = self.running_guest(incarnation).await?;
        let (host, paths) = (Arc::clone(&self.host), self.paths.clone());
        let attached = async {
            pass(&host, "volume_asked_for").await?;
            put_in(&host, &paths, &ledger, &vm, mount).await?;
            mount_in(&link, mount).await?;
            pass(&host, "volume_mounted").await?;
            ledger.note(Entry::VolumeMounted { slot: mount.slot }).await?;
            pass(&host, "volume_attached").await
        };
        let Err(error) = attached.await else {
            self.publish();
            return Ok(());
        };
        // What the guest has mounted although its answer was lost is unmounted first; one that refuses
        // keeps it until its end, and the ledger says so.
        let undone = async {
            ledger.note(Entry::VolumeDetaching { slot: mount.slot }).await?;
            link.unmount(mount, MOUNTED_WITHIN).await.map_err(Error::Guest)?;
            take_out(&host, &paths, &ledger, &vm, mount).await
        };
        if let Err(error) = undone.await {
            StepFailed { step: "detach_volume", error }.report("giving up a volume");
        }
        self.publish();
        Err(StepFailed { step: "attach_volume", error }.report("attaching a volume"))
    }

    pub(super) async fn detach_volume(
        &mut self,
        incarnation: Incarnation,
        volume_id: VolumeId,
    ) -> Result<(), NodeError> {
        let (ledger, vm, link) = self.running_guest(incarnation).await?;
        let state = ledger.state();
        let held = state.volumes.values().find(|mount| mount.volume_id == volume_id);
        let Some(mount) = held else { return Ok(()) };
        self.leave_flattening().await;
        let (host, paths) = (Arc::clone(&self.host), self.paths.clone());
        let detached = async {
            ledger.note(Entry::VolumeDetaching { slot: mount.slot }).await?;
            pass(&host, "volume_detaching").await?;
            if let Err(refusal) = link.unmount(mount, MOUNTED_WITHIN).await {
                // It said no, so it has it as before; of another error that is not known.
                if matches!(refusal, NodeError::Guest { .. }) && state.mounted.contains(&mount.slot)
                {
                    ledger.note(Entry::VolumeMounted { slot: mount.slot }).await?;
                }
                return Err(Error::Guest(refusal));
            }
            pass(&host, "volume_unmounted").await?;
            take_out(&host, &paths, &ledger, &vm, mount).await
        };
        let detached = detached.await;
        self.publish();
        detached.map_err(|error| match error {
            Error::Guest(refusal) => refusal,
            error => StepFailed { step: "detach_volume", error }.report("detaching a volume"),
        })
    }

    /// Whether volumes are in the VM, or may be.
    pub(super) fn has_volumes(&self) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| !ledger.state().volumes.is_empty())
    }

    pub(super) async fn running_guest(
        &mut self,
        incarnation: Incarnation,
    ) -> Result<(Ledger, Arc<dyn Vm>, Arc<GuestLink>), NodeError> {
        if self.phase_of_start(incarnation)? != VmPhase::Running {
            return Err(NodeError::NotRunning);
        }
        let failed = |error| {
            StepFailed { step: "reach_guest", error }.report("reaching a guest for its volumes")
        };
        let link = self.reach().await.map_err(failed)?;
        match (&self.ledger, &self.running) {
            (Some(ledger), Some(running)) => Ok((ledger.clone(), Arc::clone(&running.vm), link)),
            (_, _) => Err(NodeError::NotRunning),
        }
    }
}
