//! SSH keys. They are the account's and hold in every workspace at once: the gateway looks them up when
//! somebody comes, so that there is nothing to copy into a guest.

use axum::{Json, extract::State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use skerry_control::{Caller, Error, SshKey};
use skerry_model::{SshKeyId, Timestamp};

use super::{
    Rigbox, convert,
    error_body::RigboxError,
    paging::{self, PageQuery, Place},
    wire,
    workspaces::WorkspaceId,
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf, QueryOf},
    ids,
    object::Object,
};

/// Body of `POST /ssh-keys`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddBody {
    /// Both are required; optional here so that their absence is answered like any other wrong value.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    public_key: Option<String>,
}

/// A key of the account.
#[derive(Serialize)]
pub(super) struct KeyView {
    id: String,
    user_id: String,
    name: String,
    public_key: String,
    fingerprint: String,
    created_at: Timestamp,
}

/// Answer of `GET /ssh-keys`, for both generations of clients.
#[derive(Serialize)]
pub(super) struct KeyList {
    ssh_keys: Vec<KeyView>,
    items: Vec<KeyView>,
    next_cursor: Option<String>,
}

/// A key as a workspace has it.
#[derive(Serialize)]
pub(super) struct WorkspaceKey {
    key_type: String,
    fingerprint: String,
    comment: String,
}

/// Answer of `GET /workspaces/{id}/ssh-keys`, for both generations of clients.
#[derive(Serialize)]
pub(super) struct WorkspaceKeyList {
    keys: Vec<WorkspaceKey>,
    items: Vec<WorkspaceKey>,
    next_cursor: Option<String>,
}

/// Answer of `POST /workspaces/{id}/ssh-keys/sync`.
#[derive(Serialize)]
pub(super) struct Synced {
    synced: usize,
    keys: Vec<WorkspaceKey>,
}

fn view(caller: &Caller, key: &SshKey) -> KeyView {
    KeyView {
        id: key.id.to_string(),
        user_id: caller.account_id().to_string(),
        name: key.name.clone(),
        public_key: key.public_key.clone(),
        fingerprint: key.fingerprint_text(),
        created_at: key.created_at,
    }
}

fn of_workspace(key: &SshKey) -> WorkspaceKey {
    WorkspaceKey {
        key_type: key.algorithm().to_owned(),
        fingerprint: key.fingerprint_text(),
        comment: key.name.clone(),
    }
}

fn place(key: &SshKey) -> Place {
    Place { created_at: key.created_at, id: key.id.as_u128() }
}

/// `GET /ssh-keys`.
pub(super) async fn list(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    query: QueryOf<PageQuery, Rigbox>,
) -> Result<Json<KeyList>, RigboxError> {
    let mut keys = state.control.list_ssh_keys(&auth.caller).await?;
    let paged = paging::page(&mut keys, place, &query.value)?;
    let shown = |key: &SshKey| view(&auth.caller, key);
    Ok(Json(KeyList {
        ssh_keys: paged.unpaged.iter().map(shown).collect(),
        items: paged.page.iter().map(shown).collect(),
        next_cursor: paged.next_cursor,
    }))
}

/// `POST /ssh-keys`.
pub(super) async fn add(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    body: JsonBody<Object<AddBody>, Rigbox>,
) -> Result<(StatusCode, Json<KeyView>), RigboxError> {
    let AddBody { name, public_key } = body.value.0;
    let name = name.ok_or_else(|| convert::required("name", "1 to 100 characters"))?;
    let public_key =
        public_key.ok_or_else(|| convert::required("public_key", "one line of a .pub file"))?;
    let key = state.control.add_ssh_key(&auth.caller, Some(&name), &public_key).await?;
    Ok((StatusCode::CREATED, Json(view(&auth.caller, &key))))
}

/// `DELETE /ssh-keys/{id}`.
pub(super) async fn delete(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<wire::Message>, RigboxError> {
    let id = ids::parse_uuid(&id.value)
        .map(SshKeyId::from_uuid)
        .ok_or_else(|| Error::not_found("SSH key"))?;
    state.control.delete_ssh_key(&auth.caller, id).await?;
    Ok(Json(wire::Message { message: "SSH key deleted".to_owned() }))
}

/// `GET /workspaces/{id}/ssh-keys`.
pub(super) async fn list_of_workspace(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
    query: QueryOf<PageQuery, Rigbox>,
) -> Result<Json<WorkspaceKeyList>, RigboxError> {
    state.control.get_workspace(&auth.caller, &which).await?;
    let mut keys = state.control.list_ssh_keys(&auth.caller).await?;
    let paged = paging::page(&mut keys, place, &query.value)?;
    Ok(Json(WorkspaceKeyList {
        keys: paged.unpaged.iter().map(of_workspace).collect(),
        items: paged.page.iter().map(of_workspace).collect(),
        next_cursor: paged.next_cursor,
    }))
}

/// `POST /workspaces/{id}/ssh-keys/sync`: done already, in whatever state the workspace is.
pub(super) async fn sync(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<Synced>, RigboxError> {
    state.control.get_workspace(&auth.caller, &which).await?;
    let keys = state.control.list_ssh_keys(&auth.caller).await?;
    Ok(Json(Synced { synced: keys.len(), keys: keys.iter().map(of_workspace).collect() }))
}
