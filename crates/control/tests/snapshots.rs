//! Snapshots, restoring, creating from them and forking, on the simulated node.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ground;

use std::time::Duration;

use ground::{
    LONG, both, by_id, disk_only, failure, is_running, lively, now, of, provisioned, put,
    refused_by_state, running, until, words,
};
use skerry_control::{
    Caller, CreateSnapshot, CreateWorkspace, ForkWorkspace, ListSnapshots, ListWorkspaces,
    RestoreWorkspace, SnapshotRef, StartPolicy, UpdateSnapshot, Wait,
    internal_api::{NodeApi as _, NodeError},
    sim_node::Point,
    testing::{self, TestControl},
};
use skerry_model::{
    AfterRestore, Cause, Desired, ErrorKind, Expiry, ExpiryAction, Snapshot, SnapshotContents,
    SnapshotId, SnapshotOnTerminate, SnapshotPurpose, SnapshotState, StartFrom, State, Workspace,
    error::Limit,
};

async fn taken(test: &TestControl, caller: &Caller, workspace: &Workspace) -> Snapshot {
    let made = test.control.create_snapshot(caller, &by_id(workspace), of(None), LONG).await;
    let made = made.unwrap();
    assert_eq!(made.state, SnapshotState::Ready);
    made
}

fn from(snapshot: &Snapshot) -> CreateWorkspace {
    CreateWorkspace { from_snapshot: Some(SnapshotRef::Id(snapshot.id)), ..running() }
}

fn restored(snapshot: &Snapshot, then: AfterRestore) -> RestoreWorkspace {
    RestoreWorkspace { snapshot: SnapshotRef::Id(snapshot.id), then }
}

fn forks(count: u32) -> ForkWorkspace {
    ForkWorkspace {
        count,
        name: None,
        metadata: None,
        snapshot_name: None,
        start: StartPolicy::Now(LONG),
    }
}

async fn all(test: &TestControl, caller: &Caller) -> Vec<Snapshot> {
    test.control.list_snapshots(caller, &ListSnapshots::default()).await.unwrap().items
}

async fn on_node(test: &TestControl) -> Vec<SnapshotId> {
    test.node.snapshots().await.iter().map(|info| info.id).collect()
}

/// Waits until there is no record of the snapshot any more.
async fn until_gone(test: &TestControl, caller: &Caller, id: SnapshotId) {
    let gone = async {
        while test.control.get_snapshot(caller, &SnapshotRef::Id(id)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_of_what_runs_has_its_memory_and_the_source_goes_on() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    let request = CreateSnapshot { name: Some("before".to_owned()), ..of(None) };
    let which = by_id(&made);
    let snapshot = test.control.create_snapshot(&caller, &which, request, LONG).await.unwrap();
    assert_eq!(snapshot.state, SnapshotState::Ready);
    assert_eq!(snapshot.contents, SnapshotContents::DiskAndMemory);
    assert_eq!(snapshot.shape, made.spec.shape);
    assert!(snapshot.size_bytes > made.spec.shape.memory_mib.bytes());
    assert_eq!(snapshot.blackout, Some(Duration::from_millis(1)));
    assert_eq!(snapshot.taken_at, Some(test.clock.now()));
    assert_eq!(now(&test, &made).await, made);
    assert_eq!(on_node(&test).await, [snapshot.id]);
    for which in [
        SnapshotRef::Id(snapshot.id),
        SnapshotRef::Name("before".to_owned()),
        SnapshotRef::LatestOf(made.id),
    ] {
        assert_eq!(test.control.get_snapshot(&caller, &which).await.unwrap(), snapshot);
    }
    assert_eq!(test.control.quota(&caller).await.unwrap().usage.snapshots, 1);
}

#[tokio::test]
async fn what_a_snapshot_can_contain_depends_on_the_state() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let control = &test.control;
    let cold = control.create_workspace(&caller, provisioned()).await.unwrap();
    let error = control.create_snapshot(&caller, &by_id(&cold), of(None), LONG).await.unwrap_err();
    assert_eq!(refused_by_state(&error), "it has no disk before its first start");
    let made = lively(&test, &caller, running()).await;
    let which = &by_id(&made);
    let mut kinds = Vec::new();
    let disk = Some(SnapshotContents::Disk);
    let first = control.create_snapshot(&caller, which, of(disk), LONG).await.unwrap();
    kinds.push(first.contents);
    control.pause_workspace(&caller, which, LONG).await.unwrap();
    kinds.push(taken(&test, &caller, &made).await.contents);
    control.suspend_workspace(&caller, which, LONG).await.unwrap();
    kinds.push(taken(&test, &caller, &made).await.contents);
    control.stop_workspace(&caller, which, LONG).await.unwrap();
    kinds.push(taken(&test, &caller, &made).await.contents);
    let (memory, disk) = (SnapshotContents::DiskAndMemory, SnapshotContents::Disk);
    assert_eq!(kinds, [disk, memory, disk, disk]);
    let error = control.create_snapshot(&caller, which, of(Some(memory)), LONG).await.unwrap_err();
    let why = "a snapshot with memory needs a running or paused workspace";
    assert_eq!(refused_by_state(&error), why);
}

#[tokio::test]
async fn a_workspace_made_from_a_snapshot_goes_on_where_that_was() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    let snapshot = taken(&test, &caller, &source).await;
    put(&test, &source, "later");
    let made = test.control.create_workspace(&caller, from(&snapshot)).await.unwrap();
    assert_eq!(words(&test, &made), both("first"));
    assert_eq!(made.spec.shape, source.spec.shape);
    assert_eq!(made.spec.image, source.spec.image);
    assert_ne!(made.preview_token, source.preview_token);
    assert_eq!(words(&test, &source), both("later"));
    // A machine of another size has another memory.
    let larger = CreateWorkspace { memory_mib: Some(1024), ..from(&snapshot) };
    let larger = test.control.create_workspace(&caller, larger).await.unwrap();
    assert_eq!(words(&test, &larger), disk_only("first"));
}

