#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::{
    Backoff, Cause, Expiry, ExpiryAction, IdleAction, IdlePolicy, RestartMode, RestartPolicy, Wish,
    test_ground::{at, workspace},
};

fn view(incarnation: u64, phase: VmViewPhase) -> NodeView {
    let ready_at = (phase == VmViewPhase::Running).then(|| at(50));
    let incarnation = Incarnation(incarnation);
    NodeView { incarnation, phase, ready_at, start_path: None, end: None }
}

#[test]
fn a_vm_that_is_found_says_how_it_came_to_run() {
    let path = Some(StartPath::Template);
    let vm = NodeView { start_path: path, ..view(1, VmViewPhase::Running) };
    let mut workspace = record(State::Starting, Desired::Running, 1, 0);
    let Step::Record(found) = next_step(&workspace, Some(&vm), at(60)) else {
        panic!("it is not recorded")
    };
    workspace.apply(&found, at(60));
    assert_eq!(workspace.lifecycle.start_path, path);
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

/// What a step table shows of a step.
fn shown(step: Step) -> String {
    match step {
        Step::Record(Event::VmCrashed(of, failure)) => {
            format!("Record(VmCrashed({of}, {}))", failure.code)
        }
        Step::Record(Event::VmFound(of, since, _)) => format!("Record(VmFound({of}, {since}))"),
        Step::Record(Event::VmPaused(of, _)) => format!("Record(VmPaused({of}))"),
        Step::Record(Event::VmResumed(of, _)) => format!("Record(VmResumed({of}))"),
        other => format!("{other:?}"),
    }
}

fn table(
    wishes: &[(&str, Desired, u64)],
    states: &[State],
    observed: &[(&str, Option<NodeView>)],
) -> String {
    let mut table = String::new();
    for (wish, desired, replace_through) in wishes {
        for state in states {
            writeln!(table, "desired {wish}, {} #5", state.name()).unwrap();
            let mut workspace = record(state.clone(), *desired, 5, *replace_through);
            if *state == State::Suspended {
                workspace.lifecycle.start_from = StartFrom::SavedMemory;
            }
            for (name, view) in observed {
                let step = shown(next_step(&workspace, view.as_ref(), at(99)));
                writeln!(table, "    {name:<15}{step}").unwrap();
            }
        }
    }
    table
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
    let wishes = [
        ("running", Desired::Running, 0),
        ("running, replacing #5", Desired::Running, 5),
        ("stopped", Desired::Stopped, 0),
        ("deleted", Desired::Deleted, 0),
    ];
    insta::assert_snapshot!(table(&wishes, &states, &observed));
}

#[test]
fn every_step_to_and_from_rest_is_as_reviewed() {
    let observed = [
        ("nothing", None),
        ("running #5", Some(view(5, VmViewPhase::Running))),
        ("paused #5", Some(view(5, VmViewPhase::Paused))),
        ("suspending #5", Some(view(5, VmViewPhase::Suspending))),
        ("suspended #5", Some(view(5, VmViewPhase::Suspended))),
        ("stopped #5", Some(view(5, VmViewPhase::Stopped))),
        ("running #4", Some(view(4, VmViewPhase::Running))),
    ];
    let states = [
        State::Starting,
        State::Running { since: at(1) },
        State::Paused { since: at(1) },
        State::Suspending,
        State::Suspended,
        State::Stopping,
        State::Stopped,
    ];
    let wishes = [
        ("running", Desired::Running, 0),
        ("paused", Desired::Paused, 0),
        ("suspended", Desired::Suspended, 0),
        ("stopped", Desired::Stopped, 0),
    ];
    insta::assert_snapshot!(table(&wishes, &states, &observed));
}

#[test]
fn a_deletion_that_leaves_a_snapshot_takes_it_of_a_workspace_that_has_settled() {
    let mut table = String::new();
    for state in [
        State::Provisioned,
        State::Starting,
        State::Running { since: at(1) },
        State::Paused { since: at(1) },
        State::Suspending,
        State::Suspended,
        State::Stopping,
        State::Stopped,
        State::Failed(Failure::new(FailureCode::VmCrashed, "it died", at(7))),
    ] {
        let mut workspace = record(state, Desired::Deleted, 5, 0);
        let contents = crate::SnapshotContents::DiskAndMemory;
        workspace.spec.snapshot_on_terminate =
            Some(crate::SnapshotOnTerminate { name: None, contents });
        let step = shown(next_step(&workspace, None, at(99)));
        let contents = workspace.final_snapshot_contents().unwrap();
        writeln!(table, "{:<12}{step:<20}{}", workspace.state.name(), contents.as_str()).unwrap();
    }
    insta::assert_snapshot!(table);
}

#[test]
fn a_restart_that_is_due_later_is_waited_for() {
    let mut workspace = record(State::Stopped, Desired::Running, 5, 0);
    workspace.lifecycle.restart_at = Some(at(100));
    assert_eq!(next_step(&workspace, None, at(99)), Step::Nothing);
    let start = Step::Start { incarnation: Incarnation(6), from: StartFrom::Disk };
    assert_eq!(next_step(&workspace, None, at(100)), start);
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
        Just(VmViewPhase::Suspending),
        Just(VmViewPhase::Suspended),
        Just(VmViewPhase::Stopping),
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
        start_path: None,
        end: end.filter(|_| phase == VmViewPhase::Stopped),
    });
    prop::option::of(view)
}

