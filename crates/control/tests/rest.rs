//! Pause, suspend, resume and waking on use, on the simulated node.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ground;

use std::time::Duration;

use ground::{
    LONG, both, by_id, disk_only, failure, is_running, lively, now, of, provisioned, put,
    refused_by_state, running, until, words,
};
use skerry_control::{
    CreateWorkspace, RestoreWorkspace, SnapshotRef, Wait,
    internal_api::{NodeApi as _, NodeError, StartPath, VmPhase},
    sim_node::Point,
    testing,
};
use skerry_model::{
    AfterRestore, Desired, ErrorKind, Incarnation, SnapshotContents, SnapshotState, State,
    error::Limit,
};

fn waking() -> CreateWorkspace {
    CreateWorkspace { auto_resume: true, ..running() }
}

#[tokio::test]
async fn a_pause_keeps_memory_and_the_start_it_belongs_to() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    let State::Running { since } = made.state else { unreachable!() };
    test.advance(Duration::from_secs(5));
    let paused = test.control.pause_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!((&paused.state, paused.desired), (&State::Paused { since }, Desired::Paused));
    assert_eq!(test.node.vms()[0].phase, VmPhase::Paused);
    let again = test.control.pause_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!(again, paused);
    let resumed = test.control.resume_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!((resumed.state, resumed.incarnation), (State::Running { since }, Incarnation(1)));
    assert_eq!(words(&test, &made), both("first"));
    assert_eq!(test.node.calls(), ["ensure_running #1", "ensure_paused #1", "ensure_resumed #1"]);
}

#[tokio::test]
async fn a_suspended_workspace_has_no_vm_and_goes_on_where_it_was_as_a_new_start() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    let suspended = test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!((&suspended.state, suspended.incarnation), (&State::Suspended, Incarnation(1)));
    assert_eq!(test.node.vms()[0].pid, None);
    assert!(!suspended.counts_as_running());
    let again = test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!(again, suspended);
    let resumed = test.control.resume_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(is_running(&resumed));
    assert_eq!(resumed.incarnation, Incarnation(2));
    assert_eq!(words(&test, &made), both("first"));
    assert_eq!(test.node.vms()[0].start_path, Some(StartPath::SavedMemory));
}

#[tokio::test]
async fn a_record_says_how_its_vm_came_to_run_until_the_next_start_begins() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    assert_eq!(made.lifecycle.start_path, Some(StartPath::Boot));
    let which = by_id(&made);
    let paused = test.control.pause_workspace(&caller, &which, LONG).await.unwrap();
    let suspended = test.control.suspend_workspace(&caller, &which, LONG).await.unwrap();
    for rests in [paused, suspended] {
        assert_eq!(rests.lifecycle.start_path, Some(StartPath::Boot), "{:?}", rests.state);
    }
    test.node.hang(Point::EnsureRunning);
    test.control.resume_workspace(&caller, &which, Wait::No).await.unwrap();
    let starting = until(&test, &made, |w| w.state == State::Starting).await;
    assert_eq!(starting.lifecycle.start_path, None);
    test.node.release(Point::EnsureRunning);
    let resumed = until(&test, &made, is_running).await;
    assert_eq!(resumed.lifecycle.start_path, Some(StartPath::SavedMemory));
    let test = test.reopen().await;
    assert_eq!(now(&test, &made).await.lifecycle.start_path, Some(StartPath::SavedMemory));
    let stopped = test.control.stop_workspace(&caller, &which, LONG).await.unwrap();
    assert_eq!(stopped.lifecycle.start_path, Some(StartPath::SavedMemory));
}

#[tokio::test]
async fn a_start_of_what_rests_resumes_it() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    test.control.pause_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    let started = test.control.start_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(is_running(&started));
    assert_eq!(words(&test, &made), both("first"));
}

#[tokio::test]
async fn a_resume_cancels_a_suspension_under_way() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    test.node.hang(Point::EnsureSuspended);
    let which = by_id(&made);
    test.control.suspend_workspace(&caller, &which, Wait::No).await.unwrap();
    until(&test, &made, |w| w.state == State::Suspending).await;
    let resumed = test.control.resume_workspace(&caller, &which, LONG).await.unwrap();
    assert_eq!((resumed.state, resumed.incarnation), (made.state.clone(), Incarnation(1)));
    test.node.release(Point::EnsureSuspended);
    test.quiet().await;
    assert_eq!(test.node.vms()[0].phase, VmPhase::Running);
    assert_eq!(words(&test, &made), both("first"));
}

