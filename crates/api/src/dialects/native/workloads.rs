//! Workloads: processes that the guest supervises.

use std::time::Duration;

use axum::{Json, extract::State};
use http::StatusCode;
use skerry_control::{
    self as control, NewWorkload, WorkloadVerb, WorkloadView,
    internal_api::{LogPart, LogStream, WorkloadEnd, WorkloadPhase},
};
use skerry_model::{self as model, EnvVar, WorkloadDesired, WorkloadId, WorkloadRef};

use super::{
    Body, Login, Params, Query, convert, convert_saved as saved,
    error_body::{NativeError, NativeResult},
    wire,
};
use crate::{
    ApiState,
    ids::{parse_uuid, parse_workspace_ref},
};

const DEFAULT_LINES: u32 = 1000;
const MAX_LINES: u32 = 10_000;
const MAX_WAIT_SECONDS: u64 = 20;

fn workload_ref(text: &str) -> WorkloadRef {
    match parse_uuid(text) {
        Some(uuid) => WorkloadRef::Id(WorkloadId::from_uuid(uuid)),
        None => WorkloadRef::Name(text.to_owned()),
    }
}

const fn kind(kind: wire::WorkloadKind) -> model::WorkloadKind {
    match kind {
        wire::WorkloadKind::Service => model::WorkloadKind::Service,
        wire::WorkloadKind::SetupOnce => model::WorkloadKind::SetupOnce,
        wire::WorkloadKind::SetupAtBoot => model::WorkloadKind::SetupAtBoot,
    }
}

const fn on_exit(on_exit: wire::OnExit) -> model::OnExit {
    match on_exit {
        wire::OnExit::Nothing => model::OnExit::Nothing,
        wire::OnExit::Pause => model::OnExit::Pause,
        wire::OnExit::Stop => model::OnExit::Stop,
        wire::OnExit::Exit => model::OnExit::Exit,
    }
}

fn restart(asked: wire::RestartPolicy) -> model::WorkloadRestart {
    let model::RestartPolicy { mode, max_restarts, backoff } = saved::restart(asked);
    model::WorkloadRestart { mode, max_restarts, backoff }
}

fn env(asked: std::collections::BTreeMap<String, String>) -> Vec<EnvVar> {
    asked.into_iter().map(|(key, value)| EnvVar { key, value }).collect()
}

/// What a request asks for; control checks it.
pub(super) fn new_workload(asked: wire::CreateWorkload) -> NewWorkload {
    let made = NewWorkload::new(asked.command);
    NewWorkload {
        name: asked.name,
        kind: kind(asked.kind),
        env: env(asked.env),
        working_dir: asked.working_dir,
        user: asked.user,
        restart: asked.restart.map_or(made.restart, restart),
        on_exit: on_exit(asked.on_exit),
        log_limit_kib: asked.log_limit_kib.unwrap_or(made.log_limit_kib),
        keeps_log: asked.keep_log.unwrap_or(true),
        labels: asked.labels,
        desired: match asked.start {
            None | Some(true) => WorkloadDesired::Running,
            Some(false) => WorkloadDesired::Stopped,
        },
        ..made
    }
}

fn state(view: &WorkloadView) -> wire::WorkloadState {
    match (view.report.as_ref().map(|report| report.phase), view.workload.desired) {
        (Some(WorkloadPhase::Waiting), _) | (None, WorkloadDesired::Running) => {
            wire::WorkloadState::Waiting
        }
        (Some(WorkloadPhase::Running), _) => wire::WorkloadState::Running,
        (Some(WorkloadPhase::Stopping), _) => wire::WorkloadState::Stopping,
        (Some(WorkloadPhase::Stopped), _) | (None, WorkloadDesired::Stopped) => {
            wire::WorkloadState::Stopped
        }
        (Some(WorkloadPhase::Ended), _) => wire::WorkloadState::Ended,
    }
}

