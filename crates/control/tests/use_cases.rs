//! Use cases on the simulated node.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use skerry_control::{
    CreateWorkspace, ListWorkspaces, StartPolicy, UpdateWorkspace, Wait, WorkspaceRef,
    internal_api::{NodeError, VmExit, VmPhase},
    sim_node::Point,
    testing::{self, TestControl},
};
use skerry_model::{
    Desired, EnvVar, ErrorKind, Expiry, ExpiryAction, Incarnation, State, Workspace, error::Limit,
};

const LONG: Wait = Wait::UpTo(Duration::from_secs(20));

fn running() -> CreateWorkspace {
    CreateWorkspace::new(StartPolicy::Now(LONG))
}

fn provisioned() -> CreateWorkspace {
    CreateWorkspace::new(StartPolicy::Later)
}

fn by_id(workspace: &Workspace) -> WorkspaceRef {
    WorkspaceRef::Id(workspace.id)
}

/// Waits until the record is as wanted; the test's own bound is the only clock.
async fn until(
    test: &TestControl,
    workspace: &Workspace,
    what: impl Fn(&Workspace) -> bool,
) -> Workspace {
    let caller = test.caller().await;
    let reached = async {
        loop {
            let now = test.control.get_workspace(&caller, &by_id(workspace)).await.unwrap();
            if what(&now) {
                return now;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reached).await.unwrap()
}

#[tokio::test]
async fn a_created_workspace_runs_and_its_guest_answers() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, running()).await.unwrap();
    assert!(matches!(made.state, State::Running { .. }), "{:?}", made.state);
    assert_eq!(made.incarnation, Incarnation(1));
    let guest = test.control.guest(&caller, &by_id(&made)).await.unwrap();
    assert_eq!(guest.stats().await.unwrap().cpus_online, 1);
    assert_eq!(test.node.vms()[0].phase, VmPhase::Running);
}
