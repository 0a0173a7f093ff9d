//! A file that is written.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use russh_sftp::{
    protocol::{FileAttributes, StatusCode},
    server::StatusReply,
};
use skerry_internal_api::{GuestApi, NodeError, User, WriteMode};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::names::status;

/// Pieces on their way to the guest.
const WAITING: usize = 4;

/// A file open for writing. Dropped before it is closed, it leaves a file that was to be replaced as it
/// was.
pub(super) struct Writer {
    pub(super) path: String,
    /// Where the next bytes have to go.
    at: u64,
    /// `None` is the end.
    pieces: mpsc::Sender<Option<Bytes>>,
    /// `None` once it was asked how it ended.
    written: Option<AbortOnDropHandle<Result<u64, NodeError>>>,
    /// What the file is to be made once it is whole.
    pub(super) attributes: FileAttributes,
}

impl Writer {
    pub(super) fn new(
        guest: Arc<dyn GuestApi>,
        path: String,
        mode: u32,
        how: WriteMode,
        user: User,
        at: u64,
    ) -> Self {
        let (pieces, to_write) = mpsc::channel(WAITING);
        let content = stream::unfold(Some(to_write), |to_write| async move {
            let mut to_write: mpsc::Receiver<Option<Bytes>> = to_write?;
            match to_write.recv().await {
                Some(Some(piece)) => Some((Ok(piece), Some(to_write))),
                Some(None) => None,
                None => Some((Err(NodeError::Cancelled), None)),
            }
        });
        let target = path.clone();
        let written = tokio::spawn(async move {
            guest.write_file(&target, mode, how, user, Box::pin(content)).await
        });
        let written = Some(AbortOnDropHandle::new(written));
        Self { path, at, pieces, written, attributes: FileAttributes::empty() }
    }

    /// Takes bytes that follow those before.
    pub(super) async fn write(&mut self, offset: u64, bytes: Vec<u8>) -> Result<(), StatusReply> {
        if offset != self.at {
            let why = "files are written from their beginning or at their end, in order";
            return Err(StatusCode::OpUnsupported.with_message(why));
        }
        self.at += bytes.len() as u64;
        if self.pieces.send(Some(Bytes::from(bytes))).await.is_ok() {
            return Ok(());
        }
        // It has ended before its time, and knows why.
        Err(self.outcome().await.err().unwrap_or_else(|| StatusCode::Failure.into()))
    }

    /// Returns once the file is whole and durable.
    pub(super) async fn close(mut self) -> Result<FileAttributes, StatusReply> {
        let _ = self.pieces.send(None).await;
        self.outcome().await?;
        Ok(std::mem::take(&mut self.attributes))
    }

    async fn outcome(&mut self) -> Result<u64, StatusReply> {
        let failed = || StatusCode::Failure.with_message("the write has failed before");
        let written = self.written.take().ok_or_else(failed)?;
        match written.await {
            Ok(outcome) => outcome.map_err(|error| status(&error)),
            Err(_) => Err(StatusCode::Failure.with_message("the write broke off")),
        }
    }
}
