//! Giving workspaces volumes, and taking them away.

use std::sync::Arc;

use skerry_internal_api::NodeError;
use skerry_model::{
    AttachRefusal, ErrorKind, MountMode, MountPath, State, VolumeMount, Workspace, WorkspaceId,
};

use tokio::sync::OwnedMutexGuard;

use super::{AttachVolume, VolumeRef};
use crate::{
    Caller, Control, Error, WorkspaceRef,
    control::Inner,
    store::{Attaching, WantedMount},
};

impl Control {
    /// Gives a workspace a volume: at once if it runs, and from its next start on if it is stopped.
    ///
    /// # Errors
    /// `NotFound` (`workspace`, `volume`), `Invalid` (`mount_path`), `Conflict` when another workspace
    /// has it in a way that excludes this, the workspace has it already, has another volume there, or
    /// has as many as it can have; `RefusedByState` while the workspace is paused, suspended or
    /// changing; what the guest says when it cannot mount it. On an error the workspace does not have
    /// it, unless the node cannot be asked: then it may, and is listed as having it.
    pub async fn attach_volume(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        request: AttachVolume,
    ) -> Result<VolumeMount, Error> {
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        self.inner
            .to_the_end(async move {
                let (workspace, _turn) = inner.turn_of(&caller, &which).await?;
                may_change(&workspace)?;
                let wanted = inner.wanted(&caller, &[request]).await?;
                let granted = inner.reserve_volumes(&caller, workspace.id, &wanted).await?;
                let mount =
                    granted.into_iter().next().ok_or_else(|| Error::internal("no mount"))?;
                match inner.bring_in(workspace.id, &mount).await {
                    Ok(()) => Ok(mount),
                    Err(error) => {
                        let given_up = inner.give_up(workspace.id, &mount).await;
                        // A start at the same moment may have come with it.
                        inner.wake_mounts(workspace.id);
                        given_up?;
                        Err(error)
                    }
                }
            })
            .await
    }

    /// Takes a volume from a workspace: what was written to it is on it. One that the workspace does
    /// not have is `NotFound`.
    ///
    /// # Errors
    /// `NotFound` (`workspace`, `volume`), `Conflict` while something in the guest uses it,
    /// `RefusedByState` while the workspace is paused, suspended or changing.
    pub async fn detach_volume(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        volume: &VolumeRef,
    ) -> Result<(), Error> {
        let (inner, caller) = (Arc::clone(&self.inner), caller.clone());
        let (which, volume) = (which.clone(), volume.clone());
        self.inner
            .to_the_end(async move {
                let (workspace, _turn) = inner.turn_of(&caller, &which).await?;
                let volume_id = inner.find_volume(&caller, &volume).await?.id;
                let mounts = inner.store.mounts_of(workspace.id).await?;
                if mounts.iter().all(|mount| mount.volume_id != volume_id) {
                    return Err(Error::not_found("volume"));
                }
                may_change(&workspace)?;
                if let State::Running { .. } = workspace.state {
                    let start = workspace.incarnation;
                    let call = inner.node.ensure_volume_detached(workspace.id, start, volume_id);
                    let detached = inner.bounded("ensure_volume_detached", call).await;
                    if !matches!(detached, Ok(Ok(()))) {
                        // It stays the workspace's, however far the node came.
                        inner.wake_mounts(workspace.id);
                    }
                    detached??;
                }
                inner.store.detach_volume(workspace.id, volume_id).await?;
                Ok(())
            })
            .await
    }

