//! `/workspace/:id/workloads`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_control::{
    WorkloadVerb, WorkloadView,
    internal_api::{LogPart, LogStream, WorkloadEnd, WorkloadLog, WorkloadLogLine, WorkloadPhase},
};
use skerry_model::{OnExit, Timestamp, WorkloadDesired, WorkloadRef};

use super::{
    Oblien,
    error_body::{Problem, Refusal},
    workload_parse::{self as parse, Fields, parse_workload_id},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf, QueryOf},
    ids,
};

pub(super) type Login = Authenticated<Oblien>;
pub(super) type One = PathOf<(String, String), Oblien>;
type All = PathOf<String, Oblien>;
type Body = JsonBody<Option<Fields>, Oblien>;

/// Lines of a log when the request does not say.
const DEFAULT_TAIL: u32 = 1000;

#[derive(Debug, Default, Deserialize)]
pub(super) struct ListQuery {
    states: Option<String>,
    name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct LogQuery {
    tail: Option<String>,
    tail_lines: Option<String>,
}

/// An id, or else a name: consumers use both.
pub(super) fn workload_ref(text: &str) -> WorkloadRef {
    parse_workload_id(text).map_or_else(|| WorkloadRef::Name(text.to_owned()), WorkloadRef::Id)
}

/// The word for how a workload is.
pub(super) fn status(view: &WorkloadView) -> &'static str {
    let Some(report) = &view.report else {
        return match view.workload.desired {
            WorkloadDesired::Running => "pending",
            WorkloadDesired::Stopped => "stopped",
        };
    };
    match (report.phase, report.last_end) {
        (WorkloadPhase::Running | WorkloadPhase::Stopping, _) => "running",
        (WorkloadPhase::Waiting, _) => "pending",
        (WorkloadPhase::Stopped, _) => "stopped",
        (WorkloadPhase::Ended, Some(WorkloadEnd::Code(0))) => "exited",
        (WorkloadPhase::Ended, _) => "failed",
    }
}

/// A shell's way of putting how a process ended into one number.
fn exit_code(end: WorkloadEnd) -> u16 {
    match end {
        WorkloadEnd::Code(code) => u16::from(code),
        WorkloadEnd::Signal(signal) => 128 + u16::from(signal),
        WorkloadEnd::NotStarted => 127,
    }
}

fn text(at: Timestamp) -> String {
    at.to_string()
}

/// The workload object.
fn object(view: &WorkloadView) -> Value {
    let (workload, report) = (&view.workload, view.report.as_ref());
    let status = status(view);
    let restart = workload.restart;
    json!({
        "id": parse::workload_id(workload.id),
        "name": workload.name,
        "cmd": workload.argv,
        "command": workload.argv,
        // Values may be secrets.
        "env_keys": workload.env.iter().map(|one| &one.key).collect::<Vec<_>>(),
        "working_dir": workload.working_dir,
        "user": workload.user,
        "status": status,
        "state": status,
        "pid": report.and_then(|report| report.pid),
        "exit_code": report.and_then(|report| report.last_end).map(exit_code),
        "error": report.and_then(|report| report.start_error.clone()),
        "restart_count": report.map_or(0, |report| report.restarts),
        "restart_policy": parse::restart_word(restart.mode),
        "max_restarts": restart.max_restarts,
        "restart_delay": restart.backoff.first_seconds,
        "restart_backoff": parse::grows_longer(restart),
        "vm_on_exit": match workload.on_exit {
            OnExit::Nothing => "",
            OnExit::Pause => "pause",
            OnExit::Stop => "stop",
            OnExit::Exit => "exit",
        },
        "max_log_size_mb": workload.log_limit_kib / 1024,
        "labels": workload.labels,
        "annotations": workload.annotations,
        "enabled": workload.desired == WorkloadDesired::Running,
        "created_at": text(workload.created_at),
        "updated_at": text(workload.updated_at),
        "started_at": report.and_then(|report| report.started_at).map(text),
        "exited_at": report.and_then(|report| report.ended_at).map(text),
    })
}

