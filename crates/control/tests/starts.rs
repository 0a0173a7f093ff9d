//! Starts among others: the node decides how many at a time, and control waits as long as it takes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ground;

use std::time::Duration;

use ground::{LONG, by_id, failure, is_running, running, until};
use skerry_control::{
    CreateWorkspace, StartPolicy, Wait, internal_api::StartPath, sim_node::Point, testing,
};
use skerry_model::{FailureCode, State};

fn started() -> CreateWorkspace {
    CreateWorkspace::new(StartPolicy::Now(Wait::No))
}

#[tokio::test]
async fn a_start_that_the_pool_serves_does_not_wait_behind_boots() {
    let test = testing::open().await;
    let caller = test.caller().await;
    test.node.hang(Point::EnsureRunning);
    let mut boots = Vec::new();
    for _ in 0..24 {
        boots.push(test.control.create_workspace(&caller, started()).await.unwrap());
    }
    for boot in &boots {
        until(&test, boot, |workspace| workspace.state == State::Starting).await;
    }
    test.node.was_called("ensure_running", boots.len()).await;
    test.node.fill_pool(1);
    let claimed = test.control.create_workspace(&caller, running()).await.unwrap();
    assert!(is_running(&claimed), "{:?}", claimed.state);
    assert_eq!(test.node.vm(claimed.id).unwrap().start_path, Some(StartPath::Pool));
    for boot in &boots {
        let now = test.control.get_workspace(&caller, &by_id(boot)).await.unwrap();
        assert_eq!(now.state, State::Starting);
    }
    test.node.release(Point::EnsureRunning);
    for boot in &boots {
        until(&test, boot, is_running).await;
    }
}

#[tokio::test]
async fn a_start_may_wait_for_its_turn_longer_than_it_may_take() {
    let mut config = testing::config();
    config.node_call_timeout = Duration::from_millis(800);
    let test = testing::open_with(config).await;
    let caller = test.caller().await;
    test.node.queue_boots();
    test.node.hang(Point::EnsureRunning);
    let made = test.control.create_workspace(&caller, started()).await.unwrap();
    // It is looked every sixteenth of what a start may take.
    test.node.was_asked_for_turns(50).await;
    let now = test.control.get_workspace(&caller, &by_id(&made)).await.unwrap();
    assert_eq!(now.state, State::Starting);
    // Once it has its turn the bound holds.
    test.node.admit_boots();
    let failed = until(&test, &made, |workspace| workspace.is_settled()).await;
    assert_eq!(failure(&failed).code, FailureCode::BootTimeout.as_str());
    test.node.release(Point::EnsureRunning);
    let again = test.control.start_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(is_running(&again), "{:?}", again.state);
}

#[tokio::test]
async fn a_start_that_is_stopped_before_the_guest_came_up_is_no_end_of_a_vm() {
    let test = testing::open().await;
    let caller = test.caller().await;
    test.node.hang(Point::EnsureRunning);
    let made = test.control.create_workspace(&caller, started()).await.unwrap();
    test.node.was_called("ensure_running", 1).await;
    let stopped = test.control.stop_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!(stopped.state, State::Stopped);
    assert_eq!(test.node.vm(made.id).unwrap().last_exit, None);
}
