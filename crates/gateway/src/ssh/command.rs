//! Commands and shells.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use russh::{
    ChannelWriteHalf,
    server::{Handle, Msg},
};
use skerry_internal_api::{
    ExecControl, ExecExit, ExecOutput, ExecRequest, ExecSession, NodeError, Pty, RouteError,
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, watch},
};

use super::{
    Gateway,
    channel::{self, Fresh},
    connection::{self, Entry},
    intake::Input,
    stream,
};

/// What the client wants to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The user's own shell, as at a login.
    Shell,
    /// A line for the user's own shell.
    Command(String),
}

/// What a client shows when the gateway, and not the command, has failed; as OpenSSH's own.
const FAILED: u32 = 255;
/// What a shell says of a command that a signal has ended, and of one whose time is over.
const KILLED: u32 = 137;

/// `$SHELL` is the one in the guest's `/etc/passwd`.
fn argv(what: What) -> Vec<String> {
    let shell = |script: &str, rest: &[&str]| {
        let words = ["/bin/sh", "-c", script, "sh"];
        words.iter().chain(rest).map(|word| (*word).to_owned()).collect()
    };
    match what {
        What::Shell => shell(r#"exec "${SHELL:-/bin/sh}" -l"#, &[]),
        What::Command(line) => shell(r#"exec "${SHELL:-/bin/sh}" -c "$1""#, &[&line]),
    }
}

/// Runs something on a channel until it or the channel ends.
pub(super) async fn run(
    gateway: Arc<Gateway>,
    entry: Entry,
    what: What,
    fresh: Fresh,
    handle: Handle,
) {
    let Fresh { output, input, env, has_terminal, sizes, signals, closed } = fresh;
    let _done = closed.clone().drop_guard();
    let running = async {
        match start(&gateway, &entry, what, env, has_terminal.then(|| *sizes.borrow())).await {
            Ok(session) => carry(session, &output, input, sizes, signals).await,
            Err(why) => Err(why),
        }
    };
    let outcome = tokio::select! {
        outcome = running => outcome,
        // Dropping the session hangs up.
        () = closed.cancelled() => return,
    };
    let last_words = async {
        // A client that is gone reads none of this.
        match outcome {
            Ok(ExecExit::Code(code)) => {
                let _ = output.exit_status(u32::try_from(code).unwrap_or(FAILED)).await;
            }
            Ok(ExecExit::Signal(number)) => {
                connection::tell_signal(&handle, output.id(), channel::name(number)).await;
            }
            Ok(ExecExit::TimedOut) => {
                let _ = output.exit_status(KILLED).await;
            }
            Err(why) => {
                let line_end = if has_terminal { "\r\n" } else { "\n" };
                let text = format!("skerry: {why}{line_end}");
                if has_terminal {
                    let _ = stream::writer(&output).write_all(text.as_bytes()).await;
                } else {
                    let _ = stream::error_writer(&output).write_all(text.as_bytes()).await;
                }
                let _ = output.exit_status(FAILED).await;
            }
        }
        let _ = output.eof().await;
        let _ = output.close().await;
    };
    tokio::select! {
        () = last_words => {}
        () = closed.cancelled() => {}
    }
}

async fn start(
    gateway: &Gateway,
    entry: &Entry,
    what: What,
    env: BTreeMap<String, String>,
    pty: Option<Pty>,
) -> Result<ExecSession, String> {
    let guest = gateway.routes.enter(&entry.credential, entry.workspace).await;
    let guest = guest.map_err(|error: RouteError| error.to_string())?;
    let request = ExecRequest {
        argv: argv(what),
        env,
        working_dir: None,
        user: entry.user.clone(),
        pty,
        timeout: None,
    };
    guest.exec(request).await.map_err(|error: NodeError| error.to_string())
}

/// Carries both directions until the command ends.
async fn carry(
    session: ExecSession,
    to_client: &ChannelWriteHalf<Msg>,
    input: Input,
    sizes: watch::Receiver<Pty>,
    signals: mpsc::Receiver<i32>,
) -> Result<ExecExit, String> {
    let ExecSession { control, mut output } = session;
    let feeding = async {
        feed(control, input, sizes, signals).await;
        std::future::pending::<()>().await;
    };
    let (mut stdout, mut stderr) = (stream::writer(to_client), stream::error_writer(to_client));
    let telling = async {
        loop {
            let said = match output.recv().await {
                Some(Ok(said)) => said,
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the command's output broke off".to_owned()),
            };
            match said {
                ExecOutput::Stdout(bytes) => tell(&mut stdout, &bytes).await?,
                ExecOutput::Stderr(bytes) => tell(&mut stderr, &bytes).await?,
                ExecOutput::Exit(exit) => return Ok(exit),
            }
        }
    };
    tokio::select! {
        outcome = telling => outcome,
        () = feeding => Err("the command takes no more input".to_owned()),
    }
}

async fn tell(to_client: &mut (impl AsyncWrite + Unpin), bytes: &Bytes) -> Result<(), String> {
    if bytes.is_empty() {
        return Ok(());
    }
    to_client.write_all(bytes).await.map_err(|error| error.to_string())
}

/// Carries what the client says until the command takes no more.
async fn feed(
    control: mpsc::Sender<ExecControl>,
    mut input: Input,
    mut sizes: watch::Receiver<Pty>,
    mut signals: mpsc::Receiver<i32>,
) {
    let mut is_open = true;
    loop {
        let next = tokio::select! {
            biased;
            Some(signal) = signals.recv() => ExecControl::Signal(signal),
            Ok(()) = sizes.changed() => ExecControl::Resize(*sizes.borrow_and_update()),
            piece = input.next(), if is_open => {
                match piece {
                    Some(bytes) => ExecControl::Stdin(bytes),
                    None => {
                        is_open = false;
                        ExecControl::CloseStdin
                    }
                }
            }
            else => return,
        };
        if control.send(next).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_reaches_the_users_shell_as_it_was_typed() {
        let line = r#"echo "$HOME" 'it'"'"'s' | cat; exit 3"#;
        let argv = argv(What::Command(line.to_owned()));
        assert_eq!(argv[..2], ["/bin/sh", "-c"]);
        assert_eq!(argv.last().map(String::as_str), Some(line));
    }
}