#[tokio::test]
async fn what_cannot_be_made_from_a_snapshot_is_refused() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let (stranger, _) = test.other_caller("stranger").await;
    let source = lively(&test, &caller, running()).await;
    let snapshot = taken(&test, &caller, &source).await;
    let control = &test.control;
    let small = CreateWorkspace { disk_mib: Some(64), ..from(&snapshot) };
    let both = CreateWorkspace { image: Some("base".to_owned()), ..from(&snapshot) };
    for (field, request) in [("disk_mib", small), ("image", both)] {
        let error = control.create_workspace(&caller, request).await.unwrap_err();
        let ErrorKind::Invalid(invalid) = error.kind() else { panic!("{error}") };
        assert_eq!(invalid.field, field);
    }
    let missing = ErrorKind::NotFound { what: "snapshot" };
    let error = control.create_workspace(&stranger, from(&snapshot)).await.unwrap_err();
    assert_eq!(*error.kind(), missing);
    let id = SnapshotRef::Id(snapshot.id);
    let outcomes = [
        control.get_snapshot(&stranger, &id).await.map(drop),
        control.delete_snapshot(&stranger, &id, LONG).await.map(drop),
        control.update_snapshot(&stranger, &id, UpdateSnapshot::default()).await.map(drop),
    ];
    for outcome in outcomes {
        assert_eq!(*outcome.unwrap_err().kind(), missing);
    }
    assert_eq!(all(&test, &stranger).await, []);
    test.node.hang(Point::TakeSnapshot);
    let which = by_id(&source);
    let early = control.create_snapshot(&caller, &which, of(None), Wait::No).await.unwrap();
    let error = control.create_workspace(&caller, from(&early)).await.unwrap_err();
    let why = "the snapshot is creating, not ready".to_owned();
    assert_eq!(*error.kind(), ErrorKind::Conflict(why));
    test.node.release(Point::TakeSnapshot);
}

#[tokio::test]
async fn a_snapshot_cannot_be_deleted_while_a_workspace_cannot_start_without_it() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    let snapshot = taken(&test, &caller, &source).await;
    let request = CreateWorkspace {
        start: StartPolicy::Later,
        slug: Some("not-yet".to_owned()),
        ..from(&snapshot)
    };
    let made = test.control.create_workspace(&caller, request).await.unwrap();
    let id = SnapshotRef::Id(snapshot.id);
    let error = test.control.delete_snapshot(&caller, &id, LONG).await.unwrap_err();
    let ErrorKind::Conflict(why) = error.kind() else { panic!("{error}") };
    assert!(why.contains("not-yet"), "{why}");
    test.control.start_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    let deleted = test.control.delete_snapshot(&caller, &id, LONG).await.unwrap();
    assert!(deleted.complete);
    assert_eq!(on_node(&test).await, []);
    assert_eq!(words(&test, &made), both("first"));
    assert_eq!(test.control.quota(&caller).await.unwrap().usage.snapshots, 0);
}