fn shown(view: &WorkloadView) -> wire::Workload {
    let (workload, report) = (&view.workload, view.report.as_ref());
    let model::WorkloadRestart { mode, max_restarts, backoff } = workload.restart;
    let (exit_code, exit_signal) = match report.and_then(|report| report.last_end) {
        Some(WorkloadEnd::Code(code)) => (Some(code), None),
        Some(WorkloadEnd::Signal(signal)) => (None, Some(signal)),
        Some(WorkloadEnd::NotStarted) | None => (None, None),
    };
    wire::Workload {
        id: workload.id.to_string(),
        name: workload.name.clone(),
        kind: match workload.kind {
            model::WorkloadKind::Service => wire::WorkloadKind::Service,
            model::WorkloadKind::SetupOnce => wire::WorkloadKind::SetupOnce,
            model::WorkloadKind::SetupAtBoot => wire::WorkloadKind::SetupAtBoot,
        },
        command: workload.argv.clone(),
        env_names: workload.env.iter().map(|one| one.key.clone()).collect(),
        working_dir: workload.working_dir.clone(),
        user: workload.user.clone(),
        restart: saved::restart_shown(model::RestartPolicy { mode, max_restarts, backoff }),
        on_exit: match workload.on_exit {
            model::OnExit::Nothing => wire::OnExit::Nothing,
            model::OnExit::Pause => wire::OnExit::Pause,
            model::OnExit::Stop => wire::OnExit::Stop,
            model::OnExit::Exit => wire::OnExit::Exit,
        },
        log_limit_kib: workload.log_limit_kib,
        keep_log: workload.keeps_log,
        labels: workload.labels.clone(),
        should_run: workload.desired == WorkloadDesired::Running,
        state: state(view),
        pid: report.and_then(|report| report.pid),
        exit_code,
        exit_signal,
        start_error: report.and_then(|report| report.start_error.clone()),
        starts: report.map_or(0, |report| report.starts),
        restarts: report.map_or(0, |report| report.restarts),
        started_at: report.and_then(|report| report.started_at).map(convert::time),
        ended_at: report.and_then(|report| report.ended_at).map(convert::time),
        cpu_used_ms: report.map_or(0, |report| report.cpu_used_ms),
        memory_bytes: report.map_or(0, |report| report.memory_bytes),
        processes: report.map_or(0, |report| report.processes),
        created_at: convert::time(workload.created_at),
        updated_at: convert::time(workload.updated_at),
    }
}

/// Lists the workloads of a workspace, in the order in which they are started.
#[utoipa::path(
    operation_id = "list_workloads",
    get, path = "/skerry/v1/workspaces/{workspace}/workloads", tag = "workloads",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 200, body = wire::WorkloadList),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
    ),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::WorkloadList>> {
    let which = parse_workspace_ref(&path.value);
    let views = state.control.workloads(&login.caller, &which).await?;
    Ok(Json(wire::WorkloadList { workloads: views.iter().map(shown).collect() }))
}

/// Adds a workload. In a workspace that runs it is started at once.
#[utoipa::path(
    operation_id = "create_workload",
    post, path = "/skerry/v1/workspaces/{workspace}/workloads", tag = "workloads",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    request_body = wire::CreateWorkload,
    responses(
        (status = 201, body = wire::Workload),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "The name is taken"),
    ),
)]
pub(super) async fn create(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    body: Body<wire::CreateWorkload>,
) -> NativeResult<(StatusCode, Json<wire::Workload>)> {
    let which = parse_workspace_ref(&path.value);
    let new = new_workload(body.value);
    let made = state.control.create_workload(&login.caller, &which, new).await?;
    Ok((StatusCode::CREATED, Json(shown(&made))))
}

/// Shows one workload.
#[utoipa::path(
    operation_id = "get_workload",
    get, path = "/skerry/v1/workspaces/{workspace}/workloads/{workload}", tag = "workloads",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        ("workload" = String, Path, description = "Identity or name"),
    ),
    responses(
        (status = 200, body = wire::Workload),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or workload"),
    ),
)]
pub(super) async fn get(
    State(state): State<ApiState>,
    login: Login,
    path: Params<(String, String)>,
) -> NativeResult<Json<wire::Workload>> {
    let (workspace, workload) = &path.value;
    let which = parse_workspace_ref(workspace);
    let view = state.control.workload(&login.caller, &which, &workload_ref(workload)).await?;
    Ok(Json(shown(&view)))
}

