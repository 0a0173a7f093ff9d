//! Control dies at every write and at every call to the node, in turn, during every use case, and
//! sometimes again while it recovers. After the next start records and VMs agree, nothing is left
//! over, and every wish that was recorded is kept.
#![allow(clippy::unwrap_used, reason = "tests")]

mod fuse;

use std::{path::Path, sync::Arc, time::Duration};

use fuse::{Fuse, FusedNode, FusedStore, When};
use proptest::prelude::*;
use skerry_control::{
    Caller, Control, CreateWorkspace, Credential, Environment, Error, StartPolicy, Wait,
    WorkspaceRef,
    internal_api::{NodeApi, VmPhase},
    sim_node::SimNode,
    store::Store,
    testing::{self, SeededRng, TestClock},
};
use skerry_model::{Desired, Secret, State, Timestamp, Workspace, WorkspaceId};
use tokio_util::sync::CancellationToken;

const BOUND: Duration = Duration::from_secs(30);
const LONG: Wait = Wait::UpTo(BOUND);
/// More operations than any use case has.
const NEVER: u32 = 10_000;

/// One life of a control plane, from opening to its death.
struct Life {
    control: Control,
    caller: Caller,
    fuse: Arc<Fuse>,
    shutdown: CancellationToken,
    background: tokio::task::JoinHandle<()>,
}

impl Life {
    async fn begin(database: &Path, node: &Arc<SimNode>, seed: u64, fuse: Arc<Fuse>) -> Self {
        let clock = TestClock::at(Timestamp::from_second(1_767_225_600).unwrap());
        let environment = Environment { now: clock.as_fn(), rng: Arc::new(SeededRng::new(seed)) };
        let store = testing::open_store(database).await.unwrap();
        let store = Store::from_backend(Arc::new(FusedStore(store, Arc::clone(&fuse))));
        let node: Arc<dyn NodeApi> = Arc::new(FusedNode(Arc::clone(node), Arc::clone(&fuse)));
        let config = testing::config();
        let control = Control::open(config, environment, store, node).await.unwrap();
        let credential = Credential { secret: Secret::new(testing::KEY), account: None };
        let caller = control.authenticate(&credential).await.unwrap();
        let shutdown = CancellationToken::new();
        let (running, until) = (control.clone(), shutdown.clone());
        let background = tokio::spawn(async move { running.run(until).await });
        Self { control, caller, fuse, shutdown, background }
    }

