//! Workloads: what should run stands in the record, and the guest is told of it whenever it may have
//! forgotten.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ground;

use std::{sync::Arc, time::Duration};

use ground::{by_id, is_running, now, of, running, until};
use skerry_control::{
    Caller, CreateWorkspace, ForkWorkspace, NewWorkload, StartPolicy, UpdateWorkload, WorkloadVerb,
    WorkloadView,
    internal_api::{LogPart, WorkloadEnd, WorkloadPhase, WorkloadReport},
    sim_node::SimSupervisor,
    testing::{self, TestControl},
};
use skerry_model::{
    EnvVar, ErrorKind, OnExit, RestartMode, RestartPolicy, State, WorkloadDesired, WorkloadRef,
    WorkloadRestart, Workspace,
};

const BOUND: Duration = Duration::from_secs(60);

fn service(name: &str) -> NewWorkload {
    NewWorkload {
        name: Some(name.to_owned()),
        ..NewWorkload::new(vec!["serve".to_owned(), name.to_owned()])
    }
}

fn named(name: &str) -> WorkloadRef {
    WorkloadRef::Name(name.to_owned())
}

fn supervisor(test: &TestControl, workspace: &Workspace) -> Arc<SimSupervisor> {
    test.node.sim_guest(workspace.id).unwrap().sim_supervisor()
}

async fn make(test: &TestControl, caller: &Caller, workloads: Vec<NewWorkload>) -> Workspace {
    let request = CreateWorkspace { workloads, ..running() };
    test.control.create_workspace(caller, request).await.unwrap()
}

/// A workload once the guest says what is wanted of it. Asking is the only wait: each answer comes from
/// the guest, which the worker tells by itself.
async fn reported(
    test: &TestControl,
    workspace: &Workspace,
    name: &str,
    wanted: impl Fn(&WorkloadReport) -> bool,
) -> WorkloadView {
    let caller = test.caller().await;
    let reached = async {
        loop {
            let which = by_id(workspace);
            let view = test.control.workload(&caller, &which, &named(name)).await.unwrap();
            if view.report.as_ref().is_some_and(&wanted) {
                return view;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, reached).await.expect("reported in time")
}

fn is(phase: WorkloadPhase) -> impl Fn(&WorkloadReport) -> bool {
    move |report| report.phase == phase
}

#[tokio::test]
async fn workloads_of_a_new_workspace_run_as_soon_as_it_does_and_again_after_each_boot() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = make(&test, &caller, vec![service("app"), service("db")]).await;
    for name in ["app", "db"] {
        reported(&test, &made, name, is(WorkloadPhase::Running)).await;
    }
    let which = by_id(&made);
    test.control.stop_workspace(&caller, &which, ground::LONG).await.unwrap();
    let resting = test.control.workload(&caller, &which, &named("app")).await.unwrap();
    assert_eq!((resting.report, resting.workload.desired), (None, WorkloadDesired::Running));
    test.control.start_workspace(&caller, &which, ground::LONG).await.unwrap();
    let again = reported(&test, &made, "app", is(WorkloadPhase::Running)).await;
    assert_eq!(again.report.unwrap().starts, 1);
}

#[tokio::test]
async fn a_workload_is_added_changed_stopped_and_removed_while_the_workspace_runs() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = make(&test, &caller, Vec::new()).await;
    let which = by_id(&made);
    test.control.create_workload(&caller, &which, service("app")).await.unwrap();
    reported(&test, &made, "app", is(WorkloadPhase::Running)).await;
    let taken = test.control.create_workload(&caller, &which, service("app")).await.unwrap_err();
    assert!(matches!(taken.kind(), ErrorKind::Conflict(_)), "{taken}");

    let update = UpdateWorkload { name: Some("api".to_owned()), ..UpdateWorkload::default() };
    test.control.update_workload(&caller, &which, &named("app"), update).await.unwrap();
    let renamed = reported(&test, &made, "api", is(WorkloadPhase::Running)).await;
    assert_eq!(renamed.report.unwrap().starts, 1, "a process that runs is not touched");

    let api = named("api");
    let command = |verb| test.control.command_workload(&caller, &which, &api, verb);
    command(WorkloadVerb::Stop).await.unwrap();
    reported(&test, &made, "api", is(WorkloadPhase::Stopped)).await;
    command(WorkloadVerb::Start).await.unwrap();
    reported(&test, &made, "api", is(WorkloadPhase::Running)).await;
    command(WorkloadVerb::Restart).await.unwrap();
    let third = reported(&test, &made, "api", |report| report.turn == 2);
    assert_eq!(third.await.report.unwrap().starts, 3);

    test.control.delete_workload(&caller, &which, &named("api")).await.unwrap();
    let told = async {
        while !supervisor(&test, &made).told().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, told).await.expect("the guest was told in time");
    let gone = test.control.workload(&caller, &which, &named("api")).await.unwrap_err();
    assert_eq!(gone.kind(), &ErrorKind::NotFound { what: "workload" });
}

