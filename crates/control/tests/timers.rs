//! Times to live, idleness, restarts and the use that holds them off, with a clock that stands until
//! it is set, and a server that is restarted at each moment.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ground;

use std::{collections::BTreeMap, time::Duration};

use ground::{
    LONG, both, by_id, disk_only, is_running, lively, now, refused_by_state, running, until, words,
};
use skerry_control::{
    CreateWorkspace, ExpiryRenewal, LifecycleChange, Setting, UpdateWorkspace,
    internal_api::{ExecControl, ExecRequest, NodeError, User, VmExit},
    sim_node::Point,
    testing::{self, TestControl},
};
use skerry_model::{
    Backoff, Cause, Desired, ErrorKind, Expiry, ExpiryAction, IdleAction, IdlePolicy, Incarnation,
    RestartMode, RestartPolicy, State, Timestamp, Workspace,
};

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn idle(after_seconds: u32, action: IdleAction, discarded_after: Option<u32>) -> IdlePolicy {
    IdlePolicy { after_seconds, action, discard_memory_after_seconds: discarded_after }
}

fn sleepy(policy: IdlePolicy) -> CreateWorkspace {
    CreateWorkspace { idle: Some(policy), auto_resume: true, ..running() }
}

fn restarting(mode: RestartMode, max_restarts: u32, pause_seconds: u32) -> CreateWorkspace {
    let backoff = Backoff { first_seconds: pause_seconds, most_seconds: 600 };
    CreateWorkspace { restart: RestartPolicy { mode, max_restarts, backoff }, ..running() }
}

fn lasting(after_seconds: u32, action: ExpiryAction) -> CreateWorkspace {
    CreateWorkspace { expiry: Some(Expiry { after_seconds, action }), ..running() }
}

fn crashed() -> VmExit {
    VmExit::Crashed { reason: "signal 9".to_owned() }
}

/// How often the node was asked for this.
fn count(test: &TestControl, call: &str) -> usize {
    test.node.calls().iter().filter(|made| made.starts_with(call)).count()
}

/// Seconds until then.
fn left(test: &TestControl, end: Option<Timestamp>) -> i64 {
    end.unwrap().duration_since(test.clock.now()).as_secs()
}

#[tokio::test]
async fn a_workspace_nobody_uses_is_suspended_and_use_wakes_it() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, sleepy(idle(120, IdleAction::Suspend, None))).await;
    test.advance(seconds(119));
    test.quiet().await;
    assert!(is_running(&now(&test, &made).await));
    test.advance(seconds(1));
    let asleep = until(&test, &made, |w| w.state == State::Suspended).await;
    assert_eq!(asleep.lifecycle.desired_by, Cause::Idle);
    test.control.guest(&caller, &by_id(&made)).await.unwrap();
    assert_eq!(words(&test, &made), both("first"));
    assert_eq!(now(&test, &made).await.lifecycle.desired_by, Cause::AutoResume);
    // Awake, its idle time begins anew.
    test.advance(seconds(119));
    test.quiet().await;
    assert!(is_running(&now(&test, &made).await));
}

#[tokio::test]
async fn every_use_begins_the_idle_time_anew() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, sleepy(idle(100, IdleAction::Stop, None))).await;
    for turn in 0..4 {
        test.advance(seconds(90));
        if turn % 2 == 0 {
            let guest = test.control.guest(&caller, &by_id(&made)).await.unwrap();
            guest.stat("/root").await.unwrap();
        } else {
            test.control.touch_activity(&caller, &by_id(&made)).await.unwrap();
        }
        test.quiet().await;
        assert!(is_running(&now(&test, &made).await), "turn {turn}");
    }
    // Looking at it is no use.
    test.advance(seconds(60));
    test.control.workspace_stats(&caller, &by_id(&made)).await.unwrap();
    test.advance(seconds(40));
    let stopped = until(&test, &made, |w| w.state == State::Stopped).await;
    assert_eq!(stopped.lifecycle.last_end.map(|end| end.cause), Some(Cause::Idle));
}

#[tokio::test]
async fn a_session_that_is_open_holds_the_idle_timer() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, sleepy(idle(100, IdleAction::Pause, None))).await;
    let guest = test.control.guest(&caller, &by_id(&made)).await.unwrap();
    let request = ExecRequest {
        argv: vec!["sleep".to_owned(), "inf".to_owned()],
        env: BTreeMap::new(),
        working_dir: None,
        user: User::Root,
        pty: None,
        timeout: None,
    };
    let mut session = guest.exec(request).await.unwrap();
    for _ in 0..3 {
        test.advance(seconds(1000));
        test.quiet().await;
        assert!(is_running(&now(&test, &made).await));
    }
    session.control.send(ExecControl::Signal(15)).await.unwrap();
    assert!(session.output.recv().await.unwrap().is_ok());
    // The end of its output is the end of the session.
    assert!(session.output.recv().await.is_none());
    test.advance(seconds(99));
    test.quiet().await;
    assert!(is_running(&now(&test, &made).await));
    test.advance(seconds(1));
    until(&test, &made, |w| matches!(w.state, State::Paused { .. })).await;
}

