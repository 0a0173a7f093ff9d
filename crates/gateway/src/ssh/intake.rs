//! What a client has sent and nobody has taken yet.
//!
//! The session loop of `russh` tells a client to send more as soon as something has arrived, and hands it
//! on within the loop: whoever takes it slowly would stop the whole connection, with the output that a
//! command wants to be rid of before it takes more input. So nothing is waited for in the loop. What
//! arrives is queued, and while much is queued the client is granted a trickle: two bytes at a time,
//! each a little later, which keeps keystrokes going and bounds the queue by the windows that were
//! granted before. The trickle is one of the connection, because the target that `russh` asks for is.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::{Notify, mpsc},
    time::timeout,
};

use super::WINDOW_BYTES;

/// So much may wait on a connection before its client is slowed down,
const ENOUGH_BYTES: usize = 2 * 1024 * 1024;
/// and with so much somebody ignores the windows.
const TOO_MUCH_BYTES: usize = 96 * 1024 * 1024;
/// The window of a client that is slowed down: each time it is used up it is granted anew. With 1 it
/// would never be.
const TRICKLE_BYTES: u32 = 2;
/// How much later, at most.
const TRICKLE_EVERY: Duration = Duration::from_millis(5);

/// The queues of one connection together.
#[derive(Default)]
pub(super) struct Intake {
    waiting_bytes: AtomicUsize,
    drained: Notify,
}

/// The client does not keep to the windows.
pub(super) struct Flood;

impl Intake {
    /// A queue for one channel.
    pub(super) fn queue(self: &Arc<Self>) -> (Inlet, Input) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let inlet = Inlet { intake: Arc::clone(self), sender };
        (inlet, Input { intake: Arc::clone(self), receiver, rest: Bytes::new() })
    }

    fn is_full(&self) -> bool {
        self.waiting_bytes.load(Ordering::Relaxed) > ENOUGH_BYTES
    }

    /// The window that channels are granted from now on.
    pub(super) fn window(&self) -> u32 {
        if self.is_full() { TRICKLE_BYTES } else { WINDOW_BYTES }
    }

    /// Called with each packet after it was queued: a trickle takes its time.
    pub(super) async fn settle(&self, packet_len: usize) -> Result<(), Flood> {
        if self.waiting_bytes.load(Ordering::Relaxed) > TOO_MUCH_BYTES {
            return Err(Flood);
        }
        if self.is_full() && packet_len <= TRICKLE_BYTES as usize {
            let _ = timeout(TRICKLE_EVERY, self.drained.notified()).await;
        }
        Ok(())
    }

    fn taken(&self, bytes: usize) {
        let before = self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if before > ENOUGH_BYTES && before - bytes <= ENOUGH_BYTES {
            self.drained.notify_one();
        }
    }
}

/// Where a channel's bytes go in. Dropping it is their end.
pub(super) struct Inlet {
    intake: Arc<Intake>,
    sender: mpsc::UnboundedSender<Bytes>,
}

impl Inlet {
    pub(super) fn put(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.intake.waiting_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        if self.sender.send(Bytes::copy_from_slice(bytes)).is_err() {
            // Nobody is interested any more.
            self.intake.taken(bytes.len());
        }
    }
}

/// Where they come out.
pub(super) struct Input {
    intake: Arc<Intake>,
    receiver: mpsc::UnboundedReceiver<Bytes>,
    /// What was received and not read yet; counted as taken.
    rest: Bytes,
}

impl Input {
    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        if !self.rest.is_empty() {
            return Some(std::mem::take(&mut self.rest));
        }
        let bytes = self.receiver.recv().await?;
        self.intake.taken(bytes.len());
        Some(bytes)
    }
}

impl AsyncRead for Input {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            let Some(bytes) = ready!(self.receiver.poll_recv(context)) else {
                return Poll::Ready(Ok(()));
            };
            self.intake.taken(bytes.len());
            self.rest = bytes;
        }
        let length = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.receiver.close();
        while let Ok(bytes) = self.receiver.try_recv() {
            self.intake.taken(bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_intake_grants_a_trickle_until_it_is_drained() {
        let intake = Arc::new(Intake::default());
        let (inlet, mut input) = intake.queue();
        assert_eq!(intake.window(), WINDOW_BYTES);
        inlet.put(&vec![1; ENOUGH_BYTES + 1]);
        inlet.put(b"x");
        assert_eq!(intake.window(), TRICKLE_BYTES);
        input.next().await;
        assert_eq!(intake.window(), WINDOW_BYTES);
        assert_eq!(input.next().await.as_deref(), Some(&b"x"[..]));
        drop(inlet);
        assert_eq!(input.next().await, None);
    }

    #[tokio::test]
    async fn what_nobody_takes_any_more_is_not_counted() {
        let intake = Arc::new(Intake::default());
        let (inlet, input) = intake.queue();
        inlet.put(&vec![1; ENOUGH_BYTES + 1]);
        drop(input);
        inlet.put(&vec![1; ENOUGH_BYTES + 1]);
        assert_eq!(intake.waiting_bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn who_ignores_the_windows_is_found_out() {
        let intake = Arc::new(Intake::default());
        let (inlet, _input) = intake.queue();
        inlet.put(&vec![1; ENOUGH_BYTES + 1]);
        assert!(intake.settle(1000).await.is_ok());
        inlet.put(&vec![1; TOO_MUCH_BYTES]);
        assert!(intake.settle(1000).await.is_err());
    }
}
