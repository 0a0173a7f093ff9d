//! The channel `terminal`: shells, each by a name that clients choose. They are the workspace's: whoever
//! connects again and asks for one by its name sees what it has printed lately and goes on. One that nobody has
//! looked at for as long as a workspace may be idle is hung up.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::extract::ws::Message;
use bytes::Bytes;
use futures::{StreamExt as _, stream, stream::BoxStream};
use serde_json::{Value, json};
use skerry_control::internal_api::{ExecRequest, ExecSession, NodeError, Pty};
use skerry_model::WorkspaceId;
use tokio::{pin, sync::watch, time::sleep};
use tokio_util::task::TaskTracker;

use super::{
    Connection,
    frame::{Refusal, TerminalAsked, text},
    login::Login,
};
use crate::{
    dialects::aether::convert::IDLE_MINUTES,
    output_log::{Look, Next},
    terminal::{Ended, Terminal},
};

/// So many of one workspace at a time.
const PER_WORKSPACE: usize = 16;
/// What is kept of each for those who look later.
const KEPT_BYTES: usize = 256 * 1024;
/// How long one stays that nobody looks at.
const UNATTENDED: Duration = Duration::from_secs(60 * IDLE_MINUTES as u64);
/// The largest piece of input handed on at once.
const INPUT_PIECE_BYTES: usize = 64 * 1024;
/// Shells, the best first.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

/// What a terminal says, as messages.
pub(super) type Said = BoxStream<'static, Message>;

type ByName = HashMap<(WorkspaceId, String), Arc<Session>>;

/// All terminals that sockets of the server have opened. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terminals {
    open: Arc<Mutex<ByName>>,
    tasks: TaskTracker,
}

/// A shell that is open.
#[derive(Debug)]
pub(super) struct Session {
    name: String,
    terminal: Terminal,
    /// How many look at it.
    lookers: watch::Sender<usize>,
}

impl Session {
    /// Resolves when nobody has looked at it for too long.
    async fn unattended(&self) {
        let mut lookers = self.lookers.subscribe();
        loop {
            // It is held here, so the channel stays open.
            let _ = lookers.wait_for(|lookers| *lookers == 0).await;
            tokio::select! {
                () = sleep(UNATTENDED) => return,
                _ = lookers.wait_for(|lookers| *lookers > 0) => {}
            }
        }
    }
}

impl Terminals {
    fn open(&self) -> MutexGuard<'_, ByName> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when no shell runs any more; to be awaited after the listener has ended.
    pub(crate) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn get(&self, workspace: WorkspaceId, name: &str) -> Option<Arc<Session>> {
        self.open().get(&(workspace, name.to_owned())).cloned()
    }

    /// Keeps a shell that has just been started, unless another of its name is there, which is answered.
    fn keep(
        &self,
        workspace: WorkspaceId,
        name: &str,
        session: &ExecSession,
        size: Pty,
    ) -> Result<Kept, Refusal> {
        let mut open = self.open();
        let key = (workspace, name.to_owned());
        if let Some(there) = open.get(&key) {
            return Ok(Kept::WasThere(Arc::clone(there)));
        }
        if open.keys().filter(|(other, _)| *other == workspace).count() >= PER_WORKSPACE {
            return Err(Refusal::new(format!(
                "at most {PER_WORKSPACE} terminals are open at a time"
            )));
        }
        let new = Arc::new(Session {
            name: name.to_owned(),
            terminal: Terminal::new(session.control.clone(), size, KEPT_BYTES),
            lookers: watch::Sender::new(0),
        });
        open.insert(key, Arc::clone(&new));
        Ok(Kept::New(new))
    }

    fn forget(&self, workspace: WorkspaceId, session: &Arc<Session>) {
        let mut open = self.open();
        let key = (workspace, session.name.clone());
        if open.get(&key).is_some_and(|there| Arc::ptr_eq(there, session)) {
            open.remove(&key);
        }
    }
}

enum Kept {
    New(Arc<Session>),
    WasThere(Arc<Session>),
}

/// Somebody looks as long as this is there.
struct Looker(Arc<Session>);

impl Looker {
    fn new(session: Arc<Session>) -> Self {
        session.lookers.send_modify(|lookers| *lookers += 1);
        Self(session)
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        self.0.lookers.send_modify(|lookers| *lookers -= 1);
    }
}

/// One looker on the way through what was printed.
struct Reading {
    looker: Looker,
    look: Look<Ended>,
    /// The beginning of a character whose end has not been printed yet.
    begun: Vec<u8>,
}

/// What a terminal prints, from what is kept on, and its end.
fn said(session: Arc<Session>) -> Said {
    let look = session.terminal.look();
    let reading = Reading { looker: Looker::new(session), look, begun: Vec::new() };
    let messages = stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        let name = reading.looker.0.name.clone();
        let message = |kind: &str, key: &str, value: Value| {
            text(&json!({ "channel": "terminal", "type": kind, "sessionId": name, key: value }))
        };
        match reading.look.next().await {
            Next::Printed(_, bytes) => {
                let printed = characters(&mut reading.begun, &bytes);
                Some((message("output", "data", printed.into()), Some(reading)))
            }
            Next::Ended(ended) => {
                let code = match ended {
                    Ended::Exited(code) => code.into(),
                    Ended::Lost => Value::Null,
                };
                Some((message("close", "exitCode", code), None))
            }
        }
    });
    messages.boxed()
}

