#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::{
    Backoff, Expiry, ExpiryAction, IdleAction, IdlePolicy, Refusal, SnapshotOnTerminate,
    StillThere, Timer,
    test_ground::{at, workspace},
};

fn wish(workspace: &mut Workspace, wish: Wish, second: i64) -> Result<bool, Refusal> {
    workspace.wish(wish, Cause::User, at(second))
}

/// Runs since second 2, as its first start.
fn running() -> Workspace {
    let mut workspace = workspace();
    run(&mut workspace, 1, 1);
    workspace
}

/// Starts at this second and is ready at the next.
fn run(workspace: &mut Workspace, incarnation: u64, second: i64) {
    wish(workspace, Wish::Start, second).unwrap();
    workspace.apply(&Event::StartBegun(Incarnation(incarnation)), at(second));
    let ready = Event::GuestReady(Incarnation(incarnation), at(second + 1), None);
    workspace.apply(&ready, at(second + 1));
    assert!(matches!(workspace.state, State::Running { .. }), "{:?}", workspace.state);
}

fn suspend(workspace: &mut Workspace, second: i64) {
    workspace.apply(&Event::SuspendBegun(workspace.incarnation), at(second));
    workspace.apply(&Event::VmSuspended(workspace.incarnation), at(second));
    assert_eq!(workspace.state, State::Suspended);
}

fn failure(code: FailureCode) -> Failure {
    Failure::new(code, "too slow", at(3))
}

fn crash(workspace: &mut Workspace, second: i64) {
    let crashed = Event::VmCrashed(workspace.incarnation, failure(FailureCode::VmCrashed));
    workspace.apply(&crashed, at(second));
}

fn restarting(mode: RestartMode, max_restarts: u32) -> Workspace {
    let mut workspace = running();
    let backoff = Backoff { first_seconds: 2, most_seconds: 60 };
    workspace.spec.restart = RestartPolicy { mode, max_restarts, backoff };
    workspace
}

#[test]
fn a_time_to_live_begins_when_the_guest_is_ready_and_ends_with_the_vm() {
    let mut workspace = workspace();
    workspace.spec.expiry = Some(Expiry { after_seconds: 60, action: ExpiryAction::Stop });
    wish(&mut workspace, Wish::Start, 0).unwrap();
    workspace.apply(&Event::StartBegun(Incarnation(1)), at(1));
    assert_eq!(workspace.due_at(), None);
    workspace.apply(&Event::GuestReady(Incarnation(1), at(2), None), at(3));
    assert_eq!(workspace.due_at(), Some(at(62)));
    assert_eq!(workspace.ring(at(61)), None);
    assert_eq!(workspace.ring(at(62)), Some(Timer::Expiry));
    assert_eq!((workspace.desired, &workspace.state), (Desired::Stopped, &State::Stopping));
    assert_eq!(workspace.lifecycle.desired_by, Cause::Expiry);
    assert_eq!(workspace.ring(at(99)), None, "it rings once");
    workspace.apply(&Event::VmStopped(Incarnation(1)), at(63));
    let end = LastEnd { cause: Cause::Expiry, at: at(63) };
    assert_eq!(workspace.lifecycle.last_end, Some(end));
}

#[test]
fn a_time_to_live_goes_on_while_paused_and_begins_anew_after_a_suspension() {
    let mut workspace = workspace();
    workspace.spec.expiry = Some(Expiry { after_seconds: 60, action: ExpiryAction::Suspend });
    run(&mut workspace, 1, 1);
    wish(&mut workspace, Wish::Pause, 10).unwrap();
    workspace.apply(&Event::VmPaused(Incarnation(1), at(2)), at(10));
    assert_eq!(workspace.due_at(), Some(at(62)));
    assert_eq!(workspace.ring(at(62)), Some(Timer::Expiry));
    assert_eq!(workspace.desired, Desired::Suspended);
    suspend(&mut workspace, 63);
    assert_eq!(workspace.due_at(), None);
    wish(&mut workspace, Wish::Resume, 100).unwrap();
    workspace.apply(&Event::StartBegun(Incarnation(2)), at(100));
    workspace.apply(&Event::GuestReady(Incarnation(2), at(101), None), at(101));
    assert_eq!(workspace.due_at(), Some(at(161)));
}

