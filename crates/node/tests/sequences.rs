//! Random lives of workspaces against a model: whatever is asked, in whichever order, whatever fails
//! and whenever the server dies, nothing that was written or remembered is lost, and nothing is left
//! behind.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, test_runner::RngSeed};
use skerry_internal_api::{NodeApi, NodeError, SnapshotContents, StartFrom, StopMode, VmPhase};
use skerry_model::{Incarnation, SnapshotId, WorkspaceId};
use skerry_node::{FaultKind, Node};
use support::{World, machine::names};

/// A disk of more layers is flattened, which the fake machine does without copying.
const MOST_LAYERS: usize = 7;
const GRACEFUL: StopMode = StopMode::Graceful { within: std::time::Duration::from_secs(20) };

/// Points at which a step may fail or the server may die.
const POINTS: [&str; 32] = [
    "pause_noted",
    "paused",
    "cpus_resumed",
    "suspension_noted",
    "suspension_drafted",
    "suspension_frozen",
    "suspension_stopped",
    "suspension_begun",
    "suspension_saved",
    "suspension_sealed",
    "suspension_committed",
    "memory_forgotten",
    "memory_removed",
    "snapshot_drafted",
    "snapshot_noted",
    "snapshot_synced",
    "snapshot_begun",
    "snapshot_converged",
    "overlay_intended",
    "snapshot_frozen",
    "snapshot_stopped",
    "overlay_pushed",
    "snapshot_captured",
    "snapshot_went_on",
    "snapshot_saved",
    "overlay_kept",
    "snapshot_sealed",
    "disk_frozen",
    "release_process",
    "released",
    "tombstone",
    "release_disk",
];

/// Something that is asked of the node.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Start,
    StartFromMemory,
    /// From the snapshot that comes at this place among those there are.
    Restore(usize),
    Stop,
    Kill,
    Pause,
    Resume,
    Suspend,
    Snapshot(SnapshotContents),
    DeleteSnapshot(usize),
    Delete,
}

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// It is asked of a workspace.
    Asked(u128, Ask),
    /// It is asked, and a step fails.
    Failing(u128, Ask, usize),
    /// It is asked, and the server dies in the middle.
    Dying(u128, Ask, usize),
    /// A suspension is asked for, and a resume while it may be under way.
    Reconsidered(u128),
    /// The guest remembers and writes something.
    Used(u128),
    /// The VM dies.
    Crashed(u128),
    /// The server ends, in good order or not, and starts again.
    Restarted(bool),
}

fn asks() -> impl Strategy<Value = Ask> {
    prop_oneof![
        4 => Just(Ask::Start),
        3 => Just(Ask::StartFromMemory),
        2 => (0_usize..4).prop_map(Ask::Restore),
        1 => Just(Ask::Stop),
        1 => Just(Ask::Kill),
        2 => Just(Ask::Pause),
        2 => Just(Ask::Resume),
        4 => Just(Ask::Suspend),
        3 => Just(Ask::Snapshot(SnapshotContents::DiskAndMemory)),
        2 => Just(Ask::Snapshot(SnapshotContents::Disk)),
        1 => (0_usize..4).prop_map(Ask::DeleteSnapshot),
        1 => Just(Ask::Delete),
    ]
}

fn events() -> impl Strategy<Value = Event> {
    let whose = prop_oneof![3 => Just(1_u128), 1 => Just(2_u128)];
    prop_oneof![
        8 => (whose.clone(), asks()).prop_map(|(whose, ask)| Event::Asked(whose, ask)),
        3 => (whose.clone(), asks(), 0..POINTS.len())
            .prop_map(|(whose, ask, point)| Event::Failing(whose, ask, point)),
        3 => (whose.clone(), asks(), 0..POINTS.len())
            .prop_map(|(whose, ask, point)| Event::Dying(whose, ask, point)),
        1 => whose.clone().prop_map(Event::Reconsidered),
        4 => whose.clone().prop_map(Event::Used),
        1 => whose.prop_map(Event::Crashed),
        1 => any::<bool>().prop_map(Event::Restarted),
    ]
}

/// A workspace as it should be.
#[derive(Clone, Debug, Default)]
struct Workspace {
    /// `None` when nothing is there.
    phase: Option<VmPhase>,
    incarnation: u64,
    memory: Vec<u64>,
    disk: Vec<u64>,
}

