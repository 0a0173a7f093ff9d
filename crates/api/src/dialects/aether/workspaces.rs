//! Workspaces: create, list, get, change, delete, start, stop.

use std::time::Duration;

use axum::{
    Json,
    extract::{FromRequestParts, State},
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, request::Parts};
use serde::Deserialize;
use skerry_control::{ConditionalWish, ListWorkspaces, Wait, WorkspaceRef};
use skerry_model::{ProjectId, Wish, Workspace};

use super::{
    Aether, convert,
    error_body::AetherError,
    hardware::FieldError,
    projects::ProjectPath,
    wire::{self, Status},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf, QueryOf},
    ids,
    object::Object,
};

/// How long a deletion is waited for before it goes on behind the answer.
const DELETE_WAIT: Duration = Duration::from_secs(30);

/// Extractor: the workspace named by the path's `{id}`, a UUID or any other dialect's form of an id.
#[derive(Debug)]
pub(super) struct WorkspacePath(pub WorkspaceRef);

impl FromRequestParts<ApiState> for WorkspacePath {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Response> {
        let path = PathOf::<String, Aether>::from_request_parts(parts, state).await?;
        match ids::parse_workspace_id(&path.value) {
            Some(id) => Ok(Self(WorkspaceRef::Id(id))),
            None => {
                let error = FieldError::new("id", "must be a UUID");
                Err(AetherError::from(error).into_response())
            }
        }
    }
}

/// The query of a list.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    limit: Option<String>,
    #[serde(default)]
    offset: Option<String>,
    #[serde(default)]
    status: Option<String>,
}

/// `POST /projects/{id}/workspaces`.
pub(super) async fn create(
    State(state): State<ApiState>,
    auth: Authenticated<Aether>,
    ProjectPath(project_id): ProjectPath,
    body: JsonBody<Option<Object<wire::CreateWorkspaceBody>>, Aether>,
) -> Result<(StatusCode, Json<wire::Workspace>), AetherError> {
    // A project that is not there is said before anything about the hardware.
    state.control.get_project(&auth.caller, project_id).await?;
    let Object(body) = body.value.unwrap_or_default();
    let request = convert::create(body, project_id, state.control.plan())?;
    let workspace = state.control.create_workspace(&auth.caller, request).await?;
    Ok((StatusCode::CREATED, Json(shown(&workspace)?)))
}

/// `GET /workspaces`.
pub(super) async fn list_all(
    State(state): State<ApiState>,
    auth: Authenticated<Aether>,
    query: QueryOf<ListQuery, Aether>,
) -> Result<Json<wire::Workspaces>, AetherError> {
    list(&state, &auth, None, &query.value).await
}

/// `GET /projects/{id}/workspaces`.
pub(super) async fn list_of_project(
    State(state): State<ApiState>,
    auth: Authenticated<Aether>,
    ProjectPath(project_id): ProjectPath,
    query: QueryOf<ListQuery, Aether>,
) -> Result<Json<wire::Workspaces>, AetherError> {
    state.control.get_project(&auth.caller, project_id).await?;
    list(&state, &auth, Some(project_id), &query.value).await
}

async fn list(
    state: &ApiState,
    auth: &Authenticated<Aether>,
    project_id: Option<ProjectId>,
    query: &ListQuery,
) -> Result<Json<wire::Workspaces>, AetherError> {
    let status = query.status.as_deref().map(parse_status).transpose()?;
    let limit = parse_count("limit", query.limit.as_deref())?.unwrap_or(usize::MAX);
    let offset = parse_count("offset", query.offset.as_deref())?.unwrap_or(0);
    let filter = ListWorkspaces { project_id, ..ListWorkspaces::default() };
    let all = state.control.list_workspaces(&auth.caller, &filter).await?.items;
    let workspaces = all
        .iter()
        .filter_map(convert::workspace)
        .filter(|workspace| status.is_none_or(|status| workspace.status == status))
        .skip(offset)
        .take(limit)
        .collect();
    Ok(Json(wire::Workspaces { workspaces }))
}

