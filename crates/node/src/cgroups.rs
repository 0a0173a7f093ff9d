//! Control groups of VMM processes: version 2 where the host delegates cpu, memory and pids there,
//! else version 1, else none (the driver then limits the process by its resource limits).
//!
//! Facts from the kernel's `admin-guide/cgroup-v2.rst` and `cgroup-v1/`.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use skerry_model::{Shape, WorkspaceId, spec::CpuKind};

use crate::{CgroupPolicy, Error, layout::names_in};

/// What a VMM process may use beyond its guest's memory: its own code and heap, and under emulation
/// the cache of translated code.
const OVERHEAD_BYTES: u64 = 512 * 1024 * 1024;
/// Threads of one VMM process: virtual CPUs, I/O workers and a few more.
const PIDS_BASE: u32 = 128;
/// How long the kernel may take to let go of a group whose last process is gone.
const REMOVE_BOUND: Duration = Duration::from_secs(5);
const GROUP_PREFIX: &str = "skerry-vm-";
const REMOVE_PAUSE: Duration = Duration::from_millis(5);
const V1_CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "freezer"];
const V2_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Which kind of cgroups is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// The unified hierarchy.
    V2,
    /// One hierarchy for each controller.
    V1,
    /// None could be had.
    None,
}

/// How much a VM's group weighs against others for CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CpuWeight {
    /// As its shape says.
    OfShape,
    /// As little as possible: it is nobody's yet, and must not be felt by those who wait.
    Background,
}

/// Where the groups of VMs are made.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    flavour: Flavour,
    /// Our own group in each hierarchy, by controller (`""` for the unified one); VMs' groups are
    /// its children.
    parents: BTreeMap<String, PathBuf>,
    /// Why there are none.
    reason: Option<String>,
}

impl Cgroups {
    /// Finds what the host offers and makes our parent groups. `tag` tells servers of one host apart.
    pub fn open(policy: CgroupPolicy, tag: &str) -> Self {
        match policy {
            CgroupPolicy::Off => Self::none("switched off".to_owned()),
            CgroupPolicy::Auto => {
                let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
                let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
                Self::find(&own, &mounts, tag)
            }
        }
    }

    fn none(reason: String) -> Self {
        Self { flavour: Flavour::None, parents: BTreeMap::new(), reason: Some(reason) }
    }

    fn find(own: &str, mounts: &str, tag: &str) -> Self {
        let hierarchies = Hierarchies::parse(own, mounts);
        let mut reasons = Vec::new();
        match hierarchies.v2(tag) {
            Ok(parent) => {
                let parents = BTreeMap::from([(String::new(), parent)]);
                return Self { flavour: Flavour::V2, parents, reason: None };
            }
            Err(reason) => reasons.push(format!("v2: {reason}")),
        }
        match hierarchies.v1(tag) {
            Ok(parents) => return Self { flavour: Flavour::V1, parents, reason: None },
            Err(reason) => reasons.push(format!("v1: {reason}")),
        }
        Self::none(reasons.join("; "))
    }

    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// Why there are no cgroups, when there are none.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// The groups of a workspace's VM, whether they exist or not.
    pub fn paths(&self, workspace_id: WorkspaceId) -> Vec<PathBuf> {
        self.parents.values().map(|parent| parent.join(group_name(workspace_id))).collect()
    }

    /// Makes the VM's groups and sets their limits; what exists is set again. Returns the files into
    /// which the VMM's pid has to be written.
    pub fn ensure(
        &self,
        workspace_id: WorkspaceId,
        shape: &Shape,
        weight: CpuWeight,
    ) -> Result<Vec<PathBuf>, Error> {
        let mut procs = Vec::new();
        for (controller, parent) in &self.parents {
            let group = parent.join(group_name(workspace_id));
            make_group(&group).map_err(Error::path("making", &group))?;
            for (file, value) in limits(self.flavour, controller, shape, weight) {
                let file = group.join(file);
                fs::write(&file, value.as_bytes()).map_err(Error::path("writing", &file))?;
            }
            procs.push(group.join("cgroup.procs"));
        }
        Ok(procs)
    }

    /// Sets the weight of groups that are there.
    pub fn reweigh(
        &self,
        workspace_id: WorkspaceId,
        shape: &Shape,
        weight: CpuWeight,
    ) -> Result<(), Error> {
        for (controller, parent) in &self.parents {
            if let Some((file, value)) = cpu_limit(self.flavour, controller, shape, weight) {
                let file = parent.join(group_name(workspace_id)).join(file);
                fs::write(&file, value.as_bytes()).map_err(Error::path("writing", &file))?;
            }
        }
        Ok(())
    }

