//! Workspaces: create, list, get, delete, start, stop, cancel, retry, resources and environment.

use axum::{
    Json,
    extract::{FromRequestParts, State},
    response::Response,
};
use http::{StatusCode, request::Parts};
use serde::Deserialize;
use skerry_control::{ConditionalWish, Error, ListWorkspaces, Wait, WorkspaceRef};
use skerry_model::{Wish, Workspace};

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
        workspace_ref(&path.value).map(Self).map_err(|error| Rigbox::error(&error))
    }
}

/// The workspace of this id.
pub(super) fn workspace_ref(id: &str) -> Result<WorkspaceRef, Error> {
    let id = ids::parse_workspace_id(id).ok_or_else(|| Error::not_found("workspace"))?;
    Ok(WorkspaceRef::Id(id))
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
    let refusal = Refusal {
        code: StatusCode::BAD_REQUEST,
        verb: "start",
        needed: "provisioned, stopped or failed",
    };
    let may_start = |workspace: &Workspace| match convert::status_of(workspace) {
        VmStatus::Provisioned | VmStatus::Stopped | VmStatus::Failed => true,
        VmStatus::Provisioning
        | VmStatus::Starting
        | VmStatus::Running
        | VmStatus::Stopping
        | VmStatus::Deleting => false,
    };
    let started = wish_if(&state, &auth, &which, Wish::Start, may_start, refusal).await?;
    if let Err(error) = state.control.reconcile_apps(&auth.caller, &which).await {
        // It starts; what the apps lack can be asked for again.
        tracing::debug!(%error, "an app has no address yet");
    }
    Ok(started)
}

/// `POST /workspaces/{id}/stop`: queued at once; clients poll.
pub(super) async fn stop(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<wire::VmEnvelope>, RigboxError> {
    let refusal = Refusal { code: StatusCode::BAD_REQUEST, verb: "stop", needed: "running" };
    let may_stop = |workspace: &Workspace| convert::status_of(workspace) == VmStatus::Running;
    wish_if(&state, &auth, &which, Wish::Stop, may_stop, refusal).await
}

/// `POST /workspaces/{id}/cancel`: gives up a start under way; the workspace comes to a stop.
pub(super) async fn cancel(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<wire::VmEnvelope>, RigboxError> {
    let refusal =
        Refusal { code: StatusCode::CONFLICT, verb: "cancel", needed: "provisioning or starting" };
    let may_cancel = |workspace: &Workspace| match convert::status_of(workspace) {
        VmStatus::Provisioning | VmStatus::Starting => true,
        VmStatus::Provisioned
        | VmStatus::Running
        | VmStatus::Stopping
        | VmStatus::Stopped
        | VmStatus::Deleting
        | VmStatus::Failed => false,
    };
    wish_if(&state, &auth, &which, Wish::Stop, may_cancel, refusal).await
}

/// `POST /workspaces/{id}/retry`: starts again after a failure that may pass.
pub(super) async fn retry(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<wire::VmEnvelope>, RigboxError> {
    let refusal =
        Refusal { code: StatusCode::CONFLICT, verb: "retry", needed: "failed in a retryable way" };
    let may_retry = |workspace: &Workspace| {
        convert::failure(workspace).is_some_and(|failure| failure.retryable)
    };
    wish_if(&state, &auth, &which, Wish::Start, may_retry, refusal).await
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

/// How a call answers when the workspace's status does not permit it.
struct Refusal {
    code: StatusCode,
    verb: &'static str,
    needed: &'static str,
}

/// Records a wish where the status permits it. Whether it does is decided on the record that the wish
/// is written over: of two starts at once, one is refused.
async fn wish_if(
    state: &ApiState,
    auth: &Authenticated<Rigbox>,
    which: &WorkspaceRef,
    wish: Wish,
    permitted: fn(&Workspace) -> bool,
    refusal: Refusal,
) -> Result<Json<wire::VmEnvelope>, RigboxError> {
    match state.control.wish_if(&auth.caller, which, wish, permitted).await? {
        ConditionalWish::Recorded(workspace) => Ok(Json(convert::envelope(&workspace))),
        ConditionalWish::NotMet(workspace) => {
            let word = convert::status_of(&workspace).word();
            let Refusal { code, verb, needed } = refusal;
            let message = format!("cannot {verb} a workspace that is {word}; it must be {needed}");
            Err(RigboxError::invalid_state(code, word, message))
        }
    }
}
