//! SSH: where the server speaks it, and the keys that open workspaces.

use axum::{Json, extract::State};
use http::StatusCode;
use skerry_control::{self as control, SshKey};
use skerry_model::{Secret, SshKeyId};

use super::{
    Body, Login, Params, convert,
    error_body::{NativeError, NativeResult},
    wire,
};
use crate::{ApiState, ids::parse_workspace_ref};

fn shown(key: SshKey) -> wire::SshKey {
    wire::SshKey {
        id: key.id.to_string(),
        algorithm: key.algorithm().to_owned(),
        fingerprint: key.fingerprint_text(),
        name: key.name,
        public_key: key.public_key,
        created_at: convert::time(key.created_at),
    }
}

/// Says where the server speaks SSH.
#[utoipa::path(
    operation_id = "get_ssh",
    get, path = "/skerry/v1/ssh", tag = "ssh",
    responses(
        (status = 200, body = wire::Ssh),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
    ),
)]
pub(super) async fn endpoint(State(state): State<ApiState>, _: Login) -> Json<wire::Ssh> {
    let shown = |ssh: &crate::SshEndpoint| wire::SshEndpoint {
        host: ssh.host.clone(),
        port: ssh.port,
        host_key: ssh.host_key.clone(),
    };
    Json(wire::Ssh { endpoint: state.ssh().map(shown) })
}

/// Lists the account's SSH keys.
#[utoipa::path(
    operation_id = "list_ssh_keys",
    get, path = "/skerry/v1/ssh-keys", tag = "ssh",
    responses(
        (status = 200, body = wire::SshKeyList),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
    ),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    login: Login,
) -> NativeResult<Json<wire::SshKeyList>> {
    let keys = state.control.list_ssh_keys(&login.caller).await?;
    Ok(Json(wire::SshKeyList { ssh_keys: keys.into_iter().map(shown).collect() }))
}

/// Adds an SSH key: whoever holds its private half enters the account's workspaces.
#[utoipa::path(
    operation_id = "add_ssh_key",
    post, path = "/skerry/v1/ssh-keys", tag = "ssh", request_body = wire::AddSshKey,
    responses(
        (status = 201, body = wire::SshKey),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 409, body = wire::ErrorBody, description = "The key is registered already, or there are too many"),
    ),
)]
pub(super) async fn add(
    State(state): State<ApiState>,
    login: Login,
    body: Body<wire::AddSshKey>,
) -> NativeResult<(StatusCode, Json<wire::SshKey>)> {
    let wire::AddSshKey { name, public_key } = body.value;
    let key = state.control.add_ssh_key(&login.caller, name.as_deref(), &public_key).await?;
    Ok((StatusCode::CREATED, Json(shown(key))))
}

/// Removes an SSH key. What is open stays open.
#[utoipa::path(
    operation_id = "delete_ssh_key",
    delete, path = "/skerry/v1/ssh-keys/{key}", tag = "ssh",
    params(("key" = String, Path, description = "The key's identity")),
    responses(
        (status = 204, description = "Removed"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such key"),
    ),
)]
pub(super) async fn delete(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<StatusCode> {
    let missing = |_| NativeError::from(control::Error::not_found("ssh key"));
    let id: SshKeyId = path.value.parse().map_err(missing)?;
    state.control.delete_ssh_key(&login.caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Says who enters a workspace by SSH.
#[utoipa::path(
    operation_id = "get_ssh_access",
    get, path = "/skerry/v1/workspaces/{workspace}/ssh", tag = "ssh",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 200, body = wire::SshAccess),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
    ),
)]
pub(super) async fn access(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::SshAccess>> {
    let which = parse_workspace_ref(&path.value);
    let access = state.control.ssh_access(&login.caller, &which).await?;
    Ok(Json(wire::SshAccess {
        open: access.is_open,
        has_password: access.has_password,
        password_chosen: access.is_password_chosen,
    }))
}

/// Opens a workspace to SSH. One without a password for root gets one, which is shown this once.
#[utoipa::path(
    operation_id = "open_ssh",
    post, path = "/skerry/v1/workspaces/{workspace}/ssh/open", tag = "ssh",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 200, body = wire::SshOpened),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "There are too many passwords"),
    ),
)]
pub(super) async fn open(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::SshOpened>> {
    let which = parse_workspace_ref(&path.value);
    let made = state.control.open_ssh(&login.caller, &which).await?;
    Ok(Json(wire::SshOpened { password: made.map(|password| password.expose().to_owned()) }))
}

/// Closes a workspace to SSH, whatever key or password somebody has; its passwords are forgotten. What is
/// open stays open.
#[utoipa::path(
    operation_id = "close_ssh",
    post, path = "/skerry/v1/workspaces/{workspace}/ssh/close", tag = "ssh",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 204, description = "Closed"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
    ),
)]
pub(super) async fn close(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<StatusCode> {
    let which = parse_workspace_ref(&path.value);
    state.control.close_ssh(&login.caller, &which).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets a password of a workspace. The one before opens nothing any more.
#[utoipa::path(
    operation_id = "set_ssh_password",
    put, path = "/skerry/v1/workspaces/{workspace}/ssh/password", tag = "ssh",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    request_body = wire::SetSshPassword,
    responses(
        (status = 204, description = "Set"),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "It is closed to SSH, or has passwords of too many users"),
    ),
)]
pub(super) async fn set_password(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    body: Body<wire::SetSshPassword>,
) -> NativeResult<StatusCode> {
    let which = parse_workspace_ref(&path.value);
    let wire::SetSshPassword { user, password } = body.value;
    let password = Secret::new(password);
    state.control.set_ssh_password(&login.caller, &which, user.as_deref(), &password).await?;
    Ok(StatusCode::NO_CONTENT)
}