#[tokio::test]
async fn a_resume_that_comes_too_late_to_cancel_starts_from_the_saved_memory() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    test.node.hang(Point::EnsureSuspended);
    test.control.suspend_workspace(&caller, &by_id(&made), Wait::No).await.unwrap();
    until(&test, &made, |w| w.state == State::Suspending).await;
    // The memory is saved at the moment at which the node is asked to go on.
    test.node.hang(Point::EnsureResumed);
    test.control.resume_workspace(&caller, &by_id(&made), Wait::No).await.unwrap();
    test.node.release(Point::EnsureSuspended);
    while test.node.vms()[0].phase != VmPhase::Suspended {
        tokio::task::yield_now().await;
    }
    test.node.release(Point::EnsureResumed);
    let resumed = until(&test, &made, |w| is_running(w) && w.is_settled()).await;
    assert_eq!(resumed.incarnation, Incarnation(2));
    assert_eq!(words(&test, &made), both("first"));
}

#[tokio::test]
async fn a_stop_and_a_deletion_win_over_a_suspension_under_way() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let stopped = lively(&test, &caller, running()).await;
    let deleted = lively(&test, &caller, running()).await;
    test.node.hang(Point::EnsureSuspended);
    for made in [&stopped, &deleted] {
        test.control.suspend_workspace(&caller, &by_id(made), Wait::No).await.unwrap();
        until(&test, made, |w| w.state == State::Suspending).await;
    }
    let now = test.control.stop_workspace(&caller, &by_id(&stopped), LONG).await.unwrap();
    assert_eq!(now.state, State::Stopped);
    assert!(!test.node.has_saved_memory(stopped.id));
    let gone = test.control.delete_workspace(&caller, &by_id(&deleted), LONG).await.unwrap();
    assert!(gone.complete);
    test.node.release(Point::EnsureSuspended);
    test.quiet().await;
    assert_eq!(test.node.vms().len(), 1);
}

#[tokio::test]
async fn a_suspension_that_fails_is_tried_again_and_then_given_up_with_the_vm_as_before() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    let passing = || NodeError::Step { step: "save" };
    test.node.fail_next(Point::EnsureSuspended, passing());
    let suspended = test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert_eq!(suspended.state, State::Suspended);
    test.control.resume_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    for _ in 0..3 {
        test.node.fail_next(Point::EnsureSuspended, passing());
    }
    let error = test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Unavailable("save failed".to_owned()));
    let lively = now(&test, &made).await;
    assert!(is_running(&lively) && lively.desired == Desired::Running);
    assert_eq!(words(&test, &made), both("first"));
    // What cannot pass is not repeated.
    let full = NodeError::NoCapacity("the disk is full".to_owned());
    test.node.fail_next(Point::EnsureSuspended, full);
    let error = test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap_err();
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert_eq!(test.node.vms()[0].phase, VmPhase::Running);
}

#[tokio::test]
async fn a_paused_workspace_that_cannot_be_suspended_stays_paused() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    test.control.pause_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    let full = NodeError::NoCapacity("the disk is full".to_owned());
    test.node.fail_next(Point::EnsureSuspended, full);
    let error = test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable(_)), "{error}");
    let still = now(&test, &made).await;
    assert_eq!((still.state.name(), still.desired), ("paused", Desired::Paused));
    assert_eq!(test.node.vms()[0].phase, VmPhase::Paused);
}

#[tokio::test]
async fn a_resume_is_repeated_until_it_succeeds() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    test.control.pause_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    let silent = NodeError::GuestUnreachable("no answer".to_owned());
    test.node.fail_next(Point::EnsureResumed, silent.clone());
    test.node.fail_next(Point::EnsureResumed, silent);
    let resumed = test.control.resume_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(is_running(&resumed));
}

