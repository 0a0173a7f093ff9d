//! Projects: create, list, get.

use axum::{
    Json,
    extract::{FromRequestParts, State},
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, request::Parts};
use skerry_model::ProjectId;

use super::{Aether, convert, error_body::AetherError, hardware::FieldError, wire};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf},
    ids,
    object::Object,
};

/// Extractor: the project named by the path's `{id}`, a UUID.
#[derive(Debug)]
pub(super) struct ProjectPath(pub ProjectId);

impl FromRequestParts<ApiState> for ProjectPath {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Response> {
        let path = PathOf::<String, Aether>::from_request_parts(parts, state).await?;
        match ids::parse_uuid(&path.value) {
            Some(uuid) => Ok(Self(ProjectId::from_uuid(uuid))),
            None => {
                let error = FieldError::new("id", "must be a UUID");
                Err(AetherError::from(error).into_response())
            }
        }
    }
}

/// `POST /projects`.
pub(super) async fn create(
    State(state): State<ApiState>,
    auth: Authenticated<Aether>,
    body: JsonBody<Object<wire::CreateProjectBody>, Aether>,
) -> Result<(StatusCode, Json<wire::Project>), AetherError> {
    let request = convert::create_project(body.value.0)?;
    let project = state.control.create_project(&auth.caller, request).await?;
    Ok((StatusCode::CREATED, Json(convert::project(project))))
}

/// `GET /projects`.
pub(super) async fn list(
    State(state): State<ApiState>,
    auth: Authenticated<Aether>,
) -> Result<Json<wire::Projects>, AetherError> {
    let projects = state.control.list_projects(&auth.caller).await?;
    let projects = projects.into_iter().map(convert::project).collect();
    Ok(Json(wire::Projects { projects }))
}

/// `GET /projects/{id}`.
pub(super) async fn get(
    State(state): State<ApiState>,
    auth: Authenticated<Aether>,
    ProjectPath(id): ProjectPath,
) -> Result<Json<wire::Project>, AetherError> {
    let project = state.control.get_project(&auth.caller, id).await?;
    Ok(Json(convert::project(project)))
}
