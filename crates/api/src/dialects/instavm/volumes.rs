//! `/v1/volumes`, and the volumes of a VM.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skerry_control::{
    AttachVolume, CheckpointRef, CreateVolume, Error, VolumeRef, VolumeView, Wait,
};
use skerry_model::{MountMode, VolumeId, VolumeMount, VolumeState};

use super::{
    Instavm,
    checkpoints::checkpoint_ref,
    convert,
    error_body::Problem,
    request::AuthenticatedBody,
    validation::{FieldError, Fields},
    vms::DELETE_WAIT,
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{PathOf, QueryOf},
    ids,
};

const MIB: u64 = 1024 * 1024;
/// The newest checkpoint, or what is there now where there is none, as InstaVM's command line says it.
const LATEST: &str = "latest";

/// A volume.
#[derive(Debug, Serialize)]
pub(super) struct VolumeRecord {
    id: String,
    name: String,
    /// Whole MiB: what was asked for, rounded up.
    quota_bytes: u64,
    /// Zero while that is not known.
    used_bytes: u64,
    status: &'static str,
    /// Why it failed.
    error: Option<String>,
    created_at: String,
    updated_at: String,
}

/// What became of a volume.
#[derive(Debug, Serialize)]
pub(super) struct VolumeDeleted {
    id: String,
    status: &'static str,
}

/// A volume that a VM has.
#[derive(Debug, Serialize)]
pub(super) struct MountRecord {
    volume_id: String,
    mount_path: String,
    mode: &'static str,
    checkpoint_id: Option<String>,
    status: &'static str,
}

#[derive(Debug, Deserialize)]
pub(super) struct UnmountQuery {
    mount_path: Option<String>,
}

fn record(view: &VolumeView) -> VolumeRecord {
    let volume = &view.volume;
    let error = match &volume.state {
        VolumeState::Failed(failure) => Some(failure.message.clone()),
        VolumeState::Creating | VolumeState::Ready | VolumeState::Deleting => None,
    };
    VolumeRecord {
        id: volume.id.to_string(),
        name: volume.name.to_string(),
        quota_bytes: volume.size_bytes(),
        used_bytes: view.used_bytes.unwrap_or(0),
        status: volume.state.name(),
        error,
        created_at: convert::time(volume.created_at),
        updated_at: convert::time(volume.updated_at),
    }
}

fn mount_record(mount: &VolumeMount, status: &'static str) -> MountRecord {
    MountRecord {
        volume_id: mount.volume_id.to_string(),
        mount_path: mount.path.to_string(),
        mode: mount.mode.as_str(),
        checkpoint_id: match (mount.mode, mount.checkpoint_id) {
            (MountMode::ReadWrite, _) => None,
            (MountMode::ReadOnly, Some(id)) => Some(id.to_string()),
            (MountMode::ReadOnly, None) => Some(LATEST.to_owned()),
        },
        status,
    }
}

fn no_such_volume() -> Problem {
    Error::not_found("volume").into()
}

/// Volumes are named by id in paths, as InstaVM does.
pub(super) fn volume_ref(text: &str) -> Result<VolumeRef, Problem> {
    let uuid = ids::parse_uuid(text).ok_or_else(no_such_volume)?;
    Ok(VolumeRef::Id(VolumeId::from_uuid(uuid)))
}

pub(super) async fn create(
    State(state): State<ApiState>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<VolumeRecord>, Problem> {
    let name = fields.text("name");
    let bytes = fields.integer("quota_bytes", 1..=u64::MAX);
    if name.is_none() {
        fields.missing("name");
    }
    if bytes.is_none() {
        fields.missing("quota_bytes");
    }
    fields.finish()?;
    let request = CreateVolume {
        name: name.unwrap_or_default(),
        size_mib: bytes.unwrap_or_default().div_ceil(MIB),
    };
    let making = state.control.create_volume(&caller, request, convert::wait_for(true));
    Ok(Json(record(&state.until_shutdown(making).await?)))
}

pub(super) async fn list(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
) -> Result<Json<Vec<VolumeRecord>>, Problem> {
    let volumes = state.control.list_volumes(&caller).await?;
    Ok(Json(volumes.iter().map(record).collect()))
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: volume, .. }: PathOf<String, Instavm>,
) -> Result<Json<VolumeRecord>, Problem> {
    let found = state.control.get_volume(&caller, &volume_ref(&volume)?).await?;
    Ok(Json(record(&found)))
}

