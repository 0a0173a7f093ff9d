//! `/v1/users/me`, `/v1/ssh-keys` and `/v1/api-keys/`.

use axum::{Json, extract::State};
use skerry_control::{ApiKey, Caller, SshKey};

use super::{
    Instavm, convert,
    error_body::Problem,
    request::{AuthenticatedBody, AuthenticatedOptionalBody},
    wire::{ApiKeyRecord, Done, Me, SshKeyRecord, SshKeys},
};
use crate::{ApiState, auth::Authenticated, extract::PathOf};

/// The name of a key that was given none.
const UNNAMED: &str = "api key";

pub(super) async fn me(Authenticated { caller, .. }: Authenticated<Instavm>) -> Json<Me> {
    Json(Me {
        id: caller.account_id().to_string(),
        email: None,
        name: caller.account_handle().to_owned(),
        is_verified: true,
    })
}

/// InstaVM's ids of keys are whole numbers, and JSON's whole numbers have 53 bits. Of an id's random bits
/// they tell the few keys of an account apart.
fn number(id: u128) -> u64 {
    // The mask leaves no more than fit.
    (id & ((1 << 53) - 1)) as u64
}

fn ssh_key(key: SshKey) -> SshKeyRecord {
    SshKeyRecord {
        id: number(key.id.as_u128()),
        fingerprint: key.fingerprint_text(),
        comment: key.name,
        public_key: key.public_key,
        created_at: convert::time(key.created_at),
    }
}

pub(super) async fn ssh_keys(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
) -> Result<Json<SshKeys>, Problem> {
    let keys = state.control.list_ssh_keys(&caller).await?;
    Ok(Json(SshKeys { keys: keys.into_iter().map(ssh_key).collect() }))
}

pub(super) async fn add_ssh_key(
    State(state): State<ApiState>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<SshKeyRecord>, Problem> {
    let public_key = fields.text("public_key");
    if public_key.is_none() {
        fields.missing("public_key");
    }
    fields.finish()?;
    let public_key = public_key.unwrap_or_default();
    Ok(Json(ssh_key(state.control.add_ssh_key(&caller, None, &public_key).await?)))
}

pub(super) async fn delete_ssh_key(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: id, .. }: PathOf<String, Instavm>,
) -> Result<Json<Done>, Problem> {
    let mut keys = state.control.list_ssh_keys(&caller).await?.into_iter();
    let key = keys.find(|key| number(key.id.as_u128()).to_string() == id);
    state.control.delete_ssh_key(&caller, key.ok_or(Problem::NoSuchSshKey)?.id).await?;
    Ok(Json(Done { status: "deleted" }))
}

fn api_key(key: ApiKey, secret: Option<String>) -> ApiKeyRecord {
    ApiKeyRecord {
        id: number(key.id.as_u128()),
        description: key.name,
        key: secret,
        key_hint: key.secret_tail,
        created_at: convert::time(key.created_at),
        last_used_at: key.last_used_at.map(convert::time),
    }
}

pub(super) async fn api_keys(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
) -> Result<Json<Vec<ApiKeyRecord>>, Problem> {
    let keys = state.control.list_keys(&caller).await?;
    Ok(Json(keys.into_iter().map(|key| api_key(key, None)).collect()))
}

pub(super) async fn create_api_key(
    State(state): State<ApiState>,
    AuthenticatedOptionalBody { caller, mut fields }: AuthenticatedOptionalBody,
) -> Result<Json<ApiKeyRecord>, Problem> {
    let (description, name) = (fields.text("description"), fields.text("name"));
    fields.finish()?;
    let name = description.or(name).filter(|name| !name.is_empty());
    let made = state.control.create_key(&caller, name.as_deref().unwrap_or(UNNAMED)).await?;
    Ok(Json(api_key(made.key, Some(made.secret.expose().to_owned()))))
}

async fn find(state: &ApiState, caller: &Caller, id: &str) -> Result<ApiKey, Problem> {
    let mut keys = state.control.list_keys(caller).await?.into_iter();
    let key = keys.find(|key| number(key.id.as_u128()).to_string() == id);
    key.ok_or(Problem::NoSuchApiKey)
}

pub(super) async fn get_api_key(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: id, .. }: PathOf<String, Instavm>,
) -> Result<Json<ApiKeyRecord>, Problem> {
    Ok(Json(api_key(find(&state, &caller, &id).await?, None)))
}

pub(super) async fn delete_api_key(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: id, .. }: PathOf<String, Instavm>,
) -> Result<Json<Done>, Problem> {
    let key = find(&state, &caller, &id).await?;
    state.control.delete_key(&caller, key.id).await?;
    Ok(Json(Done { status: "deleted" }))
}