/// Changes a workload. A process that runs goes on as it is.
#[utoipa::path(
    operation_id = "update_workload",
    patch, path = "/skerry/v1/workspaces/{workspace}/workloads/{workload}", tag = "workloads",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        ("workload" = String, Path, description = "Identity or name"),
    ),
    request_body = wire::UpdateWorkload,
    responses(
        (status = 200, body = wire::Workload),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or workload"),
    ),
)]
pub(super) async fn update(
    State(state): State<ApiState>,
    login: Login,
    path: Params<(String, String)>,
    body: Body<wire::UpdateWorkload>,
) -> NativeResult<Json<wire::Workload>> {
    let (workspace, workload) = &path.value;
    let (which, workload) = (parse_workspace_ref(workspace), workload_ref(workload));
    let asked = body.value;
    let update = control::UpdateWorkload {
        name: asked.name,
        argv: asked.command,
        env: asked.env.map(env),
        working_dir: asked.working_dir,
        user: asked.user,
        restart: asked.restart.map(restart),
        on_exit: asked.on_exit.map(on_exit),
        log_limit_kib: asked.log_limit_kib,
        labels: asked.labels,
        ..control::UpdateWorkload::default()
    };
    let updated = state.control.update_workload(&login.caller, &which, &workload, update).await?;
    Ok(Json(shown(&updated)))
}

/// Removes a workload: its process ends, and its output is removed.
#[utoipa::path(
    operation_id = "delete_workload",
    delete, path = "/skerry/v1/workspaces/{workspace}/workloads/{workload}", tag = "workloads",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        ("workload" = String, Path, description = "Identity or name"),
    ),
    responses(
        (status = 204),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or workload"),
    ),
)]
pub(super) async fn delete(
    State(state): State<ApiState>,
    login: Login,
    path: Params<(String, String)>,
) -> NativeResult<StatusCode> {
    let (workspace, workload) = &path.value;
    let which = parse_workspace_ref(workspace);
    state.control.delete_workload(&login.caller, &which, &workload_ref(workload)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn command(
    state: &ApiState,
    login: &Login,
    (workspace, workload): &(String, String),
    verb: WorkloadVerb,
) -> NativeResult<Json<wire::Workload>> {
    let (which, workload) = (parse_workspace_ref(workspace), workload_ref(workload));
    let view = state.control.command_workload(&login.caller, &which, &workload, verb).await?;
    Ok(Json(shown(&view)))
}

/// Starts a workload; one that runs goes on.
#[utoipa::path(
    operation_id = "start_workload",
    post, path = "/skerry/v1/workspaces/{workspace}/workloads/{workload}/start", tag = "workloads",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        ("workload" = String, Path, description = "Identity or name"),
    ),
    responses(
        (status = 200, body = wire::Workload),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or workload"),
    ),
)]
pub(super) async fn start(
    State(state): State<ApiState>,
    login: Login,
    path: Params<(String, String)>,
) -> NativeResult<Json<wire::Workload>> {
    command(&state, &login, &path.value, WorkloadVerb::Start).await
}

/// Stops a workload: its process is asked to end, and killed after 10 s. It stays stopped over boots.
#[utoipa::path(
    operation_id = "stop_workload",
    post, path = "/skerry/v1/workspaces/{workspace}/workloads/{workload}/stop", tag = "workloads",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        ("workload" = String, Path, description = "Identity or name"),
    ),
    responses(
        (status = 200, body = wire::Workload),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or workload"),
    ),
)]
pub(super) async fn stop(
    State(state): State<ApiState>,
    login: Login,
    path: Params<(String, String)>,
) -> NativeResult<Json<wire::Workload>> {
    command(&state, &login, &path.value, WorkloadVerb::Stop).await
}

