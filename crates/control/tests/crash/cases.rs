//! The use cases that are died in, and what each must not lose.

use std::{sync::Arc, time::Duration};

use skerry_control::{
    AttachVolume, Caller, CheckpointRef, Control, CreateSnapshot, CreateVolume, CreateWorkspace,
    Error, ForkWorkspace, RestoreWorkspace, SnapshotRef, StartPolicy, VolumeRef, Wait,
    WorkspaceRef,
    internal_api::VmExit,
    sim_node::SimNode,
    testing::{self, TestClock},
};
use skerry_model::{
    AfterRestore, Backoff, Cause, Desired, Expiry, ExpiryAction, MountMode, RestartMode,
    RestartPolicy, Snapshot, SnapshotContents, SnapshotId, SnapshotOnTerminate, SnapshotPurpose,
    SnapshotState, State, Workspace, WorkspaceId,
};

const LONG: Wait = Wait::UpTo(Duration::from_secs(30));
const FORKS: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UseCase {
    Create,
    Start,
    Stop,
    Restart,
    Delete,
    Pause,
    Resume,
    Suspend,
    SuspendPaused,
    Wake,
    StopSuspended,
    TakeSnapshot,
    DeleteSnapshot,
    Restore,
    CreateFromSnapshot,
    Fork,
    DeleteLeavingSnapshot,
    Expire,
    RestartByPolicy,
    AttachVolume,
    DetachVolume,
    TakeCheckpoint,
    DeleteCheckpoint,
    InstallApp,
}

/// A control plane and its node.
#[derive(Clone)]
pub struct Ground {
    pub control: Control,
    pub caller: Caller,
    pub node: Arc<SimNode>,
    pub clock: TestClock,
}

/// What there is before the use case begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prepared {
    workspace: Option<WorkspaceId>,
    snapshot: Option<SnapshotId>,
}

impl Ground {
    /// A running workspace with something on its disk and in its memory.
    async fn running(&self, request: CreateWorkspace) -> WorkspaceId {
        let made = self.control.create_workspace(&self.caller, request).await.unwrap();
        assert!(matches!(made.state, State::Running { .. }), "{:?}", made.state);
        let guest = self.node.sim_guest(made.id).unwrap();
        guest.put_file("/root/file", b"at first");
        guest.hold("counter", "at first");
        made.id
    }

    async fn checkpoint(&self) -> Result<(), Error> {
        let data = at_data().volume;
        self.control.create_checkpoint(&self.caller, &data, Some("first"), LONG).await.map(drop)
    }

    async fn snapshot(&self, of: WorkspaceId) -> Result<SnapshotId, Error> {
        let request = CreateSnapshot {
            name: None,
            contents: None,
            metadata: std::collections::BTreeMap::new(),
        };
        let which = WorkspaceRef::Id(of);
        let taken = self.control.create_snapshot(&self.caller, &which, request, LONG).await?;
        Ok(taken.id)
    }
}

fn at_data() -> AttachVolume {
    AttachVolume {
        volume: VolumeRef::Name("data".to_owned()),
        path: "/data".to_owned(),
        mode: MountMode::ReadWrite,
        checkpoint: None,
    }
}

fn started() -> CreateWorkspace {
    CreateWorkspace::new(StartPolicy::Now(LONG))
}

impl UseCase {
    pub const ALL: [Self; 24] = [
        Self::Create,
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Delete,
        Self::Pause,
        Self::Resume,
        Self::Suspend,
        Self::SuspendPaused,
        Self::Wake,
        Self::StopSuspended,
        Self::TakeSnapshot,
        Self::DeleteSnapshot,
        Self::Restore,
        Self::CreateFromSnapshot,
        Self::Fork,
        Self::DeleteLeavingSnapshot,
        Self::Expire,
        Self::RestartByPolicy,
        Self::AttachVolume,
        Self::DetachVolume,
        Self::TakeCheckpoint,
        Self::DeleteCheckpoint,
        Self::InstallApp,
    ];

