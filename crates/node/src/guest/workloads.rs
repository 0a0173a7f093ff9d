//! Having the guest supervise processes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Serialize, de::DeserializeOwned};
use skerry_agent_protocol::{
    REVISION, call as path,
    limits::{LOG_LINE_MAX, LOG_LINES_MAX, WORKLOAD_WAIT_MAX_MS, WORKLOADS_MAX},
    message, workload as wire,
};
use skerry_internal_api::{
    LogPart, LogStream, NodeError, SupervisorApi, User, WorkloadEnd, WorkloadLog, WorkloadLogLine,
    WorkloadPhase, WorkloadReport, WorkloadReports,
};
use skerry_model::{
    RestartMode, Timestamp, Workload, WorkloadDesired, WorkloadId, WorkloadKind, WorkloadRestart,
};

use super::{
    SHORT_CALL, Shared, Unsaid,
    call::{self, bounded, printable},
    convert,
    failure::lost,
};

/// Since when the agent supervises.
const SINCE_REVISION: u16 = 6;
const _: () = assert!(SINCE_REVISION <= REVISION);
/// A call that waits in the guest must be over before it is given up here.
const _: () = assert!(WORKLOAD_WAIT_MAX_MS < SHORT_CALL.as_millis() as u64);
const _: () = assert!(WORKLOADS_MAX == skerry_model::MAX_WORKLOADS);
/// Ending what is not wanted any more takes the guest a while for each.
const SET_WITHIN: Duration = Duration::from_secs(120);

/// The supervisor of one guest.
pub(super) struct SupervisorLink {
    pub(super) shared: Arc<Shared>,
}

impl SupervisorLink {
    async fn ask<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        path: &'static str,
        question: &Q,
        within: Duration,
    ) -> Result<A, NodeError> {
        let shared = &self.shared;
        // It may wait in the guest: not on a stream of the short calls.
        let _permit = shared.permit(&shared.long_streams).await?;
        let mut connected = shared.connected().await?;
        if connected.revision < SINCE_REVISION {
            let what = "workloads: the agent in the guest is older than this node";
            return Err(NodeError::Unsupported(String::from(what)));
        }
        let exchange = call::ask(&mut connected.requests, path, question);
        bounded(&shared.hold, path, within, exchange).await
    }
}

#[async_trait]
impl SupervisorApi for SupervisorLink {
    async fn set_workloads(&self, workloads: &[Workload]) -> Result<(), NodeError> {
        let (_, hello) = self.shared.hello();
        let workloads = workloads.iter().map(|workload| order(workload, &hello.unsaid)).collect();
        let question = wire::SetWorkloads { workloads };
        let message::Empty {} = self.ask(path::SET_WORKLOADS, &question, SET_WITHIN).await?;
        Ok(())
    }

    async fn watch_workloads(
        &self,
        seen: u64,
        wait: Duration,
    ) -> Result<WorkloadReports, NodeError> {
        let question = wire::WatchWorkloads { seen, wait_ms: milliseconds(wait) };
        let said: wire::WorkloadReports =
            self.ask(path::WATCH_WORKLOADS, &question, SHORT_CALL).await?;
        if said.workloads.len() > WORKLOADS_MAX {
            return Err(lost("it reports too many workloads"));
        }
        let reports = said.workloads.into_iter().filter_map(report).collect();
        Ok(WorkloadReports { number: said.number.max(1), reports })
    }

    async fn acknowledge_end(&self, id: WorkloadId, starts: u64) -> Result<(), NodeError> {
        let question = wire::AcknowledgeEnd { id: id.to_string(), starts };
        let message::Empty {} = self.ask(path::ACKNOWLEDGE_END, &question, SHORT_CALL).await?;
        Ok(())
    }

    async fn workload_log(&self, id: WorkloadId, part: LogPart) -> Result<WorkloadLog, NodeError> {
        let (after, lines, wait_ms) = match part {
            LogPart::Tail { lines } => (None, lines.min(LOG_LINES_MAX), 0),
            LogPart::After { position, wait } => {
                (Some(position), LOG_LINES_MAX, milliseconds(wait))
            }
        };
        let question = wire::ReadLog { id: id.to_string(), after, lines, wait_ms };
        let said: wire::LogLines = self.ask(path::READ_WORKLOAD_LOG, &question, SHORT_CALL).await?;
        if said.lines.len() > LOG_LINES_MAX as usize {
            return Err(lost("it says too many lines at once"));
        }
        let lines = said.lines.into_iter().map(line).collect();
        Ok(WorkloadLog { lines, position: said.position, has_more: said.has_more })
    }

