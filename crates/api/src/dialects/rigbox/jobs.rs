//! Jobs: what runs to its end in a workspace. Setup scripts, and installations of apps.

use axum::{Json, extract::State};
use http::StatusCode;
use serde::Serialize;
use skerry_control::{
    Error, WorkloadVerb, WorkloadView,
    internal_api::{LogPart, LogStream, WorkloadPhase},
};
use skerry_model::{Timestamp, WorkloadDesired, WorkloadOrigin, WorkloadRef};

use super::{
    Rigbox,
    error_body::RigboxError,
    services::exit_code,
    workspaces::{WorkspaceId, workspace_ref},
};
use crate::{ApiState, auth::Authenticated, extract::PathOf};

/// The most lines of a job's output in an answer, its last.
const LINES: u32 = 5000;

/// How a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum JobStatus {
    /// It runs, or waits for its turn.
    Running,
    /// It ended with code 0.
    Done,
    /// It ended otherwise, or could not be started.
    Failed,
    /// It was cancelled before its end.
    Cancelled,
    /// Only a guest that runs knows.
    Unknown,
}

impl JobStatus {
    pub(super) fn of(view: &WorkloadView) -> Self {
        let is_stopped = view.workload.desired == WorkloadDesired::Stopped;
        let Some(report) = view.report.as_ref().filter(|one| one.turn == view.workload.turn) else {
            return if is_stopped { Self::Cancelled } else { Self::Unknown };
        };
        match report.phase {
            WorkloadPhase::Ended => match report.last_end {
                Some(end) if end.is_success() => Self::Done,
                Some(_) | None => Self::Failed,
            },
            WorkloadPhase::Waiting | WorkloadPhase::Running if !is_stopped => Self::Running,
            WorkloadPhase::Stopped if !is_stopped => Self::Running,
            WorkloadPhase::Waiting
            | WorkloadPhase::Running
            | WorkloadPhase::Stopping
            | WorkloadPhase::Stopped => Self::Cancelled,
        }
    }

    const fn has_output(self) -> bool {
        match self {
            Self::Done | Self::Failed => true,
            Self::Running | Self::Cancelled | Self::Unknown => false,
        }
    }
}

/// Answer of `GET /workspaces/{id}/jobs/{job_id}`.
#[derive(Serialize)]
pub(super) struct JobView {
    job_id: String,
    name: String,
    kind: &'static str,
    status: JobStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<Timestamp>,
}

/// Answer of `GET /workspaces/{id}/jobs`.
#[derive(Serialize)]
pub(super) struct JobList {
    jobs: Vec<JobView>,
}

fn view(of: &WorkloadView) -> JobView {
    let status = JobStatus::of(of);
    JobView {
        job_id: of.workload.id.to_string(),
        name: of.workload.name.clone(),
        kind: match of.workload.origin {
            WorkloadOrigin::AppInstall { .. } => "install",
            WorkloadOrigin::Setup { .. }
            | WorkloadOrigin::ServiceSetup { .. }
            | WorkloadOrigin::Direct
            | WorkloadOrigin::Main
            | WorkloadOrigin::Service { .. }
            | WorkloadOrigin::App { .. } => "setup",
        },
        status,
        exit_code: exit_code(of).filter(|_| status.has_output()),
        stdout: None,
        stderr: None,
        started_at: of.report.as_ref().and_then(|report| report.started_at),
        ended_at: of.report.as_ref().and_then(|report| report.ended_at),
    }
}

async fn find(
    state: &ApiState,
    auth: &Authenticated<Rigbox>,
    (id, job): &(String, String),
) -> Result<WorkloadView, Error> {
    let all = state.control.workloads(&auth.caller, &workspace_ref(id)?).await?;
    let is_it =
        |view: &WorkloadView| view.workload.kind.is_setup() && view.workload.id.to_string() == *job;
    all.into_iter().find(is_it).ok_or_else(|| Error::not_found("job"))
}

/// `GET /workspaces/{id}/jobs`: in the order in which they run.
pub(super) async fn list(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<JobList>, RigboxError> {
    let all = state.control.workloads(&auth.caller, &which).await?;
    let jobs = all.iter().filter(|view| view.workload.kind.is_setup());
    Ok(Json(JobList { jobs: jobs.map(view).collect() }))
}

/// `GET /workspaces/{id}/jobs/{job_id}`. What it said is shown once it has ended.
pub(super) async fn get(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    path: PathOf<(String, String), Rigbox>,
) -> Result<Json<JobView>, RigboxError> {
    let found = find(&state, &auth, &path.value).await?;
    let mut job = view(&found);
    if job.status.has_output() {
        let workload = WorkloadRef::Id(found.workload.id);
        let which = workspace_ref(&path.value.0)?;
        let part = LogPart::Tail { lines: LINES };
        let log = state.control.workload_log(&auth.caller, &which, &workload, part).await?;
        let of = |stream: LogStream| {
            let lines = log.lines.iter().filter(|line| line.stream == stream);
            lines.map(|line| format!("{}\n", line.text)).collect::<String>()
        };
        job.stdout = Some(of(LogStream::Stdout));
        job.stderr = Some(of(LogStream::Stderr));
    }
    Ok(Json(job))
}

/// `POST /workspaces/{id}/jobs/{job_id}/cancel`.
pub(super) async fn cancel(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    path: PathOf<(String, String), Rigbox>,
) -> Result<Json<JobView>, RigboxError> {
    let found = find(&state, &auth, &path.value).await?;
    match JobStatus::of(&found) {
        JobStatus::Running | JobStatus::Unknown | JobStatus::Cancelled => {}
        JobStatus::Done | JobStatus::Failed => {
            let message = "the job has ended".to_owned();
            return Err(RigboxError::invalid_state(StatusCode::CONFLICT, "ended", message));
        }
    }
    let which = workspace_ref(&path.value.0)?;
    let workload = WorkloadRef::Id(found.workload.id);
    let verb = WorkloadVerb::Stop;
    let stopped = state.control.command_workload(&auth.caller, &which, &workload, verb).await?;
    Ok(Json(view(&stopped)))
}