    pub async fn prepare(self, ground: &Ground) -> Prepared {
        let (control, caller) = (&ground.control, &ground.caller);
        match self {
            Self::Create => Prepared::default(),
            Self::Start => {
                let request = CreateWorkspace::new(StartPolicy::Later);
                let made = control.create_workspace(caller, request).await.unwrap();
                Prepared { workspace: Some(made.id), snapshot: None }
            }
            Self::Stop
            | Self::Restart
            | Self::Delete
            | Self::Pause
            | Self::Suspend
            | Self::TakeSnapshot
            | Self::InstallApp
            | Self::Fork => {
                Prepared { workspace: Some(ground.running(started()).await), snapshot: None }
            }
            Self::Resume | Self::SuspendPaused => {
                let id = ground.running(started()).await;
                control.pause_workspace(caller, &WorkspaceRef::Id(id), LONG).await.unwrap();
                Prepared { workspace: Some(id), snapshot: None }
            }
            Self::Wake | Self::StopSuspended => {
                let id = ground.running(started()).await;
                control.suspend_workspace(caller, &WorkspaceRef::Id(id), LONG).await.unwrap();
                Prepared { workspace: Some(id), snapshot: None }
            }
            Self::DeleteSnapshot | Self::Restore | Self::CreateFromSnapshot => {
                let id = ground.running(started()).await;
                let snapshot = ground.snapshot(id).await.unwrap();
                let guest = ground.node.sim_guest(id).unwrap();
                guest.put_file("/root/file", b"later");
                guest.hold("counter", "later");
                Prepared { workspace: Some(id), snapshot: Some(snapshot) }
            }
            Self::DeleteLeavingSnapshot => {
                let contents = SnapshotContents::DiskAndMemory;
                let last = SnapshotOnTerminate { name: Some("the last".to_owned()), contents };
                let request = CreateWorkspace { snapshot_on_terminate: Some(last), ..started() };
                Prepared { workspace: Some(ground.running(request).await), snapshot: None }
            }
            Self::AttachVolume
            | Self::DetachVolume
            | Self::TakeCheckpoint
            | Self::DeleteCheckpoint => {
                let data = CreateVolume { name: "data".to_owned(), size_mib: 64 };
                control.create_volume(caller, data, LONG).await.unwrap();
                let volumes = match self {
                    Self::AttachVolume => Vec::new(),
                    _ => vec![at_data()],
                };
                if self == Self::DeleteCheckpoint {
                    ground.checkpoint().await.unwrap();
                }
                let request = CreateWorkspace { volumes, ..started() };
                Prepared { workspace: Some(ground.running(request).await), snapshot: None }
            }
            Self::Expire => {
                let expiry = Expiry { after_seconds: 60, action: ExpiryAction::Suspend };
                let request = CreateWorkspace { expiry: Some(expiry), ..started() };
                Prepared { workspace: Some(ground.running(request).await), snapshot: None }
            }
            Self::RestartByPolicy => {
                let backoff = Backoff { first_seconds: 60, most_seconds: 60 };
                let restart =
                    RestartPolicy { mode: RestartMode::OnFailure, max_restarts: 0, backoff };
                let request = CreateWorkspace { restart, ..started() };
                let id = ground.running(request).await;
                let reason = "signal 9".to_owned();
                ground.node.end_vm(id, VmExit::Crashed { reason });
                testing::until(&ground.control, id, |w| w.lifecycle.restart_at.is_some()).await;
                // Whoever is still at work on it could find the time come before the timer rings.
                testing::quiet(control).await;
                Prepared { workspace: Some(id), snapshot: None }
            }
        }
    }