#[tokio::test]
async fn a_snapshot_outlives_its_workspace_and_can_be_renamed() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    let snapshot = taken(&test, &caller, &source).await;
    test.control.delete_workspace(&caller, &by_id(&source), LONG).await.unwrap();
    let update = UpdateSnapshot {
        name: Some("the good one".to_owned()),
        metadata: Some([("k".to_owned(), 1.into())].into()),
    };
    let id = SnapshotRef::Id(snapshot.id);
    let renamed = test.control.update_snapshot(&caller, &id, update).await.unwrap();
    assert_eq!(renamed.name.as_str(), "the good one");
    assert_eq!(renamed.state, SnapshotState::Ready);
    let made = test.control.create_workspace(&caller, from(&renamed)).await.unwrap();
    assert_eq!(words(&test, &made), both("first"));
}

#[tokio::test]
async fn lists_of_snapshots_are_newest_first_and_filtered() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let one = lively(&test, &caller, running()).await;
    let two = lively(&test, &caller, running()).await;
    let first = taken(&test, &caller, &one).await;
    let second = taken(&test, &caller, &two).await;
    let third = taken(&test, &caller, &one).await;
    let every = ListSnapshots::default();
    let cases = [
        (every.clone(), vec![third.id, second.id, first.id], 3),
        (
            ListSnapshots { workspace_id: Some(one.id), ..every.clone() },
            vec![third.id, first.id],
            2,
        ),
        (ListSnapshots { limit: Some(1), offset: 1, ..every.clone() }, vec![second.id], 3),
        (ListSnapshots { purposes: vec![SnapshotPurpose::Fork], ..every.clone() }, vec![], 0),
        (ListSnapshots { states: vec!["creating"], ..every }, vec![], 0),
    ];
    for (filter, ids, total) in cases {
        let page = test.control.list_snapshots(&caller, &filter).await.unwrap();
        let found: Vec<_> = page.items.iter().map(|snapshot| snapshot.id).collect();
        assert_eq!((found, page.total), (ids, total), "{filter:?}");
    }
}

#[tokio::test]
async fn a_snapshot_that_fails_is_tried_again_and_then_says_why() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    test.node.fail_next(Point::TakeSnapshot, NodeError::Cancelled);
    taken(&test, &caller, &source).await;
    let full = NodeError::NoCapacity("the disk is full".to_owned());
    test.node.fail_next(Point::TakeSnapshot, full);
    let made = test.control.create_snapshot(&caller, &by_id(&source), of(None), LONG).await;
    let failed = made.unwrap();
    let SnapshotState::Failed(why) = &failed.state else { panic!("{:?}", failed.state) };
    assert_eq!(
        (why.code.as_str(), why.message.as_str()),
        ("no_capacity", "no capacity: the disk is full")
    );
    assert!(is_running(&now(&test, &source).await));
    let gone = test.control.delete_snapshot(&caller, &SnapshotRef::Id(failed.id), LONG).await;
    assert!(gone.unwrap().complete);
    assert_eq!(on_node(&test).await.len(), 1);
}

#[tokio::test]
async fn a_deletion_gives_up_a_snapshot_under_way() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    test.node.hang(Point::TakeSnapshot);
    let which = by_id(&source);
    let made = test.control.create_snapshot(&caller, &which, of(None), Wait::No).await.unwrap();
    let gone = test.control.delete_snapshot(&caller, &SnapshotRef::Id(made.id), LONG).await;
    assert!(gone.unwrap().complete);
    test.node.release(Point::TakeSnapshot);
    test.quiet().await;
    assert_eq!(on_node(&test).await, []);
}

#[tokio::test]
async fn an_account_has_no_more_snapshots_than_its_plan_allows() {
    let mut config = testing::config();
    config.plan.max_snapshots = 1;
    let test = testing::open_with(config).await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    taken(&test, &caller, &source).await;
    let error = test.control.create_snapshot(&caller, &by_id(&source), of(None), LONG).await;
    let error = error.unwrap_err();
    let ErrorKind::Quota { limit, current, max, .. } = error.kind() else { panic!("{error}") };
    assert_eq!((*limit, *current, *max), (Limit::SnapshotCount, 1, 1));
    // A fork's own snapshot is none of the tenant's.
    test.control.fork_workspace(&caller, &by_id(&source), forks(1)).await.unwrap();
}

