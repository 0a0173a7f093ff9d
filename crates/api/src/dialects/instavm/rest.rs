//! `/v1/vms/{vm}/suspend`, `resume` and `clone`.

use axum::{Json, extract::State};
use skerry_control::{ForkWorkspace, StartPolicy};

use super::{
    Instavm, convert,
    error_body::Problem,
    request::AuthenticatedOptionalBody,
    rules,
    vms::discard,
    wire::{VmCloned, VmState, WaitQuery},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{PathOf, QueryOf},
    ids,
};

/// Answers when the VM is parked: what comes next, as a resume that brings a new VM id, needs that.
pub(super) async fn suspend(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
) -> Result<Json<VmState>, Problem> {
    let which = ids::parse_workspace_ref(&vm);
    let suspending = state.control.suspend_workspace(&caller, &which, convert::wait_for(true));
    let workspace = state.until_shutdown(suspending).await?;
    Ok(Json(convert::vm_state(&workspace)))
}

/// Any id the VM ever had is understood; the answer has the one it has from now on.
pub(super) async fn resume(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
    QueryOf { value: query, .. }: QueryOf<WaitQuery, Instavm>,
) -> Result<Json<VmState>, Problem> {
    let wait = convert::wait_for(convert::wait(query.wait.as_deref())?);
    let which = ids::parse_workspace_ref(&vm);
    let resuming = state.control.resume_workspace(&caller, &which, wait);
    let workspace = state.until_shutdown(resuming).await?;
    if let Some(failure) = convert::failure(&workspace) {
        return Err(Problem::VmFailed(failure.clone()));
    }
    Ok(Json(convert::vm_state(&workspace)))
}

/// Without a name for it, the snapshot in between is gone once the clone has started.
pub(super) async fn clone(
    State(state): State<ApiState>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
    QueryOf { value: query, .. }: QueryOf<WaitQuery, Instavm>,
    AuthenticatedOptionalBody { caller, mut fields }: AuthenticatedOptionalBody,
) -> Result<Json<VmCloned>, Problem> {
    let wait = convert::wait_for(convert::wait(query.wait.as_deref())?);
    let snapshot_name = rules::name(&mut fields, "snapshot_name");
    fields.finish()?;
    let kept = snapshot_name.is_some();
    let request = ForkWorkspace {
        count: 1,
        name: None,
        metadata: None,
        snapshot_name,
        start: StartPolicy::Now(wait),
    };
    let which = ids::parse_workspace_ref(&vm);
    let forking = state.control.fork_workspace(&caller, &which, request);
    let forked = state.until_shutdown(forking).await?;
    // One was asked for; without it the call would have failed.
    let clone = forked.workspaces.first().ok_or(Problem::VmDeleted)?;
    if let Some(failure) = convert::failure(clone) {
        discard(&state, &caller, clone).await?;
        return Err(Problem::VmFailed(failure.clone()));
    }
    Ok(Json(VmCloned {
        vm: convert::vm_state(clone),
        snapshot_id: forked.snapshot_id.to_string(),
        snapshot_deleted: !kept && clone.needed_snapshot().is_none(),
    }))
}
