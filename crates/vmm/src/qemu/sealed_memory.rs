//! A template's memory for QEMU before version 8.2.
//!
//! Such a QEMU opens the file of a private mapping for reading *and writing* whatever it does with
//! it: its user would need the right to write a file that other tenants' VMs are made of. So it gets
//! a copy in anonymous memory under the kernel's seals (memfd_create(2), fcntl(2) F_ADD_SEALS): that
//! can be opened for writing by everybody, and neither written, grown, cut nor mapped shared for
//! writing by anybody, ever. Private mappings of it are copied on write like those of a file.
//!
//! The copy is made once for a template (its pages that are not zero) and shared by all VMs started
//! from it. It lives as long as one of these, or one of the [`KEPT`] templates used last.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    sync::{Arc, Weak},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::{Whence, lseek},
};
use tokio::sync::Mutex;

use super::driver::io_error;
use crate::VmmError;

/// Copies kept though no VM uses them: a pool is refilled from the same few templates.
const KEPT: usize = 2;

/// Read at once when copying.
const CHUNK_BYTES: usize = 1 << 20;

/// What is left out of the copy when it is zero.
const PAGE_BYTES: usize = 4096;

static ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// One template's memory, sealed.
#[derive(Debug)]
pub(super) struct SealedMemory(OwnedFd);

impl SealedMemory {
    /// Another way to the same memory, open for reading only.
    pub(super) fn open(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    fn copy_of(file: &File) -> io::Result<Self> {
        let memory = File::from(memfd_create(
            c"skerry-template",
            MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
        )?);
        let length = file.metadata()?.len();
        memory.set_len(length)?;
        copy_pages(file, &memory, length)?;
        let all = SealFlag::F_SEAL_SEAL
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_WRITE;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(all))?;
        Ok(Self(memory.into()))
    }
}

/// Copies what is neither a hole nor zero.
fn copy_pages(from: &File, to: &File, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while let Some(data) = next_data(from, at)? {
        let wanted = usize::try_from(length.saturating_sub(data)).unwrap_or(CHUNK_BYTES);
        let chunk = &mut buffer[..wanted.min(CHUNK_BYTES)];
        from.read_exact_at(chunk, data)?;
        for (page, bytes) in (0_u64..).zip(chunk.chunks(PAGE_BYTES)) {
            if bytes != &ZERO_PAGE[..bytes.len()] {
                to.write_all_at(bytes, data + page * PAGE_BYTES as u64)?;
            }
        }
        at = data + chunk.len() as u64;
    }
    Ok(())
}

/// Where the next bytes are that were ever written; `None` after the last (lseek(2)).
fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    let offset = i64::try_from(from).map_err(io::Error::other)?;
    match lseek(file, offset, Whence::SeekData) {
        Ok(at) => Ok(Some(u64::try_from(at).map_err(io::Error::other)?)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether this kernel has what is needed.
pub(super) fn is_possible() -> bool {
    let empty = nix::sys::memfd::memfd_create(
        c"skerry-trial",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    );
    empty.is_ok_and(|file| fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_ok())
}

/// The file that was copied: sealed files never change, but their names are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified_ns: i128,
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            length: meta.len(),
            modified_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        })
    }
}

/// The copies there are.
#[derive(Debug, Default)]
pub(super) struct SealedMemories(Mutex<Copies>);

#[derive(Debug, Default)]
struct Copies {
    all: Vec<(Identity, Weak<SealedMemory>)>,
    /// Held though unused, the last used at the end.
    kept: VecDeque<Arc<SealedMemory>>,
}

impl SealedMemories {
    /// The copy of a template's memory file, made if need be. One is made at a time.
    pub(super) async fn of(&self, path: &Path) -> Result<Arc<SealedMemory>, VmmError> {
        let failed = |source| io_error(&format!("copy the memory {}", path.display()), source);
        let file = File::open(path).map_err(failed)?;
        let identity = Identity::of(&file).map_err(failed)?;

        let mut copies = self.0.lock().await;
        copies.all.retain(|(_, memory)| memory.strong_count() > 0);
        let known = copies.all.iter().find(|(of, _)| *of == identity);
        let memory = match known.and_then(|(_, memory)| memory.upgrade()) {
            Some(memory) => memory,
            None => {
                let copied = tokio::task::spawn_blocking(move || SealedMemory::copy_of(&file));
                let copied = copied.await.map_err(io::Error::other).and_then(|copied| copied);
                let memory = Arc::new(copied.map_err(failed)?);
                copies.all.push((identity, Arc::downgrade(&memory)));
                memory
            }
        };
        copies.kept.retain(|kept| !Arc::ptr_eq(kept, &memory));
        copies.kept.push_back(memory.clone());
        if copies.kept.len() > KEPT {
            copies.kept.pop_front();
        }
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    fn template(dir: &Path, name: &str) -> std::path::PathBuf {
        let path = dir.join(name);
        let file = File::create(&path).unwrap();
        file.set_len(3 * CHUNK_BYTES as u64 + 4096).unwrap();
        file.write_all_at(b"in the middle", 2 * CHUNK_BYTES as u64 - 5).unwrap();
        path
    }

    #[tokio::test]
    async fn the_copy_is_the_file_and_nobody_can_change_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = template(dir.path(), "ram");
        let memory = SealedMemories::default().of(&path).await.unwrap();
        let open = memory.open().unwrap();
        let mut copied = vec![0; usize::try_from(open.metadata().unwrap().len()).unwrap()];
        open.read_exact_at(&mut copied, 0).unwrap();
        assert!(copied == std::fs::read(&path).unwrap());
        // Zero pages take no room.
        assert!(open.metadata().unwrap().blocks() * 512 <= 2 * PAGE_BYTES as u64);

        let writable = File::options()
            .write(true)
            .custom_flags(nix::libc::O_CLOEXEC)
            .open(format!("/proc/self/fd/{}", open.as_raw_fd()))
            .unwrap();
        assert!(writable.write_all_at(b"x", 0).is_err());
        assert!(writable.set_len(0).is_err());
    }

    #[tokio::test]
    async fn a_template_is_copied_once_while_it_is_used_and_the_oldest_are_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let memories = SealedMemories::default();
        let first = memories.of(&template(dir.path(), "0")).await.unwrap();
        let again = memories.of(&dir.path().join("0")).await.unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let unused = Arc::downgrade(&memories.of(&template(dir.path(), "1")).await.unwrap());
        assert!(unused.upgrade().is_some());
        for name in ["2", "3"] {
            memories.of(&template(dir.path(), name)).await.unwrap();
        }
        assert!(unused.upgrade().is_none());
        let used = memories.of(&dir.path().join("0")).await.unwrap();
        assert!(Arc::ptr_eq(&first, &used));
    }
}
