//! Freezing the guest's file systems, and thawing them whatever becomes of the host.
//!
//! A write to a frozen file system waits in the kernel and cannot be interrupted. So that the agent can
//! always be told to thaw:
//!
//! - freezing, waiting and thawing are done by a thread of their own, which needs neither the threads
//!   for file operations (they may all be waiting in a write) nor any path: it holds the file systems
//!   open from the start;
//! - it thaws by itself when its time is over;
//! - the thread of the runtime writes to no file system, not even by closing or removing a file
//!   ([`OffThread`]); the agent's own words go to the console, which is not on a disk.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{errno::Errno, libc, unistd::syncfs};
use skerry_agent_protocol::{limits::THAW_AFTER_MAX_MS, message::FailureCode};
use tokio::{runtime::Handle, sync::oneshot, time::timeout};

use crate::{AgentError, files::about, init::log};

/// A thaw is a matter of moments, unless a freeze under way hangs on its disk.
const THAWED_WITHIN: Duration = Duration::from_secs(20);

/// A file system on a disk of the guest, mounted by the agent.
#[derive(Debug)]
pub(crate) struct FileSystem {
    /// Where it is mounted, for messages.
    pub(crate) mount_point: PathBuf,
    /// Any directory in it.
    pub(crate) directory: File,
}

// `linux/fs.h`; the argument is not looked at.
nix::ioctl_readwrite!(
    /// `FIFREEZE`
    freeze_file_system, b'X', 119, libc::c_int
);
nix::ioctl_readwrite!(
    /// `FITHAW`
    thaw_file_system, b'X', 120, libc::c_int
);

impl FileSystem {
    fn sync(&self) -> Result<(), AgentError> {
        syncfs(&self.directory).map_err(|errno| about(&self.mount_point)(errno.into()))
    }

    fn freeze(&self) -> Result<(), AgentError> {
        // SAFETY: the descriptor is open; the kernel ignores the argument.
        let outcome =
            unsafe { freeze_file_system(self.directory.as_raw_fd(), std::ptr::null_mut()) };
        match outcome {
            Ok(_) => Ok(()),
            Err(Errno::EBUSY) => {
                let place = self.mount_point.display();
                Err(other(&format!("{place}: frozen already by somebody else")))
            }
            Err(errno) => Err(about(&self.mount_point)(errno.into())),
        }
    }

    /// Returns whether it was frozen until now.
    fn thaw(&self) -> bool {
        // SAFETY: as in `freeze`.
        let outcome = unsafe { thaw_file_system(self.directory.as_raw_fd(), std::ptr::null_mut()) };
        match outcome {
            Ok(_) => true,
            // Not frozen: somebody in the guest has thawed it.
            Err(Errno::EINVAL) => false,
            Err(errno) => {
                log(&format!("thaw {}: {errno}", self.mount_point.display()));
                false
            }
        }
    }
}

/// What can be frozen, and the thread that keeps it so.
#[derive(Debug)]
pub(crate) struct Freezer {
    /// In the order in which they were mounted. None in a hosted guest, which is frozen by name only.
    file_systems: Mutex<Arc<[Arc<FileSystem>]>>,
    /// To the thread that was started last; it may have ended.
    keeper: Mutex<Option<mpsc::Sender<Order>>>,
}

enum Order {
    Prolong { thaw_after: Duration, done: oneshot::Sender<()> },
    Thaw { held: oneshot::Sender<bool> },
}

impl Freezer {
    pub(crate) fn new(file_systems: Vec<FileSystem>) -> Self {
        let file_systems: Arc<[_]> = file_systems.into_iter().map(Arc::new).collect();
        Self { file_systems: Mutex::new(file_systems), keeper: Mutex::default() }
    }

    /// Writes everything back. Blocks.
    pub(crate) fn sync(file_systems: &[Arc<FileSystem>]) -> Result<(), AgentError> {
        file_systems.iter().try_for_each(|file_system| file_system.sync())
    }

