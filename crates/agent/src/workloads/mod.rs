//! Workloads: processes the agent supervises by itself. A host says what shall run
//! ([`set`]); the agent starts it, keeps its output, starts it again as it was told, and goes on with all
//! of that while no host is connected. Nothing of it is kept over a boot but output and the note that setup
//! has run: the host says again what shall run.

mod group;
mod log;
mod marker;
mod runner;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::unistd::Pid;
use skerry_agent_protocol::{
    limits::{ARGV_MAX, WORKLOAD_WAIT_MAX_MS, WORKLOADS_MAX},
    message::{Empty, FailureCode},
    workload::{
        AcknowledgeEnd, ClearLog, Kind, LogLines, Phase, ReadLog, SetWorkloads, WatchWorkloads,
        Workload, WorkloadReport, WorkloadReports,
    },
};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{AgentError, Guest, configure::check_env};
use group::Group;
use log::Log;
use marker::Marker;
use runner::Runner;

/// Where each workload has a directory, in a machine of its own.
const DIR: &str = "/var/lib/skerry/workloads";
/// The same below the home of a hosted guest.
const HOSTED_DIR: &str = ".skerry-workloads";
/// Writers of logs at the same time: each holds a thread for as long as a file system is frozen, and
/// enough threads have to be left to thaw it.
const LOG_WRITERS: usize = 8;
/// How long a workload that is none any more is waited for before a new one of its name may begin.
const GONE_WITHIN: Duration = Duration::from_secs(20);
const ID_MAX: usize = 64;

/// Everything that is supervised.
#[derive(Debug)]
pub(crate) struct Supervisor {
    entries: Mutex<Vec<Entry>>,
    /// Counts the changes of what is reported.
    number: watch::Sender<u64>,
    /// Held while a host says what shall run.
    setting: tokio::sync::Mutex<()>,
    log_writers: Semaphore,
    ending: CancellationToken,
}

#[derive(Debug)]
struct Entry {
    order: watch::Sender<Option<Arc<Workload>>>,
    kind: Kind,
    report: WorkloadReport,
    log: Arc<Log>,
    group: Arc<Group>,
    /// Cancelled when its task has ended.
    gone: CancellationToken,
}

/// A workload's task, and what is cancelled when it has ended.
type Task = (Runner, CancellationToken);
/// A workload that is about to be supervised.
type New = (Entry, Task);

impl Entry {
    fn change(&mut self, workload: Workload) {
        self.log.set_limit(workload.log_max_bytes);
        self.kind = workload.kind;
        let report = &mut self.report;
        let is_new_turn = workload.turn != report.turn || report.phase == Phase::Stopped;
        if workload.runs && is_over(report.phase) && is_new_turn {
            // From now on, not only once its task has noticed: others may wait for it.
            report.phase = Phase::Waiting;
        }
        self.order.send_if_modified(|order| {
            let workload = Some(Arc::new(workload));
            let is_new = *order != workload;
            *order = workload;
            is_new
        });
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            number: watch::Sender::new(1),
            setting: tokio::sync::Mutex::default(),
            log_writers: Semaphore::new(LOG_WRITERS),
            ending: CancellationToken::new(),
        }
    }
}

