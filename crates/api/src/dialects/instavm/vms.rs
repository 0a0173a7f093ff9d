//! `/v1/vms`: create, list, get, change, delete.

use std::time::Duration;

use axum::{Json, extract::State};
use skerry_control::{
    Caller, CreateWorkspace, Error, ListWorkspaces, RestoreWorkspace, UpdateWorkspace, Wait,
    WorkspaceRef,
};
use skerry_model::{AfterRestore, Desired, ErrorKind, Workspace};

use super::{
    Instavm,
    convert::{self, Attach, VmRequest},
    domains, egress,
    error_body::Problem,
    request::AuthenticatedBody,
    rules::Rules,
    shares, vaults,
    wire::{VmCreated, VmRecord, VmState, WaitQuery},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{PathOf, QueryOf},
    ids,
};

/// How long a delete stays; what is left goes on in the background.
pub(super) const DELETE_WAIT: Duration = Duration::from_secs(60);

pub(super) async fn create(
    State(state): State<ApiState>,
    QueryOf { value: query, .. }: QueryOf<WaitQuery, Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<VmCreated>, Problem> {
    let wait = convert::wait_for(convert::wait(query.wait.as_deref())?);
    let share = shares::asked(&mut fields);
    let domain = domains::asked(&mut fields, share.is_some());
    let policy = egress::asked(&mut fields);
    let vaults = vaults::asked(&mut fields);
    let (workspace, made) = match convert::vm_request(fields, wait)? {
        VmRequest::New(request) => {
            let network = egress::wish_of_new(&state.control, policy)?;
            let vaults = vaults::ids_of(vaults.as_ref())?;
            let request = CreateWorkspace { network, vaults, ..*request };
            let creating = state.control.create_workspace(&caller, request);
            let workspace = state.until_shutdown(creating).await.map_err(deleted_meanwhile)?;
            if let Some(failure) = convert::failure(&workspace) {
                discard(&state, &caller, &workspace).await?;
                return Err(Problem::VmFailed(failure.clone()));
            }
            (workspace, Made::New)
        }
        VmRequest::Attach(request) => {
            let more = (policy, vaults);
            (attach(&state, &caller, *request, more, wait).await?, Made::Attached)
        }
    };
    if workspace.desired == Desired::Deleted {
        return Err(Problem::VmDeleted);
    }
    let mut created = convert::vm_created(&workspace);
    if let Some(share) = share {
        match outside(&state, &caller, &workspace, share, domain).await {
            Ok((share, domain)) => (created.share, created.custom_domain) = (Some(share), domain),
            Err(problem) => {
                if made == Made::New {
                    discard(&state, &caller, &workspace).await?;
                }
                return Err(problem);
            }
        }
    }
    Ok(Json(created))
}

/// Gives a VM its address outside, and a name of its owner's beside it.
async fn outside(
    state: &ApiState,
    caller: &Caller,
    workspace: &Workspace,
    share: shares::Share,
    domain: Option<domains::Asked>,
) -> Result<(shares::ShareRecord, Option<domains::DomainRecord>), Problem> {
    let share = shares::of_vm(state, caller, workspace, share).await?;
    let domain = match domain {
        Some(domain) => Some(domains::of_share(state, caller, domain, share.id()).await?),
        None => None,
    };
    Ok((share, domain))
}

/// Whether a create made a session or found one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    New,
    Attached,
}

