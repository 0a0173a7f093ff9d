//! Digests of large, mostly empty files, and the memory of which file was found to have which.
//!
//! A guest's memory file is mostly holes. So that a hole costs nothing, and yet a digest is one of
//! the content alone (a hole and written zeros are the same content), the content is cut into blocks
//! of 64 KiB, and the digest is taken over the length and the digests of the blocks: that of a block
//! of zeros is known without reading it.

use std::{
    collections::HashMap,
    fmt,
    fs::{File, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    libc,
    unistd::{Whence, lseek},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::Error;

const BLOCK_BYTES: usize = 64 * 1024;
/// How much is read at a time: a whole number of blocks.
const READ_BYTES: usize = 16 * BLOCK_BYTES;
/// Keeps our digests apart from every other use of BLAKE3.
const CONTEXT: &str = "skerry 2026-11-22 content of a sealed file in blocks of 64 KiB";
const PREFIX: &str = "blake3-64k:";

static ZERO_BLOCK: LazyLock<[u8; 32]> =
    LazyLock::new(|| *blake3::hash(&[0; BLOCK_BYTES]).as_bytes());

/// The digest of a file's content: `blake3-64k:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct ContentDigest([u8; 32]);

impl ContentDigest {
    /// Of bytes in memory.
    pub fn of_bytes(content: &[u8]) -> Self {
        let mut digest = Running::new(content.len() as u64);
        content.chunks(BLOCK_BYTES).for_each(|block| digest.block(block));
        digest.finish()
    }

    /// Of a whole file, which must not change meanwhile; holes are not read. `None` when `stop` was
    /// cancelled before the end.
    ///
    /// # Errors
    /// When it cannot be read, or is cut while it is.
    pub fn of_file(file: &File, stop: &CancellationToken) -> io::Result<Option<Self>> {
        let length = file.metadata()?.len();
        let mut digest = Running::new(length);
        let mut buffer = vec![0; READ_BYTES];
        let mut at = 0;
        while at < length {
            let data = next_data(file, at)?.unwrap_or(length);
            // Whole blocks before the data, and a last short one when there is no data any more.
            let empty_until =
                if data >= length { length } else { data - data % BLOCK_BYTES as u64 };
            digest.zeros(empty_until - at);
            at = empty_until;
            let data_until = if at < length { next_hole(file, data)?.min(length) } else { length };
            while at < data_until {
                if stop.is_cancelled() {
                    return Ok(None);
                }
                let wanted = (length - at).min(round_up(data_until - at)).min(READ_BYTES as u64);
                let piece = &mut buffer[..usize::try_from(wanted).map_err(io::Error::other)?];
                file.read_exact_at(piece, at)?;
                piece.chunks(BLOCK_BYTES).for_each(|block| digest.block(block));
                at += wanted;
            }
        }
        Ok(Some(digest.finish()))
    }
}

fn round_up(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES as u64) * BLOCK_BYTES as u64
}

/// A digest being taken, block by block.
struct Running(blake3::Hasher);

impl Running {
    fn new(length: u64) -> Self {
        let mut outer = blake3::Hasher::new_derive_key(CONTEXT);
        outer.update(&length.to_le_bytes());
        Self(outer)
    }

    fn block(&mut self, content: &[u8]) {
        self.0.update(blake3::hash(content).as_bytes());
    }

    fn zeros(&mut self, length: u64) {
        let block = BLOCK_BYTES as u64;
        for _ in 0..length / block {
            self.0.update(&*ZERO_BLOCK);
        }
        let rest = usize::try_from(length % block).unwrap_or_default();
        if rest > 0 {
            self.block(&[0; BLOCK_BYTES][..rest]);
        }
    }

    fn finish(self) -> ContentDigest {
        ContentDigest(*self.0.finalize().as_bytes())
    }
}

/// Where data begin at or after `at`; `None` when only a hole is left (lseek(2), `SEEK_DATA`). A file
/// system that does not know holes calls everything data.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, at, Whence::SeekData) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::ENXIO) => Ok(None),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some(at)),
        Err(errno) => Err(errno.into()),
    }
}

