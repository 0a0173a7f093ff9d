//! `/v1/volumes/{volume}/checkpoints`.

use axum::{Json, extract::State};
use serde::Serialize;
use skerry_control::{CheckpointRef, Error, Wait};
use skerry_model::{Checkpoint, CheckpointId, VolumeState};

use super::{
    Instavm, convert, error_body::Problem, request::AuthenticatedBody, vms::DELETE_WAIT,
    volumes::volume_ref,
};
use crate::{ApiState, auth::Authenticated, extract::PathOf, ids};

/// A checkpoint.
#[derive(Debug, Serialize)]
pub(super) struct CheckpointRecord {
    id: String,
    volume_id: String,
    name: String,
    status: &'static str,
    /// Why it failed.
    error: Option<String>,
    created_at: String,
}

/// What became of a checkpoint.
#[derive(Debug, Serialize)]
pub(super) struct CheckpointDeleted {
    id: String,
    status: &'static str,
}

fn record(checkpoint: &Checkpoint) -> CheckpointRecord {
    let error = match &checkpoint.state {
        VolumeState::Failed(failure) => Some(failure.message.clone()),
        VolumeState::Creating | VolumeState::Ready | VolumeState::Deleting => None,
    };
    CheckpointRecord {
        id: checkpoint.id.to_string(),
        volume_id: checkpoint.volume_id.to_string(),
        name: checkpoint.name.to_string(),
        status: checkpoint.state.name(),
        error,
        created_at: convert::time(checkpoint.created_at),
    }
}

/// Checkpoints are named by id, as InstaVM does.
pub(super) fn checkpoint_ref(text: &str) -> Result<CheckpointRef, Problem> {
    let uuid =
        ids::parse_uuid(text).ok_or_else(|| Problem::from(Error::not_found("checkpoint")))?;
    Ok(CheckpointRef::Id(CheckpointId::from_uuid(uuid)))
}

pub(super) async fn create(
    State(state): State<ApiState>,
    PathOf { value: volume, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<CheckpointRecord>, Problem> {
    let which = volume_ref(&volume)?;
    let name = fields.text("name");
    fields.finish()?;
    let wait = convert::wait_for(true);
    let making = state.control.create_checkpoint(&caller, &which, name.as_deref(), wait);
    Ok(Json(record(&state.until_shutdown(making).await?)))
}

pub(super) async fn list(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: volume, .. }: PathOf<String, Instavm>,
) -> Result<Json<Vec<CheckpointRecord>>, Problem> {
    let all = state.control.list_checkpoints(&caller, &volume_ref(&volume)?).await?;
    Ok(Json(all.iter().map(record).collect()))
}

pub(super) async fn delete(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: (volume, checkpoint), .. }: PathOf<(String, String), Instavm>,
) -> Result<Json<CheckpointDeleted>, Problem> {
    let (which, named) = (volume_ref(&volume)?, checkpoint_ref(&checkpoint)?);
    let wait = Wait::UpTo(DELETE_WAIT);
    let deleting = state.control.delete_checkpoint(&caller, &which, &named, wait);
    let complete = state.until_shutdown(deleting).await?;
    let status = if complete { "deleted" } else { "deleting" };
    Ok(Json(CheckpointDeleted { id: checkpoint, status }))
}
