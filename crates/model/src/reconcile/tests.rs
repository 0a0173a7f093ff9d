#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::{
    Wish,
    test_ground::{at, workspace},
};

fn view(incarnation: u64, phase: VmViewPhase) -> NodeView {
    let ready_at = (phase == VmViewPhase::Running).then(|| at(50));
    NodeView { incarnation: Incarnation(incarnation), phase, ready_at, end: None }
}

fn record(state: State, desired: Desired, incarnation: u64, replace_through: u64) -> Workspace {
    Workspace {
        state,
        desired,
        incarnation: Incarnation(incarnation),
        replace_through: Incarnation(replace_through),
        ..workspace()
    }
}

#[test]
fn every_step_is_as_reviewed() {
    let crashed = Some(VmEnd::Crashed { reason: "signal 9".to_owned() });
    let observed = [
        ("nothing", None),
        ("starting #5", Some(view(5, VmViewPhase::Starting))),
        ("running #5", Some(view(5, VmViewPhase::Running))),
        ("stopped #5", Some(view(5, VmViewPhase::Stopped))),
        ("crashed #5", Some(NodeView { end: crashed, ..view(5, VmViewPhase::Stopped) })),
        ("ended #5", Some(NodeView { end: Some(VmEnd::ByGuest), ..view(5, VmViewPhase::Stopped) })),
        ("running #4", Some(view(4, VmViewPhase::Running))),
        ("running #6", Some(view(6, VmViewPhase::Running))),
    ];
    let failed = Failure::new(FailureCode::VmCrashed, "it died", at(7));
    let states = [
        State::Provisioned,
        State::Starting,
        State::Running { since: at(1) },
        State::Stopping,
        State::Stopped,
        State::Failed(failed),
        State::Deleting,
    ];
    let mut table = String::new();
    let wishes = [
        ("running", Desired::Running, 0),
        ("running, replacing #5", Desired::Running, 5),
        ("stopped", Desired::Stopped, 0),
        ("deleted", Desired::Deleted, 0),
    ];
    for (wish, desired, replace_through) in wishes {
        for state in &states {
            writeln!(table, "desired {wish}, {} #5", state.name()).unwrap();
            let workspace = record(state.clone(), desired, 5, replace_through);
            for (name, view) in &observed {
                let step = match next_step(&workspace, view.as_ref(), at(99)) {
                    Step::Record(Event::VmCrashed(of, failure)) => {
                        format!("Record(VmCrashed({of}, {}))", failure.code)
                    }
                    Step::Record(Event::VmFound(of, since)) => {
                        format!("Record(VmFound({of}, {since}))")
                    }
                    other => format!("{other:?}"),
                };
                writeln!(table, "    {name:<12}{step}").unwrap();
            }
        }
    }
    insta::assert_snapshot!(table);
}

fn any_state() -> impl Strategy<Value = State> {
    (0..10).prop_map(|kind| match kind {
        0 => State::Provisioned,
        1 => State::Starting,
        2 => State::Running { since: at(1) },
        3 => State::Paused { since: at(1) },
        4 => State::Suspending,
        5 => State::Suspended,
        6 => State::Stopping,
        7 => State::Stopped,
        8 => State::Failed(Failure::new(FailureCode::VmLost, "gone", at(1))),
        _ => State::Deleting,
    })
}

fn any_view() -> impl Strategy<Value = Option<NodeView>> {
    let phase = prop_oneof![
        Just(VmViewPhase::Starting),
        Just(VmViewPhase::Running),
        Just(VmViewPhase::Paused),
        Just(VmViewPhase::Stopped),
    ];
    let end = prop_oneof![
        Just(None),
        Just(Some(VmEnd::ByGuest)),
        Just(Some(VmEnd::Crashed { reason: "x".to_owned() })),
    ];
    let view = (0_u64..8, phase, end).prop_map(|(n, phase, end)| NodeView {
        incarnation: Incarnation(n),
        phase,
        ready_at: Some(at(50)),
        end: end.filter(|_| phase == VmViewPhase::Stopped),
    });
    prop::option::of(view)
}

/// Plays an obedient node: does what a step asks of it.
fn obey(step: &Step, workspace: &mut Workspace, node: &mut Option<NodeView>) -> bool {
    match step {
        Step::Nothing => return false,
        Step::Record(event) => {
            let outcome = workspace.apply(event, at(60));
            assert!(
                matches!(outcome, crate::Transition::Moved(_)),
                "{event:?} on {} was decided but {outcome:?}",
                workspace.state.name()
            );
        }
        Step::Start { incarnation } => {
            workspace.apply(&Event::StartBegun(*incarnation), at(60));
            assert_eq!(workspace.state, State::Starting);
            assert_eq!(workspace.incarnation, *incarnation);
            // The node keeps its promise not to go back to an older incarnation.
            if node.as_ref().is_none_or(|vm| vm.incarnation <= *incarnation) {
                *node = Some(view(incarnation.0, VmViewPhase::Running));
            }
            workspace.apply(&Event::GuestReady(*incarnation, at(60)), at(60));
        }
        Step::Stop { through } => {
            if let Some(vm) = node.as_mut().filter(|vm| vm.incarnation <= *through) {
                *vm = view(vm.incarnation.0, VmViewPhase::Stopped);
            }
            workspace.apply(&Event::VmStopped(workspace.incarnation), at(60));
        }
        Step::Delete => {
            *node = None;
            return false;
        }
    }
    true
}

proptest! {
    #[test]
    fn from_anywhere_record_and_node_come_to_agree(
        state in any_state(),
        wish in prop_oneof![
            Just(None), Just(Some(Wish::Start)), Just(Some(Wish::Stop)),
            Just(Some(Wish::Restart)), Just(Some(Wish::Delete)),
        ],
        runs in any::<bool>(),
        incarnation in 0_u64..6,
        observed in any_view(),
    ) {
        let desired = if state == State::Deleting {
            Desired::Deleted
        } else if runs {
            Desired::Running
        } else {
            Desired::Stopped
        };
        let mut workspace = record(state, desired, incarnation, 0);
        if incarnation == 0 {
            workspace.incarnation = Incarnation(1);
        }
        if let Some(wish) = wish {
            let _refused = workspace.wish(wish, at(55));
        }
        let mut node = observed;
        let mut steps = 0;
        let last = loop {
            let step = next_step(&workspace, node.as_ref(), at(60));
            if !obey(&step, &mut workspace, &mut node) {
                break step;
            }
            steps += 1;
            prop_assert!(steps < 12, "still {step:?} after {steps} steps: {workspace:?} {node:?}");
        };
        let live = node.as_ref().filter(|vm| vm.is_live());
        match last {
            Step::Delete => prop_assert!(node.is_none()),
            _ => {
                prop_assert!(workspace.is_settled() || live.is_some_and(|vm| !vm.guest_is_ready()));
                match workspace.state {
                    State::Running { .. } | State::Paused { .. } | State::Suspending => {
                        prop_assert_eq!(live.map(|vm| vm.incarnation), Some(workspace.incarnation));
                    }
                    _ => prop_assert!(live.is_none(), "{live:?} under {}", workspace.state.name()),
                }
            }
        }
    }
}