    pub async fn perform(self, ground: &Ground, prepared: &Prepared) -> Result<(), Error> {
        let (control, caller) = (&ground.control, &ground.caller);
        let from = prepared.snapshot.map(SnapshotRef::Id);
        let Some(workspace) = prepared.workspace else {
            return control.create_workspace(caller, started()).await.map(drop);
        };
        let id = &WorkspaceRef::Id(workspace);
        match self {
            Self::Create => Ok(()),
            Self::Start => control.start_workspace(caller, id, LONG).await.map(drop),
            Self::Stop | Self::StopSuspended => {
                control.stop_workspace(caller, id, LONG).await.map(drop)
            }
            Self::Restart => control.restart_workspace(caller, id, LONG).await.map(drop),
            Self::Delete | Self::DeleteLeavingSnapshot => {
                control.delete_workspace(caller, id, LONG).await.map(drop)
            }
            Self::Pause => control.pause_workspace(caller, id, LONG).await.map(drop),
            Self::Resume | Self::Wake => control.resume_workspace(caller, id, LONG).await.map(drop),
            Self::Suspend | Self::SuspendPaused => {
                control.suspend_workspace(caller, id, LONG).await.map(drop)
            }
            Self::TakeSnapshot => ground.snapshot(workspace).await.map(drop),
            Self::DeleteSnapshot => match from {
                Some(from) => control.delete_snapshot(caller, &from, LONG).await.map(drop),
                None => Ok(()),
            },
            Self::Restore => match from {
                Some(snapshot) => {
                    let request = RestoreWorkspace { snapshot, then: AfterRestore::AsBefore };
                    control.restore_workspace(caller, id, request, LONG).await.map(drop)
                }
                None => Ok(()),
            },
            Self::CreateFromSnapshot => {
                let request = CreateWorkspace { from_snapshot: from, ..started() };
                control.create_workspace(caller, request).await.map(drop)
            }
            Self::Fork => {
                let request = ForkWorkspace {
                    count: FORKS,
                    name: None,
                    metadata: None,
                    snapshot_name: None,
                    start: StartPolicy::Now(LONG),
                };
                control.fork_workspace(caller, id, request).await.map(drop)
            }
            Self::AttachVolume => control.attach_volume(caller, id, at_data()).await.map(drop),
            Self::DetachVolume => control.detach_volume(caller, id, &at_data().volume).await,
            Self::TakeCheckpoint => ground.checkpoint().await,
            Self::DeleteCheckpoint => {
                let (volume, first) = (at_data().volume, CheckpointRef::Name("first".to_owned()));
                control.delete_checkpoint(caller, &volume, &first, LONG).await.map(drop)
            }
            Self::InstallApp => {
                let params = std::collections::BTreeMap::new();
                control.install_app(caller, id, "static-files", &params).await.map(drop)
            }
            Self::Expire => {
                ground.clock.advance(Duration::from_secs(60));
                testing::until(&ground.control, workspace, |w| w.state == State::Suspended).await;
                Ok(())
            }
            Self::RestartByPolicy => {
                testing::quiet(control).await;
                ground.clock.advance(Duration::from_secs(60));
                testing::clock_was_set(control);
                testing::until(&ground.control, workspace, |w| {
                    matches!(w.state, State::Running { .. })
                })
                .await;
                Ok(())
            }
        }
    }

