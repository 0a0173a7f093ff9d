//! A channel as a stream.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use russh::{ChannelWriteHalf, server::Msg};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use super::intake::Input;

/// Both directions of a channel.
pub(super) struct ChannelStream {
    input: Input,
    output: Box<dyn AsyncWrite + Send + Unpin>,
    /// Tells that nobody uses the stream any more.
    _used: DropGuard,
}

impl ChannelStream {
    pub(super) fn new(input: Input, output: &ChannelWriteHalf<Msg>, used: DropGuard) -> Self {
        Self { input, output: Box::new(writer(output)), _used: used }
    }
}

/// A stream that ends when it is told to: a session of russh has no other end that does not depend on
/// its client.
pub(super) struct Severable<S> {
    stream: S,
    severed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Severable<S> {
    pub(super) fn new(stream: S, severed: CancellationToken) -> Self {
        Self { stream, severed: Box::pin(severed.cancelled_owned()) }
    }

    fn poll_severed(&mut self, context: &mut Context<'_>) -> bool {
        self.severed.as_mut().poll(context).is_ready()
    }
}

fn severed<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the session was ended")))
}

impl<S: AsyncRead + Unpin> AsyncRead for Severable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.poll_severed(context) {
            return severed();
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Severable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.poll_severed(context) {
            return severed();
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.poll_severed(context) {
            return severed();
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.poll_severed(context) {
            return severed();
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Where bytes for the client go in; held back by the client's window for this channel alone.
pub(super) fn writer(output: &ChannelWriteHalf<Msg>) -> impl AsyncWrite + Send + Unpin + 'static {
    Box::pin(output.make_writer())
}

/// The same for standard error.
pub(super) fn error_writer(
    output: &ChannelWriteHalf<Msg>,
) -> impl AsyncWrite + Send + Unpin + 'static {
    /// `SSH_EXTENDED_DATA_STDERR` (RFC 4254, section 5.2).
    const STDERR: u32 = 1;
    Box::pin(output.make_writer_ext(Some(STDERR)))
}

impl AsyncRead for ChannelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_read(context, buffer)
    }
}

impl AsyncWrite for ChannelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.output).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_shutdown(context)
    }
}