    /// Groups of VMs below our parents of which `known` says that no VM is in them.
    pub fn strays(&self, known: impl Fn(WorkspaceId, &Path) -> bool) -> Vec<PathBuf> {
        let mut strays = Vec::new();
        for parent in self.parents.values() {
            for name in names_in(parent).unwrap_or_default() {
                let group = parent.join(&name);
                let id =
                    name.strip_prefix(GROUP_PREFIX).and_then(|id| id.parse::<WorkspaceId>().ok());
                if id.is_some_and(|id| !known(id, &group)) {
                    strays.push(group);
                }
            }
        }
        strays
    }

    /// Removes our parent groups as far as no VM is in them.
    pub fn leave(&self) {
        for parent in self.parents.values() {
            if let Err(error) = fs::remove_dir(parent) {
                tracing::debug!(group = %parent.display(), %error, "cgroup left");
            }
        }
    }
}

fn group_name(workspace_id: WorkspaceId) -> String {
    format!("{GROUP_PREFIX}{workspace_id}")
}

fn make_group(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // Our parent goes when the last VM of an earlier life of the server goes.
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(group),
        other => other,
    }
}

/// The files to write in a VM's group and their values.
fn limits(
    flavour: Flavour,
    controller: &str,
    shape: &Shape,
    weight: CpuWeight,
) -> Vec<(&'static str, String)> {
    let memory = (shape.memory_mib.bytes() + OVERHEAD_BYTES).to_string();
    let pids = (PIDS_BASE + 4 * shape.vcpu_count.get()).to_string();
    let rest = match (flavour, controller) {
        (Flavour::V2, _) => vec![("memory.max", memory), ("pids.max", pids)],
        (Flavour::V1, "memory") => vec![("memory.limit_in_bytes", memory)],
        (Flavour::V1, "pids") => vec![("pids.max", pids)],
        (Flavour::V1 | Flavour::None, _) => Vec::new(),
    };
    cpu_limit(flavour, controller, shape, weight).into_iter().chain(rest).collect()
}

/// The file of the CPU weight and its value; `None` where this controller has none.
fn cpu_limit(
    flavour: Flavour,
    controller: &str,
    shape: &Shape,
    weight: CpuWeight,
) -> Option<(&'static str, String)> {
    let vcpus = u64::from(shape.vcpu_count.get().max(1));
    // A performance vCPU weighs four times a shared one.
    let units = match (weight, shape.cpu_kind) {
        (CpuWeight::OfShape, CpuKind::Shared) => vcpus,
        (CpuWeight::OfShape, CpuKind::Performance) => vcpus * 4,
        (CpuWeight::Background, CpuKind::Shared | CpuKind::Performance) => 0,
    };
    match (flavour, controller) {
        // Range 1 to 10,000, a sibling's default is 100.
        (Flavour::V2, _) => Some(("cpu.weight", (units * 25).clamp(1, 10_000).to_string())),
        // Range 2 to 262,144, a sibling's default is 1024.
        (Flavour::V1, "cpu") => Some(("cpu.shares", (units * 256).clamp(2, 262_144).to_string())),
        (Flavour::V1 | Flavour::None, _) => None,
    }
}

/// Removes a group, killing what is still in it. One that is not there is a success. Blocks up to a
/// few seconds.
pub(crate) fn remove_group(group: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + REMOVE_BOUND;
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The kernel says "busy" while a process is there or has just gone; there is no event
            // for "may be removed now" that both versions have.
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
                if Instant::now() >= deadline {
                    return Err(Error::path("removing", group)(error));
                }
                kill_members(group);
                std::thread::sleep(REMOVE_PAUSE);
            }
            Err(error) => return Err(Error::path("removing", group)(error)),
        }
    }
}

