use skerry_internal_api::{
    GuestApi, LogPart, LogStream, SupervisorApi, WorkloadEnd, WorkloadPhase, WorkloadReport,
};
use skerry_model::{
    Backoff, EnvVar, OnExit, RestartMode, Timestamp, Workload, WorkloadDesired, WorkloadId,
    WorkloadKind, WorkloadOrigin, WorkloadRestart,
};

use super::*;

/// Says when it begins and when it was asked to end; what its shell has to say of that is nobody's.
const UNTIL_ASKED: &str =
    "exec 2>/dev/null; trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done";
const NEWS_WITHIN: Duration = Duration::from_secs(20);

fn workload(number: u128, script: &str) -> Workload {
    Workload {
        id: WorkloadId::from_u128(number),
        name: format!("w{number}"),
        kind: WorkloadKind::Service,
        argv: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        env: Vec::new(),
        working_dir: None,
        user: None,
        restart: WorkloadRestart {
            backoff: Backoff { first_seconds: 0, most_seconds: 0 },
            ..WorkloadRestart::default()
        },
        on_exit: OnExit::Nothing,
        log_limit_kib: 64,
        keeps_log: true,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        desired: WorkloadDesired::Running,
        turn: 1,
        origin: WorkloadOrigin::Direct,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
    }
}

fn restarted(workload: Workload, mode: RestartMode, max_restarts: u32) -> Workload {
    Workload { restart: WorkloadRestart { mode, max_restarts, ..workload.restart }, ..workload }
}

/// The report of a workload once it is as wanted.
async fn reported(
    supervisor: &dyn SupervisorApi,
    number: u128,
    wanted: impl Fn(&WorkloadReport) -> bool,
) -> WorkloadReport {
    within(async {
        let mut seen = 0;
        loop {
            let said = supervisor.watch_workloads(seen, NEWS_WITHIN).await.unwrap();
            seen = said.number;
            let one = said.reports.into_iter().find(|one| one.id == WorkloadId::from_u128(number));
            if let Some(one) = one.filter(&wanted) {
                return one;
            }
        }
    })
    .await
}

fn is(phase: WorkloadPhase) -> impl Fn(&WorkloadReport) -> bool {
    move |report| report.phase == phase
}

