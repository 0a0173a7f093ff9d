//! Snapshots of disks: taken of a stopped workspace, and put back into the same one.

use std::{collections::BTreeMap, time::Duration};

use axum::{Json, extract::State};
use http::StatusCode;
use skerry_control::{
    CreateSnapshot, Error, ListSnapshots, RestoreWorkspace, SnapshotRef, Wait, WorkspaceRef,
};
use skerry_model::{
    AfterRestore, Snapshot, SnapshotContents, SnapshotId, SnapshotPurpose, SnapshotState, Workspace,
};

use super::{
    Rigbox, convert,
    error_body::RigboxError,
    paging::{self, PageQuery, Place},
    wire::{self, VmStatus},
    workspaces::{WorkspaceId, workspace_ref},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf, QueryOf},
    ids,
    object::Object,
};

/// How long a call stays for the snapshot: Rigbox's has no state, so the answer shows a complete one.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

type Login = Authenticated<Rigbox>;

/// `GET /workspaces/{id}/snapshots`.
pub(super) async fn list_of_workspace(
    State(state): State<ApiState>,
    auth: Login,
    WorkspaceId(which): WorkspaceId,
    query: QueryOf<PageQuery, Rigbox>,
) -> Result<Json<wire::SnapshotList>, RigboxError> {
    let workspace = state.control.get_workspace(&auth.caller, &which).await?;
    let filter = ListSnapshots { workspace_id: Some(workspace.id), ..visible() };
    listed(&state, &auth, &filter, &query.value).await
}

/// `GET /snapshots`.
pub(super) async fn list(
    State(state): State<ApiState>,
    auth: Login,
    query: QueryOf<PageQuery, Rigbox>,
) -> Result<Json<wire::SnapshotList>, RigboxError> {
    listed(&state, &auth, &visible(), &query.value).await
}

/// `POST /workspaces/{id}/snapshots`: answers when it is complete.
pub(super) async fn create(
    State(state): State<ApiState>,
    auth: Login,
    WorkspaceId(which): WorkspaceId,
    body: JsonBody<Option<Object<wire::CreateSnapshotBody>>, Rigbox>,
) -> Result<(StatusCode, Json<wire::SnapshotEnvelope>), RigboxError> {
    let workspace = state.control.get_workspace(&auth.caller, &which).await?;
    only_stopped(&workspace, "take a snapshot of")?;
    let request = CreateSnapshot {
        name: body.value.and_then(|Object(body)| body.name),
        contents: Some(SnapshotContents::Disk),
        metadata: BTreeMap::new(),
    };
    let wait = Wait::UpTo(LONGEST_WAIT);
    let taking = state.control.create_snapshot(&auth.caller, &which, request, wait);
    let taken = state.until_shutdown(taking).await?;
    match &taken.state {
        SnapshotState::Ready => {
            let snapshot = convert::snapshot(&taken);
            Ok((StatusCode::CREATED, Json(wire::SnapshotEnvelope { snapshot })))
        }
        SnapshotState::Failed(failure) => {
            // Nobody could see or delete it here, and it would count.
            let failed = SnapshotRef::Id(taken.id);
            state.control.delete_snapshot(&auth.caller, &failed, Wait::No).await?;
            Err(RigboxError::snapshot_failed(&failure.message))
        }
        SnapshotState::Creating | SnapshotState::Deleting => {
            Err(RigboxError::snapshot_unconfirmed())
        }
    }
}

/// `DELETE /workspaces/{id}/snapshots/{sid}`.
pub(super) async fn delete_of_workspace(
    State(state): State<ApiState>,
    auth: Login,
    path: PathOf<(String, String), Rigbox>,
) -> Result<Json<wire::Message>, RigboxError> {
    let snapshot = find_of_workspace(&state, &auth, &path.value).await?;
    deleted(&state, &auth, &snapshot).await
}

/// `DELETE /snapshots/{sid}`.
pub(super) async fn delete(
    State(state): State<ApiState>,
    auth: Login,
    id: PathOf<String, Rigbox>,
) -> Result<Json<wire::Message>, RigboxError> {
    let snapshot = find(&state, &auth, &id.value).await?;
    deleted(&state, &auth, &snapshot).await
}

/// `POST /workspaces/{id}/snapshots/{sid}/restore`.
pub(super) async fn restore_of_workspace(
    State(state): State<ApiState>,
    auth: Login,
    path: PathOf<(String, String), Rigbox>,
) -> Result<Json<wire::Restored>, RigboxError> {
    let snapshot = find_of_workspace(&state, &auth, &path.value).await?;
    restored(&state, &auth, &snapshot).await
}

