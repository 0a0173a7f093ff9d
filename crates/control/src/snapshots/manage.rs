//! Finding, listing, changing and deleting snapshots.

use std::{sync::Arc, time::Duration};

use skerry_model::{
    AccountId, DisplayName, ErrorKind, Snapshot, SnapshotEvent, SnapshotId, SnapshotPurpose,
    SnapshotState, spec::check_metadata,
};

use super::{DeletedSnapshot, ListSnapshots, SnapshotRef, UpdateSnapshot};
use crate::{
    Caller, Control, Error, Page, Wait,
    control::Inner,
    store::{SnapshotDeletion, Write},
};

/// How often a change is computed anew because the record changed meanwhile.
const MAX_REDOS: u32 = 32;

impl Control {
    /// One snapshot.
    ///
    /// # Errors
    /// `NotFound`, also for another account's and for one whose deletion is complete.
    pub async fn get_snapshot(
        &self,
        caller: &Caller,
        which: &SnapshotRef,
    ) -> Result<Snapshot, Error> {
        self.inner.find_snapshot(caller, which).await
    }

    /// The caller's snapshots, newest first. Those of forks are among them for as long as they exist.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn list_snapshots(
        &self,
        caller: &Caller,
        filter: &ListSnapshots,
    ) -> Result<Page<Snapshot>, Error> {
        self.inner.store.list_snapshots(caller.account_id, filter).await
    }

    /// Changes a snapshot's name or labels; what it contains never changes.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (`name`, `metadata`).
    pub async fn update_snapshot(
        &self,
        caller: &Caller,
        which: &SnapshotRef,
        update: UpdateSnapshot,
    ) -> Result<Snapshot, Error> {
        let name = update.name.as_deref().map(DisplayName::parse).transpose()?;
        if let Some(metadata) = &update.metadata {
            check_metadata(metadata)?;
        }
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        let change = async move {
            for _ in 0..MAX_REDOS {
                let mut snapshot = inner.find_snapshot(&caller, &which).await?;
                if let Some(name) = &name {
                    snapshot.name = name.clone();
                }
                if let Some(metadata) = &update.metadata {
                    snapshot.metadata.clone_from(metadata);
                }
                if let Write::Done(written) = inner.write_snapshot(&snapshot).await? {
                    return Ok(written);
                }
            }
            Err(changes_too_quickly())
        };
        self.inner.to_the_end(change).await
    }

    /// Deletes a snapshot from any state. Workspaces that were made from it and have started are not
    /// touched. With [`Wait::UpTo`], answers after everything is gone unless the wait was over first.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while a workspace cannot start without it, naming that.
    pub async fn delete_snapshot(
        &self,
        caller: &Caller,
        which: &SnapshotRef,
        wait: Wait,
    ) -> Result<DeletedSnapshot, Error> {
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        let change = async move {
            for _ in 0..MAX_REDOS {
                let snapshot = inner.find_snapshot(&caller, &which).await?;
                if let Some(begun) = inner.begin_snapshot_deletion(snapshot).await? {
                    return Ok(begun);
                }
            }
            Err(changes_too_quickly())
        };
        let snapshot = self.inner.to_the_end(change).await?;
        let complete = match wait {
            Wait::No => false,
            Wait::UpTo(bound) => {
                self.inner.wait_for_snapshot(snapshot.id, bound, |_| false).await?.is_none()
            }
        };
        Ok(DeletedSnapshot { snapshot, complete })
    }
}

fn changes_too_quickly() -> Error {
    ErrorKind::Unavailable("the snapshot changes too quickly".to_owned()).into()
}

impl Inner {
    /// The caller's snapshot of this name; another account's is not found.
    pub(crate) async fn find_snapshot(
        &self,
        caller: &Caller,
        which: &SnapshotRef,
    ) -> Result<Snapshot, Error> {
        let missing = || Error::not_found("snapshot");
        let account = caller.account_id;
        let ready = vec![SnapshotState::Ready.name()];
        match which {
            SnapshotRef::Id(id) => {
                let found = self.store.snapshot(*id).await?;
                found.filter(|found| found.account_id == account).ok_or_else(missing)
            }
            SnapshotRef::Name(name) => {
                let named = ListSnapshots { name: Some(name.clone()), ..ListSnapshots::default() };
                let usable = ListSnapshots { states: ready, ..named.clone() };
                match self.newest_snapshot(account, usable).await? {
                    Some(found) => Ok(found),
                    None => self.newest_snapshot(account, named).await?.ok_or_else(missing),
                }
            }
            SnapshotRef::LatestOf(workspace_id) => {
                let kept = ListSnapshots {
                    workspace_id: Some(*workspace_id),
                    states: ready,
                    purposes: vec![SnapshotPurpose::User, SnapshotPurpose::Terminate],
                    ..ListSnapshots::default()
                };
                self.newest_snapshot(account, kept).await?.ok_or_else(missing)
            }
        }
    }

