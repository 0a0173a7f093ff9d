//! `/upload` and `/download`: files of a session's VM, as streams in both directions.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{
        FromRequest, Multipart, Query, Request, State,
        multipart::{Field, MultipartError},
    },
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Uri, header};
use skerry_control::{
    Caller, Error,
    internal_api::{ByteStream, FileKind, NodeError, User, WriteMode},
};
use skerry_model::ErrorKind;
use tokio::{sync::mpsc, time::timeout};

use super::{
    error_body::Problem,
    execute::inside,
    run::WORKING_DIR,
    sessions::session_ref,
    validation::{FieldError, parse_boolean},
    wire::Uploaded,
};
use crate::{ApiState, Fault, auth, extract::read_body, ids};

/// The longest path; the guest's kernel takes no longer one.
const MAX_PATH_BYTES: usize = 4095;
/// Fields of a form other than the file.
const MAX_FIELD_BYTES: usize = 8 * 1024;
/// The largest piece handed on to the guest at once.
const PIECE_BYTES: usize = 64 * 1024;
/// How long an upload may stand still by the client's doing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the VM may take to be brought up: below the 300 s that clients wait.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// The fields of a form that come before its file, or are all of it.
#[derive(Debug, Default)]
struct Form {
    api_key: Option<String>,
    session_id: Option<String>,
    path: Option<String>,
    errors: Vec<FieldError>,
}

impl Form {
    fn take(&mut self, name: &str, path_name: &str, value: String) {
        match name {
            "api_key" => self.api_key = Some(value),
            "session_id" => self.session_id = Some(value),
            name if name == path_name => self.path = Some(value),
            // Makes no difference: missing directories are always made.
            "recursive" if parse_boolean(&value).is_none() => {
                let msg = "Input should be a valid boolean, unable to interpret input";
                self.errors.push(FieldError::in_body("recursive", msg));
            }
            _ => {}
        }
    }

    /// The session and the absolute path.
    fn finish(mut self, path_name: &str) -> Result<(String, String), Problem> {
        for (name, value) in [("session_id", &self.session_id), (path_name, &self.path)] {
            if value.as_ref().is_none_or(String::is_empty) {
                let missing = FieldError::in_body(name, "Field required");
                self.errors.push(FieldError { kind: "missing", ..missing });
            }
        }
        let path = self.path.unwrap_or_default();
        let absolute = if path.starts_with('/') { path } else { format!("{WORKING_DIR}/{path}") };
        if absolute.len() > MAX_PATH_BYTES || absolute.contains('\0') {
            let msg = "Input should be a path of at most 4095 bytes without NUL";
            self.errors.push(FieldError::in_body(path_name, msg));
        }
        if !self.errors.is_empty() {
            return Err(Problem::Unprocessable(self.errors));
        }
        Ok((self.session_id.unwrap_or_default(), absolute))
    }
}

/// By a header, or by the key among the fields.
async fn caller(state: &ApiState, headers: &HeaderMap, form: &Form) -> Result<Caller, Problem> {
    Ok(auth::caller_with_key(state, headers, form.api_key.as_deref()).await?)
}

