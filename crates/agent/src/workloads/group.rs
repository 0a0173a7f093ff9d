//! The processes of one workload: a control group where the machine has them, else the session that its
//! first process leads.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    sys::signal::Signal,
    unistd::{Pid, SysconfVar, sysconf},
};

use crate::{Guest, children::Children, init::layout};

/// More processes than this are not looked at one by one.
const LOOKED_AT_MAX: usize = 1000;

/// Where a workload's processes are.
#[derive(Debug)]
pub(super) struct Group {
    children: Arc<Children>,
    cgroup: Option<Cgroup>,
}

#[derive(Debug)]
struct Cgroup {
    path: PathBuf,
    dir: Arc<OwnedFd>,
}

/// What a workload uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) cpu_used_ms: u64,
    pub(super) memory_bytes: u64,
    pub(super) processes: u32,
}

impl Group {
    /// A place for the processes of a workload. Where control groups do not work it goes without.
    pub(super) fn make(guest: &Guest, id: &str) -> Self {
        let cgroup = guest.workload_cgroup().and_then(|_| {
            let path = Path::new(layout::WORKLOAD_CGROUP).join(format!("skerry-{id}"));
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(_) => return None,
            }
            let dir = Arc::new(OwnedFd::from(fs::File::open(&path).ok()?));
            Some(Cgroup { path, dir })
        });
        Self { children: Arc::clone(guest.children()), cgroup }
    }

    /// The directory to start a process in.
    pub(super) fn dir(&self) -> Option<Arc<OwnedFd>> {
        self.cgroup.as_ref().map(|cgroup| Arc::clone(&cgroup.dir))
    }

    /// Asks all of them to end.
    pub(super) fn terminate(&self, leader: Pid) {
        self.children.signal_session(leader, Signal::SIGTERM);
        // A stopped process acts on it only when it is continued.
        self.children.signal_session(leader, Signal::SIGCONT);
    }

    /// Ends all of them, also those that have left the session.
    pub(super) fn kill(&self, leader: Pid) {
        self.children.signal_session(leader, Signal::SIGKILL);
        self.kill_rest();
    }

    /// Ends what the first process has left behind.
    pub(super) fn kill_rest(&self) {
        if let Some(cgroup) = &self.cgroup {
            // Without it (a kernel before 5.14) what has left the session stays.
            let _ = fs::write(cgroup.path.join("cgroup.kill"), "1");
        }
    }

    /// What they use now. Reads files of the kernel's.
    pub(super) fn usage(&self, leader: Option<Pid>) -> Usage {
        let pids = match (&self.cgroup, leader) {
            (Some(cgroup), _) => numbers(&cgroup.path.join("cgroup.procs")),
            (None, Some(leader)) => session(leader),
            (None, None) => Vec::new(),
        };
        let looked_at = pids.iter().take(LOOKED_AT_MAX);
        let cpu_used_ms = match &self.cgroup {
            Some(cgroup) => cpu_of_cgroup(&cgroup.path),
            None => looked_at.clone().filter_map(|pid| stat(*pid)).map(|stat| stat.cpu_ms).sum(),
        };
        Usage {
            cpu_used_ms,
            memory_bytes: looked_at.filter_map(|pid| resident_bytes(*pid)).sum(),
            processes: u32::try_from(pids.len()).unwrap_or(u32::MAX),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            // Whatever is left in it keeps it; the next one of the same name takes it over.
            let _ = fs::remove_dir(&cgroup.path);
        }
    }
}

fn numbers(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn cpu_of_cgroup(path: &Path) -> u64 {
    let text = fs::read_to_string(path.join("cpu.stat")).unwrap_or_default();
    let used = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    used.and_then(|used| used.parse::<u64>().ok()).unwrap_or(0) / 1000
}

struct Stat {
    session: i32,
    cpu_ms: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields after the command's name, which may hold anything: state is the first.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    Some(Stat {
        session: fields.get(3)?.parse().ok()?,
        cpu_ms: (ticks(11)? + ticks(12)?) * 1000 / ticks_per_second(),
    })
}

fn ticks_per_second() -> u64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0).unwrap_or(100)
}

fn resident_bytes(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    Some(pages * page.and_then(|page| u64::try_from(page).ok()).unwrap_or(4096))
}

fn session(leader: Pid) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| stat(*pid).is_some_and(|stat| stat.session == leader.as_raw()))
        .collect()
}
