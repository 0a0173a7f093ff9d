//! The client of QEMU's control socket (QMP, `docs/interop/qmp-spec` in QEMU's sources).
//!
//! Our own and small, where a general crate exists, for one reason: the peer is the process that a
//! hostile guest would take over first, so the length of what it may send us and the time we wait
//! for it are bounded here, and only the few messages we need are understood.

use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
};
use tokio_util::codec::{Framed, LinesCodec};

use crate::VmmError;

/// The longest line we take. The longest that we ask for describes a disk with all the layers it may
/// have, where each one's description contains those of all below it: some 200 KiB.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Commands waiting to be sent. More than one at a time is rare.
const COMMAND_QUEUE: usize = 8;

/// Why QEMU said it was ending (`ShutdownCause` in QEMU's `qapi/run-state.json`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShutdownReason {
    GuestShutdown,
    GuestReset,
    GuestPanic,
    HostSignal,
    Other,
}

impl ShutdownReason {
    fn from_wire(reason: &str) -> Self {
        match reason {
            "guest-shutdown" => Self::GuestShutdown,
            "guest-reset" | "subsystem-reset" => Self::GuestReset,
            "guest-panic" => Self::GuestPanic,
            "host-signal" => Self::HostSignal,
            _ => Self::Other,
        }
    }
}

/// The last SHUTDOWN event, shared with whoever explains the process's end.
#[derive(Clone, Debug, Default)]
pub(super) struct ShutdownNotice(Arc<Mutex<Option<ShutdownReason>>>);

impl ShutdownNotice {
    pub(super) fn get(&self) -> Option<ShutdownReason> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, reason: ShutdownReason) {
        // The first reason stands: a reset that ends in a shutdown was a reset.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    success: Option<Value>,
    error: Option<CommandError>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    id: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct CommandError {
    desc: String,
}

struct Command {
    name: &'static str,
    arguments: Option<Value>,
    /// Handed over right before the command, which takes it.
    file: Option<OwnedFd>,
    answer: oneshot::Sender<Result<Value, VmmError>>,
}

/// Sends commands. Cheap to clone; when the connection is gone every command fails.
#[derive(Clone, Debug)]
pub(super) struct QmpClient {
    commands: mpsc::Sender<Command>,
    changes: watch::Receiver<u64>,
}

impl QmpClient {
    /// Runs one command.
    ///
    /// # Errors
    /// [`VmmError::Refused`] with QEMU's words, [`VmmError::Timeout`], or [`VmmError::Io`] when the
    /// connection is gone.
    pub(super) async fn execute(
        &self,
        name: &'static str,
        arguments: Option<Value>,
        within: Duration,
    ) -> Result<Value, VmmError> {
        self.exchange(name, arguments, None, within).await
    }

    /// Runs a command that takes the file handed over with it (`getfd`, `add-fd`).
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub(super) async fn execute_with_file(
        &self,
        name: &'static str,
        arguments: Value,
        file: OwnedFd,
        within: Duration,
    ) -> Result<Value, VmmError> {
        self.exchange(name, Some(arguments), Some(file), within).await
    }

    /// Counts the events that tell of a migration's or a job's progress: whoever waits for one looks
    /// again when it has changed. Closed with the connection.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    async fn exchange(
        &self,
        name: &'static str,
        arguments: Option<Value>,
        file: Option<OwnedFd>,
        within: Duration,
    ) -> Result<Value, VmmError> {
        let (answer, answered) = oneshot::channel();
        let exchange = async {
            let command = Command { name, arguments, file, answer };
            self.commands.send(command).await.map_err(|_| lost())?;
            answered.await.map_err(|_| lost())?
        };
        tokio::time::timeout(within, exchange).await.map_err(|_| VmmError::Timeout(name))?
    }
}

fn lost() -> VmmError {
    VmmError::Io {
        context: "the VMM's control connection is gone".into(),
        source: io::ErrorKind::NotConnected.into(),
    }
}

/// An open connection, ready to be run.
pub(super) struct QmpConnection {
    wire: Wire,
    commands: mpsc::Receiver<Command>,
}

/// Lines of JSON in both directions.
struct Wire {
    lines: Framed<UnixStream, LinesCodec>,
    notice: ShutdownNotice,
    changes: watch::Sender<u64>,
}

