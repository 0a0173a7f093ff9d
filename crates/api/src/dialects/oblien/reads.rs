//! `/workspace/:id/stats`, `resources`, `logs`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use futures::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_control::{
    Error,
    internal_api::{ByteStream, GuestStats, LogPart, LogSource},
};
use skerry_model::{State as WorkspaceState, Timestamp, WorkloadOrigin, WorkloadRef, Workspace};

use super::{
    Oblien,
    error_body::{Problem, Refusal},
    object,
    workload_streams::{SAMPLE_EVERY, events},
    workloads::{Login, log_text},
    workspaces::stats_of,
};
use crate::{
    ApiState,
    extract::{PathOf, QueryOf},
    ids,
};

type Reference = PathOf<String, Oblien>;

/// Lines when the request does not say.
const DEFAULT_LINES: u32 = 100;
/// How much of the end of a log is looked at, in bytes.
const WINDOW_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Default, Deserialize)]
pub(super) struct LogsQuery {
    source: Option<String>,
    tail_lines: Option<String>,
}

/// The guest's numbers, under the names of the reference and of the client's types.
pub(super) async fn stats(
    State(state): State<ApiState>,
    login: Login,
    PathOf { value: reference, .. }: Reference,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let numbers = state.control.workspace_stats(&login.caller, &which).await?;
    Ok(Json(stats_shown(&numbers, state.control.now())).into_response())
}

/// The same every two seconds, until the workspace does not run.
pub(super) async fn stats_stream(
    State(state): State<ApiState>,
    login: Login,
    PathOf { value: reference, .. }: Reference,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let first = state.control.workspace_stats(&login.caller, &which).await?;
    let first = stats_shown(&first, state.control.now());
    let rest = stream::unfold((state.clone(), login.caller, which), async |asking| {
        let (state, caller, which) = asking;
        tokio::time::sleep(SAMPLE_EVERY).await;
        let numbers = state.control.workspace_stats(&caller, &which).await.ok()?;
        let shown = stats_shown(&numbers, state.control.now());
        Some((shown, (state, caller, which)))
    });
    Ok(events(state, stream::iter([first]).chain(rest)))
}

fn stats_shown(numbers: &GuestStats, now: Timestamp) -> Value {
    let shown = stats_of(numbers);
    let disk = percent(numbers.disk_used_bytes, numbers.disk_total_bytes);
    let used = numbers.memory_total_bytes.saturating_sub(numbers.memory_available_bytes);
    let mut body = json!({
        "success": true,
        "cpu_usage": shown.cpu_usage,
        "memory_usage": shown.memory_usage,
        "disk_usage": disk,
        "timestamp": now.to_string(),
        "stats": shown,
    });
    if let Some(Value::Object(stats)) = body.get_mut("stats") {
        stats.extend([
            ("guestMemoryUsed".to_owned(), json!(used)),
            ("guestMemoryTotal".to_owned(), json!(numbers.memory_total_bytes)),
            ("guestDiskUsed".to_owned(), json!(numbers.disk_used_bytes)),
            ("guestDiskTotal".to_owned(), json!(numbers.disk_total_bytes)),
            ("uptime".to_owned(), json!(numbers.uptime_ms / 1000)),
        ]);
    }
    body
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    // Tenths of a percent: a whole number below 2^52.
    #[allow(clippy::cast_precision_loss)]
    let tenths = (u128::from(part) * 1000 / u128::from(whole)) as f64;
    tenths / 10.0
}

pub(super) async fn resources(
    State(state): State<ApiState>,
    login: Login,
    PathOf { value: reference, .. }: Reference,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&login.caller, &which).await?;
    let shown = resources_shown(&workspace);
    Ok(Json(json!({ "success": true, "resources": shown })).into_response())
}

pub(super) fn resources_shown(workspace: &Workspace) -> Value {
    let shape = workspace.spec.shape;
    json!({
        "cpus": shape.vcpu_count.get(),
        "memory_mb": shape.memory_mib.get(),
        "writable_size_mb": shape.disk_mib.get(),
        "disk_size_mb": shape.disk_mib.get(),
        "status": object::status(workspace),
    })
}

/// `boot` is the console; `cmd` the output of the main command where the workspace has one and runs, else
/// of the commands that were run in it.
pub(super) async fn logs(
    State(state): State<ApiState>,
    login: Login,
    PathOf { value: reference, .. }: Reference,
    QueryOf { value: query, .. }: QueryOf<LogsQuery, Oblien>,
) -> Result<Response, Problem> {
    let refusal = |field: &str, problem: &str, allowed: &str| {
        Problem::Refused(Refusal {
            code: "validation_error",
            field: field.to_owned(),
            problem: problem.to_owned(),
            allowed: allowed.to_owned(),
        })
    };
    let lines = match query.tail_lines.as_deref().map(str::parse::<u32>) {
        None => DEFAULT_LINES,
        Some(Ok(lines)) if (1..=10_000).contains(&lines) => lines,
        Some(Ok(_) | Err(_)) => {
            return Err(refusal("tail_lines", "is not a number of lines", "1 to 10000"));
        }
    };
    let source = match query.source.as_deref() {
        None | Some("" | "boot") => LogSource::Console,
        Some("cmd") => LogSource::Commands,
        Some(_) => return Err(refusal("source", "is not a log", "boot, cmd")),
    };
    let which = ids::parse_workspace_ref(&reference);
    if source == LogSource::Commands {
        let workspace = state.control.get_workspace(&login.caller, &which).await?;
        let runs = matches!(workspace.state, WorkspaceState::Running { .. });
        let mut all = workspace.spec.workloads.items.iter();
        let main = all.find(|one| one.origin == WorkloadOrigin::Main).filter(|_| runs);
        if let Some(main) = main {
            let (main, part) = (WorkloadRef::Id(main.id), LogPart::Tail { lines });
            let log = state.control.workload_log(&login.caller, &which, &main, part).await?;
            return Ok(answer(&log_text(&log), lines));
        }
    }
    let log = state.control.workspace_log(&login.caller, &which, source, WINDOW_BYTES).await?;
    let bytes = state.until_shutdown(read(log)).await?;
    Ok(answer(&String::from_utf8_lossy(&bytes), lines))
}

fn answer(text: &str, lines: u32) -> Response {
    let all: Vec<&str> = text.lines().collect();
    let wanted = usize::try_from(lines).unwrap_or(usize::MAX);
    let last = &all[all.len().saturating_sub(wanted)..];
    Json(json!({ "success": true, "logs": last })).into_response()
}

async fn read(mut log: ByteStream) -> Result<Vec<u8>, Error> {
    let limit = usize::try_from(WINDOW_BYTES).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    while let Some(piece) = log.next().await {
        let piece = piece?;
        let room = limit - bytes.len();
        bytes.extend_from_slice(&piece[..piece.len().min(room)]);
    }
    Ok(bytes)
}