#[tokio::test]
async fn a_restore_goes_back_in_place_as_a_new_start() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    let snapshot = taken(&test, &caller, &made).await;
    put(&test, &made, "later");
    let request = restored(&snapshot, AfterRestore::AsBefore);
    let back = test.control.restore_workspace(&caller, &by_id(&made), request, LONG).await.unwrap();
    assert!(is_running(&back));
    assert_eq!(back.incarnation.0, 2);
    assert_eq!(words(&test, &made), both("first"));
    assert_eq!(
        test.node.calls()[2..],
        ["ensure_stopped #1 gracefully", "ensure_running #2 from a snapshot"]
    );
    // What is suspended goes back too, without its saved memory.
    put(&test, &made, "later");
    test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    let request = restored(&snapshot, AfterRestore::Run);
    let back = test.control.restore_workspace(&caller, &by_id(&made), request, LONG).await.unwrap();
    assert!(is_running(&back) && !test.node.has_saved_memory(made.id));
    assert_eq!(words(&test, &made), both("first"));
}

#[tokio::test]
async fn a_workspace_at_rest_is_restored_by_its_next_start() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    let which = &by_id(&made);
    let snapshot = taken(&test, &caller, &made).await;
    put(&test, &made, "later");
    test.control.stop_workspace(&caller, which, LONG).await.unwrap();
    let request = restored(&snapshot, AfterRestore::AsBefore);
    let waiting = test.control.restore_workspace(&caller, which, request, LONG).await.unwrap();
    assert_eq!((&waiting.state, waiting.desired), (&State::Stopped, Desired::Stopped));
    let error = test.control.create_snapshot(&caller, which, of(None), LONG).await.unwrap_err();
    assert!(refused_by_state(&error).contains("start it first"), "{error}");
    let id = SnapshotRef::Id(snapshot.id);
    let error = test.control.delete_snapshot(&caller, &id, LONG).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Conflict(_)), "{error}");
    test.control.start_workspace(&caller, which, LONG).await.unwrap();
    assert_eq!(words(&test, &made), both("first"));
}

#[tokio::test]
async fn a_restore_that_fails_leaves_what_was_there_and_a_stop_goes_back_to_it() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    let which = &by_id(&made);
    let snapshot = taken(&test, &caller, &made).await;
    put(&test, &made, "later");
    test.node.damage_snapshot(snapshot.id);
    let request = restored(&snapshot, AfterRestore::Run);
    let failed = test.control.restore_workspace(&caller, which, request, LONG).await.unwrap();
    assert_eq!(failure(&failed).code, "saved_state_unusable");
    assert_eq!(failed.needed_snapshot(), Some(snapshot.id));
    test.control.stop_workspace(&caller, which, LONG).await.unwrap();
    let back = test.control.start_workspace(&caller, which, LONG).await.unwrap();
    assert!(is_running(&back));
    assert_eq!(words(&test, &made), disk_only("later"));
}

#[tokio::test]
async fn forks_go_on_where_the_source_is_and_leave_no_snapshot() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    let request = ForkWorkspace { name: Some("fork".to_owned()), ..forks(3) };
    let forked = test.control.fork_workspace(&caller, &by_id(&source), request).await.unwrap();
    let names: Vec<_> = forked.workspaces.iter().map(|fork| fork.name.as_str()).collect();
    assert_eq!(names, ["fork-1", "fork-2", "fork-3"]);
    for fork in &forked.workspaces {
        assert!(is_running(fork));
        assert_eq!(words(&test, fork), both("first"));
        assert_eq!(fork.project_id, source.project_id);
        put(&test, fork, fork.name.as_str());
    }
    assert_eq!(words(&test, &source), both("first"));
    assert_eq!(now(&test, &source).await, source);
    until_gone(&test, &caller, forked.snapshot_id).await;
    assert_eq!(on_node(&test).await, []);
}

#[tokio::test]
async fn a_snapshot_that_a_fork_is_to_keep_is_one_of_the_tenants() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    let request = ForkWorkspace { snapshot_name: Some("kept".to_owned()), ..forks(1) };
    let forked = test.control.fork_workspace(&caller, &by_id(&source), request).await.unwrap();
    test.quiet().await;
    let kept = test.control.get_snapshot(&caller, &SnapshotRef::Name("kept".to_owned())).await;
    let kept = kept.unwrap();
    assert_eq!((kept.id, kept.purpose), (forked.snapshot_id, SnapshotPurpose::User));
    assert_eq!(kept.state, SnapshotState::Ready);
}

