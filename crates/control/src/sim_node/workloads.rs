//! The simulated supervisor. A process whose command has `sleep` or `serve` in it runs until it is told
//! otherwise ([`SimSupervisor::end`]); `echo`, `true`, `false` and scripts of `sh -c` end at once, and so do
//! those of `/bin/bash -c`, the last word of its command, unless a line begins with `sleep`; everything else
//! cannot be started. One that would be started again waits for that for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use skerry_internal_api::{
    LogPart, LogStream, NodeError, SupervisorApi, WorkloadEnd, WorkloadLog, WorkloadLogLine,
    WorkloadPhase, WorkloadReport, WorkloadReports,
};
use skerry_model::{RestartMode, Timestamp, Workload, WorkloadDesired, WorkloadId, WorkloadKind};
use tokio::sync::watch;

use super::guest::SimGuest;

/// The supervisor of a simulated guest.
pub struct SimSupervisor {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    state: Mutex<Kept>,
    number: watch::Sender<u64>,
}

/// What is in memory, and what is on the disk.
#[derive(Default)]
struct Kept {
    memory: Supervised,
    logs: BTreeMap<WorkloadId, Vec<WorkloadLogLine>>,
    /// Setup that has run, with its turn.
    has_run: BTreeSet<(WorkloadId, u64)>,
}

/// What a supervisor has in memory.
#[derive(Clone, Default)]
pub(super) struct Supervised(Vec<(Workload, WorkloadReport)>);

enum Fate {
    RunsOn,
    Ends(WorkloadEnd, Option<String>),
}

fn fate(argv: &[String]) -> Fate {
    if let [program, flag, .., script] = argv
        && (program.as_str(), flag.as_str()) == ("/bin/bash", "-c")
    {
        return script_fate(script);
    }
    let line = argv.join(" ");
    let code = |code| Fate::Ends(WorkloadEnd::Code(code), None);
    if line.contains("sleep") || line.contains("serve") {
        return Fate::RunsOn;
    }
    match argv.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["true"] => code(0),
        ["false"] => code(1),
        ["echo", rest @ ..] => Fate::Ends(WorkloadEnd::Code(0), Some(rest.join(" "))),
        ["sh", "-c", script] => script_fate(script),
        _ => Fate::Ends(WorkloadEnd::NotStarted, None),
    }
}

/// Of a script, lines that begin with `sleep`, `echo` and `exit` do what they say.
fn script_fate(script: &str) -> Fate {
    let lines = || script.lines().map(str::trim);
    if lines().any(|line| line.starts_with("sleep ")) {
        return Fate::RunsOn;
    }
    let said: Vec<&str> = lines().filter_map(|line| line.strip_prefix("echo ")).collect();
    let code = lines().find_map(|line| line.strip_prefix("exit ")?.parse().ok()).unwrap_or(0);
    Fate::Ends(WorkloadEnd::Code(code), (!said.is_empty()).then(|| said.join("\n")))
}

impl SimSupervisor {
    pub(super) fn new(now: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Arc<Self> {
        Arc::new(Self { now, state: Mutex::default(), number: watch::Sender::new(1) })
    }

    fn state(&self) -> MutexGuard<'_, Kept> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.number.send_modify(|number| *number += 1);
    }

    /// A boot: nothing is supervised until it is said again.
    pub(super) fn boot(&self) {
        self.state().memory = Supervised::default();
        self.changed();
    }

    pub(super) fn memory(&self) -> Supervised {
        self.state().memory.clone()
    }

    pub(super) fn wake(&self, memory: Supervised) {
        self.state().memory = memory;
        self.changed();
    }

    /// What a host has said last, for tests.
    #[must_use]
    pub fn told(&self) -> Vec<Workload> {
        self.state().memory.0.iter().map(|(workload, _)| workload.clone()).collect()
    }

    /// Ends the process of the workload with this name.
    pub fn end(&self, name: &str, end: WorkloadEnd) {
        let now = (self.now)();
        let mut state = self.state();
        let state = &mut *state;
        if let Some((workload, report)) =
            state.memory.0.iter_mut().find(|(workload, _)| workload.name == name)
        {
            ended(workload, report, end, now, &mut state.has_run);
        }
        self.changed();
    }

    fn start(&self, kept: &mut Kept, index: usize) {
        let now = (self.now)();
        let Some((workload, report)) = kept.memory.0.get_mut(index) else { return };
        report.turn = workload.turn;
        report.restarts = 0;
        report.is_acknowledged = false;
        let once = workload.kind == WorkloadKind::SetupOnce;
        if once && kept.has_run.contains(&(workload.id, workload.turn)) {
            report.phase = WorkloadPhase::Ended;
            return;
        }
        report.starts += 1;
        report.started_at = Some(now);
        match fate(&workload.argv) {
            Fate::RunsOn => {
                report.phase = WorkloadPhase::Running;
                report.pid = Some(100 + u32::try_from(index).unwrap_or(0));
                report.processes = 1;
                report.memory_bytes = 1024 * 1024;
            }
            Fate::Ends(end, said) => {
                if let Some(text) = said {
                    let line = WorkloadLogLine { at: now, stream: LogStream::Stdout, text };
                    kept.logs.entry(workload.id).or_default().push(line);
                }
                ended(workload, report, end, now, &mut kept.has_run);
            }
        }
    }
}

