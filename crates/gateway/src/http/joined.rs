//! Two connections as one. Most of those that are open say nothing most of the time: what is read is
//! kept only while the other side does not take it, so that silence costs no memory.

use std::{
    future::Future,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is carried at a time, in bytes.
const PIECE: usize = 16 * 1024;
/// After so many pieces others have their turn.
const PIECES_AT_ONCE: u32 = 32;

/// Resolves when both sides have ended, or one has failed. When one side says that it has ended, the
/// other is told and may go on.
pub(super) struct Joined<A, B> {
    one: A,
    other: B,
    there: Way,
    back: Way,
}

/// One direction.
#[derive(Default)]
struct Way {
    /// What was read and not yet taken.
    left: Bytes,
    /// Something was written since the last flush.
    is_unflushed: bool,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Carrying,
    Ending,
    Ended,
}

impl<A, B> Joined<A, B> {
    /// Of these two.
    pub(super) fn new(one: A, other: B) -> Self {
        Self { one, other, there: Way::default(), back: Way::default() }
    }
}

impl<A, B> Future for Joined<A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { one, other, there, back } = &mut *self;
        let there = there.poll_carry(context, one, other)?;
        let back = back.poll_carry(context, other, one)?;
        match (there, back) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            (Poll::Pending, _) | (_, Poll::Pending) => Poll::Pending,
        }
    }
}

impl Way {
    fn poll_carry(
        &mut self,
        context: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        let mut piece = [MaybeUninit::uninit(); PIECE];
        for _ in 0..PIECES_AT_ONCE {
            while self.left.has_remaining() {
                let taken = ready!(Pin::new(&mut *to).poll_write(context, &self.left))?;
                if taken == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.left.advance(taken);
            }
            // Lets go of what it was part of.
            self.left = Bytes::new();
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(context))?;
                    self.state = State::Ended;
                    continue;
                }
                State::Carrying => {}
            }
            let mut read = ReadBuf::uninit(&mut piece);
            match Pin::new(&mut *from).poll_read(context, &mut read)? {
                Poll::Ready(()) if read.filled().is_empty() => self.state = State::Ending,
                Poll::Ready(()) => {
                    let taken = match Pin::new(&mut *to).poll_write(context, read.filled())? {
                        Poll::Ready(0) => {
                            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                        }
                        Poll::Ready(taken) => taken,
                        Poll::Pending => 0,
                    };
                    self.is_unflushed = true;
                    let left = read.filled().get(taken..).unwrap_or_default();
                    self.left = Bytes::copy_from_slice(left);
                }
                Poll::Pending => {
                    if self.is_unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(context))?;
                        self.is_unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split};

    use super::*;

    #[tokio::test]
    async fn what_either_side_says_arrives_whole_and_in_order_however_slowly_it_is_taken() {
        let (client, near) = duplex(7);
        let (far, server) = duplex(1000);
        let joined = tokio::spawn(Joined::new(near, far));
        let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let [mut client, mut server] = [split(client), split(server)];
        let read = async |end: &mut tokio::io::ReadHalf<_>| {
            let mut heard = Vec::new();
            end.read_to_end(&mut heard).await.unwrap();
            heard
        };
        let say = async |end: &mut tokio::io::WriteHalf<_>| {
            end.write_all(&sent).await.unwrap();
            end.shutdown().await.unwrap();
        };
        let ((), (), at_server, at_client) = tokio::join!(
            say(&mut client.1),
            say(&mut server.1),
            read(&mut server.0),
            read(&mut client.0)
        );
        assert!(at_server == sent && at_client == sent);
        joined.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn one_side_that_has_ended_still_hears_the_other() {
        let ((mut client, near), (far, mut server)) = (duplex(64), duplex(64));
        let joined = tokio::spawn(Joined::new(near, far));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"question");
        assert!(!joined.is_finished());
        server.write_all(b"answer").await.unwrap();
        drop(server);
        heard.clear();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"answer");
        joined.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_side_that_is_gone_ends_it() {
        let ((client, near), (far, server)) = (duplex(64), duplex(64));
        let joined = tokio::spawn(Joined::new(near, far));
        drop(server);
        let mut client = client;
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        // Nobody takes what is said now.
        let _ = client.write_all(b"lost").await;
        let _ = client.shutdown().await;
        assert_eq!(joined.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn silence_keeps_nothing_that_was_read() {
        let ((mut client, near), (far, mut server)) = (duplex(64), duplex(64));
        let mut joined = Joined::new(near, far);
        client.write_all(b"word").await.unwrap();
        let mut heard = [0; 4];
        tokio::select! {
            biased;
            ended = &mut joined => panic!("{ended:?}"),
            read = server.read_exact(&mut heard) => { read.unwrap(); }
        }
        assert_eq!((&heard, joined.there.left.len()), (b"word", 0));
        assert!(size_of_val(&joined) < 1024);
    }
}
