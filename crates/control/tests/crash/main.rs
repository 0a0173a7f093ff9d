//! Control dies at every write and at every call to the node, in turn, during every use case, and
//! sometimes again while it recovers. After the next start records, VMs and snapshots agree, nothing is
//! left over, every wish that was recorded is kept, and no memory or file is lost.
#![allow(clippy::unwrap_used, reason = "tests")]

mod cases;
mod fuse;

use std::{path::PathBuf, sync::Arc, time::Duration};

use cases::{Ground, UseCase};
use fuse::{Fuse, FusedNode, FusedStore, When};
use proptest::prelude::*;
use skerry_control::{
    Control, Credential, Environment,
    internal_api::{NodeApi, VmPhase},
    sim_node::SimNode,
    store::Store,
    testing::{self, SeededRng, TestClock},
};
use skerry_model::{
    ApiKeyId, Attachment, Checkpoint, Desired, Secret, Snapshot, SnapshotPurpose, SnapshotState,
    State, Timestamp, VolumeState, Workspace, WorkspaceId,
};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

const BOUND: Duration = Duration::from_secs(30);
/// More operations than any use case has.
const NEVER: u32 = 10_000;

/// One life of a control plane, from opening to its death. It has a runtime of its own, which ends with
/// it: what control does stops wherever it stands, as when a process is killed.
struct Life {
    runtime: Runtime,
    ground: Ground,
    fuse: Arc<Fuse>,
    shutdown: CancellationToken,
    background: JoinHandle<()>,
}

impl Life {
    async fn begin(world: &World, seed: u64, fuse: Arc<Fuse>) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (world, lit) = (world.clone(), Arc::clone(&fuse));
        let handle = runtime.handle().clone();
        let ground = tokio::task::spawn_blocking(move || handle.block_on(open(world, seed, lit)))
            .await
            .unwrap();
        let shutdown = CancellationToken::new();
        let (running, until) = (ground.control.clone(), shutdown.clone());
        let background = runtime.spawn(async move { running.run(until).await });
        Self { runtime, ground, fuse, shutdown, background }
    }

    /// Everything of control is gone; database and node stay.
    async fn end(self, world: &World) {
        self.shutdown.cancel();
        tokio::select! {
            ended = self.background => ended.unwrap(),
            // Also when that comes about only now, in work that goes on behind an answer.
            () = self.fuse.blown() => {}
        }
        drop(self.ground);
        // Waits for the runtime's threads, which a task must not.
        let runtime = self.runtime;
        tokio::task::spawn_blocking(move || drop(runtime)).await.unwrap();
        // A commit that was under way is made or not; this waits for its lock.
        let store = testing::open_store(&world.database).await.unwrap();
        store.touch_key(ApiKeyId::from_u128(0), start_of_time()).await.unwrap();
    }
}

fn start_of_time() -> Timestamp {
    Timestamp::from_second(1_767_225_600).unwrap()
}

/// What outlives control.
#[derive(Clone)]
struct World {
    database: PathBuf,
    node: Arc<SimNode>,
    clock: TestClock,
}

async fn open(World { database, node, clock }: World, seed: u64, fuse: Arc<Fuse>) -> Ground {
    let environment = Environment { now: clock.as_fn(), rng: Arc::new(SeededRng::new(seed)) };
    let store = testing::open_store(&database).await.unwrap();
    let store = Store::from_backend(Arc::new(FusedStore(store, Arc::clone(&fuse))));
    let fused: Arc<dyn NodeApi> = Arc::new(FusedNode(Arc::clone(&node), fuse));
    let mut config = testing::config();
    // Nobody tells the timers that the clock was set.
    config.reconcile_interval = Duration::from_millis(100);
    let control = Control::open(config, environment, store, fused).await.unwrap();
    let credential = Credential { secret: Secret::new(testing::KEY), account: None };
    let caller = control.authenticate(&credential).await.unwrap();
    Ground { control, caller, node, clock }
}