#[tokio::test]
async fn use_is_recorded_coarsely_and_a_restart_does_not_take_it_for_idleness() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, sleepy(idle(400, IdleAction::Suspend, None))).await;
    let recorded = |workspace: Workspace| workspace.last_active_at.unwrap();
    let at_first = recorded(now(&test, &made).await);
    test.advance(seconds(59));
    test.control.touch_activity(&caller, &by_id(&made)).await.unwrap();
    test.quiet().await;
    assert_eq!(recorded(now(&test, &made).await), at_first, "not every use is written");
    test.advance(seconds(1));
    test.control.touch_activity(&caller, &by_id(&made)).await.unwrap();
    let used_at = test.clock.now();
    until(&test, &made, |w| w.last_active_at == Some(used_at)).await;
    assert_eq!(now(&test, &made).await.revision, made.revision, "use is no change of the record");
    test.advance(seconds(30));
    test.control.touch_activity(&caller, &by_id(&made)).await.unwrap();
    // A server that ends in good order writes the last ones down.
    let test = test.reopen().await;
    assert_eq!(recorded(now(&test, &made).await), test.clock.now());
    test.advance(seconds(399));
    test.quiet().await;
    assert!(is_running(&now(&test, &made).await));
    test.advance(seconds(1));
    until(&test, &made, |w| w.state == State::Suspended).await;
}

#[tokio::test]
async fn memory_is_discarded_after_a_while_and_use_then_boots() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let policy = idle(120, IdleAction::Suspend, Some(3600));
    let made = lively(&test, &caller, sleepy(policy)).await;
    test.advance(seconds(120));
    until(&test, &made, |w| w.state == State::Suspended).await;
    test.advance(seconds(3600));
    until(&test, &made, |w| w.state == State::Stopped).await;
    assert!(!test.node.has_saved_memory(made.id));
    test.control.guest(&caller, &by_id(&made)).await.unwrap();
    assert_eq!(words(&test, &made), disk_only("first"));
}

#[tokio::test]
async fn what_is_kept_active_is_not_idle_and_begins_to_be_when_it_no_longer_is() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let request =
        CreateWorkspace { keep_active: true, ..sleepy(idle(100, IdleAction::Stop, None)) };
    let made = lively(&test, &caller, request).await;
    test.advance(seconds(10_000));
    test.quiet().await;
    let update = UpdateWorkspace { keep_active: Some(false), ..UpdateWorkspace::default() };
    test.control.update_workspace(&caller, &by_id(&made), update).await.unwrap();
    test.advance(seconds(99));
    test.quiet().await;
    assert!(is_running(&now(&test, &made).await));
    test.advance(seconds(1));
    until(&test, &made, |w| w.state == State::Stopped).await;
}

#[tokio::test]
async fn a_time_to_live_can_end_in_a_pause_or_a_suspension() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let paused = lively(&test, &caller, lasting(60, ExpiryAction::Pause)).await;
    let suspended = lively(&test, &caller, lasting(60, ExpiryAction::Suspend)).await;
    test.advance(seconds(60));
    until(&test, &paused, |w| matches!(w.state, State::Paused { .. })).await;
    let now = until(&test, &suspended, |w| w.state == State::Suspended).await;
    assert_eq!((now.desired, now.lifecycle.desired_by), (Desired::Suspended, Cause::Expiry));
    for made in [&paused, &suspended] {
        let resumed = test.control.resume_workspace(&caller, &by_id(made), LONG).await.unwrap();
        assert_eq!(left(&test, resumed.expires_at), 60, "a new time begins");
    }
}

#[tokio::test]
async fn a_suspension_at_the_end_of_a_time_to_live_that_fails_is_tried_again() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, lasting(60, ExpiryAction::Suspend)).await;
    let full = NodeError::NoCapacity("the disk is full".to_owned());
    test.node.fail_next(Point::EnsureSuspended, full);
    test.advance(seconds(60));
    let still = until(&test, &made, |w| w.lifecycle.rest_failure.is_some()).await;
    assert!(is_running(&still));
    test.advance(seconds(60));
    until(&test, &made, |w| w.state == State::Suspended).await;
}

