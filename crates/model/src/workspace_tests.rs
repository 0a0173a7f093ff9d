#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::{
    Failure, FailureCode, Incarnation,
    test_ground::{at, workspace},
};

fn running() -> Workspace {
    let mut workspace = workspace();
    workspace.wish(Wish::Start, at(0)).unwrap();
    workspace.apply(&Event::StartBegun(Incarnation(1)), at(1));
    workspace.apply(&Event::GuestReady(Incarnation(1), at(2)), at(2));
    workspace
}

fn failure() -> Failure {
    Failure::new(FailureCode::BootTimeout, "too slow", at(3))
}

#[test]
fn a_time_to_live_begins_when_the_guest_is_ready_and_ends_with_the_vm() {
    let mut workspace = workspace();
    let expiry = crate::Expiry { after_seconds: 60, action: ExpiryAction::Stop };
    workspace.spec.expiry = Some(expiry);
    workspace.wish(Wish::Start, at(0)).unwrap();
    workspace.apply(&Event::StartBegun(Incarnation(1)), at(1));
    assert_eq!(workspace.expires_at, None);
    workspace.apply(&Event::GuestReady(Incarnation(1), at(2)), at(2));
    assert_eq!(workspace.expires_at, Some(at(62)));
    assert_eq!(workspace.expired(at(61)), None);
    assert_eq!(workspace.expired(at(62)), Some(Wish::Stop));
    workspace.wish(Wish::Stop, at(62)).unwrap();
    assert_eq!(workspace.expires_at, None);
    assert_eq!(workspace.expired(at(99)), None);
}

#[test]
fn failed_starts_are_counted_until_one_succeeds() {
    let mut workspace = workspace();
    for n in 1..=2 {
        workspace.wish(Wish::Start, at(0)).unwrap();
        workspace.apply(&Event::StartBegun(Incarnation(n)), at(1));
        workspace.apply(&Event::StartFailed(Incarnation(n), failure()), at(2));
        let State::Failed(recorded) = &workspace.state else { panic!("{:?}", workspace.state) };
        assert_eq!(u64::from(recorded.attempts), n);
        assert_eq!(workspace.desired, Desired::Stopped);
    }
    workspace.wish(Wish::Start, at(0)).unwrap();
    workspace.apply(&Event::StartBegun(Incarnation(3)), at(1));
    workspace.apply(&Event::GuestReady(Incarnation(3), at(2)), at(2));
    assert_eq!(workspace.failed_starts, 0);
}

#[test]
fn a_restart_is_settled_only_by_a_newer_vm() {
    let mut workspace = running();
    assert!(workspace.is_settled());
    workspace.wish(Wish::Restart, at(3)).unwrap();
    assert_eq!(workspace.state, State::Stopping);
    assert_eq!(workspace.desired, Desired::Running);
    workspace.apply(&Event::VmStopped(Incarnation(1)), at(4));
    assert!(!workspace.is_settled());
    workspace.apply(&Event::StartBegun(Incarnation(2)), at(5));
    workspace.apply(&Event::GuestReady(Incarnation(2), at(6)), at(6));
    assert!(workspace.is_settled());
}

#[test]
fn nothing_but_a_deletion_is_accepted_once_one_was_wished_for() {
    let mut workspace = running();
    assert_eq!(workspace.wish(Wish::Delete, at(3)), Ok(true));
    assert_eq!(workspace.wish(Wish::Delete, at(4)), Ok(false));
    for wish in [Wish::Start, Wish::Stop, Wish::Restart] {
        assert_eq!(workspace.wish(wish, at(5)), Err(Refusal::BeingDeleted));
    }
    assert!(!workspace.is_settled());
    assert!(!workspace.counts_as_running());
}

#[test]
fn a_stop_during_a_start_wins() {
    let mut workspace = workspace();
    workspace.wish(Wish::Start, at(0)).unwrap();
    workspace.apply(&Event::StartBegun(Incarnation(1)), at(1));
    workspace.wish(Wish::Stop, at(2)).unwrap();
    let late = workspace.apply(&Event::GuestReady(Incarnation(1), at(3)), at(3));
    assert_eq!(late, Transition::Refused(Refusal::BeingStopped));
    assert_eq!(workspace.state, State::Stopping);
}

#[test]
fn stopping_a_failed_workspace_clears_the_failure() {
    let mut workspace = running();
    workspace.apply(&Event::VmCrashed(Incarnation(1), failure()), at(3));
    assert!(workspace.is_settled());
    workspace.wish(Wish::Stop, at(4)).unwrap();
    workspace.apply(&Event::VmStopped(Incarnation(1)), at(5));
    assert_eq!(workspace.state, State::Stopped);
}

#[test]
fn a_record_never_shows_its_secrets_in_debug_output() {
    let mut workspace = workspace();
    workspace.spec.env =
        vec![crate::EnvVar { key: "TOKEN".to_owned(), value: "hunter2".to_owned() }];
    let shown = format!("{workspace:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("preview-secret"), "{shown}");
}