    async fn clear_workload_log(&self, id: WorkloadId) -> Result<(), NodeError> {
        let question = wire::ClearLog { id: id.to_string() };
        let message::Empty {} = self.ask(path::CLEAR_WORKLOAD_LOG, &question, SHORT_CALL).await?;
        Ok(())
    }
}

fn milliseconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).min(WORKLOAD_WAIT_MAX_MS)
}

/// What the guest is told of a workload.
fn order(workload: &Workload, unsaid: &Unsaid) -> wire::Workload {
    let env: BTreeMap<String, String> =
        workload.env.iter().map(|one| (one.key.clone(), one.value.clone())).collect();
    let user = match workload.user.clone().or_else(|| unsaid.user.clone()) {
        Some(name) => User::Named(name),
        None => User::Root,
    };
    let restart = workload.restart;
    wire::Workload {
        id: workload.id.to_string(),
        kind: match workload.kind {
            WorkloadKind::Service => wire::Kind::Service,
            WorkloadKind::SetupOnce => wire::Kind::SetupOnce,
            WorkloadKind::SetupAtBoot => wire::Kind::SetupAtBoot,
        },
        argv: workload.argv.clone(),
        env,
        working_dir: workload.working_dir.clone().or_else(|| unsaid.working_dir.clone()),
        user: convert::user(user),
        runs: match workload.desired {
            WorkloadDesired::Running => true,
            WorkloadDesired::Stopped => false,
        },
        turn: workload.turn,
        restart: match restart.mode {
            RestartMode::Never => wire::Restart::Never,
            RestartMode::OnFailure => wire::Restart::OnFailure,
            RestartMode::Always => wire::Restart::Always,
        },
        restarts_max: restart.max_restarts,
        pause_ms: u64::from(restart.backoff.first_seconds) * 1000,
        pause_max_ms: u64::from(restart.backoff.most_seconds) * 1000,
        steady_ms: u64::from(WorkloadRestart::STEADY_SECONDS) * 1000,
        log_max_bytes: u64::from(workload.log_limit_kib) * 1024,
        keeps_log: workload.keeps_log,
    }
}

/// The guest's word for how a workload is, as far as it makes sense.
fn report(said: wire::WorkloadReport) -> Option<WorkloadReport> {
    Some(WorkloadReport {
        id: said.id.parse().ok()?,
        phase: match said.phase {
            wire::Phase::Waiting | wire::Phase::Unknown => WorkloadPhase::Waiting,
            wire::Phase::Running => WorkloadPhase::Running,
            wire::Phase::Stopping => WorkloadPhase::Stopping,
            wire::Phase::Stopped => WorkloadPhase::Stopped,
            wire::Phase::Ended => WorkloadPhase::Ended,
        },
        turn: said.turn,
        starts: said.starts,
        restarts: said.restarts,
        pid: said.pid,
        last_end: said.last_end.map(|end| match end {
            wire::End::Code(code) => WorkloadEnd::Code(code),
            wire::End::Signal(signal) => WorkloadEnd::Signal(signal),
            wire::End::NotStarted => WorkloadEnd::NotStarted,
        }),
        start_error: said.start_error.map(|error| printable(&error)),
        started_at: said.started_unix_ms.map(time),
        ended_at: said.ended_unix_ms.map(time),
        is_acknowledged: said.is_acknowledged,
        cpu_used_ms: said.cpu_used_ms,
        memory_bytes: said.memory_bytes,
        processes: said.processes,
    })
}

/// A guest's clock may say anything.
fn time(unix_ms: i64) -> Timestamp {
    Timestamp::from_millisecond(unix_ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn line(said: wire::LogLine) -> WorkloadLogLine {
    let mut text = said.text;
    if text.len() > 3 * LOG_LINE_MAX {
        // Each byte that was no UTF-8 became three.
        text = text.chars().take(LOG_LINE_MAX).collect();
    }
    WorkloadLogLine {
        at: time(said.unix_ms),
        stream: match said.stream {
            wire::Stream::Stdout => LogStream::Stdout,
            wire::Stream::Stderr => LogStream::Stderr,
            wire::Stream::Supervisor => LogStream::Supervisor,
        },
        text,
    }
}