/// Kills every process of the group. Only VMM processes are ever put there.
fn kill_members(group: &Path) {
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1) {
        tracing::warn!(pid, group = %group.display(), "killing a process left in a cgroup");
        // It may be gone already: removing the group tells.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}

/// The mounted hierarchies and our own place in each.
#[derive(Debug, Default)]
struct Hierarchies {
    /// By controller, `""` for the unified one.
    own: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    /// From `/proc/self/cgroup` and `/proc/self/mountinfo` (cgroups(7), proc(5)).
    fn parse(own: &str, mounts: &str) -> Self {
        let mut memberships = BTreeMap::new();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            for controller in controllers.split(',') {
                memberships.insert(controller.to_owned(), path.to_owned());
            }
        }
        let mut hierarchies = Self::default();
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let ([_, _, _, root, point, ..], [kind, _, options, ..]) = (&left[..], &right[..])
            else {
                continue;
            };
            let controllers: Vec<&str> = match *kind {
                "cgroup2" => vec![""],
                "cgroup" => options.split(',').collect(),
                _ => continue,
            };
            for controller in controllers {
                let Some(path) = memberships.get(controller) else { continue };
                // A container may see only a part of the hierarchy: `root` is what is mounted.
                let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
                let below = below.strip_prefix("/").unwrap_or(below);
                let place = Path::new(point).join(below);
                let place = if place.is_dir() { place } else { PathBuf::from(point) };
                hierarchies.own.insert(controller.to_owned(), place);
            }
        }
        hierarchies
    }

    /// A limit of a group above ours holds for us too.
    fn memory_limit_bytes(&self) -> Option<u64> {
        let places = [("", "memory.max"), ("memory", "memory.limit_in_bytes")];
        let limits = places.iter().filter_map(|(controller, file)| {
            let own = self.own.get(*controller)?;
            own.ancestors()
                .map(|group| fs::read_to_string(group.join(file)))
                .take_while(Result::is_ok)
                // "max" is no limit.
                .filter_map(|text| text.ok()?.trim().parse::<u64>().ok())
                .min()
        });
        limits.min()
    }

    fn v2(&self, tag: &str) -> Result<PathBuf, String> {
        let own = self.own.get("").ok_or("not mounted")?;
        let read = |name: &str| fs::read_to_string(own.join(name)).unwrap_or_default();
        let offered = read("cgroup.controllers");
        for controller in V2_CONTROLLERS {
            if !offered.split_whitespace().any(|word| word == controller) {
                return Err(format!("controller {controller} is not delegated"));
            }
        }
        let enabled = read("cgroup.subtree_control");
        let all_enabled = V2_CONTROLLERS
            .iter()
            .all(|controller| enabled.split_whitespace().any(|word| word == *controller));
        if !all_enabled {
            // "No internal processes": a group other than the root that has processes cannot hand
            // controllers to its children. Ours is left for a child, but only if we are alone in it.
            leave_to_leaf(own)?;
            enable(own)?;
        }
        let parent = own.join(format!("skerry-{tag}"));
        make_group(&parent).map_err(|error| format!("{}: {error}", parent.display()))?;
        enable(&parent)?;
        Ok(parent)
    }

    fn v1(&self, tag: &str) -> Result<BTreeMap<String, PathBuf>, String> {
        let mut parents = BTreeMap::new();
        for controller in V1_CONTROLLERS {
            let own = self
                .own
                .get(controller)
                .ok_or_else(|| format!("controller {controller} is not mounted"))?;
            let parent = own.join(format!("skerry-{tag}"));
            make_group(&parent).map_err(|error| format!("{}: {error}", parent.display()))?;
            parents.insert(controller.to_owned(), parent);
        }
        Ok(parents)
    }
}

/// The smallest memory limit of the groups this process is in, in bytes; `None` without one.
pub(crate) fn own_memory_limit_bytes() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    Hierarchies::parse(&own, &mounts).memory_limit_bytes()
}

fn enable(group: &Path) -> Result<(), String> {
    let file = group.join("cgroup.subtree_control");
    fs::write(&file, "+cpu +memory +pids").map_err(|error| format!("{}: {error}", file.display()))
}

fn leave_to_leaf(own: &Path) -> Result<(), String> {
    let members = fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
    let ourselves = std::process::id().to_string();
    if members.lines().all(|pid| pid != ourselves) {
        return Ok(());
    }
    // The real root group may have processes and still delegate; it has no `cgroup.type`.
    if !own.join("cgroup.type").exists() {
        return Ok(());
    }
    if members.lines().any(|pid| pid != ourselves) {
        return Err("other processes are in our group: run the server as a unit of its own with Delegate=yes".to_owned());
    }
    let leaf = own.join("skerry-server");
    make_group(&leaf).map_err(|error| format!("{}: {error}", leaf.display()))?;
    fs::write(leaf.join("cgroup.procs"), ourselves)
        .map_err(|error| format!("{}: {error}", leaf.display()))
}