#[tokio::test]
async fn saved_memory_that_cannot_be_used_is_never_a_silent_boot() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    let which = by_id(&made);
    test.control.suspend_workspace(&caller, &which, LONG).await.unwrap();
    test.node.damage_saved_memory(made.id);
    for _ in 0..2 {
        let failed = test.control.start_workspace(&caller, &which, LONG).await.unwrap();
        let why = failure(&failed);
        assert_eq!((why.code.as_str(), why.retryable), ("saved_state_unusable", false));
        assert!(test.node.has_saved_memory(made.id), "it is kept");
    }
    let stopped = test.control.stop_workspace(&caller, &which, LONG).await.unwrap();
    assert_eq!(stopped.state, State::Stopped);
    assert!(!test.node.has_saved_memory(made.id), "a stop discards it");
    let booted = test.control.start_workspace(&caller, &which, LONG).await.unwrap();
    assert!(is_running(&booted));
    assert_eq!(words(&test, &made), disk_only("first"));
}

#[tokio::test]
async fn after_a_restart_of_the_host_what_was_suspended_is_there_and_what_was_paused_is_lost() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let suspended = lively(&test, &caller, running()).await;
    let paused = lively(&test, &caller, running()).await;
    test.control.suspend_workspace(&caller, &by_id(&suspended), LONG).await.unwrap();
    test.control.pause_workspace(&caller, &by_id(&paused), LONG).await.unwrap();
    test.node.restart_host();
    let test = test.reopen().await;
    let lost = until(&test, &paused, |w| matches!(w.state, State::Failed(_))).await;
    assert_eq!(failure(&lost).code, "vm_lost");
    let kept = now(&test, &suspended).await;
    assert_eq!((&kept.state, kept.desired), (&State::Suspended, Desired::Suspended));
    test.control.resume_workspace(&caller, &by_id(&suspended), LONG).await.unwrap();
    assert_eq!(words(&test, &suspended), both("first"));
}

#[tokio::test]
async fn what_does_not_run_cannot_rest_and_what_does_not_rest_cannot_be_resumed() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = test.control.create_workspace(&caller, provisioned()).await.unwrap();
    let (control, which) = (&test.control, by_id(&made));
    let errors = [
        control.pause_workspace(&caller, &which, LONG).await.unwrap_err(),
        control.suspend_workspace(&caller, &which, LONG).await.unwrap_err(),
        control.resume_workspace(&caller, &which, LONG).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(refused_by_state(&error), "it has no VM: start it first");
    }
    let (stranger, _) = test.other_caller("stranger").await;
    let error = control.suspend_workspace(&stranger, &which, LONG).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::NotFound { what: "workspace" });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_who_wake_a_suspended_workspace_cause_one_resume() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, waking()).await;
    test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    test.node.set_boot_time(Duration::from_millis(20));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (control, caller, which) = (test.control.clone(), caller.clone(), by_id(&made));
        callers.spawn(async move {
            let guest = control.guest(&caller, &which).await.unwrap();
            guest.stat("/root/word").await.unwrap().size_bytes
        });
    }
    assert_eq!(callers.join_all().await, [5; 32]);
    assert_eq!(
        test.node.calls(),
        ["ensure_running #1", "ensure_suspended #1", "ensure_running #2 from saved memory"]
    );
    assert_eq!(words(&test, &made), both("first"));
}

#[tokio::test]
async fn use_wakes_what_is_paused_or_being_suspended_too() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, waking()).await;
    test.control.pause_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    test.control.guest(&caller, &by_id(&made)).await.unwrap();
    test.node.hang(Point::EnsureSuspended);
    test.control.suspend_workspace(&caller, &by_id(&made), Wait::No).await.unwrap();
    until(&test, &made, |w| w.state == State::Suspending).await;
    test.control.guest(&caller, &by_id(&made)).await.unwrap();
    let awake = now(&test, &made).await;
    assert_eq!((awake.state, awake.incarnation), (made.state, Incarnation(1)));
}

#[tokio::test]
async fn what_may_not_be_woken_is_refused_and_looking_wakes_nobody() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let asleep = lively(&test, &caller, running()).await;
    test.control.suspend_workspace(&caller, &by_id(&asleep), LONG).await.unwrap();
    let error = test.control.guest(&caller, &by_id(&asleep)).await.map(drop).unwrap_err();
    assert_eq!(refused_by_state(&error), "the workspace must be running");
    let may_wake = lively(&test, &caller, waking()).await;
    test.control.suspend_workspace(&caller, &by_id(&may_wake), LONG).await.unwrap();
    let error = test.control.workspace_stats(&caller, &by_id(&may_wake)).await.unwrap_err();
    assert_eq!(refused_by_state(&error), "the workspace must be running");
    // Somebody stopped it, so nobody but somebody starts it.
    test.control.stop_workspace(&caller, &by_id(&may_wake), LONG).await.unwrap();
    let error = test.control.guest(&caller, &by_id(&may_wake)).await.map(drop).unwrap_err();
    assert_eq!(refused_by_state(&error), "the workspace must be running");
    assert_eq!(test.node.memory_restores(), 0);
}

