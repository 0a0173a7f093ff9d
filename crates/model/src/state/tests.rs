#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::FailureCode;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn failure() -> Failure {
    Failure::new(FailureCode::VmCrashed, "it died", at(7))
}

fn states() -> Vec<State> {
    vec![
        State::Provisioned,
        State::Starting,
        State::Running { since: at(1) },
        State::Paused { since: at(1) },
        State::Suspending,
        State::Suspended,
        State::Stopping,
        State::Stopped,
        State::Failed(failure()),
        State::Deleting,
    ]
}

/// Events around incarnation 5: one older, the same, one newer.
fn events() -> Vec<(String, Event)> {
    let mut events = Vec::new();
    for (word, number) in [("old", 4), ("current", 5), ("new", 6)] {
        let n = Incarnation(number);
        let mut add = |name: &str, event| events.push((format!("{name}({word})"), event));
        add("start_begun", Event::StartBegun(n));
        add("guest_ready", Event::GuestReady(n, at(9), None));
        add("vm_found", Event::VmFound(n, at(9), None));
        add("start_failed", Event::StartFailed(n, failure()));
        add("vm_paused", Event::VmPaused(n, at(9)));
        add("vm_resumed", Event::VmResumed(n, at(9)));
        add("suspend_begun", Event::SuspendBegun(n));
        add("vm_suspended", Event::VmSuspended(n));
        let runs = StillThere::Running { since: at(9) };
        add("rest_failed, runs", Event::RestFailed(n, runs, failure()));
        let paused = StillThere::Paused { since: at(9) };
        add("rest_failed, paused", Event::RestFailed(n, paused, failure()));
        add("vm_stopped", Event::VmStopped(n));
        add("vm_ended", Event::VmEnded(n));
        add("vm_crashed", Event::VmCrashed(n, failure()));
    }
    events.push(("stop_begun".to_owned(), Event::StopBegun));
    events.push(("delete_begun".to_owned(), Event::DeleteBegun));
    events
}

#[test]
fn the_whole_table_is_as_reviewed() {
    let mut table = String::new();
    for (name, event) in events() {
        writeln!(table, "{name}").unwrap();
        for state in states() {
            let cell = match transition(&state, Incarnation(5), &event) {
                Transition::AlreadySo => "already so".to_owned(),
                Transition::Refused(refusal) => format!("refused: {refusal:?}"),
                Transition::Moved(moved) => {
                    let desired =
                        moved.desired.map(|d| format!(", desired {d:?}")).unwrap_or_default();
                    format!("-> {} #{}{desired}", moved.next.name(), moved.incarnation)
                }
            };
            writeln!(table, "    {:<12}{cell}", state.name()).unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

fn any_event() -> impl Strategy<Value = Event> {
    let n = (0_u64..6).prop_map(Incarnation);
    (0..14, n).prop_map(|(kind, n)| match kind {
        0 => Event::StartBegun(n),
        1 => Event::GuestReady(n, at(9), None),
        2 => Event::VmFound(n, at(9), None),
        3 => Event::StartFailed(n, failure()),
        4 => Event::VmStopped(n),
        5 => Event::VmEnded(n),
        6 => Event::VmCrashed(n, failure()),
        7 => Event::VmPaused(n, at(9)),
        8 => Event::VmResumed(n, at(9)),
        9 => Event::SuspendBegun(n),
        10 => Event::VmSuspended(n),
        11 => Event::RestFailed(n, StillThere::Running { since: at(9) }, failure()),
        12 => Event::StopBegun,
        _ => Event::DeleteBegun,
    })
}

proptest! {
    #[test]
    fn no_sequence_of_events_breaks_the_rules(events in prop::collection::vec(any_event(), 0..60)) {
        let mut state = State::Provisioned;
        let mut current = Incarnation::default();
        for event in events {
            let outcome = transition(&state, current, &event);
            let Transition::Moved(moved) = outcome else { continue };
            prop_assert!(state != State::Deleting, "a deletion is the end");
            prop_assert!(moved.incarnation >= current, "an incarnation never goes back");
            if let State::Running { .. } = moved.next {
                let (Event::GuestReady(of, ..)
                | Event::VmFound(of, ..)
                | Event::VmResumed(of, _)
                | Event::RestFailed(of, ..)) = &event
                else {
                    return Err(TestCaseError::fail("only a ready guest makes it running"));
                };
                prop_assert_eq!(*of, moved.incarnation);
            }
            if moved.incarnation > current {
                prop_assert!(matches!(event, Event::StartBegun(_) | Event::VmFound(..)));
            }
            if let Event::GuestReady(..) = event {
                prop_assert_eq!(&state, &State::Starting, "a stopped start is never ready");
            }
            if let State::Suspended = moved.next {
                prop_assert!(matches!(event, Event::VmSuspended(_)), "only saved memory suspends");
            }
            state = moved.next;
            current = moved.incarnation;
        }
    }

    #[test]
    fn an_event_applied_twice_changes_nothing_more(
        events in prop::collection::vec(any_event(), 0..30),
    ) {
        let mut state = State::Provisioned;
        let mut current = Incarnation::default();
        for event in events {
            let Transition::Moved(moved) = transition(&state, current, &event) else { continue };
            state = moved.next;
            current = moved.incarnation;
            let again = transition(&state, current, &event);
            // What a failed rest changes is what is desired; the state may stay.
            if let Event::RestFailed(..) = event {
                continue;
            }
            prop_assert!(!matches!(again, Transition::Moved(_)), "{event:?} twice: {again:?}");
        }
    }

    #[test]
    fn a_deletion_is_accepted_in_every_state(index in 0_usize..10) {
        let state = states().swap_remove(index);
        let outcome = transition(&state, Incarnation(5), &Event::DeleteBegun);
        prop_assert!(!matches!(outcome, Transition::Refused(_)));
    }
}
