//! Files of volumes, as streams in both directions, whether a workspace has the volume or not.

use std::sync::Arc;

use axum::{Json, body::Body as HttpBody, extract::State, response::Response};
use http::StatusCode;
use skerry_control::{
    Error,
    internal_api::{ListDepth, RemoveDepth, VolumeEntry, VolumeFiles},
};
use skerry_model::Timestamp;

use super::{Login, Params, Query, convert, error_body::NativeResult, volumes::volume_ref, wire};
use crate::{
    ApiState,
    bodies::{download, upload},
};

/// What a listing shows at most, and by default.
const ENTRIES_MAX: u32 = 10_000;
const ENTRIES: u32 = 1000;

async fn files_of(
    state: &ApiState,
    login: &Login,
    volume: &str,
) -> NativeResult<Arc<dyn VolumeFiles>> {
    let which = volume_ref(volume);
    let finding = state.control.volume_files(&login.caller, &which);
    Ok(state.until_shutdown(finding).await?)
}

/// A path in a volume, with or without a slash in front.
fn below(path: &str) -> &str {
    path.trim_start_matches('/')
}

fn shown(entry: VolumeEntry) -> wire::VolumeFile {
    wire::VolumeFile {
        path: entry.path,
        kind: convert::file_kind(entry.kind),
        size_bytes: entry.size_bytes,
        mode: format!("{:04o}", entry.mode),
        uid: entry.uid,
        gid: entry.gid,
        // The guest's clock may say anything; what no calendar holds becomes the epoch.
        modified_at: convert::time(
            Timestamp::from_millisecond(entry.modified_unix_ms).unwrap_or(Timestamp::UNIX_EPOCH),
        ),
    }
}

/// Lists a directory of a volume, or everything below it. A file is listed as itself.
#[utoipa::path(
    operation_id = "list_volume_files",
    get, path = "/skerry/v1/volumes/{volume}/files", tag = "volumes",
    params(("volume" = String, Path, description = "Identity or name"), wire::ListVolumeFilesQuery),
    responses(
        (status = 200, body = wire::VolumeFileList),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such volume or directory"),
        (status = 409, body = wire::ErrorBody, description = "The workspace that writes it stands still"),
    ),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    login: Login,
    volume: Params<String>,
    query: Query<wire::ListVolumeFilesQuery>,
) -> NativeResult<Json<wire::VolumeFileList>> {
    let wire::ListVolumeFilesQuery { path, recursive, limit } = query.value;
    let depth = match recursive {
        Some(true) => ListDepth::All,
        Some(false) | None => ListDepth::One,
    };
    let limit = limit.unwrap_or(ENTRIES);
    if !(1..=ENTRIES_MAX).contains(&limit) {
        let problem = format!("{limit} is out of range");
        return Err(Error::invalid("limit", problem, format!("1 to {ENTRIES_MAX}")).into());
    }
    let files = files_of(&state, &login, &volume.value).await?;
    let found = files.list(below(path.as_deref().unwrap_or_default()), depth, limit).await?;
    let entries = found.entries.into_iter().map(shown).collect();
    Ok(Json(wire::VolumeFileList { entries, truncated: found.truncated }))
}

/// Removes a file or an empty directory; with `recursive`, a directory with everything in it. It is gone
/// from the volume's disk when this is answered.
#[utoipa::path(
    operation_id = "remove_volume_file",
    delete, path = "/skerry/v1/volumes/{volume}/files", tag = "volumes",
    params(("volume" = String, Path, description = "Identity or name"), wire::RemoveVolumeFileQuery),
    responses(
        (status = 204, description = "It is gone"),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such volume or file"),
        (status = 409, body = wire::ErrorBody, description = "A directory that is not empty, or the workspace that writes it stands still"),
    ),
)]
pub(super) async fn remove(
    State(state): State<ApiState>,
    login: Login,
    volume: Params<String>,
    query: Query<wire::RemoveVolumeFileQuery>,
) -> NativeResult<StatusCode> {
    let depth = match query.value.recursive {
        Some(true) => RemoveDepth::All,
        Some(false) | None => RemoveDepth::One,
    };
    let files = files_of(&state, &login, &volume.value).await?;
    files.remove(below(&query.value.path), depth).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Reads a file of a volume.
#[utoipa::path(
    operation_id = "read_volume_file",
    get, path = "/skerry/v1/volumes/{volume}/files/content", tag = "volumes",
    params(("volume" = String, Path, description = "Identity or name"), wire::ReadVolumeFileQuery),
    responses(
        (status = 200, content_type = "application/octet-stream", body = [u8]),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such volume or file"),
        (status = 409, body = wire::ErrorBody, description = "Not a file, or the workspace that writes it stands still"),
    ),
)]
pub(super) async fn read(
    State(state): State<ApiState>,
    login: Login,
    volume: Params<String>,
    query: Query<wire::ReadVolumeFileQuery>,
) -> NativeResult<Response> {
    let wire::ReadVolumeFileQuery { path, offset, length } = query.value;
    let (path, files) = (below(&path), files_of(&state, &login, &volume.value).await?);
    Ok(download(files.read(path, offset, length).await?, "application/octet-stream"))
}

/// Writes a file of a volume with the request's body, owned by root. Missing parents are made; a file that
/// exists is replaced in one step, unless `how` says otherwise. A body that breaks off changes nothing; what
/// is answered is on the volume's disk.
#[utoipa::path(
    operation_id = "write_volume_file",
    put, path = "/skerry/v1/volumes/{volume}/files/content", tag = "volumes",
    params(("volume" = String, Path, description = "Identity or name"), wire::WriteVolumeFileQuery),
    request_body(content_type = "application/octet-stream", content = [u8]),
    responses(
        (status = 200, body = wire::FileWritten),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such volume"),
        (status = 409, body = wire::ErrorBody, description = "The file exists, or the workspace that writes the volume stands still"),
        (status = 507, body = wire::ErrorBody, description = "The volume is full"),
    ),
)]
pub(super) async fn write(
    State(state): State<ApiState>,
    login: Login,
    volume: Params<String>,
    query: Query<wire::WriteVolumeFileQuery>,
    body: HttpBody,
) -> NativeResult<Json<wire::FileWritten>> {
    let path = below(&query.value.path).to_owned();
    if path.is_empty() {
        return Err(Error::invalid("path", "is empty", "a path below the volume's top").into());
    }
    let mode = convert::mode(query.value.mode.as_deref(), 0o644)?;
    let how = convert::write_mode(query.value.how);
    let files = files_of(&state, &login, &volume.value).await?;
    let size_bytes = files.write(&path, mode, how, upload(body)).await?;
    Ok(Json(wire::FileWritten { path, size_bytes }))
}
