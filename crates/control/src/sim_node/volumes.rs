//! Volumes of the simulated node: who has which, with the node's own rules. Nothing is on them.

use std::collections::HashMap;

use skerry_internal_api::{NodeError, VmPhase, VmSpec, VolumeInfo};
use skerry_model::{
    CheckpointId, HeldMount, Incarnation, MountMode, MountProgress, VolumeId, VolumeMount,
    WorkspaceId,
};

use super::{
    SimNode, SimState,
    volume_files::{SimVolume, writes},
};

#[derive(Default)]
pub(super) struct SimVolumes {
    /// With their sizes in bytes.
    all: HashMap<VolumeId, u64>,
    /// The checkpoints of each.
    checkpoints: HashMap<VolumeId, Vec<CheckpointId>>,
    /// What the last start of each workspace has that has any: with thousands of VMs and no volume,
    /// this costs a start nothing.
    held: HashMap<WorkspaceId, Vec<VolumeMount>>,
    /// What VMs that are saved have mounted.
    asleep: HashMap<WorkspaceId, Vec<VolumeMount>>,
    /// What is on each.
    files: HashMap<VolumeId, SimVolume>,
}

impl SimVolumes {
    pub(super) fn release(&mut self, workspace_id: WorkspaceId) {
        self.held.remove(&workspace_id);
    }

    pub(super) fn has(&self, id: VolumeId) -> bool {
        self.all.contains_key(&id)
    }

    pub(super) fn files(&mut self, id: VolumeId) -> SimVolume {
        self.files.entry(id).or_default().clone()
    }

    pub(super) fn grow(&mut self, id: VolumeId, size_bytes: u64) {
        if let Some(there) = self.all.get_mut(&id) {
            *there = size_bytes.max(*there);
        }
    }

    /// Who has the volume for writing, running or not.
    pub(super) fn writer(&self, id: VolumeId) -> Option<WorkspaceId> {
        let is_it = |mount: &&VolumeMount| mount.volume_id == id && writes(mount.mode);
        let mut held = self.held.iter().chain(&self.asleep);
        held.find(|(_, mounts)| mounts.iter().any(|mount| is_it(&mount)))
            .map(|(workspace_id, _)| *workspace_id)
    }

    fn may_have(&self, workspace_id: WorkspaceId, mount: &VolumeMount) -> Result<(), NodeError> {
        if !self.all.contains_key(&mount.volume_id) {
            return Err(NodeError::NoSuchVolume);
        }
        if let Some(checkpoint) = mount.checkpoint_id {
            let is_there = |all: &Vec<CheckpointId>| all.contains(&checkpoint);
            let found = self.checkpoints.get(&mount.volume_id).is_some_and(is_there);
            return if found { Ok(()) } else { Err(NodeError::NoSuchCheckpoint) };
        }
        let written =
            self.held.iter().filter(|(holder, _)| **holder != workspace_id).any(|(_, mounts)| {
                mounts.iter().any(|held| {
                    held.volume_id == mount.volume_id && held.mode == MountMode::ReadWrite
                })
            });
        if written { Err(NodeError::VolumeInUse) } else { Ok(()) }
    }
}

impl SimState {
    /// What a start comes with; nothing is changed when it cannot have that.
    pub(super) fn start_with_volumes(&mut self, spec: &VmSpec) -> Result<(), NodeError> {
        self.forget_ended();
        for mount in &spec.volumes {
            self.volumes.may_have(spec.workspace_id, mount)?;
        }
        if spec.volumes.is_empty() {
            self.volumes.release(spec.workspace_id);
        } else {
            self.volumes.held.insert(spec.workspace_id, spec.volumes.clone());
        }
        Ok(())
    }

    /// What the workspace's VM has, as the node reports it.
    pub(super) fn held_by(&mut self, workspace_id: WorkspaceId) -> Vec<HeldMount> {
        self.forget_ended();
        let held = self.volumes.held.get(&workspace_id).into_iter().flatten();
        held.map(|mount| HeldMount { mount: mount.clone(), progress: MountProgress::Mounted })
            .collect()
    }

    /// A VM without a process has no volumes.
    pub(super) fn forget_ended(&mut self) {
        let vms = &self.vms;
        let is_saved =
            |id: &WorkspaceId| vms.get(id).is_some_and(|vm| vm.report.phase == VmPhase::Suspended);
        let volumes = &mut self.volumes;
        volumes.asleep.retain(|id, _| is_saved(id));
        for (id, mounts) in volumes.held.iter().filter(|(id, _)| is_saved(id)) {
            volumes.asleep.insert(*id, mounts.clone());
        }
        volumes.held.retain(|id, _| {
            vms.get(id)
                .is_some_and(|vm| !matches!(vm.report.phase, VmPhase::Stopped | VmPhase::Suspended))
        });
    }
}

