//! The account: its limits and its API keys.

use axum::{Json, extract::State};
use http::StatusCode;
use skerry_control::ApiKey;
use skerry_model::ApiKeyId;

use super::{
    Rigbox, convert,
    error_body::RigboxError,
    paging::{self, PageQuery, Place},
    wire,
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf, QueryOf},
    ids,
    object::Object,
};

/// A key's name when the request gives none.
const DEFAULT_KEY_NAME: &str = "API key";

/// `GET /users/me/limits`.
pub(super) async fn limits(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
) -> Result<Json<wire::AccountLimits>, RigboxError> {
    let quota = state.control.quota(&auth.caller).await?;
    Ok(Json(convert::limits(&quota)))
}

/// `GET /api-keys`.
pub(super) async fn list_keys(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    query: QueryOf<PageQuery, Rigbox>,
) -> Result<Json<wire::ApiKeyList>, RigboxError> {
    let mut keys = state.control.list_keys(&auth.caller).await?;
    let place = |key: &ApiKey| Place { created_at: key.created_at, id: key.id.as_u128() };
    let paged = paging::page(&mut keys, place, &query.value)?;
    Ok(Json(wire::ApiKeyList {
        api_keys: paged.unpaged.iter().map(convert::api_key).collect(),
        items: paged.page.iter().map(convert::api_key).collect(),
        next_cursor: paged.next_cursor,
    }))
}

/// `POST /api-keys`: the only answer that shows the secret.
pub(super) async fn create_key(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    body: JsonBody<Option<Object<wire::CreateApiKeyBody>>, Rigbox>,
) -> Result<(StatusCode, Json<wire::CreatedApiKey>), RigboxError> {
    let name = body.value.and_then(|Object(body)| body.name);
    let name = name.as_deref().unwrap_or(DEFAULT_KEY_NAME);
    let made = state.control.create_key(&auth.caller, name).await?;
    let answer =
        wire::CreatedApiKey { id: made.key.id.to_string(), key: made.secret.expose().to_owned() };
    Ok((StatusCode::CREATED, Json(answer)))
}

/// `DELETE /api-keys/{id}`.
pub(super) async fn delete_key(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<wire::Message>, RigboxError> {
    let id = ids::parse_uuid(&id.value)
        .map(ApiKeyId::from_uuid)
        .ok_or_else(|| skerry_control::Error::not_found("API key"))?;
    state.control.delete_key(&auth.caller, id).await?;
    Ok(Json(wire::Message { message: "API key deleted".to_owned() }))
}