/// Everything that is recorded.
#[derive(Debug)]
struct Records {
    workspaces: Vec<Workspace>,
    snapshots: Vec<Snapshot>,
    mounts: Vec<Attachment>,
    checkpoints: Vec<Checkpoint>,
}

impl Records {
    async fn read(store: &Store) -> Self {
        Self {
            workspaces: store.workspaces_after(None, 100).await.unwrap(),
            snapshots: store.snapshots_after(None, 100).await.unwrap(),
            checkpoints: store.checkpoints_after(None, 100).await.unwrap(),
            mounts: store.mounts_between(None, WorkspaceId::from_u128(u128::MAX)).await.unwrap(),
        }
    }

    /// Whether they say what the node says, and nothing is left to do.
    async fn agree_with(&self, node: &SimNode) -> bool {
        let vms = node.vms();
        let workspaces_agree = self.workspaces.iter().all(|record| {
            let vm = vms.iter().find(|vm| vm.workspace_id == record.id);
            let phase = vm.map_or(VmPhase::Stopped, |vm| vm.phase);
            let right = match record.state {
                State::Running { .. } => phase == VmPhase::Running,
                State::Paused { .. } => phase == VmPhase::Paused,
                State::Suspended => phase == VmPhase::Suspended,
                _ => phase == VmPhase::Stopped,
            };
            let same_start = phase == VmPhase::Stopped
                || vm.is_some_and(|vm| vm.incarnation == record.incarnation);
            record.is_settled() && right && same_start
        });
        let volumes_agree = vms.iter().filter(|vm| vm.phase == VmPhase::Running).all(|vm| {
            let wished = self.mounts.iter().filter(|wish| wish.workspace_id == vm.workspace_id);
            wished.map(|wish| &wish.mount).eq(vm.volumes.iter().map(|held| &held.mount))
        });
        let no_stranger =
            vms.iter().all(|vm| self.workspaces.iter().any(|record| record.id == vm.workspace_id));
        let on_node: Vec<_> = node.snapshots().await.iter().map(|info| info.id).collect();
        let ready: Vec<_> = self
            .snapshots
            .iter()
            .filter(|record| record.state == SnapshotState::Ready)
            .map(|record| record.id)
            .collect();
        let all_settled = self.snapshots.iter().all(|record| match record.state {
            SnapshotState::Ready => {
                let needed = |workspace: &Workspace| workspace.needed_snapshot() == Some(record.id);
                record.purpose != SnapshotPurpose::Fork || self.workspaces.iter().any(needed)
            }
            SnapshotState::Failed(_) => record.purpose != SnapshotPurpose::Fork,
            SnapshotState::Creating | SnapshotState::Deleting => false,
        });
        let volumes = node.volumes().await.unwrap();
        let frozen: Vec<_> = volumes.iter().flat_map(|one| one.checkpoints.clone()).collect();
        let is_ready = |record: &&Checkpoint| record.state == VolumeState::Ready;
        let recorded: Vec<_> = self.checkpoints.iter().map(|record| record.id).collect();
        let checkpoints_agree =
            self.checkpoints.iter().all(|one| is_ready(&one)) && frozen == recorded;
        workspaces_agree
            && volumes_agree
            && checkpoints_agree
            && no_stranger
            && all_settled
            && on_node == ready
    }
}

/// Whether this is how `before` may have ended.
fn keeps_the_wish(before: &Workspace, after: Option<&Workspace>) -> bool {
    match (before.desired, after) {
        (Desired::Deleted, None) => true,
        (Desired::Running, Some(now)) => {
            matches!(now.state, State::Running { .. }) && now.incarnation > before.replace_through
        }
        (Desired::Paused, Some(now)) => matches!(now.state, State::Paused { .. }),
        (Desired::Suspended, Some(now)) => now.state == State::Suspended,
        (Desired::Stopped, Some(now)) => !now.state.has_vm() && now.state != State::Suspended,
        (Desired::Deleted, Some(_)) => false,
        (Desired::Running | Desired::Paused | Desired::Suspended | Desired::Stopped, None) => false,
    }
}