/// The record of `stats`; the legacy names beside the others.
pub(super) fn stats(view: &WorkloadView, cpu_percent: f64, now: Timestamp) -> Value {
    let report = view.report.as_ref();
    let memory = report.map_or(0, |report| report.memory_bytes);
    let running_since = report.filter(|report| report.pid.is_some()).and_then(|one| one.started_at);
    let uptime = running_since.map_or(0, |since| now.duration_since(since).as_secs().max(0));
    let status = status(view);
    json!({
        "id": parse::workload_id(view.workload.id),
        "workload_id": parse::workload_id(view.workload.id),
        "name": view.workload.name,
        "state": status,
        "status": status,
        "pid": report.and_then(|report| report.pid),
        "processes": report.map_or(0, |report| report.processes),
        "cpu_percent": cpu_percent,
        "cpu_usage": cpu_percent,
        "rss_bytes": memory,
        "memory_usage": memory,
        "uptime_seconds": uptime,
        "restart_count": report.map_or(0, |report| report.restarts),
        "exit_code": report.and_then(|report| report.last_end).map(exit_code),
    })
}

/// Percent of one CPU, on average since the process was started.
pub(super) fn average_cpu_percent(view: &WorkloadView, now: Timestamp) -> f64 {
    let Some(report) = &view.report else { return 0.0 };
    let Some(since) = report.started_at else { return 0.0 };
    percent(report.cpu_used_ms, now.duration_since(since).as_millis())
}

/// Milliseconds of CPU time in milliseconds of time, to a tenth of a percent.
pub(super) fn percent(cpu_ms: u64, elapsed_ms: i128) -> f64 {
    if elapsed_ms <= 0 {
        return 0.0;
    }
    // Numbers far below 2^52: nothing is lost.
    #[allow(clippy::cast_precision_loss)]
    let percent = cpu_ms as f64 / elapsed_ms as f64 * 100.0;
    (percent * 10.0).round() / 10.0
}

const fn stream_word(stream: LogStream) -> &'static str {
    match stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
        LogStream::Supervisor => "supervisor",
    }
}

/// One line as a stream's frame. What the supervisor says is shown as an error stream's, as the client
/// knows two.
pub(super) fn log_frame(line: &WorkloadLogLine) -> Value {
    json!({
        "line": line.text,
        "message": line.text,
        "data": format!("{}\n", line.text),
        "stream": match line.stream {
            LogStream::Stdout => "stdout",
            LogStream::Stderr | LogStream::Supervisor => "stderr",
        },
        "timestamp": text(line.at),
    })
}

/// All lines in one text.
pub(super) fn log_text(log: &WorkloadLog) -> String {
    let line = |line: &WorkloadLogLine| {
        format!("[{}] {}: {}\n", text(line.at), stream_word(line.stream), line.text)
    };
    log.lines.iter().map(line).collect()
}

/// `{"success":true,"workload":{…}}`, with the object's fields at the top too: clients read either.
fn answer(code: StatusCode, view: &WorkloadView) -> Response {
    let object = object(view);
    let mut body = json!({ "success": true, "workload": object });
    if let (Value::Object(body), Value::Object(fields)) = (&mut body, object) {
        body.extend(fields);
    }
    (code, Json(body)).into_response()
}

pub(super) async fn create(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: All,
    JsonBody { value: body, .. }: Body,
) -> Result<Response, Problem> {
    let new = parse::new_workload("", &body.unwrap_or_default())?;
    let which = ids::parse_workspace_ref(&reference);
    let made = state.control.create_workload(&caller, &which, new).await?;
    Ok(answer(StatusCode::CREATED, &made))
}

pub(super) async fn list(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: All,
    QueryOf { value: query, .. }: QueryOf<ListQuery, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let views = state.control.workloads(&caller, &which).await?;
    let wanted = |view: &&WorkloadView| {
        let states = query.states.as_deref().filter(|states| !states.is_empty());
        states.is_none_or(|states| states.split(',').any(|state| state.trim() == status(view)))
            && query.name.as_deref().is_none_or(|name| name == view.workload.name)
    };
    let workloads: Vec<Value> = views.iter().filter(wanted).map(object).collect();
    Ok(Json(json!({ "success": true, "workloads": workloads })).into_response())
}