/// Runs a workload anew.
#[utoipa::path(
    operation_id = "restart_workload",
    post, path = "/skerry/v1/workspaces/{workspace}/workloads/{workload}/restart",
    tag = "workloads",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        ("workload" = String, Path, description = "Identity or name"),
    ),
    responses(
        (status = 200, body = wire::Workload),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or workload"),
    ),
)]
pub(super) async fn restart_one(
    State(state): State<ApiState>,
    login: Login,
    path: Params<(String, String)>,
) -> NativeResult<Json<wire::Workload>> {
    command(&state, &login, &path.value, WorkloadVerb::Restart).await
}

/// Reads a workload's output: its end, or what came after an earlier answer, waiting for it if asked.
#[utoipa::path(
    operation_id = "read_workload_log",
    get, path = "/skerry/v1/workspaces/{workspace}/workloads/{workload}/log", tag = "workloads",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        ("workload" = String, Path, description = "Identity or name"),
        wire::WorkloadLogQuery,
    ),
    responses(
        (status = 200, body = wire::WorkloadLog),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or workload"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run"),
    ),
)]
pub(super) async fn log(
    State(state): State<ApiState>,
    login: Login,
    path: Params<(String, String)>,
    query: Query<wire::WorkloadLogQuery>,
) -> NativeResult<Json<wire::WorkloadLog>> {
    let (workspace, workload) = &path.value;
    let (which, workload) = (parse_workspace_ref(workspace), workload_ref(workload));
    let reading = state.control.workload_log(&login.caller, &which, &workload, part(&query.value)?);
    let log = state.until_shutdown(reading).await?;
    let lines = log.lines.into_iter().map(|line| wire::WorkloadLogLine {
        at: convert::time(line.at),
        stream: match line.stream {
            LogStream::Stdout => wire::WorkloadStream::Stdout,
            LogStream::Stderr => wire::WorkloadStream::Stderr,
            LogStream::Supervisor => wire::WorkloadStream::Supervisor,
        },
        text: line.text,
    });
    let (position, has_more) = (log.position, log.has_more);
    Ok(Json(wire::WorkloadLog { lines: lines.collect(), position, has_more }))
}

fn part(query: &wire::WorkloadLogQuery) -> NativeResult<LogPart> {
    match (query.tail, query.after) {
        (Some(_), Some(_)) => {
            Err(NativeError::invalid("tail", "is given together with after", "one of the two"))
        }
        (tail, None) => {
            let lines = tail.unwrap_or(DEFAULT_LINES);
            if !(1..=MAX_LINES).contains(&lines) {
                let allowed = format!("1 to {MAX_LINES}");
                return Err(NativeError::invalid("tail", "is out of range", allowed));
            }
            Ok(LogPart::Tail { lines })
        }
        (None, Some(position)) => {
            let seconds = query.wait_seconds.unwrap_or(0);
            if seconds > MAX_WAIT_SECONDS {
                let allowed = format!("0 to {MAX_WAIT_SECONDS}");
                return Err(NativeError::invalid("wait_seconds", "is out of range", allowed));
            }
            Ok(LogPart::After { position, wait: Duration::from_secs(seconds) })
        }
    }
}

/// Removes a workload's output.
#[utoipa::path(
    operation_id = "clear_workload_log",
    delete, path = "/skerry/v1/workspaces/{workspace}/workloads/{workload}/log", tag = "workloads",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        ("workload" = String, Path, description = "Identity or name"),
    ),
    responses(
        (status = 204),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or workload"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run"),
    ),
)]
pub(super) async fn clear_log(
    State(state): State<ApiState>,
    login: Login,
    path: Params<(String, String)>,
) -> NativeResult<StatusCode> {
    let (workspace, workload) = &path.value;
    let which = parse_workspace_ref(workspace);
    state.control.clear_workload_log(&login.caller, &which, &workload_ref(workload)).await?;
    Ok(StatusCode::NO_CONTENT)
}
