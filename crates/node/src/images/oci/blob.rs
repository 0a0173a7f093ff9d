//! One blob from a registry to a file: hashed as it comes, never longer than promised, continued where
//! an earlier try ended.

use std::{
    io::{ErrorKind, SeekFrom},
    path::Path,
};

use sha2::{Digest, Sha256};
use tokio::{
    fs::{self, OpenOptions},
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
};

use super::{super::ImageError, PullError, registry::Repository};

/// What is to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlobPromise {
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    pub size_bytes: u64,
}

/// Makes `directory/<digits>` the blob. `on_bytes` is told of every piece that is there, also those
/// of an earlier try; and of a minus when it has to start again.
///
/// A file under its final name is complete and verified; one that ends in `.part` is what an earlier
/// try (or process) left, and its content is hashed again before anything is added to it.
pub(super) async fn fetch(
    repository: &mut Repository,
    blob: &BlobPromise,
    directory: &Path,
    on_bytes: &(dyn Fn(i64) + Send + Sync),
) -> Result<(), PullError> {
    let done = directory.join(digits(&blob.digest));
    let part = done.with_extension("part");
    if fs::metadata(&done).await.is_ok_and(|metadata| metadata.len() == blob.size_bytes) {
        on_bytes(signed(blob.size_bytes));
        return Ok(());
    }
    let resumed = match fetch_from(repository, blob, &part, on_bytes).await {
        // What was there before may have been torn by a crash of the host; what is fetched in one
        // piece may not.
        Err((PullError::BadDigest { .. }, Began::InTheMiddle)) => {
            on_bytes(-signed(blob.size_bytes));
            remove(&part).await?;
            fetch_from(repository, blob, &part, on_bytes).await
        }
        other => other,
    };
    if let Err((error, _)) = resumed {
        if matches!(error, PullError::BadDigest { .. } | PullError::TooLarge { .. }) {
            remove(&part).await?;
        }
        return Err(error);
    }
    fs::rename(&part, &done).await.map_err(ImageError::file("keep", &done))?;
    Ok(())
}

/// The hexadecimal part: a file's name.
pub(super) fn digits(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Began {
    AtTheStart,
    InTheMiddle,
}

async fn fetch_from(
    repository: &mut Repository,
    blob: &BlobPromise,
    part: &Path,
    on_bytes: &(dyn Fn(i64) + Send + Sync),
) -> Result<(), (PullError, Began)> {
    let at_start = |error: PullError| (error, Began::AtTheStart);
    let failed =
        |action, began| move |source| (ImageError::file(action, part)(source).into(), began);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(part)
        .await
        .map_err(failed("open", Began::AtTheStart))?;
    let (mut hasher, mut have) =
        hash_so_far(&mut file).await.map_err(failed("read", Began::AtTheStart))?;
    // A part as long as the blob that was not renamed is worth one look: it may be whole.
    if have == blob.size_bytes && format!("sha256:{:x}", hasher.clone().finalize()) == blob.digest {
        on_bytes(signed(have));
        return finish(&mut file).await.map_err(failed("write", Began::AtTheStart));
    }
    if have >= blob.size_bytes {
        (hasher, have) = (Sha256::new(), 0);
    }
    let (from, mut answer) = repository.blob(&blob.digest, have).await.map_err(at_start)?;
    if from == 0 {
        (hasher, have) = (Sha256::new(), 0);
    }
    let began = if have == 0 { Began::AtTheStart } else { Began::InTheMiddle };
    file.set_len(have).await.map_err(failed("shorten", began))?;
    file.seek(SeekFrom::Start(have)).await.map_err(failed("position", began))?;
    on_bytes(signed(have));
    loop {
        let piece = match answer.chunk().await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(error) => {
                // What came is kept: the next try continues it.
                file.flush().await.map_err(failed("write", began))?;
                return Err((repository.unreachable(&error), began));
            }
        };
        have += piece.len() as u64;
        if have > blob.size_bytes {
            let what = format!("the blob {}", blob.digest);
            let limit = format!("{} bytes", blob.size_bytes);
            on_bytes(-signed(have - piece.len() as u64));
            return Err((PullError::TooLarge { what, limit }, began));
        }
        hasher.update(&piece);
        file.write_all(&piece).await.map_err(failed("write", began))?;
        on_bytes(signed(piece.len() as u64));
    }
    if have < blob.size_bytes {
        on_bytes(-signed(have));
        file.flush().await.map_err(failed("write", began))?;
        let problem = format!("it ended after {have} of {} bytes", blob.size_bytes);
        let host = repository.host().to_owned();
        return Err((PullError::Unreachable { host, problem }, began));
    }
    finish(&mut file).await.map_err(failed("write", began))?;
    if format!("sha256:{:x}", hasher.finalize()) == blob.digest {
        return Ok(());
    }
    Err((PullError::BadDigest { what: format!("the blob {}", blob.digest) }, began))
}

async fn finish(file: &mut fs::File) -> std::io::Result<()> {
    file.flush().await?;
    file.sync_data().await
}

async fn hash_so_far(file: &mut fs::File) -> std::io::Result<(Sha256, u64)> {
    let (mut hasher, mut length) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer).await?;
        if count == 0 {
            return Ok((hasher, length));
        }
        hasher.update(&buffer[..count]);
        length += count as u64;
    }
}

async fn remove(path: &Path) -> Result<(), PullError> {
    match fs::remove_file(path).await {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ImageError::file("remove", path)(error).into()),
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