#[test]
fn a_cancelled_suspension_after_an_expiry_begins_a_new_time_to_live() {
    let mut workspace = workspace();
    workspace.spec.expiry = Some(Expiry { after_seconds: 60, action: ExpiryAction::Suspend });
    run(&mut workspace, 1, 1);
    assert_eq!(workspace.ring(at(62)), Some(Timer::Expiry));
    workspace.apply(&Event::SuspendBegun(Incarnation(1)), at(62));
    wish(&mut workspace, Wish::Start, 63).unwrap();
    workspace.apply(&Event::VmResumed(Incarnation(1), at(2)), at(64));
    assert_eq!(workspace.state, State::Running { since: at(2) });
    assert_eq!(workspace.due_at(), Some(at(124)));
}

#[test]
fn an_idle_workspace_rests_and_its_memory_is_discarded_later() {
    let mut workspace = workspace();
    workspace.spec.idle = Some(IdlePolicy {
        after_seconds: 30,
        action: IdleAction::Suspend,
        discard_memory_after_seconds: Some(100),
    });
    run(&mut workspace, 1, 1);
    assert_eq!(workspace.due_at(), Some(at(32)));
    workspace.last_active_at = Some(at(20));
    assert_eq!(workspace.ring(at(49)), None);
    assert_eq!(workspace.ring(at(50)), Some(Timer::Idle));
    assert_eq!(workspace.desired, Desired::Suspended);
    suspend(&mut workspace, 52);
    assert_eq!(workspace.due_at(), Some(at(152)));
    assert_eq!(workspace.ring(at(152)), Some(Timer::DiscardMemory));
    workspace.apply(&Event::VmStopped(Incarnation(1)), at(153));
    assert_eq!(workspace.state, State::Stopped);
    assert_eq!(workspace.lifecycle.start_from, StartFrom::Disk);
    assert_eq!(workspace.lifecycle.desired_by, Cause::Idle);
}

#[test]
fn memory_that_the_tenant_saved_is_not_discarded_by_the_idle_policy() {
    let mut workspace = running();
    workspace.spec.idle = Some(IdlePolicy {
        after_seconds: 30,
        action: IdleAction::Suspend,
        discard_memory_after_seconds: Some(100),
    });
    wish(&mut workspace, Wish::Suspend, 10).unwrap();
    suspend(&mut workspace, 11);
    assert_eq!(workspace.due_at(), None);
}

#[test]
fn what_is_kept_active_is_never_idle() {
    let mut workspace = running();
    let (after_seconds, action) = (30, IdleAction::Stop);
    workspace.spec.idle =
        Some(IdlePolicy { after_seconds, action, discard_memory_after_seconds: None });
    workspace.spec.keep_active = true;
    assert_eq!(workspace.due_at(), None);
}

#[test]
fn a_rest_that_fails_is_given_up_and_a_rule_tries_again_later() {
    let still = StillThere::Running { since: at(2) };
    let why = failure(FailureCode::HostStepFailed);
    let failed = Event::RestFailed(Incarnation(1), still, why.clone());
    let mut by_user = running();
    wish(&mut by_user, Wish::Suspend, 10).unwrap();
    by_user.apply(&Event::SuspendBegun(Incarnation(1)), at(10));
    by_user.apply(&failed, at(12));
    assert_eq!(
        (by_user.desired, &by_user.state),
        (Desired::Running, &State::Running { since: at(2) })
    );
    assert_eq!(by_user.lifecycle.rest_failure, Some(why));
    assert_eq!(by_user.due_at(), None);
    wish(&mut by_user, Wish::Start, 13).unwrap();
    assert_eq!(by_user.lifecycle.rest_failure, None);

    let mut by_rule = running();
    by_rule.spec.expiry = Some(Expiry { after_seconds: 5, action: ExpiryAction::Suspend });
    by_rule.expires_at = Some(at(7));
    assert_eq!(by_rule.ring(at(7)), Some(Timer::Expiry));
    by_rule.apply(&Event::SuspendBegun(Incarnation(1)), at(7));
    by_rule.apply(&failed, at(12));
    assert_eq!(by_rule.due_at(), Some(at(72)));
}

