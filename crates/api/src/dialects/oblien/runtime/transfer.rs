//! `/files/transfer`: archives, streamed both ways.
//!
//! A download is the guest's own `tar`, which reads what it is told to and compresses it there; nothing of
//! it is parsed here. An upload is uncompressed here, piece by piece, and unpacked by the guest's agent.

use std::{io::Read as _, sync::Arc};

use axum::{Json, body::Body as HttpBody, extract::State, response::Response};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_control::internal_api::{
    ByteStream, ExecControl, ExecExit, ExecOutput, ExecRequest, ExecSession, GuestApi, NodeError,
    User,
};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{
    files::stopping,
    paths,
    problem::{RuntimeProblem, refusal},
    visitor::Visitor,
};
use crate::{
    ApiState,
    bodies::{download as answer_with, upload as received},
    dialects::oblien::{Oblien, error_body::Problem},
    extract::{JsonBody, QueryOf},
    object::Object,
};

/// Paths, and patterns, of one download.
const PATHS_MAX: usize = 256;
/// What is uncompressed at a time, and how many of it wait for the guest.
const PIECE_BYTES: usize = 64 * 1024;
const PIECES_WAITING: usize = 4;
/// What is kept of what `tar` complains about.
const COMPLAINT_BYTES: usize = 2048;

#[derive(Debug, Deserialize)]
pub(super) struct DownloadBody {
    #[serde(default)]
    paths: Vec<String>,
    #[serde(default)]
    exclude_patterns: Option<Vec<String>>,
}

/// The command: names in the archive begin with the last part of each path.
fn tar(paths: &[String], excluded: &[String]) -> Vec<String> {
    let mut argv: Vec<String> = ["tar", "-czf", "-"].map(str::to_owned).into();
    argv.extend(excluded.iter().map(|pattern| format!("--exclude={pattern}")));
    for path in paths {
        let (parent, name) = paths::split(path).unwrap_or(("/", "."));
        argv.push("-C".to_owned());
        argv.push(parent.to_owned());
        // No name may be taken for an option.
        argv.push(if name == "." { name.to_owned() } else { format!("./{name}") });
    }
    argv
}

fn asked(body: DownloadBody) -> Result<(Vec<String>, Vec<String>), Problem> {
    if !(1..=PATHS_MAX).contains(&body.paths.len()) {
        return Err(refusal("paths", "is not a list of paths", "1 to 256 absolute paths"));
    }
    let paths = body.paths.iter().map(|path| paths::absolute("paths", path));
    let paths = paths.collect::<Result<Vec<_>, _>>()?;
    let excluded: Vec<String> =
        body.exclude_patterns.unwrap_or_default().into_iter().filter(|p| !p.is_empty()).collect();
    let is_bad = |pattern: &String| pattern.len() > 4096 || pattern.contains(['\0', '\n']);
    if excluded.len() > PATHS_MAX || excluded.iter().any(is_bad) {
        let allowed = "at most 256 patterns of names";
        return Err(refusal("exclude_patterns", "has one that is none", allowed));
    }
    Ok((paths, excluded))
}

pub(super) async fn download(
    State(state): State<ApiState>,
    visitor: Visitor,
    JsonBody { value: Object(body), .. }: JsonBody<Object<DownloadBody>, Oblien>,
) -> Result<Response, Problem> {
    let (paths, excluded) = asked(body)?;
    let guest = visitor.guest(&state).await?;
    for path in &paths {
        guest.stat(path).await?;
    }
    let request = ExecRequest {
        argv: tar(&paths, &excluded),
        env: [("LC_ALL".to_owned(), "C".to_owned())].into(),
        working_dir: Some("/".to_owned()),
        user: User::Root,
        pty: None,
        timeout: None,
    };
    let mut session = guest.exec(request).await.map_err(|error| match error {
        NodeError::Guest { code: "no_such_command", .. } => {
            let why = "the workspace's image has no tar, which packs archives";
            RuntimeProblem::NotHere(why).into()
        }
        error => Problem::from(error),
    })?;
    let _ = session.control.send(ExecControl::CloseStdin).await;
    let mut complaint = Vec::new();
    // Before the answer begins: what fails at once is an error of its own.
    let beginning = next(&mut session, &mut complaint);
    let first = tokio::select! {
        first = beginning => first?,
        () = state.shutdown_begun() => return Err(stopping()),
    };
    let Some(first) = first else {
        return Err(NodeError::GuestUnreachable("tar said nothing".to_owned()).into());
    };
    let rest = stream::try_unfold((session, complaint, state), async |(session, said, server)| {
        let (mut session, mut said) = (session, said);
        let piece = tokio::select! {
            piece = next(&mut session, &mut said) => piece?,
            // An archive that is not whole must not look like one.
            () = server.shutdown_begun() => {
                let why = "the server is shutting down".to_owned();
                return Err(NodeError::GuestUnreachable(why));
            }
        };
        Ok(piece.map(|piece| (piece, (session, said, server))))
    });
    let all: ByteStream = Box::pin(stream::iter([Ok(first)]).chain(rest));
    Ok(answer_with(all, "application/gzip"))
}

