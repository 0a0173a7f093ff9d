//! `/execute`: a command in a session's VM, its output and its exit code.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use skerry_control::{
    Caller, Error, Wait, WorkspaceRef,
    internal_api::{
        ExecControl, ExecExit, ExecOutput, ExecRequest, ExecSession, GuestApi, NodeError, User,
    },
};
use skerry_model::{State as WorkspaceState, WorkspaceId};

use super::{
    convert, error_body::Problem, request::AuthenticatedBody, sessions::session_ref,
    validation::Fields, vms::no_such_session, wire::Executed,
};
use crate::{ApiState, ids, output_budget::OutputShare};

const DEFAULT_TIMEOUT_SECONDS: u64 = 60;
/// The kernel takes no longer argument (131,072 bytes with the end mark).
const MAX_COMMAND_BYTES: usize = 131_000;
/// Both streams together. Clients move whole files through a command's output.
const MAX_OUTPUT_BYTES: usize = 64 * 1024 * 1024;
/// The exit code of a command that was ended because its time was over, as `timeout(1)` has it.
const TIMED_OUT_EXIT_CODE: i32 = 124;

/// With less time left than this, running a command makes no sense.
const SHORTEST_RUN: Duration = Duration::from_millis(100);

struct Command {
    session: WorkspaceRef,
    script: String,
    /// The caller's own clock runs from its call: the answer must be on its way before.
    answer_within: Duration,
    /// How long after that the guest may still report the end of the command.
    exit_grace: Duration,
    timeout_seconds: u64,
}

pub(super) async fn execute(
    State(state): State<ApiState>,
    AuthenticatedBody { caller, fields }: AuthenticatedBody,
) -> Result<Response, Problem> {
    let began = Instant::now();
    let command = command(fields)?;
    let (workspace_id, guest) = inside(&state, &caller, &command).await?;
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
    let mut share = state.output_budget.begin();
    let run = async {
        let session = guest.exec(request).await.map_err(Error::from)?;
        collect(session, run_began + left + command.exit_grace, &mut share).await
    };
    let Some(output) = state.until_shutdown(run).await? else {
        return Err(Problem::OutputTooLarge { limit_bytes: MAX_OUTPUT_BYTES });
    };
    let session_id = ids::uuid_text(workspace_id);
    let answer = executed(session_id, output, command.timeout_seconds, run_began.elapsed());
    Ok(share.carried_by(Json(answer).into_response()))
}

fn executed(
    session_id: String,
    output: Output,
    timeout_seconds: u64,
    execution_time: Duration,
) -> Executed {
    let mut stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let exit_code = match output.exit {
        ExecExit::Code(code) => code,
        ExecExit::Signal(signal) => 128 + signal,
        ExecExit::TimedOut => {
            if !stderr.is_empty() && !stderr.ends_with('\n') {
                stderr.push('\n');
            }
            stderr.push_str(&format!("Execution timed out after {timeout_seconds} seconds\n"));
            TIMED_OUT_EXIT_CODE
        }
    };
    Executed {
        session_id,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr,
        exit_code,
        execution_time: execution_time.as_secs_f64(),
        cpu_time: None,
    }
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
    // A fifth, at most a second, is left for the end of the command and the way back.
    let timeout = Duration::from_secs(timeout_seconds);
    let margin = (timeout / 5).min(Duration::from_secs(1));
    let answer_within = timeout - margin;
    Ok(Command { session, script, answer_within, exit_grace: margin / 2, timeout_seconds })
}

/// The inside of a session's VM. One that does not run is brought up as far as the caller's time
/// allows; one that is parked stays so unless use is to wake it.
async fn inside(
    state: &ApiState,
    caller: &Caller,
    command: &Command,
) -> Result<(WorkspaceId, Arc<dyn GuestApi>), Problem> {
    let session = &command.session;
    let workspace = state.control.get_workspace(caller, session).await.map_err(no_such_session)?;
    if workspace.wakes_on_use() {
        let waking = state.until_shutdown(state.control.guest(caller, session));
        // It goes on waking when the caller's time is over.
        let woken = tokio::time::timeout(command.answer_within, waking).await;
        let guest = woken.map_err(|_| Problem::StillStarting)?.map_err(no_such_session)?;
        return Ok((workspace.id, guest));
    }
    if convert::is_resting(&workspace) {
        return Err(Problem::VmSuspended);
    }
    if !matches!(workspace.state, WorkspaceState::Running { .. }) {
        bring_up(state, caller, command).await?;
    }
    let guest = state.control.guest(caller, session).await.map_err(no_such_session)?;
    Ok((workspace.id, guest))
}

