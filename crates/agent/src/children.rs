//! Every process started by the agent, and who may wait for it.
//!
//! PID 1 has to reap orphans it never started, and must not take away the exit of a command it did
//! start. So there is one place that reaps: a thread that learns of a zombie without reaping it,
//! takes the table's lock, reaps, and hands the exit to whoever is registered. Starting a process
//! holds the same lock from fork to registration, so an exit never comes too early; signals are sent
//! under it only to what is still registered, so they never reach a stranger who got the number next.

use std::{
    collections::HashMap,
    fs, io,
    process::Command,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};
use skerry_agent_protocol::message::ExecEnd;
use tokio::sync::oneshot;

/// The table of our own processes.
#[derive(Debug)]
pub(crate) struct Children {
    table: Mutex<HashMap<i32, oneshot::Sender<ExecEnd>>>,
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
        command: &mut Command,
    ) -> io::Result<(Pid, oneshot::Receiver<ExecEnd>)> {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.lock();
        let child = command.spawn()?;
        // Process ids fit pid_t by definition.
        let pid = i32::try_from(child.id()).map_err(|_| io::Error::from(Errno::ERANGE))?;
        table.insert(pid, sender);
        drop(table);
        self.started.notify_all();
        let pid = Pid::from_raw(pid);
        if self.reaping == Reaping::OwnOnly {
            let children = Arc::clone(self);
            thread::spawn(move || {
                while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
                    == Err(Errno::EINTR)
                {}
                children.reap(pid);
            });
        }
        Ok((pid, receiver))
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
                    if table.is_empty() {
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
        if let Some(waiting) = table.remove(&pid.as_raw()) {
            // Nobody may be interested any more.
            let _ = waiting.send(end);
        }
    }

    /// Signals the process group that `leader` leads, if we still own it.
    pub(crate) fn signal_group(&self, leader: Pid, signal: Signal) {
        let table = self.lock();
        if table.contains_key(&leader.as_raw()) {
            // The group may be empty by now.
            let _ = killpg(leader, signal);
        }
    }

    /// Signals every process of the session that `leader` leads, whatever group it moved to.
    pub(crate) fn signal_session(&self, leader: Pid, signal: Signal) {
        let table = self.lock();
        if !table.contains_key(&leader.as_raw()) {
            return;
        }
        let _ = killpg(leader, signal);
        for pid in session_members(leader) {
            let _ = kill(pid, signal);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<ExecEnd>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
