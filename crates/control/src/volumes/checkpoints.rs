//! Making, listing and deleting checkpoints of volumes.

use std::sync::Arc;

use skerry_model::{
    Checkpoint, CheckpointId, DisplayName, ErrorKind, MountMode, State, Volume, VolumeEvent,
    VolumeId, VolumeState,
};

use super::{CheckpointRef, VolumeRef};
use crate::{
    Caller, Control, Error, Wait,
    control::Inner,
    store::{CheckpointDeletion, CheckpointInsertion},
};

/// How often a change is computed anew because the record changed meanwhile.
const MAX_REDOS: u32 = 32;

impl Control {
    /// Makes a checkpoint of a volume: what is on it at a moment between the call and its answer. Without
    /// a name it is named by the time. The record is made at once; with [`Wait::UpTo`] the answer comes
    /// when it is ready or has failed, which its state says, or when the wait is over.
    ///
    /// # Errors
    /// `NotFound` (`volume`), `Invalid` (`name`), `Conflict` when the volume is not ready or has as many as
    /// it can have; `RefusedByState` while the workspace that writes it is paused or changing.
    pub async fn create_checkpoint(
        &self,
        caller: &Caller,
        which: &VolumeRef,
        name: Option<&str>,
        wait: Wait,
    ) -> Result<Checkpoint, Error> {
        let name = name.map(DisplayName::parse).transpose()?;
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        let made = self.inner.to_the_end(async move {
            let volume = inner.find_volume(&caller, &which).await?;
            inner.may_be_frozen(volume.id).await?;
            let now = inner.now();
            let name = match name {
                Some(name) => name,
                None => DisplayName::parse(&format!("{now:.0}"))?,
            };
            let checkpoint = Checkpoint {
                id: CheckpointId::from_random(inner.random()),
                volume_id: volume.id,
                account_id: volume.account_id,
                name,
                state: VolumeState::Creating,
                created_at: now,
                updated_at: now,
                revision: 0,
            };
            match inner.store.insert_checkpoint(&checkpoint).await? {
                CheckpointInsertion::Done(made) => {
                    inner.wake_checkpoint(made.id);
                    Ok(made)
                }
                CheckpointInsertion::TooMany(max) => {
                    let why = format!("a volume has at most {max} checkpoints: delete one first");
                    Err(ErrorKind::Conflict(why).into())
                }
                CheckpointInsertion::NoVolume => {
                    let state = volume.state.name();
                    let why = match volume.state {
                        VolumeState::Ready => "the volume has changed meanwhile".to_owned(),
                        VolumeState::Creating | VolumeState::Failed(_) | VolumeState::Deleting => {
                            format!("the volume is {state}, not ready")
                        }
                    };
                    Err(ErrorKind::Conflict(why).into())
                }
            }
        });
        let made = made.await?;
        match wait {
            Wait::No => Ok(made),
            Wait::UpTo(bound) => {
                let done = |checkpoint: &Checkpoint| checkpoint.state != VolumeState::Creating;
                let (inner, id) = (&self.inner, made.id);
                let read = || inner.store.checkpoint(id);
                let settled =
                    inner.wait_on(&inner.checkpoint_watchers, id, bound, read, done).await?;
                settled.ok_or_else(|| Error::not_found("checkpoint"))
            }
        }
    }

    /// A volume's checkpoints, newest first.
    ///
    /// # Errors
    /// `NotFound` (`volume`).
    pub async fn list_checkpoints(
        &self,
        caller: &Caller,
        which: &VolumeRef,
    ) -> Result<Vec<Checkpoint>, Error> {
        let volume = self.inner.find_volume(caller, which).await?;
        self.inner.store.list_checkpoints(volume.id).await
    }

    /// Deletes a checkpoint. With [`Wait::UpTo`], answers after everything is gone (`true`) unless the
    /// wait was over first.
    ///
    /// # Errors
    /// `NotFound` (`volume`, `checkpoint`); `Conflict` while a workspace has it mounted.
    pub async fn delete_checkpoint(
        &self,
        caller: &Caller,
        which: &VolumeRef,
        checkpoint: &CheckpointRef,
        wait: Wait,
    ) -> Result<bool, Error> {
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        let checkpoint = checkpoint.clone();
        let begun = self.inner.to_the_end(async move {
            let volume = inner.find_volume(&caller, &which).await?;
            for _ in 0..MAX_REDOS {
                let found = inner.find_checkpoint(&volume, &checkpoint).await?;
                let mut found = found.ok_or_else(|| Error::not_found("checkpoint"))?;
                let id = found.id;
                found.updated_at = inner.now();
                if !found.apply(&VolumeEvent::DeletionBegun) {
                    inner.wake_checkpoint(id);
                    return Ok(id);
                }
                match inner.store.begin_checkpoint_deletion(&found).await? {
                    CheckpointDeletion::Begun(_) => {
                        inner.wake_checkpoint(id);
                        return Ok(id);
                    }
                    CheckpointDeletion::Stale => {}
                    CheckpointDeletion::AttachedTo(workspace_id) => {
                        let who = inner.words_for(workspace_id).await?;
                        let why = format!("the checkpoint is attached to {who}");
                        return Err(ErrorKind::Conflict(why).into());
                    }
                }
            }
            Err(ErrorKind::Unavailable("the checkpoint changes too quickly".to_owned()).into())
        });
        let id = begun.await?;
        match wait {
            Wait::No => Ok(false),
            Wait::UpTo(bound) => {
                let inner = &self.inner;
                let read = || inner.store.checkpoint(id);
                let left =
                    inner.wait_on(&inner.checkpoint_watchers, id, bound, read, |_| false).await?;
                Ok(left.is_none())
            }
        }
    }
}

impl Inner {
    /// The volume's checkpoint of this name; [`CheckpointRef::Latest`] may be none.
    ///
    /// # Errors
    /// `NotFound` (`checkpoint`).
    pub(super) async fn find_checkpoint(
        &self,
        volume: &Volume,
        which: &CheckpointRef,
    ) -> Result<Option<Checkpoint>, Error> {
        let all = self.store.list_checkpoints(volume.id).await?;
        let is_ready = |one: &Checkpoint| one.state == VolumeState::Ready;
        let found = match which {
            CheckpointRef::Latest => return Ok(all.into_iter().find(is_ready)),
            CheckpointRef::Id(id) => all.into_iter().find(|one| one.id == *id),
            CheckpointRef::Name(name) => {
                all.into_iter().find(|one| is_ready(one) && one.name.as_str() == name)
            }
        };
        found.map(Some).ok_or_else(|| Error::not_found("checkpoint"))
    }

    /// Whether whoever writes the volume could write back what it holds.
    async fn may_be_frozen(&self, volume_id: VolumeId) -> Result<(), Error> {
        for held in self.store.attachments_of(volume_id).await? {
            if held.mount.mode != MountMode::ReadWrite {
                continue;
            }
            let Some(workspace) = self.store.workspace(held.workspace_id).await? else { continue };
            let reason = match &workspace.state {
                State::Running { .. }
                | State::Provisioned
                | State::Stopped
                | State::Suspended
                | State::Failed(_) => continue,
                State::Paused { .. } => "it writes the volume: resume or stop it first",
                State::Starting | State::Suspending | State::Stopping | State::Deleting => {
                    "it writes the volume: a checkpoint can be taken once it has settled"
                }
            };
            let state = workspace.state.name();
            return Err(ErrorKind::RefusedByState { state, reason: reason.to_owned() }.into());
        }
        Ok(())
    }
}
