//! Stopping everything at the end of a server.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use skerry_control::{
    AllStopped, Caller, CreateWorkspace, StartPolicy, Wait, WorkspaceRef,
    internal_api::NodeError,
    sim_node::Point,
    testing::{self, TestControl},
};
use skerry_model::{Desired, State, Workspace};

const BOUND: Duration = Duration::from_secs(20);

async fn create(test: &TestControl, caller: &Caller, start: StartPolicy) -> Workspace {
    test.control.create_workspace(caller, CreateWorkspace::new(start)).await.unwrap()
}

async fn now(test: &TestControl, caller: &Caller, workspace: &Workspace) -> Workspace {
    let which = WorkspaceRef::Id(workspace.id);
    test.control.get_workspace(caller, &which).await.unwrap()
}

#[tokio::test]
async fn every_workspace_of_every_account_is_stopped_and_those_without_a_vm_are_left_alone() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let (other, _) = test.other_caller("other").await;
    let mine = create(&test, &caller, StartPolicy::Now(Wait::UpTo(BOUND))).await;
    let theirs = create(&test, &other, StartPolicy::Now(Wait::UpTo(BOUND))).await;
    let untouched = create(&test, &caller, StartPolicy::Later).await;
    let outcome = test.control.stop_all(BOUND).await.unwrap();
    assert_eq!(outcome, AllStopped { count: 2, unfinished: Vec::new() });
    for (caller, workspace) in [(&caller, &mine), (&other, &theirs)] {
        let stopped = now(&test, caller, workspace).await;
        assert_eq!((stopped.state, stopped.desired), (State::Stopped, Desired::Stopped));
    }
    assert_eq!(now(&test, &caller, &untouched).await, untouched);
    assert_eq!(test.control.stop_all(BOUND).await.unwrap(), AllStopped::default());
}

#[tokio::test]
async fn a_start_and_a_restart_under_way_end_in_stopped() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let restarting = create(&test, &caller, StartPolicy::Now(Wait::UpTo(BOUND))).await;
    test.node.hang(Point::EnsureRunning);
    let starting = create(&test, &caller, StartPolicy::Now(Wait::No)).await;
    let which = WorkspaceRef::Id(restarting.id);
    test.control.restart_workspace(&caller, &which, Wait::No).await.unwrap();
    let outcome = test.control.stop_all(BOUND).await.unwrap();
    assert_eq!(outcome, AllStopped { count: 2, unfinished: Vec::new() });
    for workspace in [&starting, &restarting] {
        assert_eq!(now(&test, &caller, workspace).await.desired, Desired::Stopped);
    }
    test.node.release(Point::EnsureRunning);
}

#[tokio::test]
async fn a_deletion_under_way_is_waited_for_also_when_it_has_to_be_repeated() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let deleted = create(&test, &caller, StartPolicy::Now(Wait::UpTo(BOUND))).await;
    test.node.fail_next(Point::EnsureDeleted, NodeError::Step { step: "release_process" });
    let which = WorkspaceRef::Id(deleted.id);
    test.control.delete_workspace(&caller, &which, Wait::No).await.unwrap();
    let outcome = test.control.stop_all(BOUND).await.unwrap();
    assert_eq!(outcome, AllStopped { count: 1, unfinished: Vec::new() });
    test.control.get_workspace(&caller, &which).await.unwrap_err();
    assert_eq!(test.node.vms(), []);
}

#[tokio::test]
async fn what_cannot_be_stopped_in_time_is_named_and_its_wish_is_kept() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let stuck = create(&test, &caller, StartPolicy::Now(Wait::UpTo(BOUND))).await;
    test.node.hang(Point::EnsureStopped);
    let outcome = test.control.stop_all(Duration::from_millis(50)).await.unwrap();
    assert_eq!(outcome, AllStopped { count: 0, unfinished: vec![stuck.id] });
    assert_eq!(now(&test, &caller, &stuck).await.desired, Desired::Stopped);
    test.node.release(Point::EnsureStopped);
    let outcome = test.control.stop_all(BOUND).await.unwrap();
    assert_eq!(outcome.unfinished, []);
    assert_eq!(now(&test, &caller, &stuck).await.state, State::Stopped);
}
