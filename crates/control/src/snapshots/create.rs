//! Taking a snapshot.

use std::sync::Arc;

use skerry_model::{
    DisplayName, ErrorKind, Plan, Snapshot, SnapshotContents, SnapshotId, SnapshotPurpose,
    SnapshotState, State, Workspace, spec::check_metadata,
};

use super::CreateSnapshot;
use crate::{Caller, Control, Error, Wait, WorkspaceRef, control::Inner, store::Write};

impl Control {
    /// Takes a snapshot. The record is made at once; with [`Wait::UpTo`] the answer comes when it is
    /// ready or has failed, which its state says, or when the wait is over. The workspace goes on as
    /// before.
    ///
    /// # Errors
    /// `NotFound` (`workspace`), `Invalid` (`name`, `metadata`), `Quota` (snapshots),
    /// `RefusedByState` when there is nothing of what it should contain: no disk before the first
    /// start, no memory without a running or paused VM, neither while the workspace is starting,
    /// stopping, being suspended or deleted.
    pub async fn create_snapshot(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        request: CreateSnapshot,
        wait: Wait,
    ) -> Result<Snapshot, Error> {
        let name = request.name.as_deref().map(DisplayName::parse).transpose()?;
        check_metadata(&request.metadata)?;
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        let made = self
            .inner
            .to_the_end(async move {
                let workspace = inner.find(&caller, &which).await?;
                let contents = inner.contents_of(&workspace, request.contents).await?;
                let snapshot = Snapshot {
                    metadata: request.metadata,
                    ..inner.new_snapshot(&workspace, SnapshotPurpose::User, contents, name)?
                };
                let made = inner.insert_snapshot(&snapshot, Some(&inner.config.plan)).await?;
                inner.wake_snapshot(made.id);
                Ok(made)
            })
            .await?;
        self.inner.until_snapshot_settled(made, wait).await
    }
}

/// What a snapshot of this workspace would contain, if it can be taken.
fn contents_of(
    workspace: &Workspace,
    asked: Option<SnapshotContents>,
) -> Result<SnapshotContents, Error> {
    let refused = |reason: &str| {
        let state = workspace.state.name();
        Err(ErrorKind::RefusedByState { state, reason: reason.to_owned() }.into())
    };
    if workspace.desired == skerry_model::Desired::Deleted {
        return refused("it is being deleted");
    }
    let has_memory = match &workspace.state {
        State::Running { .. } | State::Paused { .. } => true,
        State::Suspended | State::Stopped | State::Failed(_) => false,
        State::Provisioned => return refused("it has no disk before its first start"),
        State::Starting | State::Suspending | State::Stopping => {
            return refused("a snapshot is possible once it has settled");
        }
        State::Deleting => return refused("it is being deleted"),
    };
    if !workspace.owns_disk() {
        return refused("it has no disk before its first start");
    }
    if workspace.needed_snapshot().is_some() {
        return refused("its disk is replaced by a snapshot's at its next start: start it first");
    }
    match asked {
        Some(SnapshotContents::DiskAndMemory) if !has_memory => {
            refused("a snapshot with memory needs a running or paused workspace")
        }
        Some(contents) => Ok(contents),
        None if has_memory => Ok(SnapshotContents::DiskAndMemory),
        None => Ok(SnapshotContents::Disk),
    }
}

impl Inner {
    /// What a snapshot of this workspace would contain, if it can be taken. Whoever went on from its
    /// memory would have its volumes mounted, and not have them: of a workspace that has volumes it
    /// is the disk.
    ///
    /// # Errors
    /// `RefusedByState`, also when memory was asked for of a workspace that has volumes.
    pub(crate) async fn contents_of(
        &self,
        workspace: &Workspace,
        asked: Option<SnapshotContents>,
    ) -> Result<SnapshotContents, Error> {
        let contents = contents_of(workspace, asked)?;
        match contents {
            SnapshotContents::Disk => return Ok(contents),
            SnapshotContents::DiskAndMemory => {}
        }
        if self.store.mounts_of(workspace.id).await?.is_empty() {
            return Ok(contents);
        }
        if asked.is_none() {
            return Ok(SnapshotContents::Disk);
        }
        let reason =
            "its volumes have to be detached first; a snapshot of the disk alone is possible";
        let state = workspace.state.name();
        Err(ErrorKind::RefusedByState { state, reason: reason.to_owned() }.into())
    }

    /// A record that is not written yet.
    pub(crate) fn new_snapshot(
        &self,
        workspace: &Workspace,
        purpose: SnapshotPurpose,
        contents: SnapshotContents,
        name: Option<DisplayName>,
    ) -> Result<Snapshot, Error> {
        let now = self.now();
        let name = match name {
            Some(name) => name,
            None => made_up_name(workspace, &self.random_word(5))?,
        };
        Ok(Snapshot {
            id: SnapshotId::from_random(self.random()),
            account_id: workspace.account_id,
            workspace_id: workspace.id,
            name,
            purpose,
            contents,
            state: SnapshotState::Creating,
            image: workspace.spec.image.clone(),
            image_digest: workspace.spec.image_digest.clone(),
            shape: workspace.spec.shape,
            size_bytes: 0,
            blackout: None,
            taken_at: None,
            metadata: std::collections::BTreeMap::new(),
            created_at: now,
            updated_at: now,
            revision: 0,
        })
    }

    pub(crate) async fn insert_snapshot(
        &self,
        snapshot: &Snapshot,
        plan: Option<&Plan>,
    ) -> Result<Snapshot, Error> {
        match self.store.insert_snapshot(snapshot, plan).await? {
            Write::Done(made) => Ok(made),
            Write::Taken | Write::Stale => {
                Err(Error::internal("the identifier of a snapshot was drawn twice"))
            }
        }
    }
}

/// The workspace's name with a suffix, within the longest a name may be.
fn made_up_name(workspace: &Workspace, suffix: &str) -> Result<DisplayName, Error> {
    let room = DisplayName::MAX_CHARS - suffix.len() - 1;
    let stem: String = workspace.name.as_str().chars().take(room).collect();
    Ok(DisplayName::parse(&format!("{stem}-{suffix}"))?)
}
