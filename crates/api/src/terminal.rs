//! A terminal that outlives its connections: its command, what it has printed lately, and who looks at it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use skerry_control::internal_api::{ExecControl, ExecExit, ExecOutput, ExecSession, Pty};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::output_log::{Look, OutputLog, Stream};

/// The exit code of what was hung up.
const HUNG_UP_EXIT_CODE: i32 = 129;

/// How a terminal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its command did, with this code.
    Exited(i32),
    /// The VM was lost: suspended, stopped or gone.
    Lost,
}

/// A terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    control: mpsc::Sender<ExecControl>,
    killed: CancellationToken,
    size: Mutex<Pty>,
    log: Arc<OutputLog<Ended>>,
}

impl Terminal {
    /// One of this size that keeps so much of what was printed for those who look later.
    pub(crate) fn new(control: mpsc::Sender<ExecControl>, size: Pty, kept_bytes: usize) -> Self {
        Self {
            control,
            killed: CancellationToken::new(),
            size: Mutex::new(size),
            log: Arc::new(OutputLog::new(kept_bytes)),
        }
    }

    /// Takes what the command says until it ends. Dropping the session hangs up.
    pub(crate) async fn run(&self, mut session: ExecSession, shutdown: impl Future<Output = ()>) {
        let listening = async {
            loop {
                match session.output.recv().await {
                    Some(Ok(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes))) => {
                        self.log.print(Stream::Stdout, &bytes).await;
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
        self.log.end(ended);
    }

    /// Looks at it from now on.
    pub(crate) fn look(&self) -> Look<Ended> {
        self.log.look()
    }

    /// The end of what was printed, at most so many bytes of what is kept.
    pub(crate) fn tail(&self, most_bytes: usize) -> Vec<u8> {
        self.log.tail(most_bytes)
    }

    /// How much of what was printed is kept, in bytes.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.log.kept_bytes()
    }

    /// Hands input in. What has ended takes nothing more.
    pub(crate) async fn write(&self, bytes: Bytes) {
        let _ = self.control.send(ExecControl::Stdin(bytes)).await;
    }

    /// Gives it another size.
    pub(crate) async fn resize(&self, size: Pty) {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = size;
        let _ = self.control.send(ExecControl::Resize(size)).await;
    }

    /// Hangs up.
    pub(crate) fn kill(&self) {
        self.killed.cancel();
    }

    pub(crate) fn size(&self) -> Pty {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        self.log.ended()
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::output_log::Next;

    const SIZE: Pty = Pty { columns: 80, rows: 24 };

    fn terminal() -> (Terminal, mpsc::Receiver<ExecControl>) {
        let (control, told) = mpsc::channel(1);
        (Terminal::new(control, SIZE, 1024), told)
    }

    #[tokio::test]
    async fn who_looks_late_sees_what_is_kept_and_then_the_end() {
        let (terminal, _told) = terminal();
        let (say, output) = mpsc::channel(4);
        say.send(Ok(ExecOutput::Stdout(Bytes::from_static(b"$ ")))).await.expect("room");
        say.send(Ok(ExecOutput::Exit(ExecExit::Code(7)))).await.expect("room");
        let (control, _) = mpsc::channel(1);
        terminal.run(ExecSession { control, output }, std::future::pending()).await;
        for _ in 0..2 {
            let mut look = terminal.look();
            let printed = Next::Printed(Stream::Stdout, Bytes::from_static(b"$ "));
            assert_eq!(look.next().await, printed);
            assert_eq!(look.next().await, Next::Ended(Ended::Exited(7)));
        }
        assert_eq!(terminal.ended(), Some(Ended::Exited(7)));
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
