//! `/files`: single files and directories.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_control::internal_api::{
    ByteStream, FileKind, FileStat, GuestApi, NodeError, User, WriteMode,
};
use skerry_model::Timestamp;

use super::{
    paths,
    problem::{RuntimeProblem, refusal},
    visitor::Visitor,
};
use crate::{
    ApiState,
    dialects::oblien::{Oblien, error_body::Problem, object},
    extract::{JsonBody, QueryOf},
    object::Object,
};

/// Of a file's text that is answered at once. Larger files go by `/files/transfer`.
const READ_MAX_BYTES: usize = 16 * 1024 * 1024;
/// The largest body of a write; JSON takes some room of its own.
pub(super) const WRITE_BODY_BYTES: usize = 32 * 1024 * 1024;
/// The largest piece handed on to the guest at once.
const PIECE_BYTES: usize = 64 * 1024;

pub(super) const fn kind(kind: FileKind) -> &'static str {
    match kind {
        // Clients know three kinds.
        FileKind::File | FileKind::Other => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
    }
}

pub(super) fn modified(stat: &FileStat) -> String {
    let at = Timestamp::from_millisecond(stat.modified_unix_ms).unwrap_or(Timestamp::UNIX_EPOCH);
    object::time(at)
}

#[derive(Debug, Deserialize)]
pub(super) struct PathQuery {
    path: Option<String>,
}

fn path_of(path: Option<&str>) -> Result<String, Problem> {
    let missing = || refusal("path", "is missing", "an absolute path");
    paths::absolute("path", path.ok_or_else(missing)?)
}

#[derive(Debug, Deserialize)]
pub(super) struct ReadQuery {
    path: Option<String>,
    start_line: Option<u64>,
    end_line: Option<u64>,
    #[serde(default)]
    with_line_numbers: bool,
}

/// Lines of a text that comes in pieces.
struct Lines {
    first: u64,
    last: u64,
    numbered: bool,
    kept: Vec<u8>,
    /// Of the line that is being read; from 1.
    number: u64,
    at_start: bool,
}

impl Lines {
    fn take(&mut self, piece: &[u8]) -> Result<(), RuntimeProblem> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            if (self.first..=self.last).contains(&self.number) {
                if self.at_start && self.numbered {
                    self.kept.extend_from_slice(format!("{:>6}\t", self.number).as_bytes());
                }
                self.kept.extend_from_slice(part);
                if self.kept.len() > READ_MAX_BYTES {
                    let why = "more than 16 MiB: read lines of it, or download it";
                    return Err(RuntimeProblem::TooLarge(why.to_owned()));
                }
            }
            self.at_start = part.ends_with(b"\n");
            if self.at_start {
                self.number += 1;
            }
        }
        Ok(())
    }

    /// How many there were.
    fn count(&self) -> u64 {
        if self.at_start { self.number - 1 } else { self.number }
    }
}

pub(super) async fn read(
    State(state): State<ApiState>,
    visitor: Visitor,
    QueryOf { value: query, .. }: QueryOf<ReadQuery, Oblien>,
) -> Result<Response, Problem> {
    let path = path_of(query.path.as_deref())?;
    let (first, last) = (query.start_line.unwrap_or(1), query.end_line.unwrap_or(u64::MAX));
    if first == 0 || last < first {
        let field = if first == 0 { "start_line" } else { "end_line" };
        return Err(refusal(field, "is not such a line", "1 and up, the end not before the start"));
    }
    let guest = visitor.guest(&state).await?;
    let mut content = guest.read_file(&path, 0, None).await?;
    let mut share = state.output_budget.begin();
    let mut lines = Lines {
        first,
        last,
        numbered: query.with_line_numbers,
        kept: Vec::new(),
        number: 1,
        at_start: true,
    };
    let mut size: u64 = 0;
    let reading = async {
        while let Some(piece) = content.next().await {
            let piece = piece?;
            size += piece.len() as u64;
            lines.take(&piece)?;
            share.cover(lines.kept.len())?;
        }
        Ok::<(), Problem>(())
    };
    tokio::select! {
        read = reading => read?,
        () = state.shutdown_begun() => return Err(stopping()),
    }
    let count = lines.count();
    let mut answer = json!({
        "success": true,
        "path": path,
        "content": String::from_utf8_lossy(&lines.kept),
        "size": size,
        "lines": count,
        "extension": paths::split(&path).and_then(|(_, name)| paths::extension(name)),
    });
    if query.start_line.is_some() || query.end_line.is_some() {
        answer["start_line"] = json!(first);
        answer["end_line"] = json!(last.min(count));
    }
    Ok(share.carried_by(Json(answer).into_response()))
}

pub(super) fn stopping() -> Problem {
    NodeError::GuestUnreachable("the server is shutting down".to_owned()).into()
}

#[derive(Debug, Deserialize)]
pub(super) struct WriteBody {
    path: Option<String>,
    content: Option<String>,
    #[serde(default)]
    create_dirs: bool,
    #[serde(default)]
    append: bool,
    mode: Option<String>,
}

fn mode_of(text: Option<&str>) -> Result<Option<u32>, Problem> {
    let bad = || refusal("mode", "is not a mode", "octal digits, 0 to 7777");
    let Some(text) = text else { return Ok(None) };
    let is_octal = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o7777);
    Ok(Some(mode.ok_or_else(bad)?))
}

