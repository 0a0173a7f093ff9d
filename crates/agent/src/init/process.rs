//! The agent's own protection. From the memory killer it needs none: the kernel never picks the first
//! process.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
};

use nix::sys::resource::{Resource, setrlimit};

use super::{console::log, layout};

const FILES_SOFT: u64 = 65_536;
const FILES_HARD: u64 = 1_048_576;

/// Puts the agent into a cgroup of its own and raises the limit of open files. Whatever does not work
/// is reported: the agent works without.
pub(super) fn protect() {
    for group in [layout::AGENT_CGROUP, layout::WORKLOAD_CGROUP] {
        report(group, fs::create_dir_all(group));
    }
    report("agent cgroup", fs::write(format!("{}/cgroup.procs", layout::AGENT_CGROUP), "0"));
    report(
        "open files",
        setrlimit(Resource::RLIMIT_NOFILE, FILES_SOFT, FILES_HARD).map_err(Into::into),
    );
}

/// The cgroup of everybody else, for starting processes in it.
pub(super) fn workload_cgroup() -> Option<OwnedFd> {
    File::open(layout::WORKLOAD_CGROUP).ok().map(OwnedFd::from)
}

fn report(what: &str, outcome: std::io::Result<()>) {
    if let Err(error) = outcome {
        log(&format!("{what}: {error}"));
    }
}