pub(super) async fn delete_all(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: All,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let deleted = state.control.delete_workloads(&caller, &which).await?;
    Ok(Json(json!({ "success": true, "deleted": deleted })).into_response())
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: (reference, workload), .. }: One,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let view = state.control.workload(&caller, &which, &workload_ref(&workload)).await?;
    Ok(answer(StatusCode::OK, &view))
}

/// `PUT` and `PATCH` alike keep what is not given.
pub(super) async fn update(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: (reference, workload), .. }: One,
    JsonBody { value: body, .. }: Body,
) -> Result<Response, Problem> {
    let (which, workload) = (ids::parse_workspace_ref(&reference), workload_ref(&workload));
    let now = state.control.workload(&caller, &which, &workload).await?;
    let update = parse::update(&body.unwrap_or_default(), &now.workload)?;
    let updated = state.control.update_workload(&caller, &which, &workload, update).await?;
    Ok(answer(StatusCode::OK, &updated))
}

pub(super) async fn delete(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: (reference, workload), .. }: One,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    state.control.delete_workload(&caller, &which, &workload_ref(&workload)).await?;
    Ok(Json(json!({ "success": true, "message": "Workload deleted" })).into_response())
}

async fn command(
    state: &ApiState,
    login: &Login,
    (reference, workload): &(String, String),
    verb: WorkloadVerb,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(reference);
    let workload = workload_ref(workload);
    let view = state.control.command_workload(&login.caller, &which, &workload, verb).await?;
    Ok(answer(StatusCode::OK, &view))
}

pub(super) async fn start(
    State(state): State<ApiState>,
    login: Login,
    path: One,
) -> Result<Response, Problem> {
    command(&state, &login, &path.value, WorkloadVerb::Start).await
}

pub(super) async fn stop(
    State(state): State<ApiState>,
    login: Login,
    path: One,
) -> Result<Response, Problem> {
    command(&state, &login, &path.value, WorkloadVerb::Stop).await
}

pub(super) async fn show_status(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: (reference, workload), .. }: One,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let view = state.control.workload(&caller, &which, &workload_ref(&workload)).await?;
    let status = status(&view);
    let report = view.report.as_ref();
    Ok(Json(json!({
        "success": true,
        "id": parse::workload_id(view.workload.id),
        "status": status,
        "state": status,
        "pid": report.and_then(|report| report.pid),
        "exit_code": report.and_then(|report| report.last_end).map(exit_code),
        "restart_count": report.map_or(0, |report| report.restarts),
    }))
    .into_response())
}

/// The last lines of a log that a request asks for.
pub(super) fn tail_of(query: &LogQuery, default: u32) -> Result<u32, Problem> {
    match query.tail.as_deref().or(query.tail_lines.as_deref()) {
        None => Ok(default),
        Some(text) => match text.parse::<u32>() {
            Ok(lines) if (1..=10_000).contains(&lines) => Ok(lines),
            Ok(_) | Err(_) => Err(Problem::Refused(Refusal {
                code: "validation_error",
                field: "tail".to_owned(),
                problem: "is not a number of lines".to_owned(),
                allowed: "1 to 10000".to_owned(),
            })),
        },
    }
}

pub(super) async fn logs(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: (reference, workload), .. }: One,
    QueryOf { value: query, .. }: QueryOf<LogQuery, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let part = LogPart::Tail { lines: tail_of(&query, DEFAULT_TAIL)? };
    let workload = workload_ref(&workload);
    let log = state.control.workload_log(&caller, &which, &workload, part).await?;
    Ok(Json(json!({ "success": true, "logs": log_text(&log) })).into_response())
}

pub(super) async fn show_stats(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: (reference, workload), .. }: One,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let view = state.control.workload(&caller, &which, &workload_ref(&workload)).await?;
    let now = state.control.now();
    let record = stats(&view, average_cpu_percent(&view, now), now);
    let mut body = json!({ "success": true, "stats": record });
    if let (Value::Object(body), Value::Object(fields)) = (&mut body, record) {
        body.extend(fields);
    }
    Ok(Json(body).into_response())
}
