//! Reading the end of a log that consists of a current file and an older one (`<name>.1`).

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use skerry_internal_api::{ByteStream, NodeError};

use crate::{
    Error,
    error::{blocking, chain},
};

const PIECE_BYTES: u64 = 64 * 1024;

/// The name of the older file.
pub(crate) fn older(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// The last `tail_bytes` of both files together, oldest first, as they are now: what is appended
/// while the stream is read is not in it.
pub(crate) async fn tail(log: &Path, tail_bytes: u64) -> Result<ByteStream, NodeError> {
    let log = log.to_owned();
    let parts = blocking(move || {
        let mut parts = Vec::new();
        let mut wanted = tail_bytes;
        for path in [log.clone(), older(&log)] {
            if wanted == 0 {
                break;
            }
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::path("opening", &path)(error)),
            };
            let length = file.metadata().map_err(Error::path("looking at", &path))?.len();
            let take = length.min(wanted);
            file.seek(SeekFrom::Start(length - take)).map_err(Error::path("reading", &path))?;
            wanted -= take;
            parts.push(file.take(take));
        }
        parts.reverse();
        Ok(parts)
    })
    .await
    .map_err(|error| failed(&error))?;
    let pieces = stream::iter(parts).flat_map(|part| {
        stream::try_unfold(part, |part| async move {
            let (part, piece) = blocking(move || read_piece(part)).await.map_err(|e| failed(&e))?;
            Ok((!piece.is_empty()).then_some((piece, part)))
        })
    });
    Ok(Box::pin(pieces))
}

type Part = io::Take<File>;

fn read_piece(mut part: Part) -> Result<(Part, Bytes), Error> {
    let mut piece = Vec::new();
    (&mut part).take(PIECE_BYTES).read_to_end(&mut piece).map_err(Error::io("reading a log"))?;
    Ok((part, Bytes::from(piece)))
}

fn failed(error: &Error) -> NodeError {
    tracing::error!(error = chain(error), "a log could not be read");
    NodeError::Step { step: "read_log" }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    async fn read(log: &Path, tail_bytes: u64) -> Vec<u8> {
        let pieces: Vec<Bytes> = tail(log, tail_bytes).await.unwrap().try_collect().await.unwrap();
        assert!(pieces.iter().all(|piece| piece.len() as u64 <= PIECE_BYTES));
        pieces.concat()
    }

    #[tokio::test]
    async fn the_tail_spans_both_files_and_is_oldest_first() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        assert_eq!(read(&log, 100).await, b"");
        std::fs::write(&log, b"new").unwrap();
        std::fs::write(older(&log), vec![b'o'; 200_000]).unwrap();
        assert_eq!(read(&log, 2).await, b"ew");
        assert_eq!(read(&log, 5).await, b"oonew");
        assert_eq!(read(&log, u64::MAX).await.len(), 200_003);
        assert_eq!(read(&log, 0).await, b"");
    }
}
