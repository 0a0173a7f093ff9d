//! Putting workspaces to rest and waking them, restoring and forking them.

use axum::{Json, extract::State};
use http::StatusCode;

use super::{
    Body, Login, Params, Query, convert, convert_saved, error_body::NativeResult, verb::Verb, wire,
};
use crate::{ApiState, ids::parse_workspace_ref};

/// Stops a running workspace's virtual CPUs; its memory stays resident.
#[utoipa::path(
    operation_id = "pause_workspace",
    post, path = "/skerry/v1/workspaces/{workspace}/pause", tag = "workspaces",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::WaitQuery,
    ),
    responses(
        (status = 200, body = wire::Workspace, description = "The state reached so far"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "Refused by the state"),
        (status = 503, body = wire::ErrorBody, description = "It could not be done"),
    ),
)]
pub(super) async fn pause(verb: Verb) -> NativeResult<Json<wire::Workspace>> {
    let Verb { state, caller, which, wait } = &verb;
    verb.reached(state.control.pause_workspace(caller, which, *wait)).await
}

/// Lets a paused or suspended workspace go on where it was, and cancels a suspension under way.
///
/// Memory that was saved and cannot be used makes the workspace `failed` with the code
/// `saved_state_unusable`: stopping it then discards the memory, and starting it boots.
#[utoipa::path(
    operation_id = "resume_workspace",
    post, path = "/skerry/v1/workspaces/{workspace}/resume", tag = "workspaces",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::WaitQuery,
    ),
    responses(
        (status = 200, body = wire::Workspace, description = "The state reached so far"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 403, body = wire::ErrorBody, description = "A limit of the plan"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "Refused by the state"),
        (status = 503, body = wire::ErrorBody, description = "It could not be done"),
    ),
)]
pub(super) async fn resume(verb: Verb) -> NativeResult<Json<wire::Workspace>> {
    let Verb { state, caller, which, wait } = &verb;
    verb.reached(state.control.resume_workspace(caller, which, *wait)).await
}

/// Writes a workspace's memory to disk and ends its VM; resuming goes on where it was.
///
/// A resume, start, stop or deletion asked for meanwhile cancels it.
#[utoipa::path(
    operation_id = "suspend_workspace",
    post, path = "/skerry/v1/workspaces/{workspace}/suspend", tag = "workspaces",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::WaitQuery,
    ),
    responses(
        (status = 200, body = wire::Workspace, description = "The state reached so far"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "Refused by the state"),
        (status = 503, body = wire::ErrorBody, description = "It could not be done"),
    ),
)]
pub(super) async fn suspend(verb: Verb) -> NativeResult<Json<wire::Workspace>> {
    let Verb { state, caller, which, wait } = &verb;
    verb.reached(state.control.suspend_workspace(caller, which, *wait)).await
}

/// Replaces a workspace's disk by a snapshot's and, when vCPUs and memory are the same, its memory.
///
/// A VM that is there is stopped first. What the workspace had is kept until a start from the snapshot
/// has succeeded; if that fails, a stop goes back to it.
#[utoipa::path(
    operation_id = "restore_workspace",
    post, path = "/skerry/v1/workspaces/{workspace}/restore", tag = "workspaces",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::WaitQuery,
    ),
    request_body = wire::RestoreWorkspace,
    responses(
        (status = 200, body = wire::Workspace, description = "The state reached so far"),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 403, body = wire::ErrorBody, description = "A limit of the plan"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or snapshot"),
        (status = 409, body = wire::ErrorBody, description = "Refused by the state of either"),
    ),
)]
pub(super) async fn restore(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    query: Query<wire::WaitQuery>,
    body: Body<wire::RestoreWorkspace>,
) -> NativeResult<Json<wire::Workspace>> {
    let wait = convert::wait(&query.value)?;
    let which = parse_workspace_ref(&path.value);
    let request = convert_saved::restore(&body.value);
    let restored = state.control.restore_workspace(&login.caller, &which, request, wait);
    Ok(Json(convert::workspace(&state.until_shutdown(restored).await?)))
}

/// Makes workspaces that go on where this one is: from its memory and disk while it runs or is paused,
/// from its disk otherwise. The source goes on as before.
///
/// Either all are recorded or none. The answer comes after the snapshot is taken at the earliest, and
/// with `wait` when all have settled.
#[utoipa::path(
    operation_id = "fork_workspace",
    post, path = "/skerry/v1/workspaces/{workspace}/fork", tag = "workspaces",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::WaitQuery,
    ),
    request_body = wire::ForkWorkspace,
    responses(
        (status = 201, body = wire::Forked, description = "Made"),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 403, body = wire::ErrorBody, description = "A limit of the plan"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "Refused by the state"),
        (status = 503, body = wire::ErrorBody, description = "The snapshot could not be taken"),
    ),
)]
pub(super) async fn fork(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    query: Query<wire::WaitQuery>,
    body: Body<wire::ForkWorkspace>,
) -> NativeResult<(StatusCode, Json<wire::Forked>)> {
    let which = parse_workspace_ref(&path.value);
    let request = convert_saved::fork(body.value, convert::wait(&query.value)?);
    let forked = state.control.fork_workspace(&login.caller, &which, request);
    let forked = state.until_shutdown(forked).await?;
    Ok((StatusCode::CREATED, Json(convert_saved::forked(&forked))))
}
