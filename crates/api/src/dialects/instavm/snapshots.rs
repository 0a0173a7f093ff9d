//! `/v1/snapshots`, and the snapshot of a VM.

use axum::{Json, extract::State};
use skerry_control::{CreateSnapshot, ListSnapshots, SnapshotRef, Wait};
use skerry_model::{ErrorKind, SnapshotId, SnapshotPurpose, SnapshotState};

use super::{
    Instavm, convert,
    error_body::Problem,
    request::{AuthenticatedBody, AuthenticatedOptionalBody},
    rules,
    validation::FieldError,
    vms::DELETE_WAIT,
    wire::{SnapshotDeleted, SnapshotRecord, SnapshotsQuery, WaitQuery},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{PathOf, QueryOf},
    ids,
};

/// `POST /v1/vms/{vm}/snapshot`: disk and memory of a VM that runs, else the disk.
pub(super) async fn take(
    State(state): State<ApiState>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
    QueryOf { value: query, .. }: QueryOf<WaitQuery, Instavm>,
    AuthenticatedOptionalBody { caller, mut fields }: AuthenticatedOptionalBody,
) -> Result<Json<SnapshotRecord>, Problem> {
    let wait = convert::wait_for(convert::wait(query.wait.as_deref())?);
    let name = rules::name(&mut fields, "name");
    fields.finish()?;
    let which = ids::parse_workspace_ref(&vm);
    let request = CreateSnapshot { name, contents: None, metadata: Default::default() };
    let taking = state.control.create_snapshot(&caller, &which, request, wait);
    let taken = state.until_shutdown(taking).await?;
    if let SnapshotState::Failed(failure) = &taken.state {
        // Its caller never learns its id.
        let failed = SnapshotRef::Id(taken.id);
        match state.control.delete_snapshot(&caller, &failed, Wait::No).await {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        return Err(Problem::SnapshotFailed(failure.clone()));
    }
    Ok(Json(convert::snapshot_record(&taken)))
}

/// Images of registries do not become snapshots here (yet).
pub(super) async fn build(
    AuthenticatedBody { mut fields, .. }: AuthenticatedBody,
) -> Result<Json<SnapshotRecord>, Problem> {
    if fields.text("oci_image").is_none() {
        fields.missing("oci_image");
    }
    fields.finish()?;
    Err(Problem::Unserved {
        field: "oci_image",
        accepted: "none; take a snapshot of a VM: POST /v1/vms/{vm_id}/snapshot",
    })
}

/// Newest first. Those that only a clone under way needs are not shown.
pub(super) async fn list(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    QueryOf { value: query, .. }: QueryOf<SnapshotsQuery, Instavm>,
) -> Result<Json<Vec<SnapshotRecord>>, Problem> {
    match query.kind.as_deref() {
        None | Some("user") => {}
        // Nobody but users makes snapshots here.
        Some("system") => return Ok(Json(Vec::new())),
        Some(_) => {
            let msg = "Input should be 'user' or 'system'";
            let error = FieldError::in_query("type", msg, "enum");
            return Err(Problem::Unprocessable(vec![error]));
        }
    }
    let filter = ListSnapshots {
        purposes: vec![SnapshotPurpose::User, SnapshotPurpose::Terminate],
        ..ListSnapshots::default()
    };
    let page = state.control.list_snapshots(&caller, &filter).await?;
    Ok(Json(page.items.iter().map(convert::snapshot_record).collect()))
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: snapshot, .. }: PathOf<String, Instavm>,
) -> Result<Json<SnapshotRecord>, Problem> {
    let which = snapshot_ref(&snapshot)?;
    let found = state.control.get_snapshot(&caller, &which).await?;
    Ok(Json(convert::snapshot_record(&found)))
}

pub(super) async fn delete(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: snapshot, .. }: PathOf<String, Instavm>,
) -> Result<Json<SnapshotDeleted>, Problem> {
    let which = snapshot_ref(&snapshot)?;
    let deleting = state.control.delete_snapshot(&caller, &which, Wait::UpTo(DELETE_WAIT));
    let deleted = state.until_shutdown(deleting).await?;
    let id = deleted.snapshot.id.to_string();
    let status = if deleted.complete { "deleted" } else { "deleting" };
    Ok(Json(SnapshotDeleted { snapshot_id: id.clone(), id, status }))
}

/// Snapshots have ids only: their names are not unique.
pub(super) fn snapshot_ref(text: &str) -> Result<SnapshotRef, Problem> {
    let uuid = ids::parse_uuid(text).ok_or(Problem::NoSuchSnapshot)?;
    Ok(SnapshotRef::Id(SnapshotId::from_uuid(uuid)))
}