    /// Everything of control is dropped where it stands; database and node stay.
    async fn end(self) {
        self.shutdown.cancel();
        if self.fuse.is_blown() {
            // The loop itself may be stuck in an operation that will never be answered.
            self.background.abort();
            let _aborted = self.background.await;
            // Its own end is what stops the workers; a second one ends at once.
            self.control.run(self.shutdown).await;
        } else {
            self.background.await.unwrap();
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum UseCase {
    Create,
    Start,
    Stop,
    Restart,
    Delete,
}

impl UseCase {
    /// What is there before it begins.
    async fn prepare(self, life: &Life) -> Option<WorkspaceId> {
        let start = match self {
            Self::Create => return None,
            Self::Start => StartPolicy::Later,
            Self::Stop | Self::Restart | Self::Delete => StartPolicy::Now(LONG),
        };
        let made = life.control.create_workspace(&life.caller, CreateWorkspace::new(start)).await;
        Some(made.unwrap().id)
    }

    async fn perform(self, life: &Life, id: Option<WorkspaceId>) -> Result<(), Error> {
        let (control, caller) = (&life.control, &life.caller);
        let which = id.map(WorkspaceRef::Id);
        match (self, which) {
            (Self::Create, _) | (_, None) => {
                let request = CreateWorkspace::new(StartPolicy::Now(LONG));
                control.create_workspace(caller, request).await.map(drop)
            }
            (Self::Start, Some(id)) => control.start_workspace(caller, &id, LONG).await.map(drop),
            (Self::Stop, Some(id)) => control.stop_workspace(caller, &id, LONG).await.map(drop),
            (Self::Restart, Some(id)) => {
                control.restart_workspace(caller, &id, LONG).await.map(drop)
            }
            (Self::Delete, Some(id)) => control.delete_workspace(caller, &id, LONG).await.map(drop),
        }
    }
}

async fn records(database: &Path) -> Vec<Workspace> {
    testing::open_store(database).await.unwrap().workspaces_after(None, 100).await.unwrap()
}

/// Whether this is how `before` may have ended.
fn keeps_the_wish(before: &Workspace, after: Option<&Workspace>) -> bool {
    match (before.desired, after) {
        (Desired::Deleted, None) => true,
        (Desired::Running, Some(now)) => {
            matches!(now.state, State::Running { .. }) && now.incarnation > before.replace_through
        }
        (Desired::Stopped, Some(now)) => !now.state.has_vm(),
        (Desired::Paused, Some(now)) => matches!(now.state, State::Paused { .. }),
        (Desired::Suspended, Some(now)) => now.state == State::Suspended,
        (Desired::Deleted, Some(_)) => false,
        (Desired::Running | Desired::Paused | Desired::Suspended | Desired::Stopped, None) => false,
    }
}

/// Waits until record and node agree, then checks that they agree on the right thing.
async fn check(database: &Path, node: &SimNode, before: &[Workspace], what: &str) {
    let store = testing::open_store(database).await.unwrap();
    let agreed = async {
        loop {
            let now = store.workspaces_after(None, 100).await.unwrap();
            let vms = node.vms();
            let live =
                |id| vms.iter().find(|vm| vm.workspace_id == id && vm.phase != VmPhase::Stopped);
            let agree = now.iter().all(|record| {
                record.is_settled()
                    && live(record.id).map(|vm| vm.incarnation)
                        == record.state.has_vm().then_some(record.incarnation)
            });
            let known = vms.iter().all(|vm| now.iter().any(|record| record.id == vm.workspace_id));
            if agree && known {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let Ok(now) = tokio::time::timeout(BOUND, agreed).await else {
        let now = store.workspaces_after(None, 100).await.unwrap();
        panic!("{what}: never agreed: {now:#?} {:#?} {:?}", node.vms(), node.calls());
    };
    for record in before {
        let after = now.iter().find(|now| now.id == record.id);
        assert!(keeps_the_wish(record, after), "{what}: {record:#?} became {after:#?}");
    }
    assert_eq!(now.len(), before.iter().filter(|w| w.desired != Desired::Deleted).count());
}

/// Plays one use case with a death at each of these operations, one life after the other, and then
/// a life without one. Answers whether the first death came about.
async fn play(case: UseCase, deaths: &[(u32, When)]) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("store.db");
    let clock = TestClock::at(Timestamp::from_second(1_767_225_600).unwrap());
    let node = SimNode::new(clock.as_fn());
    let what = format!("{case:?} {deaths:?}");

    let life = Life::begin(&database, &node, 1, Fuse::at(NEVER, When::Before)).await;
    let id = case.prepare(&life).await;
    life.end().await;

    let mut died = false;
    for (index, (operation, when)) in deaths.iter().enumerate() {
        let fuse = Fuse::at(*operation, *when);
        let life = Life::begin(&database, &node, 2 + index as u64, Arc::clone(&fuse)).await;
        if index == 0 {
            tokio::select! {
                done = tokio::time::timeout(BOUND, case.perform(&life, id)) => {
                    done.unwrap_or_else(|_| panic!("{what}: hangs")).unwrap();
                }
                () = fuse.blown() => died = true,
            }
        } else {
            // A life that recovers; it may be over before its fuse is reached.
            let _alive = tokio::time::timeout(Duration::from_millis(50), fuse.blown()).await;
        }
        life.end().await;
    }

    let before = records(&database).await;
    let life = Life::begin(&database, &node, 99, Fuse::at(NEVER, When::Before)).await;
    check(&database, &node, &before, &what).await;
    life.end().await;
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

#[tokio::test]
async fn dying_anywhere_in_create_loses_nothing() {
    die_everywhere(UseCase::Create, 4).await;
}

#[tokio::test]
async fn dying_anywhere_in_start_loses_nothing() {
    die_everywhere(UseCase::Start, 4).await;
}

#[tokio::test]
async fn dying_anywhere_in_stop_loses_nothing() {
    die_everywhere(UseCase::Stop, 3).await;
}

#[tokio::test]
async fn dying_anywhere_in_restart_loses_nothing() {
    die_everywhere(UseCase::Restart, 6).await;
}

#[tokio::test]
async fn dying_anywhere_in_delete_loses_nothing() {
    die_everywhere(UseCase::Delete, 3).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn dying_again_while_recovering_loses_nothing(
        case in prop_oneof![
            Just(UseCase::Create), Just(UseCase::Start), Just(UseCase::Stop),
            Just(UseCase::Restart), Just(UseCase::Delete),
        ],
        deaths in prop::collection::vec(
            (0_u32..7, prop_oneof![Just(When::Before), Just(When::During), Just(When::After)]),
            2..4,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(case, &deaths));
    }
}
