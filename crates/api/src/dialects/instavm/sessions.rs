//! `/v1/sessions` and `/kill`. A session has its VM from the start: the machine comes up while the
//! client goes on.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use serde_json::Value;
use skerry_control::{CreateWorkspace, ListWorkspaces, Wait, WorkspaceRef};
use skerry_model::ErrorKind;

use super::{
    Instavm, convert, egress,
    error_body::Problem,
    request::AuthenticatedBody,
    validation::FieldError,
    vaults,
    vms::{DELETE_WAIT, killed, no_such_session},
    wire::{Sandbox, SandboxesQuery, SessionRecord, SessionStatus, Usage, VmState},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{PathOf, QueryOf},
    ids,
};

pub(super) async fn create(
    State(state): State<ApiState>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<SessionRecord>, Problem> {
    let policy = egress::asked(&mut fields);
    let vaults = vaults::asked(&mut fields);
    let request = convert::session_request(fields, Wait::No)?;
    let network = egress::wish_of_new(&state.control, policy)?;
    let vaults = vaults::ids_of(vaults.as_ref())?;
    let request = CreateWorkspace { network, vaults, ..request };
    let workspace = state.control.create_workspace(&caller, request).await?;
    Ok(Json(convert::session_record(&workspace)))
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: session, .. }: PathOf<String, Instavm>,
) -> Result<Json<SessionRecord>, Problem> {
    let which = session_ref(&session).ok_or(Problem::NoSuchSession)?;
    let workspace = state.control.get_workspace(&caller, &which).await.map_err(no_such_session)?;
    Ok(Json(convert::session_record(&workspace)))
}

/// Never 404: a session that is not there is an answer, `exists: false`.
pub(super) async fn status(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: session, .. }: PathOf<String, Instavm>,
) -> Result<Json<SessionStatus>, Problem> {
    let none = SessionStatus { session_id: session.clone(), ..SessionStatus::default() };
    let Some(which) = session_ref(&session) else { return Ok(Json(none)) };
    match state.control.get_workspace(&caller, &which).await {
        Ok(workspace) => Ok(Json(convert::session_status(&workspace, state.control.now()))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound { .. }) => Ok(Json(none)),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn kill(
    State(state): State<ApiState>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<VmState>, Problem> {
    let session = fields.text("session_id");
    if session.is_none() {
        fields.missing("session_id");
    }
    fields.finish()?;
    let which = session_ref(&session.unwrap_or_default()).ok_or(Problem::NotASessionId)?;
    let deleting = state.control.delete_workspace(&caller, &which, Wait::UpTo(DELETE_WAIT));
    let deleted = state.until_shutdown(deleting).await.map_err(no_such_session)?;
    Ok(Json(killed(&deleted.workspace)))
}

/// Sandboxes whose metadata has everything that is asked for.
pub(super) async fn sandboxes(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    QueryOf { value: query, .. }: QueryOf<SandboxesQuery, Instavm>,
) -> Result<Json<Vec<Sandbox>>, Problem> {
    let wrong =
        |name, msg, kind| Problem::Unprocessable(vec![FieldError::in_query(name, msg, kind)]);
    let limit = query.limit.map_or(Ok(100), |limit| limit.parse::<usize>());
    let limit = limit.ok().filter(|limit| (1..=1000).contains(limit)).ok_or_else(|| {
        wrong("limit", "Input should be an integer from 1 to 1000", "int_parsing")
    })?;
    let wanted = match query.metadata.as_deref().filter(|text| !text.is_empty()) {
        None => BTreeMap::new(),
        Some(text) => serde_json::from_str::<BTreeMap<String, Value>>(text)
            .map_err(|_| wrong("metadata", "Input should be a JSON object", "json_invalid"))?,
    };
    let page = state.control.list_workspaces(&caller, &ListWorkspaces::default()).await?;
    let all = page.items.iter().map(convert::sandbox);
    let has = |sandbox: &Sandbox| {
        wanted.iter().all(|(name, value)| {
            sandbox.metadata.get(name).is_some_and(|present| contains(present, value))
        })
    };
    Ok(Json(all.filter(has).take(limit).collect()))
}

/// As a database contains JSON in JSON: objects by their fields, lists by their items.
fn contains(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => wanted
            .iter()
            .all(|(name, value)| present.get(name).is_some_and(|there| contains(there, value))),
        (Value::Array(present), Value::Array(wanted)) => {
            wanted.iter().all(|value| present.iter().any(|there| contains(there, value)))
        }
        (present, wanted) => present == wanted,
    }
}

/// What the session's VM uses. Looking wakes nobody.
pub(super) async fn usage(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: session, .. }: PathOf<String, Instavm>,
) -> Result<Json<Usage>, Problem> {
    let which = session_ref(&session).ok_or(Problem::NoSuchSession)?;
    let workspace = state.control.get_workspace(&caller, &which).await.map_err(no_such_session)?;
    let stats = match state.control.workspace_stats(&caller, &which).await {
        Ok(stats) => Some(stats),
        Err(error) if matches!(error.kind(), ErrorKind::RefusedByState { .. }) => None,
        Err(error) => return Err(no_such_session(error)),
    };
    Ok(Json(convert::usage(&workspace, stats)))
}

/// Sessions have ids only, no names.
pub(super) fn session_ref(text: &str) -> Option<WorkspaceRef> {
    ids::parse_workspace_id(text).map(WorkspaceRef::Id)
}