/// Takes the greeting and leaves the negotiation mode.
pub(super) async fn negotiate(
    stream: UnixStream,
    notice: ShutdownNotice,
) -> Result<(QmpClient, QmpConnection), VmmError> {
    let (sender, commands) = mpsc::channel(COMMAND_QUEUE);
    let lines = Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE_BYTES));
    let (changes, changed) = watch::channel(0);
    let mut wire = Wire { lines, notice, changes };
    while wire.next_message().await?.greeting.is_none() {}

    wire.send("qmp_capabilities", None, None, 0).await?;
    loop {
        let message = wire.next_message().await?;
        if let Some(error) = message.error {
            return Err(VmmError::Refused { command: "qmp_capabilities", reason: error.desc });
        }
        if message.success.is_some() {
            let client = QmpClient { commands: sender, changes: changed };
            return Ok((client, QmpConnection { wire, commands }));
        }
    }
}

impl QmpConnection {
    /// Answers commands and notes events until either side is gone.
    pub(super) async fn run(mut self) {
        let mut next_id = 1_u64;
        let mut pending: Option<(u64, Command)> = None;
        loop {
            tokio::select! {
                // One command at a time: QEMU runs them in order anyway.
                command = self.commands.recv(), if pending.is_none() => {
                    let Some(mut command) = command else { return };
                    let (arguments, file) = (command.arguments.take(), command.file.take());
                    let sent = self.wire.send(command.name, arguments, file, next_id).await;
                    if let Err(error) = sent {
                        // The receiver may have given up waiting.
                        let _ = command.answer.send(Err(error));
                        return;
                    }
                    pending = Some((next_id, command));
                    next_id += 1;
                }
                message = self.wire.next_message() => {
                    let message = match message {
                        Ok(message) => message,
                        Err(error) => {
                            tracing::debug!(%error, "VMM control connection ended");
                            return;
                        }
                    };
                    // An answer that nobody waits for any more still frees the line.
                    if let Some((_, command)) = pending.take_if(|(id, _)| message.id == Some(*id)) {
                        let answer = match (message.success, message.error) {
                            (_, Some(error)) => Err(VmmError::Refused {
                                command: command.name,
                                reason: error.desc,
                            }),
                            (success, None) => Ok(success.unwrap_or(Value::Null)),
                        };
                        let _ = command.answer.send(answer);
                    }
                }
            }
        }
    }
}

impl Wire {
    async fn send(
        &mut self,
        name: &'static str,
        arguments: Option<Value>,
        file: Option<OwnedFd>,
        id: u64,
    ) -> Result<(), VmmError> {
        if let Some(file) = file {
            self.hand_over(&file).await?;
        }
        let mut line = json!({ "execute": name, "id": id });
        if let Some(arguments) = arguments {
            line["arguments"] = arguments;
        }
        self.lines.send(line.to_string()).await.map_err(|error| VmmError::Io {
            context: "write to the VMM's control socket".into(),
            source: io::Error::other(error),
        })
    }

    /// QEMU keeps a file that comes with any byte for the next command; a space is no command.
    async fn hand_over(&self, file: &OwnedFd) -> Result<(), VmmError> {
        let stream = self.lines.get_ref();
        let send = || {
            let space = [IoSlice::new(b" ")];
            let files = [file.as_raw_fd()];
            let message = [ControlMessage::ScmRights(&files)];
            let to = stream.as_raw_fd();
            sendmsg::<()>(to, &space, &message, MsgFlags::MSG_NOSIGNAL, None)?;
            Ok(())
        };
        stream
            .async_io(Interest::WRITABLE, send)
            .await
            .map_err(|source| VmmError::Io { context: "hand a file to the VMM".into(), source })
    }

    /// Cancel-safe: a line is either wholly taken or left in the buffer.
    async fn next_message(&mut self) -> Result<Message, VmmError> {
        let io = |source| VmmError::Io { context: "read the VMM's control socket".into(), source };
        let line = match self.lines.next().await {
            Some(line) => line.map_err(|error| io(io::Error::other(error)))?,
            None => return Err(io(io::ErrorKind::UnexpectedEof.into())),
        };
        let message: Message =
            serde_json::from_str(&line).map_err(|error| io(io::Error::other(error)))?;
        match message.event.as_deref() {
            Some("SHUTDOWN") => {
                let reason = message.data["reason"].as_str().unwrap_or_default();
                self.notice.set(ShutdownReason::from_wire(reason));
            }
            Some("MIGRATION" | "JOB_STATUS_CHANGE") => {
                self.changes.send_modify(|count| *count = count.wrapping_add(1));
            }
            Some(_) | None => {}
        }
        Ok(message)
    }
}