    /// What a workspace has, in order of slots.
    ///
    /// # Errors
    /// `NotFound` (`workspace`).
    pub async fn list_mounts(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Vec<VolumeMount>, Error> {
        let workspace = self.inner.find(caller, which).await?;
        self.inner.store.mounts_of(workspace.id).await
    }
}

/// Whether its volumes can change: it runs, or has neither a VM nor saved memory.
fn may_change(workspace: &Workspace) -> Result<(), Error> {
    let reason = match &workspace.state {
        State::Running { .. } | State::Provisioned | State::Stopped | State::Failed(_) => {
            return Ok(());
        }
        State::Paused { .. } | State::Suspended => "resume or stop it first",
        State::Starting | State::Suspending | State::Stopping | State::Deleting => {
            "volumes can be attached and detached once it has settled"
        }
    };
    let state = workspace.state.name();
    Err(ErrorKind::RefusedByState { state, reason: reason.to_owned() }.into())
}

impl Inner {
    /// The workspace as it is when it is the caller's turn to change its volumes.
    async fn turn_of(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<(Workspace, OwnedMutexGuard<()>), Error> {
        let id = self.find(caller, which).await?.id;
        let turn = self.mount_turns.take(id).await;
        Ok((self.find(caller, &WorkspaceRef::Id(id)).await?, turn))
    }

    /// What is asked for, with every volume found and every path checked.
    pub(crate) async fn wanted(
        &self,
        caller: &Caller,
        requests: &[AttachVolume],
    ) -> Result<Vec<WantedMount>, Error> {
        let mut wanted = Vec::with_capacity(requests.len());
        for request in requests {
            let path = MountPath::parse(&request.path)?;
            let volume = self.find_volume(caller, &request.volume).await?;
            let checkpoint_id = match (&request.checkpoint, request.mode) {
                (None, _) => None,
                (Some(_), MountMode::ReadWrite) => {
                    let problem = "a checkpoint cannot be written";
                    return Err(Error::invalid("mode", problem, "ro with a checkpoint"));
                }
                (Some(which), MountMode::ReadOnly) => {
                    self.find_checkpoint(&volume, which).await?.map(|found| found.id)
                }
            };
            let mode = request.mode;
            wanted.push(WantedMount { volume_id: volume.id, path, mode, checkpoint_id });
        }
        Ok(wanted)
    }

    /// Records that the workspace, which may not be recorded itself yet, has these volumes.
    pub(crate) async fn reserve_volumes(
        &self,
        caller: &Caller,
        workspace_id: WorkspaceId,
        wanted: &[WantedMount],
    ) -> Result<Vec<VolumeMount>, Error> {
        let (account_id, now) = (caller.account_id, self.now());
        match self.store.attach_volumes(account_id, workspace_id, wanted, now).await? {
            Attaching::Done(granted) => Ok(granted),
            Attaching::NoVolume(_) => Err(Error::not_found("volume")),
            Attaching::NoCheckpoint(_) => {
                Err(ErrorKind::Conflict("the checkpoint is not ready".to_owned()).into())
            }
            Attaching::NotReady(_, state) => {
                Err(ErrorKind::Conflict(format!("the volume is {state}, not ready")).into())
            }
            Attaching::Refused(_, refusal) => {
                let why = match refusal {
                    AttachRefusal::HasWriter(other) => {
                        let who = self.words_for(other).await?;
                        format!("the volume is attached for writing to {who}")
                    }
                    AttachRefusal::HasReader(other) => {
                        let who = self.words_for(other).await?;
                        format!("the volume is attached to {who}: it can only be attached ro")
                    }
                    AttachRefusal::Already => "the workspace has this volume already".to_owned(),
                    AttachRefusal::PathTaken => {
                        "another volume of the workspace is mounted there, above or below"
                            .to_owned()
                    }
                    AttachRefusal::NoSlot => format!(
                        "a workspace has at most {} volumes",
                        skerry_model::VolumeSlot::COUNT
                    ),
                };
                Err(ErrorKind::Conflict(why).into())
            }
        }
    }

    /// Puts a volume that was recorded into the workspace's VM, if it has one now.
    async fn bring_in(&self, workspace_id: WorkspaceId, mount: &VolumeMount) -> Result<(), Error> {
        // Read after the record was made: a start that was decided later comes with it.
        let workspace = self.store.workspace(workspace_id).await?;
        let workspace = workspace.ok_or_else(|| Error::not_found("workspace"))?;
        may_change(&workspace)?;
        let State::Running { .. } = workspace.state else { return Ok(()) };
        let start = workspace.incarnation;
        let call = self.node.ensure_volume_attached(workspace_id, start, mount.clone());
        match self.bounded("ensure_volume_attached", call).await? {
            Ok(()) => Ok(()),
            Err(NodeError::Invalid { field: _, problem }) => {
                Err(ErrorKind::Conflict(problem).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Undoes an attachment that failed. An answer may be all that was lost: the record goes only when
    /// the VM surely does not have the volume.
    async fn give_up(&self, workspace_id: WorkspaceId, mount: &VolumeMount) -> Result<(), Error> {
        let found = self.store.workspace(workspace_id).await?;
        if let Some(workspace) = found
            && let State::Running { .. } = workspace.state
        {
            let start = workspace.incarnation;
            let call = self.node.ensure_volume_detached(workspace_id, start, mount.volume_id);
            match self.bounded("ensure_volume_detached", call).await {
                Ok(Ok(()) | Err(NodeError::NotRunning | NodeError::NoSuchVm)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(workspace.id = %workspace_id, %error, "a volume stays attached");
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(workspace.id = %workspace_id, %error, "a volume stays attached");
                    return Ok(());
                }
            }
        }
        self.store.detach_volume(workspace_id, mount.volume_id).await?;
        Ok(())
    }

    /// A workspace for an error: it is the same account's.
    pub(super) async fn words_for(&self, id: WorkspaceId) -> Result<String, Error> {
        let found = self.store.workspace(id).await?;
        Ok(found.map_or_else(
            || "a workspace that is being made".to_owned(),
            |workspace| format!("the workspace {} ({})", workspace.name, workspace.slug),
        ))
    }
}