/// Where the data at `at` end.
fn next_hole(file: &File, at: u64) -> io::Result<u64> {
    match seek(file, at, Whence::SeekHole) {
        Ok(hole) => Ok(hole),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENXIO) => Ok(u64::MAX),
        Err(errno) => Err(errno.into()),
    }
}

fn seek(file: &File, at: u64, whence: Whence) -> Result<u64, Errno> {
    let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
    let found = lseek(file, at, whence)?;
    u64::try_from(found).map_err(|_| Errno::EOVERFLOW)
}

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContentDigest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(PREFIX).ok_or("is not a digest of this kind")?;
        // One spelling for one digest.
        if digits.len() != 64 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("does not have 64 lower-case hexadecimal digits");
        }
        let hash = blake3::Hash::from_hex(digits).map_err(|_| "is not hexadecimal")?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl TryFrom<String> for ContentDigest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ContentDigest> for String {
    fn from(digest: ContentDigest) -> Self {
        digest.to_string()
    }
}

/// What tells that a file is still the one that was read: any write, and any change of its rights or
/// owner, changes one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    length_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

type Verdict = Arc<Mutex<Option<(Identity, ContentDigest)>>>;

/// The digests of files that were read in this life of the server. Clones are the same memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownDigests {
    verdicts: Arc<Mutex<HashMap<PathBuf, Verdict>>>,
}

impl KnownDigests {
    /// The length and digest of the file at `path`, read only if it was not read before or has
    /// changed since. Callers that want the same file at the same time read it once.
    ///
    /// # Errors
    /// When it is no regular file (a link is not followed) or cannot be read.
    pub fn of(&self, path: &Path) -> Result<(u64, ContentDigest), Error> {
        self.of_unless(path, &CancellationToken::new())
    }

    /// [`KnownDigests::of`], given up when `stop` is cancelled.
    ///
    /// # Errors
    /// Also [`Error::Cancelled`].
    pub fn of_unless(
        &self,
        path: &Path,
        stop: &CancellationToken,
    ) -> Result<(u64, ContentDigest), Error> {
        let verdict = Arc::clone(self.verdicts().entry(path.to_owned()).or_default());
        let mut verdict = verdict.lock().unwrap_or_else(PoisonError::into_inner);
        let file = open_regular(path).map_err(Error::path("opening", path))?;
        let look = || file.metadata().map_err(Error::path("looking at", path));
        let identity = Identity::of(&look()?);
        if let Some((known, digest)) = *verdict
            && known == identity
        {
            return Ok((identity.length_bytes, digest));
        }
        *verdict = None;
        let digest = ContentDigest::of_file(&file, stop).map_err(Error::path("reading", path))?;
        let digest = digest.ok_or(Error::Cancelled)?;
        if Identity::of(&look()?) == identity {
            *verdict = Some((identity, digest));
        }
        Ok((identity.length_bytes, digest))
    }

    /// What was known below `old` is known below `new`: a directory was renamed.
    pub fn moved(&self, old: &Path, new: &Path) {
        let mut verdicts = self.verdicts();
        let moved: Vec<PathBuf> =
            verdicts.keys().filter(|path| path.starts_with(old)).cloned().collect();
        for path in moved {
            if let (Ok(rest), Some(verdict)) = (path.strip_prefix(old), verdicts.remove(&path)) {
                let path =
                    if rest.as_os_str().is_empty() { new.to_owned() } else { new.join(rest) };
                verdicts.insert(path, verdict);
            }
        }
    }

    /// Forgets the file or directory at `path`.
    pub fn forget(&self, path: &Path) {
        self.verdicts().retain(|known, _| !known.starts_with(path));
    }

    fn verdicts(&self) -> MutexGuard<'_, HashMap<PathBuf, Verdict>> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a file for reading; its last path component is not followed, and it must be a file.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        // A pipe somebody put there must not keep us waiting.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
}
