//! `/workspace`: create, list, get, details, update, delete.

use std::{slice, time::Duration};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::json;
use skerry_control::{Caller, CreateWorkspace, Wait, WorkspaceRef, internal_api::GuestStats};
use skerry_model::{Desired, ErrorKind, Secret, State as WorkspaceState, Workspace, WorkspaceId};

use super::{
    Oblien, convert,
    error_body::Problem,
    network, object,
    public_access::exposed_by,
    ssh::{self, AskedAccess},
    wire::{CreateBody, ListQuery, Stats, UpdateBody, WorkspaceObject},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf, QueryOf},
    ids,
};

/// How long a create or a power call stays for the machine: below the 300 s that clients wait.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(280);
/// How long a delete stays; what is left goes on in the background.
const DELETE_WAIT: Duration = Duration::from_secs(60);
/// How long details wait for the guest's numbers.
const STATS_WAIT: Duration = Duration::from_secs(3);

pub(super) async fn create(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    JsonBody { value: body, .. }: JsonBody<Option<CreateBody>, Oblien>,
) -> Result<Response, Problem> {
    let body = body.unwrap_or_default();
    let asked = match &body.config {
        Some(config) => network::Asked::of_config(&config.others)?,
        None => network::Asked::default(),
    };
    let access = match &body.config {
        Some(config) => ssh::asked_access(&config.others, state.ssh())?,
        None => AskedAccess::Keys,
    };
    let request = convert::create_request(body, Wait::UpTo(LONGEST_WAIT))?;
    let network = asked.wish_of_new(&state.control, &caller).await?;
    let request = CreateWorkspace { network, ..request };
    let workspace = state
        .until_shutdown(state.control.create_workspace(&caller, request))
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound { what: "workspace" } => Problem::CreationCancelled,
            _ => Problem::Create(error),
        })?;
    if workspace.desired == Desired::Deleted {
        return Err(Problem::CreationCancelled);
    }
    if let Some(failure) = object::failure(&workspace) {
        return Err(Problem::StartFailed {
            creating: true,
            workspace_id: ids::oblien_workspace_id(workspace.id),
            failure: failure.clone(),
        });
    }
    let mut answer = json!({
        "success": true,
        "workspace": workspace_shown(&state, &caller, &workspace).await?,
    });
    match access {
        AskedAccess::Keys => {}
        AskedAccess::Password => {
            let made = state.control.open_ssh(&caller, &WorkspaceRef::Id(workspace.id)).await?;
            answer["ssh_password"] = json!(made.as_ref().map(Secret::expose));
        }
    }
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

pub(super) async fn list(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    QueryOf { value: query, .. }: QueryOf<ListQuery, Oblien>,
) -> Result<Response, Problem> {
    let request = convert::page_request(query)?;
    let found = state.control.list_workspaces(&caller, &request.filter).await?;
    let (items, total) = match request.status {
        None => (found.items, found.total),
        Some(status) => {
            let shown: Vec<Workspace> =
                found.items.into_iter().filter(|w| object::status(w) == status).collect();
            let total = shown.len() as u64;
            let skip = usize::try_from((request.page - 1) * request.limit).unwrap_or(usize::MAX);
            let take = usize::try_from(request.limit).unwrap_or(usize::MAX);
            (shown.into_iter().skip(skip).take(take).collect(), total)
        }
    };
    let now = state.control.now();
    let ports = exposed_by(&state, &caller, &items).await?;
    let closed = closed_to_ssh(&state, &items).await?;
    let objects: Vec<_> = std::iter::zip(&items, ports)
        .map(|(workspace, ports)| {
            let ssh = state.ssh().filter(|_| !closed.contains(&workspace.id));
            object::workspace_object(workspace, ports, ssh, now)
        })
        .collect();
    Ok(Json(json!({
        "success": true,
        "workspaces": objects,
        "total": total,
        "page": request.page,
        "limit": request.limit,
    }))
    .into_response())
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&caller, &which).await?;
    workspace_answer(&state, &caller, &workspace).await
}