impl SimNode {
    /// What the workspace's VM has mounted.
    #[must_use]
    pub fn mounts_of(&self, workspace_id: WorkspaceId) -> Vec<VolumeMount> {
        let mut state = self.state();
        state.forget_ended();
        state.volumes.held.get(&workspace_id).cloned().unwrap_or_default()
    }

    /// The workspace's VM has these volumes, whatever it was told.
    pub fn disturb_mounts(&self, workspace_id: WorkspaceId, mounts: Vec<VolumeMount>) {
        self.state().volumes.held.insert(workspace_id, mounts);
    }

    /// Loses a volume, as a node would whose disk was replaced.
    pub fn lose_volume(&self, id: VolumeId) {
        self.state().volumes.all.remove(&id);
    }

    pub(super) fn make_volume(&self, id: VolumeId, size_bytes: u64) -> Result<(), NodeError> {
        let there = *self.state().volumes.all.entry(id).or_insert(size_bytes);
        if there == size_bytes { Ok(()) } else { Err(NodeError::Step { step: "make_volume" }) }
    }

    pub(super) fn remove_volume(&self, id: VolumeId) -> Result<(), NodeError> {
        let mut state = self.state();
        state.forget_ended();
        let mut mounts = state.volumes.held.values().flatten();
        if mounts.any(|held| held.volume_id == id && held.mode == MountMode::ReadWrite) {
            return Err(NodeError::VolumeInUse);
        }
        state.volumes.all.remove(&id);
        state.volumes.checkpoints.remove(&id);
        state.volumes.files.remove(&id);
        Ok(())
    }

    /// As a real one: a VM that writes the volume has to run, so that its guest can write back.
    pub(super) fn make_checkpoint(
        &self,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), NodeError> {
        let mut state = self.state();
        state.forget_ended();
        if !state.volumes.all.contains_key(&volume_id) {
            return Err(NodeError::NoSuchVolume);
        }
        let writes = |mount: &VolumeMount| {
            mount.volume_id == volume_id && mount.mode == MountMode::ReadWrite
        };
        let writer = state.volumes.held.iter().find(|(_, mounts)| mounts.iter().any(writes));
        if let Some((workspace_id, _)) = writer
            && state.vms.get(workspace_id).is_none_or(|vm| vm.report.phase != VmPhase::Running)
        {
            return Err(NodeError::NotRunning);
        }
        let all = state.volumes.checkpoints.entry(volume_id).or_default();
        if !all.contains(&checkpoint_id) {
            all.push(checkpoint_id);
        }
        Ok(())
    }

    pub(super) fn remove_checkpoint(&self, volume_id: VolumeId, checkpoint_id: CheckpointId) {
        if let Some(all) = self.state().volumes.checkpoints.get_mut(&volume_id) {
            all.retain(|one| *one != checkpoint_id);
        }
    }

    pub(super) fn all_volumes(&self) -> Vec<VolumeInfo> {
        let state = self.state();
        let info = |(id, size_bytes): (&VolumeId, &u64)| VolumeInfo {
            id: *id,
            size_bytes: *size_bytes,
            used_bytes: 1 << 20,
            checkpoints: state.volumes.checkpoints.get(id).cloned().unwrap_or_default(),
        };
        state.volumes.all.iter().map(info).collect()
    }

    pub(super) fn attach(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        mount: VolumeMount,
    ) -> Result<(), NodeError> {
        self.must_run(workspace_id, incarnation)?;
        let mut state = self.state();
        state.forget_ended();
        state.volumes.may_have(workspace_id, &mount)?;
        let held = state.volumes.held.entry(workspace_id).or_default();
        held.retain(|other| other.slot != mount.slot);
        held.push(mount);
        Ok(())
    }

    pub(super) fn detach(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        volume_id: VolumeId,
    ) -> Result<(), NodeError> {
        self.must_run(workspace_id, incarnation)?;
        if let Some(held) = self.state().volumes.held.get_mut(&workspace_id) {
            held.retain(|mount| mount.volume_id != volume_id);
        }
        Ok(())
    }

    pub(super) fn must_run(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<(), NodeError> {
        let state = self.state();
        let vm = state.vms.get(&workspace_id).ok_or(NodeError::NoSuchVm)?;
        let runs = vm.report.phase == VmPhase::Running && vm.report.incarnation == incarnation;
        if runs { Ok(()) } else { Err(NodeError::NotRunning) }
    }
}
