//! Where things are in the guest.

/// Kernel modules of the initial file system.
pub(super) const MODULES: &str = "/modules";
/// Their order: a file name a line.
pub(super) const MODULE_ORDER: &str = "/modules/order";
/// Where the root disk is mounted before it becomes `/`.
pub(super) const NEW_ROOT: &str = "/newroot";
/// `serial=` of the root disk.
pub(super) const ROOT_SERIAL: &str = "root";
/// The root disk when no serial says so.
pub(super) const ROOT_FALLBACK: &str = "/dev/vda";
/// Control groups, version 2.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";
/// The agent's own.
pub(super) const AGENT_CGROUP: &str = "/sys/fs/cgroup/agent";
/// Everybody else's.
pub(crate) const WORKLOAD_CGROUP: &str = "/sys/fs/cgroup/workload";
