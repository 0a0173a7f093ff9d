//! Snapshots.

use axum::{Json, extract::State};
use http::StatusCode;

use super::{Body, Login, Params, Query, convert, convert_saved, error_body::NativeResult, wire};
use crate::{
    ApiState,
    ids::{parse_workspace_id, parse_workspace_ref},
};

/// Takes a snapshot of a workspace, which goes on as before.
///
/// With `wait`, the answer comes when it is ready or has failed, which its `state` says.
#[utoipa::path(
    operation_id = "create_snapshot",
    post, path = "/skerry/v1/workspaces/{workspace}/snapshots", tag = "snapshots",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::WaitQuery,
    ),
    request_body = wire::CreateSnapshot,
    responses(
        (status = 201, body = wire::Snapshot, description = "Recorded"),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 403, body = wire::ErrorBody, description = "A limit of the plan"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "Refused by the state"),
    ),
)]
pub(super) async fn create(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    query: Query<wire::WaitQuery>,
    body: Body<wire::CreateSnapshot>,
) -> NativeResult<(StatusCode, Json<wire::Snapshot>)> {
    let wait = convert::wait(&query.value)?;
    let which = parse_workspace_ref(&path.value);
    let request = convert_saved::create_snapshot(body.value);
    let taken = state.control.create_snapshot(&login.caller, &which, request, wait);
    let taken = state.until_shutdown(taken).await?;
    Ok((StatusCode::CREATED, Json(convert_saved::snapshot(&taken))))
}

/// Lists the account's snapshots, newest first.
#[utoipa::path(
    operation_id = "list_snapshots",
    get, path = "/skerry/v1/snapshots", tag = "snapshots", params(wire::ListSnapshotsQuery),
    responses(
        (status = 200, body = wire::SnapshotList),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
    ),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    login: Login,
    query: Query<wire::ListSnapshotsQuery>,
) -> NativeResult<Json<wire::SnapshotList>> {
    let (mut filter, limit) = convert_saved::list_snapshots(&query.value)?;
    if let Some(text) = &query.value.workspace {
        // An identity is enough: the workspace may be gone while its snapshots are there.
        filter.workspace_id = Some(match parse_workspace_id(text) {
            Some(id) => id,
            None => {
                let which = parse_workspace_ref(text);
                state.control.get_workspace(&login.caller, &which).await?.id
            }
        });
    }
    let page = state.control.list_snapshots(&login.caller, &filter).await?;
    Ok(Json(wire::SnapshotList {
        snapshots: page.items.iter().map(convert_saved::snapshot).collect(),
        total: page.total,
        offset: filter.offset,
        limit,
    }))
}

/// Shows one snapshot.
#[utoipa::path(
    operation_id = "get_snapshot",
    get, path = "/skerry/v1/snapshots/{snapshot}", tag = "snapshots",
    params(("snapshot" = String, Path, description = "Identity, or name: the newest ready one of that name")),
    responses(
        (status = 200, body = wire::Snapshot),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such snapshot"),
    ),
)]
pub(super) async fn get(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::Snapshot>> {
    let which = convert_saved::snapshot_ref(&path.value);
    let found = state.control.get_snapshot(&login.caller, &which).await?;
    Ok(Json(convert_saved::snapshot(&found)))
}

/// Changes a snapshot's name or labels; what it contains never changes.
#[utoipa::path(
    operation_id = "update_snapshot",
    patch, path = "/skerry/v1/snapshots/{snapshot}", tag = "snapshots",
    params(("snapshot" = String, Path, description = "Identity, or name: the newest ready one of that name")),
    request_body = wire::UpdateSnapshot,
    responses(
        (status = 200, body = wire::Snapshot),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such snapshot"),
    ),
)]
pub(super) async fn update(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    body: Body<wire::UpdateSnapshot>,
) -> NativeResult<Json<wire::Snapshot>> {
    let which = convert_saved::snapshot_ref(&path.value);
    let update = convert_saved::update_snapshot(body.value);
    let changed = state.control.update_snapshot(&login.caller, &which, update).await?;
    Ok(Json(convert_saved::snapshot(&changed)))
}

/// Deletes a snapshot. Workspaces that were made from it and have started are not touched.
#[utoipa::path(
    operation_id = "delete_snapshot",
    delete, path = "/skerry/v1/snapshots/{snapshot}", tag = "snapshots",
    params(
        ("snapshot" = String, Path, description = "Identity, or name: the newest ready one of that name"),
        wire::WaitQuery,
    ),
    responses(
        (status = 200, body = wire::DeletedSnapshot, description = "Everything is gone"),
        (status = 202, body = wire::DeletedSnapshot, description = "It goes on by itself"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such snapshot"),
        (status = 409, body = wire::ErrorBody, description = "A workspace cannot start without it"),
    ),
)]
pub(super) async fn delete(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    query: Query<wire::WaitQuery>,
) -> NativeResult<(StatusCode, Json<wire::DeletedSnapshot>)> {
    let wait = convert::wait(&query.value)?;
    let which = convert_saved::snapshot_ref(&path.value);
    let deleted = state.control.delete_snapshot(&login.caller, &which, wait);
    let deleted = state.until_shutdown(deleted).await?;
    let status = if deleted.complete { StatusCode::OK } else { StatusCode::ACCEPTED };
    let snapshot = convert_saved::snapshot(&deleted.snapshot);
    Ok((status, Json(wire::DeletedSnapshot { snapshot, complete: deleted.complete })))
}