/// Whole characters of what was printed; the beginning of one more is kept for the next time. What is no
/// UTF-8 becomes replacement characters.
fn characters(begun: &mut Vec<u8>, bytes: &[u8]) -> String {
    begun.extend_from_slice(bytes);
    let unfinished = match begun.utf8_chunks().last() {
        // At most three bytes that more may follow.
        Some(last) if !last.invalid().is_empty() && is_beginning(last.invalid()) => {
            last.invalid().len()
        }
        Some(_) | None => 0,
    };
    let rest = begun.split_off(begun.len() - unfinished);
    let whole = std::mem::replace(begun, rest);
    String::from_utf8_lossy(&whole).into_owned()
}

/// Whether bytes that are no character are the beginning of one.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

impl Connection {
    /// Does what is asked of a terminal. One that takes no input holds the client's other messages back.
    pub(super) async fn terminal(&self, asked: TerminalAsked) -> Result<(), Refusal> {
        match asked {
            TerminalAsked::Create { session_id, size } => self.open(&session_id, size).await,
            TerminalAsked::Input { session_id, data } => {
                let session = self.session(&session_id)?;
                let mut data = Bytes::from(data);
                while !data.is_empty() {
                    let piece = data.split_to(data.len().min(INPUT_PIECE_BYTES));
                    session.terminal.write(piece).await;
                }
                Ok(())
            }
            TerminalAsked::Resize { session_id, size } => {
                self.session(&session_id)?.terminal.resize(size).await;
                Ok(())
            }
            TerminalAsked::Close { session_id } => {
                self.session(&session_id)?.terminal.kill();
                Ok(())
            }
        }
    }

    fn session(&self, name: &str) -> Result<Arc<Session>, Refusal> {
        let found = self.state.shells.get(self.workspace, name);
        found.ok_or_else(|| Refusal::new(format!("there is no terminal {name:?}")))
    }

    async fn open(&self, name: &str, size: Option<Pty>) -> Result<(), Refusal> {
        if let Some(session) = self.state.shells.get(self.workspace, name) {
            return self.go_on(session, size).await;
        }
        let new = size.unwrap_or(TerminalAsked::DEFAULT_SIZE);
        let started = self.shell(new).await;
        let started = started.map_err(|error| Refusal::new(format!("no shell: {error}")))?;
        match self.state.shells.keep(self.workspace, name, &started, new)? {
            Kept::WasThere(session) => self.go_on(session, size).await,
            Kept::New(session) => {
                let (state, workspace) = (self.state.clone(), self.workspace);
                let kept = Arc::clone(&session);
                self.state.shells.tasks.spawn(async move {
                    let run = kept.terminal.run(started, state.shutdown_begun());
                    pin!(run);
                    tokio::select! {
                        () = &mut run => {}
                        () = kept.unattended() => {
                            kept.terminal.kill();
                            run.await;
                        }
                    }
                    state.shells.forget(workspace, &kept);
                });
                self.look(session).await;
                Ok(())
            }
        }
    }

    async fn go_on(&self, session: Arc<Session>, size: Option<Pty>) -> Result<(), Refusal> {
        if let Some(size) = size {
            session.terminal.resize(size).await;
        }
        self.look(session).await;
        Ok(())
    }

    /// Has what it prints told to this client, unless it is already.
    async fn look(&self, session: Arc<Session>) {
        let is_new = {
            let mut looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
            looked_at.retain(|other| other.strong_count() > 0);
            let known = looked_at.iter().any(|other| other.as_ptr() == Arc::as_ptr(&session));
            if !known {
                looked_at.push(Arc::downgrade(&session));
            }
            !known
        };
        if is_new {
            // It is received as long as anything is listened to.
            let _ = self.looks.send(said(session)).await;
        }
    }

    async fn shell(&self, size: Pty) -> Result<ExecSession, NodeError> {
        let Login { user, .. } = self.login().await?;
        let mut refused = None;
        for shell in SHELLS {
            let request = ExecRequest {
                argv: vec![shell.to_owned(), "-l".to_owned()],
                env: BTreeMap::from([("TERM".to_owned(), "xterm-256color".to_owned())]),
                working_dir: None,
                user: user.clone(),
                pty: Some(size),
                timeout: None,
            };
            match self.guest.exec(request).await {
                Err(error @ NodeError::Guest { code: "no_such_command", .. }) => {
                    refused = Some(error);
                }
                started => return started,
            }
        }
        Err(refused.unwrap_or(NodeError::NotRunning))
    }
}

/// Those that one client looks at.
pub(super) type LookedAt = Mutex<Vec<std::sync::Weak<Session>>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_is_printed_in_pieces_is_told_whole() {
        let mut begun = Vec::new();
        let mut told = String::new();
        for byte in "a\u{e9}\u{20ac}\u{1f600}z".bytes() {
            told.push_str(&characters(&mut begun, &[byte]));
        }
        assert_eq!(told, "a\u{e9}\u{20ac}\u{1f600}z");
        assert_eq!(characters(&mut begun, b"\xff\xc3("), "\u{fffd}\u{fffd}(");
        assert_eq!(characters(&mut begun, b"\xe2\x82"), "");
        assert_eq!(characters(&mut begun, b"x"), "\u{fffd}x");
    }
}
