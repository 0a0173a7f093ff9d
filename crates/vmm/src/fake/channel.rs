//! A duplex stream whose other owner can cut it, as a newer connection cuts an older one.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

#[derive(Debug)]
struct State {
    /// `None` once cut.
    stream: Option<DuplexStream>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The host's end of a guest channel.
#[derive(Debug)]
pub(super) struct CuttableStream(Arc<Mutex<State>>);

/// The right to cut it.
#[derive(Debug)]
pub(super) struct Cutter(Arc<Mutex<State>>);

pub(super) fn cuttable(stream: DuplexStream) -> (CuttableStream, Cutter) {
    let state = State { stream: Some(stream), reader: None, writer: None };
    let state = Arc::new(Mutex::new(state));
    (CuttableStream(state.clone()), Cutter(state))
}

impl Cutter {
    /// Both sides see the end of the stream.
    pub(super) fn cut(&self) {
        let (stream, reader, writer) = {
            let mut state = lock(&self.0);
            (state.stream.take(), state.reader.take(), state.writer.take())
        };
        drop(stream);
        for waker in [reader, writer].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl Drop for CuttableStream {
    fn drop(&mut self) {
        lock(&self.0).stream = None;
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncRead for CuttableStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = lock(&self.0);
        state.reader = Some(cx.waker().clone());
        match &mut state.stream {
            Some(stream) => Pin::new(stream).poll_read(cx, buf),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for CuttableStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.0);
        state.writer = Some(cx.waker().clone());
        match &mut state.stream {
            Some(stream) => Pin::new(stream).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut lock(&self.0).stream {
            Some(stream) => Pin::new(stream).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut lock(&self.0).stream {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}