#[cfg(test)]
mod tests {
    use skerry_model::{DiskMib, MemMib, VcpuCount};

    use super::*;

    fn shape(cpu_kind: CpuKind) -> Shape {
        Shape { vcpu_count: VcpuCount(2), memory_mib: MemMib(512), disk_mib: DiskMib(64), cpu_kind }
    }

    #[test]
    fn a_performance_cpu_weighs_four_times_a_shared_one() {
        let of = |flavour, controller, kind| {
            limits(flavour, controller, &shape(kind), CpuWeight::OfShape)[0].1.clone()
        };
        assert_eq!(of(Flavour::V2, "", CpuKind::Shared), "50");
        assert_eq!(of(Flavour::V2, "", CpuKind::Performance), "200");
        assert_eq!(of(Flavour::V1, "cpu", CpuKind::Shared), "512");
        assert_eq!(of(Flavour::V1, "cpu", CpuKind::Performance), "2048");
        let freezer = limits(Flavour::V1, "freezer", &shape(CpuKind::Shared), CpuWeight::OfShape);
        assert_eq!(freezer, []);
    }

    #[test]
    fn our_own_place_is_found_in_nested_and_partly_mounted_hierarchies() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        for path in ["memory/inner", "cpu", "unified/mine"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let own = "5:memory:/outer/inner\n4:cpu,cpuacct:/gone\n0::/mine\n";
        let mounts = format!(
            "30 1 0:1 /outer {root}/memory rw - cgroup cgroup rw,memory\n\
             31 1 0:2 / {root}/cpu rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
             32 1 0:3 / {root}/unified rw - cgroup2 cgroup2 rw\n\
             33 1 0:4 / /proc rw - proc proc rw\n"
        );
        let found = Hierarchies::parse(own, &mounts).own;
        assert_eq!(found["memory"], dir.path().join("memory/inner"));
        assert_eq!(found["cpu"], dir.path().join("cpu"));
        assert_eq!(found[""], dir.path().join("unified/mine"));
    }

    #[test]
    fn a_host_that_delegates_nothing_gives_no_cgroups_and_a_reason() {
        let found = Cgroups::find("0::/\n", "", "x");
        assert_eq!(found.flavour(), Flavour::None);
        assert_eq!(found.reason(), Some("v2: not mounted; v1: controller cpu is not mounted"));
    }

    #[test]
    fn the_smallest_limit_of_our_own_group_and_those_above_counts() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("outer/inner")).unwrap();
        let file = |group: &str| dir.path().join(group).join("memory.limit_in_bytes");
        for (group, limit) in
            [("", "9223372036854771712"), ("outer", "1000"), ("outer/inner", "max")]
        {
            fs::write(file(group), format!("{limit}\n")).unwrap();
        }
        let mounts = format!("30 1 0:1 / {} rw - cgroup cgroup rw,memory\n", dir.path().display());
        let found = Hierarchies::parse("5:memory:/outer/inner\n", &mounts);
        assert_eq!(found.memory_limit_bytes(), Some(1000));
        assert_eq!(Hierarchies::default().memory_limit_bytes(), None);
    }

    #[test]
    fn a_delegated_unified_group_is_used_and_its_controllers_are_handed_on() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        let mounts = format!("32 1 0:3 / {} rw - cgroup2 cgroup2 rw\n", dir.path().display());
        let found = Cgroups::find("0::/\n", &mounts, "x");
        assert_eq!(found.flavour(), Flavour::V2);
        let id = WorkspaceId::from_u128(7);
        let procs = found.ensure(id, &shape(CpuKind::Shared), CpuWeight::Background).unwrap();
        assert_eq!(procs, [dir.path().join(format!("skerry-x/skerry-vm-{id}/cgroup.procs"))]);
        let memory = fs::read_to_string(found.paths(id)[0].join("memory.max")).unwrap();
        assert_eq!(memory, (1024_u64 * 1024 * 1024).to_string());
        assert_eq!(found.strays(|_, _| false), found.paths(id));
        assert!(found.strays(|known, _| known == id).is_empty());

        let weight = || fs::read_to_string(found.paths(id)[0].join("cpu.weight")).unwrap();
        assert_eq!(weight(), "1");
        found.reweigh(id, &shape(CpuKind::Shared), CpuWeight::OfShape).unwrap();
        assert_eq!(weight(), "50");
    }
}