#[tokio::test]
async fn a_time_to_live_can_be_renewed_and_changed() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, lasting(100, ExpiryAction::Stop)).await;
    let which = &by_id(&made);
    let renew = |renewal| test.control.extend_expiry(&caller, which, renewal);
    test.advance(seconds(40));
    assert_eq!(left(&test, renew(ExpiryRenewal::By(30)).await.unwrap().expires_at), 90);
    assert_eq!(left(&test, renew(ExpiryRenewal::Anew).await.unwrap().expires_at), 100);
    assert_eq!(left(&test, renew(ExpiryRenewal::AnewFor(7)).await.unwrap().expires_at), 7);
    let then = test.clock.now() + seconds(500);
    let renewed = renew(ExpiryRenewal::At(then)).await.unwrap();
    assert_eq!((renewed.expires_at, renewed.spec.expiry), (Some(then), made.spec.expiry));
    for wrong in [
        ExpiryRenewal::At(test.clock.now()),
        ExpiryRenewal::AnewFor(0),
        ExpiryRenewal::By(Expiry::MAX_SECONDS + 1),
    ] {
        let error = renew(wrong).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Invalid(_)), "{wrong:?}: {error}");
    }
    // It is the renewed end that counts, also after a restart.
    test.clock.advance(seconds(499));
    let test = test.reopen().await;
    test.quiet().await;
    assert!(is_running(&now(&test, &made).await));
    test.advance(seconds(1));
    until(&test, &made, |w| w.state == State::Stopped).await;
    let error = test.control.extend_expiry(&caller, which, ExpiryRenewal::Anew).await.unwrap_err();
    assert_eq!(refused_by_state(&error), "a time to live passes only while there is a VM");
}

#[tokio::test]
async fn the_rules_of_a_life_can_be_changed_while_it_goes_on() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    let which = &by_id(&made);
    let error = test.control.extend_expiry(&caller, which, ExpiryRenewal::Anew).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Conflict(_)), "{error}");
    test.advance(seconds(1000));
    let expiry = Expiry { after_seconds: 600, action: ExpiryAction::Delete };
    let change = LifecycleChange {
        expiry: Setting::To(expiry),
        idle: Setting::To(idle(300, IdleAction::Pause, None)),
        auto_resume: Some(true),
        ..LifecycleChange::default()
    };
    let changed = test.control.set_lifecycle(&caller, which, change).await.unwrap();
    assert_eq!(left(&test, changed.expires_at), 600, "it counts from now on");
    test.quiet().await;
    test.advance(seconds(299));
    test.quiet().await;
    assert!(is_running(&now(&test, &made).await), "idleness counts from now on too");
    let change = LifecycleChange {
        expiry: Setting::Clear,
        idle: Setting::Clear,
        ..LifecycleChange::default()
    };
    let changed = test.control.set_lifecycle(&caller, which, change).await.unwrap();
    assert_eq!((changed.expires_at, changed.due_at()), (None, None));
    assert!(changed.spec.auto_resume, "what is not named stays");
    let wrong = LifecycleChange {
        idle: Setting::To(idle(0, IdleAction::Stop, None)),
        ..LifecycleChange::default()
    };
    let error = test.control.set_lifecycle(&caller, which, wrong).await.unwrap_err();
    let ErrorKind::Invalid(invalid) = error.kind() else { panic!("{error}") };
    assert_eq!(invalid.field, "idle");
}

#[tokio::test]
async fn another_end_of_a_time_to_live_leaves_it_when_it_was() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, running()).await;
    let which = &by_id(&made);
    let to = |action| LifecycleChange { expiry_action: Some(action), ..LifecycleChange::default() };
    let none = test.control.set_lifecycle(&caller, which, to(ExpiryAction::Stop)).await;
    assert!(matches!(none.unwrap_err().kind(), ErrorKind::Conflict(_)));
    let expiry = Expiry { after_seconds: 600, action: ExpiryAction::Delete };
    let both = LifecycleChange { expiry: Setting::To(expiry), ..to(ExpiryAction::Suspend) };
    let error = test.control.set_lifecycle(&caller, which, both).await.unwrap_err();
    let ErrorKind::Invalid(invalid) = error.kind() else { panic!("{error}") };
    assert_eq!(invalid.field, "expiry_action");
    let change = LifecycleChange { expiry: Setting::To(expiry), ..LifecycleChange::default() };
    test.control.set_lifecycle(&caller, which, change).await.unwrap();
    test.advance(seconds(400));
    let suspends = to(ExpiryAction::Suspend);
    let changed = test.control.set_lifecycle(&caller, which, suspends).await.unwrap();
    assert_eq!(left(&test, changed.expires_at), 200);
    test.advance(seconds(200));
    until(&test, &made, |w| w.state == State::Suspended).await;
}

