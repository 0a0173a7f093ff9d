//! What a workspace says of itself: logs, resource use, listening ports.

use axum::{Json, extract::State, response::Response};

use super::{
    Login, Params, Query, convert,
    error_body::{NativeError, NativeResult},
    wire,
};
use crate::{ApiState, bodies::download, ids::parse_workspace_ref};

const DEFAULT_TAIL_BYTES: u64 = 64 * 1024;
const MAX_TAIL_BYTES: u64 = 16 * 1024 * 1024;

/// Reads the end of a log, in any state of the workspace.
#[utoipa::path(
    operation_id = "read_log",
    get, path = "/skerry/v1/workspaces/{workspace}/logs", tag = "workspaces",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::LogQuery,
    ),
    responses(
        (status = 200, content_type = "text/plain", body = [u8], description = "As the guest wrote it"),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
    ),
)]
pub(super) async fn logs(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
    query: Query<wire::LogQuery>,
) -> NativeResult<Response> {
    let tail_bytes = query.value.tail_bytes.unwrap_or(DEFAULT_TAIL_BYTES);
    if tail_bytes > MAX_TAIL_BYTES {
        return Err(NativeError::invalid(
            "tail_bytes",
            "is too large",
            format!("0 to {MAX_TAIL_BYTES}"),
        ));
    }
    let which = parse_workspace_ref(&workspace.value);
    let source = convert::log_source(query.value.source);
    let log = state.control.workspace_log(&login.caller, &which, source, tail_bytes).await?;
    Ok(download(log, "text/plain; charset=utf-8"))
}

/// Shows what the guest uses of its resources.
#[utoipa::path(
    operation_id = "get_stats",
    get, path = "/skerry/v1/workspaces/{workspace}/stats", tag = "workspaces",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 200, body = wire::Stats),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run"),
    ),
)]
pub(super) async fn stats(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
) -> NativeResult<Json<wire::Stats>> {
    let which = parse_workspace_ref(&workspace.value);
    let stats = state.control.workspace_stats(&login.caller, &which).await?;
    Ok(Json(convert::stats(&stats)))
}

/// Lists the TCP ports the guest listens on.
#[utoipa::path(
    operation_id = "list_ports",
    get, path = "/skerry/v1/workspaces/{workspace}/ports", tag = "workspaces",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 200, body = wire::PortList),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run"),
    ),
)]
pub(super) async fn ports(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
) -> NativeResult<Json<wire::PortList>> {
    let which = parse_workspace_ref(&workspace.value);
    let guest = state.control.guest(&login.caller, &which).await?;
    let ports = guest.listening_ports().await?.into_iter().map(convert::port).collect();
    Ok(Json(wire::PortList { ports }))
}
