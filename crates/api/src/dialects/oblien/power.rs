//! `/workspace/:id/start`, `stop`, `restart`, `provisioning/retry`.

use axum::{extract::State, response::Response};
use skerry_control::{Caller, Error, Wait};
use skerry_model::{Desired, ErrorKind, State as WorkspaceState, Workspace};

use super::{
    Oblien,
    error_body::Problem,
    object,
    wire::StartBody,
    workspaces::{LONGEST_WAIT, workspace_answer},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf},
    ids,
    object::Object,
};

pub(super) async fn start(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
    _: JsonBody<Option<Object<StartBody>>, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let starting = state.control.start_workspace(&caller, &which, Wait::UpTo(LONGEST_WAIT));
    let workspace = state.until_shutdown(starting).await?;
    started(&state, &caller, workspace).await
}

pub(super) async fn restart(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let restarting = state.control.restart_workspace(&caller, &which, Wait::UpTo(LONGEST_WAIT));
    let workspace = state.until_shutdown(restarting).await?;
    started(&state, &caller, workspace).await
}

pub(super) async fn started(
    state: &ApiState,
    caller: &Caller,
    workspace: Workspace,
) -> Result<Response, Problem> {
    if let Some(failure) = object::failure(&workspace) {
        return Err(Problem::StartFailed {
            creating: false,
            workspace_id: ids::oblien_workspace_id(workspace.id),
            failure: failure.clone(),
        });
    }
    match workspace.desired {
        Desired::Running => workspace_answer(state, caller, &workspace).await,
        Desired::Paused | Desired::Suspended | Desired::Stopped | Desired::Deleted => {
            Err(Problem::Overtaken { state: object::status(&workspace) })
        }
    }
}

/// A success only when there is no machine any more.
pub(super) async fn stop(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let stopping = state.control.stop_workspace(&caller, &which, Wait::UpTo(LONGEST_WAIT));
    let workspace = state.until_shutdown(stopping).await?;
    match (workspace.desired, &workspace.state) {
        (Desired::Running | Desired::Paused | Desired::Suspended, _) => {
            Err(Problem::Overtaken { state: object::status(&workspace) })
        }
        (
            Desired::Stopped | Desired::Deleted,
            WorkspaceState::Stopping
            | WorkspaceState::Starting
            | WorkspaceState::Running { .. }
            | WorkspaceState::Paused { .. }
            | WorkspaceState::Suspending,
        ) => Err(Problem::StopUnconfirmed),
        (
            Desired::Stopped | Desired::Deleted,
            WorkspaceState::Provisioned
            | WorkspaceState::Suspended
            | WorkspaceState::Stopped
            | WorkspaceState::Failed(_)
            | WorkspaceState::Deleting,
        ) => workspace_answer(&state, &caller, &workspace).await,
    }
}

/// Starts a workspace again whose creation failed, with the same id and configuration. Answers at
/// once, as a create with `wait_ready: false` does.
pub(super) async fn retry(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&caller, &which).await?;
    match &workspace.state {
        WorkspaceState::Failed(_) => {
            let workspace = state.control.start_workspace(&caller, &which, Wait::No).await?;
            workspace_answer(&state, &caller, &workspace).await
        }
        other => Err(Problem::Control(Error::new(ErrorKind::RefusedByState {
            state: other.name(),
            reason: "only a failed creation can be retried".to_owned(),
        }))),
    }
}
