//! `/v1/volumes/{id}/files`: files of a volume, whether a VM has it or not, as streams in both directions.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{FromRequest, Multipart, Request, State},
    response::Response,
};
use futures::stream;
use http::{HeaderValue, header};
use serde::{Deserialize, Serialize};
use skerry_control::{
    Caller, Error,
    internal_api::{
        ByteStream, FileKind, ListDepth, NodeError, RemoveDepth, VolumeEntry, VolumeFiles,
        WriteMode,
    },
};
use skerry_model::ErrorKind;
use tokio::{sync::mpsc, time::timeout};

use super::{
    Instavm,
    error_body::Problem,
    request::AuthenticatedBody,
    transfer::{broken, in_json, pass_on, text},
    validation::{FieldError, parse_boolean},
    volumes::volume_ref,
};
use crate::{
    ApiState, Fault,
    auth::Authenticated,
    extract::{PathOf, QueryOf},
};

/// How long an upload may stand still by the client's doing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// What a listing shows at most, and by default.
const ENTRIES_MAX: u32 = 10_000;
const ENTRIES: u32 = 1000;

/// A file of a volume.
#[derive(Debug, Serialize)]
pub(super) struct FileRecord {
    path: String,
    size: u64,
    #[serde(rename = "type")]
    kind: &'static str,
}

/// What became of a file.
#[derive(Debug, Serialize)]
pub(super) struct FileChanged {
    status: &'static str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    prefix: Option<String>,
    recursive: Option<String>,
    limit: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeleteQuery {
    path: Option<String>,
}

async fn files_of(
    state: &ApiState,
    caller: &Caller,
    volume: &str,
) -> Result<Arc<dyn VolumeFiles>, Problem> {
    let which = volume_ref(volume)?;
    Ok(state.until_shutdown(state.control.volume_files(caller, &which)).await?)
}

/// InstaVM's paths may begin with a slash; they are the volume's all the same.
fn below(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// A file's path, which must not be missing.
fn required(path: Option<String>) -> Result<String, Problem> {
    let path = path.map(|path| below(&path).to_owned()).filter(|path| !path.is_empty());
    path.ok_or_else(|| {
        let missing = FieldError::in_body("path", "Field required");
        Problem::Unprocessable(vec![FieldError { kind: "missing", ..missing }])
    })
}

fn refused(field: &str, message: &str) -> Problem {
    Problem::Unprocessable(vec![FieldError::in_body(field, message)])
}

fn boolean(field: &'static str, text: &str) -> Result<bool, Problem> {
    let msg = "Input should be a valid boolean, unable to interpret input";
    parse_boolean(text).ok_or_else(|| refused(field, msg))
}

/// `GET`: the files whose paths begin with `prefix`; without `recursive`, only those of one directory, and
/// the directories there.
pub(super) async fn list(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: volume, .. }: PathOf<String, Instavm>,
    QueryOf { value: query, .. }: QueryOf<ListQuery, Instavm>,
) -> Result<Json<Vec<FileRecord>>, Problem> {
    let prefix = below(query.prefix.as_deref().unwrap_or_default());
    let depth = match query.recursive.as_deref().map(|text| boolean("recursive", text)) {
        None => ListDepth::All,
        Some(asked) => match asked? {
            true => ListDepth::All,
            false => ListDepth::One,
        },
    };
    let limit = match query.limit.as_deref().map(str::parse::<u32>) {
        None => ENTRIES,
        Some(Ok(limit)) if (1..=ENTRIES_MAX).contains(&limit) => limit,
        Some(_) => return Err(refused("limit", "Input should be between 1 and 10000")),
    };
    let directory = prefix.rsplit_once('/').map_or("", |(directory, _)| directory);
    let files = files_of(&state, &caller, &volume).await?;
    let listing = match files.list(directory, depth, ENTRIES_MAX).await {
        Ok(listing) => listing.entries,
        // Nothing begins like that.
        Err(NodeError::NoSuchFile(_)) => Vec::new(),
        Err(error) => return Err(Error::from(error).into()),
    };
    let shown = |entry: &VolumeEntry| match (entry.kind, depth) {
        (FileKind::Directory, ListDepth::All) => false,
        (FileKind::Directory, ListDepth::One)
        | (FileKind::File | FileKind::Symlink | FileKind::Other, _) => true,
    };
    let matching = listing.into_iter().filter(|entry| entry.path.starts_with(prefix));
    let records = matching.filter(shown).take(limit as usize).map(|entry| FileRecord {
        kind: match entry.kind {
            FileKind::File => "file",
            FileKind::Directory => "directory",
            FileKind::Symlink => "symlink",
            FileKind::Other => "other",
        },
        path: entry.path,
        size: entry.size_bytes,
    });
    Ok(Json(records.collect()))
}

/// `DELETE`: one file, or an empty directory.
pub(super) async fn delete(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: volume, .. }: PathOf<String, Instavm>,
    QueryOf { value: query, .. }: QueryOf<DeleteQuery, Instavm>,
) -> Result<Json<FileChanged>, Problem> {
    let path = required(query.path)?;
    let files = files_of(&state, &caller, &volume).await?;
    files.remove(&path, RemoveDepth::One).await.map_err(Error::from)?;
    Ok(Json(FileChanged { status: "deleted", path, size: None }))
}