#[tokio::test]
async fn a_start_of_what_has_ended_runs_it_once_more_and_of_what_runs_changes_nothing() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let job = NewWorkload {
        name: Some("job".to_owned()),
        ..NewWorkload::new(["echo", "done"].map(str::to_owned).into())
    };
    let made = make(&test, &caller, vec![job, service("app")]).await;
    let which = by_id(&made);
    reported(&test, &made, "job", is(WorkloadPhase::Ended)).await;
    reported(&test, &made, "app", is(WorkloadPhase::Running)).await;
    for name in ["job", "app"] {
        let (one, verb) = (named(name), WorkloadVerb::Start);
        test.control.command_workload(&caller, &which, &one, verb).await.unwrap();
    }
    reported(&test, &made, "job", |report| report.starts == 2).await;
    let app = reported(&test, &made, "app", is(WorkloadPhase::Running)).await;
    assert_eq!(app.report.unwrap().starts, 1);
    let (job, part) = (named("job"), LogPart::Tail { lines: 9 });
    let log = test.control.workload_log(&caller, &which, &job, part).await.unwrap();
    let lines: Vec<String> = log.lines.into_iter().map(|line| line.text).collect();
    assert_eq!(lines, ["done", "done"]);
}

#[tokio::test]
async fn processes_outlive_the_server_and_are_not_started_again_by_the_next() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = make(&test, &caller, vec![service("app")]).await;
    reported(&test, &made, "app", is(WorkloadPhase::Running)).await;
    let test = test.reopen().await;
    test.compared().await;
    let caller = test.caller().await;
    let which = by_id(&made);
    test.control.create_workload(&caller, &which, service("late")).await.unwrap();
    reported(&test, &made, "late", is(WorkloadPhase::Running)).await;
    let app = reported(&test, &made, "app", is(WorkloadPhase::Running)).await;
    assert_eq!(app.report.unwrap().starts, 1);
}

#[tokio::test]
async fn what_was_changed_while_the_workspace_slept_holds_when_it_wakes() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = make(&test, &caller, vec![service("app"), service("old")]).await;
    for name in ["app", "old"] {
        reported(&test, &made, name, is(WorkloadPhase::Running)).await;
    }
    let which = by_id(&made);
    test.control.suspend_workspace(&caller, &which, ground::LONG).await.unwrap();
    test.control.delete_workload(&caller, &which, &named("old")).await.unwrap();
    test.control.resume_workspace(&caller, &which, ground::LONG).await.unwrap();
    let told = async {
        while supervisor(&test, &made).told().len() != 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, told).await.expect("the guest was told in time");
    let app = reported(&test, &made, "app", is(WorkloadPhase::Running)).await;
    assert_eq!(app.report.unwrap().starts, 1, "it went on where it was");
}