/// Whether this is how the snapshot `before` may have ended.
fn snapshot_is_kept(before: &Snapshot, after: Option<&Snapshot>) -> bool {
    match (&before.state, after.map(|now| &now.state)) {
        (SnapshotState::Deleting, None) => true,
        (SnapshotState::Creating | SnapshotState::Ready, Some(SnapshotState::Ready)) => true,
        // A fork's goes once all have started.
        (SnapshotState::Creating | SnapshotState::Ready, None) => {
            before.purpose == SnapshotPurpose::Fork
        }
        _ => false,
    }
}

/// Waits until record and node agree, then checks that they agree on the right thing.
async fn check(world: &World, before: &Records, what: &str) -> Records {
    let (node, at) = (&world.node, world.clock.now());
    let store = testing::open_store(&world.database).await.unwrap();
    let agreed = async {
        loop {
            let now = Records::read(&store).await;
            let is_due = |record: &Workspace| record.due_at().is_some_and(|due| due <= at);
            if now.agree_with(node).await && !now.workspaces.iter().any(is_due) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let Ok(now) = tokio::time::timeout(BOUND, agreed).await else {
        let now = Records::read(&store).await;
        let (vms, calls) = (node.vms(), node.calls());
        panic!("{what}: never agreed: {now:#?} {vms:#?} {:?} {calls:?}", node.snapshots().await);
    };
    for record in &before.workspaces {
        // A timer that was due decides; what must come of it is the use case's.
        if record.due_at().is_some_and(|due| due <= at) {
            continue;
        }
        let after = now.workspaces.iter().find(|now| now.id == record.id);
        assert!(keeps_the_wish(record, after), "{what}: {record:#?} became {after:#?}");
    }
    for record in &before.snapshots {
        let after = now.snapshots.iter().find(|now| now.id == record.id);
        assert!(snapshot_is_kept(record, after), "{what}: {record:#?} became {after:#?}");
    }
    let stay = |wish: &&Attachment| now.workspaces.iter().any(|now| now.id == wish.workspace_id);
    let stayed: Vec<_> = before.mounts.iter().filter(stay).collect();
    assert_eq!(now.mounts.iter().collect::<Vec<_>>(), stayed, "{what}");
    let kept = |one: &&Checkpoint| one.state != VolumeState::Deleting;
    let wished: Vec<_> = before.checkpoints.iter().filter(kept).map(|one| one.id).collect();
    assert_eq!(now.checkpoints.iter().map(|one| one.id).collect::<Vec<_>>(), wished, "{what}");
    let kept = before.workspaces.iter().filter(|w| w.desired != Desired::Deleted).count();
    assert_eq!(now.workspaces.len(), kept, "{what}");
    now
}

/// Plays one use case with a death at each of these operations, one life after the other, and then
/// a life without one. Answers whether the first death came about.
async fn play(case: UseCase, deaths: &[(u32, When)]) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::at(start_of_time());
    let node = SimNode::new(clock.as_fn());
    let world = World { database: directory.path().join("store.db"), node, clock };
    let what = format!("{case:?} {deaths:?}");

    let life = Life::begin(&world, 1, Fuse::at(NEVER, When::Before)).await;
    let here = life.ground.clone();
    let prepared = life.runtime.spawn(async move { case.prepare(&here).await }).await.unwrap();
    life.end(&world).await;

    let mut died = false;
    for (index, (operation, when)) in deaths.iter().enumerate() {
        let fuse = Fuse::at(*operation, *when);
        let life = Life::begin(&world, 2 + index as u64, Arc::clone(&fuse)).await;
        if index == 0 {
            let here = life.ground.clone();
            let performed = async move { case.perform(&here, &prepared).await };
            let performed = life.runtime.spawn(performed);
            tokio::select! {
                done = tokio::time::timeout(BOUND, performed) => {
                    let done = done.unwrap_or_else(|_| panic!("{what}: hangs"));
                    done.unwrap().unwrap_or_else(|error| panic!("{what}: {error}"));
                }
                () = fuse.blown() => died = true,
            }
        } else {
            // A life that recovers; it may be over before its fuse is reached.
            let _alive = tokio::time::timeout(Duration::from_millis(50), fuse.blown()).await;
        }
        life.end(&world).await;
        died |= index == 0 && fuse.was_reached();
    }

    let store = testing::open_store(&world.database).await.unwrap();
    let before = Records::read(&store).await;
    drop(store);
    let life = Life::begin(&world, 99, Fuse::at(NEVER, When::Before)).await;
    let now = check(&world, &before, &what).await;
    case.check(&world.node, &prepared, &before.workspaces, &now.workspaces, &now.snapshots, &what);
    life.end(&world).await;
    died
}

async fn die_everywhere(case: UseCase, fewest_operations: u32) {
    for when in [When::Before, When::During, When::After] {
        let mut operation = 0;
        while play(case, &[(operation, when)]).await {
            operation += 1;
        }
        assert!(operation >= fewest_operations, "only {operation} operations were met");
    }
}

macro_rules! dying_anywhere {
    ($($name:ident: $case:ident, $fewest:literal;)*) => {$(
        #[tokio::test]
        async fn $name() {
            die_everywhere(UseCase::$case, $fewest).await;
        }
    )*};
}

// The number: how many writes and calls to the node the use case has at least.
dying_anywhere! {
    dying_anywhere_in_create_loses_nothing: Create, 4;
    dying_anywhere_in_start_loses_nothing: Start, 4;
    dying_anywhere_in_stop_loses_nothing: Stop, 3;
    dying_anywhere_in_restart_loses_nothing: Restart, 6;
    dying_anywhere_in_delete_loses_nothing: Delete, 3;
    dying_anywhere_in_pause_loses_nothing: Pause, 3;
    dying_anywhere_in_resume_loses_nothing: Resume, 3;
    dying_anywhere_in_suspend_loses_nothing: Suspend, 4;
    dying_anywhere_in_suspending_what_is_paused_loses_nothing: SuspendPaused, 4;
    dying_anywhere_in_resuming_from_saved_memory_loses_nothing: Wake, 4;
    dying_anywhere_in_stopping_what_is_suspended_loses_nothing: StopSuspended, 3;
    dying_anywhere_in_taking_a_snapshot_loses_nothing: TakeSnapshot, 3;
    dying_anywhere_in_deleting_a_snapshot_loses_nothing: DeleteSnapshot, 3;
    dying_anywhere_in_restore_loses_nothing: Restore, 6;
    dying_anywhere_in_create_from_a_snapshot_loses_nothing: CreateFromSnapshot, 4;
    dying_anywhere_in_fork_loses_nothing: Fork, 9;
    dying_anywhere_in_the_end_of_a_time_to_live_loses_nothing: Expire, 4;
    // One less when the comparison of records and VMs comes before the timer.
    dying_anywhere_in_a_restart_by_policy_loses_nothing: RestartByPolicy, 3;
    dying_anywhere_in_attaching_a_volume_loses_nothing: AttachVolume, 2;
    dying_anywhere_in_detaching_a_volume_loses_nothing: DetachVolume, 2;
    dying_anywhere_in_taking_a_checkpoint_loses_nothing: TakeCheckpoint, 3;
    dying_anywhere_in_deleting_a_checkpoint_loses_nothing: DeleteCheckpoint, 3;
    dying_anywhere_in_a_deletion_that_leaves_a_snapshot_loses_nothing: DeleteLeavingSnapshot, 8;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn dying_again_while_recovering_loses_nothing(
        case in prop::sample::select(UseCase::ALL.as_slice()),
        deaths in prop::collection::vec(
            (0_u32..9, prop_oneof![Just(When::Before), Just(When::During), Just(When::After)]),
            2..4,
        ),
    ) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(case, &deaths));
    }
}