    async fn newest_snapshot(
        &self,
        account: AccountId,
        filter: ListSnapshots,
    ) -> Result<Option<Snapshot>, Error> {
        let filter = ListSnapshots { limit: Some(1), ..filter };
        Ok(self.store.list_snapshots(account, &filter).await?.items.into_iter().next())
    }

    /// A snapshot that can be started from now.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` unless it is ready.
    pub(crate) async fn find_ready_snapshot(
        &self,
        caller: &Caller,
        which: &SnapshotRef,
    ) -> Result<Snapshot, Error> {
        let snapshot = self.find_snapshot(caller, which).await?;
        match &snapshot.state {
            SnapshotState::Ready => Ok(snapshot),
            SnapshotState::Creating | SnapshotState::Failed(_) | SnapshotState::Deleting => {
                let why = format!("the snapshot is {}, not ready", snapshot.state.name());
                Err(ErrorKind::Conflict(why).into())
            }
        }
    }

    /// Records that its deletion begins and has it worked on; `None` when the record changed meanwhile.
    ///
    /// # Errors
    /// `Conflict` while a workspace needs it.
    pub(crate) async fn begin_snapshot_deletion(
        self: &Arc<Self>,
        mut snapshot: Snapshot,
    ) -> Result<Option<Snapshot>, Error> {
        if !snapshot.apply(&SnapshotEvent::DeletionBegun) {
            self.wake_snapshot(snapshot.id);
            return Ok(Some(snapshot));
        }
        snapshot.updated_at = self.now();
        match self.store.begin_snapshot_deletion(&snapshot).await? {
            SnapshotDeletion::Begun(begun) => {
                self.snapshot_watchers.announce(begun.id);
                self.wake_snapshot(begun.id);
                Ok(Some(*begun))
            }
            SnapshotDeletion::Stale => Ok(None),
            SnapshotDeletion::NeededBy(workspace) => {
                let why = format!(
                    "the workspace {} ({}) cannot start without this snapshot",
                    workspace.name, workspace.slug
                );
                Err(ErrorKind::Conflict(why).into())
            }
        }
    }

    /// Writes a record that was read before and changed since, and tells who waits for it.
    pub(crate) async fn write_snapshot(
        &self,
        snapshot: &Snapshot,
    ) -> Result<Write<Snapshot>, Error> {
        let stamped = Snapshot { updated_at: self.now(), ..snapshot.clone() };
        let outcome = self.store.update_snapshot(&stamped).await?;
        if let Write::Done(written) = &outcome {
            self.snapshot_watchers.announce(written.id);
        }
        Ok(outcome)
    }

    /// Waits, as asked, until the snapshot is ready or has failed, or is gone.
    pub(crate) async fn until_snapshot_settled(
        &self,
        snapshot: Snapshot,
        wait: Wait,
    ) -> Result<Snapshot, Error> {
        let bound = match wait {
            Wait::No => return Ok(snapshot),
            Wait::UpTo(bound) => bound,
        };
        let done = |record: &Snapshot| record.state != SnapshotState::Creating;
        let reached = self.wait_for_snapshot(snapshot.id, bound, done).await?;
        reached.ok_or_else(|| Error::not_found("snapshot"))
    }

    /// Waits at most this long until the record is as wanted or gone (`None`); answers it as it is
    /// then.
    pub(crate) async fn wait_for_snapshot(
        &self,
        id: SnapshotId,
        bound: Duration,
        done: impl Fn(&Snapshot) -> bool,
    ) -> Result<Option<Snapshot>, Error> {
        let read = || self.store.snapshot(id);
        self.wait_on(&self.snapshot_watchers, id, bound, read, done).await
    }
}