pub(super) async fn update(
    State(state): State<ApiState>,
    PathOf { value: volume, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<VolumeRecord>, Problem> {
    let which = volume_ref(&volume)?;
    let name = fields.text("name");
    let bytes = fields.integer("quota_bytes", 1..=u64::MAX);
    fields.finish()?;
    let mut view = state.control.get_volume(&caller, &which).await?;
    if let Some(bytes) = bytes {
        let now = view.volume.size_bytes();
        if bytes.div_ceil(MIB) < view.volume.size_mib {
            let msg = format!("Input should be at least {now}: volumes grow and do not shrink");
            return Err(Problem::Unprocessable(vec![FieldError::in_body("quota_bytes", &msg)]));
        }
        let growing = state.control.grow_volume(&caller, &which, bytes.div_ceil(MIB));
        view = state.until_shutdown(growing).await?;
    }
    if let Some(name) = name {
        view = state.control.rename_volume(&caller, &which, &name).await?;
    }
    Ok(Json(record(&view)))
}

pub(super) async fn delete(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: volume, .. }: PathOf<String, Instavm>,
) -> Result<Json<VolumeDeleted>, Problem> {
    let which = volume_ref(&volume)?;
    let found = state.control.get_volume(&caller, &which).await?;
    let deleting = state.control.delete_volume(&caller, &which, Wait::UpTo(DELETE_WAIT));
    let complete = state.until_shutdown(deleting).await?;
    let status = if complete { "deleted" } else { "deleting" };
    Ok(Json(VolumeDeleted { id: found.volume.id.to_string(), status }))
}

/// One mount as a body describes it.
pub(super) fn wish(fields: &mut Fields) -> Result<AttachVolume, Problem> {
    let id = fields.text("volume_id");
    let name = fields.text("name");
    let path = fields.text("mount_path");
    let mode = fields.text("mode");
    let checkpoint = fields.text("checkpoint_id");
    let volume = match (id, name) {
        (Some(id), _) => volume_ref(&id)?,
        (None, Some(name)) => VolumeRef::Name(name),
        (None, None) => {
            fields.missing("volume_id");
            VolumeRef::Name(String::new())
        }
    };
    if path.is_none() {
        fields.missing("mount_path");
    }
    let mode = MountMode::of_word(mode.as_deref().unwrap_or("rw")).unwrap_or_else(|| {
        fields.refuse("mode", "Input should be 'rw' or 'ro'");
        MountMode::ReadOnly
    });
    let checkpoint = match (mode, checkpoint.as_deref()) {
        (MountMode::ReadWrite | MountMode::ReadOnly, None) => None,
        (MountMode::ReadOnly, Some(LATEST)) => Some(CheckpointRef::Latest),
        (MountMode::ReadOnly, Some(id)) => Some(checkpoint_ref(id)?),
        (MountMode::ReadWrite, Some(_)) => {
            fields.refuse("checkpoint_id", "A checkpoint can only be mounted ro");
            None
        }
    };
    Ok(AttachVolume { volume, path: path.unwrap_or_default(), mode, checkpoint })
}

/// The field `volumes` of a VM to be made.
pub(super) fn wishes(fields: &mut Fields) -> Result<Vec<AttachVolume>, Problem> {
    let mut wishes = Vec::new();
    for item in fields.list("volumes").unwrap_or_default() {
        let Value::Object(item) = item else {
            fields.refuse("volumes", "Input should be a valid dictionary");
            continue;
        };
        if item.get("create_if_missing").is_some_and(|asked| *asked == Value::Bool(true))
            && item.get("volume_id").is_none_or(Value::is_null)
        {
            let accepted = "the id or the name of a volume that exists";
            return Err(Problem::Unserved { field: "volumes.create_if_missing", accepted });
        }
        let mut item = Fields::new(item);
        wishes.push(wish(&mut item)?);
        item.finish()?;
    }
    Ok(wishes)
}

pub(super) async fn mount(
    State(state): State<ApiState>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<MountRecord>, Problem> {
    let request = wish(&mut fields)?;
    fields.finish()?;
    let which = ids::parse_workspace_ref(&vm);
    let attaching = state.control.attach_volume(&caller, &which, request);
    let mount = state.until_shutdown(attaching).await?;
    Ok(Json(mount_record(&mount, "mounted")))
}

pub(super) async fn mounts(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
) -> Result<Json<Vec<MountRecord>>, Problem> {
    let which = ids::parse_workspace_ref(&vm);
    let mounts = state.control.list_mounts(&caller, &which).await?;
    Ok(Json(mounts.iter().map(|mount| mount_record(mount, "mounted")).collect()))
}

pub(super) async fn unmount(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: (vm, volume), .. }: PathOf<(String, String), Instavm>,
    QueryOf { value: query, .. }: QueryOf<UnmountQuery, Instavm>,
) -> Result<Json<MountRecord>, Problem> {
    let (which, volume) = (ids::parse_workspace_ref(&vm), volume_ref(&volume)?);
    let id = state.control.get_volume(&caller, &volume).await?.volume.id;
    let mounts = state.control.list_mounts(&caller, &which).await?;
    let held = mounts.iter().find(|mount| {
        mount.volume_id == id
            && query.mount_path.as_deref().is_none_or(|path| path == mount.path.as_str())
    });
    let held = held.ok_or_else(no_such_volume)?;
    let detaching = state.control.detach_volume(&caller, &which, &volume);
    state.until_shutdown(detaching).await?;
    Ok(Json(mount_record(held, "unmounted")))
}
