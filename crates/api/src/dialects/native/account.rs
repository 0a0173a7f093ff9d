//! What belongs to the account and the installation: keys, projects, limits, images, the host.

use axum::{Json, extract::State};
use http::StatusCode;
use skerry_control as control;
use skerry_model::ApiKeyId;

use super::{
    Body, Login, Params, convert, convert_saved,
    error_body::{NativeError, NativeResult},
    wire,
};
use crate::ApiState;

/// Lists the images a workspace can be made from.
#[utoipa::path(
    operation_id = "list_images",
    get, path = "/skerry/v1/images", tag = "images",
    responses(
        (status = 200, body = wire::ImageList),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
    ),
)]
pub(super) async fn images(
    State(state): State<ApiState>,
    login: Login,
) -> NativeResult<Json<wire::ImageList>> {
    let images = state.control.list_images(&login.caller).await?;
    Ok(Json(wire::ImageList { images: images.into_iter().map(convert::image).collect() }))
}

/// Lists the account's API keys.
#[utoipa::path(
    get, path = "/skerry/v1/keys", tag = "keys",
    responses(
        (status = 200, body = wire::KeyList),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
    ),
)]
pub(super) async fn list_keys(
    State(state): State<ApiState>,
    login: Login,
) -> NativeResult<Json<wire::KeyList>> {
    let keys = state.control.list_keys(&login.caller).await?;
    Ok(Json(wire::KeyList { keys: keys.into_iter().map(convert::key).collect() }))
}

/// Makes an API key. Its secret is shown this once.
#[utoipa::path(
    post, path = "/skerry/v1/keys", tag = "keys", request_body = wire::CreateKey,
    responses(
        (status = 201, body = wire::CreatedKey),
        (status = 400, body = wire::ErrorBody, description = "The name is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
    ),
)]
pub(super) async fn create_key(
    State(state): State<ApiState>,
    login: Login,
    body: Body<wire::CreateKey>,
) -> NativeResult<(StatusCode, Json<wire::CreatedKey>)> {
    let made = state.control.create_key(&login.caller, &body.value.name).await?;
    let secret = made.secret.expose().to_owned();
    Ok((StatusCode::CREATED, Json(wire::CreatedKey { key: convert::key(made.key), secret })))
}

/// Revokes an API key at once. The last one of an account cannot be revoked.
#[utoipa::path(
    delete, path = "/skerry/v1/keys/{key}", tag = "keys",
    params(("key" = String, Path, description = "The key's identity")),
    responses(
        (status = 204, description = "Revoked"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such key"),
        (status = 409, body = wire::ErrorBody, description = "It is the account's last"),
    ),
)]
pub(super) async fn delete_key(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<StatusCode> {
    let id: ApiKeyId =
        path.value.parse().map_err(|_| NativeError::from(control::Error::not_found("key")))?;
    state.control.delete_key(&login.caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the account's projects.
#[utoipa::path(
    get, path = "/skerry/v1/projects", tag = "projects",
    responses(
        (status = 200, body = wire::ProjectList),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
    ),
)]
pub(super) async fn list_projects(
    State(state): State<ApiState>,
    login: Login,
) -> NativeResult<Json<wire::ProjectList>> {
    let projects = state.control.list_projects(&login.caller).await?;
    Ok(Json(wire::ProjectList { projects: projects.into_iter().map(convert::project).collect() }))
}

/// Makes a project.
#[utoipa::path(
    post, path = "/skerry/v1/projects", tag = "projects", request_body = wire::CreateProject,
    responses(
        (status = 201, body = wire::Project),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 409, body = wire::ErrorBody, description = "The account has one of this name"),
    ),
)]
pub(super) async fn create_project(
    State(state): State<ApiState>,
    login: Login,
    body: Body<wire::CreateProject>,
) -> NativeResult<(StatusCode, Json<wire::Project>)> {
    let request =
        control::CreateProject { name: body.value.name, description: body.value.description };
    let project = state.control.create_project(&login.caller, request).await?;
    Ok((StatusCode::CREATED, Json(convert::project(project))))
}

/// Shows one project.
#[utoipa::path(
    get, path = "/skerry/v1/projects/{project}", tag = "projects",
    params(("project" = String, Path, description = "The project's identity")),
    responses(
        (status = 200, body = wire::Project),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such project"),
    ),
)]
pub(super) async fn get_project(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::Project>> {
    let id = convert::project_id(&path.value)
        .map_err(|_| NativeError::from(control::Error::not_found("project")))?;
    let project = state.control.get_project(&login.caller, id).await?;
    Ok(Json(convert::project(project)))
}

/// Shows the account's limits and what is used of them.
#[utoipa::path(
    operation_id = "get_quota",
    get, path = "/skerry/v1/quota", tag = "account",
    responses(
        (status = 200, body = wire::Quota),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
    ),
)]
pub(super) async fn quota(
    State(state): State<ApiState>,
    login: Login,
) -> NativeResult<Json<wire::Quota>> {
    let quota = state.control.quota(&login.caller).await?;
    let blocked = quota.blocked.clone().map(|kind| *NativeError::from(kind).detail);
    Ok(Json(convert::quota(&quota, blocked)))
}

/// Says what the host can do and what is missing on it. For the account `admin` alone.
#[utoipa::path(
    operation_id = "get_doctor",
    get, path = "/skerry/v1/doctor", tag = "installation",
    responses(
        (status = 200, body = wire::Doctor),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 403, body = wire::ErrorBody, description = "Not the account `admin`"),
    ),
)]
pub(super) async fn doctor(
    State(state): State<ApiState>,
    login: Login,
) -> NativeResult<Json<wire::Doctor>> {
    let doctor = state.control.doctor(&login.caller).await?;
    Ok(Json(convert::doctor(doctor)))
}

/// Says how the starts of all workspaces went since the server began, and what is ready for the next.
/// For the account `admin` alone.
#[utoipa::path(
    operation_id = "get_start_statistics",
    get, path = "/skerry/v1/starts", tag = "installation",
    responses(
        (status = 200, body = wire::StartStatistics),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 403, body = wire::ErrorBody, description = "Not the account `admin`"),
    ),
)]
pub(super) async fn starts(
    State(state): State<ApiState>,
    login: Login,
) -> NativeResult<Json<wire::StartStatistics>> {
    let starts = state.control.start_statistics(&login.caller).await?;
    Ok(Json(convert_saved::start_statistics(&starts)))
}