#[test]
fn a_paused_workspace_that_cannot_be_suspended_stays_paused() {
    let mut workspace = running();
    wish(&mut workspace, Wish::Pause, 5).unwrap();
    workspace.apply(&Event::VmPaused(Incarnation(1), at(2)), at(5));
    wish(&mut workspace, Wish::Suspend, 6).unwrap();
    workspace.apply(&Event::SuspendBegun(Incarnation(1)), at(6));
    let still = StillThere::Paused { since: at(2) };
    let failed = Event::RestFailed(Incarnation(1), still, failure(FailureCode::NoCapacity));
    workspace.apply(&failed, at(7));
    assert_eq!(workspace.desired, Desired::Paused);
    assert!(workspace.is_settled());
}

#[test]
fn a_pause_keeps_the_incarnation_and_a_resume_from_saved_memory_is_a_new_one() {
    let mut workspace = running();
    wish(&mut workspace, Wish::Pause, 5).unwrap();
    assert!(!workspace.is_settled());
    workspace.apply(&Event::VmPaused(Incarnation(1), at(2)), at(5));
    assert!(workspace.is_settled() && workspace.counts_as_running());
    wish(&mut workspace, Wish::Resume, 6).unwrap();
    assert!(!workspace.is_settled());
    workspace.apply(&Event::VmResumed(Incarnation(1), at(2)), at(6));
    assert_eq!(
        (workspace.incarnation, &workspace.state),
        (Incarnation(1), &State::Running { since: at(2) })
    );
    wish(&mut workspace, Wish::Suspend, 7).unwrap();
    suspend(&mut workspace, 8);
    assert!(workspace.is_settled() && !workspace.counts_as_running());
    wish(&mut workspace, Wish::Resume, 9).unwrap();
    let step = crate::next_step(&workspace, None, at(9));
    let incarnation = Incarnation(2);
    assert_eq!(step, crate::Step::Start { incarnation, from: StartFrom::SavedMemory });
}

#[test]
fn saved_memory_that_cannot_be_used_is_kept_until_a_stop_discards_it() {
    let mut workspace = running();
    wish(&mut workspace, Wish::Suspend, 5).unwrap();
    suspend(&mut workspace, 6);
    wish(&mut workspace, Wish::Resume, 7).unwrap();
    workspace.apply(&Event::StartBegun(Incarnation(2)), at(7));
    let damaged = failure(FailureCode::SavedStateUnusable);
    workspace.apply(&Event::StartFailed(Incarnation(2), damaged), at(8));
    assert_eq!(workspace.desired, Desired::Stopped);
    assert_eq!(workspace.lifecycle.start_from, StartFrom::SavedMemory);
    wish(&mut workspace, Wish::Stop, 9).unwrap();
    assert_eq!(workspace.state, State::Stopping, "the node is told to discard it");
    workspace.apply(&Event::VmStopped(Incarnation(2)), at(10));
    assert_eq!(workspace.lifecycle.start_from, StartFrom::Disk);
}

#[test]
fn a_rest_is_refused_where_no_guest_is_ready_and_a_resume_where_nothing_rests() {
    let in_state = |state| Workspace { state, ..running() };
    let refusals = [
        (State::Provisioned, Err(Refusal::NoVm), Err(Refusal::NoVm), Err(Refusal::NoVm)),
        (State::Starting, Err(Refusal::NotReady), Err(Refusal::NotReady), Err(Refusal::NotReady)),
        (State::Suspending, Err(Refusal::BeingSuspended), Ok(()), Ok(())),
        (State::Suspended, Err(Refusal::NoVm), Ok(()), Ok(())),
        (
            State::Stopping,
            Err(Refusal::BeingStopped),
            Err(Refusal::BeingStopped),
            Err(Refusal::BeingStopped),
        ),
        (State::Stopped, Err(Refusal::NoVm), Err(Refusal::NoVm), Err(Refusal::NoVm)),
    ];
    for (state, pause, suspend, resume) in refusals {
        let name = state.name();
        let ask = |asked| wish(&mut in_state(state.clone()), asked, 5).map(drop);
        assert_eq!(ask(Wish::Pause), pause, "pause while {name}");
        assert_eq!(ask(Wish::Suspend), suspend, "suspend while {name}");
        assert_eq!(ask(Wish::Resume), resume, "resume while {name}");
    }
}

