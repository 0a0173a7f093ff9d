//! Files of volumes, and volumes that become larger. Control hands out the handle; the bytes do not pass
//! through it.

use std::sync::Arc;

use skerry_internal_api::{NodeError, VolumeFiles};
use skerry_model::{ErrorKind, MountMode, State, Volume, VolumeState, check_volume_growth};

use super::{VolumeRef, VolumeView, manage::changes_too_quickly};
use crate::{Caller, Control, Error, control::Inner, store::Write};

/// How often a change is computed anew because the record changed meanwhile.
const MAX_REDOS: u32 = 32;

impl Control {
    /// The files of a volume, whether a workspace has it or not: through the workspace that writes it, else
    /// through the node. It is no activity of that workspace. The handle is for one request: whoever
    /// attaches the volume meanwhile takes it away.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when the volume is not ready, or the workspace that writes it is paused,
    /// suspended or changing.
    pub async fn volume_files(
        &self,
        caller: &Caller,
        which: &VolumeRef,
    ) -> Result<Arc<dyn VolumeFiles>, Error> {
        let inner = &self.inner;
        let volume = inner.find_volume(caller, which).await?;
        must_be_ready(&volume)?;
        match inner.bounded("volume_files", inner.node.volume_files(volume.id)).await? {
            Ok(files) => Ok(files),
            Err(NodeError::NotRunning) => Err(inner.writer_stands_still(&volume).await?),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a volume larger, together with its file system: at once where a running workspace writes it,
    /// else when it is mounted next. The size it has is a success.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` (`size_mib`) for less than it has; `Quota`; `Conflict` as
    /// [`Control::volume_files`]. After any other error the volume becomes so large all the same, later.
    pub async fn grow_volume(
        &self,
        caller: &Caller,
        which: &VolumeRef,
        size_mib: u64,
    ) -> Result<VolumeView, Error> {
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        let grown = self.inner.to_the_end(async move {
            for _ in 0..MAX_REDOS {
                let volume = inner.find_volume(&caller, &which).await?;
                must_be_ready(&volume)?;
                check_volume_growth(volume.size_mib, size_mib)?;
                if volume.size_mib == size_mib {
                    return Ok(volume);
                }
                if inner.stands_still(&volume).await? {
                    return Err(inner.writer_stands_still(&volume).await?);
                }
                let wanted = Volume { size_mib, updated_at: inner.now(), ..volume };
                let plan = &inner.config.plan;
                match inner.store.grow_volume(&wanted, plan).await? {
                    Write::Stale | Write::Taken => {}
                    Write::Done(written) => {
                        let call = inner.node.ensure_volume_size(written.id, written.size_bytes());
                        let grown = inner.bounded("ensure_volume_size", call).await;
                        if !matches!(grown, Ok(Ok(()))) {
                            // It is recorded: it comes about, however far the node is.
                            inner.wake_volume(written.id);
                        }
                        grown??;
                        return Ok(written);
                    }
                }
            }
            Err(changes_too_quickly())
        });
        let grown = grown.await?;
        self.inner.view(grown).await
    }
}

fn must_be_ready(volume: &Volume) -> Result<(), Error> {
    match &volume.state {
        VolumeState::Ready => Ok(()),
        VolumeState::Creating | VolumeState::Failed(_) | VolumeState::Deleting => {
            let state = volume.state.name();
            Err(ErrorKind::Conflict(format!("the volume is {state}, not ready")).into())
        }
    }
}

impl Inner {
    /// Whether the workspace that writes the volume can do nothing about it now.
    async fn stands_still(&self, volume: &Volume) -> Result<bool, Error> {
        for held in self.store.attachments_of(volume.id).await? {
            if held.mount.mode != MountMode::ReadWrite {
                continue;
            }
            let Some(workspace) = self.store.workspace(held.workspace_id).await? else { continue };
            match workspace.state {
                State::Running { .. }
                | State::Provisioned
                | State::Stopped
                | State::Failed(_)
                | State::Starting
                | State::Stopping
                | State::Deleting => {}
                State::Paused { .. } | State::Suspending | State::Suspended => return Ok(true),
            }
        }
        Ok(false)
    }

    /// The error that says which workspace is in the way.
    async fn writer_stands_still(&self, volume: &Volume) -> Result<Error, Error> {
        let held = self.store.attachments_of(volume.id).await?;
        let writer = held.iter().find(|held| held.mount.mode == MountMode::ReadWrite);
        let who = match writer {
            Some(held) => self.words_for(held.workspace_id).await?,
            None => "the workspace that writes it".to_owned(),
        };
        let why = format!("{who} has the volume and stands still: resume or stop it first");
        Ok(ErrorKind::Conflict(why).into())
    }
}