    /// What must be so in the end, beyond what holds for every use case.
    pub fn check(
        self,
        node: &SimNode,
        prepared: &Prepared,
        before: &[Workspace],
        now: &[Workspace],
        snapshots: &[Snapshot],
        what: &str,
    ) {
        let memory = |id| node.sim_guest(id).unwrap().held("counter");
        let file = |id| node.sim_guest(id).unwrap().file("/root/file");
        let first = || Some("at first".to_owned());
        let first_file = || Some(b"at first".to_vec());
        let Some(id) = prepared.workspace else { return };
        let recorded = before.iter().find(|record| record.id == id);
        match self {
            Self::Create | Self::Start => {}
            Self::Stop | Self::Restart | Self::StopSuspended => {
                assert_eq!(file(id), first_file(), "{what}");
                if recorded.unwrap().desired == Desired::Stopped {
                    assert!(!node.has_saved_memory(id), "{what}");
                }
            }
            Self::Delete => {}
            Self::InstallApp => {
                assert_eq!((memory(id), file(id)), (first(), first_file()), "{what}");
                // The installation and what runs then are there together or not at all.
                let workloads = &now[0].spec.workloads.items;
                assert!([0, 2].contains(&workloads.len()), "{what}: {workloads:?}");
            }
            // Which volumes it has is checked for every use case.
            Self::AttachVolume
            | Self::DetachVolume
            | Self::TakeCheckpoint
            | Self::DeleteCheckpoint => {
                assert_eq!((memory(id), file(id)), (first(), first_file()), "{what}");
            }
            Self::Pause | Self::Resume | Self::TakeSnapshot | Self::Wake => {
                assert_eq!((memory(id), file(id)), (first(), first_file()), "{what}");
                assert_eq!(node.boots(), 1, "{what}: memory is restored, not made anew");
            }
            Self::Suspend | Self::SuspendPaused => {
                assert_eq!(file(id), first_file(), "{what}");
                if now[0].state == State::Suspended {
                    assert!(node.has_saved_memory(id), "{what}");
                }
            }
            Self::DeleteSnapshot => {
                assert_eq!(memory(id), Some("later".to_owned()), "{what}");
            }
            Self::Restore => {
                let was_wished = recorded.unwrap().incarnation.0 > 1
                    || recorded.unwrap().lifecycle.start_from.snapshot_id().is_some();
                let held = if was_wished { "at first" } else { "later" };
                assert_eq!(memory(id), Some(held.to_owned()), "{what}");
                assert_eq!(file(id), Some(held.as_bytes().to_vec()), "{what}");
                assert_eq!(snapshots.len(), 1, "{what}");
            }
            Self::CreateFromSnapshot => {
                for made in now.iter().filter(|made| made.id != id) {
                    assert_eq!((memory(made.id), file(made.id)), (first(), first_file()), "{what}");
                }
            }
            Self::Fork => {
                let forks: Vec<_> = now.iter().filter(|made| made.id != id).collect();
                assert!(forks.is_empty() || forks.len() == FORKS as usize, "{what}: {forks:?}");
                for made in now {
                    assert_eq!((memory(made.id), file(made.id)), (first(), first_file()), "{what}");
                }
                assert!(snapshots.is_empty(), "{what}: {snapshots:?}");
            }
            Self::DeleteLeavingSnapshot => {
                let left: Vec<_> = snapshots
                    .iter()
                    .filter(|left| left.purpose == SnapshotPurpose::Terminate)
                    .map(|left| (left.name.as_str(), &left.state, left.contents))
                    .collect();
                if now.is_empty() {
                    let whole = SnapshotContents::DiskAndMemory;
                    assert_eq!(left, [("the last", &SnapshotState::Ready, whole)], "{what}");
                } else {
                    assert!(left.is_empty(), "{what}: {left:?}");
                }
            }
            Self::Expire => {
                assert_eq!(now[0].state, State::Suspended, "{what}: a timer was lost");
                assert_eq!(now[0].lifecycle.desired_by, Cause::Expiry, "{what}");
                assert!(node.has_saved_memory(id), "{what}");
                assert_eq!((now[0].incarnation.0, node.boots()), (1, 1), "{what}");
            }
            Self::RestartByPolicy => {
                assert!(matches!(now[0].state, State::Running { .. }), "{what}: a timer was lost");
                assert_eq!(now[0].lifecycle.restart_count, 1, "{what}: a timer rang twice");
                assert_eq!((now[0].incarnation.0, node.boots()), (2, 2), "{what}");
                assert_eq!(file(id), first_file(), "{what}");
            }
        }
    }
}
