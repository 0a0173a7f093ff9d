//! Volumes: file systems that outlive workspaces.

use axum::{Json, extract::State};
use http::StatusCode;
use skerry_control::{self as control, CheckpointRef, VolumeRef, VolumeView};
use skerry_model::{self as model, Attachment, Checkpoint, VolumeMount};

use super::{Body, Login, Params, Query, convert, error_body::NativeResult, wire};
use crate::{
    ApiState,
    ids::{parse_uuid, parse_workspace_ref},
};

pub(super) fn volume_ref(text: &str) -> VolumeRef {
    match parse_uuid(text) {
        Some(uuid) => VolumeRef::Id(model::VolumeId::from_uuid(uuid)),
        None => VolumeRef::Name(text.to_owned()),
    }
}

const fn mode(mode: model::MountMode) -> wire::MountMode {
    match mode {
        model::MountMode::ReadWrite => wire::MountMode::Rw,
        model::MountMode::ReadOnly => wire::MountMode::Ro,
    }
}

const fn asked_mode(asked: &wire::AttachVolume) -> model::MountMode {
    match (asked.mode, &asked.checkpoint) {
        (None, None) | (Some(wire::MountMode::Rw), _) => model::MountMode::ReadWrite,
        (None, Some(_)) | (Some(wire::MountMode::Ro), _) => model::MountMode::ReadOnly,
    }
}

fn checkpoint_ref(text: &str) -> CheckpointRef {
    match (text, parse_uuid(text)) {
        ("latest", _) => CheckpointRef::Latest,
        (_, Some(uuid)) => CheckpointRef::Id(model::CheckpointId::from_uuid(uuid)),
        (_, None) => CheckpointRef::Name(text.to_owned()),
    }
}

/// What a request asks for; the path is checked by control.
pub(super) fn wish(asked: wire::AttachVolume) -> control::AttachVolume {
    control::AttachVolume {
        volume: volume_ref(&asked.volume),
        mode: asked_mode(&asked),
        checkpoint: asked.checkpoint.as_deref().map(checkpoint_ref),
        path: asked.mount_path,
    }
}

fn attachment(held: &Attachment) -> wire::VolumeAttachment {
    wire::VolumeAttachment {
        workspace_id: held.workspace_id.to_string(),
        mount_path: held.mount.path.to_string(),
        mode: mode(held.mount.mode),
        checkpoint_id: held.mount.checkpoint_id.map(|id| id.to_string()),
    }
}

fn mounted(mount: &VolumeMount) -> wire::VolumeMount {
    wire::VolumeMount {
        volume_id: mount.volume_id.to_string(),
        mount_path: mount.path.to_string(),
        mode: mode(mount.mode),
        checkpoint_id: mount.checkpoint_id.map(|id| id.to_string()),
    }
}

fn state_of(state: &model::VolumeState) -> (wire::VolumeState, Option<wire::VolumeFailure>) {
    match state {
        model::VolumeState::Creating => (wire::VolumeState::Creating, None),
        model::VolumeState::Ready => (wire::VolumeState::Ready, None),
        model::VolumeState::Deleting => (wire::VolumeState::Deleting, None),
        model::VolumeState::Failed(failure) => {
            let failure = wire::VolumeFailure {
                code: failure.code.clone(),
                message: failure.message.clone(),
                at: convert::time(failure.at),
            };
            (wire::VolumeState::Failed, Some(failure))
        }
    }
}

fn frozen(checkpoint: &Checkpoint) -> wire::Checkpoint {
    let (state, failure) = state_of(&checkpoint.state);
    wire::Checkpoint {
        id: checkpoint.id.to_string(),
        volume_id: checkpoint.volume_id.to_string(),
        name: checkpoint.name.to_string(),
        state,
        failure,
        created_at: convert::time(checkpoint.created_at),
        updated_at: convert::time(checkpoint.updated_at),
    }
}

fn shown(view: &VolumeView) -> wire::Volume {
    let volume = &view.volume;
    let (state, failure) = state_of(&volume.state);
    wire::Volume {
        id: volume.id.to_string(),
        name: volume.name.to_string(),
        size_mib: volume.size_mib,
        used_bytes: view.used_bytes,
        state,
        failure,
        attachments: view.attachments.iter().map(attachment).collect(),
        created_at: convert::time(volume.created_at),
        updated_at: convert::time(volume.updated_at),
    }
}

