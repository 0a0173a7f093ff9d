//! Every process started by the agent, and who may wait for it.
//!
//! PID 1 has to reap orphans it never started, and must not take away the exit of a command it did
//! start. So there is one place that reaps: a thread that learns of a zombie without reaping it,
//! takes the table's lock, reaps, and hands the exit to whoever is registered. A process is registered
//! before it exists, under a number that the kernel fills in when it makes it, so an exit never comes
//! too early, and starting one holds no lock: a program that takes for ever to load (from a file system
//! that hangs) holds up nobody else. Signals are sent under the lock and only to what is still
//! registered, so they never reach a stranger who got the number next.

use std::{
    fs,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        signal::{Signal, kill, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};
use skerry_agent_protocol::message::ExecEnd;
use tokio::sync::oneshot;

use crate::exec::launch::{Launch, LaunchError};

/// One of our own processes.
#[derive(Debug)]
struct Own {
    /// 0 until the process exists.
    pid: Arc<AtomicI32>,
    ended: oneshot::Sender<ExecEnd>,
}

/// The table of our own processes.
#[derive(Debug)]
pub(crate) struct Children {
    table: Mutex<Vec<Own>>,
    started: Condvar,
    reaping: Reaping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaping {
    /// One thread reaps everything ([`Children::reap_forever`]).
    Everything,
    /// A thread for each of our own; other children of the process are not ours to touch.
    OwnOnly,
}

impl Children {
    /// For PID 1; [`Children::reap_forever`] has to run on a thread of its own.
    pub(crate) fn of_init() -> Self {
        Self::new(Reaping::Everything)
    }

    /// For a process that may have other children.
    pub(crate) fn of_a_process() -> Self {
        Self::new(Reaping::OwnOnly)
    }

    fn new(reaping: Reaping) -> Self {
        Self { table: Mutex::default(), started: Condvar::new(), reaping }
    }

    /// Starts a process; the receiver gets its end. Blocks until the program is running.
    pub(crate) fn start(
        self: &Arc<Self>,
        launch: &Launch<'_>,
    ) -> Result<(Pid, oneshot::Receiver<ExecEnd>), LaunchError> {
        let (ended, receiver) = oneshot::channel();
        let pid = Arc::new(AtomicI32::new(0));
        self.lock().push(Own { pid: Arc::clone(&pid), ended });
        let started = launch.start(&pid);
        // The reaper has seen the number by now, or is where it can be woken.
        drop(self.lock());
        self.started.notify_all();
        let leader = match started {
            Ok(leader) => leader,
            Err(error) => {
                self.forget(&pid);
                return Err(error);
            }
        };
        if self.reaping == Reaping::OwnOnly {
            let children = Arc::clone(self);
            thread::spawn(move || {
                while waitid(Id::Pid(leader), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
                    == Err(Errno::EINTR)
                {}
                children.reap(leader);
            });
        }
        Ok((leader, receiver))
    }

    /// Takes back what did not start.
    fn forget(&self, pid: &Arc<AtomicI32>) {
        let mut table = self.lock();
        // Not there: the reaper was faster, and the number may be somebody else's by now.
        let Some(index) = table.iter().position(|own| Arc::ptr_eq(&own.pid, pid)) else { return };
        table.swap_remove(index);
        let pid = pid.load(Ordering::Acquire);
        if pid > 0 {
            // A process that failed to become the program has ended, or is about to.
            let _ = waitpid(Pid::from_raw(pid), None);
        }
    }

    /// Reaps until the machine goes down. PID 1 alone may call this.
    pub(crate) fn reap_forever(&self) {
        loop {
            match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        self.reap(pid);
                    }
                }
                Err(Errno::ECHILD) => {
                    // No process is left but us; only a start of ours can change that.
                    let table = self.lock();
                    if table.iter().all(|own| own.pid.load(Ordering::Acquire) == 0) {
                        drop(self.started.wait(table));
                    }
                }
                Err(_) => {}
            }
        }
    }

    fn reap(&self, pid: Pid) {
        let mut table = self.lock();
        let Ok(status) = waitpid(pid, Some(WaitPidFlag::WNOHANG)) else { return };
        let end = match status {
            // The kernel's codes have eight bits, its signals fewer.
            WaitStatus::Exited(_, code) => ExecEnd::Code(u8::try_from(code & 0xFF).unwrap_or(255)),
            WaitStatus::Signaled(_, signal, _) => {
                ExecEnd::Signal(u8::try_from(signal as i32).unwrap_or(0))
            }
            WaitStatus::Stopped(..)
            | WaitStatus::Continued(_)
            | WaitStatus::PtraceEvent(..)
            | WaitStatus::PtraceSyscall(_)
            | WaitStatus::StillAlive => return,
        };
        if let Some(index) = position(&table, pid) {
            // Nobody may be interested any more.
            let _ = table.swap_remove(index).ended.send(end);
        }
    }

    /// Signals the process group that `leader` leads, if we still own it.
    pub(crate) fn signal_group(&self, leader: Pid, signal: Signal) {
        let table = self.lock();
        if position(&table, leader).is_some() {
            // The group may be empty by now.
            let _ = killpg(leader, signal);
        }
    }

    /// Signals every process of the session that `leader` leads, whatever group it moved to.
    pub(crate) fn signal_session(&self, leader: Pid, signal: Signal) {
        let table = self.lock();
        if position(&table, leader).is_none() {
            return;
        }
        let _ = killpg(leader, signal);
        for pid in session_members(leader) {
            let _ = kill(pid, signal);
        }
    }

    /// Gives a process that was started in the background the same share as others, if we still own it:
    /// also being killed takes time on a processor.
    pub(crate) fn hurry(&self, leader: Pid) {
        let table = self.lock();
        if position(&table, leader).is_some() {
            let parameters = libc::sched_param { sched_priority: 0 };
            // SAFETY: a plain system call that reads its argument. It fails only if it is not needed.
            unsafe {
                libc::sched_setscheduler(leader.as_raw(), libc::SCHED_OTHER, &raw const parameters)
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Own>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the table has this process.
fn position(table: &[Own], pid: Pid) -> Option<usize> {
    table.iter().position(|own| own.pid.load(Ordering::Acquire) == pid.as_raw())
}

/// The processes whose session is `leader`'s and that are not in its own group.
fn session_members(leader: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Fields after the command's name, which may hold anything: state, ppid, pgrp, session.
            let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
            let mut fields = fields.split(' ').skip(2).map(str::parse::<i32>);
            let (group, session) = (fields.next(), fields.next());
            session == Some(Ok(leader.as_raw())) && group != Some(Ok(leader.as_raw()))
        })
        .map(Pid::from_raw)
        .collect()
}
