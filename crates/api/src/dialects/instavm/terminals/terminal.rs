//! One terminal: its command, what it has printed lately, and who looks at it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use skerry_control::internal_api::{ExecControl, ExecExit, ExecOutput, ExecSession, Pty};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// What is kept for those who look later. Who looks holds the command back rather than miss anything; with
/// nobody looking the oldest goes.
const KEPT_BYTES: usize = 256 * 1024;
/// The largest message: clients take no larger one than 1 MiB.
const MESSAGE_BYTES: usize = 32 * 1024;
/// The exit code of what was hung up.
const HUNG_UP_EXIT_CODE: i32 = 129;

/// How a terminal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Its command did, with this code.
    Exited(i32),
    /// The VM was lost: suspended, stopped or gone.
    Lost,
}

/// A terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    control: mpsc::Sender<ExecControl>,
    killed: CancellationToken,
    inner: Mutex<Inner>,
    /// There is more to read, or there is room again.
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    size: Pty,
    printed: VecDeque<u8>,
    /// How much was printed before what is kept.
    forgotten: u64,
    /// How far each of those who look has read.
    read: BTreeMap<u64, u64>,
    looked: u64,
    ended: Option<Ended>,
}

impl Inner {
    fn end(&self) -> u64 {
        self.forgotten + self.printed.len() as u64
    }

    /// Makes room for `length` bytes; false while somebody has not read what would go.
    fn make_room(&mut self, length: usize) -> bool {
        let excess = (self.printed.len() + length).saturating_sub(KEPT_BYTES);
        let goes_to = self.forgotten + excess as u64;
        if excess > 0 && self.read.values().any(|read| *read < goes_to) {
            return false;
        }
        self.printed.drain(..excess);
        self.forgotten = goes_to;
        true
    }
}

/// What comes next for somebody who looks.
pub(super) enum Next {
    /// It printed this.
    Printed(Bytes),
    /// It has ended, and all of it was read.
    Ended(Ended),
}

/// Somebody who looks at a terminal, from what is kept on.
pub(super) struct Look<'a> {
    terminal: &'a Terminal,
    number: u64,
}

impl Terminal {
    pub(super) fn new(control: mpsc::Sender<ExecControl>, size: Pty) -> Self {
        let inner = Inner {
            size,
            printed: VecDeque::new(),
            forgotten: 0,
            read: BTreeMap::new(),
            looked: 0,
            ended: None,
        };
        Self {
            control,
            killed: CancellationToken::new(),
            inner: Mutex::new(inner),
            changed: Notify::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the command says until it ends. Dropping the session hangs up.
    pub(super) async fn run(&self, mut session: ExecSession, shutdown: impl Future<Output = ()>) {
        let listening = async {
            loop {
                match session.output.recv().await {
                    Some(Ok(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes))) => {
                        self.print(&bytes).await;
                    }
                    Some(Ok(ExecOutput::Exit(ExecExit::Code(code)))) => return Ended::Exited(code),
                    Some(Ok(ExecOutput::Exit(ExecExit::Signal(signal)))) => {
                        return Ended::Exited(128 + signal);
                    }
                    Some(Ok(ExecOutput::Exit(ExecExit::TimedOut)) | Err(_)) | None => {
                        return Ended::Lost;
                    }
                }
            }
        };
        let ended = tokio::select! {
            ended = listening => ended,
            () = self.killed.cancelled() => Ended::Exited(HUNG_UP_EXIT_CODE),
            () = shutdown => Ended::Lost,
        };
        self.inner().ended = Some(ended);
        self.changed.notify_waiters();
    }

    async fn print(&self, bytes: &[u8]) {
        for piece in bytes.chunks(MESSAGE_BYTES) {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // Before the look, so that no change is missed.
                changed.as_mut().enable();
                {
                    let mut inner = self.inner();
                    if inner.make_room(piece.len()) {
                        inner.printed.extend(piece);
                        break;
                    }
                }
                changed.await;
            }
            self.changed.notify_waiters();
        }
    }

    /// Looks at it from now on.
    pub(super) fn look(&self) -> Look<'_> {
        let mut inner = self.inner();
        inner.looked += 1;
        let number = inner.looked;
        let from = inner.forgotten;
        inner.read.insert(number, from);
        Look { terminal: self, number }
    }

    /// Hands input in. What has ended takes nothing more.
    pub(super) async fn write(&self, bytes: Bytes) {
        let _ = self.control.send(ExecControl::Stdin(bytes)).await;
    }

    /// Gives it another size.
    pub(super) async fn resize(&self, size: Pty) {
        self.inner().size = size;
        let _ = self.control.send(ExecControl::Resize(size)).await;
    }

    /// Hangs up.
    pub(super) fn kill(&self) {
        self.killed.cancel();
    }

    pub(super) fn size(&self) -> Pty {
        self.inner().size
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        self.inner().ended
    }
}