    pub(crate) fn file_systems(&self) -> Arc<[Arc<FileSystem>]> {
        Arc::clone(&self.file_systems.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A file system that was mounted since; a freeze under way does not reach it.
    pub(crate) fn hold_also(&self, file_system: FileSystem) {
        let mut all = self.file_systems.lock().unwrap_or_else(PoisonError::into_inner);
        *all = all.iter().cloned().chain([Arc::new(file_system)]).collect();
    }

    /// Holds the one mounted there no longer. While it is frozen, the freeze still does. The caller
    /// drops the answer where blocking is allowed.
    pub(crate) fn let_go(&self, mount_point: &Path) -> Vec<Arc<FileSystem>> {
        let mut all = self.file_systems.lock().unwrap_or_else(PoisonError::into_inner);
        let (gone, kept): (Vec<_>, Vec<_>) =
            all.iter().cloned().partition(|one| one.mount_point == mount_point);
        *all = kept.into();
        gone
    }

    /// Freezes for at most `thaw_after`, or prolongs a freeze by that. Given up in the middle, it
    /// leaves nothing frozen.
    pub(crate) async fn freeze(&self, thaw_after: Duration) -> Result<(), AgentError> {
        if thaw_after.is_zero() || thaw_after > Duration::from_millis(THAW_AFTER_MAX_MS) {
            return Err(AgentError::invalid(format!("thaw_after_ms: 1 to {THAW_AFTER_MAX_MS}")));
        }
        let (done, prolonged) = oneshot::channel();
        if self.order(Order::Prolong { thaw_after, done }) && prolonged.await.is_ok() {
            return Ok(());
        }
        let frozen = self.start(thaw_after)?;
        frozen.await.map_err(|_| other("the freeze was given up"))?
    }

    fn start(
        &self,
        thaw_after: Duration,
    ) -> Result<oneshot::Receiver<Result<(), AgentError>>, AgentError> {
        let mut keeper = self.lock();
        let (orders, received) = mpsc::channel();
        let (report, frozen) = oneshot::channel();
        let file_systems = self.file_systems();
        thread::Builder::new()
            .name(String::from("freezer"))
            .spawn(move || keep_frozen(&file_systems, thaw_after, &received, report))
            .map_err(|error| AgentError::from_io("freezing", &error))?;
        *keeper = Some(orders);
        Ok(frozen)
    }

    /// Thaws. Returns whether everything had been frozen since the last [`Freezer::freeze`].
    pub(crate) async fn thaw(&self) -> Result<bool, AgentError> {
        let (held, answer) = oneshot::channel();
        if !self.order(Order::Thaw { held }) {
            return Ok(false);
        }
        // No answer is the end of the thread: it has thawed already.
        let answer = async { answer.await.unwrap_or(false) };
        timeout(THAWED_WITHIN, answer)
            .await
            .map_err(|_| other("a freeze under way does not come to its end"))
    }

    /// Gives the thread an order; false if there is none to take it. Order and answer are lost if the
    /// thread ends meanwhile, and it ends only when nothing is frozen any more.
    fn order(&self, order: Order) -> bool {
        let mut keeper = self.lock();
        let taken = keeper.as_ref().is_some_and(|orders| orders.send(order).is_ok());
        if !taken {
            *keeper = None;
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Option<mpsc::Sender<Order>>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread: freezes, waits for the thaw or the end of the time, thaws.
fn keep_frozen(
    file_systems: &[Arc<FileSystem>],
    thaw_after: Duration,
    orders: &mpsc::Receiver<Order>,
    report: oneshot::Sender<Result<(), AgentError>>,
) {
    if let Err(error) = freeze_all(file_systems) {
        let _ = report.send(Err(error));
        return;
    }
    let mut deadline = Instant::now() + thaw_after;
    if report.send(Ok(())).is_err() {
        // Whoever asked does not wait any more, and will not ask for the thaw.
        thaw_all(file_systems);
        return;
    }
    loop {
        match orders.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Order::Prolong { thaw_after, done }) => {
                deadline = Instant::now() + thaw_after;
                let _ = done.send(());
            }
            Ok(Order::Thaw { held }) => {
                let _ = held.send(thaw_all(file_systems));
                return;
            }
            Err(RecvTimeoutError::Timeout) => {
                thaw_all(file_systems);
                log("file systems thawed: nobody asked for it in time");
                return;
            }
            // Another thread has taken this one's place, or the agent ends.
            Err(RecvTimeoutError::Disconnected) => {
                thaw_all(file_systems);
                return;
            }
        }
    }
}

fn freeze_all(file_systems: &[Arc<FileSystem>]) -> Result<(), AgentError> {
    // Most of the writing is done while others may still write.
    Freezer::sync(file_systems)?;
    // One may lie on another that was mounted before it.
    for (index, file_system) in file_systems.iter().enumerate().rev() {
        if let Err(error) = file_system.freeze() {
            thaw_all(&file_systems[index + 1..]);
            return Err(error);
        }
    }
    Ok(())
}

fn other(message: &str) -> AgentError {
    AgentError::refused(FailureCode::Other, message)
}

/// Returns whether all were frozen.
fn thaw_all(file_systems: &[Arc<FileSystem>]) -> bool {
    let not_held = file_systems.iter().filter(|file_system| !file_system.thaw()).count();
    not_held == 0
}

/// Something whose end may write to a file system (a file that others may have removed, a temporary
/// name): it ends on a thread for file operations, wherever it is dropped.
#[derive(Debug)]
pub(crate) struct OffThread<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> OffThread<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// Out of its protection.
    pub(crate) fn into_inner(mut self) -> Option<T> {
        self.0.take()
    }

    pub(crate) const fn get_mut(&mut self) -> Option<&mut T> {
        self.0.as_mut()
    }
}

impl<T: Send + 'static> Drop for OffThread<T> {
    fn drop(&mut self) {
        let Some(value) = self.0.take() else { return };
        // Outside of the runtime no thread is worth protecting.
        if let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn_blocking(move || drop(value)));
        }
    }
}

