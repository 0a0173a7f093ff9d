//! Making, finding, renaming and deleting volumes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use skerry_model::{
    DisplayName, ErrorKind, Volume, VolumeEvent, VolumeId, VolumeState, check_volume_size,
};

use super::{CreateVolume, VolumeRef, VolumeView};
use crate::{
    Caller, Control, Error, Wait,
    control::Inner,
    store::{VolumeDeletion, Write},
};

/// How often a change is computed anew because the record changed meanwhile.
const MAX_REDOS: u32 = 32;

impl Control {
    /// Makes a volume with an empty file system. The record is made at once; with [`Wait::UpTo`] the
    /// answer comes when it is ready or has failed, which its state says, or when the wait is over.
    ///
    /// # Errors
    /// `Invalid` (`name`, `size_mib`), `Conflict` when the name is taken, `Quota`.
    pub async fn create_volume(
        &self,
        caller: &Caller,
        request: CreateVolume,
        wait: Wait,
    ) -> Result<VolumeView, Error> {
        let name = DisplayName::parse(&request.name)?;
        check_volume_size(request.size_mib)?;
        let (inner, account_id) = (Arc::clone(&self.inner), caller.account_id);
        let made = self.inner.to_the_end(async move {
            let now = inner.now();
            let volume = Volume {
                id: VolumeId::from_random(inner.random()),
                account_id,
                name,
                size_mib: request.size_mib,
                state: VolumeState::Creating,
                created_at: now,
                updated_at: now,
                revision: 0,
            };
            match inner.store.insert_volume(&volume, &inner.config.plan).await? {
                Write::Done(made) => {
                    inner.wake_volume(made.id);
                    Ok(made)
                }
                Write::Taken | Write::Stale => Err(name_taken(&volume.name)),
            }
        });
        let made = made.await?;
        let settled = match wait {
            Wait::No => made,
            Wait::UpTo(bound) => {
                let done = |volume: &Volume| volume.state != VolumeState::Creating;
                let settled = self.inner.wait_for_volume(made.id, bound, done).await?;
                settled.ok_or_else(|| Error::not_found("volume"))?
            }
        };
        self.inner.view(settled).await
    }

    /// One volume.
    ///
    /// # Errors
    /// `NotFound`, also for another account's.
    pub async fn get_volume(
        &self,
        caller: &Caller,
        which: &VolumeRef,
    ) -> Result<VolumeView, Error> {
        let volume = self.inner.find_volume(caller, which).await?;
        self.inner.view(volume).await
    }

    /// The caller's volumes, newest first.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn list_volumes(&self, caller: &Caller) -> Result<Vec<VolumeView>, Error> {
        let volumes = self.inner.store.list_volumes(caller.account_id).await?;
        let mut used = self.inner.used_bytes().await;
        let mut views = Vec::with_capacity(volumes.len());
        for volume in volumes {
            let attachments = self.inner.store.attachments_of(volume.id).await?;
            views.push(VolumeView { used_bytes: used.remove(&volume.id), volume, attachments });
        }
        Ok(views)
    }

    /// Gives a volume another name.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (`name`), `Conflict` when the name is taken.
    pub async fn rename_volume(
        &self,
        caller: &Caller,
        which: &VolumeRef,
        name: &str,
    ) -> Result<VolumeView, Error> {
        let name = DisplayName::parse(name)?;
        for _ in 0..MAX_REDOS {
            let mut volume = self.inner.find_volume(caller, which).await?;
            volume.name = name.clone();
            volume.updated_at = self.inner.now();
            match self.inner.store.update_volume(&volume).await? {
                Write::Done(written) => return self.inner.view(written).await,
                Write::Taken => return Err(name_taken(&name)),
                Write::Stale => {}
            }
        }
        Err(changes_too_quickly())
    }

    /// Deletes a volume and all that is on it. With [`Wait::UpTo`], answers after everything is gone
    /// (`true`) unless the wait was over first.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while a workspace has it.
    pub async fn delete_volume(
        &self,
        caller: &Caller,
        which: &VolumeRef,
        wait: Wait,
    ) -> Result<bool, Error> {
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        let begun = self.inner.to_the_end(async move {
            for _ in 0..MAX_REDOS {
                let mut volume = inner.find_volume(&caller, &which).await?;
                let id = volume.id;
                volume.updated_at = inner.now();
                if !volume.apply(&VolumeEvent::DeletionBegun) {
                    inner.wake_volume(id);
                    return Ok(id);
                }
                match inner.store.begin_volume_deletion(&volume).await? {
                    VolumeDeletion::Begun(_) => {
                        inner.wake_volume(id);
                        return Ok(id);
                    }
                    VolumeDeletion::Stale => {}
                    VolumeDeletion::AttachedTo(workspace_id) => {
                        let who = inner.words_for(workspace_id).await?;
                        let why = format!("the volume is attached to {who}");
                        return Err(ErrorKind::Conflict(why).into());
                    }
                }
            }
            Err(changes_too_quickly())
        });
        let id = begun.await?;
        match wait {
            Wait::No => Ok(false),
            Wait::UpTo(bound) => {
                Ok(self.inner.wait_for_volume(id, bound, |_| false).await?.is_none())
            }
        }
    }
}

fn name_taken(name: &DisplayName) -> Error {
    ErrorKind::Conflict(format!("there is a volume of the name {name} already")).into()
}

pub(super) fn changes_too_quickly() -> Error {
    ErrorKind::Unavailable("the volume changes too quickly".to_owned()).into()
}

impl Inner {
    /// The caller's volume of this name; another account's is not found.
    pub(crate) async fn find_volume(
        &self,
        caller: &Caller,
        which: &VolumeRef,
    ) -> Result<Volume, Error> {
        let found = match which {
            VolumeRef::Id(id) => self.store.volume(*id).await?,
            VolumeRef::Name(name) => {
                let all = self.store.list_volumes(caller.account_id).await?;
                all.into_iter().find(|volume| volume.name.as_str() == name)
            }
        };
        let own = found.filter(|found| found.account_id == caller.account_id);
        own.ok_or_else(|| Error::not_found("volume"))
    }

    pub(super) async fn view(&self, volume: Volume) -> Result<VolumeView, Error> {
        let attachments = self.store.attachments_of(volume.id).await?;
        let used_bytes = self.used_bytes().await.remove(&volume.id);
        Ok(VolumeView { volume, used_bytes, attachments })
    }

    /// What volumes take on the node's disk. A node that does not answer hides no volume.
    async fn used_bytes(&self) -> HashMap<VolumeId, u64> {
        match self.bounded("volumes", self.node.volumes()).await {
            Ok(Ok(all)) => all.iter().map(|one| (one.id, one.used_bytes)).collect(),
            Ok(Err(_)) | Err(_) => HashMap::new(),
        }
    }

    async fn wait_for_volume(
        &self,
        id: VolumeId,
        bound: Duration,
        done: impl Fn(&Volume) -> bool,
    ) -> Result<Option<Volume>, Error> {
        let read = || self.store.volume(id);
        self.wait_on(&self.volume_watchers, id, bound, read, done).await
    }
}