/// Whether what is at the path can hold files; a link is followed when it is used.
async fn must_be_directory(guest: &dyn GuestApi, path: &str) -> Result<(), Problem> {
    match guest.stat(path).await?.kind {
        FileKind::Directory | FileKind::Symlink => Ok(()),
        FileKind::File | FileKind::Other => {
            let message = format!("{path}: not a directory");
            Err(NodeError::Guest { code: "not_directory", message }.into())
        }
    }
}

fn pieces(text: String) -> ByteStream {
    let mut bytes = Bytes::from(text);
    let pieces = std::iter::from_fn(move || {
        (!bytes.is_empty()).then(|| Ok(bytes.split_to(bytes.len().min(PIECE_BYTES))))
    });
    Box::pin(stream::iter(pieces))
}

/// A file that is there is replaced in one step, and keeps its mode unless another is asked for.
pub(super) async fn write(
    State(state): State<ApiState>,
    visitor: Visitor,
    JsonBody { value: Object(body), .. }: JsonBody<Object<WriteBody>, Oblien>,
) -> Result<Response, Problem> {
    let path = path_of(body.path.as_deref())?;
    let asked_mode = mode_of(body.mode.as_deref())?;
    let Some(content) = body.content else {
        return Err(refusal("content", "is missing", "a text"));
    };
    let guest = visitor.guest(&state).await?;
    if !body.create_dirs
        && let Some((parent, _)) = paths::split(&path)
    {
        must_be_directory(guest.as_ref(), parent).await?;
    }
    let mode = match asked_mode {
        Some(mode) => mode,
        None => match guest.stat(&path).await {
            Ok(there) if there.kind == FileKind::File => there.mode,
            Ok(_) | Err(NodeError::NoSuchFile(_)) => 0o644,
            Err(error) => return Err(error.into()),
        },
    };
    let how = if body.append { WriteMode::Append } else { WriteMode::Replace };
    let size = guest.write_file(&path, mode, how, User::Root, pieces(content)).await?;
    let answer = json!({ "success": true, "path": path, "size": size });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

#[derive(Debug, Deserialize)]
pub(super) struct MkdirBody {
    path: Option<String>,
    mode: Option<String>,
}

pub(super) async fn mkdir(
    State(state): State<ApiState>,
    visitor: Visitor,
    JsonBody { value: Object(body), .. }: JsonBody<Object<MkdirBody>, Oblien>,
) -> Result<Response, Problem> {
    let path = path_of(body.path.as_deref())?;
    let mode = mode_of(body.mode.as_deref())?.unwrap_or(0o755);
    visitor.guest(&state).await?.make_dir(&path, mode, User::Root).await?;
    let answer = json!({ "success": true, "path": path });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

pub(super) async fn stat(
    State(state): State<ApiState>,
    visitor: Visitor,
    QueryOf { value: query, .. }: QueryOf<PathQuery, Oblien>,
) -> Result<Json<Value>, Problem> {
    let path = path_of(query.path.as_deref())?;
    let stat = visitor.guest(&state).await?.stat(&path).await?;
    let name = paths::split(&path).map_or("/", |(_, name)| name);
    let mut answer = json!({
        "success": true,
        "path": path,
        "name": name,
        "type": kind(stat.kind),
        "size": stat.size_bytes,
        "modified": modified(&stat),
        "permissions": format!("{:04o}", stat.mode),
        "is_code": stat.kind == FileKind::File && paths::is_code(name),
    });
    if let (FileKind::File, Some(extension)) = (stat.kind, paths::extension(name)) {
        answer["extension"] = json!(extension);
    }
    if let Some(target) = stat.link_target {
        answer["symlink_target"] = json!(target);
    }
    Ok(Json(answer))
}

#[derive(Debug, Deserialize)]
pub(super) struct DeleteBody {
    path: Option<String>,
}

/// The path stands in the body or in the query.
pub(super) async fn delete(
    State(state): State<ApiState>,
    visitor: Visitor,
    QueryOf { value: query, .. }: QueryOf<PathQuery, Oblien>,
    JsonBody { value: body, .. }: JsonBody<Option<Object<DeleteBody>>, Oblien>,
) -> Result<Json<Value>, Problem> {
    let in_body = body.and_then(|Object(body)| body.path);
    let path = path_of(in_body.or(query.path).as_deref())?;
    if paths::is_protected(&path) {
        return Err(RuntimeProblem::Protected.into());
    }
    visitor.guest(&state).await?.remove(&path).await?;
    Ok(Json(json!({ "success": true, "path": path })))
}

/// At most so many bytes of a file; `None` if it has more.
pub(super) async fn whole(
    guest: &dyn GuestApi,
    path: &str,
    most_bytes: u64,
) -> Result<Option<Bytes>, NodeError> {
    let mut content = guest.read_file(path, 0, Some(most_bytes + 1)).await?;
    let mut all = BytesMut::new();
    while let Some(piece) = content.next().await {
        all.extend_from_slice(&piece?);
        if all.len() as u64 > most_bytes {
            return Ok(None);
        }
    }
    Ok(Some(all.freeze()))
}