/// `POST .../upload`. The fields come before the file, as InstaVM's client sends them: the file goes into
/// the volume while it comes in. One that breaks off changes nothing.
pub(super) async fn upload(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: volume, .. }: PathOf<String, Instavm>,
    request: Request,
) -> Result<Json<FileChanged>, Problem> {
    let mut multipart = Multipart::from_request(request, &state)
        .await
        .map_err(|rejection| refused("file", &rejection.body_text()))?;
    let (mut path, mut how) = (None, WriteMode::CreateNew);
    loop {
        let next = timeout(IDLE_TIMEOUT, multipart.next_field()).await;
        let Some(field) = next.map_err(|_| Fault::BodyIncomplete)?.map_err(broken)? else {
            let missing = FieldError::in_body("file", "Field required");
            return Err(Problem::Unprocessable(vec![FieldError { kind: "missing", ..missing }]));
        };
        match field.name().unwrap_or_default() {
            "file" => {
                let path = required(path)?;
                let files = files_of(&state, &caller, &volume).await?;
                let (pieces, content) = mpsc::channel(2);
                let content: ByteStream =
                    Box::pin(stream::unfold(content, async |mut content: mpsc::Receiver<_>| {
                        let piece = content.recv().await?;
                        Some((piece, content))
                    }));
                let writing = files.write(&path, 0o644, how, content);
                let (written, ()) = tokio::join!(writing, pass_on(field, pieces));
                let size = Some(written.map_err(Error::from)?);
                return Ok(Json(FileChanged { status: "uploaded", path, size }));
            }
            "path" => path = Some(text(field, "path").await?),
            "overwrite" => {
                how = match boolean("overwrite", &text(field, "overwrite").await?)? {
                    true => WriteMode::Replace,
                    false => WriteMode::CreateNew,
                };
            }
            _ => {}
        }
    }
}

/// `POST .../download`: the answer has the file's content in base64. It is written while it is read: a file
/// that cannot be read to its end breaks the answer off.
pub(super) async fn download(
    State(state): State<ApiState>,
    PathOf { value: volume, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Response, Problem> {
    let path = fields.text("path");
    fields.finish()?;
    let path = required(path)?;
    let files = files_of(&state, &caller, &volume).await?;
    match files.stat(&path).await.map_err(Error::from)?.kind {
        FileKind::File | FileKind::Symlink => {}
        FileKind::Directory | FileKind::Other => {
            let why = format!("{path}: not a file");
            return Err(Error::new(ErrorKind::Conflict(why)).into());
        }
    }
    let content = files.read(&path, 0, None).await.map_err(Error::from)?;
    let name = path.rsplit('/').next().unwrap_or_default();
    let body = in_json(&[("path", &path), ("filename", name)], content);
    let mut response = Response::new(Body::from_stream(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}
