//! Standard input as a stream that can be let go of at any moment.
//!
//! A read of a terminal cannot be cancelled, and tokio's own standard input keeps the process from
//! ending until the user presses a key. Here a thread waits for either input or the order to stop.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    thread::JoinHandle,
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd,
};
use tokio::sync::mpsc;

const PIECE_BYTES: usize = 32 * 1024;
/// Pieces read ahead.
const PIECES: usize = 4;

/// Standard input, piece by piece. Dropping it stops and awaits its thread.
pub(crate) struct Input {
    // Both are taken when it is dropped, in this order.
    pieces: Option<mpsc::Receiver<io::Result<Bytes>>>,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Input {
    /// Standard input of this process.
    pub(crate) fn standard() -> io::Result<Self> {
        Self::of(io::stdin().as_fd().try_clone_to_owned()?)
    }

    fn of(input: OwnedFd) -> io::Result<Self> {
        let (stopped, stop) = unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (sender, pieces) = mpsc::channel(PIECES);
        let thread = std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || pass_on(&input, &stopped, &sender))?;
        Ok(Self { pieces: Some(pieces), stop: Some(stop), thread: Some(thread) })
    }

    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        self.pieces.as_mut()?.recv().await
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // Without a receiver and with the pipe closed, the thread has nothing left to wait for.
        self.pieces = None;
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already.
            let _ = thread.join();
        }
    }
}

/// Reads until the end, an error, or the order to stop.
fn pass_on(input: &OwnedFd, stopped: &OwnedFd, sender: &mpsc::Sender<io::Result<Bytes>>) {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let piece = match wait_and_read(input, stopped, &mut buffer) {
            Ok(None) => return,
            Ok(Some(0)) => return,
            Ok(Some(count)) => Ok(Bytes::copy_from_slice(&buffer[..count])),
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            // A terminal that hung up has ended.
            Err(Errno::EIO) => return,
            Err(error) => Err(error.into()),
        };
        let failed = piece.is_err();
        if sender.blocking_send(piece).is_err() || failed {
            return;
        }
    }
}

/// Bytes read, 0 at the end; `None` when told to stop.
fn wait_and_read(
    input: &OwnedFd,
    stopped: &OwnedFd,
    buffer: &mut [u8],
) -> Result<Option<usize>, Errno> {
    let mut ready = [
        PollFd::new(input.as_fd(), PollFlags::POLLIN),
        PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
    ];
    poll(&mut ready, PollTimeout::NONE)?;
    if ready[1].any().unwrap_or(true) {
        return Ok(None);
    }
    if !ready[0].any().unwrap_or(true) {
        return Err(Errno::EAGAIN);
    }
    unistd::read(input, buffer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_comes_in_order_and_then_the_end() {
        let (reader, writer) = unistd::pipe().expect("pipe");
        let mut input = Input::of(reader).expect("thread");
        unistd::write(&writer, b"one\0two").expect("write");
        assert_eq!(input.next().await.expect("piece").expect("read"), &b"one\0two"[..]);
        drop(writer);
        assert!(input.next().await.is_none());
    }

    #[test]
    fn an_input_on_which_nothing_comes_can_be_let_go() {
        let (reader, _writer) = unistd::pipe().expect("pipe");
        drop(Input::of(reader).expect("thread"));
    }

    #[test]
    fn an_input_that_nobody_takes_can_be_let_go() {
        let endless = std::fs::File::open("/dev/zero").expect("open");
        drop(Input::of(endless.into()).expect("thread"));
    }
}
