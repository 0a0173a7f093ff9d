//! Room on the host's disk, promised before something large is written.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::sys::statvfs::statvfs;

use crate::Error;

const MIB: u64 = 1024 * 1024;

/// The free space of one file system and what of it is promised. Clones are the same books.
///
/// A lease counts until it is dropped, also what of it is written by then: two saves at a time may be
/// refused a little early, never a little late.
#[derive(Clone, Debug)]
pub(crate) struct DiskRoom {
    path: PathBuf,
    keep_free_bytes: u64,
    promised_bytes: Arc<Mutex<u64>>,
}

/// A promise of room; given back when dropped.
#[derive(Debug)]
pub(crate) struct RoomLease {
    bytes: u64,
    promised_bytes: Arc<Mutex<u64>>,
}

impl DiskRoom {
    /// Of the file system of `path`, of which `keep_free_bytes` are never promised.
    pub fn new(path: &Path, keep_free_bytes: u64) -> Self {
        Self { path: path.to_owned(), keep_free_bytes, promised_bytes: Arc::default() }
    }

    /// Promises `bytes`.
    ///
    /// # Errors
    /// [`Error::NoCapacity`] when they are not free.
    pub fn reserve(&self, bytes: u64) -> Result<RoomLease, Error> {
        let found = statvfs(&self.path)
            .map_err(|errno| Error::path("measuring", &self.path)(errno.into()))?;
        let free = found.blocks_available().saturating_mul(found.fragment_size());
        let mut promised = self.promised_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let free = free.saturating_sub(self.keep_free_bytes).saturating_sub(*promised);
        if bytes > free {
            return Err(Error::NoCapacity(format!(
                "{} MiB of disk are needed, {} MiB are free",
                bytes.div_ceil(MIB),
                free / MIB
            )));
        }
        *promised += bytes;
        Ok(RoomLease { bytes, promised_bytes: Arc::clone(&self.promised_bytes) })
    }
}

impl Drop for RoomLease {
    fn drop(&mut self) {
        *self.promised_bytes.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
    }
}
