//! SSH: where the server speaks it, and the keys that open workspaces.

use axum::{Json, extract::State};
use http::StatusCode;
use skerry_control::{self as control, SshKey};
use skerry_model::SshKeyId;

use super::{
    Body, Login, Params, convert,
    error_body::{NativeError, NativeResult},
    wire,
};
use crate::ApiState;

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
