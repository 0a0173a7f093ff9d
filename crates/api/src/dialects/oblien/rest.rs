//! `/workspace/:id/pause`, `resume`, `ping`, `snapshot`, `restore`.

use axum::{extract::State, response::Response};
use serde::Deserialize;
use serde_json::Value;
use skerry_control::{
    CreateSnapshot, ExpiryRenewal, RestoreWorkspace, SnapshotRef, Wait, WorkspaceRef,
};
use skerry_model::{AfterRestore, SnapshotState, Workspace};

use super::{
    Oblien,
    error_body::{Problem, Refusal},
    life, power,
    workspaces::{LONGEST_WAIT, workspace_answer},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf},
    ids,
    object::Object,
};

type Login = Authenticated<Oblien>;
type Reference = PathOf<String, Oblien>;

/// `POST …/ping`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PingBody {
    ttl_seconds: Option<Value>,
}

/// `POST …/snapshot`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct SnapshotBody {
    after: Option<String>,
}

pub(super) async fn pause(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: Reference,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let pausing = state.control.pause_workspace(&caller, &which, Wait::UpTo(LONGEST_WAIT));
    let workspace = state.until_shutdown(pausing).await?;
    workspace_answer(&state, &caller, &workspace).await
}

pub(super) async fn resume(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: Reference,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let resuming = state.control.resume_workspace(&caller, &which, Wait::UpTo(LONGEST_WAIT));
    let workspace = state.until_shutdown(resuming).await?;
    power::started(&state, &caller, workspace).await
}

/// Renews the time to live, where there is one, and counts as use.
pub(super) async fn ping(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: Reference,
    JsonBody { value: body, .. }: JsonBody<Option<Object<PingBody>>, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let asked = body.map(|Object(body)| body).unwrap_or_default();
    let renewal = match life::ttl_seconds(asked.ttl_seconds.as_ref())? {
        None => ExpiryRenewal::Anew,
        Some(seconds) => ExpiryRenewal::AnewFor(seconds),
    };
    let touched = state.control.touch_activity(&caller, &which).await?;
    let workspace = if touched.expires_at.is_some() {
        state.control.extend_expiry(&caller, &which, renewal).await?
    } else {
        touched
    };
    workspace_answer(&state, &caller, &workspace).await
}

/// What becomes of the workspace after its snapshot.
enum After {
    Resume,
    Pause,
    Stop,
}

pub(super) async fn snapshot(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: Reference,
    JsonBody { value: body, .. }: JsonBody<Option<Object<SnapshotBody>>, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let after = match body.and_then(|Object(body)| body.after).as_deref() {
        None | Some("" | "resume") => After::Resume,
        Some("paused" | "pause") => After::Pause,
        Some("stop") => After::Stop,
        Some(_) => {
            return Err(Problem::Refused(Refusal {
                code: "validation_error",
                field: "after".to_owned(),
                problem: "is not what can follow".to_owned(),
                allowed: "resume, paused, stop".to_owned(),
            }));
        }
    };
    let request = CreateSnapshot { name: None, contents: None, metadata: Default::default() };
    let wait = Wait::UpTo(LONGEST_WAIT);
    let taking = state.control.create_snapshot(&caller, &which, request, wait);
    let taken = state.until_shutdown(taking).await?;
    let which = WorkspaceRef::Id(taken.workspace_id);
    match taken.state {
        SnapshotState::Ready => {}
        SnapshotState::Failed(failure) => return Err(Problem::SnapshotFailed { failure }),
        SnapshotState::Creating | SnapshotState::Deleting => {
            return Err(Problem::SnapshotUnconfirmed);
        }
    }
    let workspace: Workspace = match after {
        After::Resume => state.control.get_workspace(&caller, &which).await?,
        After::Pause => {
            let pausing = state.control.pause_workspace(&caller, &which, wait);
            state.until_shutdown(pausing).await?
        }
        After::Stop => {
            let stopping = state.control.stop_workspace(&caller, &which, wait);
            state.until_shutdown(stopping).await?
        }
    };
    workspace_answer(&state, &caller, &workspace).await
}

/// Goes back to the latest snapshot of this workspace.
pub(super) async fn restore(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: Reference,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&caller, &which).await?;
    let request =
        RestoreWorkspace { snapshot: SnapshotRef::LatestOf(workspace.id), then: AfterRestore::Run };
    let wait = Wait::UpTo(LONGEST_WAIT);
    let restoring = state.control.restore_workspace(&caller, &which, request, wait);
    let workspace = state.until_shutdown(restoring).await?;
    power::started(&state, &caller, workspace).await
}