/// `POST /snapshots/{sid}/restore`.
pub(super) async fn restore(
    State(state): State<ApiState>,
    auth: Login,
    id: PathOf<String, Rigbox>,
) -> Result<Json<wire::Restored>, RigboxError> {
    let snapshot = find(&state, &auth, &id.value).await?;
    restored(&state, &auth, &snapshot).await
}

/// The snapshots Rigbox's clients see: complete ones, and none that belongs to a fork.
fn visible() -> ListSnapshots {
    ListSnapshots {
        purposes: vec![SnapshotPurpose::User, SnapshotPurpose::Terminate],
        states: vec![SnapshotState::Ready.name()],
        ..ListSnapshots::default()
    }
}

fn is_visible(snapshot: &Snapshot) -> bool {
    let is_kept = match snapshot.purpose {
        SnapshotPurpose::User | SnapshotPurpose::Terminate => true,
        SnapshotPurpose::Fork => false,
    };
    is_kept && snapshot.state == SnapshotState::Ready
}

async fn listed(
    state: &ApiState,
    auth: &Login,
    filter: &ListSnapshots,
    query: &PageQuery,
) -> Result<Json<wire::SnapshotList>, RigboxError> {
    // All of them: the plan bounds their number, and a cursor must not skip over deletions.
    let mut snapshots = state.control.list_snapshots(&auth.caller, filter).await?.items;
    let place =
        |snapshot: &Snapshot| Place { created_at: snapshot.created_at, id: snapshot.id.as_u128() };
    let paged = paging::page(&mut snapshots, place, query)?;
    Ok(Json(wire::SnapshotList {
        snapshots: paged.unpaged.iter().map(convert::snapshot).collect(),
        items: paged.page.iter().map(convert::snapshot).collect(),
        next_cursor: paged.next_cursor,
    }))
}

async fn find(state: &ApiState, auth: &Login, id: &str) -> Result<Snapshot, RigboxError> {
    let missing = || Error::not_found("snapshot");
    let id = ids::parse_uuid(id).map(SnapshotId::from_uuid).ok_or_else(missing)?;
    let found = state.control.get_snapshot(&auth.caller, &SnapshotRef::Id(id)).await?;
    Ok(Some(found).filter(is_visible).ok_or_else(missing)?)
}

/// The snapshot if it was taken of this workspace.
async fn find_of_workspace(
    state: &ApiState,
    auth: &Login,
    (workspace, id): &(String, String),
) -> Result<Snapshot, RigboxError> {
    let which = workspace_ref(workspace)?;
    let workspace = state.control.get_workspace(&auth.caller, &which).await?;
    let found = find(state, auth, id).await?;
    if found.workspace_id == workspace.id {
        return Ok(found);
    }
    Err(Error::not_found("snapshot").into())
}

async fn deleted(
    state: &ApiState,
    auth: &Login,
    snapshot: &Snapshot,
) -> Result<Json<wire::Message>, RigboxError> {
    let which = SnapshotRef::Id(snapshot.id);
    state.control.delete_snapshot(&auth.caller, &which, Wait::No).await?;
    Ok(Json(wire::Message { message: "snapshot deleted".to_owned() }))
}

/// Puts the disk back; the workspace stays stopped and its next start begins from it.
async fn restored(
    state: &ApiState,
    auth: &Login,
    snapshot: &Snapshot,
) -> Result<Json<wire::Restored>, RigboxError> {
    let which = WorkspaceRef::Id(snapshot.workspace_id);
    let workspace = state.control.get_workspace(&auth.caller, &which).await?;
    only_stopped(&workspace, "restore")?;
    let request = RestoreWorkspace {
        snapshot: SnapshotRef::Id(snapshot.id),
        // Refuses a start that came between.
        then: AfterRestore::StayStopped,
    };
    let wait = Wait::UpTo(LONGEST_WAIT);
    let restoring = state.control.restore_workspace(&auth.caller, &which, request, wait);
    let workspace = state.until_shutdown(restoring).await?;
    Ok(Json(wire::Restored {
        message: "snapshot restored; the next start begins from it".to_owned(),
        workspace_id: ids::rigbox_workspace_id(workspace.id),
    }))
}

fn only_stopped(workspace: &Workspace, verb: &str) -> Result<(), RigboxError> {
    let status = convert::status_of(workspace);
    match status {
        VmStatus::Stopped | VmStatus::Failed => Ok(()),
        VmStatus::Provisioned
        | VmStatus::Provisioning
        | VmStatus::Starting
        | VmStatus::Running
        | VmStatus::Stopping
        | VmStatus::Deleting => {
            let word = status.word();
            let message = format!("cannot {verb} a workspace that is {word}; it must be stopped");
            Err(RigboxError::invalid_state(StatusCode::CONFLICT, word, message))
        }
    }
}