#[tokio::test]
async fn what_cannot_be_woken_says_why() {
    let mut config = testing::config();
    config.plan.running_pool.vcpu_count = 1;
    config.wake_timeout = Duration::from_millis(50);
    let test = testing::open_with(config).await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, waking()).await;
    test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    let other = lively(&test, &caller, running()).await;
    let guest = || async { test.control.guest(&caller, &by_id(&made)).await.map(drop) };
    let error = guest().await.unwrap_err();
    let ErrorKind::Quota { limit, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(*limit, Limit::RunningPool);
    test.control.stop_workspace(&caller, &by_id(&other), LONG).await.unwrap();
    test.node.hang(Point::EnsureRunning);
    let error = guest().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout(_)), "{error}");
    test.node.release(Point::EnsureRunning);
    until(&test, &made, is_running).await;
    test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    test.node.damage_saved_memory(made.id);
    let error = guest().await.unwrap_err();
    let ErrorKind::Unavailable(why) = error.kind() else { panic!("{error}") };
    assert!(why.contains("the saved memory is damaged"), "{why}");
}

#[tokio::test]
async fn a_size_cannot_change_under_memory_that_is_saved() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    let update = skerry_control::UpdateWorkspace {
        memory_mib: Some(1024),
        ..skerry_control::UpdateWorkspace::default()
    };
    let error = test.control.update_workspace(&caller, &by_id(&made), update).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::RefusedByState { .. }), "{error}");
}

#[tokio::test]
async fn a_restart_of_what_is_suspended_boots_from_its_disk() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    put(&test, &made, "second");
    test.control.suspend_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    let booted = test.control.restart_workspace(&caller, &by_id(&made), LONG).await.unwrap();
    assert!(is_running(&booted));
    assert_eq!(words(&test, &made), disk_only("second"));
}

#[tokio::test]
async fn a_restore_that_stays_stopped_is_refused_while_a_vm_runs_and_discards_what_rests() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    let which = &by_id(&made);
    let disk = of(Some(SnapshotContents::Disk));
    let taken = test.control.create_snapshot(&caller, which, disk, LONG).await.unwrap();
    put(&test, &made, "later");
    let request =
        RestoreWorkspace { snapshot: SnapshotRef::Id(taken.id), then: AfterRestore::StayStopped };
    let restore = || test.control.restore_workspace(&caller, which, request.clone(), LONG);
    let error = restore().await.unwrap_err();
    assert!(refused_by_state(&error).contains("stop it first"), "{error}");
    assert!(is_running(&now(&test, &made).await));
    test.control.pause_workspace(&caller, which, LONG).await.unwrap();
    assert_eq!(restore().await.unwrap().state, State::Stopped);
    test.control.start_workspace(&caller, which, LONG).await.unwrap();
    assert_eq!(words(&test, &made), disk_only("first"));
    put(&test, &made, "later");
    test.control.suspend_workspace(&caller, which, LONG).await.unwrap();
    assert_eq!(restore().await.unwrap().state, State::Stopped);
    assert!(!test.node.has_saved_memory(made.id));
    test.control.start_workspace(&caller, which, LONG).await.unwrap();
    assert_eq!(words(&test, &made), disk_only("first"));
}

#[tokio::test]
async fn a_vm_that_a_failed_snapshot_left_standing_runs_on() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let source = lively(&test, &caller, running()).await;
    test.node.ensure_paused(source.id, source.incarnation).await.unwrap();
    test.node.fail_next(Point::TakeSnapshot, NodeError::NoCapacity("the disk is full".to_owned()));
    let made = test.control.create_snapshot(&caller, &by_id(&source), of(None), LONG).await;
    assert!(matches!(made.unwrap().state, SnapshotState::Failed(_)));
    test.quiet().await;
    assert_eq!(test.node.inspect(source.id).await.unwrap().phase, VmPhase::Running);
}