#[tokio::test]
async fn forks_of_what_is_at_rest_boot_from_its_disk() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    test.control.stop_workspace(&caller, &by_id(&source), LONG).await.unwrap();
    let forked = test.control.fork_workspace(&caller, &by_id(&source), forks(1)).await.unwrap();
    assert_eq!(words(&test, &forked.workspaces[0]), disk_only("first"));
}

#[tokio::test]
async fn forks_are_admitted_all_or_none() {
    let mut config = testing::config();
    config.plan.max_workspaces = 3;
    let test = testing::open_with(config).await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    let which = by_id(&source);
    let error = test.control.fork_workspace(&caller, &which, forks(3)).await.unwrap_err();
    let ErrorKind::Quota { limit, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(*limit, Limit::WorkspaceCount);
    let page = test.control.list_workspaces(&caller, &ListWorkspaces::default()).await.unwrap();
    assert_eq!((page.total, all(&test, &caller).await), (1, vec![]));
    assert!(!test.node.calls().iter().any(|call| call.starts_with("take_snapshot")));
    test.control.fork_workspace(&caller, &which, forks(2)).await.unwrap();
    for count in [0, 257] {
        let error = test.control.fork_workspace(&caller, &which, forks(count)).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Invalid(_)), "{error}");
    }
}

#[tokio::test]
async fn forks_whose_snapshot_fails_are_removed_again() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    let full = NodeError::NoCapacity("the disk is full".to_owned());
    test.node.fail_next(Point::TakeSnapshot, full);
    let error = test.control.fork_workspace(&caller, &by_id(&source), forks(3)).await.unwrap_err();
    let ErrorKind::Unavailable(why) = error.kind() else { panic!("{error}") };
    assert!(why.contains("the disk is full"), "{why}");
    test.quiet().await;
    let page = test.control.list_workspaces(&caller, &ListWorkspaces::default()).await.unwrap();
    assert_eq!(page.items, [source]);
    // What is left of it goes with the next comparison.
    let failed = all(&test, &caller).await;
    let test = test.reopen().await;
    for snapshot in failed {
        until_gone(&test, &caller, snapshot.id).await;
    }
}

#[tokio::test]
async fn a_fork_that_fails_to_start_can_be_started_again() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    let slow = NodeError::Timeout { step: "restore", bound_seconds: 60 };
    test.node.fail_next(Point::EnsureRunning, slow);
    let forked = test.control.fork_workspace(&caller, &by_id(&source), forks(3)).await.unwrap();
    let (failed, up): (Vec<_>, Vec<_>) =
        forked.workspaces.iter().partition(|fork| matches!(fork.state, State::Failed(_)));
    assert_eq!((failed.len(), up.len()), (1, 2));
    test.quiet().await;
    let test = test.reopen().await;
    test.quiet().await;
    assert_eq!(on_node(&test).await, [forked.snapshot_id], "it is needed");
    let again = test.control.start_workspace(&caller, &by_id(failed[0]), LONG).await.unwrap();
    assert!(is_running(&again));
    assert_eq!(words(&test, &again), both("first"));
    until_gone(&test, &caller, forked.snapshot_id).await;
}

#[tokio::test]
async fn the_last_fork_that_is_deleted_takes_the_snapshot_with_it() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    let request = ForkWorkspace { start: StartPolicy::Later, ..forks(2) };
    let forked = test.control.fork_workspace(&caller, &by_id(&source), request).await.unwrap();
    assert_eq!(forked.snapshot.map(|there| there.state), Some(SnapshotState::Ready));
    for fork in &forked.workspaces {
        assert_eq!(on_node(&test).await, [forked.snapshot_id]);
        test.control.delete_workspace(&caller, &by_id(fork), LONG).await.unwrap();
    }
    until_gone(&test, &caller, forked.snapshot_id).await;
    assert_eq!(on_node(&test).await, []);
}