/// Opens a directory to hold on to its file system.
pub(crate) fn hold(mount_point: impl AsRef<Path>) -> io::Result<FileSystem> {
    let mount_point = mount_point.as_ref();
    Ok(FileSystem { mount_point: mount_point.to_owned(), directory: File::open(mount_point)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_freeze_holds_until_it_is_thawed() {
        let freezer = Freezer::new(Vec::new());
        assert!(!freezer.thaw().await.unwrap());
        freezer.freeze(Duration::from_secs(60)).await.unwrap();
        freezer.freeze(Duration::from_secs(60)).await.unwrap();
        assert!(freezer.thaw().await.unwrap());
        assert!(!freezer.thaw().await.unwrap());
    }

    #[tokio::test]
    async fn a_freeze_that_nobody_ends_ends_by_itself_and_says_so() {
        let freezer = Freezer::new(Vec::new());
        let (orders, received) = mpsc::channel();
        let (report, frozen) = oneshot::channel();
        keep_frozen(&[], Duration::from_millis(1), &received, report);
        frozen.await.unwrap().unwrap();
        drop(received);
        *freezer.lock() = Some(orders);
        assert!(!freezer.thaw().await.unwrap());
    }

    #[test]
    fn a_freeze_whose_asker_has_gone_is_taken_back() {
        let (_orders, received) = mpsc::channel();
        let (report, _) = oneshot::channel();
        // Returns at once instead of after a minute.
        keep_frozen(&[], Duration::from_secs(60), &received, report);
    }

    #[tokio::test]
    async fn a_freeze_begins_anew_after_one_that_ended_by_itself() {
        let freezer = Freezer::new(Vec::new());
        for _ in 0..50 {
            freezer.freeze(Duration::from_millis(1)).await.unwrap();
        }
        freezer.freeze(Duration::from_secs(60)).await.unwrap();
        assert!(freezer.thaw().await.unwrap());
    }

    #[tokio::test]
    async fn a_freeze_without_an_end_is_refused() {
        let freezer = Freezer::new(Vec::new());
        let too_long = Duration::from_millis(THAW_AFTER_MAX_MS + 1);
        for thaw_after in [Duration::ZERO, too_long] {
            assert!(freezer.freeze(thaw_after).await.is_err());
        }
        assert!(!freezer.thaw().await.unwrap());
    }

    #[tokio::test]
    async fn what_cannot_be_frozen_says_why_and_leaves_nothing_frozen() {
        // Its file system takes no orders, or we have no right to give them.
        let freezer = Freezer::new(vec![hold("/proc").unwrap()]);
        let error = freezer.freeze(Duration::from_secs(60)).await.unwrap_err();
        assert!(error.to_string().starts_with("/proc: "), "{error}");
        assert!(!freezer.thaw().await.unwrap());
    }

    #[tokio::test]
    async fn what_is_dropped_off_the_thread_is_dropped_elsewhere() {
        struct Tell(Option<oneshot::Sender<thread::ThreadId>>);
        impl Drop for Tell {
            fn drop(&mut self) {
                let _ = self.0.take().unwrap().send(thread::current().id());
            }
        }
        let (told, dropped_on) = oneshot::channel();
        drop(OffThread::new(Tell(Some(told))));
        assert_ne!(dropped_on.await.unwrap(), thread::current().id());
    }
}
