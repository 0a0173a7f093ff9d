//! Workspaces: create, list, get, delete, start, stop, cancel, retry, resources and environment.

use axum::{
    Json,
    extract::{FromRequestParts, State},
    response::Response,
};
use http::{StatusCode, request::Parts};
use serde::Deserialize;
use skerry_control::{Caller, ListWorkspaces, Wait, WorkspaceRef};
use skerry_model::{State as WorkspaceState, Workspace};

use super::{
    Rigbox, convert,
    error_body::RigboxError,
    paging::{self, PageQuery, Place},
    wire::{self, VmStatus},
};
use crate::{
    ApiState, Dialect as _,
    auth::Authenticated,
    extract::{JsonBody, PathOf, QueryOf},
    ids,
    object::Object,
};

/// Extractor: the workspace named by the path's `{id}`. Rigbox knows ids only, in any dialect's
/// form; anything else is an id that nothing has.
#[derive(Debug)]
pub(super) struct WorkspaceId(pub WorkspaceRef);

impl FromRequestParts<ApiState> for WorkspaceId {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Response> {
        let path = PathOf::<String, Rigbox>::from_request_parts(parts, state).await?;
        match ids::parse_workspace_id(&path.value) {
            Some(id) => Ok(Self(WorkspaceRef::Id(id))),
            None => Err(Rigbox::error(&skerry_control::Error::not_found("workspace"))),
        }
    }
}

/// `POST /workspaces`.
pub(super) async fn create(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    body: JsonBody<Object<wire::CreateWorkspaceBody>, Rigbox>,
) -> Result<(StatusCode, Json<wire::VmEnvelope>), RigboxError> {
    let request = convert::create(body.value.0, state.control.plan())?;
    let workspace = state.control.create_workspace(&auth.caller, request).await?;
    Ok((StatusCode::CREATED, Json(convert::envelope(&workspace))))
}

/// `GET /workspaces`.
pub(super) async fn list(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    query: QueryOf<PageQuery, Rigbox>,
) -> Result<Json<wire::VmList>, RigboxError> {
    // All of them: the plan bounds their number, and a cursor must not skip over deletions.
    let mut workspaces =
        state.control.list_workspaces(&auth.caller, &ListWorkspaces::default()).await?.items;
    let place = |workspace: &Workspace| Place {
        created_at: workspace.created_at,
        id: workspace.id.as_u128(),
    };
    let paged = paging::page(&mut workspaces, place, &query.value)?;
    Ok(Json(wire::VmList {
        vms: paged.unpaged.iter().map(convert::vm).collect(),
        items: paged.page.iter().map(convert::vm).collect(),
        next_cursor: paged.next_cursor,
    }))
}