/// What `tar` has packed next; `None` when it is done.
async fn next(
    session: &mut ExecSession,
    complaint: &mut Vec<u8>,
) -> Result<Option<Bytes>, NodeError> {
    loop {
        match session.output.recv().await {
            Some(Ok(ExecOutput::Stdout(bytes))) => return Ok(Some(bytes)),
            Some(Ok(ExecOutput::Stderr(bytes))) => {
                let room = COMPLAINT_BYTES.saturating_sub(complaint.len());
                complaint.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            // 1: some files changed while they were read.
            Some(Ok(ExecOutput::Exit(ExecExit::Code(0 | 1)))) => return Ok(None),
            Some(Ok(ExecOutput::Exit(_))) => {
                let message = String::from_utf8_lossy(complaint).trim().to_owned();
                return Err(NodeError::Guest { code: "other", message });
            }
            Some(Err(error)) => return Err(error),
            None => {
                return Err(NodeError::GuestUnreachable("the command's stream ended".to_owned()));
            }
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct UploadQuery {
    dest: Option<String>,
}

pub(super) async fn upload(
    State(state): State<ApiState>,
    visitor: Visitor,
    QueryOf { value: query, .. }: QueryOf<UploadQuery, Oblien>,
    body: HttpBody,
) -> Result<Json<Value>, Problem> {
    let dest = paths::absolute("dest", query.dest.as_deref().unwrap_or("/"))?;
    let guest: Arc<dyn GuestApi> = visitor.guest(&state).await?;
    let unpacking = guest.upload_tree(&dest, User::Root, uncompressed(received(body)));
    let entries = tokio::select! {
        unpacked = unpacking => unpacked.map_err(|error| match error {
            NodeError::Guest { code: "other", message } => refusal("body", &message, "a tar.gz"),
            error => error.into(),
        })?,
        () = state.shutdown_begun() => return Err(stopping()),
    };
    Ok(Json(json!({ "success": true, "dest": dest, "files_extracted": entries })))
}

/// The bytes that these are when uncompressed. Held back by whoever takes them.
fn uncompressed(compressed: ByteStream) -> ByteStream {
    let (pieces, received) = mpsc::channel::<Result<Bytes, NodeError>>(PIECES_WAITING);
    let compressed = compressed.map_err(std::io::Error::other);
    let reader = SyncIoBridge::new(StreamReader::new(compressed));
    // Ends with the body, or when nobody takes what it makes any more.
    tokio::task::spawn_blocking(move || {
        let mut decoder = MultiGzDecoder::new(reader);
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let read = decoder.read(&mut piece).map_err(broken);
            let is_last = read.is_err();
            let said = match read {
                Ok(0) => return,
                Ok(length) => {
                    piece.truncate(length);
                    Ok(Bytes::from(piece))
                }
                Err(error) => Err(error),
            };
            if pieces.blocking_send(said).is_err() || is_last {
                return;
            }
        }
    });
    let taken = stream::unfold(received, |mut received| async {
        received.recv().await.map(|piece| (piece, received))
    });
    Box::pin(taken)
}

/// The body's own problem, or that it is not compressed as it should be.
fn broken(error: std::io::Error) -> NodeError {
    let text = error.to_string();
    let own = error.into_inner().and_then(|inner| inner.downcast::<NodeError>().ok());
    own.map_or_else(
        || NodeError::Invalid { field: "body", problem: format!("is not a tar.gz: {text}") },
        |own| *own,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_named_by_its_last_part_and_never_an_option() {
        let paths = ["/app/src".to_owned(), "/--checkpoint".to_owned(), "/".to_owned()];
        assert_eq!(
            tar(&paths, &["node_modules".to_owned()]).join(" "),
            "tar -czf - --exclude=node_modules -C /app ./src -C / ./--checkpoint -C / ."
        );
    }
}