#[test]
fn a_restart_policy_repeats_with_growing_pauses_up_to_its_maximum() {
    let mut workspace = restarting(RestartMode::OnFailure, 2);
    crash(&mut workspace, 10);
    assert_eq!(workspace.desired, Desired::Running);
    assert_eq!(workspace.due_at(), Some(at(12)));
    assert_eq!(workspace.ring(at(12)), Some(Timer::Restart));
    run(&mut workspace, 2, 12);
    assert_eq!(workspace.lifecycle.restart_count, 1, "the restart itself does not end the series");
    crash(&mut workspace, 20);
    assert_eq!(workspace.due_at(), Some(at(24)));
    workspace.ring(at(24));
    run(&mut workspace, 3, 24);
    crash(&mut workspace, 30);
    assert_eq!((workspace.desired, workspace.due_at()), (Desired::Stopped, None));
    assert_eq!(workspace.lifecycle.desired_by, Cause::Crash);
    wish(&mut workspace, Wish::Start, 40).unwrap();
    assert_eq!(workspace.lifecycle.restart_count, 0);
}

#[test]
fn a_vm_that_ran_steadily_begins_a_new_series_of_restarts() {
    let mut workspace = restarting(RestartMode::Always, 1);
    crash(&mut workspace, 10);
    workspace.ring(at(12));
    run(&mut workspace, 2, 12);
    workspace.apply(&Event::VmEnded(Incarnation(2)), at(13 + RestartPolicy::STEADY_SECONDS));
    assert_eq!(workspace.lifecycle.restart_count, 1);
    assert_eq!(workspace.desired, Desired::Running);
}