fn any_wish() -> impl Strategy<Value = Wish> {
    let snapshot_id = crate::SnapshotId::from_u128(9);
    prop_oneof![
        Just(Wish::Start),
        Just(Wish::Resume),
        Just(Wish::Pause),
        Just(Wish::Suspend),
        Just(Wish::Stop),
        Just(Wish::Restart),
        Just(Wish::Restore { snapshot_id, then: crate::AfterRestore::Run }),
        Just(Wish::Restore { snapshot_id, then: crate::AfterRestore::AsBefore }),
        Just(Wish::Restore { snapshot_id, then: crate::AfterRestore::StayStopped }),
        Just(Wish::Delete),
    ]
}

fn any_rules() -> impl Strategy<Value = (RestartPolicy, bool, bool)> {
    let mode = prop_oneof![
        Just(RestartMode::Never),
        Just(RestartMode::OnFailure),
        Just(RestartMode::Always)
    ];
    // Without a pause, so that a restart is due at once.
    let backoff = Backoff { first_seconds: 0, most_seconds: 0 };
    let policy = mode.prop_map(move |mode| RestartPolicy { mode, max_restarts: 3, backoff });
    (policy, any::<bool>(), any::<bool>())
}

/// Plays an obedient node: does what a step asks of it.
fn obey(step: &Step, workspace: &mut Workspace, node: &mut Option<NodeView>) -> bool {
    let phase_to = |node: &mut Option<NodeView>, of: Incarnation, phase| {
        let vm = node.as_mut().filter(|vm| vm.incarnation == of).expect("a VM of this start");
        vm.phase = phase;
    };
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
        Step::Start { incarnation, from } => {
            workspace.apply(&Event::StartBegun(*incarnation), at(60));
            assert_eq!(workspace.state, State::Starting);
            assert_eq!(workspace.incarnation, *incarnation);
            assert_eq!(workspace.lifecycle.start_from, *from, "a repetition begins with the same");
            // The node keeps its promise not to go back to an older incarnation.
            if node.as_ref().is_none_or(|vm| vm.incarnation <= *incarnation) {
                *node = Some(view(incarnation.0, VmViewPhase::Running));
            }
            workspace.apply(&Event::GuestReady(*incarnation, at(60), None), at(60));
        }
        Step::Pause { incarnation } => {
            phase_to(node, *incarnation, VmViewPhase::Paused);
            workspace.apply(&Event::VmPaused(*incarnation, at(60)), at(60));
        }
        Step::Resume { incarnation } => {
            phase_to(node, *incarnation, VmViewPhase::Running);
            workspace.apply(&Event::VmResumed(*incarnation, at(60)), at(60));
        }
        Step::Suspend { incarnation } => {
            workspace.apply(&Event::SuspendBegun(*incarnation), at(60));
            phase_to(node, *incarnation, VmViewPhase::Suspended);
            workspace.apply(&Event::VmSuspended(*incarnation), at(60));
        }
        Step::TakeFinalSnapshot => workspace.settle_final_snapshot(Ok(()), at(60)),
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

/// Plays a node that ends what it was at work on. Says whether there was anything.
fn end_the_work(node: &mut Option<NodeView>) -> bool {
    let Some(vm) = node else { return false };
    vm.phase = match vm.phase {
        VmViewPhase::Starting => VmViewPhase::Running,
        VmViewPhase::Stopping => VmViewPhase::Stopped,
        VmViewPhase::Suspending => VmViewPhase::Suspended,
        VmViewPhase::Running
        | VmViewPhase::Paused
        | VmViewPhase::Suspended
        | VmViewPhase::Stopped => return false,
    };
    true
}

fn desired_in(state: &State, index: usize) -> Desired {
    match state {
        State::Deleting => Desired::Deleted,
        _ => [Desired::Running, Desired::Paused, Desired::Suspended, Desired::Stopped][index],
    }
}

proptest! {
    #[test]
    fn from_anywhere_record_and_node_come_to_agree(
        state in any_state(),
        desired in 0_usize..4,
        wish in prop::option::of(any_wish()),
        (restart, remove_on_exit, leaves_snapshot) in any_rules(),
        incarnation in 0_u64..6,
        observed in any_view(),
    ) {
        let desired = desired_in(&state, desired);
        let mut workspace = record(state, desired, incarnation.max(1), 0);
        workspace.spec.restart = restart;
        workspace.spec.remove_on_exit = remove_on_exit;
        if leaves_snapshot {
            let contents = crate::SnapshotContents::Disk;
            workspace.spec.snapshot_on_terminate =
                Some(crate::SnapshotOnTerminate { name: None, contents });
        }
        if workspace.state == State::Suspended {
            workspace.lifecycle.start_from = StartFrom::SavedMemory;
        }
        if let Some(wish) = wish {
            let _refused = workspace.wish(wish, Cause::User, at(55));
        }
        let mut node = observed;
        let mut steps = 0;
        let last = loop {
            let step = next_step(&workspace, node.as_ref(), at(60));
            if !obey(&step, &mut workspace, &mut node) {
                // What the node was at work on is waited for, and looked at again.
                if step == Step::Nothing && end_the_work(&mut node) {
                    continue;
                }
                break step;
            }
            steps += 1;
            prop_assert!(steps < 15, "still {step:?} after {steps} steps: {workspace:?} {node:?}");
        };
        let live = node.as_ref().filter(|vm| vm.is_live());
        match last {
            Step::Delete => prop_assert!(node.is_none()),
            _ => {
                prop_assert!(workspace.is_settled(), "{workspace:?} {node:?}");
                match workspace.state {
                    State::Running { .. } | State::Paused { .. } | State::Suspending => {
                        prop_assert_eq!(live.map(|vm| vm.incarnation), Some(workspace.incarnation));
                    }
                    _ => prop_assert!(
                        live.is_none_or(|vm| !vm.guest_is_ready()),
                        "{live:?} under {}", workspace.state.name()
                    ),
                }
                if let State::Paused { .. } = workspace.state {
                    prop_assert_eq!(live.map(|vm| vm.phase), Some(VmViewPhase::Paused));
                }
            }
        }
    }

    #[test]
    fn no_sequence_of_wishes_ends_and_timers_leaves_work_for_ever(
        acts in prop::collection::vec((0_usize..5, any_wish(), 0_i64..400), 1..25),
        (restart, remove_on_exit, _) in any_rules(),
    ) {
        let mut workspace = workspace();
        workspace.spec.restart = restart;
        workspace.spec.remove_on_exit = remove_on_exit;
        workspace.spec.auto_resume = true;
        workspace.spec.expiry =
            Some(Expiry { after_seconds: 300, action: ExpiryAction::Suspend });
        workspace.spec.idle = Some(IdlePolicy {
            after_seconds: 100,
            action: IdleAction::Suspend,
            discard_memory_after_seconds: Some(200),
        });
        let mut node = None;
        let mut now = 100;
        for (act, wish, seconds) in acts {
            now += seconds;
            match act {
                // The guest powers off, or the VM dies.
                0 | 1 if live_at(node.as_ref(), workspace.incarnation) => {
                    let end = if act == 0 {
                        VmEnd::ByGuest
                    } else {
                        VmEnd::Crashed { reason: "x".to_owned() }
                    };
                    node = Some(NodeView {
                        end: Some(end),
                        ..view(workspace.incarnation.0, VmViewPhase::Stopped)
                    });
                }
                0..=2 => {
                    let mut rang = 0;
                    while workspace.ring(at(now)).is_some() {
                        rang += 1;
                        prop_assert!(rang < 10, "a timer rings for ever: {workspace:?}");
                    }
                    prop_assert!(workspace.due_at().is_none_or(|due| due > at(now)));
                }
                _ => {
                    let _refused = workspace.wish(wish, Cause::User, at(now));
                }
            }
            let mut steps = 0;
            loop {
                let step = next_step(&workspace, node.as_ref(), at(now));
                if let Step::Delete = step {
                    return Ok(());
                }
                if !obey(&step, &mut workspace, &mut node) {
                    break;
                }
                steps += 1;
                prop_assert!(steps < 15, "still {step:?}: {workspace:?} {node:?}");
            }
            let waits = workspace.lifecycle.restart_at.is_some();
            prop_assert!(workspace.is_settled() || waits, "{workspace:?}");
            if let State::Stopped | State::Failed(_) = workspace.state {
                prop_assert!(
                    workspace.lifecycle.start_from != StartFrom::SavedMemory,
                    "discarded memory is not begun with: {workspace:?}"
                );
            }
        }
    }
}

fn live_at(node: Option<&NodeView>, incarnation: Incarnation) -> bool {
    node.is_some_and(|vm| vm.is_live() && vm.incarnation == incarnation)
}