/// Makes a volume with an empty file system. With `wait`, the answer comes when it is ready or has
/// failed, which its `state` says.
#[utoipa::path(
    operation_id = "create_volume",
    post, path = "/skerry/v1/volumes", tag = "volumes",
    params(wire::WaitQuery), request_body = wire::CreateVolume,
    responses(
        (status = 201, body = wire::Volume, description = "Recorded"),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 403, body = wire::ErrorBody, description = "A limit of the plan"),
        (status = 409, body = wire::ErrorBody, description = "The name is taken"),
    ),
)]
pub(super) async fn create(
    State(state): State<ApiState>,
    login: Login,
    query: Query<wire::WaitQuery>,
    body: Body<wire::CreateVolume>,
) -> NativeResult<(StatusCode, Json<wire::Volume>)> {
    let wait = convert::wait(&query.value)?;
    let wire::CreateVolume { name, size_mib } = body.value;
    let request = control::CreateVolume { name, size_mib };
    let making = state.control.create_volume(&login.caller, request, wait);
    Ok((StatusCode::CREATED, Json(shown(&state.until_shutdown(making).await?))))
}

/// Lists the account's volumes, newest first.
#[utoipa::path(
    operation_id = "list_volumes",
    get, path = "/skerry/v1/volumes", tag = "volumes",
    responses(
        (status = 200, body = wire::VolumeList),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
    ),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    login: Login,
) -> NativeResult<Json<wire::VolumeList>> {
    let volumes = state.control.list_volumes(&login.caller).await?;
    Ok(Json(wire::VolumeList { volumes: volumes.iter().map(shown).collect() }))
}

/// Shows one volume.
#[utoipa::path(
    operation_id = "get_volume",
    get, path = "/skerry/v1/volumes/{volume}", tag = "volumes",
    params(("volume" = String, Path, description = "Identity or name")),
    responses(
        (status = 200, body = wire::Volume),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such volume"),
    ),
)]
pub(super) async fn get(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::Volume>> {
    let found = state.control.get_volume(&login.caller, &volume_ref(&path.value)).await?;
    Ok(Json(shown(&found)))
}

/// Changes a volume: its name, and its size, which only grows. The file system grows with it: at once where
/// a running workspace writes the volume, else when it is mounted next.
#[utoipa::path(
    operation_id = "update_volume",
    patch, path = "/skerry/v1/volumes/{volume}", tag = "volumes",
    params(("volume" = String, Path, description = "Identity or name")),
    request_body = wire::UpdateVolume,
    responses(
        (status = 200, body = wire::Volume),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such volume"),
        (status = 403, body = wire::ErrorBody, description = "A limit of the plan"),
        (status = 409, body = wire::ErrorBody, description = "The name is taken, or the workspace that writes the volume stands still"),
    ),
)]
pub(super) async fn update(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    body: Body<wire::UpdateVolume>,
) -> NativeResult<Json<wire::Volume>> {
    let wire::UpdateVolume { name, size_mib } = body.value;
    let mut view = state.control.get_volume(&login.caller, &volume_ref(&path.value)).await?;
    let which = VolumeRef::Id(view.volume.id);
    if let Some(size_mib) = size_mib {
        let growing = state.control.grow_volume(&login.caller, &which, size_mib);
        view = state.until_shutdown(growing).await?;
    }
    if let Some(name) = name {
        view = state.control.rename_volume(&login.caller, &which, &name).await?;
    }
    Ok(Json(shown(&view)))
}

/// Deletes a volume and all that is on it. Refused while a workspace has it.
#[utoipa::path(
    operation_id = "delete_volume",
    delete, path = "/skerry/v1/volumes/{volume}", tag = "volumes",
    params(("volume" = String, Path, description = "Identity or name"), wire::WaitQuery),
    responses(
        (status = 200, body = wire::DeletedVolume, description = "Everything is gone"),
        (status = 202, body = wire::DeletedVolume, description = "It goes on by itself"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such volume"),
        (status = 409, body = wire::ErrorBody, description = "A workspace has it"),
    ),
)]
pub(super) async fn delete(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    query: Query<wire::WaitQuery>,
) -> NativeResult<(StatusCode, Json<wire::DeletedVolume>)> {
    let (which, wait) = (volume_ref(&path.value), convert::wait(&query.value)?);
    let deleting = state.control.delete_volume(&login.caller, &which, wait);
    let complete = state.until_shutdown(deleting).await?;
    let status = if complete { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(wire::DeletedVolume { complete })))
}

/// Makes a checkpoint of a volume, whether a workspace has it or not. With `wait`, the answer comes when
/// it is ready or has failed, which its `state` says.
#[utoipa::path(
    operation_id = "create_checkpoint",
    post, path = "/skerry/v1/volumes/{volume}/checkpoints", tag = "volumes",
    params(("volume" = String, Path, description = "Identity or name"), wire::WaitQuery),
    request_body = wire::CreateCheckpoint,
    responses(
        (status = 201, body = wire::Checkpoint, description = "Recorded"),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such volume"),
        (status = 409, body = wire::ErrorBody, description = "It has too many, is not ready, or is written by a workspace that stands still"),
    ),
)]
pub(super) async fn create_checkpoint(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    query: Query<wire::WaitQuery>,
    body: Body<wire::CreateCheckpoint>,
) -> NativeResult<(StatusCode, Json<wire::Checkpoint>)> {
    let (which, wait) = (volume_ref(&path.value), convert::wait(&query.value)?);
    let name = body.value.name.as_deref();
    let making = state.control.create_checkpoint(&login.caller, &which, name, wait);
    Ok((StatusCode::CREATED, Json(frozen(&state.until_shutdown(making).await?))))
}