/// `POST /upload`. The fields come before the file, as InstaVM's client sends them: the file goes into the
/// guest while it comes in. One that breaks off changes nothing.
pub(super) async fn upload(
    State(state): State<ApiState>,
    request: Request,
) -> Result<Json<Uploaded>, Problem> {
    let headers = request.headers().clone();
    let has_credential = auth::credential(&headers, None).is_some();
    if has_credential {
        // Nothing of a stranger's body is read.
        auth::caller(&state, &headers).await?;
    }
    // Nothing is said about the body's faults to somebody whose key was not found in it.
    let told = |problem: Problem| {
        if has_credential { problem } else { Error::new(ErrorKind::Unauthenticated).into() }
    };
    let mut multipart = Multipart::from_request(request, &state).await.map_err(|rejection| {
        told(Problem::Unprocessable(vec![FieldError::in_body("file", &rejection.body_text())]))
    })?;
    let mut form = Form::default();
    loop {
        let next = timeout(IDLE_TIMEOUT, multipart.next_field()).await;
        let next =
            next.map_err(|_| Fault::BodyIncomplete.into()).and_then(|next| next.map_err(broken));
        let Some(field) = next.map_err(told)? else {
            caller(&state, &headers, &form).await?;
            let missing = FieldError::in_body("file", "Field required");
            form.errors.push(FieldError { kind: "missing", ..missing });
            form.finish("remote_path")?;
            return Err(Problem::Fault(Fault::BodyIncomplete));
        };
        let name = field.name().unwrap_or_default().to_owned();
        if name != "file" {
            let value = text(field, &name).await.map_err(told)?;
            form.take(&name, "remote_path", value);
            continue;
        }
        let caller = caller(&state, &headers, &form).await?;
        let (session, path) = form.finish("remote_path")?;
        let which = session_ref(&session).ok_or(Problem::NoSuchSession)?;
        let (id, guest) = inside(&state, &caller, &which, START_TIMEOUT).await?;
        let (pieces, content) = mpsc::channel(2);
        let content: ByteStream =
            Box::pin(stream::unfold(content, async |mut content: mpsc::Receiver<_>| {
                let piece = content.recv().await?;
                Some((piece, content))
            }));
        let writing = guest.write_file(&path, 0o644, WriteMode::Replace, User::Root, content);
        let (written, ()) = tokio::join!(writing, pass_on(field, pieces));
        let size = written.map_err(Error::from)?;
        return Ok(Json(Uploaded {
            status: "success",
            session_id: ids::uuid_text(id),
            remote_path: path,
            size,
        }));
    }
}

/// Passes the file on in pieces. Ends when the guest takes no more.
pub(super) async fn pass_on(mut field: Field<'_>, pieces: mpsc::Sender<Result<Bytes, NodeError>>) {
    let broken = |problem: &str| NodeError::Invalid { field: "file", problem: problem.to_owned() };
    loop {
        let next = match timeout(IDLE_TIMEOUT, field.chunk()).await {
            Ok(Ok(Some(bytes))) => Ok(bytes),
            Ok(Ok(None)) => return,
            Ok(Err(_)) => Err(broken("broke off")),
            Err(_) => Err(broken("nothing came for 60 s")),
        };
        let failed = next.is_err();
        let mut bytes = match next {
            Ok(bytes) => bytes,
            Err(error) => {
                let _ = pieces.send(Err(error)).await;
                return;
            }
        };
        while !bytes.is_empty() && !failed {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
            if pieces.send(Ok(piece)).await.is_err() {
                return;
            }
        }
    }
}

/// A short field.
pub(super) async fn text(mut field: Field<'_>, name: &str) -> Result<String, Problem> {
    let mut value = BytesMut::new();
    loop {
        let next = timeout(IDLE_TIMEOUT, field.chunk()).await;
        match next.map_err(|_| Fault::BodyIncomplete)?.map_err(broken)? {
            None => break,
            Some(bytes) if value.len() + bytes.len() > MAX_FIELD_BYTES => {
                return Err(Problem::Unprocessable(vec![FieldError::in_body(
                    name,
                    "Input should have at most 8192 bytes",
                )]));
            }
            Some(bytes) => value.extend_from_slice(&bytes),
        }
    }
    String::from_utf8(value.to_vec()).map_err(|_| {
        Problem::Unprocessable(vec![FieldError::in_body(name, "Input should be UTF-8")])
    })
}

pub(super) fn broken(_: MultipartError) -> Problem {
    Problem::Fault(Fault::BodyIncomplete)
}