pub(super) async fn details(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&caller, &which).await?;
    let stats = match &workspace.state {
        WorkspaceState::Running { .. } => {
            let numbers = state.control.workspace_stats(&caller, &which);
            match tokio::time::timeout(STATS_WAIT, numbers).await {
                Ok(Ok(numbers)) => Some(stats_of(&numbers)),
                // The numbers are an addition: without them the answer says null.
                Ok(Err(_)) | Err(_) => None,
            }
        }
        WorkspaceState::Provisioned
        | WorkspaceState::Starting
        | WorkspaceState::Paused { .. }
        | WorkspaceState::Suspending
        | WorkspaceState::Suspended
        | WorkspaceState::Stopping
        | WorkspaceState::Stopped
        | WorkspaceState::Failed(_)
        | WorkspaceState::Deleting => None,
    };
    let ports = exposed_by(&state, &caller, slice::from_ref(&workspace)).await?;
    let ports = ports.into_iter().flatten().collect();
    let closed = closed_to_ssh(&state, slice::from_ref(&workspace)).await?;
    let ssh = state.ssh().filter(|_| closed.is_empty());
    let shown = object::details(&workspace, ports, ssh, stats, state.control.now());
    Ok(Json(json!({ "success": true, "workspace": shown })).into_response())
}

/// The guest's numbers in Oblien's units. There is no network to count.
pub(super) fn stats_of(numbers: &GuestStats) -> Stats {
    const MIB: u64 = 1024 * 1024;
    let percent = |part: u64, whole: u64| {
        if whole == 0 {
            return 0.0;
        }
        // Two decimals.
        (part as f64 / whole as f64 * 10_000.0).round() / 100.0
    };
    let used = numbers.memory_total_bytes.saturating_sub(numbers.memory_available_bytes);
    Stats {
        cpu_usage: percent(
            numbers.cpu_used_ms,
            numbers.uptime_ms.saturating_mul(u64::from(numbers.cpus_online)),
        ),
        memory_usage: percent(used, numbers.memory_total_bytes),
        memory_used_mb: used / MIB,
        memory_total_mb: numbers.memory_total_bytes / MIB,
        network_in: "0 MB",
        network_out: "0 MB",
    }
}

pub(super) async fn update(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
    JsonBody { value: body, .. }: JsonBody<Option<UpdateBody>, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let request = convert::update_request(body.unwrap_or_default())?;
    let workspace = state.control.update_workspace(&caller, &which, request).await?;
    workspace_answer(&state, &caller, &workspace).await
}

/// A body, which some clients send, is not read.
pub(super) async fn delete(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let deleting = state.control.delete_workspace(&caller, &which, Wait::UpTo(DELETE_WAIT));
    let deleted = state.until_shutdown(deleting).await?;
    let answer = if deleted.complete {
        json!({ "success": true, "message": "Workspace deleted" })
    } else {
        json!({ "success": true, "message": "Workspace is being deleted", "accepted": true })
    };
    Ok(Json(answer).into_response())
}

/// `{"success":true,"workspace":{…}}`.
pub(super) async fn workspace_answer(
    state: &ApiState,
    caller: &Caller,
    workspace: &Workspace,
) -> Result<Response, Problem> {
    let shown = workspace_shown(state, caller, workspace).await?;
    Ok(Json(json!({ "success": true, "workspace": shown })).into_response())
}

async fn workspace_shown(
    state: &ApiState,
    caller: &Caller,
    workspace: &Workspace,
) -> Result<WorkspaceObject, Problem> {
    let ports = exposed_by(state, caller, slice::from_ref(workspace)).await?;
    let ports = ports.into_iter().flatten().collect();
    let closed = closed_to_ssh(state, slice::from_ref(workspace)).await?;
    let ssh = state.ssh().filter(|_| closed.is_empty());
    Ok(object::workspace_object(workspace, ports, ssh, state.control.now()))
}

/// Which of these nobody enters by SSH, where it is spoken at all.
async fn closed_to_ssh(
    state: &ApiState,
    workspaces: &[Workspace],
) -> Result<Vec<WorkspaceId>, Problem> {
    match state.ssh() {
        Some(_) => Ok(state.control.closed_to_ssh(workspaces).await?),
        None => Ok(Vec::new()),
    }
}