#[tokio::test]
async fn a_vm_that_dies_is_started_again_after_growing_pauses_up_to_the_maximum() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = lively(&test, &caller, restarting(RestartMode::OnFailure, 2, 10)).await;
    for (restart, pause) in [(1, 10), (2, 20)] {
        test.node.end_vm(made.id, crashed());
        let down = until(&test, &made, |w| w.lifecycle.restart_at.is_some()).await;
        assert_eq!(left(&test, down.lifecycle.restart_at), pause);
        assert!(matches!(down.state, State::Failed(_)) && down.desired == Desired::Running);
        test.advance(seconds(pause as u64 - 1));
        test.quiet().await;
        assert!(!is_running(&now(&test, &made).await));
        test.advance(seconds(1));
        let up = until(&test, &made, is_running).await;
        assert_eq!(up.incarnation, Incarnation(restart + 1));
    }
    test.node.end_vm(made.id, crashed());
    let down = until(&test, &made, |w| w.desired == Desired::Stopped).await;
    assert_eq!(down.lifecycle.desired_by, Cause::Crash);
    assert_eq!(down.due_at(), None);
}

#[tokio::test]
async fn a_guest_that_powers_off_is_started_again_only_if_always() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let always = lively(&test, &caller, restarting(RestartMode::Always, 0, 0)).await;
    let on_failure = lively(&test, &caller, restarting(RestartMode::OnFailure, 0, 0)).await;
    test.node.end_vm(always.id, VmExit::PoweredOff);
    test.node.end_vm(on_failure.id, VmExit::PoweredOff);
    until(&test, &always, |w| is_running(w) && w.incarnation.0 == 2).await;
    let stopped = until(&test, &on_failure, |w| w.state == State::Stopped).await;
    assert_eq!(stopped.lifecycle.last_end.map(|end| end.cause), Some(Cause::GuestExit));
    // A stop that is asked for is the end.
    test.control.stop_workspace(&caller, &by_id(&always), LONG).await.unwrap();
    test.quiet().await;
    assert_eq!(now(&test, &always).await.state, State::Stopped);
}

#[tokio::test]
async fn after_a_restart_of_the_host_those_that_should_always_run_do() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let always = lively(&test, &caller, restarting(RestartMode::Always, 0, 0)).await;
    let never = lively(&test, &caller, running()).await;
    test.node.restart_host();
    let test = test.reopen().await;
    until(&test, &always, |w| is_running(w) && w.incarnation.0 == 2).await;
    let lost = until(&test, &never, |w| matches!(w.state, State::Failed(_))).await;
    assert_eq!(lost.lifecycle.last_end.map(|end| end.cause), Some(Cause::Lost));
}

#[tokio::test]
async fn a_workspace_that_is_removed_on_exit_is_gone_with_its_vm_unless_somebody_stopped_it() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let request = || CreateWorkspace { remove_on_exit: true, ..running() };
    let gone = lively(&test, &caller, request()).await;
    let stopped = lively(&test, &caller, request()).await;
    test.node.end_vm(gone.id, VmExit::PoweredOff);
    test.control.stop_workspace(&caller, &by_id(&stopped), LONG).await.unwrap();
    let missing = async {
        while test.control.get_workspace(&caller, &by_id(&gone)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(seconds(20), missing).await.unwrap();
    assert_eq!(now(&test, &stopped).await.lifecycle.last_end.unwrap().cause, Cause::User);
    assert_eq!(test.node.vms().len(), 1);
}

#[tokio::test]
async fn who_stopped_a_workspace_is_in_its_record() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let by_user = lively(&test, &caller, running()).await;
    let by_expiry = lively(&test, &caller, lasting(60, ExpiryAction::Stop)).await;
    let by_operator = lively(&test, &caller, running()).await;
    test.control.stop_workspace(&caller, &by_id(&by_user), LONG).await.unwrap();
    test.advance(seconds(60));
    until(&test, &by_expiry, |w| w.state == State::Stopped).await;
    test.control.stop_all(seconds(20)).await.unwrap();
    for (made, cause) in
        [(&by_user, Cause::User), (&by_expiry, Cause::Expiry), (&by_operator, Cause::Operator)]
    {
        let stopped = now(&test, made).await;
        assert_eq!(stopped.lifecycle.desired_by, cause);
        assert_eq!(stopped.lifecycle.last_end.map(|end| end.cause), Some(cause));
    }
}

