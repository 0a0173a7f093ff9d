//! `/workspace/:id/runtime-api-access`: whether tokens open a workspace's runtime, and making them.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::json;
use skerry_control::RuntimeToken;
use skerry_model::State as WorkspaceState;

use crate::{
    ApiState,
    auth::Authenticated,
    dialects::oblien::{Oblien, error_body::Problem, object},
    extract::PathOf,
    ids,
};

type Login = Authenticated<Oblien>;
type Reference = PathOf<String, Oblien>;

fn token_answer(token: &RuntimeToken) -> Response {
    Json(json!({
        "success": true,
        "enabled": true,
        "token": token.secret.expose(),
        "expires_at": object::time(token.expires_at),
    }))
    .into_response()
}

pub(in crate::dialects::oblien) async fn status(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: Reference,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&caller, &which).await?;
    let enabled = state.control.is_runtime_open(&caller, &which).await?;
    let running = matches!(workspace.state, WorkspaceState::Running { .. });
    let body = json!({ "success": true, "enabled": enabled, "running": enabled && running });
    Ok(Json(body).into_response())
}

pub(in crate::dialects::oblien) async fn enable(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: Reference,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    Ok(token_answer(&state.control.open_runtime(&caller, &which).await?))
}

/// Ends what was begun through the runtime, too.
pub(in crate::dialects::oblien) async fn disable(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: Reference,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.close_runtime(&caller, &which).await?;
    state.runtimes.close(workspace);
    Ok(Json(json!({ "success": true, "enabled": false })).into_response())
}

/// A new hour every time: clients keep a token 55 minutes from when they fetched it.
pub(in crate::dialects::oblien) async fn show(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: Reference,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    Ok(token_answer(&state.control.make_runtime_token(&caller, &which).await?))
}

pub(in crate::dialects::oblien) async fn rotate(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: Reference,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let (workspace, token) = state.control.replace_runtime_tokens(&caller, &which).await?;
    state.runtimes.disconnect(workspace);
    Ok(token_answer(&token))
}
