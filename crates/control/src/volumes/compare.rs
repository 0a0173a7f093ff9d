//! That every VM that runs has the volumes of its workspace.
//!
//! A start comes with what is recorded, and who attaches or detaches records and does both. What a
//! crash, a lost answer or a start at the same moment leaves between the two is found by comparing what
//! is recorded with what the node says the VM has, at every start of control and periodically.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use skerry_internal_api::{VmPhase, VmReport};
use skerry_model::{
    HeldMount, MountStep, State, VolumeMount, Workspace, WorkspaceId, next_mount_step,
};
use tokio::sync::{Notify, OwnedMutexGuard};

use crate::{
    Error,
    control::Inner,
    reconciler::{Subject, Workers, work},
};

/// More steps than any VM needs in a row.
const MAX_STEPS: u32 = 20;

/// The workspace whose VM's volumes a worker is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mounted(WorkspaceId);

impl fmt::Display for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Subject for Mounted {
    const WHAT: &'static str = "volumes of a workspace";

    fn workers(inner: &Inner) -> &Workers<Self> {
        &inner.mount_workers
    }

    async fn drive(self, inner: &Arc<Inner>, _: &Arc<Notify>) -> Result<(), Error> {
        inner.apply_mounts(self.0).await
    }
}

/// Whoever changes what a workspace has holds its turn from the record to the VM, so that nobody
/// compares the two in between.
#[derive(Default)]
pub(crate) struct MountTurns(Mutex<HashMap<WorkspaceId, Arc<tokio::sync::Mutex<()>>>>);

impl MountTurns {
    /// Waits for the workspace's turn.
    pub(crate) async fn take(&self, id: WorkspaceId) -> OwnedMutexGuard<()> {
        let turn = {
            // The guarded section cannot panic halfway through a change.
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(id).or_default())
        };
        turn.lock_owned().await
    }
}

/// What the VM has, if it is the workspace's and its volumes can change now.
fn held<'a>(workspace: &Workspace, report: Option<&'a VmReport>) -> Option<&'a [HeldMount]> {
    let State::Running { .. } = workspace.state else { return None };
    report
        .filter(|vm| vm.phase == VmPhase::Running && vm.incarnation == workspace.incarnation)
        .map(|vm| vm.volumes.as_slice())
}

impl Inner {
    /// Has a worker compare what the workspace should have with what its VM has.
    pub(crate) fn wake_mounts(self: &Arc<Self>, id: WorkspaceId) {
        if self.ending.is_cancelled() {
            return;
        }
        if let Some(post) = self.mount_workers.wake(Mounted(id)) {
            self.tasks.spawn(work(Arc::clone(self), Mounted(id), post));
        }
    }

    /// Wakes a worker where a VM's volumes are not those of its workspace.
    pub(crate) fn compare_mounts(
        self: &Arc<Self>,
        workspace: &Workspace,
        wished: &[VolumeMount],
        report: Option<&VmReport>,
    ) {
        if let Some(held) = held(workspace, report)
            && next_mount_step(wished, held) != MountStep::Nothing
        {
            self.wake_mounts(workspace.id);
        }
    }

    async fn apply_mounts(&self, id: WorkspaceId) -> Result<(), Error> {
        let _turn = self.mount_turns.take(id).await;
        for _ in 0..MAX_STEPS {
            let report = self.bounded("inspect", self.node.inspect(id)).await?;
            let Some(workspace) = self.store.workspace(id).await? else { return Ok(()) };
            // One that does not run gets what is recorded at its next start.
            let Some(held) = held(&workspace, report.as_ref()) else { return Ok(()) };
            let (start, wished) = (workspace.incarnation, self.store.mounts_of(id).await?);
            match next_mount_step(&wished, held) {
                MountStep::Nothing => return Ok(()),
                MountStep::Detach(volume_id) => {
                    tracing::info!(workspace.id = %id, volume.id = %volume_id, "a volume that is not the workspace's is taken out");
                    let call = self.node.ensure_volume_detached(id, start, volume_id);
                    self.bounded("ensure_volume_detached", call).await??;
                }
                MountStep::Attach(mount) => {
                    tracing::info!(workspace.id = %id, volume.id = %mount.volume_id, "a volume of the workspace is brought in");
                    let call = self.node.ensure_volume_attached(id, start, mount);
                    self.bounded("ensure_volume_attached", call).await??;
                }
            }
        }
        Err(Error::internal("a workspace and its VM do not come to have the same volumes"))
    }
}
