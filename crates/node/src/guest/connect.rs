//! TCP connections inside the guest.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{Stream, stream};
use hyper::body::{Body as _, Incoming};
use serde::Serialize;
use skerry_agent_protocol::{REVISION, call as path, message};
use skerry_internal_api::{GuestStream, NodeError};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, mpsc},
};
use tokio_util::sync::PollSender;

use super::{
    GuestLink, Shared,
    call::{ANSWER_BEGINS_WITHIN, bounded, head_of, send, streaming},
    connection::Connected,
    failure::lost,
};

/// Since when the agent can connect.
const SINCE_REVISION: u16 = 2;
const _: () = assert!(SINCE_REVISION <= REVISION);

/// Pieces that wait to be sent.
const WAITING: usize = 4;
/// The largest piece.
const PIECE_MAX: usize = 64 * 1024;

impl GuestLink {
    pub(super) async fn open_connection(
        &self,
        host: &str,
        port: u16,
    ) -> Result<GuestStream, NodeError> {
        let shared = &self.shared;
        let permits = shared.connection_permits().await?;
        let connected = shared.connected().await?;
        if connected.revision < SINCE_REVISION {
            let what = "connecting to a port: the agent in the guest is older than this node";
            return Err(NodeError::Unsupported(String::from(what)));
        }
        let question = message::Connect { host: host.to_owned(), port };
        shared.carry(connected, permits, path::CONNECT, &question).await
    }
}

impl Shared {
    /// The right to one more connection.
    pub(super) async fn connection_permits(&self) -> Result<Permits, NodeError> {
        Ok((self.permit(&self.connections).await?, self.permit(&self.long_streams).await?))
    }

    /// A call whose question and answer go on as the two directions of a connection.
    pub(super) async fn carry<Q: Serialize>(
        &self,
        mut connected: Connected,
        permits: Permits,
        path: &'static str,
        question: &Q,
    ) -> Result<GuestStream, NodeError> {
        let (to_guest, pieces) = mpsc::channel(WAITING);
        let permits = Arc::new(permits);
        let body = streaming(head_of(question)?, until_the_end(pieces, Arc::clone(&permits)));
        let answer = send(&mut connected.requests, path, body);
        let answer = bounded(&self.hold, path, ANSWER_BEGINS_WITHIN, answer).await?;
        Ok(Box::new(Connection {
            to_guest: PollSender::new(to_guest),
            from_guest: answer.into_body(),
            rest: Bytes::new(),
            _permits: permits,
        }))
    }
}

/// The right to a connection, and to a stream for it.
pub(super) type Permits = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What is sent, piece by piece; `None` is its end. Without that it breaks off, which the agent
/// sees as a reset. hyper looks for it only once the guest has taken what was sent before; until then
/// the stream is there, and so are its permits.
fn until_the_end(
    pieces: mpsc::Receiver<Option<Bytes>>,
    permits: Arc<Permits>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(Some((pieces, permits)), |state| async move {
        let (mut pieces, permits) = state?;
        match pieces.recv().await {
            Some(Some(piece)) => Some((Ok(piece), Some((pieces, permits)))),
            Some(None) => None,
            None => Some((Err(io::Error::other("the caller has given the connection up")), None)),
        }
    })
}

/// Both directions of one connection.
struct Connection {
    to_guest: PollSender<Option<Bytes>>,
    from_guest: Incoming,
    /// What was received and not read yet.
    rest: Bytes,
    _permits: Arc<Permits>,
}

fn gone<E>(_: E) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the connection in the guest is gone")
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.from_guest).poll_frame(context)) {
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    let error = lost(error).to_string();
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error)));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.to_guest.poll_reserve(context)).map_err(gone)?;
        let length = bytes.len().min(PIECE_MAX);
        let piece = Bytes::copy_from_slice(bytes.get(..length).unwrap_or_default());
        self.to_guest.send_item(Some(piece)).map_err(gone)?;
        Poll::Ready(Ok(length))
    }

    /// What was written is on its way.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.to_guest.is_closed() {
            return Poll::Ready(Ok(()));
        }
        // A connection that is gone needs no end.
        if ready!(self.to_guest.poll_reserve(context)).is_ok() {
            let _ = self.to_guest.send_item(None);
        }
        self.to_guest.close();
        Poll::Ready(Ok(()))
    }
}
