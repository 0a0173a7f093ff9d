//! Network namespaces with a name: an open file keeps one alive, the name keeps it across the death of
//! this process and shows it to `ip netns`.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use crate::Error;

/// Where `ip-netns(8)` keeps its names.
pub(super) const NAMES_DIR: &str = "/run/netns";

/// One namespace.
#[derive(Debug)]
pub(super) struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// A new namespace with nothing in it, under a name that is free. Blocks.
    pub fn make(name: &str) -> Result<Self, Error> {
        let path = path_of(name);
        fs::create_dir_all(NAMES_DIR).map_err(Error::path("making", Path::new(NAMES_DIR)))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::path("making", &path))?;
        let made = in_new_thread(|| -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            // The thread's own: what the process has is still the old one.
            let own = Path::new("/proc/thread-self/ns/net");
            let nothing = None::<&Path>;
            mount(Some(own), &path, nothing, MsFlags::MS_BIND, nothing)?;
            Ok(())
        });
        match made {
            Ok(()) => Self::open(name),
            Err(error) => {
                // The caller's ledger or sweep tries again if this fails.
                let _ = fs::remove_file(&path);
                Err(Error::path("making the network namespace", &path)(error))
            }
        }
    }

    /// The one with this name. Blocks.
    pub fn open(name: &str) -> Result<Self, Error> {
        let path = path_of(name);
        let file = File::open(&path).map_err(Error::path("opening", &path))?;
        Ok(Self { name: name.to_owned(), file })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does `work` inside, on a thread of its own that ends with it: no thread of a pool is ever in
    /// a namespace in which it does not expect to be. Blocks.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, Error> {
        in_new_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            work()
        })
        .map_err(Error::io(format!("in the network namespace {}", self.name)))
    }

    /// Whether something of this name is there.
    pub fn exists(name: &str) -> bool {
        path_of(name).exists()
    }

    /// Removes the name. The namespace ends with its last user. That there is none is a success.
    /// Blocks.
    pub fn remove(name: &str) -> Result<(), Error> {
        let path = path_of(name);
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: a name that died before it was given to anything.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(Error::path("unmounting", &path)(errno.into())),
        }
        crate::layout::remove_file(&path)
    }

    /// The names that begin with `prefix`. Blocks.
    pub fn names(prefix: &str) -> Result<Vec<String>, Error> {
        let all = crate::layout::names_in(Path::new(NAMES_DIR))?;
        Ok(all.into_iter().filter(|name| name.starts_with(prefix)).collect())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NAMES_DIR).join(name)
}

pub(super) fn in_new_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
