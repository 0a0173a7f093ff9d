//! Room on the host's disk, promised before something large is written.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use nix::sys::statvfs::statvfs;

use crate::{Error, layout::names_in};

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
    withheld: Arc<Withheld>,
}

/// How many [`Remains`] there are.
#[derive(Debug, Default)]
struct Withheld {
    count: Mutex<usize>,
    one_less: Condvar,
}

/// Files that are held open, so that removing them takes no time: what they take on the disk is given
/// back when this is dropped, which takes as long as they are large. Blocks then.
#[derive(Debug)]
#[must_use = "dropping it is what takes time"]
pub(crate) struct Remains {
    files: Vec<File>,
    withheld: Arc<Withheld>,
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
        Self {
            path: path.to_owned(),
            keep_free_bytes,
            promised_bytes: Arc::default(),
            withheld: Arc::default(),
        }
    }

    /// Promises `bytes`. Blocks, when they are not free, until nothing that was removed takes room any
    /// more.
    ///
    /// # Errors
    /// [`Error::NoCapacity`] when they are not free.
    pub fn reserve(&self, bytes: u64) -> Result<RoomLease, Error> {
        match self.reserve_now(bytes) {
            Err(Error::NoCapacity(_)) => {
                self.withheld.wait();
                self.reserve_now(bytes)
            }
            decided => decided,
        }
    }

    /// Holds the files of a directory that is about to be removed; none when it is not there. The
    /// directory holds nothing but files.
    pub fn hold(&self, dir: &Path) -> Result<Remains, Error> {
        *self.withheld.count() += 1;
        let mut remains = Remains { files: Vec::new(), withheld: Arc::clone(&self.withheld) };
        for name in names_in(dir)? {
            let path = dir.join(name);
            match File::open(&path) {
                Ok(file) => remains.files.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::path("opening", &path)(error)),
            }
        }
        Ok(remains)
    }

    fn reserve_now(&self, bytes: u64) -> Result<RoomLease, Error> {
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

impl Withheld {
    fn count(&self) -> std::sync::MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks until there are none.
    fn wait(&self) {
        let waited = self.one_less.wait_while(self.count(), |count| *count > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        self.files.clear();
        *self.withheld.count() -= 1;
        self.withheld.one_less.notify_all();
    }
}

impl Drop for RoomLease {
    fn drop(&mut self) {
        *self.promised_bytes.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    #[test]
    fn room_that_a_removed_file_still_takes_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (room, place) = (DiskRoom::new(dir.path(), 0), dir.path().join("place"));
        fs::create_dir(&place).unwrap();
        fs::write(place.join("state"), "large").unwrap();
        let remains = room.hold(&place).unwrap();
        assert_eq!(remains.files.len(), 1);
        fs::remove_dir_all(&place).unwrap();
        let more_than_there_is = u64::MAX;
        assert!(room.reserve(1).is_ok(), "what is free is promised at once");
        thread::scope(|scope| {
            let refused = scope.spawn(|| room.reserve(more_than_there_is));
            assert!(!refused.is_finished());
            drop(remains);
            assert!(matches!(refused.join().unwrap(), Err(Error::NoCapacity(_))));
        });
    }

    #[test]
    fn what_is_not_there_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let room = DiskRoom::new(dir.path(), 0);
        drop(room.hold(&dir.path().join("none")).unwrap());
        assert!(room.reserve(u64::MAX).is_err(), "and nobody waits for it");
    }
}
