//! One hypervisor process: its identity, its end, and the explanation of its end.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    libc,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
};
use tokio::io::{Interest, unix::AsyncFd};
use tokio_util::task::TaskTracker;

use super::{
    qmp::{ShutdownNotice, ShutdownReason},
    spawn,
};
use crate::{
    Exit,
    procfs::{self, ProcessStat},
};

/// After the process's end its sockets hold at most a few buffers; reading them takes no longer.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(2);

/// How much of the process's own messages explains a crash.
const MESSAGES_KEPT_BYTES: usize = 1024;

/// A living process, and proof that it is that one.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) start_time_ticks: u64,
    pidfd: OwnedFd,
}

impl Process {
    /// `Ok(None)` when there is no such process, or only its corpse.
    pub(super) fn find(pid: u32) -> io::Result<Option<Self>> {
        let pidfd = match spawn::pidfd_open(pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Read after opening: the descriptor pins the process, so the time is this one's.
        match ProcessStat::read(pid)? {
            Some(stat) if stat.is_alive() => {
                Ok(Some(Self { pid, start_time_ticks: stat.start_time_ticks, pidfd }))
            }
            Some(_) | None => Ok(None),
        }
    }

    /// The user as which it runs.
    pub(super) fn uid(&self) -> io::Result<u32> {
        procfs::effective_uid(self.pid)
    }

    pub(super) fn kill(&self) -> io::Result<()> {
        spawn::kill(&self.pidfd)
    }

    /// Lets the process's files grow to `bytes`, unless they may already. What the process itself
    /// could not change, its parent's user may.
    pub(super) fn raise_file_size_limit(&self, bytes: u64) -> io::Result<()> {
        spawn::raise_file_size_limit(self.pid, bytes)
    }

    /// A future of the process's end, with its status when it was our child. The corpse is buried.
    pub(super) fn watch_end(
        &self,
    ) -> io::Result<impl Future<Output = Option<WaitStatus>> + Send + use<>> {
        let pidfd = self.pidfd.try_clone()?;
        // SAFETY: the descriptor is owned by the `AsyncFd`, which stays in this future until dropped.
        let readable = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(async move {
            // A pidfd becomes readable when its process ends, child of ours or not.
            let watched = readable.readable().await;
            if let Err(error) = watched {
                tracing::error!(%error, "the VMM process can no longer be watched");
            }
            // ECHILD: another life of ours was the parent, and init has buried it.
            waitid(Id::PIDFd(readable.get_ref().as_fd()), WaitPidFlag::WEXITED).ok()
        })
    }
}

/// Buries a child that ended on its own before anyone watched it.
pub(super) fn bury(pid: u32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    let _ = waitid(Id::Pid(nix::unistd::Pid::from_raw(pid)), WaitPidFlag::WEXITED);
}

/// What is learnt about a VM while it runs, to explain its end.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) notice: ShutdownNotice,
    kill_requested: AtomicBool,
    /// False when the control socket could not be had: then silence says nothing.
    control_watched: AtomicBool,
    messages: Mutex<Vec<u8>>,
    /// The tasks that read the process's sockets; they end with it.
    pub(super) readers: TaskTracker,
}

impl Facts {
    pub(super) fn request_kill(&self) {
        self.kill_requested.store(true, Ordering::SeqCst);
    }

    pub(super) fn control_is_watched(&self) {
        self.control_watched.store(true, Ordering::SeqCst);
    }

    /// Remembers the end of what the process said.
    pub(super) fn heard(&self, bytes: &[u8]) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.extend_from_slice(bytes);
        let surplus = messages.len().saturating_sub(MESSAGES_KEPT_BYTES);
        messages.drain(..surplus);
    }

    /// The last line, fit to be shown: the guest may have had a hand in it.
    fn last_message(&self) -> Option<String> {
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&messages);
        // Warnings explain nothing: the process went on after them.
        let tells = |line: &&str| !line.trim().is_empty() && !line.contains(": warning: ");
        let line = text.lines().rev().find(tells)?;
        Some(line.trim().chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect())
    }

    /// Waits for the last words, then says how it ended.
    pub(super) async fn explain(&self, status: Option<WaitStatus>) -> Exit {
        self.readers.close();
        let _ = tokio::time::timeout(LAST_WORDS_DEADLINE, self.readers.wait()).await;
        let killed = self.kill_requested.load(Ordering::SeqCst);
        match self.notice.get() {
            Some(ShutdownReason::GuestShutdown) => return Exit::PoweredOff,
            Some(ShutdownReason::GuestReset) => return Exit::Rebooted,
            Some(ShutdownReason::GuestPanic) => {
                return Exit::Crashed("the guest's kernel panicked".into());
            }
            Some(ShutdownReason::HostSignal) if !killed => {
                return Exit::Crashed("the VMM was ended by a signal".into());
            }
            Some(ShutdownReason::HostSignal | ShutdownReason::Other) | None => {}
        }
        if killed {
            return Exit::Killed;
        }
        match status {
            Some(WaitStatus::Signaled(_, signal, _)) => {
                Exit::Crashed(self.with_last_message(format!("the VMM was ended by {signal}")))
            }
            Some(WaitStatus::Exited(_, 0)) => Exit::Unknown,
            Some(WaitStatus::Exited(_, code)) => {
                Exit::Crashed(self.with_last_message(format!("the VMM ended with status {code}")))
            }
            Some(_) | None if self.control_watched.load(Ordering::SeqCst) => {
                Exit::Crashed("the VMM ended without the guest asking for it".into())
            }
            Some(_) | None => Exit::Unknown,
        }
    }

    fn with_last_message(&self, text: String) -> String {
        match self.last_message() {
            Some(message) => format!("{text}: {message}"),
            None => text,
        }
    }
}

/// Kills the process when dropped, unless told that the boot succeeded. A boot whose caller went
/// away must not leave a process behind.
#[derive(Debug)]
pub(super) struct KillOnDrop(Option<Arc<Process>>);

impl KillOnDrop {
    pub(super) fn new(process: Arc<Process>) -> Self {
        Self(Some(process))
    }

    pub(super) fn let_live(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(process) = &self.0
            && let Err(error) = process.kill()
        {
            tracing::error!(pid = process.pid, %error, "the VMM of a failed boot was not killed");
        }
    }
}