/// A snapshot as it should be.
#[derive(Clone, Debug)]
struct Kept {
    memory: Vec<u64>,
    disk: Vec<u64>,
}

struct Model {
    workspaces: BTreeMap<u128, Workspace>,
    snapshots: BTreeMap<u128, Kept>,
    /// Numbers for snapshots and for what guests write.
    next: u64,
}

/// The node's answer to what was asked, as far as it matters.
type Answer = Result<(), NodeError>;

struct Lives {
    world: World,
    node: Option<Node>,
    model: Model,
}

impl Lives {
    async fn new() -> Self {
        let world = World::new();
        let node = Some(world.open().await);
        let workspaces = [1, 2].map(|number| (number, Workspace::default())).into();
        let model = Model { workspaces, snapshots: BTreeMap::new(), next: 1000 };
        Self { world, node, model }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn of(&mut self, number: u128) -> &mut Workspace {
        self.model.workspaces.get_mut(&number).unwrap()
    }

    async fn happen(&mut self, event: Event) {
        match event {
            Event::Asked(number, ask) => {
                let Some(ask) = self.sensible(number, ask).await else { return };
                let answer = self.ask(number, &ask).await;
                self.expect(number, &ask, answer);
            }
            Event::Failing(number, ask, point) => {
                let Some(ask) = self.sensible(number, ask).await else { return };
                assert!(self.world.faults.plan(POINTS[point], FaultKind::Fail));
                let answer = self.ask(number, &ask).await;
                let met = !self.world.faults.pending();
                self.world.faults.forget_pending();
                if met && answer.is_err() {
                    self.finish(number, &ask).await;
                } else {
                    self.expect(number, &ask, answer);
                }
            }
            Event::Dying(number, ask, point) => {
                let Some(ask) = self.sensible(number, ask).await else { return };
                self.die_while(number, &ask, POINTS[point]).await;
            }
            Event::Reconsidered(number) => self.reconsider(number).await,
            Event::Used(number) => self.use_guest(number),
            Event::Crashed(number) => self.crash(number).await,
            Event::Restarted(in_good_order) => self.restart(in_good_order).await,
        }
        self.check().await;
    }

    /// What is asked for in this state, with its identifiers; nothing where it makes no sense.
    async fn sensible(&mut self, number: u128, ask: Ask) -> Option<Asked> {
        // A start that failed counts as the last one.
        let found = self.node().inspect(WorkspaceId::from_u128(number)).await;
        let found = found.map_or(0, |report| report.incarnation.0);
        let incarnation = found.max(self.of(number).incarnation);
        let snapshot = |place: usize| self.model.snapshots.keys().nth(place).copied();
        Some(match ask {
            Ask::Start => Asked::Run(incarnation + 1, StartFrom::Disk),
            Ask::StartFromMemory => Asked::Run(incarnation + 1, StartFrom::SavedMemory),
            Ask::Restore(place) => {
                let snapshot_id = SnapshotId::from_u128(snapshot(place)?);
                Asked::Run(incarnation + 1, StartFrom::Snapshot { snapshot_id })
            }
            Ask::Stop => Asked::Stop(incarnation, GRACEFUL),
            Ask::Kill => Asked::Stop(incarnation, StopMode::Kill),
            Ask::Pause => Asked::Pause(incarnation),
            Ask::Resume => Asked::Resume(incarnation),
            Ask::Suspend => Asked::Suspend(incarnation),
            Ask::Snapshot(contents) => {
                let present = self.model.workspaces[&number].phase.is_some();
                if present && self.world.recorded_disk(number).len() > MOST_LAYERS {
                    return None;
                }
                self.model.next += 1;
                Asked::Snapshot(u128::from(self.model.next), contents)
            }
            Ask::DeleteSnapshot(place) => Asked::DeleteSnapshot(snapshot(place)?),
            Ask::Delete => Asked::Delete,
        })
    }

    async fn ask(&self, number: u128, ask: &Asked) -> Answer {
        ask_node(self.node(), &self.world, number, ask).await
    }

    /// Changes the model by what was asked, and compares the answer.
    fn expect(&mut self, number: u128, ask: &Asked, answer: Answer) {
        let before = self.model.workspaces[&number].clone();
        let alive = matches!(before.phase, Some(VmPhase::Running | VmPhase::Paused));
        let not_there =
            || if before.phase.is_none() { NodeError::NoSuchVm } else { NodeError::NotRunning };
        let mut after = before.clone();
        let expected = match ask {
            Asked::Run(_, StartFrom::SavedMemory) if before.phase != Some(VmPhase::Suspended) => {
                assert!(matches!(answer, Err(NodeError::SavedStateUnusable(_))), "{answer:?}");
                return;
            }
            Asked::Run(incarnation, from) => {
                after.incarnation = *incarnation;
                after.phase = Some(VmPhase::Running);
                match from {
                    StartFrom::Disk => after.memory.clear(),
                    StartFrom::SavedMemory => {}
                    StartFrom::Snapshot { snapshot_id } => {
                        let kept = &self.model.snapshots[&number_of(*snapshot_id)];
                        after.memory.clone_from(&kept.memory);
                        after.disk.clone_from(&kept.disk);
                    }
                }
                Ok(())
            }
            Asked::Stop(..) => {
                after.phase = before.phase.map(|_| VmPhase::Stopped);
                after.memory.clear();
                Ok(())
            }
            Asked::Pause(_) | Asked::Resume(_) | Asked::Suspend(_) => {
                let phase = match ask {
                    Asked::Pause(_) => VmPhase::Paused,
                    Asked::Resume(_) => VmPhase::Running,
                    _ => VmPhase::Suspended,
                };
                if alive || before.phase == Some(phase) {
                    after.phase = Some(phase);
                    Ok(())
                } else {
                    Err(not_there())
                }
            }
            Asked::Snapshot(id, contents) => match (alive, contents) {
                (true, _) | (false, SnapshotContents::Disk) if before.phase.is_some() => {
                    let memory = match contents {
                        SnapshotContents::DiskAndMemory => before.memory.clone(),
                        SnapshotContents::Disk => Vec::new(),
                    };
                    self.model.snapshots.insert(*id, Kept { memory, disk: before.disk.clone() });
                    Ok(())
                }
                _ => Err(not_there()),
            },
            Asked::DeleteSnapshot(id) => {
                self.model.snapshots.remove(id);
                Ok(())
            }
            Asked::Delete => {
                after = Workspace { incarnation: before.incarnation, ..Workspace::default() };
                Ok(())
            }
        };
        assert_eq!(answer, expected, "{ask:?} of {before:?}");
        *self.of(number) = after;
    }

    /// What failed in the middle is whole when it is asked for again, whichever way it went.
    async fn finish(&mut self, number: u128, ask: &Asked) {
        let found = self.node().inspect(WorkspaceId::from_u128(number)).await;
        let phase = found.as_ref().map(|report| report.phase);
        match (ask, phase) {
            // It went on from its memory, or from a snapshot's, and stands still.
            (Asked::Run(incarnation, _), Some(VmPhase::Paused))
                if found.as_ref().is_some_and(|found| found.incarnation.0 == *incarnation) =>
            {
                self.expect(number, ask, Ok(()));
                let resumed = self.ask(number, &Asked::Resume(*incarnation)).await;
                assert_eq!(resumed, Ok(()));
            }
            // It is complete: only its answer was lost.
            (Asked::Run(incarnation, _), Some(VmPhase::Running))
                if found.as_ref().is_some_and(|found| found.incarnation.0 == *incarnation) =>
            {
                let answer = self.ask(number, ask).await;
                self.expect(number, ask, answer);
            }
            // A start cannot be told from the end of what it replaced.
            (Asked::Run(incarnation, from), _) => {
                let again = Asked::Run(incarnation + 1, *from);
                let answer = self.ask(number, &again).await;
                self.expect_start_again(number, &again, phase, answer);
            }
            _ => {
                let answer = self.ask(number, ask).await;
                self.expect(number, ask, answer);
            }
        }
    }

    /// A start that failed may have ended what ran before it.
    fn expect_start_again(
        &mut self,
        number: u128,
        ask: &Asked,
        phase: Option<VmPhase>,
        answer: Answer,
    ) {
        let workspace = self.of(number);
        if matches!(phase, Some(VmPhase::Stopped | VmPhase::Stopping)) {
            workspace.phase = Some(VmPhase::Stopped);
            workspace.memory.clear();
        }
        self.expect(number, ask, answer);
    }

    async fn die_while(&mut self, number: u128, ask: &Asked, point: &str) {
        assert!(self.world.faults.plan(point, FaultKind::Hang));
        let node = self.node.take().unwrap();
        let ended = tokio::select! {
            answer = ask_node(&node, &self.world, number, ask) => Some(answer),
            () = self.world.faults.happened(point) => None,
        };
        match ended {
            Some(answer) => {
                self.node = Some(node);
                self.world.faults.forget_pending();
                self.expect(number, ask, answer);
            }
            None => {
                node.abandon().await;
                self.node = Some(self.world.open().await);
                self.finish(number, ask).await;
            }
        }
    }

    async fn reconsider(&mut self, number: u128) {
        let workspace = self.model.workspaces[&number].clone();
        if !matches!(workspace.phase, Some(VmPhase::Running | VmPhase::Paused)) {
            return;
        }
        let (suspend, resume) =
            (Asked::Suspend(workspace.incarnation), Asked::Resume(workspace.incarnation));
        let (suspended, resumed) =
            tokio::join!(self.ask(number, &suspend), self.ask(number, &resume));
        match (&suspended, &resumed) {
            (Err(NodeError::Cancelled), Ok(())) => self.expect(number, &resume, resumed),
            (Ok(()), Ok(()) | Err(NodeError::NotRunning)) => {
                self.expect(number, &suspend, suspended);
            }
            other => panic!("{other:?}"),
        }
    }

    fn use_guest(&mut self, number: u128) {
        if self.model.workspaces[&number].phase != Some(VmPhase::Running) {
            return;
        }
        self.model.next += 1;
        let next = self.model.next;
        self.world.remember(number, next);
        self.world.write(number, next);
        let workspace = self.of(number);
        workspace.memory.push(next);
        workspace.disk.push(next);
    }

    async fn crash(&mut self, number: u128) {
        let Some(process) = self.world.process(number) else { return };
        let mut events = self.node().subscribe();
        self.world.host.crash(&process).await;
        events.recv().await.unwrap();
        let workspace = self.of(number);
        workspace.phase = Some(VmPhase::Stopped);
        workspace.memory.clear();
    }

    async fn restart(&mut self, in_good_order: bool) {
        let node = self.node.take().unwrap();
        if in_good_order {
            node.shutdown().await;
            drop(node);
        } else {
            node.abandon().await;
        }
        self.node = Some(self.world.open().await);
    }

    /// Everything is as the model says, and nothing else is there.
    async fn check(&self) {
        let mut layers = BTreeSet::new();
        let mut alive = 0;
        for (number, workspace) in &self.model.workspaces {
            let found = self.node().inspect(WorkspaceId::from_u128(*number)).await;
            assert_eq!(found.map(|found| found.phase), workspace.phase, "workspace {number}");
            let Some(phase) = workspace.phase else {
                assert_eq!(self.world.left_alone(*number), Vec::<String>::new());
                continue;
            };
            assert_eq!(self.world.written(*number), workspace.disk, "workspace {number}");
            layers.extend(self.world.layers_of_workspace(*number));
            match phase {
                VmPhase::Running | VmPhase::Paused => {
                    assert_eq!(self.world.remembered(*number), workspace.memory);
                    alive += 1;
                }
                _ => assert!(self.world.process(*number).is_none()),
            }
            let saved = self.world.vm_dir(*number).join("suspended").exists();
            assert_eq!(saved, phase == VmPhase::Suspended, "workspace {number}");
        }
        assert_eq!(self.world.host.running().len(), alive);
        let promised = self.node().capacity().await.memory_promised_mib;
        assert_eq!(promised, 256 * alive as u64);
        let found = self.node().snapshots().await;
        let found: BTreeSet<u128> = found.iter().map(|info| number_of(info.id)).collect();
        assert_eq!(found, self.model.snapshots.keys().copied().collect());
        assert_eq!(self.world.snapshot_places().len(), found.len());
        for (number, kept) in &self.model.snapshots {
            assert_eq!(self.world.kept(*number), kept.disk, "snapshot {number}");
            layers.extend(self.world.layers_of_snapshot(*number));
        }
        assert_eq!(self.world.layers().into_iter().collect::<BTreeSet<_>>(), layers);
    }

    /// Removes everything, and looks for what is left.
    async fn end(&mut self) {
        for number in [1, 2] {
            self.node().ensure_deleted(WorkspaceId::from_u128(number)).await.unwrap();
        }
        for number in self.model.snapshots.keys() {
            let id = SnapshotId::from_u128(*number);
            self.node().ensure_snapshot_deleted(id).await.unwrap();
        }
        for place in ["vms", "snapshots", "layers", "pool"] {
            assert_eq!(names(&self.world.data_dir().join(place)), Vec::<String>::new());
        }
        assert_eq!(names(&self.world.memory_dir()), Vec::<String>::new());
        assert_eq!(self.world.groups(), Vec::<String>::new());
        assert_eq!(self.world.host.running(), []);
        assert_eq!(self.node().capacity().await.memory_promised_mib, 0);
    }
}

/// What is asked, with its identifiers.
#[derive(Clone, Debug)]
enum Asked {
    Run(u64, StartFrom),
    Stop(u64, StopMode),
    Pause(u64),
    Resume(u64),
    Suspend(u64),
    Snapshot(u128, SnapshotContents),
    DeleteSnapshot(u128),
    Delete,
}

async fn ask_node(node: &Node, world: &World, number: u128, ask: &Asked) -> Answer {
    let id = WorkspaceId::from_u128(number);
    match ask {
        Asked::Run(incarnation, start_from) => {
            let mut spec = world.spec(number, *incarnation);
            spec.start_from = *start_from;
            node.ensure_running(spec).await.map(drop)
        }
        Asked::Stop(incarnation, mode) => {
            node.ensure_stopped(id, Incarnation(*incarnation), *mode).await
        }
        Asked::Pause(incarnation) => {
            node.ensure_paused(id, Incarnation(*incarnation)).await.map(drop)
        }
        Asked::Resume(incarnation) => {
            node.ensure_resumed(id, Incarnation(*incarnation)).await.map(drop)
        }
        Asked::Suspend(incarnation) => {
            node.ensure_suspended(id, Incarnation(*incarnation)).await.map(drop)
        }
        Asked::Snapshot(number, contents) => {
            node.take_snapshot(id, SnapshotId::from_u128(*number), *contents).await.map(drop)
        }
        Asked::DeleteSnapshot(number) => {
            node.ensure_snapshot_deleted(SnapshotId::from_u128(*number)).await
        }
        Asked::Delete => node.ensure_deleted(id).await,
    }
}

fn number_of(id: SnapshotId) -> u128 {
    id.as_uuid().as_u128()
}

/// Lives these events from the first start to the last deletion.
fn live(events: Vec<Event>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(support::bounded(async {
        let mut lives = Lives::new().await;
        lives.happen(Event::Asked(1, Ask::Start)).await;
        lives.happen(Event::Used(1)).await;
        for event in events {
            lives.happen(event).await;
        }
        lives.end().await;
    }));
}

#[test]
fn a_start_from_memory_or_a_snapshot_that_fails_or_dies_at_any_point_can_be_asked_for_again() {
    let kept = Event::Asked(1, Ask::Snapshot(SnapshotContents::DiskAndMemory));
    let ways = [(Event::Asked(1, Ask::Suspend), Ask::StartFromMemory), (kept, Ask::Restore(0))];
    for (before, ask) in ways {
        for point in points_of_starts() {
            live(vec![before, Event::Used(1), Event::Failing(1, ask, point), Event::Used(1)]);
            live(vec![before, Event::Used(1), Event::Dying(1, ask, point), Event::Used(1)]);
        }
    }
}

/// The points that a start passes.
fn points_of_starts() -> impl Iterator<Item = usize> {
    let passed = |point: &&str| {
        ["cpus_resumed", "memory_forgotten", "memory_removed"].contains(point)
            || point.starts_with("release")
    };
    (0..POINTS.len()).filter(move |point| passed(&POINTS[*point]))
}

/// 1,000 and more by the environment, where there is time.
fn cases() -> u32 {
    let wanted = std::env::var("PROPTEST_CASES").ok();
    wanted.and_then(|wanted| wanted.parse().ok()).unwrap_or(40)
}

/// Ever the same lives, so that a change and not chance decides; others where more of them are asked
/// for.
fn seed() -> RngSeed {
    match std::env::var("PROPTEST_CASES") {
        Ok(_) => RngSeed::Random,
        Err(_) => RngSeed::Fixed(1),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        rng_seed: seed(),
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_life_loses_what_was_written_or_leaves_anything_behind(
        events in proptest::collection::vec(events(), 1..16),
    ) {
        live(events);
    }
}