/// `GET /workspaces/{id}`.
pub(super) async fn get(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<wire::VmEnvelope>, RigboxError> {
    let workspace = state.control.get_workspace(&auth.caller, &which).await?;
    Ok(Json(convert::envelope(&workspace)))
}

/// The query of a deletion. `force` asks for what every deletion here does: it works from any state.
#[derive(Debug, Deserialize)]
pub(super) struct DeleteQuery {
    #[serde(default, rename = "force")]
    _force: Option<bool>,
}

/// `DELETE /workspaces/{id}`.
pub(super) async fn delete(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
    _query: QueryOf<DeleteQuery, Rigbox>,
) -> Result<Json<wire::Message>, RigboxError> {
    let deleted = state.control.delete_workspace(&auth.caller, &which, Wait::No).await?;
    let message = if deleted.complete { "workspace deleted" } else { "workspace is being deleted" };
    Ok(Json(wire::Message { message: message.to_owned() }))
}

/// `POST /workspaces/{id}/start`: queued at once; clients poll.
pub(super) async fn start(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<wire::VmEnvelope>, RigboxError> {
    let (_, status) = current(&state, &auth.caller, &which).await?;
    match status {
        VmStatus::Provisioned | VmStatus::Stopped | VmStatus::Failed => {
            let workspace = state.control.start_workspace(&auth.caller, &which, Wait::No).await?;
            Ok(Json(convert::envelope(&workspace)))
        }
        VmStatus::Provisioning
        | VmStatus::Starting
        | VmStatus::Running
        | VmStatus::Stopping
        | VmStatus::Deleting => {
            Err(refused(StatusCode::BAD_REQUEST, status, "start", "provisioned, stopped or failed"))
        }
    }
}

/// `POST /workspaces/{id}/stop`: queued at once; clients poll.
pub(super) async fn stop(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<wire::VmEnvelope>, RigboxError> {
    let (_, status) = current(&state, &auth.caller, &which).await?;
    match status {
        VmStatus::Running => {
            let workspace = state.control.stop_workspace(&auth.caller, &which, Wait::No).await?;
            Ok(Json(convert::envelope(&workspace)))
        }
        VmStatus::Provisioned
        | VmStatus::Provisioning
        | VmStatus::Starting
        | VmStatus::Stopping
        | VmStatus::Stopped
        | VmStatus::Deleting
        | VmStatus::Failed => Err(refused(StatusCode::BAD_REQUEST, status, "stop", "running")),
    }
}

/// `POST /workspaces/{id}/cancel`: gives up a start under way; the workspace comes to a stop.
pub(super) async fn cancel(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<wire::VmEnvelope>, RigboxError> {
    let (_, status) = current(&state, &auth.caller, &which).await?;
    match status {
        VmStatus::Provisioning | VmStatus::Starting => {
            let workspace = state.control.stop_workspace(&auth.caller, &which, Wait::No).await?;
            Ok(Json(convert::envelope(&workspace)))
        }
        VmStatus::Provisioned
        | VmStatus::Running
        | VmStatus::Stopping
        | VmStatus::Stopped
        | VmStatus::Deleting
        | VmStatus::Failed => {
            Err(refused(StatusCode::CONFLICT, status, "cancel", "provisioning or starting"))
        }
    }
}

/// `POST /workspaces/{id}/retry`: starts again after a failure that may pass.
pub(super) async fn retry(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<wire::VmEnvelope>, RigboxError> {
    let (workspace, status) = current(&state, &auth.caller, &which).await?;
    let retryable = match &workspace.state {
        WorkspaceState::Failed(failure) => failure.retryable && status == VmStatus::Failed,
        WorkspaceState::Provisioned
        | WorkspaceState::Starting
        | WorkspaceState::Running { .. }
        | WorkspaceState::Paused { .. }
        | WorkspaceState::Suspending
        | WorkspaceState::Suspended
        | WorkspaceState::Stopping
        | WorkspaceState::Stopped
        | WorkspaceState::Deleting => false,
    };
    if !retryable {
        return Err(refused(StatusCode::CONFLICT, status, "retry", "failed in a retryable way"));
    }
    let workspace = state.control.start_workspace(&auth.caller, &which, Wait::No).await?;
    Ok(Json(convert::envelope(&workspace)))
}

/// `PUT /workspaces/{id}/resources`: only while there is no VM.
pub(super) async fn set_resources(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
    body: JsonBody<Object<wire::ResourcesBody>, Rigbox>,
) -> Result<Json<wire::VmAndMessage>, RigboxError> {
    let update = convert::resize(&body.value.0, state.control.plan())?;
    let workspace = state.control.update_workspace(&auth.caller, &which, update).await?;
    Ok(Json(wire::VmAndMessage {
        vm: convert::vm(&workspace),
        message: "resources updated; they take effect at the next start".to_owned(),
    }))
}

/// `POST /workspaces/{id}/env`: replaces the whole environment.
pub(super) async fn set_env(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
    body: JsonBody<Object<wire::EnvBody>, Rigbox>,
) -> Result<Json<wire::Message>, RigboxError> {
    let update = convert::replace_env(body.value.0)?;
    state.control.update_workspace(&auth.caller, &which, update).await?;
    let message = "environment updated; it takes effect at the next start".to_owned();
    Ok(Json(wire::Message { message }))
}

async fn current(
    state: &ApiState,
    caller: &Caller,
    which: &WorkspaceRef,
) -> Result<(Workspace, VmStatus), RigboxError> {
    let workspace = state.control.get_workspace(caller, which).await?;
    let status = convert::status(&workspace.state, workspace.desired);
    Ok((workspace, status))
}

fn refused(code: StatusCode, status: VmStatus, verb: &str, needed: &str) -> RigboxError {
    let word = status.word();
    RigboxError::invalid_state(
        code,
        word,
        format!("cannot {verb} a workspace that is {word}; it must be {needed}"),
    )
}
