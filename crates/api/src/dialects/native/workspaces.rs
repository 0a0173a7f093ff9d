//! Workspaces: records and power.

use axum::{Json, extract::State};
use http::StatusCode;
use skerry_control as control;

use super::{
    Body, Login, Params, Query, convert, error_body::NativeResult, network, verb::Verb, wire,
};
use crate::{ApiState, ids::parse_workspace_ref};

/// Makes a workspace and starts it, unless `start` is false.
///
/// With `wait`, the answer comes when it runs. A start that fails is not an error of this call: the
/// workspace is there, and its `state` and `failure` say what happened.
#[utoipa::path(
    operation_id = "create_workspace",
    post, path = "/skerry/v1/workspaces", tag = "workspaces",
    params(wire::WaitQuery), request_body = wire::CreateWorkspace,
    responses(
        (status = 201, body = wire::Workspace, description = "Made"),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 403, body = wire::ErrorBody, description = "A limit of the plan"),
        (status = 409, body = wire::ErrorBody, description = "The slug is taken"),
    ),
)]
pub(super) async fn create(
    State(state): State<ApiState>,
    login: Login,
    query: Query<wire::WaitQuery>,
    body: Body<wire::CreateWorkspace>,
) -> NativeResult<(StatusCode, Json<wire::Workspace>)> {
    let mut body = body.value;
    let network = match body.network.take() {
        Some(asked) => Some(network::wish(&state.control, &login.caller, asked).await?),
        None => None,
    };
    let request = convert::create(body, convert::wait(&query.value)?)?;
    let request = control::CreateWorkspace { network, ..request };
    let made = state.until_shutdown(state.control.create_workspace(&login.caller, request)).await?;
    Ok((StatusCode::CREATED, Json(convert::workspace(&made))))
}

/// Lists the account's workspaces, through whichever API they were made; newest first.
#[utoipa::path(
    operation_id = "list_workspaces",
    get, path = "/skerry/v1/workspaces", tag = "workspaces", params(wire::ListQuery),
    responses(
        (status = 200, body = wire::WorkspaceList),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
    ),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    login: Login,
    query: Query<wire::ListQuery>,
) -> NativeResult<Json<wire::WorkspaceList>> {
    let (filter, limit) = convert::list(&query.value)?;
    let page = state.control.list_workspaces(&login.caller, &filter).await?;
    Ok(Json(wire::WorkspaceList {
        workspaces: page.items.iter().map(convert::workspace).collect(),
        total: page.total,
        offset: filter.offset,
        limit,
    }))
}

/// Shows one workspace.
#[utoipa::path(
    operation_id = "get_workspace",
    get, path = "/skerry/v1/workspaces/{workspace}", tag = "workspaces",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 200, body = wire::Workspace),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "Several have this name"),
    ),
)]
pub(super) async fn get(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::Workspace>> {
    let found =
        state.control.get_workspace(&login.caller, &parse_workspace_ref(&path.value)).await?;
    Ok(Json(convert::workspace(&found)))
}

/// Changes a workspace. Its size changes only while no VM is there.
#[utoipa::path(
    operation_id = "update_workspace",
    patch, path = "/skerry/v1/workspaces/{workspace}", tag = "workspaces",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    request_body = wire::UpdateWorkspace,
    responses(
        (status = 200, body = wire::Workspace),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 403, body = wire::ErrorBody, description = "A limit of the plan"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "Refused by the state, or slug taken"),
    ),
)]
pub(super) async fn update(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    body: Body<wire::UpdateWorkspace>,
) -> NativeResult<Json<wire::Workspace>> {
    let which = parse_workspace_ref(&path.value);
    let update = convert::update(body.value);
    let changed = state.control.update_workspace(&login.caller, &which, update).await?;
    Ok(Json(convert::workspace(&changed)))
}

/// Deletes a workspace with its disk and logs, from any state.
#[utoipa::path(
    operation_id = "delete_workspace",
    delete, path = "/skerry/v1/workspaces/{workspace}", tag = "workspaces",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::WaitQuery,
    ),
    responses(
        (status = 200, body = wire::DeletedWorkspace, description = "Everything is gone"),
        (status = 202, body = wire::DeletedWorkspace, description = "It goes on by itself"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
    ),
)]
pub(super) async fn delete(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    query: Query<wire::WaitQuery>,
) -> NativeResult<(StatusCode, Json<wire::DeletedWorkspace>)> {
    let wait = convert::wait(&query.value)?;
    let which = parse_workspace_ref(&path.value);
    let deleted =
        state.until_shutdown(state.control.delete_workspace(&login.caller, &which, wait)).await?;
    let status = if deleted.complete { StatusCode::OK } else { StatusCode::ACCEPTED };
    let workspace = convert::workspace(&deleted.workspace);
    Ok((status, Json(wire::DeletedWorkspace { workspace, complete: deleted.complete })))
}

/// Starts a workspace. One that runs or starts already is a success.
#[utoipa::path(
    operation_id = "start_workspace",
    post, path = "/skerry/v1/workspaces/{workspace}/start", tag = "workspaces",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::WaitQuery,
    ),
    responses(
        (status = 200, body = wire::Workspace, description = "The state reached so far"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 403, body = wire::ErrorBody, description = "A limit of the plan"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "It is being deleted"),
    ),
)]
pub(super) async fn start(verb: Verb) -> NativeResult<Json<wire::Workspace>> {
    let Verb { state, caller, which, wait } = &verb;
    verb.reached(state.control.start_workspace(caller, which, *wait)).await
}

/// Stops a workspace; its disk is kept. One that is stopped already is a success.
#[utoipa::path(
    operation_id = "stop_workspace",
    post, path = "/skerry/v1/workspaces/{workspace}/stop", tag = "workspaces",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::WaitQuery,
    ),
    responses(
        (status = 200, body = wire::Workspace, description = "The state reached so far"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "It is being deleted"),
    ),
)]
pub(super) async fn stop(verb: Verb) -> NativeResult<Json<wire::Workspace>> {
    let Verb { state, caller, which, wait } = &verb;
    verb.reached(state.control.stop_workspace(caller, which, *wait)).await
}

/// Stops a workspace and starts it again.
#[utoipa::path(
    operation_id = "restart_workspace",
    post, path = "/skerry/v1/workspaces/{workspace}/restart", tag = "workspaces",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::WaitQuery,
    ),
    responses(
        (status = 200, body = wire::Workspace, description = "The state reached so far"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 403, body = wire::ErrorBody, description = "A limit of the plan"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "It is being deleted"),
    ),
)]
pub(super) async fn restart(verb: Verb) -> NativeResult<Json<wire::Workspace>> {
    let Verb { state, caller, which, wait } = &verb;
    verb.reached(state.control.restart_workspace(caller, which, *wait)).await
}
