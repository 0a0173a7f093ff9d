//! A file that is read.

use bytes::Bytes;
use futures::StreamExt as _;
use skerry_internal_api::{ByteStream, GuestApi, NodeError};

/// A file open for reading. Who reads on where the last read ended gets the same stream.
pub(super) struct Reader {
    pub(super) path: String,
    at: u64,
    stream: Option<ByteStream>,
    rest: Bytes,
}

impl Reader {
    pub(super) fn new(path: String) -> Self {
        Self { path, at: 0, stream: None, rest: Bytes::new() }
    }

    /// At most `length` bytes from `offset`; none at the end.
    pub(super) async fn read(
        &mut self,
        guest: &dyn GuestApi,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, NodeError> {
        if self.at != offset {
            self.stream = None;
            self.rest = Bytes::new();
            self.at = offset;
        }
        let mut read = Vec::new();
        while read.len() < length {
            if self.rest.is_empty() {
                let stream = match &mut self.stream {
                    Some(stream) => stream,
                    none => none.insert(
                        guest.read_file(&self.path, offset + read.len() as u64, None).await?,
                    ),
                };
                match stream.next().await {
                    Some(Ok(piece)) => self.rest = piece,
                    Some(Err(error)) => {
                        self.stream = None;
                        return Err(error);
                    }
                    None => {
                        // The file may have grown when somebody asks again.
                        self.stream = None;
                        break;
                    }
                }
            }
            let piece = self.rest.split_to(self.rest.len().min(length - read.len()));
            read.extend_from_slice(&piece);
        }
        self.at += read.len() as u64;
        Ok(read)
    }
}
