//! `/v1/vms`: create, list, get, change, delete.

use std::time::Duration;

use axum::{Json, extract::State};
use skerry_control::{Caller, Error, ListWorkspaces, Wait};
use skerry_model::{Desired, ErrorKind, Workspace};

use super::{
    Instavm,
    convert::{self, VmRequest},
    error_body::Problem,
    request::AuthenticatedBody,
    wire::{VmCreated, VmKilled, VmRecord, WaitQuery},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{PathOf, QueryOf},
    ids,
};

/// How long a create stays for the machine: below the 300 s that clients wait.
const LONGEST_WAIT: Duration = Duration::from_secs(280);
/// How long a delete stays; what is left goes on in the background.
pub(super) const DELETE_WAIT: Duration = Duration::from_secs(60);

pub(super) async fn create(
    State(state): State<ApiState>,
    QueryOf { value: query, .. }: QueryOf<WaitQuery, Instavm>,
    AuthenticatedBody { caller, fields }: AuthenticatedBody,
) -> Result<Json<VmCreated>, Problem> {
    let waits = convert::wait(query.wait.as_deref())?;
    let wait = if waits { Wait::UpTo(LONGEST_WAIT) } else { Wait::No };
    let workspace = match convert::vm_request(fields, wait)? {
        VmRequest::New(request) => {
            let creating = state.control.create_workspace(&caller, request);
            let workspace = state.until_shutdown(creating).await.map_err(deleted_meanwhile)?;
            if let Some(failure) = convert::failure(&workspace) {
                discard(&state, &caller, &workspace).await?;
                return Err(Problem::VmFailed(failure.clone()));
            }
            workspace
        }
        VmRequest::Attach { session_id, update } => {
            let which = ids::parse_workspace_id(&session_id)
                .map(skerry_control::WorkspaceRef::Id)
                .ok_or(Problem::NoSuchSession)?;
            let session =
                state.control.get_workspace(&caller, &which).await.map_err(no_such_session)?;
            if session.state.has_vm() || session.desired == Desired::Running {
                return Err(Problem::SessionHasVm);
            }
            state.control.update_workspace(&caller, &which, update).await?;
            let starting = state.control.start_workspace(&caller, &which, wait);
            let workspace = state.until_shutdown(starting).await?;
            if let Some(failure) = convert::failure(&workspace) {
                return Err(Problem::VmFailed(failure.clone()));
            }
            workspace
        }
    };
    if workspace.desired == Desired::Deleted {
        return Err(Problem::VmDeleted);
    }
    Ok(Json(convert::vm_created(&workspace)))
}

/// What a create made and does not find again was deleted by another call.
fn deleted_meanwhile(error: Error) -> Problem {
    match error.kind() {
        ErrorKind::NotFound { what: "workspace" } => Problem::VmDeleted,
        _ => error.into(),
    }
}

/// A VM whose creation is answered with an error must not be left behind: its caller never learns
/// its id.
async fn discard(state: &ApiState, caller: &Caller, failed: &Workspace) -> Result<(), Problem> {
    let which = skerry_control::WorkspaceRef::Id(failed.id);
    match state.control.delete_workspace(caller, &which, Wait::No).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// `GET /v1/vms`: those with a machine.
pub(super) async fn list_live(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
) -> Result<Json<Vec<VmRecord>>, Problem> {
    let page = state.control.list_workspaces(&caller, &ListWorkspaces::default()).await?;
    let live = page.items.iter().filter(|workspace| convert::is_live(workspace));
    Ok(Json(live.map(convert::vm_record).collect()))
}

/// `GET /v1/vms/`: all records.
pub(super) async fn list_all(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
) -> Result<Json<Vec<VmRecord>>, Problem> {
    let page = state.control.list_workspaces(&caller, &ListWorkspaces::default()).await?;
    Ok(Json(page.items.iter().map(convert::vm_record).collect()))
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
) -> Result<Json<VmRecord>, Problem> {
    let workspace = state.control.get_workspace(&caller, &ids::parse_workspace_ref(&vm)).await?;
    Ok(Json(convert::vm_record(&workspace)))
}

pub(super) async fn update(
    State(state): State<ApiState>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, fields }: AuthenticatedBody,
) -> Result<Json<VmRecord>, Problem> {
    let which = ids::parse_workspace_ref(&vm);
    let update = convert::vm_update(fields)?;
    let workspace = state.control.update_workspace(&caller, &which, update).await?;
    Ok(Json(convert::vm_record(&workspace)))
}

pub(super) async fn delete(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
) -> Result<Json<VmKilled>, Problem> {
    let which = ids::parse_workspace_ref(&vm);
    let deleting = state.control.delete_workspace(&caller, &which, Wait::UpTo(DELETE_WAIT));
    let deleted = state.until_shutdown(deleting).await?;
    Ok(Json(killed(&deleted.workspace)))
}

/// What a killed VM was. It is out of reach from the moment the deletion is recorded, whether or not
/// everything of it is gone already.
pub(super) fn killed(workspace: &Workspace) -> VmKilled {
    VmKilled {
        vm_id: ids::instavm_vm_id(workspace.id),
        session_id: ids::uuid_text(workspace.id),
        status: "killed",
    }
}

/// What is not there under a session's id is a session, not a VM.
pub(super) fn no_such_session(error: Error) -> Problem {
    match error.kind() {
        ErrorKind::NotFound { .. } => Problem::NoSuchSession,
        _ => error.into(),
    }
}
