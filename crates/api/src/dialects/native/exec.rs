//! Commands that run to their end within one request.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use skerry_control::{
    Error,
    internal_api::{ExecControl, ExecOutput, ExecSession, NodeError},
};
use tokio::{sync::mpsc, time::Instant};

use super::{Body, Login, Params, convert, error_body::NativeResult, wire};
use crate::{ApiState, ids::parse_workspace_ref, output_budget::OutputShare};

const DEFAULT_TIMEOUT_SECONDS: u32 = 60;
const MAX_TIMEOUT_SECONDS: u32 = 3600;
const DEFAULT_OUTPUT_BYTES: u32 = 1024 * 1024;
const MAX_OUTPUT_BYTES: u32 = 16 * 1024 * 1024;
/// The largest piece of standard input handed on at once.
const STDIN_PIECE_BYTES: usize = 64 * 1024;

/// Runs a command in a running workspace and answers when it has ended.
///
/// A caller that hangs up ends the command. Output beyond `max_output_bytes` is read and dropped, so
/// that the command never waits for it.
#[utoipa::path(
    operation_id = "exec",
    post, path = "/skerry/v1/workspaces/{workspace}/exec", tag = "commands",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    request_body = wire::ExecRequest,
    responses(
        (status = 200, body = wire::ExecResult, description = "It ended, in whatever way"),
        (status = 400, body = wire::ErrorBody, description = "It cannot be started"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace or directory"),
        (status = 409, body = wire::ErrorBody, description = "The workspace does not run"),
        (status = 503, body = wire::ErrorBody, description = "The guest does not answer"),
    ),
)]
pub(super) async fn run(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
    body: Body<wire::ExecRequest>,
) -> NativeResult<Response> {
    let began = Instant::now();
    let wire::ExecRequest {
        argv,
        env,
        working_dir,
        user,
        stdin,
        stdin_base64,
        timeout_seconds,
        max_output_bytes,
    } = body.value;
    let stdin = convert::stdin(stdin, stdin_base64)?;
    let output_limit = output_limit(max_output_bytes)?;
    let request = convert::exec(convert::Command {
        argv,
        env,
        working_dir,
        user,
        pty: None,
        timeout_seconds: Some(timeout_seconds.unwrap_or(DEFAULT_TIMEOUT_SECONDS)),
        max_timeout_seconds: MAX_TIMEOUT_SECONDS,
    })?;
    let guest = state.control.guest(&login.caller, &parse_workspace_ref(&path.value)).await?;
    let session = guest.exec(request).await?;
    let mut share = state.output_budget.begin();
    let running = run_to_end(session, Bytes::from(stdin), output_limit, &mut share);
    let finished = state.until_shutdown(running).await?;
    let (exit_code, signal, timed_out) = finished.exit;
    let (stdout, stdout_encoding) = convert::bytes(finished.stdout.bytes);
    let (stderr, stderr_encoding) = convert::bytes(finished.stderr.bytes);
    let answer = Json(wire::ExecResult {
        exit_code,
        signal,
        timed_out,
        stdout,
        stdout_encoding,
        stdout_truncated: finished.stdout.truncated,
        stderr,
        stderr_encoding,
        stderr_truncated: finished.stderr.truncated,
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    Ok(share.carried_by(answer.into_response()))
}

fn output_limit(asked: Option<u32>) -> NativeResult<usize> {
    let bytes = asked.unwrap_or(DEFAULT_OUTPUT_BYTES);
    if bytes > MAX_OUTPUT_BYTES {
        return Err(super::error_body::NativeError::invalid(
            "max_output_bytes",
            "is too large",
            format!("0 to {MAX_OUTPUT_BYTES}"),
        ));
    }
    // A u32 fits a usize on every system this runs on.
    Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// What a command left.
struct Finished {
    exit: (Option<i32>, Option<i32>, bool),
    stdout: Kept,
    stderr: Kept,
}

/// The beginning of an output.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Kept {
    fn take(&mut self, piece: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.bytes.len());
        self.truncated |= piece.len() > room;
        self.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
    }
}

/// Feeds the input and keeps the output, both at once: a command may answer before it has read
/// everything.
async fn run_to_end(
    session: ExecSession,
    stdin: Bytes,
    output_limit: usize,
    share: &mut OutputShare,
) -> Result<Finished, Error> {
    let ExecSession { control, mut output } = session;
    let mut feeding = std::pin::pin!(feed(control, stdin));
    // Kept until the command has ended: letting go of it would hang up.
    let mut fed = None;
    let mut stdout = Kept::default();
    let mut stderr = Kept::default();
    loop {
        tokio::select! {
            control = &mut feeding, if fed.is_none() => fed = Some(control),
            item = output.recv() => match item {
                Some(Ok(ExecOutput::Stdout(piece))) => stdout.take(&piece, output_limit),
                Some(Ok(ExecOutput::Stderr(piece))) => stderr.take(&piece, output_limit),
                Some(Ok(ExecOutput::Exit(exit))) => {
                    return Ok(Finished { exit: convert::exit(exit), stdout, stderr });
                }
                Some(Err(error)) => return Err(error.into()),
                None => {
                    return Err(NodeError::GuestUnreachable(
                        "the command's stream ended before the command".to_owned(),
                    )
                    .into());
                }
            },
        }
        share.cover(stdout.bytes.len() + stderr.bytes.len())?;
    }
}

/// Sends the input and its end; a command that no longer listens is no error.
async fn feed(control: mpsc::Sender<ExecControl>, mut stdin: Bytes) -> mpsc::Sender<ExecControl> {
    while !stdin.is_empty() {
        let piece = stdin.split_to(stdin.len().min(STDIN_PIECE_BYTES));
        if control.send(ExecControl::Stdin(piece)).await.is_err() {
            return control;
        }
    }
    // The receiver may be gone already, which means the same.
    let _ = control.send(ExecControl::CloseStdin).await;
    control
}
