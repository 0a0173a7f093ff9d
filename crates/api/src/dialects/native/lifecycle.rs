//! The rules of a workspace's life, changed while it lives.

use axum::{Json, extract::State};

use super::{Body, Login, Params, convert, convert_saved, error_body::NativeResult, wire};
use crate::{ApiState, ids::parse_workspace_ref};

/// Changes the rules of a workspace's life: they hold from now on, also for a VM that runs.
#[utoipa::path(
    operation_id = "change_lifecycle",
    patch, path = "/skerry/v1/workspaces/{workspace}/lifecycle", tag = "workspaces",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    request_body = wire::ChangeLifecycle,
    responses(
        (status = 200, body = wire::Workspace),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "It is being deleted"),
    ),
)]
pub(super) async fn change(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    body: Body<wire::ChangeLifecycle>,
) -> NativeResult<Json<wire::Workspace>> {
    let which = parse_workspace_ref(&path.value);
    let change = convert_saved::lifecycle_change(body.value);
    let changed = state.control.set_lifecycle(&login.caller, &which, change).await?;
    Ok(Json(convert::workspace(&changed)))
}

/// Renews the time to live of a workspace that runs or is paused.
#[utoipa::path(
    operation_id = "renew_expiry",
    post, path = "/skerry/v1/workspaces/{workspace}/lifecycle/renew", tag = "workspaces",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    request_body = wire::RenewExpiry,
    responses(
        (status = 200, body = wire::Workspace),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "It has none, or none passes now"),
    ),
)]
pub(super) async fn renew(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    body: Body<wire::RenewExpiry>,
) -> NativeResult<Json<wire::Workspace>> {
    let which = parse_workspace_ref(&path.value);
    let renewal = convert_saved::renewal(&body.value)?;
    let renewed = state.control.extend_expiry(&login.caller, &which, renewal).await?;
    Ok(Json(convert::workspace(&renewed)))
}

/// Says that the workspace is in use now: its idle time begins anew. Calls to its inside do so by
/// themselves.
#[utoipa::path(
    operation_id = "touch_activity",
    post, path = "/skerry/v1/workspaces/{workspace}/activity", tag = "workspaces",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 200, body = wire::Workspace),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
    ),
)]
pub(super) async fn touch(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::Workspace>> {
    let which = parse_workspace_ref(&path.value);
    let touched = state.control.touch_activity(&login.caller, &which).await?;
    Ok(Json(convert::workspace(&touched)))
}