async fn bring_up(state: &ApiState, caller: &Caller, command: &Command) -> Result<(), Problem> {
    let wait = Wait::UpTo(command.answer_within);
    let starting = state.control.start_workspace(caller, &command.session, wait);
    let workspace = state.until_shutdown(starting).await.map_err(no_such_session)?;
    match convert::failure(&workspace) {
        Some(failure) => Err(Problem::VmFailed(failure.clone())),
        None if matches!(workspace.state, WorkspaceState::Running { .. }) => Ok(()),
        None => Err(Problem::StillStarting),
    }
}

/// What a command said and how it ended.
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: ExecExit,
}

/// Reads everything until the end; `None` when it is more than can be answered. Returning early drops the
/// session, which ends the command.
async fn collect(
    mut session: ExecSession,
    deadline: Instant,
    share: &mut OutputShare,
) -> Result<Option<Output>, Error> {
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
        share.cover(stdout.len() + stderr.len())?;
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]
mod tests {
    use bytes::Bytes;
    use tokio::sync::mpsc;

    use super::*;

    type Said = Result<ExecOutput, NodeError>;

    fn session() -> (mpsc::Sender<Said>, mpsc::Receiver<ExecControl>, ExecSession) {
        let (control, told) = mpsc::channel(1);
        let (say, output) = mpsc::channel(8);
        (say, told, ExecSession { control, output })
    }

    fn share() -> OutputShare {
        crate::output_budget::OutputBudget::default().begin()
    }

    fn in_a_second() -> Instant {
        (tokio::time::Instant::now() + Duration::from_secs(1)).into_std()
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_whose_time_is_over_keeps_what_it_said_and_exits_124() {
        let (say, mut told, session) = session();
        say.send(Ok(ExecOutput::Stderr(Bytes::from_static(b"half")))).await.expect("room");
        let output =
            collect(session, in_a_second(), &mut share()).await.expect("an end").expect("small");
        assert!(matches!(told.recv().await, Some(ExecControl::CloseStdin)));
        let answer = executed("s".to_owned(), output, 2, Duration::from_secs(1));
        assert_eq!(answer.exit_code, 124);
        assert_eq!(answer.stderr, "half\nExecution timed out after 2 seconds\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_is_told_as_a_shell_tells_it() {
        let (say, _told, session) = session();
        say.send(Ok(ExecOutput::Stdout(Bytes::from_static(b"a\xff")))).await.expect("room");
        say.send(Ok(ExecOutput::Exit(ExecExit::Signal(9)))).await.expect("room");
        let output =
            collect(session, in_a_second(), &mut share()).await.expect("an end").expect("small");
        let answer = executed("s".to_owned(), output, 2, Duration::ZERO);
        assert_eq!((answer.exit_code, answer.stdout.as_str()), (137, "a\u{fffd}"));
    }

    #[tokio::test(start_paused = true)]
    async fn too_much_output_is_an_error_and_never_cut() {
        let (say, _told, session) = session();
        let half = Bytes::from(vec![b'x'; MAX_OUTPUT_BYTES / 2 + 1]);
        for _ in 0..2 {
            say.send(Ok(ExecOutput::Stdout(half.clone()))).await.expect("room");
        }
        assert!(collect(session, in_a_second(), &mut share()).await.expect("no fault").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_is_lost_is_a_fault() {
        let (say, _told, session) = session();
        drop(say);
        assert!(collect(session, in_a_second(), &mut share()).await.is_err());
    }

    #[test]
    fn the_answer_leaves_before_the_callers_clock_runs_out() {
        for seconds in [1, 2, 10, 60, 600] {
            let body = serde_json::json!({
                "command": "true", "session_id": "9f1c2d3e-4b5a-4c6d-8e7f-001122334455",
                "language": "bash", "timeout": seconds,
            });
            let fields = Fields::new(body.as_object().expect("an object").clone());
            let command = command(fields).expect("accepted");
            let latest = command.answer_within + command.exit_grace;
            assert!(latest + Duration::from_millis(50) < Duration::from_secs(seconds));
            assert!(command.answer_within >= Duration::from_millis(800 * seconds));
        }
    }
}