#[tokio::test]
async fn a_fork_has_the_workloads_of_its_source_and_their_processes_go_on() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = make(&test, &caller, vec![service("app")]).await;
    let source = reported(&test, &made, "app", is(WorkloadPhase::Running)).await;
    let request = ForkWorkspace {
        name: None,
        count: 1,
        snapshot_name: None,
        metadata: None,
        start: StartPolicy::Now(ground::LONG),
    };
    let forked = test.control.fork_workspace(&caller, &by_id(&made), request).await.unwrap();
    let fork = &forked.workspaces[0];
    let copy = reported(&test, fork, "app", is(WorkloadPhase::Running)).await;
    assert_eq!(copy.workload.id, source.workload.id);
    assert_eq!(copy.report.unwrap().starts, 1);
    test.control.delete_workload(&caller, &by_id(fork), &named("app")).await.unwrap();
    reported(&test, &made, "app", is(WorkloadPhase::Running)).await;
}

#[tokio::test]
async fn the_end_of_a_workload_pauses_or_stops_its_workspace_once_if_it_is_to() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let ends = |name, on_exit| NewWorkload { on_exit, ..service(name) };
    let all = vec![ends("pauses", OnExit::Pause), ends("stops", OnExit::Stop)];
    let made = make(&test, &caller, all).await;
    for name in ["pauses", "stops"] {
        reported(&test, &made, name, is(WorkloadPhase::Running)).await;
    }
    supervisor(&test, &made).end("pauses", WorkloadEnd::Code(0));
    until(&test, &made, |record| matches!(record.state, State::Paused { .. })).await;
    // Resumed, it runs on: its end was acted on.
    test.control.resume_workspace(&caller, &by_id(&made), ground::LONG).await.unwrap();
    let acted = reported(&test, &made, "pauses", |report| report.is_acknowledged).await;
    assert_eq!(acted.report.unwrap().phase, WorkloadPhase::Ended);
    reported(&test, &made, "stops", is(WorkloadPhase::Running)).await;
    assert!(is_running(&now(&test, &made).await));
    supervisor(&test, &made).end("stops", WorkloadEnd::Code(1));
    until(&test, &made, |record| record.state == State::Stopped).await;
}

fn main_command(restart: WorkloadRestart) -> NewWorkload {
    NewWorkload { on_exit: OnExit::Exit, restart, ..service("main") }
}

#[tokio::test]
async fn a_main_command_that_succeeds_ends_its_workspace_as_if_by_itself() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let made = make(&test, &caller, vec![main_command(WorkloadRestart::default())]).await;
    reported(&test, &made, "main", is(WorkloadPhase::Running)).await;
    supervisor(&test, &made).end("main", WorkloadEnd::Code(0));
    let ended = until(&test, &made, |record| record.state == State::Stopped).await;
    assert_eq!(ended.lifecycle.last_end.unwrap().cause.as_str(), "guest_exit");
}

#[tokio::test]
async fn a_main_command_that_fails_is_a_failure_to_the_restart_policy() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let restart = RestartPolicy { mode: RestartMode::OnFailure, ..RestartPolicy::default() };
    let request = CreateWorkspace {
        restart,
        workloads: vec![main_command(WorkloadRestart::default())],
        ..running()
    };
    let made = test.control.create_workspace(&caller, request).await.unwrap();
    reported(&test, &made, "main", is(WorkloadPhase::Running)).await;
    supervisor(&test, &made).end("main", WorkloadEnd::Code(3));
    let ended = until(&test, &made, |record| record.lifecycle.restart_at.is_some()).await;
    assert_eq!(ended.lifecycle.last_end.unwrap().cause.as_str(), "crash");
    test.advance(Duration::from_secs(60));
    until(&test, &made, |record| is_running(record) && record.incarnation > made.incarnation).await;
    reported(&test, &made, "main", is(WorkloadPhase::Running)).await;
}

#[tokio::test]
async fn a_workspace_that_is_removed_on_exit_goes_with_its_main_command() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let request = CreateWorkspace {
        remove_on_exit: true,
        workloads: vec![main_command(WorkloadRestart::default())],
        ..running()
    };
    let made = test.control.create_workspace(&caller, request).await.unwrap();
    reported(&test, &made, "main", is(WorkloadPhase::Running)).await;
    supervisor(&test, &made).end("main", WorkloadEnd::Code(0));
    let gone = async {
        while test.control.get_workspace(&caller, &by_id(&made)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, gone).await.expect("gone in time");
}

