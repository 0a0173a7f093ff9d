//! `GET /workspaces/{id}/services`: what the guest of a workspace supervises, and what it says.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use skerry_control::{
    Error, WorkloadView,
    internal_api::{LogPart, WorkloadLog, WorkloadPhase},
};
use skerry_model::{Timestamp, WorkloadDesired, WorkloadKind, WorkloadOrigin, WorkloadRef};

use super::{Rigbox, error_body::RigboxError, workspaces::workspace_ref};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{PathOf, QueryOf},
};

use super::workspaces::WorkspaceId;

/// Lines of an answer when the request does not say.
const DEFAULT_LINES: u32 = 100;
/// The most lines of an answer.
const MAX_LINES: u32 = 1000;

/// A service of a workspace.
#[derive(Serialize)]
pub(super) struct ServiceView {
    id: String,
    name: String,
    kind: &'static str,
    status: &'static str,
    /// The unit of a service spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    unit_name: Option<String>,
    health_cmd: Option<String>,
    exposed: bool,
    source: &'static str,
    log_sources: [String; 0],
    /// Restarts in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    restarts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// Answer of `GET /workspaces/{id}/services`.
#[derive(Serialize)]
pub(super) struct ServiceList {
    services: Vec<ServiceView>,
}

/// One line of what a process says.
#[derive(Serialize)]
pub(super) struct Line {
    line_number: u64,
    message: String,
    timestamp: Timestamp,
}

/// Answer of the log of a service.
#[derive(Serialize)]
pub(super) struct Lines {
    lines: Vec<Line>,
    has_more: bool,
}

/// The query of a log.
#[derive(Debug, Default, Deserialize)]
pub(super) struct LinesQuery {
    #[serde(default)]
    lines: Option<String>,
}

impl LinesQuery {
    /// How many lines are asked for, of the end of a log.
    pub(super) fn count(&self) -> Result<u32, RigboxError> {
        match self.lines.as_deref().map(str::parse::<u32>) {
            None => Ok(DEFAULT_LINES),
            Some(Ok(count)) if count > 0 => Ok(count.min(MAX_LINES)),
            Some(Ok(_) | Err(_)) => {
                Err(RigboxError::invalid("lines", "is not a count", "1 to 1000"))
            }
        }
    }
}

/// How a process ended, as a shell says it.
pub(super) fn exit_code(view: &WorkloadView) -> Option<i32> {
    use skerry_control::internal_api::WorkloadEnd;
    match view.report.as_ref()?.last_end? {
        WorkloadEnd::Code(code) => Some(i32::from(code)),
        WorkloadEnd::Signal(signal) => Some(128 + i32::from(signal)),
        WorkloadEnd::NotStarted => Some(127),
    }
}

/// The word for how a service is.
pub(super) fn status(view: &WorkloadView) -> &'static str {
    let Some(report) = &view.report else { return "stopped" };
    match (view.workload.desired, report.phase) {
        (_, WorkloadPhase::Running) => "healthy",
        (WorkloadDesired::Stopped, _) | (_, WorkloadPhase::Stopping | WorkloadPhase::Stopped) => {
            "stopped"
        }
        (WorkloadDesired::Running, WorkloadPhase::Waiting) if report.starts == 0 => "installing",
        (WorkloadDesired::Running, WorkloadPhase::Waiting | WorkloadPhase::Ended) => "unhealthy",
    }
}

/// What a service is called by whoever uses Rigbox, and the unit it would be.
fn names(view: &WorkloadView) -> (String, Option<String>) {
    let name = &view.workload.name;
    match &view.workload.origin {
        WorkloadOrigin::Service { .. } => {
            let short = name.strip_prefix("service.").unwrap_or(name);
            (short.to_owned(), Some(format!("rigbox-svc-{short}.service")))
        }
        WorkloadOrigin::App { app_id } => (app_id.clone(), None),
        WorkloadOrigin::Direct
        | WorkloadOrigin::Main
        | WorkloadOrigin::ServiceSetup { .. }
        | WorkloadOrigin::Setup { .. }
        | WorkloadOrigin::AppInstall { .. } => (name.clone(), None),
    }
}

fn view(of: &WorkloadView) -> ServiceView {
    let (name, unit_name) = names(of);
    ServiceView {
        id: of.workload.id.to_string(),
        name,
        kind: "service",
        status: status(of),
        unit_name,
        health_cmd: None,
        exposed: false,
        source: match of.workload.origin {
            WorkloadOrigin::Service { .. } => "service_spec",
            WorkloadOrigin::App { .. } => "catalog",
            WorkloadOrigin::Direct
            | WorkloadOrigin::Main
            | WorkloadOrigin::ServiceSetup { .. }
            | WorkloadOrigin::Setup { .. }
            | WorkloadOrigin::AppInstall { .. } => "workload",
        },
        log_sources: [],
        restarts: of.report.as_ref().map(|report| report.restarts),
        exit_code: exit_code(of),
        created_at: of.workload.created_at,
        updated_at: of.workload.updated_at,
    }
}

pub(super) fn lines(log: WorkloadLog) -> Lines {
    let line = |(number, line): (u64, skerry_control::internal_api::WorkloadLogLine)| Line {
        line_number: number,
        message: line.text,
        timestamp: line.at,
    };
    Lines { lines: (1..).zip(log.lines).map(line).collect(), has_more: log.has_more }
}

/// `GET /workspaces/{id}/services`.
pub(super) async fn list(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<ServiceList>, RigboxError> {
    let all = state.control.workloads(&auth.caller, &which).await?;
    let services = all.iter().filter(|view| view.workload.kind == WorkloadKind::Service);
    Ok(Json(ServiceList { services: services.map(view).collect() }))
}

async fn find(
    state: &ApiState,
    auth: &Authenticated<Rigbox>,
    (id, name): &(String, String),
) -> Result<WorkloadView, Error> {
    let all = state.control.workloads(&auth.caller, &workspace_ref(id)?).await?;
    let is_it = |view: &WorkloadView| {
        view.workload.kind == WorkloadKind::Service
            && (names(view).0 == *name || view.workload.id.to_string() == *name)
    };
    all.into_iter().find(is_it).ok_or_else(|| Error::not_found("service"))
}

/// `GET /workspaces/{id}/services/{name}`.
pub(super) async fn get(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    path: PathOf<(String, String), Rigbox>,
) -> Result<Json<ServiceView>, RigboxError> {
    Ok(Json(view(&find(&state, &auth, &path.value).await?)))
}

/// `GET /workspaces/{id}/services/{name}/logs`: the end of what it says, also before its last restart.
pub(super) async fn logs(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    path: PathOf<(String, String), Rigbox>,
    query: QueryOf<LinesQuery, Rigbox>,
) -> Result<Json<Lines>, RigboxError> {
    let part = LogPart::Tail { lines: query.value.count()? };
    let found = find(&state, &auth, &path.value).await?;
    let which = workspace_ref(&path.value.0)?;
    let workload = WorkloadRef::Id(found.workload.id);
    let log = state.control.workload_log(&auth.caller, &which, &workload, part).await?;
    Ok(Json(lines(log)))
}