/// At which moment the server is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Never,
    BeforeItIsDue,
    WhileItIsDue,
    WhileTheNodeIsAtWork,
    Afterwards,
}

impl Moment {
    const ALL: [Self; 5] = [
        Self::Never,
        Self::BeforeItIsDue,
        Self::WhileItIsDue,
        Self::WhileTheNodeIsAtWork,
        Self::Afterwards,
    ];
}

/// Plays a timer that is due in 60 seconds and makes the node do `call` once, with a restart of the
/// server at `moment`.
async fn play(
    test: TestControl,
    made: &Workspace,
    point: Point,
    call: &str,
    moment: Moment,
    done: impl Fn(&Workspace) -> bool,
) {
    let calls_before = count(&test, call);
    let mut test = test;
    test.clock.advance(seconds(30));
    if moment == Moment::BeforeItIsDue {
        test = test.reopen().await;
        test.quiet().await;
        assert_eq!(count(&test, call), calls_before, "{call} {moment:?}: too early");
    }
    test.node.hang(point);
    if moment == Moment::WhileItIsDue {
        test.clock.advance(seconds(30));
        test = test.reopen().await;
    } else {
        test.advance(seconds(30));
    }
    if moment == Moment::WhileTheNodeIsAtWork {
        while count(&test, call) == calls_before {
            tokio::task::yield_now().await;
        }
        test = test.reopen().await;
    }
    test.node.release(point);
    let reached = until(&test, made, &done).await;
    if moment == Moment::Afterwards {
        test = test.reopen().await;
    }
    test.quiet().await;
    let after = now(&test, made).await;
    assert!(done(&after), "{call} {moment:?}: {after:#?}");
    assert_eq!(after.incarnation, reached.incarnation, "{call} {moment:?}: twice");
    assert_eq!(count(&test, call), calls_before + 1, "{call} {moment:?}: {:?}", test.node.calls());
}

#[tokio::test]
async fn a_restart_of_the_server_at_any_moment_neither_loses_nor_doubles_a_time_to_live() {
    for moment in Moment::ALL {
        let test = testing::open().await;
        let caller = test.caller().await;
        let made = lively(&test, &caller, lasting(60, ExpiryAction::Suspend)).await;
        let done = |now: &Workspace| now.state == State::Suspended && now.expires_at.is_none();
        play(test, &made, Point::EnsureSuspended, "ensure_suspended", moment, done).await;
    }
}

#[tokio::test]
async fn a_restart_of_the_server_at_any_moment_neither_loses_nor_doubles_an_idle_time() {
    for moment in Moment::ALL {
        let test = testing::open().await;
        let caller = test.caller().await;
        let made = lively(&test, &caller, sleepy(idle(60, IdleAction::Pause, None))).await;
        let done = |now: &Workspace| matches!(now.state, State::Paused { .. });
        // Pausing is one call that hangs: a server that ends meanwhile makes it again.
        if moment != Moment::WhileTheNodeIsAtWork {
            play(test, &made, Point::EnsurePaused, "ensure_paused", moment, done).await;
        }
    }
}

#[tokio::test]
async fn a_restart_of_the_server_at_any_moment_neither_loses_nor_doubles_a_restart() {
    for moment in Moment::ALL {
        let test = testing::open().await;
        let caller = test.caller().await;
        let made = lively(&test, &caller, restarting(RestartMode::Always, 0, 60)).await;
        test.node.end_vm(made.id, crashed());
        until(&test, &made, |w| w.lifecycle.restart_at.is_some()).await;
        let done = |now: &Workspace| {
            is_running(now) && now.incarnation.0 == 2 && now.lifecycle.restart_count == 1
        };
        play(test, &made, Point::EnsureRunning, "ensure_running", moment, done).await;
    }
}

#[tokio::test]
async fn a_restart_of_the_server_at_any_moment_neither_loses_nor_doubles_a_discarding() {
    for moment in Moment::ALL {
        let test = testing::open().await;
        let caller = test.caller().await;
        let policy = idle(60, IdleAction::Suspend, Some(60));
        let made = lively(&test, &caller, sleepy(policy)).await;
        test.advance(seconds(60));
        until(&test, &made, |w| w.state == State::Suspended).await;
        let done = |now: &Workspace| now.state == State::Stopped;
        if moment != Moment::WhileTheNodeIsAtWork {
            play(test, &made, Point::EnsureStopped, "ensure_stopped", moment, done).await;
        }
    }
}
