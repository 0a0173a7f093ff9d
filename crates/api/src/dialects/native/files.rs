//! Files and trees in a running workspace, as streams in both directions.

use axum::{Json, body::Body as HttpBody, extract::State, response::Response};
use http::StatusCode;
use skerry_control::internal_api::FileKind;

use super::{Body, Login, Params, Query, convert, error_body::NativeResult, wire};
use crate::{
    ApiState,
    bodies::{download, upload},
    ids::parse_workspace_ref,
};

/// Shows what is at a path, and the entries if it is a directory. Links are not followed.
#[utoipa::path(
    operation_id = "list_files",
    get, path = "/skerry/v1/workspaces/{workspace}/files", tag = "files",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::ListFilesQuery,
    ),
    responses(
        (status = 200, body = wire::FileListing),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or file"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run"),
    ),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
    query: Query<wire::ListFilesQuery>,
) -> NativeResult<Json<wire::FileListing>> {
    let path = convert::path("path", &query.value.path)?;
    let guest = state.control.guest(&login.caller, &parse_workspace_ref(&workspace.value)).await?;
    let stat = guest.stat(&path).await?;
    let wanted = query.value.entries.unwrap_or(true);
    let entries = if wanted && stat.kind == FileKind::Directory {
        Some(guest.list_dir(&path).await?.iter().map(convert::file).collect())
    } else {
        None
    };
    Ok(Json(wire::FileListing { file: convert::file(&stat), entries }))
}

/// Removes a file, or a directory with everything in it.
#[utoipa::path(
    operation_id = "remove_file",
    delete, path = "/skerry/v1/workspaces/{workspace}/files", tag = "files",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::PathQuery,
    ),
    responses(
        (status = 204, description = "It is gone"),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or file"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run"),
    ),
)]
pub(super) async fn remove(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
    query: Query<wire::PathQuery>,
) -> NativeResult<StatusCode> {
    let path = convert::path("path", &query.value.path)?;
    let guest = state.control.guest(&login.caller, &parse_workspace_ref(&workspace.value)).await?;
    guest.remove(&path).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a directory and its missing parents.
#[utoipa::path(
    post, path = "/skerry/v1/workspaces/{workspace}/files/mkdir", tag = "files",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    request_body = wire::MakeDirectory,
    responses(
        (status = 201, body = wire::File),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run, or a file is there"),
    ),
)]
pub(super) async fn make_directory(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
    body: Body<wire::MakeDirectory>,
) -> NativeResult<(StatusCode, Json<wire::File>)> {
    let path = convert::path("path", &body.value.path)?;
    let mode = convert::mode(body.value.mode.as_deref(), 0o755)?;
    let user = convert::user(body.value.user.as_deref())?;
    let guest = state.control.guest(&login.caller, &parse_workspace_ref(&workspace.value)).await?;
    guest.make_dir(&path, mode, user).await?;
    Ok((StatusCode::CREATED, Json(convert::file(&guest.stat(&path).await?))))
}

/// Renames a file or directory; a file at the new path is replaced.
#[utoipa::path(
    operation_id = "rename_file",
    post, path = "/skerry/v1/workspaces/{workspace}/files/rename", tag = "files",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    request_body = wire::RenameFile,
    responses(
        (status = 200, body = wire::File),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or file"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run"),
    ),
)]
pub(super) async fn rename(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
    body: Body<wire::RenameFile>,
) -> NativeResult<Json<wire::File>> {
    let from = convert::path("from", &body.value.from)?;
    let to = convert::path("to", &body.value.to)?;
    let guest = state.control.guest(&login.caller, &parse_workspace_ref(&workspace.value)).await?;
    guest.rename(&from, &to).await?;
    Ok(Json(convert::file(&guest.stat(&to).await?)))
}

/// Reads a file.
#[utoipa::path(
    operation_id = "read_file",
    get, path = "/skerry/v1/workspaces/{workspace}/files/content", tag = "files",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::ReadFileQuery,
    ),
    responses(
        (status = 200, content_type = "application/octet-stream", body = [u8]),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or file"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run, or not a file"),
    ),
)]
pub(super) async fn read(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
    query: Query<wire::ReadFileQuery>,
) -> NativeResult<Response> {
    let path = convert::path("path", &query.value.path)?;
    let guest = state.control.guest(&login.caller, &parse_workspace_ref(&workspace.value)).await?;
    let bytes = guest.read_file(&path, query.value.offset, query.value.length).await?;
    Ok(download(bytes, "application/octet-stream"))
}

/// Writes a file with the request's body. Missing parents are made; a file that exists is replaced in
/// one step, unless `how` says otherwise. A body that breaks off changes nothing.
#[utoipa::path(
    operation_id = "write_file",
    put, path = "/skerry/v1/workspaces/{workspace}/files/content", tag = "files",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::WriteFileQuery,
    ),
    request_body(content_type = "application/octet-stream", content = [u8]),
    responses(
        (status = 200, body = wire::FileWritten),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run, or the file exists"),
        (status = 507, body = wire::ErrorBody, description = "The disk is full"),
    ),
)]
pub(super) async fn write(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
    query: Query<wire::WriteFileQuery>,
    body: HttpBody,
) -> NativeResult<Json<wire::FileWritten>> {
    let path = convert::path("path", &query.value.path)?;
    let mode = convert::mode(query.value.mode.as_deref(), 0o644)?;
    let how = convert::write_mode(query.value.how);
    let user = convert::user(query.value.user.as_deref())?;
    let guest = state.control.guest(&login.caller, &parse_workspace_ref(&workspace.value)).await?;
    let size_bytes = guest.write_file(&path, mode, how, user, upload(body)).await?;
    Ok(Json(wire::FileWritten { path, size_bytes }))
}

/// Reads a file or directory with everything in it, as a tar stream. Names in it begin with the last
/// component of the path.
#[utoipa::path(
    get, path = "/skerry/v1/workspaces/{workspace}/files/tree", tag = "files",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::PathQuery,
    ),
    responses(
        (status = 200, content_type = "application/x-tar", body = [u8]),
        (status = 400, body = wire::ErrorBody, description = "A parameter is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or file"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run"),
    ),
)]
pub(super) async fn read_tree(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
    query: Query<wire::PathQuery>,
) -> NativeResult<Response> {
    let path = convert::path("path", &query.value.path)?;
    let guest = state.control.guest(&login.caller, &parse_workspace_ref(&workspace.value)).await?;
    let bytes = guest.download_tree(&path).await?;
    Ok(download(bytes, "application/x-tar"))
}

/// Unpacks the request's body, a tar stream, below a directory. Entries that would leave it are
/// refused.
#[utoipa::path(
    put, path = "/skerry/v1/workspaces/{workspace}/files/tree", tag = "files",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        wire::WriteTreeQuery,
    ),
    request_body(content_type = "application/x-tar", content = [u8]),
    responses(
        (status = 200, body = wire::TreeWritten),
        (status = 400, body = wire::ErrorBody, description = "A parameter or the tar stream is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run"),
        (status = 507, body = wire::ErrorBody, description = "The disk is full"),
    ),
)]
pub(super) async fn write_tree(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
    query: Query<wire::WriteTreeQuery>,
    body: HttpBody,
) -> NativeResult<Json<wire::TreeWritten>> {
    let path = convert::path("path", &query.value.path)?;
    let user = convert::user(query.value.user.as_deref())?;
    let guest = state.control.guest(&login.caller, &parse_workspace_ref(&workspace.value)).await?;
    let entries = guest.upload_tree(&path, user, upload(body)).await?;
    Ok(Json(wire::TreeWritten { path, entries }))
}