#[tokio::test]
async fn records_and_the_nodes_snapshots_are_compared() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    let lost = taken(&test, &caller, &source).await;
    let kept = taken(&test, &caller, &source).await;
    let unknown = SnapshotId::from_u128(404);
    test.node.grow_snapshot(kept.id, unknown);
    test.node.lose_snapshot(lost.id);
    let test = test.reopen().await;
    let found = async {
        loop {
            let now = all(&test, &caller).await;
            let state = |id| now.iter().find(|s| s.id == id).map(|s| s.state.name());
            let agreed = state(lost.id) == Some("failed") && state(kept.id) == Some("ready");
            if agreed && on_node(&test).await == [kept.id] {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.unwrap();
}

fn leaving(contents: SnapshotContents) -> CreateWorkspace {
    let name = Some("the last".to_owned());
    CreateWorkspace {
        snapshot_on_terminate: Some(SnapshotOnTerminate { name, contents }),
        ..running()
    }
}

#[tokio::test]
async fn a_deletion_leaves_the_snapshot_it_is_to_leave() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, leaving(SnapshotContents::DiskAndMemory)).await;
    let gone = test.control.delete_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(gone.complete);
    let left = all(&test, &caller).await;
    assert_eq!((left.len(), left[0].name.as_str()), (1, "the last"));
    assert_eq!(left[0].purpose, SnapshotPurpose::Terminate);
    let again = test.control.create_workspace(&caller, from(&left[0])).await.unwrap();
    assert_eq!(words(&test, &again), both("first"));
    // Of one at rest it is the disk.
    let made = lively(&test, &caller, leaving(SnapshotContents::DiskAndMemory)).await;
    test.control.stop_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    test.control.delete_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!(all(&test, &caller).await[0].contents, SnapshotContents::Disk);
    // One that never ran leaves nothing.
    let request =
        CreateWorkspace { start: StartPolicy::Later, ..leaving(SnapshotContents::DiskAndMemory) };
    let cold = test.control.create_workspace(&caller, request).await.unwrap();
    test.control.delete_workspace(&caller, &by_id(&cold), LONG).await.unwrap();
    assert_eq!(all(&test, &caller).await.len(), 2);
}

#[tokio::test]
async fn a_deletion_goes_on_without_its_snapshot_when_somebody_asked_for_it() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, leaving(SnapshotContents::Disk)).await;
    let full = NodeError::NoCapacity("the disk is full".to_owned());
    test.node.fail_next(Point::TakeSnapshot, full);
    let gone = test.control.delete_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(gone.complete);
    let left = all(&test, &caller).await;
    let SnapshotState::Failed(why) = &left[0].state else { panic!("{:?}", left[0].state) };
    assert!(why.message.contains("the disk is full"), "{why:?}");
}

#[tokio::test]
async fn an_expiry_that_cannot_leave_its_snapshot_stops_instead() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let expiry = Some(Expiry { after_seconds: 60, action: ExpiryAction::Delete });
    let request = CreateWorkspace { expiry, ..leaving(SnapshotContents::Disk) };
    let kept = lively(&test, &caller, request.clone()).await;
    let full = NodeError::NoCapacity("the disk is full".to_owned());
    test.node.fail_next(Point::TakeSnapshot, full);
    test.advance(Duration::from_secs(60));
    let stopped = until(&test, &kept, |w| w.state == State::Stopped).await;
    assert_eq!(stopped.lifecycle.last_end.map(|end| end.cause), Some(Cause::Expiry));
    let gone = lively(&test, &caller, request).await;
    test.advance(Duration::from_secs(60));
    test.quiet().await;
    test.control.get_workspace(&caller, &by_id(&gone)).await.unwrap_err();
    let left = all(&test, &caller).await;
    assert_eq!(left[0].state, SnapshotState::Ready);
}

#[tokio::test]
async fn a_fork_has_its_sources_rules_and_its_own_labels() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let expiry = Some(Expiry { after_seconds: 3600, action: ExpiryAction::Suspend });
    let request = CreateWorkspace { expiry, auto_resume: true, ..running() };
    let source = lively(&test, &caller, request).await;
    let metadata = Some([("kind".to_owned(), "fork".into())].into());
    let request = ForkWorkspace { metadata, ..forks(1) };
    let forked = test.control.fork_workspace(&caller, &by_id(&source), request).await.unwrap();
    let fork = &forked.workspaces[0];
    assert_eq!((fork.spec.expiry, fork.spec.auto_resume), (expiry, true));
    assert_eq!(fork.spec.metadata["kind"], "fork");
    assert_ne!((fork.slug.as_str(), fork.id), (source.slug.as_str(), source.id));
    assert_eq!(fork.lifecycle.start_from, StartFrom::Disk);
}