impl Look<'_> {
    /// What comes next. The end is told again and again.
    pub(super) async fn next(&mut self) -> Next {
        loop {
            let changed = self.terminal.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(next) = self.there() {
                return next;
            }
            changed.await;
        }
    }

    fn there(&self) -> Option<Next> {
        let mut inner = self.terminal.inner();
        let (forgotten, end) = (inner.forgotten, inner.end());
        let read = inner.read.get(&self.number).copied().unwrap_or(forgotten);
        if read == end {
            return inner.ended.map(Next::Ended);
        }
        // What is kept is far smaller than an address.
        let skip = usize::try_from(read - forgotten).unwrap_or(usize::MAX);
        let bytes: Bytes = inner
            .printed
            .iter()
            .skip(skip)
            .take(MESSAGE_BYTES)
            .copied()
            .collect::<Vec<u8>>()
            .into();
        inner.read.insert(self.number, read + bytes.len() as u64);
        drop(inner);
        self.terminal.changed.notify_waiters();
        Some(Next::Printed(bytes))
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.terminal.inner().read.remove(&self.number);
        self.terminal.changed.notify_waiters();
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use std::time::Duration;

    use super::*;

    const SIZE: Pty = Pty { columns: 80, rows: 24 };

    fn terminal() -> (Terminal, mpsc::Receiver<ExecControl>) {
        let (control, told) = mpsc::channel(1);
        (Terminal::new(control, SIZE), told)
    }

    async fn read(look: &mut Look<'_>) -> Vec<u8> {
        match look.next().await {
            Next::Printed(bytes) => bytes.to_vec(),
            Next::Ended(_) => Vec::new(),
        }
    }

    #[tokio::test]
    async fn who_looks_late_sees_what_is_kept_and_then_the_end() {
        let (terminal, _told) = terminal();
        let (_say, output) = {
            let (say, output) = mpsc::channel(4);
            say.send(Ok(ExecOutput::Stdout(Bytes::from_static(b"$ ")))).await.expect("room");
            say.send(Ok(ExecOutput::Exit(ExecExit::Code(7)))).await.expect("room");
            (say, output)
        };
        let (control, _) = mpsc::channel(1);
        terminal.run(ExecSession { control, output }, std::future::pending()).await;
        for _ in 0..2 {
            let mut look = terminal.look();
            assert_eq!(read(&mut look).await, b"$ ");
            assert!(matches!(look.next().await, Next::Ended(Ended::Exited(7))));
        }
        assert_eq!(terminal.ended(), Some(Ended::Exited(7)));
    }

    #[tokio::test]
    async fn with_nobody_looking_the_oldest_goes() {
        let (terminal, _told) = terminal();
        terminal.print(&vec![b'a'; KEPT_BYTES]).await;
        terminal.print(b"z").await;
        assert_eq!(terminal.inner().end(), KEPT_BYTES as u64 + 1);
        assert_eq!(terminal.inner().printed.back(), Some(&b'z'));
        assert_eq!(terminal.inner().printed.len(), KEPT_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn who_looks_misses_nothing_and_holds_the_command_back_until_gone() {
        let (terminal, _told) = terminal();
        let mut look = terminal.look();
        terminal.print(&vec![b'a'; KEPT_BYTES]).await;
        let more = tokio::time::timeout(Duration::from_secs(1), terminal.print(b"z")).await;
        assert!(more.is_err(), "there is no room");
        let reading = async {
            let mut all = Vec::new();
            while all.last() != Some(&b'z') {
                all.extend(read(&mut look).await);
            }
            all.len()
        };
        let (length, ()) = tokio::join!(reading, terminal.print(b"z"));
        assert_eq!(length, KEPT_BYTES + 1);
        drop(look);
        terminal.print(&vec![b'b'; 2 * KEPT_BYTES]).await;
    }

    #[tokio::test]
    async fn one_that_is_killed_hangs_up() {
        let (terminal, _told) = terminal();
        let (say, output) = mpsc::channel(1);
        let (control, _) = mpsc::channel(1);
        terminal.kill();
        terminal.run(ExecSession { control, output }, std::future::pending()).await;
        assert_eq!(terminal.ended(), Some(Ended::Exited(129)));
        assert!(say.is_closed());
    }
}