fn parse_count(field: &str, text: Option<&str>) -> Result<Option<usize>, FieldError> {
    let wrong = || FieldError::new(field, "must be a whole number, 0 or more");
    text.map(|text| text.parse().map_err(|_| wrong())).transpose()
}

fn parse_status(word: &str) -> Result<Status, FieldError> {
    Status::ALL.into_iter().find(|status| status.word() == word).ok_or_else(|| {
        let words = Status::ALL.map(Status::word).join(", ");
        FieldError::new("status", format!("must be one of {words}"))
    })
}

/// `GET /workspaces/{id}`.
pub(super) async fn get(
    State(state): State<ApiState>,
    auth: Authenticated<Aether>,
    WorkspacePath(which): WorkspacePath,
) -> Result<Json<wire::Workspace>, AetherError> {
    let workspace = state.control.get_workspace(&auth.caller, &which).await?;
    Ok(Json(shown(&workspace)?))
}

/// `PATCH /workspaces/{id}`.
pub(super) async fn update(
    State(state): State<ApiState>,
    auth: Authenticated<Aether>,
    WorkspacePath(which): WorkspacePath,
    body: JsonBody<Object<wire::UpdateWorkspaceBody>, Aether>,
) -> Result<Json<wire::Workspace>, AetherError> {
    let current = state.control.get_workspace(&auth.caller, &which).await?;
    let update = convert::update(body.value.0, &current, state.control.plan())?;
    let workspace = state.control.update_workspace(&auth.caller, &which, update).await?;
    Ok(Json(shown(&workspace)?))
}

/// `DELETE /workspaces/{id}`: 204 when it is gone, or when the rest goes on by itself.
pub(super) async fn delete(
    State(state): State<ApiState>,
    auth: Authenticated<Aether>,
    WorkspacePath(which): WorkspacePath,
) -> Result<StatusCode, AetherError> {
    let deletion = state.control.delete_workspace(&auth.caller, &which, Wait::UpTo(DELETE_WAIT));
    state.until_shutdown(deletion).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /workspaces/{id}/start`: at once; clients poll. One that runs already is a success, and one
/// that is stopping starts again after that.
pub(super) async fn start(
    State(state): State<ApiState>,
    auth: Authenticated<Aether>,
    WorkspacePath(which): WorkspacePath,
) -> Result<Json<wire::StatusOnly>, AetherError> {
    shown(&state.control.get_workspace(&auth.caller, &which).await?)?;
    let workspace = state.control.start_workspace(&auth.caller, &which, Wait::No).await?;
    Ok(Json(wire::StatusOnly { status: shown(&workspace)?.status }))
}

/// `POST /workspaces/{id}/stop`: at once; clients poll. The volume is kept.
pub(super) async fn stop(
    State(state): State<ApiState>,
    auth: Authenticated<Aether>,
    WorkspacePath(which): WorkspacePath,
) -> Result<Json<wire::StatusOnly>, AetherError> {
    let may_stop = |workspace: &Workspace| {
        convert::status(&workspace.state, workspace.desired, workspace.incarnation).is_some_and(
            |status| match status {
                Status::Creating | Status::Starting | Status::Running => true,
                Status::Stopping | Status::Stopped | Status::Error => false,
            },
        )
    };
    match state.control.wish_if(&auth.caller, &which, Wish::Stop, may_stop).await? {
        ConditionalWish::Recorded(workspace) => {
            Ok(Json(wire::StatusOnly { status: shown(&workspace)?.status }))
        }
        ConditionalWish::NotMet(workspace) => {
            let word = shown(&workspace)?.status.word();
            Err(AetherError::not_in_state(format!(
                "A workspace in status {word} cannot be stopped; it must be creating, starting or \
                 running"
            )))
        }
    }
}

/// The workspace as Aether shows it: one that is being deleted is not found.
pub(super) fn shown(workspace: &Workspace) -> Result<wire::Workspace, AetherError> {
    convert::workspace(workspace)
        .ok_or_else(|| skerry_control::Error::not_found("workspace").into())
}