/// A session without a VM gets one, from its own disk or from a snapshot.
async fn attach(
    state: &ApiState,
    caller: &Caller,
    Attach { session_id, update, rules, snapshot }: Attach,
    (policy, vaults): (Option<egress::Policy>, Option<vaults::Asked>),
    wait: Wait,
) -> Result<Workspace, Problem> {
    let which =
        ids::parse_workspace_id(&session_id).map(WorkspaceRef::Id).ok_or(Problem::NoSuchSession)?;
    let session = state.control.get_workspace(caller, &which).await.map_err(no_such_session)?;
    if convert::is_resting(&session) {
        return Err(Problem::VmSuspended);
    }
    if session.state.has_vm() || session.desired == Desired::Running {
        return Err(Problem::SessionHasVm);
    }
    if let Some(snapshot) = &snapshot {
        state.control.get_snapshot(caller, snapshot).await?;
    }
    let vaults = match vaults {
        Some(vaults) => Some(vaults.found(state, caller).await?),
        None => None,
    };
    change(state, caller, &which, (update, rules)).await?;
    if let Some(policy) = policy {
        egress::change(&state.control, caller, &which, policy).await?;
    }
    if let Some(vaults) = vaults {
        state.control.set_vaults(caller, &which, &vaults).await?;
    }
    let workspace = match snapshot {
        None => {
            let starting = state.control.start_workspace(caller, &which, wait);
            state.until_shutdown(starting).await?
        }
        Some(snapshot) => {
            let request = RestoreWorkspace { snapshot, then: AfterRestore::Run };
            let restoring = state.control.restore_workspace(caller, &which, request, wait);
            state.until_shutdown(restoring).await?
        }
    };
    match convert::failure(&workspace) {
        Some(failure) => Err(Problem::VmFailed(failure.clone())),
        None => Ok(workspace),
    }
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
pub(super) async fn discard(
    state: &ApiState,
    caller: &Caller,
    failed: &Workspace,
) -> Result<(), Problem> {
    let which = WorkspaceRef::Id(failed.id);
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
    Ok(Json(live.map(|workspace| convert::vm_record(workspace, state.ssh())).collect()))
}

/// `GET /v1/vms/`: all records.
pub(super) async fn list_all(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
) -> Result<Json<Vec<VmRecord>>, Problem> {
    let page = state.control.list_workspaces(&caller, &ListWorkspaces::default()).await?;
    Ok(Json(
        page.items.iter().map(|workspace| convert::vm_record(workspace, state.ssh())).collect(),
    ))
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
) -> Result<Json<VmRecord>, Problem> {
    let workspace = state.control.get_workspace(&caller, &ids::parse_workspace_ref(&vm)).await?;
    Ok(Json(convert::vm_record(&workspace, state.ssh())))
}

pub(super) async fn update(
    State(state): State<ApiState>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<VmRecord>, Problem> {
    let which = ids::parse_workspace_ref(&vm);
    let vaults = vaults::asked(&mut fields);
    let asked = convert::vm_update(fields)?;
    let vaults = match vaults {
        Some(vaults) => Some(vaults.found(&state, &caller).await?),
        None => None,
    };
    let mut workspace = change(&state, &caller, &which, asked).await?;
    if let Some(vaults) = vaults {
        let which = WorkspaceRef::Id(workspace.id);
        workspace = state.control.set_vaults(&caller, &which, &vaults).await?;
    }
    Ok(Json(convert::vm_record(&workspace, state.ssh())))
}

/// Changes the record, and then the rules of the VM's life: everything that could be refused in these
/// has been by then, except a deletion in between.
async fn change(
    state: &ApiState,
    caller: &Caller,
    which: &WorkspaceRef,
    (update, rules): (UpdateWorkspace, Rules),
) -> Result<Workspace, Problem> {
    let before = state.control.get_workspace(caller, which).await?;
    let which = &WorkspaceRef::Id(before.id);
    let change = rules.change(&before)?;
    let updated = state.control.update_workspace(caller, which, update).await?;
    match change {
        None => Ok(updated),
        Some(change) => Ok(state.control.set_lifecycle(caller, which, change).await?),
    }
}

pub(super) async fn delete(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
) -> Result<Json<VmState>, Problem> {
    let which = ids::parse_workspace_ref(&vm);
    let deleting = state.control.delete_workspace(&caller, &which, Wait::UpTo(DELETE_WAIT));
    let deleted = state.until_shutdown(deleting).await?;
    Ok(Json(killed(&deleted.workspace)))
}

/// What a killed VM was. It is out of reach from the moment the deletion is recorded, whether or not
/// everything of it is gone already.
pub(super) fn killed(workspace: &Workspace) -> VmState {
    VmState { status: "killed", ..convert::vm_state(workspace) }
}

/// What is not there under a session's id is a session, not a VM.
pub(super) fn no_such_session(error: Error) -> Problem {
    match error.kind() {
        ErrorKind::NotFound { .. } => Problem::NoSuchSession,
        _ => error.into(),
    }
}