/// Lists the checkpoints of a volume, newest first.
#[utoipa::path(
    operation_id = "list_checkpoints",
    get, path = "/skerry/v1/volumes/{volume}/checkpoints", tag = "volumes",
    params(("volume" = String, Path, description = "Identity or name")),
    responses(
        (status = 200, body = wire::CheckpointList),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such volume"),
    ),
)]
pub(super) async fn list_checkpoints(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::CheckpointList>> {
    let all = state.control.list_checkpoints(&login.caller, &volume_ref(&path.value)).await?;
    Ok(Json(wire::CheckpointList { checkpoints: all.iter().map(frozen).collect() }))
}

/// Deletes a checkpoint. Refused while a workspace has it mounted.
#[utoipa::path(
    operation_id = "delete_checkpoint",
    delete, path = "/skerry/v1/volumes/{volume}/checkpoints/{checkpoint}", tag = "volumes",
    params(
        ("volume" = String, Path, description = "Identity or name"),
        ("checkpoint" = String, Path, description = "Identity, or name: the newest ready one of that name"),
        wire::WaitQuery,
    ),
    responses(
        (status = 200, body = wire::DeletedVolume, description = "Everything is gone"),
        (status = 202, body = wire::DeletedVolume, description = "It goes on by itself"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such volume or checkpoint"),
        (status = 409, body = wire::ErrorBody, description = "A workspace has it mounted"),
    ),
)]
pub(super) async fn delete_checkpoint(
    State(state): State<ApiState>,
    login: Login,
    path: Params<(String, String)>,
    query: Query<wire::WaitQuery>,
) -> NativeResult<(StatusCode, Json<wire::DeletedVolume>)> {
    let (volume, checkpoint) = &path.value;
    let (which, wait) = (volume_ref(volume), convert::wait(&query.value)?);
    let checkpoint = match checkpoint_ref(checkpoint) {
        // A word for mounts; of a deletion it would say too little.
        CheckpointRef::Latest => CheckpointRef::Name(checkpoint.clone()),
        named => named,
    };
    let deleting = state.control.delete_checkpoint(&login.caller, &which, &checkpoint, wait);
    let complete = state.until_shutdown(deleting).await?;
    let status = if complete { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(wire::DeletedVolume { complete })))
}

/// Lists the volumes of a workspace.
#[utoipa::path(
    operation_id = "list_workspace_volumes",
    get, path = "/skerry/v1/workspaces/{workspace}/volumes", tag = "volumes",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 200, body = wire::VolumeMountList),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
    ),
)]
pub(super) async fn list_of_workspace(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::VolumeMountList>> {
    let which = parse_workspace_ref(&path.value);
    let mounts = state.control.list_mounts(&login.caller, &which).await?;
    Ok(Json(wire::VolumeMountList { volumes: mounts.iter().map(mounted).collect() }))
}

/// Gives a workspace a volume: at once if it runs, and from its next start on if it is stopped.
#[utoipa::path(
    operation_id = "attach_volume",
    post, path = "/skerry/v1/workspaces/{workspace}/volumes", tag = "volumes",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    request_body = wire::AttachVolume,
    responses(
        (status = 201, body = wire::VolumeMount, description = "Attached"),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or volume"),
        (status = 409, body = wire::ErrorBody, description = "Somebody has it, or refused by the state"),
    ),
)]
pub(super) async fn attach(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    body: Body<wire::AttachVolume>,
) -> NativeResult<(StatusCode, Json<wire::VolumeMount>)> {
    let which = parse_workspace_ref(&path.value);
    let attaching = state.control.attach_volume(&login.caller, &which, wish(body.value));
    let mount = state.until_shutdown(attaching).await?;
    Ok((StatusCode::CREATED, Json(mounted(&mount))))
}

/// Takes a volume from a workspace. Refused while something in the workspace uses it.
#[utoipa::path(
    operation_id = "detach_volume",
    delete, path = "/skerry/v1/workspaces/{workspace}/volumes/{volume}", tag = "volumes",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        ("volume" = String, Path, description = "Identity or name"),
    ),
    responses(
        (status = 204, description = "Detached"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace, or it does not have the volume"),
        (status = 409, body = wire::ErrorBody, description = "It is used, or refused by the state"),
    ),
)]
pub(super) async fn detach(
    State(state): State<ApiState>,
    login: Login,
    path: Params<(String, String)>,
) -> NativeResult<StatusCode> {
    let (workspace, volume) = path.value;
    let which = parse_workspace_ref(&workspace);
    let volume = volume_ref(&volume);
    let detaching = state.control.detach_volume(&login.caller, &which, &volume);
    state.until_shutdown(detaching).await?;
    Ok(StatusCode::NO_CONTENT)
}