impl Supervisor {
    /// Ends everything that is supervised.
    pub(crate) fn end(&self) {
        self.ending.cancel();
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is reported of a workload.
    fn report(&self, id: &str, change: impl FnOnce(&mut WorkloadReport)) {
        if let Some(entry) = self.entries().iter_mut().find(|entry| entry.report.id == id) {
            change(&mut entry.report);
        }
        self.number.send_modify(|number| *number += 1);
    }

    /// Completes when all setup that comes before this workload has ended or was stopped.
    async fn setup_over(&self, id: &str) {
        let mut number = self.number.subscribe();
        let over = |_: &u64| {
            let entries = self.entries();
            let before = entries.iter().take_while(|entry| entry.report.id != id);
            before
                .filter(|entry| entry.kind != Kind::Service)
                .all(|entry| is_over(entry.report.phase))
        };
        // The sender is ours.
        let _ = number.wait_for(over).await;
    }

    /// Makes these the workloads, in their order. Those that are there go on with what is new of them.
    fn take_over(&self, workloads: Vec<Workload>, mut new: Vec<New>) -> Vec<Task> {
        let mut tasks = Vec::new();
        {
            let mut entries = self.entries();
            let mut before = std::mem::take(&mut *entries);
            for workload in workloads {
                let is_it = |entry: &Entry| entry.report.id == workload.id;
                if let Some(index) = before.iter().position(is_it) {
                    let mut entry = before.swap_remove(index);
                    entry.change(workload);
                    entries.push(entry);
                } else if let Some(index) = new.iter().position(|(entry, _)| is_it(entry)) {
                    let (entry, task) = new.swap_remove(index);
                    entries.push(entry);
                    tasks.push(task);
                }
            }
        }
        self.number.send_modify(|number| *number += 1);
        tasks
    }

    fn log_of(&self, id: &str) -> Result<Arc<Log>, AgentError> {
        let entries = self.entries();
        let entry = entries.iter().find(|entry| entry.report.id == id);
        entry.map(|entry| Arc::clone(&entry.log)).ok_or_else(|| no_such(id))
    }
}

const fn is_over(phase: Phase) -> bool {
    match phase {
        Phase::Ended | Phase::Stopped => true,
        Phase::Waiting | Phase::Running | Phase::Stopping | Phase::Unknown => false,
    }
}

fn no_such(id: &str) -> AgentError {
    AgentError::refused(FailureCode::Invalid, format!("there is no workload {id}"))
}

/// Supervises what `request` says and nothing else. Returns when every task knows it.
pub(crate) async fn set(guest: &Arc<Guest>, request: SetWorkloads) -> Result<Empty, AgentError> {
    check(&request.workloads)?;
    let supervisor = guest.supervisor();
    let _setting = supervisor.setting.lock().await;
    remove_all_but(guest, &request.workloads).await;
    let mut new = Vec::new();
    for workload in &request.workloads {
        let is_there = supervisor.entries().iter().any(|entry| entry.report.id == workload.id);
        if !is_there {
            new.push(make(guest, workload.clone()).await?);
        }
    }
    let runners = supervisor.take_over(request.workloads, new);
    for (runner, gone) in runners {
        guest.tasks().spawn(async move {
            let _gone = gone.drop_guard();
            runner.run().await;
        });
    }
    Ok(Empty {})
}

/// Ends all workloads but these and removes what is kept of them.
async fn remove_all_but(guest: &Arc<Guest>, wanted: &[Workload]) {
    let supervisor = guest.supervisor();
    let unwanted: Vec<(String, CancellationToken)> = supervisor
        .entries()
        .iter()
        .filter(|entry| wanted.iter().all(|workload| workload.id != entry.report.id))
        .map(|entry| {
            entry.order.send_replace(None);
            (entry.report.id.clone(), entry.gone.clone())
        })
        .collect();
    for (id, gone) in unwanted {
        // What the kernel holds is left alone.
        let _ = timeout(GONE_WITHIN, gone.cancelled()).await;
        supervisor.entries().retain(|entry| entry.report.id != id);
        let dir = dir_of(guest, &id);
        let removed = guest.blocking(move || {
            std::fs::remove_dir_all(&dir).map_err(|error| AgentError::from_io("its files", &error))
        });
        // It may never have said anything.
        let _ = removed.await;
    }
}

async fn make(guest: &Arc<Guest>, workload: Workload) -> Result<New, AgentError> {
    let id = workload.id.clone();
    let dir = dir_of(guest, &id);
    let (limit, keeps) = (workload.log_max_bytes, workload.keeps_log);
    let (shared, place) = (Arc::clone(guest), dir.clone());
    let (log, group) = guest
        .blocking({
            let id = id.clone();
            move || Ok((Log::open(place, limit, keeps), Group::make(&shared, &id)))
        })
        .await?;
    let (log, group) = (Arc::new(log), Arc::new(group));
    let report = WorkloadReport {
        id: id.clone(),
        phase: if workload.runs { Phase::Waiting } else { Phase::Stopped },
        turn: workload.turn,
        starts: 0,
        restarts: 0,
        pid: None,
        last_end: None,
        start_error: None,
        started_unix_ms: None,
        ended_unix_ms: None,
        is_acknowledged: false,
        cpu_used_ms: 0,
        memory_bytes: 0,
        processes: 0,
    };
    let kind = workload.kind;
    let order = watch::Sender::new(Some(Arc::new(workload)));
    let gone = CancellationToken::new();
    let runner = Runner {
        guest: Arc::clone(guest),
        id,
        orders: order.subscribe(),
        log: Arc::clone(&log),
        group: Arc::clone(&group),
        marker: Marker::in_dir(dir),
    };
    Ok((Entry { order, kind, report, log, group, gone: gone.clone() }, (runner, gone)))
}

fn dir_of(guest: &Guest, id: &str) -> PathBuf {
    let top = guest.hosted_home().map_or_else(|| PathBuf::from(DIR), |home| home.join(HOSTED_DIR));
    top.join(id)
}

fn check(workloads: &[Workload]) -> Result<(), AgentError> {
    if workloads.len() > WORKLOADS_MAX {
        return Err(AgentError::invalid(format!("at most {WORKLOADS_MAX} workloads")));
    }
    let mut seen = HashSet::new();
    for workload in workloads {
        let id = workload.id.as_bytes();
        let fits = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        if id.is_empty() || id.len() > ID_MAX || !id.iter().all(fits) || !seen.insert(id) {
            return Err(AgentError::invalid("id: 1 to 64 of a-z, 0-9 and -, each once"));
        }
        if workload.argv.is_empty() || workload.argv.len() > ARGV_MAX {
            return Err(AgentError::invalid(format!("argv: 1 to {ARGV_MAX} words")));
        }
        check_env(workload.env.iter())?;
    }
    Ok(())
}

/// How the workloads are, once that is something else than the asker has seen or its time is over.
pub(crate) async fn watch(
    guest: &Arc<Guest>,
    request: WatchWorkloads,
) -> Result<WorkloadReports, AgentError> {
    let supervisor = guest.supervisor();
    if request.seen > 0 {
        let wait = Duration::from_millis(request.wait_ms.min(WORKLOAD_WAIT_MAX_MS));
        let mut number = supervisor.number.subscribe();
        let news = number.wait_for(|number| *number != request.seen);
        tokio::select! {
            _ = timeout(wait, news) => {}
            () = guest.powering_off() => {}
        }
    }
    let number = *supervisor.number.borrow();
    let found: Vec<(WorkloadReport, Arc<Group>)> = supervisor
        .entries()
        .iter()
        .map(|entry| (entry.report.clone(), Arc::clone(&entry.group)))
        .collect();
    guest
        .blocking(move || {
            let used = |(report, group): (WorkloadReport, Arc<Group>)| {
                let leader = report.pid.and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
                let usage = group.usage(leader);
                WorkloadReport {
                    cpu_used_ms: usage.cpu_used_ms,
                    memory_bytes: usage.memory_bytes,
                    processes: usage.processes,
                    ..report
                }
            };
            Ok(WorkloadReports { number, workloads: found.into_iter().map(used).collect() })
        })
        .await
}

/// Notes that the end of a workload is being acted on.
pub(crate) fn acknowledge(guest: &Guest, request: &AcknowledgeEnd) -> Empty {
    guest.supervisor().report(&request.id, |report| {
        if report.starts == request.starts && report.phase == Phase::Ended {
            report.is_acknowledged = true;
        }
    });
    Empty {}
}

/// A part of a workload's output.
pub(crate) async fn read_log(guest: &Arc<Guest>, request: ReadLog) -> Result<LogLines, AgentError> {
    let log = guest.supervisor().log_of(&request.id)?;
    let Some(position) = request.after else {
        return guest.blocking(move || Ok(log.tail(request.lines))).await;
    };
    if request.wait_ms > 0 {
        let wait = Duration::from_millis(request.wait_ms.min(WORKLOAD_WAIT_MAX_MS));
        tokio::select! {
            _ = timeout(wait, log.grown_past(position)) => {}
            () = guest.powering_off() => {}
        }
    }
    guest.blocking(move || Ok(log.after(position))).await
}

/// Removes a workload's output.
pub(crate) async fn clear_log(guest: &Arc<Guest>, request: ClearLog) -> Result<Empty, AgentError> {
    let log = guest.supervisor().log_of(&request.id)?;
    guest
        .blocking(move || {
            log.clear();
            Ok(Empty {})
        })
        .await
}
