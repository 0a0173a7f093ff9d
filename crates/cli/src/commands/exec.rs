//! Commands and terminals.

use std::{
    convert::Infallible,
    io::{self, IsTerminal},
    process::ExitCode,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncWriteExt, Stderr, Stdout},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::workspaces::env;
use crate::{
    args::{ExecArgs, ProcessArgs, ShellArgs},
    client::Client,
    error::Error,
    exec_stream::{Exit, Heard, Listener, Say, Speaker, open},
    input::Input,
    output::{Output, output_error},
    terminal::{self, RawMode},
};

const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;
const SIGHUP: u8 = 1;

/// With `--json`, how much of each output is kept.
const MAX_KEPT_BYTES: usize = 16 * 1024 * 1024;

/// Started when the workspace has nothing better.
const LOGIN_SHELL: &str =
    "if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi";

pub(crate) async fn exec(
    client: &Client,
    args: ExecArgs,
    output: Output,
) -> Result<ExitCode, Error> {
    let input = if args.no_stdin { Feed::Nothing } else { Feed::Standard };
    let start = start(&args.process, &args.command, args.tty, args.timeout)?;
    if args.tty {
        return interactive(client, &args.process.workspace, &start).await;
    }
    let (speaker, listener) = open(client, &args.process.workspace, &start).await?;
    if output.is_json() {
        let mut kept = Kept::default();
        let exit = converse(speaker, listener, &mut kept, input, Signals::forwarded()?).await?;
        output.answer(&kept.document(exit), || Ok(String::new()))?;
        return Ok(ExitCode::from(exit.shell_code()));
    }
    let mut standard = Standard::new();
    let exit = converse(speaker, listener, &mut standard, input, Signals::forwarded()?).await?;
    Ok(ExitCode::from(exit.shell_code()))
}

pub(crate) async fn shell(client: &Client, args: ShellArgs) -> Result<ExitCode, Error> {
    let login_shell = ["/bin/sh".to_owned(), "-c".to_owned(), LOGIN_SHELL.to_owned()];
    let command: &[String] = if args.command.is_empty() { &login_shell } else { &args.command };
    let start = start(&args.process, command, true, None)?;
    interactive(client, &args.process.workspace, &start).await
}

/// The first message of the exec stream.
fn start(
    process: &ProcessArgs,
    command: &[String],
    tty: bool,
    timeout_seconds: Option<u32>,
) -> Result<Value, Error> {
    let mut env = env(&process.env)?;
    let mut pty = None;
    if tty {
        let (columns, rows) = terminal::size();
        pty = Some(json!({ "columns": columns, "rows": rows }));
        if let (Some(map), Ok(term)) = (env.as_object_mut(), std::env::var("TERM")) {
            map.entry("TERM").or_insert_with(|| term.into());
        }
    }
    Ok(json!({
        "argv": command,
        "env": env,
        "working_dir": process.workdir,
        "user": process.user,
        "pty": pty,
        "timeout_seconds": timeout_seconds,
    }))
}

/// A command in a terminal. If ours is one, it is raw while the command runs.
async fn interactive(client: &Client, workspace: &str, start: &Value) -> Result<ExitCode, Error> {
    let (speaker, listener) = open(client, workspace, start).await?;
    let signals = Signals::of_a_terminal()?;
    let raw = if terminal::is_interactive() {
        Some(RawMode::enter().map_err(|cause| Error::local("the terminal", cause))?)
    } else {
        None
    };
    let mut standard = Standard::new();
    let result = converse(speaker, listener, &mut standard, Feed::Standard, signals).await;
    drop(raw);
    Ok(ExitCode::from(result?.shell_code()))
}

/// Where the command's input comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Feed {
    Standard,
    Nothing,
}

/// Both directions at once, until the command ends.
async fn converse(
    mut speaker: Speaker,
    mut listener: Listener,
    sink: &mut impl Sink,
    feed: Feed,
    mut signals: Signals,
) -> Result<Exit, Error> {
    let mut input = match feed {
        Feed::Standard => {
            Some(Input::standard().map_err(|cause| Error::local("standard input", cause))?)
        }
        Feed::Nothing => None,
    };
    let (orders, mut ordered) = mpsc::channel(16);
    let speaking = async {
        if input.is_none() {
            speaker.say(Say::CloseStdin).await?;
        }
        loop {
            let say = tokio::select! {
                biased;
                Some(say) = ordered.recv() => say,
                piece = next_piece(&mut input) => match piece {
                    Some(Ok(bytes)) => Say::Stdin(bytes),
                    Some(Err(cause)) => {
                        return Err::<Infallible, _>(Error::local("standard input", cause));
                    }
                    None => {
                        input = None;
                        Say::CloseStdin
                    }
                },
            };
            speaker.say(say).await?;
        }
    };
    let listening = async {
        loop {
            match listener.hear().await? {
                Heard::Stdout(bytes) => sink.stdout(&bytes).await?,
                Heard::Stderr(bytes) => sink.stderr(&bytes).await?,
                Heard::Exit(exit) => return Ok(exit),
            }
        }
    };
    let signalled = async {
        loop {
            let say = signals.next().await?;
            // With no room for another, the command has not taken 16 of them: give up on it.
            if orders.try_send(say).is_err() {
                return Err::<Infallible, _>(Error::Interrupted { signal: SIGINT });
            }
        }
    };
    tokio::pin!(listening);
    let failed: Error = tokio::select! {
        biased;
        result = &mut listening => return result,
        result = signalled => match result {
            Ok(never) => match never {},
            Err(error) => return Err(error),
        },
        result = speaking => match result {
            Ok(never) => match never {},
            Err(error @ Error::Local { .. }) => return Err(error),
            Err(error) => error,
        },
    };
    // The server takes nothing more: what it said before that decides, such as the command's exit.
    match listening.await {
        Ok(exit) => Ok(exit),
        Err(Error::BrokenOff(_)) => Err(failed),
        Err(error) => Err(error),
    }
}