#[tokio::test]
async fn an_end_that_the_workloads_own_policy_mends_is_none_for_the_workspace() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let always = WorkloadRestart { mode: RestartMode::Always, ..WorkloadRestart::default() };
    let made = make(&test, &caller, vec![main_command(always)]).await;
    reported(&test, &made, "main", is(WorkloadPhase::Running)).await;
    supervisor(&test, &made).end("main", WorkloadEnd::Code(3));
    let waits = reported(&test, &made, "main", is(WorkloadPhase::Waiting)).await;
    assert_eq!(waits.report.unwrap().restarts, 1);
    assert!(is_running(&now(&test, &made).await));
}

#[tokio::test]
async fn a_snapshots_workspace_and_one_without_workloads_are_left_as_they_are() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let plain = make(&test, &caller, Vec::new()).await;
    assert_eq!(test.control.workloads(&caller, &by_id(&plain)).await.unwrap(), []);
    let made = make(&test, &caller, vec![service("app")]).await;
    reported(&test, &made, "app", is(WorkloadPhase::Running)).await;
    let taken = test.control.create_snapshot(&caller, &by_id(&made), of(None), ground::LONG).await;
    let request = CreateWorkspace {
        from_snapshot: Some(skerry_control::SnapshotRef::Id(taken.unwrap().id)),
        ..running()
    };
    let clone = test.control.create_workspace(&caller, request).await.unwrap();
    assert_eq!(test.control.workloads(&caller, &by_id(&clone)).await.unwrap(), []);
    let told: Vec<String> =
        supervisor(&test, &clone).told().into_iter().map(|one| one.name).collect();
    assert_eq!(told, ["app"], "what its memory holds goes on");
}

#[tokio::test]
async fn somebody_elses_workloads_are_not_there() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let (other, _) = test.other_caller("other").await;
    let made = make(&test, &caller, vec![service("app")]).await;
    let which = by_id(&made);
    let not_found = ErrorKind::NotFound { what: "workspace" };
    let listed = test.control.workloads(&other, &which).await.unwrap_err();
    let added = test.control.create_workload(&other, &which, service("x")).await.unwrap_err();
    let (app, part) = (named("app"), LogPart::Tail { lines: 1 });
    let log = test.control.workload_log(&other, &which, &app, part).await.unwrap_err();
    for error in [listed, added, log] {
        assert_eq!(error.kind(), &not_found);
    }
}

#[tokio::test]
async fn what_workloads_keep_secret_is_sealed_in_the_database_and_there_after_it_was_opened_again()
{
    let test = testing::open().await;
    let caller = test.caller().await;
    let secret = EnvVar { key: "TOKEN".to_owned(), value: "swordfish-of-the-variable".to_owned() };
    let mut app = service("app");
    app.argv.push("--key=hunter2-of-the-command".to_owned());
    app.env.push(secret.clone());
    let made = make(&test, &caller, vec![app]).await;
    reported(&test, &made, "app", is(WorkloadPhase::Running)).await;
    let test = test.reopen().await;
    for name in ["skerry.db", "skerry.db-wal"] {
        let bytes = std::fs::read(test.database.with_file_name(name)).unwrap_or_default();
        for word in ["swordfish-of-the-variable", "hunter2-of-the-command"] {
            let found = bytes.windows(word.len()).any(|part| part == word.as_bytes());
            assert!(!found, "{word} in {name}");
        }
    }
    let caller = test.caller().await;
    let kept = test.control.workload(&caller, &by_id(&made), &named("app")).await.unwrap().workload;
    assert_eq!(kept.env, [secret]);
    assert_eq!(kept.argv.last().unwrap(), "--key=hunter2-of-the-command");
}
