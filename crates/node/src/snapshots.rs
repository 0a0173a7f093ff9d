//! The snapshots of a node: which there are, and which are being taken.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use skerry_internal_api::{NodeError, SnapshotInfo};
use skerry_model::{SnapshotId, WorkspaceId};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    error::{blocking, chain},
    host::{Host, StepFailed},
    saved::{About, Sealed},
};

/// How long a snapshot that is to be deleted may take to be given up: what it has written so far is
/// brought to the disk first.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(300);

/// The snapshots that are being taken. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotsUnderWay(Arc<Mutex<HashMap<SnapshotId, UnderWay>>>);

#[derive(Clone, Debug)]
struct UnderWay {
    workspace_id: WorkspaceId,
    cancel: CancellationToken,
    /// Cancelled when it is not under way any more.
    ended: CancellationToken,
}

/// A snapshot is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct UnderWayGuard {
    all: SnapshotsUnderWay,
    id: SnapshotId,
    ended: CancellationToken,
}

impl Drop for UnderWayGuard {
    fn drop(&mut self) {
        self.all.lock().remove(&self.id);
        self.ended.cancel();
    }
}

impl SnapshotsUnderWay {
    /// Notes that the owner of a VM takes this snapshot from now on.
    ///
    /// # Errors
    /// Another VM's owner takes one of the same id.
    pub fn begin(
        &self,
        id: SnapshotId,
        workspace_id: WorkspaceId,
        cancel: &CancellationToken,
    ) -> Result<UnderWayGuard, NodeError> {
        let ended = CancellationToken::new();
        let under_way = UnderWay { workspace_id, cancel: cancel.clone(), ended: ended.clone() };
        let mut all = self.lock();
        if let Some(other) = all.get(&id) {
            debug_assert_ne!(other.workspace_id, workspace_id, "an owner does one thing at a time");
            let problem = "is the identifier of another workspace's snapshot".to_owned();
            return Err(NodeError::Invalid { field: "snapshot_id", problem });
        }
        all.insert(id, under_way);
        Ok(UnderWayGuard { all: self.clone(), id, ended })
    }

    fn find(&self, id: SnapshotId) -> Option<UnderWay> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SnapshotId, UnderWay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the snapshot, after giving it up if it is being taken. Its promoted memory goes with it,
/// also one that is being made: what that has left finds its directory gone and gives up.
pub(crate) async fn delete(host: &Host, id: SnapshotId) -> Result<(), NodeError> {
    host.promotions.forget(id);
    if let Some(under_way) = host.snapshots.find(id) {
        under_way.cancel.cancel();
        let ended = tokio::time::timeout(GIVEN_UP_WITHIN, under_way.ended.cancelled()).await;
        ended.map_err(|_| NodeError::Timeout {
            step: "snapshot_given_up",
            bound_seconds: GIVEN_UP_WITHIN.as_secs(),
        })?;
    }
    let (states, place) = (host.storage.states.clone(), host.layout.snapshot(id));
    let deleted = blocking(move || states.delete(&place)).await;
    deleted
        .map_err(StepFailed::at("snapshot_deleted"))
        .map_err(|failed| failed.report("deleting a snapshot"))
}

/// Every complete snapshot.
pub(crate) async fn list(host: &Host) -> Result<Vec<SnapshotInfo>, Error> {
    let (states, parent) = (host.storage.states.clone(), host.layout.snapshots_dir());
    let found = blocking(move || states.list(&parent)).await?;
    let mut infos = Vec::new();
    for (name, found) in found {
        match found {
            Ok(sealed) => infos.extend(info_of(&sealed)),
            Err(error) => {
                tracing::warn!(name, error = chain(&error), "a snapshot cannot be used");
            }
        }
    }
    Ok(infos)
}

/// What control is told of a snapshot; `None` when it is none.
pub(crate) fn info_of(sealed: &Sealed) -> Option<SnapshotInfo> {
    let manifest = &sealed.manifest;
    let About::Snapshot { workspace_id, contents, blackout } = manifest.about.clone() else {
        return None;
    };
    let id = sealed.place().file_name()?.to_str()?.parse().ok()?;
    // The layer that was frozen for it; those below were there before.
    let layer_bytes = manifest.layers.first().map_or(0, |layer| layer.length_bytes);
    Some(SnapshotInfo {
        id,
        workspace_id,
        contents,
        shape: manifest.shape,
        image_digest: manifest.image_digest.clone(),
        size_bytes: manifest.files_bytes().saturating_add(layer_bytes),
        blackout,
        created_at: manifest.created_at,
    })
}