impl SimGuest {
    /// What runs in it by itself, to end processes or to look at them.
    #[must_use]
    pub fn sim_supervisor(&self) -> Arc<SimSupervisor> {
        Arc::clone(&self.supervisor)
    }
}

fn ended(
    workload: &Workload,
    report: &mut WorkloadReport,
    end: WorkloadEnd,
    now: Timestamp,
    has_run: &mut BTreeSet<(WorkloadId, u64)>,
) {
    report.pid = None;
    report.processes = 0;
    report.memory_bytes = 0;
    report.last_end = Some(end);
    report.ended_at = Some(now);
    let again = match workload.restart.mode {
        RestartMode::Never => false,
        RestartMode::OnFailure => !end.is_success(),
        RestartMode::Always => true,
    };
    let most = workload.restart.max_restarts;
    if again && (most == 0 || report.restarts < most) {
        report.restarts += 1;
        report.phase = WorkloadPhase::Waiting;
    } else {
        report.phase = WorkloadPhase::Ended;
        if workload.kind == WorkloadKind::SetupOnce {
            has_run.insert((workload.id, workload.turn));
        }
    }
}

fn fresh(workload: &Workload) -> WorkloadReport {
    WorkloadReport {
        id: workload.id,
        phase: WorkloadPhase::Stopped,
        turn: workload.turn,
        starts: 0,
        restarts: 0,
        pid: None,
        last_end: None,
        start_error: None,
        started_at: None,
        ended_at: None,
        is_acknowledged: false,
        cpu_used_ms: 0,
        memory_bytes: 0,
        processes: 0,
    }
}

#[async_trait]
impl SupervisorApi for SimSupervisor {
    async fn set_workloads(&self, workloads: &[Workload]) -> Result<(), NodeError> {
        let mut state = self.state();
        let before = std::mem::take(&mut state.memory.0);
        state.logs.retain(|id, _| workloads.iter().any(|workload| workload.id == *id));
        for workload in workloads {
            let there = before.iter().find(|(other, _)| other.id == workload.id);
            let report = there.map_or_else(|| fresh(workload), |(_, report)| report.clone());
            state.memory.0.push((workload.clone(), report));
            let index = state.memory.0.len() - 1;
            let Some((_, report)) = state.memory.0.last_mut() else { continue };
            let is_new_turn =
                report.turn != workload.turn || report.phase == WorkloadPhase::Stopped;
            match workload.desired {
                WorkloadDesired::Running if is_new_turn => self.start(&mut state, index),
                WorkloadDesired::Running => {}
                WorkloadDesired::Stopped => {
                    report.phase = WorkloadPhase::Stopped;
                    report.pid = None;
                    report.processes = 0;
                }
            }
        }
        drop(state);
        self.changed();
        Ok(())
    }

    async fn watch_workloads(
        &self,
        seen: u64,
        wait: Duration,
    ) -> Result<WorkloadReports, NodeError> {
        if seen > 0 {
            let mut number = self.number.subscribe();
            let news = number.wait_for(|number| *number != seen);
            // The sender is ours; no news is an answer too.
            let _ = tokio::time::timeout(wait, news).await;
        }
        let number = *self.number.borrow();
        let reports = self.state().memory.0.iter().map(|(_, report)| report.clone()).collect();
        Ok(WorkloadReports { number, reports })
    }

    async fn acknowledge_end(&self, id: WorkloadId, starts: u64) -> Result<(), NodeError> {
        for (_, report) in &mut self.state().memory.0 {
            if report.id == id && report.starts == starts {
                report.is_acknowledged = true;
            }
        }
        self.changed();
        Ok(())
    }

    async fn workload_log(&self, id: WorkloadId, part: LogPart) -> Result<WorkloadLog, NodeError> {
        let all = self.state().logs.get(&id).cloned().unwrap_or_default();
        let end = all.len() as u64;
        let (skip, wait) = match part {
            LogPart::Tail { lines } => (end.saturating_sub(u64::from(lines)), None),
            LogPart::After { position, wait } => (position, Some(wait)),
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let lines: Vec<_> = all.into_iter().skip(skip).collect();
        if let (true, Some(wait)) = (lines.is_empty(), wait) {
            // Nothing is ever said later.
            tokio::time::sleep(wait).await;
        }
        Ok(WorkloadLog { lines, position: end, has_more: false })
    }

    async fn clear_workload_log(&self, id: WorkloadId) -> Result<(), NodeError> {
        self.state().logs.remove(&id);
        Ok(())
    }
}