/// `POST /download`: a form with a file's name; the answer has its content in base64. It is written while
/// it is read: a file that cannot be read to its end breaks the answer off.
pub(super) async fn download(
    State(state): State<ApiState>,
    request: Request,
) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    if auth::credential(&headers, None).is_some() {
        auth::caller(&state, &headers).await?;
    }
    let mut form = Form::default();
    for (name, value) in fields(&read_body(request, &state).await?) {
        form.take(&name, "filename", value);
    }
    let caller = caller(&state, &headers, &form).await?;
    let (session, path) = form.finish("filename")?;
    let which = session_ref(&session).ok_or(Problem::NoSuchSession)?;
    let (_, guest) = inside(&state, &caller, &which, START_TIMEOUT).await?;
    let stat = guest.stat(&path).await.map_err(Error::from)?;
    match stat.kind {
        FileKind::File | FileKind::Symlink => {}
        FileKind::Directory | FileKind::Other => {
            let why = format!("{path}: not a file");
            return Err(Error::new(ErrorKind::Conflict(why)).into());
        }
    }
    let content = guest.read_file(&path, 0, None).await.map_err(Error::from)?;
    let mut response = Response::new(Body::from_stream(in_json(&[("filename", &path)], content)));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

/// A form reads as a query does.
fn fields(body: &[u8]) -> Vec<(String, String)> {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let uri = Uri::builder().path_and_query(format!("/?{text}")).build();
    let query = uri.ok().and_then(|uri| Query::<Vec<(String, String)>>::try_from_uri(&uri).ok());
    query.map(|Query(fields)| fields).unwrap_or_default()
}

/// Where the writing of an answer is.
struct Progress {
    content: ByteStream,
    /// At most two bytes, which do not make a group of base64 yet.
    rest: Vec<u8>,
    size: u64,
    ended: bool,
}

/// The fields, `content` and `size`, written as the content comes. InstaVM's client takes the whole answer
/// for the file when the content is empty, so that of an empty file is a line end, which decodes to nothing.
pub(super) fn in_json(
    fields: &[(&str, &str)],
    content: ByteStream,
) -> impl futures::Stream<Item = Result<Bytes, NodeError>> + use<> {
    let field = |(name, value): &(&str, &str)| {
        format!("{}:{},", serde_json::Value::from(*name), serde_json::Value::from(*value))
    };
    let fields: String = fields.iter().map(field).collect();
    let head = Bytes::from(format!("{{{fields}\"content\":\""));
    let progress = Progress { content, rest: Vec::new(), size: 0, ended: false };
    let body = stream::try_unfold(progress, async |mut progress| {
        if progress.ended {
            return Ok(None);
        }
        let Some(piece) = progress.content.next().await else {
            progress.ended = true;
            let empty = if progress.size == 0 { "\\n" } else { "" };
            let last = STANDARD.encode(&progress.rest);
            let tail = format!("{last}{empty}\",\"size\":{}}}", progress.size);
            return Ok(Some((Bytes::from(tail), progress)));
        };
        let piece = piece?;
        progress.size += piece.len() as u64;
        progress.rest.extend_from_slice(&piece);
        let whole = progress.rest.len() - progress.rest.len() % 3;
        let encoded = STANDARD.encode(&progress.rest[..whole]);
        progress.rest.drain(..whole);
        Ok(Some((Bytes::from(encoded), progress)))
    });
    stream::once(async { Ok(head) }).chain(body)
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    async fn answer(pieces: &[&[u8]]) -> serde_json::Value {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let json = in_json(&[("filename", "/a \"b\"")], Box::pin(stream::iter(pieces)));
        let text: BytesMut = json.try_collect().await.expect("no fault");
        serde_json::from_slice(&text).expect("JSON")
    }

    #[tokio::test]
    async fn content_is_the_same_however_it_comes_in() {
        for pieces in [&[&b"hello"[..]][..], &[b"h", b"el", b"lo"], &[b"", b"hell", b"o"]] {
            let answer = answer(pieces).await;
            assert_eq!(answer["content"], "aGVsbG8=");
            assert_eq!((&answer["size"], &answer["filename"]), (&5.into(), &"/a \"b\"".into()));
        }
    }

    #[tokio::test]
    async fn an_empty_file_does_not_look_as_if_it_were_missing() {
        assert_eq!(answer(&[]).await["content"], "\n");
    }

    #[test]
    fn a_form_reads_as_it_was_meant() {
        let read = fields(b"filename=%2Ftmp%2Fa+b%26c&session_id=s");
        let wanted = [("filename", "/tmp/a b&c"), ("session_id", "s")];
        assert_eq!(read, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
