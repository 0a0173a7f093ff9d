//! The agent's own protection: it must be the last to be killed for memory.

use std::fs;

use nix::sys::resource::{Resource, setrlimit};

use super::{console::log, layout};

const FILES_SOFT: u64 = 65_536;
const FILES_HARD: u64 = 1_048_576;

/// Exempts the agent from the memory killer, puts it into a cgroup of its own and raises the limit
/// of open files. Whatever does not work is reported: the agent works without.
pub(super) fn protect() {
    report("oom_score_adj", fs::write("/proc/self/oom_score_adj", "-1000"));
    for group in [layout::AGENT_CGROUP, layout::WORKLOAD_CGROUP] {
        report(group, fs::create_dir_all(group));
    }
    report("agent cgroup", fs::write(format!("{}/cgroup.procs", layout::AGENT_CGROUP), "0"));
    report(
        "open files",
        setrlimit(Resource::RLIMIT_NOFILE, FILES_SOFT, FILES_HARD).map_err(Into::into),
    );
}

fn report(what: &str, outcome: std::io::Result<()>) {
    if let Err(error) = outcome {
        log(&format!("{what}: {error}"));
    }
}
