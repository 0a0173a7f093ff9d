//! `/v1/sessions` and `/kill`. A session has its VM from the start: the machine comes up while the
//! client goes on.

use axum::{Json, extract::State};
use skerry_control::{Wait, WorkspaceRef};
use skerry_model::ErrorKind;

use super::{
    Instavm, convert,
    error_body::Problem,
    request::AuthenticatedBody,
    vms::{DELETE_WAIT, killed, no_such_session},
    wire::{SessionRecord, SessionStatus, VmState},
};
use crate::{ApiState, auth::Authenticated, extract::PathOf, ids};

pub(super) async fn create(
    State(state): State<ApiState>,
    AuthenticatedBody { caller, fields }: AuthenticatedBody,
) -> Result<Json<SessionRecord>, Problem> {
    let request = convert::session_request(fields, Wait::No)?;
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

/// Sessions have ids only, no names.
pub(super) fn session_ref(text: &str) -> Option<WorkspaceRef> {
    ids::parse_workspace_id(text).map(WorkspaceRef::Id)
}