#[test]
fn which_ends_are_followed_by_a_restart_is_as_reviewed() {
    type End = fn(Incarnation) -> Event;
    let ends: [(&str, End); 4] = [
        ("guest powered off", Event::VmEnded),
        ("died", |of| Event::VmCrashed(of, failure(FailureCode::VmCrashed))),
        ("lost with its host", |of| Event::VmCrashed(of, failure(FailureCode::VmLost))),
        ("stopped", Event::VmStopped),
    ];
    let mut table = String::new();
    for mode in [RestartMode::Never, RestartMode::OnFailure, RestartMode::Always] {
        for remove_on_exit in [false, true] {
            for (name, end) in &ends {
                let mut workspace = restarting(mode, 0);
                workspace.spec.remove_on_exit = remove_on_exit;
                if *name == "stopped" {
                    wish(&mut workspace, Wish::Stop, 9).unwrap();
                }
                workspace.apply(&end(Incarnation(1)), at(10));
                let removed = if remove_on_exit { "removed on exit" } else { "kept" };
                table.push_str(&format!(
                    "{:<12}{removed:<17}{name:<20}desired {:<9}by {}\n",
                    format!("{mode:?}"),
                    workspace.desired.as_str(),
                    workspace.lifecycle.desired_by.as_str(),
                ));
            }
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn a_workspace_that_was_to_rest_is_not_restarted() {
    for asked in [Wish::Pause, Wish::Suspend] {
        let mut workspace = restarting(RestartMode::Always, 0);
        wish(&mut workspace, asked, 9).unwrap();
        crash(&mut workspace, 10);
        assert_eq!((workspace.desired, workspace.due_at()), (Desired::Stopped, None));
    }
}

#[test]
fn only_a_start_that_the_policy_made_is_repeated_by_it() {
    let mut workspace = restarting(RestartMode::Always, 0);
    wish(&mut workspace, Wish::Stop, 9).unwrap();
    workspace.apply(&Event::VmStopped(Incarnation(1)), at(9));
    wish(&mut workspace, Wish::Start, 10).unwrap();
    workspace.apply(&Event::StartBegun(Incarnation(2)), at(10));
    let slow = |of| Event::StartFailed(Incarnation(of), failure(FailureCode::BootTimeout));
    workspace.apply(&slow(2), at(11));
    assert_eq!(workspace.desired, Desired::Stopped);

    let mut workspace = restarting(RestartMode::Always, 0);
    crash(&mut workspace, 10);
    workspace.ring(at(12));
    workspace.apply(&Event::StartBegun(Incarnation(2)), at(12));
    workspace.apply(&slow(2), at(13));
    assert_eq!((workspace.desired, workspace.due_at()), (Desired::Running, Some(at(17))));
    workspace.ring(at(17));
    workspace.apply(&Event::StartBegun(Incarnation(3)), at(17));
    let missing = failure(FailureCode::ImageMissing);
    workspace.apply(&Event::StartFailed(Incarnation(3), missing), at(18));
    assert_eq!(workspace.desired, Desired::Stopped, "what cannot succeed is not repeated");
}

#[test]
fn a_start_that_is_asked_for_does_not_wait_for_the_restart_policy() {
    let mut workspace = restarting(RestartMode::Always, 0);
    crash(&mut workspace, 10);
    assert_eq!(wish(&mut workspace, Wish::Start, 11), Ok(true));
    assert_eq!((workspace.due_at(), workspace.lifecycle.restart_count), (None, 0));
    let mut stopped = restarting(RestartMode::Always, 0);
    crash(&mut stopped, 10);
    wish(&mut stopped, Wish::Stop, 11).unwrap();
    assert_eq!(stopped.due_at(), None);
}

#[test]
fn a_restore_keeps_what_was_there_until_it_has_succeeded() {
    let snapshot_id = SnapshotId::from_u128(9);
    let from = StartFrom::Snapshot { snapshot_id };
    let restore = Wish::Restore { snapshot_id, then: AfterRestore::AsBefore };
    let mut workspace = running();
    wish(&mut workspace, restore, 5).unwrap();
    assert_eq!((workspace.desired, &workspace.state), (Desired::Running, &State::Stopping));
    workspace.apply(&Event::VmStopped(Incarnation(1)), at(6));
    assert_eq!(workspace.needed_snapshot(), Some(snapshot_id));
    let step = crate::next_step(&workspace, None, at(6));
    assert_eq!(step, crate::Step::Start { incarnation: Incarnation(2), from });
    workspace.apply(&Event::StartBegun(Incarnation(2)), at(6));
    let failed = Event::StartFailed(Incarnation(2), failure(FailureCode::SavedStateUnusable));
    workspace.apply(&failed, at(7));
    assert_eq!(workspace.lifecycle.start_from, from, "a start tries again");
    wish(&mut workspace, Wish::Stop, 8).unwrap();
    assert_eq!(workspace.lifecycle.start_from, StartFrom::Disk, "a stop goes back");

    let mut at_rest = running();
    wish(&mut at_rest, Wish::Stop, 5).unwrap();
    at_rest.apply(&Event::VmStopped(Incarnation(1)), at(5));
    wish(&mut at_rest, restore, 6).unwrap();
    assert_eq!(at_rest.desired, Desired::Stopped);
    wish(&mut at_rest, Wish::Stop, 7).unwrap();
    assert_eq!(at_rest.needed_snapshot(), Some(snapshot_id), "its next start is from it");
    run(&mut at_rest, 2, 8);
    assert_eq!(at_rest.needed_snapshot(), None);
}

#[test]
fn a_workspace_made_from_a_snapshot_begins_with_it_until_a_start_succeeds() {
    let snapshot_id = SnapshotId::from_u128(9);
    let mut workspace = workspace();
    workspace.spec.origin = Origin::Snapshot { snapshot_id };
    workspace.lifecycle.start_from = StartFrom::Snapshot { snapshot_id };
    wish(&mut workspace, Wish::Start, 0).unwrap();
    workspace.apply(&Event::StartBegun(Incarnation(1)), at(1));
    let failed = Event::StartFailed(Incarnation(1), failure(FailureCode::BootTimeout));
    workspace.apply(&failed, at(2));
    wish(&mut workspace, Wish::Stop, 3).unwrap();
    workspace.apply(&Event::VmStopped(Incarnation(1)), at(4));
    wish(&mut workspace, Wish::Restart, 5).unwrap();
    assert_eq!(workspace.needed_snapshot(), Some(snapshot_id), "it has nothing else");
    assert!(!workspace.owns_disk());
    run(&mut workspace, 2, 6);
    assert!(workspace.owns_disk() && workspace.needed_snapshot().is_none());
}

#[test]
fn a_deletion_waits_for_its_snapshot_and_one_that_nobody_watches_stops_instead() {
    let leaving = || {
        let mut workspace = running();
        let contents = SnapshotContents::DiskAndMemory;
        workspace.spec.snapshot_on_terminate = Some(SnapshotOnTerminate { name: None, contents });
        workspace
    };
    let full = failure(FailureCode::NoCapacity);
    let mut deleted = leaving();
    wish(&mut deleted, Wish::Delete, 5).unwrap();
    assert!(matches!(deleted.state, State::Running { .. }), "the VM is there for it");
    crash(&mut deleted, 6);
    assert_eq!(deleted.desired, Desired::Deleted, "a deletion is for good");
    deleted.settle_final_snapshot(Err(&full), at(7));
    assert_eq!(deleted.state, State::Deleting);

    let mut expired = leaving();
    expired.spec.expiry = Some(Expiry { after_seconds: 5, action: ExpiryAction::Delete });
    expired.expires_at = Some(at(7));
    assert_eq!(expired.ring(at(7)), Some(Timer::Expiry));
    assert_eq!(expired.desired, Desired::Deleted);
    let mut kept = expired.clone();
    expired.settle_final_snapshot(Ok(()), at(8));
    assert_eq!(expired.state, State::Deleting);
    kept.settle_final_snapshot(Err(&full), at(8));
    assert_eq!((kept.desired, &kept.state), (Desired::Stopped, &State::Stopping));

    let mut never_started = workspace();
    never_started.spec.snapshot_on_terminate = leaving().spec.snapshot_on_terminate;
    wish(&mut never_started, Wish::Delete, 5).unwrap();
    assert_eq!(never_started.state, State::Deleting, "there is nothing to take it of");
}

#[test]
fn what_sleeps_wakes_on_use_only_if_it_may_and_nobody_stopped_it() {
    let asleep = |asked, by| {
        let mut workspace = running();
        workspace.spec.auto_resume = true;
        workspace.wish(asked, by, at(5)).unwrap();
        workspace
    };
    assert!(asleep(Wish::Pause, Cause::User).wakes_on_use());
    assert!(asleep(Wish::Suspend, Cause::User).wakes_on_use());
    assert!(asleep(Wish::Stop, Cause::Idle).wakes_on_use());
    assert!(!asleep(Wish::Stop, Cause::User).wakes_on_use());
    assert!(!asleep(Wish::Stop, Cause::Expiry).wakes_on_use());
    assert!(!running().wakes_on_use());
    let mut never = asleep(Wish::Suspend, Cause::User);
    never.spec.auto_resume = false;
    assert!(!never.wakes_on_use());
}

#[test]
fn failed_starts_are_counted_until_one_succeeds() {
    let mut workspace = workspace();
    for n in 1..=2 {
        wish(&mut workspace, Wish::Start, 0).unwrap();
        workspace.apply(&Event::StartBegun(Incarnation(n)), at(1));
        let slow = failure(FailureCode::BootTimeout);
        workspace.apply(&Event::StartFailed(Incarnation(n), slow), at(2));
        let State::Failed(recorded) = &workspace.state else { panic!("{:?}", workspace.state) };
        assert_eq!(u64::from(recorded.attempts), n);
        assert_eq!(workspace.desired, Desired::Stopped);
        let end = LastEnd { cause: Cause::StartFailed, at: at(2) };
        assert_eq!(workspace.lifecycle.last_end, Some(end));
    }
    run(&mut workspace, 3, 3);
    assert_eq!(workspace.failed_starts, 0);
}

#[test]
fn a_restart_is_settled_only_by_a_newer_vm() {
    let mut workspace = running();
    assert!(workspace.is_settled());
    wish(&mut workspace, Wish::Restart, 3).unwrap();
    assert_eq!(workspace.state, State::Stopping);
    assert_eq!(workspace.desired, Desired::Running);
    workspace.apply(&Event::VmStopped(Incarnation(1)), at(4));
    assert!(!workspace.is_settled());
    workspace.apply(&Event::StartBegun(Incarnation(2)), at(5));
    workspace.apply(&Event::GuestReady(Incarnation(2), at(6), None), at(6));
    assert!(workspace.is_settled());
}

#[test]
fn a_restart_of_a_suspended_workspace_boots() {
    let mut workspace = running();
    wish(&mut workspace, Wish::Suspend, 3).unwrap();
    suspend(&mut workspace, 4);
    wish(&mut workspace, Wish::Restart, 5).unwrap();
    assert_eq!(workspace.state, State::Stopping, "the node is told to discard the memory");
    workspace.apply(&Event::VmStopped(Incarnation(1)), at(6));
    let step = crate::next_step(&workspace, None, at(6));
    assert_eq!(step, crate::Step::Start { incarnation: Incarnation(2), from: StartFrom::Disk });
}

#[test]
fn nothing_but_a_deletion_is_accepted_once_one_was_wished_for() {
    let mut workspace = running();
    assert_eq!(wish(&mut workspace, Wish::Delete, 3), Ok(true));
    assert_eq!(wish(&mut workspace, Wish::Delete, 4), Ok(false));
    let snapshot_id = SnapshotId::from_u128(9);
    for asked in [
        Wish::Start,
        Wish::Resume,
        Wish::Pause,
        Wish::Suspend,
        Wish::Stop,
        Wish::Restart,
        Wish::Restore { snapshot_id, then: AfterRestore::Run },
    ] {
        assert_eq!(wish(&mut workspace, asked, 5), Err(Refusal::BeingDeleted));
    }
    assert!(!workspace.is_settled());
    assert!(!workspace.counts_as_running());
}

#[test]
fn a_stop_during_a_start_wins() {
    let mut workspace = workspace();
    wish(&mut workspace, Wish::Start, 0).unwrap();
    workspace.apply(&Event::StartBegun(Incarnation(1)), at(1));
    wish(&mut workspace, Wish::Stop, 2).unwrap();
    let late = workspace.apply(&Event::GuestReady(Incarnation(1), at(3), None), at(3));
    assert_eq!(late, Transition::Refused(Refusal::BeingStopped));
    assert_eq!(workspace.state, State::Stopping);
}

#[test]
fn stopping_a_failed_workspace_clears_the_failure() {
    let mut workspace = running();
    crash(&mut workspace, 3);
    assert!(workspace.is_settled());
    wish(&mut workspace, Wish::Stop, 4).unwrap();
    workspace.apply(&Event::VmStopped(Incarnation(1)), at(5));
    assert_eq!(workspace.state, State::Stopped);
}

#[test]
fn a_pause_grows_to_its_limit_and_never_wraps() {
    let backoff = Backoff { first_seconds: 3, most_seconds: 100 };
    let pauses: Vec<u32> = [1, 2, 5, 6, 7, 40, u32::MAX]
        .into_iter()
        .map(|restart| backoff.seconds_before(restart))
        .collect();
    assert_eq!(pauses, [3, 6, 48, 96, 100, 100, 100]);
    let none = Backoff { first_seconds: 0, most_seconds: 0 };
    assert_eq!(none.seconds_before(9), 0);
}

#[test]
fn what_an_older_server_remembered_is_read_with_defaults() {
    assert_eq!(serde_json::from_str::<Lifecycle>("{}").unwrap(), Lifecycle::default());
    let older = serde_json::json!({
        "image": "base", "image_digest": "sha256:00",
        "shape": {"vcpu_count": 1, "memory_mib": 512, "disk_mib": 1024, "cpu_kind": "shared"},
        "env": [], "lifetime": "permanent", "expiry": {"after_seconds": 5, "action": "stop"},
        "keep_active": false, "log_retention": "across_starts", "metadata": {},
    });
    let spec: WorkspaceSpec = serde_json::from_value(older).unwrap();
    assert_eq!((spec.origin, spec.idle, spec.auto_resume), (Origin::Image, None, false));
    // One that ran under the older server has a disk of its own.
    let workspace = Workspace { spec, incarnation: Incarnation(3), ..workspace() };
    assert!(workspace.owns_disk());
}

#[test]
fn a_record_never_shows_its_secrets_in_debug_output() {
    let mut workspace = workspace();
    workspace.spec.env =
        vec![crate::EnvVar { key: "TOKEN".to_owned(), value: "hunter2".to_owned() }];
    let shown = format!("{workspace:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("preview-secret"), "{shown}");
}
