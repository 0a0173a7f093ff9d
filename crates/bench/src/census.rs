//! What a run has on this host: its VMM processes, control groups, memory files, VM directories and
//! networks.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sha2::{Digest, Sha256};

/// How deep below the mount of the control groups ours may be.
const CGROUP_DEPTH: u32 = 6;
const CGROUPS: &str = "/sys/fs/cgroup";
/// Where network namespaces and devices are listed.
const NAMESPACES: &str = "/run/netns";
const NETWORKS: [&str; 2] = [NAMESPACES, "/sys/class/net"];

/// The directories of a run: everything that names one of them is the run's.
#[derive(Clone, Debug)]
pub struct Places {
    /// The server's data directory.
    pub data: PathBuf,
    /// The server's directory of guest memory.
    pub memory: PathBuf,
    /// Where the floor's VMs have their files.
    pub floor: PathBuf,
    /// Where the floor's VMs have their memory.
    pub floor_memory: PathBuf,
}

/// A VMM process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vmm {
    /// Its number.
    pub pid: i32,
    /// The beginning of its command line.
    pub command: String,
}

impl Places {
    /// Everything of the run that is there. Called when nothing should be.
    pub fn leaks(&self) -> Vec<String> {
        let mut found: Vec<String> = self
            .vmms()
            .into_iter()
            .map(|vmm| format!("process {}: {}", vmm.pid, vmm.command))
            .collect();
        found.extend(self.cgroups().iter().map(|path| format!("cgroup {}", path.display())));
        found.extend(self.networks().iter().map(|path| format!("network {}", path.display())));
        for dir in [&self.memory, &self.floor_memory] {
            found.extend(names(dir).map(|path| format!("memory file {}", path.display())));
        }
        for dir in [self.data.join("vms"), self.data.join("pool"), self.floor.clone()] {
            found.extend(names(&dir).map(|path| format!("VM directory {}", path.display())));
        }
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let ours = [&self.data, &self.floor].map(|dir| format!("{}/", dir.display()));
        let of_ours = sockets.lines().filter(|line| ours.iter().any(|dir| line.contains(dir)));
        found.extend(of_ours.map(|line| format!("socket {line}")));
        found
    }

    /// Ends and removes what [`Self::leaks`] finds, once that was told.
    pub fn sweep(&self) {
        for vmm in self.vmms() {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(vmm.pid), Signal::SIGKILL);
        }
        for cgroup in self.cgroups().iter().rev() {
            // Busy as long as a process is in it; then it is told as a leak by the next look.
            let _ = fs::remove_dir(cgroup);
        }
        // A namespace is kept by the mount on its name; the devices in it go with it.
        for namespace in self.networks().iter().filter(|path| path.starts_with(NAMESPACES)) {
            let _ = umount2(namespace, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(namespace);
        }
        for dir in [&self.memory, &self.floor_memory] {
            let _ = fs::remove_dir_all(dir);
        }
    }

    /// The VMM processes of the run: their command line or an open file names one of its directories.
    pub fn vmms(&self) -> Vec<Vmm> {
        vmms_of(&[&self.data, &self.memory, &self.floor, &self.floor_memory])
    }

    /// How the server calls what it makes outside its directories: with the first digits of its data
    /// directory's hash.
    fn own_name(&self) -> String {
        let data = self.data.canonicalize().unwrap_or_else(|_| self.data.clone());
        let hash = Sha256::digest(data.as_os_str().as_bytes());
        let digits: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("skerry-{digits}")
    }

    /// Network namespaces and devices of the server.
    fn networks(&self) -> Vec<PathBuf> {
        let own = self.own_name();
        let is_own = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&own))
        };
        NETWORKS.iter().flat_map(|dir| names(Path::new(dir))).filter(is_own).collect()
    }

    /// The control groups of the server's VMs, parents before their children. The parents go
    /// with the server of the last VM.
    fn cgroups(&self) -> Vec<PathBuf> {
        let own = self.own_name();
        let mut found = Vec::new();
        let mut open = vec![(PathBuf::from(CGROUPS), 0)];
        while let Some((dir, depth)) = open.pop() {
            for path in names(&dir).filter(|path| path.is_dir() && !path.is_symlink()) {
                if path.components().any(|part| part.as_os_str() == own.as_str()) {
                    found.push(path.clone());
                }
                if depth < CGROUP_DEPTH {
                    open.push((path, depth + 1));
                }
            }
        }
        found.sort();
        found
    }
}

/// The VMM processes that name one of these directories.
pub fn vmms_of(dirs: &[&Path]) -> Vec<Vmm> {
    let mut found = Vec::new();
    for process in names(Path::new("/proc")) {
        let name = process.file_name().and_then(|name| name.to_str());
        let Some(pid) = name.and_then(|name| name.parse::<i32>().ok()) else { continue };
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if !command.contains("qemu-system") {
            continue;
        }
        let opened: Vec<PathBuf> =
            names(&process.join("fd")).filter_map(|fd| fs::read_link(fd).ok()).collect();
        let is_of = |dir: &&Path| {
            command.contains(&format!("{}/", dir.display()))
                || opened.iter().any(|path| path.starts_with(dir))
        };
        if dirs.iter().any(is_of) {
            found.push(Vmm { pid, command: command.chars().take(60).collect() });
        }
    }
    found
}

/// What a process takes of the host's memory, in bytes, with what it shares counted in proportion.
/// Source: `Pss` of `/proc/<pid>/smaps_rollup`.
pub fn proportional_bytes(pid: i32) -> std::io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| std::io::Error::other("no Pss in smaps_rollup"))
}

fn names(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_in_a_directory_of_the_run_is_told_and_what_is_swept_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        let places = Places {
            data: place("data"),
            memory: place("memory"),
            floor: place("floor"),
            floor_memory: place("floor-memory"),
        };
        assert_eq!(places.leaks(), Vec::<String>::new());
        for left in ["data/vms/one", "floor/two"] {
            fs::create_dir_all(dir.path().join(left)).unwrap();
        }
        fs::create_dir_all(&places.memory).unwrap();
        fs::write(places.memory.join("three.ram"), "x").unwrap();
        let leaks = places.leaks().join("\n");
        for name in ["VM directory", "vms/one", "floor/two", "memory file", "three.ram"] {
            assert!(leaks.contains(name), "{leaks}");
        }
        places.sweep();
        assert!(!places.memory.exists());
    }

    #[test]
    fn a_process_takes_memory() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(proportional_bytes(own).unwrap() > 100_000);
    }
}
