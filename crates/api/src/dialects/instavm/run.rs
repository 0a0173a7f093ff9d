//! One run of code in a guest, from its start to everything it said.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use skerry_control::{
    Error,
    internal_api::{
        ExecControl, ExecExit, ExecOutput, ExecRequest, ExecSession, GuestApi, NodeError, User,
    },
};

use super::{
    error_body::Problem,
    execute::{Command, Time},
    python::{self, Accepts},
};
use crate::output_budget::OutputShare;

/// Where code runs, and what relative names of files are relative to.
pub(super) const WORKING_DIR: &str = "/app";
/// Both streams together. Clients move whole files through a command's output.
const MAX_OUTPUT_BYTES: usize = 64 * 1024 * 1024;
/// The largest piece of input handed on at once.
const INPUT_PIECE_BYTES: usize = 64 * 1024;
/// The exit code of what was ended because its time was over, as `timeout(1)` has it.
const TIMED_OUT_EXIT_CODE: i32 = 124;

/// What the code is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    /// For the session's kernel.
    Python,
    /// For the session's kernel, unless it is no Python but a script for bash.
    Unsaid,
    /// For a shell of its own.
    Bash,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) exit_code: i32,
    pub(super) execution_time: Duration,
}

/// Runs the code. Dropping the future ends it.
pub(super) async fn run(
    guest: &dyn GuestApi,
    command: Command,
    time: Time,
    share: &mut OutputShare,
) -> Result<Finished, Problem> {
    let began = Instant::now();
    let kernel = |accepts| python::argv(accepts, command.timeout_seconds, time.answer_within);
    let (argv, input) = match command.language {
        Language::Bash => {
            (vec!["/bin/bash".to_owned(), "-c".to_owned(), command.code], Bytes::new())
        }
        Language::Python => (kernel(Accepts::Python), Bytes::from(command.code)),
        Language::Unsaid => (kernel(Accepts::ScriptsToo), Bytes::from(command.code)),
    };
    let deadline = began + time.answer_within + time.exit_grace;
    let starting = begin(guest, argv, time.answer_within);
    let session = tokio::time::timeout_at(deadline.into(), starting);
    let session = session.await.map_err(|_| Problem::StillStarting)??;
    let output = collect(session, input, deadline, share).await?;
    let output = output.ok_or(Problem::OutputTooLarge { limit_bytes: MAX_OUTPUT_BYTES })?;
    Ok(finished(output, command.timeout_seconds, began.elapsed()))
}

/// Starts a command for as long as it may run.
async fn begin(
    guest: &dyn GuestApi,
    argv: Vec<String>,
    timeout: Duration,
) -> Result<ExecSession, Problem> {
    let request = ExecRequest {
        argv,
        env: BTreeMap::new(),
        working_dir: Some(WORKING_DIR.to_owned()),
        user: User::Root,
        pty: None,
        timeout: Some(timeout),
    };
    started(guest, request).await.map_err(|error| match error {
        NodeError::Guest { code: "no_such_command", message } if message.contains("python3") => {
            Problem::NoPython
        }
        error => Problem::from(Error::from(error)),
    })
}

/// Starts something in [`WORKING_DIR`], which is made where it is missing.
pub(super) async fn started(
    guest: &dyn GuestApi,
    request: ExecRequest,
) -> Result<ExecSession, NodeError> {
    match guest.exec(request.clone()).await {
        Err(NodeError::NoSuchFile(path)) if path == WORKING_DIR => {
            guest.make_dir(WORKING_DIR, 0o755, User::Root).await?;
            guest.exec(request).await
        }
        started => started,
    }
}

fn finished(output: Output, timeout_seconds: u64, execution_time: Duration) -> Finished {
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
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    Finished { stdout, stderr, exit_code, execution_time }
}

/// What a command said and how it ended.
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: ExecExit,
}

/// Hands `input` in, and its end. A command that has ended takes nothing more.
async fn feed(session: &ExecSession, mut input: Bytes) {
    while !input.is_empty() {
        let piece = input.split_to(input.len().min(INPUT_PIECE_BYTES));
        if session.control.send(ExecControl::Stdin(piece)).await.is_err() {
            return;
        }
    }
    let _ = session.control.send(ExecControl::CloseStdin).await;
}

/// Reads everything until the end; `None` when it is more than can be answered. Returning early drops the
/// session, which ends the command.
async fn collect(
    mut session: ExecSession,
    input: Bytes,
    deadline: Instant,
    share: &mut OutputShare,
) -> Result<Option<Output>, Problem> {
    // Python's whole text is read before any of it runs, and bash has none: nobody waits for output here.
    if tokio::time::timeout_at(deadline.into(), feed(&session, input)).await.is_err() {
        let (stdout, stderr) = (Vec::new(), Vec::new());
        return Ok(Some(Output { stdout, stderr, exit: ExecExit::TimedOut }));
    }
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let next = tokio::time::timeout_at(deadline.into(), session.output.recv()).await;
        match next {
            Ok(Some(Ok(ExecOutput::Stdout(bytes)))) => stdout.extend_from_slice(&bytes),
            Ok(Some(Ok(ExecOutput::Stderr(bytes)))) => stderr.extend_from_slice(&bytes),
            Ok(Some(Ok(ExecOutput::Exit(exit)))) => {
                return Ok(Some(Output { stdout, stderr, exit }));
            }
            Ok(Some(Err(error))) => return Err(Error::from(error).into()),
            Ok(None) => {
                let lost = NodeError::GuestUnreachable("the command's stream ended".to_owned());
                return Err(Error::from(lost).into());
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
        let output = collect(session, Bytes::new(), in_a_second(), &mut share())
            .await
            .expect("an end")
            .expect("small");
        assert!(matches!(told.recv().await, Some(ExecControl::CloseStdin)));
        let answer = finished(output, 2, Duration::from_secs(1));
        assert_eq!(answer.exit_code, 124);
        assert_eq!(answer.stderr, "half\nExecution timed out after 2 seconds\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_is_told_as_a_shell_tells_it() {
        let (say, _told, session) = session();
        say.send(Ok(ExecOutput::Stdout(Bytes::from_static(b"a\xff")))).await.expect("room");
        say.send(Ok(ExecOutput::Exit(ExecExit::Signal(9)))).await.expect("room");
        let output = collect(session, Bytes::new(), in_a_second(), &mut share())
            .await
            .expect("an end")
            .expect("small");
        let answer = finished(output, 2, Duration::ZERO);
        assert_eq!((answer.exit_code, answer.stdout.as_str()), (137, "a\u{fffd}"));
    }

    #[tokio::test(start_paused = true)]
    async fn too_much_output_is_an_error_and_never_cut() {
        let (say, _told, session) = session();
        let half = Bytes::from(vec![b'x'; MAX_OUTPUT_BYTES / 2 + 1]);
        for _ in 0..2 {
            say.send(Ok(ExecOutput::Stdout(half.clone()))).await.expect("room");
        }
        assert!(
            collect(session, Bytes::new(), in_a_second(), &mut share())
                .await
                .expect("no fault")
                .is_none()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_is_lost_is_a_fault() {
        let (say, _told, session) = session();
        drop(say);
        assert!(collect(session, Bytes::new(), in_a_second(), &mut share()).await.is_err());
    }
}