/// What the workload has said once `enough` lines of its own are there.
async fn lines(supervisor: &dyn SupervisorApi, number: u128, enough: usize) -> Vec<String> {
    within(async {
        let (mut position, mut own) = (0, Vec::new());
        while own.len() < enough {
            let part = LogPart::After { position, wait: NEWS_WITHIN };
            let log = supervisor.workload_log(WorkloadId::from_u128(number), part).await.unwrap();
            position = log.position;
            let said = log.lines.into_iter().filter(|line| line.stream != LogStream::Supervisor);
            own.extend(said.map(|line| line.text));
        }
        own
    })
    .await
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_workload_runs_with_the_workspaces_environment_and_its_own_and_its_output_is_kept() {
    let lab = Lab::open().await;
    let supervisor = lab.link.supervisor();
    let mut one = workload(1, "echo $FROM_WORKSPACE $OWN; echo wrong >&2; exec sleep 1000");
    one.env = vec![EnvVar { key: "OWN".to_owned(), value: "own".to_owned() }];
    supervisor.set_workloads(&[one]).await.unwrap();
    let running = reported(&*supervisor, 1, is(WorkloadPhase::Running)).await;
    assert_eq!((running.starts, running.restarts, running.turn), (1, 0, 1));
    let mut said = lines(&*supervisor, 1, 2).await;
    said.sort();
    assert_eq!(said, ["wrong", "yes own"]);
    let tail = LogPart::Tail { lines: 100 };
    let log = supervisor.workload_log(WorkloadId::from_u128(1), tail).await.unwrap();
    let streams: Vec<LogStream> = log.lines.iter().map(|line| line.stream).collect();
    assert!(streams.contains(&LogStream::Stdout) && streams.contains(&LogStream::Stderr));
}

#[tokio::test]
async fn workloads_go_on_while_no_host_is_there_and_are_not_started_again_when_one_comes() {
    let lab = Lab::open().await;
    let supervisor = lab.link.supervisor();
    let all = [workload(1, "exec sleep 1000")];
    supervisor.set_workloads(&all).await.unwrap();
    let before = reported(&*supervisor, 1, is(WorkloadPhase::Running)).await;
    lab.line.cut();
    lab.link.close().await;
    assert!(exists(before.pid.unwrap()));
    let dial: Arc<dyn Dial> = Arc::clone(&lab.line) as _;
    let link = GuestLink::open(dial, hello(), Duration::from_secs(20)).await.unwrap();
    let supervisor = link.supervisor();
    supervisor.set_workloads(&all).await.unwrap();
    let after = reported(&*supervisor, 1, is(WorkloadPhase::Running)).await;
    assert_eq!((after.pid, after.starts), (before.pid, 1));
}

#[tokio::test]
async fn a_workload_is_started_again_as_its_policy_says_and_no_more_often() {
    let lab = Lab::open().await;
    let supervisor = lab.link.supervisor();
    supervisor
        .set_workloads(&[
            restarted(workload(1, "exit 3"), RestartMode::OnFailure, 2),
            restarted(workload(2, "exit 0"), RestartMode::OnFailure, 2),
            restarted(workload(3, "exit 0"), RestartMode::Always, 4),
            restarted(workload(4, "kill -9 $$"), RestartMode::Never, 0),
        ])
        .await
        .unwrap();
    let ended = is(WorkloadPhase::Ended);
    let mut seen = Vec::new();
    for number in 1..=4 {
        let report = reported(&*supervisor, number, &ended).await;
        seen.push((report.starts, report.restarts, report.last_end.unwrap()));
    }
    assert_eq!(
        seen,
        [
            (3, 2, WorkloadEnd::Code(3)),
            (1, 0, WorkloadEnd::Code(0)),
            (5, 4, WorkloadEnd::Code(0)),
            (1, 0, WorkloadEnd::Signal(9)),
        ]
    );
}

#[tokio::test]
async fn what_cannot_be_started_says_why_and_counts_as_a_failure() {
    let lab = Lab::open().await;
    let supervisor = lab.link.supervisor();
    let mut one = restarted(workload(1, ""), RestartMode::OnFailure, 1);
    one.argv = vec!["no-such-program-here".to_owned()];
    supervisor.set_workloads(&[one]).await.unwrap();
    let report = reported(&*supervisor, 1, is(WorkloadPhase::Ended)).await;
    assert_eq!((report.starts, report.last_end), (2, Some(WorkloadEnd::NotStarted)));
    assert_eq!(report.start_error.unwrap(), "no-such-program-here: command not found");
}

#[tokio::test]
async fn a_workload_is_stopped_started_and_run_anew_as_asked() {
    let lab = Lab::open().await;
    let supervisor = lab.link.supervisor();
    let one = workload(1, UNTIL_ASKED);
    supervisor.set_workloads(std::slice::from_ref(&one)).await.unwrap();
    let first = reported(&*supervisor, 1, is(WorkloadPhase::Running)).await;
    lines(&*supervisor, 1, 1).await;
    let stopped = Workload { desired: WorkloadDesired::Stopped, ..one.clone() };
    supervisor.set_workloads(&[stopped]).await.unwrap();
    let report = reported(&*supervisor, 1, is(WorkloadPhase::Stopped)).await;
    assert_eq!((report.pid, report.last_end), (None, Some(WorkloadEnd::Code(0))));
    assert!(!exists(first.pid.unwrap()));
    supervisor.set_workloads(std::slice::from_ref(&one)).await.unwrap();
    let second = reported(&*supervisor, 1, |report| report.starts == 2 && report.pid.is_some());
    let second = second.await;
    assert_eq!(second.turn, 1);
    let again = Workload { turn: 2, ..one };
    supervisor.set_workloads(&[again]).await.unwrap();
    let third = reported(&*supervisor, 1, |report| report.starts == 3 && report.pid.is_some());
    let third = third.await;
    assert_eq!(third.turn, 2);
    assert_ne!(third.pid, second.pid);
    assert_eq!(&lines(&*supervisor, 1, 3).await[..3], ["up", "bye", "up"]);
}

#[tokio::test]
async fn what_is_not_named_any_more_has_ended_and_left_nothing() {
    let lab = Lab::open().await;
    let supervisor = lab.link.supervisor();
    supervisor
        .set_workloads(&[workload(1, "echo hi; exec sleep 1000"), workload(2, "exec sleep 1000")])
        .await
        .unwrap();
    let gone = reported(&*supervisor, 1, is(WorkloadPhase::Running)).await;
    let stays = reported(&*supervisor, 2, is(WorkloadPhase::Running)).await;
    lines(&*supervisor, 1, 1).await;
    supervisor.set_workloads(&[workload(2, "exec sleep 1000")]).await.unwrap();
    assert!(!exists(gone.pid.unwrap()));
    let kept = reported(&*supervisor, 2, is(WorkloadPhase::Running)).await;
    assert_eq!(kept.pid, stays.pid);
    let dir = lab.path(".skerry-workloads").join(WorkloadId::from_u128(1).to_string());
    assert!(!dir.exists());
    let tail = LogPart::Tail { lines: 1 };
    let refused = supervisor.workload_log(WorkloadId::from_u128(1), tail).await.unwrap_err();
    assert!(matches!(refused, NodeError::Invalid { .. }), "{refused:?}");
}

#[tokio::test]
async fn setup_runs_in_order_before_services_and_one_that_fails_holds_nobody_up() {
    let lab = Lab::open().await;
    let supervisor = lab.link.supervisor();
    let order = lab.text_path("order");
    let setup = |number, kind, script: &str| Workload {
        kind,
        ..workload(number, &format!("echo {number} >> {order}; {script}"))
    };
    let service = workload(3, &format!("echo 3 >> {order}; exec sleep 1000"));
    let all = [
        setup(1, WorkloadKind::SetupOnce, "sleep 0.3; exit 7"),
        setup(2, WorkloadKind::SetupAtBoot, "sleep 0.3"),
        service,
    ];
    supervisor.set_workloads(&all).await.unwrap();
    reported(&*supervisor, 3, is(WorkloadPhase::Running)).await;
    let first = reported(&*supervisor, 1, is(WorkloadPhase::Ended)).await;
    assert_eq!(first.last_end, Some(WorkloadEnd::Code(7)));
    let said = within(async {
        loop {
            let said = std::fs::read_to_string(&order).unwrap();
            if said.lines().count() == 3 {
                return said;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(said.await, "1\n2\n3\n");
    lab.guest.settle(Duration::from_secs(20)).await;

    // Another boot of the same disk: what runs once has run, however it ended.
    let guest = Arc::new(Guest::hosted(lab.home.path().to_owned()));
    let line: Arc<dyn Dial> = Line::new(&guest, Bytes::new()) as _;
    let link = GuestLink::open(line, hello(), Duration::from_secs(20)).await.unwrap();
    let supervisor = link.supervisor();
    supervisor.set_workloads(&all).await.unwrap();
    let first = reported(&*supervisor, 1, is(WorkloadPhase::Ended)).await;
    assert_eq!((first.starts, first.last_end), (0, Some(WorkloadEnd::Code(7))));
    let second = reported(&*supervisor, 2, is(WorkloadPhase::Ended)).await;
    assert_eq!(second.starts, 1);
}

#[tokio::test]
async fn an_end_that_was_acted_on_is_known_as_that_until_the_next_start() {
    let lab = Lab::open().await;
    let supervisor = lab.link.supervisor();
    let one = workload(1, "exit 1");
    supervisor.set_workloads(std::slice::from_ref(&one)).await.unwrap();
    let report = reported(&*supervisor, 1, is(WorkloadPhase::Ended)).await;
    assert!(!report.is_acknowledged);
    supervisor.acknowledge_end(report.id, report.starts + 1).await.unwrap();
    assert!(!reported(&*supervisor, 1, |_| true).await.is_acknowledged);
    supervisor.acknowledge_end(report.id, report.starts).await.unwrap();
    assert!(reported(&*supervisor, 1, |_| true).await.is_acknowledged);
    supervisor.set_workloads(&[Workload { turn: 2, ..one }]).await.unwrap();
    let again = reported(&*supervisor, 1, |report| {
        report.starts == 2 && report.phase == WorkloadPhase::Ended
    });
    assert!(!again.await.is_acknowledged);
}

#[tokio::test]
async fn use_of_resources_is_that_of_the_workloads_processes() {
    let lab = Lab::open().await;
    let supervisor = lab.link.supervisor();
    supervisor.set_workloads(&[workload(1, "sleep 1000 & exec sleep 1000")]).await.unwrap();
    let report = within(async {
        loop {
            let report = reported(&*supervisor, 1, |_| true).await;
            if report.processes == 2 {
                return report;
            }
        }
    });
    assert!(report.await.memory_bytes > 0);
}

#[tokio::test]
async fn a_log_is_emptied_when_asked() {
    let lab = Lab::open().await;
    let supervisor = lab.link.supervisor();
    supervisor.set_workloads(&[workload(1, "echo secret; exec sleep 1000")]).await.unwrap();
    lines(&*supervisor, 1, 1).await;
    let id = WorkloadId::from_u128(1);
    supervisor.clear_workload_log(id).await.unwrap();
    let log = supervisor.workload_log(id, LogPart::Tail { lines: 10 }).await.unwrap();
    assert_eq!(log.lines, []);
}
