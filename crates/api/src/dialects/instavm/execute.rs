//! `/execute`: a command in a session's VM, its output and its exit code.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use axum::{Json, extract::State};
use skerry_control::{
    Caller, Error, Wait, WorkspaceRef,
    internal_api::{ExecControl, ExecExit, ExecOutput, ExecRequest, ExecSession, NodeError, User},
};
use skerry_model::{State as WorkspaceState, WorkspaceId};

use super::{
    convert, error_body::Problem, request::AuthenticatedBody, sessions::session_ref,
    validation::Fields, vms::no_such_session, wire::Executed,
};
use crate::{ApiState, ids};

const DEFAULT_TIMEOUT_SECONDS: u64 = 60;
/// The kernel takes no longer argument (131,072 bytes with the end mark).
const MAX_COMMAND_BYTES: usize = 131_000;
/// Both streams together. Clients move whole files through a command's output.
const MAX_OUTPUT_BYTES: usize = 64 * 1024 * 1024;
/// The exit code of a command that was ended because its time was over, as `timeout(1)` has it.
const TIMED_OUT_EXIT_CODE: i32 = 124;

/// How long the guest may take to report the end of a command whose time is over.
const EXIT_GRACE: Duration = Duration::from_millis(500);

/// With less time left than this, running a command makes no sense.
const SHORTEST_RUN: Duration = Duration::from_millis(100);

struct Command {
    session: WorkspaceRef,
    script: String,
    /// The caller's own clock runs from its call: the answer must be on its way before.
    answer_within: Duration,
    timeout_seconds: u64,
}

pub(super) async fn execute(
    State(state): State<ApiState>,
    AuthenticatedBody { caller, fields }: AuthenticatedBody,
) -> Result<Json<Executed>, Problem> {
    let began = Instant::now();
    let command = command(fields)?;
    let workspace_id = bring_up(&state, &caller, &command).await?;
    let guest = state.control.guest(&caller, &command.session).await.map_err(no_such_session)?;
    let left = command.answer_within.saturating_sub(began.elapsed());
    if left < SHORTEST_RUN {
        return Err(Problem::StillStarting);
    }
    let run_began = Instant::now();
    let request = ExecRequest {
        argv: vec!["/bin/bash".to_owned(), "-c".to_owned(), command.script],
        env: BTreeMap::new(),
        working_dir: None,
        user: User::Root,
        pty: None,
        timeout: Some(left),
    };
    let run = async {
        let session = guest.exec(request).await.map_err(Error::from)?;
        collect(session, run_began + left + EXIT_GRACE).await
    };
    let Some(output) = state.until_shutdown(run).await? else {
        return Err(Problem::OutputTooLarge { limit_bytes: MAX_OUTPUT_BYTES });
    };
    let mut stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let exit_code = match output.exit {
        ExecExit::Code(code) => code,
        ExecExit::Signal(signal) => 128 + signal,
        ExecExit::TimedOut => {
            if !stderr.is_empty() && !stderr.ends_with('\n') {
                stderr.push('\n');
            }
            let seconds = command.timeout_seconds;
            stderr.push_str(&format!("Execution timed out after {seconds} seconds\n"));
            TIMED_OUT_EXIT_CODE
        }
    };
    Ok(Json(Executed {
        session_id: ids::uuid_text(workspace_id),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr,
        exit_code,
        execution_time: run_began.elapsed().as_secs_f64(),
        cpu_time: None,
    }))
}

fn command(mut fields: Fields) -> Result<Command, Problem> {
    let script = fields.text("command");
    let script = script.or_else(|| fields.text("code"));
    if script.is_none() {
        fields.missing("command");
    }
    let session_id = fields.text("session_id");
    if session_id.is_none() {
        fields.missing("session_id");
    }
    let language = fields.text("language");
    let timeout = fields.integer("timeout", 1..=600);
    let vaults = fields.list("vault_ids").is_some_and(|vaults| !vaults.is_empty());
    let script = script.unwrap_or_default();
    if script.len() > MAX_COMMAND_BYTES {
        fields.refuse("command", "Input should have at most 131000 bytes");
    }
    if script.contains('\0') {
        fields.refuse("command", "Input should not contain a NUL character");
    }
    match language.as_deref() {
        None | Some("bash" | "python") => {}
        Some(_) => fields.refuse("language", "Input should be 'python' or 'bash'"),
    }
    fields.finish()?;
    if vaults {
        return Err(Problem::Unserved { field: "vault_ids", accepted: "null or empty" });
    }
    if language.as_deref() != Some("bash") {
        return Err(Problem::OnlyBash);
    }
    let session = session_ref(&session_id.unwrap_or_default()).ok_or(Problem::NoSuchSession)?;
    let timeout_seconds = timeout.unwrap_or(DEFAULT_TIMEOUT_SECONDS);
    // A tenth, at most a second, is left for the way back.
    let timeout = Duration::from_secs(timeout_seconds);
    let answer_within = timeout - (timeout / 10).min(Duration::from_secs(1));
    Ok(Command { session, script, answer_within, timeout_seconds })
}

/// A session whose VM does not run gets one, as far as the caller's time allows.
async fn bring_up(
    state: &ApiState,
    caller: &Caller,
    command: &Command,
) -> Result<WorkspaceId, Problem> {
    let workspace =
        state.control.get_workspace(caller, &command.session).await.map_err(no_such_session)?;
    if matches!(workspace.state, WorkspaceState::Running { .. }) {
        return Ok(workspace.id);
    }
    let wait = Wait::UpTo(command.answer_within);
    let starting = state.control.start_workspace(caller, &command.session, wait);
    let workspace = state.until_shutdown(starting).await.map_err(no_such_session)?;
    match convert::failure(&workspace) {
        Some(failure) => Err(Problem::VmFailed(failure.clone())),
        None if matches!(workspace.state, WorkspaceState::Running { .. }) => Ok(workspace.id),
        None => Err(Problem::StillStarting),
    }
}

/// What a command said and how it ended.
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: ExecExit,
}

/// Reads everything until the end; `None` when it is more than can be answered. Returning early drops the session, which ends the command.
async fn collect(mut session: ExecSession, deadline: Instant) -> Result<Option<Output>, Error> {
    // No input: a command that reads sees the end of it.
    let _ = session.control.send(ExecControl::CloseStdin).await;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let next = tokio::time::timeout_at(deadline.into(), session.output.recv()).await;
        match next {
            Ok(Some(Ok(ExecOutput::Stdout(bytes)))) => stdout.extend_from_slice(&bytes),
            Ok(Some(Ok(ExecOutput::Stderr(bytes)))) => stderr.extend_from_slice(&bytes),
            Ok(Some(Ok(ExecOutput::Exit(exit)))) => {
                return Ok(Some(Output { stdout, stderr, exit }));
            }
            Ok(Some(Err(error))) => return Err(error.into()),
            Ok(None) => {
                let lost = NodeError::GuestUnreachable("the command's stream ended".to_owned());
                return Err(lost.into());
            }
            Err(_) => return Ok(Some(Output { stdout, stderr, exit: ExecExit::TimedOut })),
        }
        if stdout.len() + stderr.len() > MAX_OUTPUT_BYTES {
            return Ok(None);
        }
    }
}