/// The next piece of input; forever pending when there is none to come.
async fn next_piece(input: &mut Option<Input>) -> Option<io::Result<bytes::Bytes>> {
    match input {
        Some(input) => input.next().await,
        None => std::future::pending().await,
    }
}

/// Where the command's output goes.
trait Sink {
    async fn stdout(&mut self, bytes: &[u8]) -> Result<(), Error>;
    async fn stderr(&mut self, bytes: &[u8]) -> Result<(), Error>;
}

/// To our own.
struct Standard {
    stdout: Stdout,
    stderr: Stderr,
}

impl Standard {
    fn new() -> Self {
        Self { stdout: tokio::io::stdout(), stderr: tokio::io::stderr() }
    }
}

impl Sink for Standard {
    async fn stdout(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stdout.write_all(bytes).await.map_err(output_error)?;
        self.stdout.flush().await.map_err(output_error)
    }

    async fn stderr(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stderr.write_all(bytes).await.map_err(output_error)?;
        self.stderr.flush().await.map_err(output_error)
    }
}

/// Into memory, for one JSON document.
#[derive(Default)]
struct Kept {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    stdout_truncated: bool,
    stderr_truncated: bool,
}

impl Sink for Kept {
    async fn stdout(&mut self, bytes: &[u8]) -> Result<(), Error> {
        keep(&mut self.stdout, &mut self.stdout_truncated, bytes);
        Ok(())
    }

    async fn stderr(&mut self, bytes: &[u8]) -> Result<(), Error> {
        keep(&mut self.stderr, &mut self.stderr_truncated, bytes);
        Ok(())
    }
}

fn keep(kept: &mut Vec<u8>, truncated: &mut bool, bytes: &[u8]) {
    let room = MAX_KEPT_BYTES - kept.len();
    *truncated |= bytes.len() > room;
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

impl Kept {
    /// In the shape of the API's own answer to a finished command.
    fn document(self, exit: Exit) -> Value {
        let (stdout, stdout_encoding) = text_or_base64(self.stdout);
        let (stderr, stderr_encoding) = text_or_base64(self.stderr);
        json!({
            "exit_code": exit.exit_code,
            "signal": exit.signal,
            "timed_out": exit.timed_out,
            "stdout": stdout,
            "stdout_encoding": stdout_encoding,
            "stdout_truncated": self.stdout_truncated,
            "stderr": stderr,
            "stderr_encoding": stderr_encoding,
            "stderr_truncated": self.stderr_truncated,
        })
    }
}

fn text_or_base64(bytes: Vec<u8>) -> (String, &'static str) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, "utf8"),
        Err(error) => (STANDARD.encode(error.as_bytes()), "base64"),
    }
}

/// What the system tells this process while a command runs.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    window: Option<Signal>,
    /// Signals passed on; a second one ends this process.
    passed_on: bool,
}

impl Signals {
    /// Ctrl-C and SIGTERM are the command's; the second one is ours.
    fn forwarded() -> Result<Self, Error> {
        Self::new(None)
    }

    /// The same, and changes of the terminal's size. (Ctrl-C in a raw terminal is a byte.)
    fn of_a_terminal() -> Result<Self, Error> {
        let window = if io::stdout().is_terminal() {
            Some(signal(SignalKind::window_change()).map_err(|c| Error::local("signals", c))?)
        } else {
            None
        };
        Self::new(window)
    }

    fn new(window: Option<Signal>) -> Result<Self, Error> {
        let catch = |kind| signal(kind).map_err(|cause| Error::local("signals", cause));
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
            window,
            passed_on: false,
        })
    }

    /// What to tell the command next.
    async fn next(&mut self) -> Result<Say, Error> {
        let resized = async {
            match &mut self.window {
                Some(window) => window.recv().await,
                None => std::future::pending().await,
            }
        };
        let number = tokio::select! {
            _ = self.interrupt.recv() => SIGINT,
            _ = self.terminate.recv() => SIGTERM,
            // The terminal is gone, and with it whoever would wait for the command.
            _ = self.hangup.recv() => return Err(Error::Interrupted { signal: SIGHUP }),
            _ = resized => {
                let (columns, rows) = terminal::size();
                return Ok(Say::Resize { columns, rows });
            }
        };
        if self.passed_on {
            return Err(Error::Interrupted { signal: number });
        }
        self.passed_on = true;
        Ok(Say::Signal(number.into()))
    }
}
