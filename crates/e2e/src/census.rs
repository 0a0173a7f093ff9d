//! Counting what a server has on this host, to prove that nothing is left behind.

use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

/// What was found, by kind: each with the names, so that a difference explains itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    found: BTreeMap<&'static str, Vec<String>>,
}

impl Census {
    /// Looks at everything a server with this data directory could have made: its VMM processes,
    /// files of its VMs, memory files, cgroups, mounts, sockets, network namespaces (with what is in
    /// them), and what of its network is in the host's own namespace.
    #[must_use]
    pub fn take(data_dir: &Path, memory_dir: &Path, server_pid: Option<u32>) -> Self {
        let data = data_dir.to_string_lossy().into_owned();
        let memory = memory_dir.to_string_lossy().into_owned();
        let mut found = BTreeMap::new();
        found.insert("processes", processes(&[&data, &memory], server_pid));
        found.insert("vm files", files_below(&data_dir.join("vms")));
        found.insert("memory files", files_below(memory_dir));
        found.insert("cgroups", cgroups(data_dir));
        found.insert("mounts", lines_with("/proc/self/mounts", &data));
        found.insert("sockets", lines_with("/proc/net/unix", &format!("{data}/vms")));
        let tag = tag(data_dir);
        found.insert("network namespaces", network_namespaces(&tag));
        found.insert("network devices", network_devices(&tag));
        found.insert("packet filter tables", packet_filter_tables(&tag));
        Self { found }
    }

    /// The ids of the VMM processes.
    #[must_use]
    pub fn process_ids(&self) -> Vec<i32> {
        let names = self.found.get("processes").into_iter().flatten();
        names.filter_map(|name| name.split(':').next()?.parse().ok()).collect()
    }

    /// The network namespaces.
    #[must_use]
    pub fn network_namespaces(&self) -> &[String] {
        self.found.get("network namespaces").map_or(&[], Vec::as_slice)
    }

    /// What is here and was not `before`.
    #[must_use]
    pub fn since(mut self, before: &Self) -> Self {
        for (kind, names) in &mut self.found {
            let known = before.found.get(kind).map_or(&[][..], Vec::as_slice);
            names.retain(|name| !known.contains(name));
        }
        self
    }

    /// The number of things of each kind.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        self.found.iter().map(|(kind, names)| (*kind, names.len())).collect()
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, names) in &self.found {
            writeln!(f, "{kind}: {} {}", names.len(), names.join(" "))?;
        }
        Ok(())
    }
}

/// Processes whose open files or command line name one of `needles`, without the server itself and
/// this test.
fn processes(needles: &[&str], server_pid: Option<u32>) -> Vec<String> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == own || Some(pid) == server_pid {
            continue;
        }
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if !command.contains("qemu-system") {
            continue;
        }
        let opened: Vec<PathBuf> = std::fs::read_dir(entry.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .collect();
        let names = |needle: &&str| {
            command.contains(*needle)
                || opened.iter().any(|path| path.to_string_lossy().contains(*needle))
        };
        if needles.iter().any(names) {
            found.push(format!("{pid}:{}", command.chars().take(60).collect::<String>()));
        }
    }
    found
}

fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            found.push(path.to_string_lossy().into_owned());
            if path.is_dir() && !path.is_symlink() {
                open.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What the names of everything carry that the server with this data directory makes outside of it: the
/// first digits of the directory's hash.
fn tag(data_dir: &Path) -> String {
    let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    let hash = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    format!("{:08x}", u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]))
}

/// Cgroup directories of the server with this data directory.
fn cgroups(data_dir: &Path) -> Vec<String> {
    let ours = format!("skerry-{}/", tag(data_dir));
    let mut found = Vec::new();
    let mut open = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if !path.is_dir() || path.is_symlink() {
                continue;
            }
            let name = path.to_string_lossy().into_owned();
            if name.contains(&ours) {
                found.push(name);
            }
            if depth < 5 {
                open.push((path, depth + 1));
            }
        }
    }
    found.sort();
    found
}

fn lines_with(file: &str, needle: &str) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| line.contains(needle)).map(str::to_owned).collect()
}

/// Names of network namespaces: the hub's and those of VMs. Taps, pairs and rules live in them and end
/// with them.
fn network_namespaces(tag: &str) -> Vec<String> {
    let mut found = names_in("/run/netns");
    found.retain(|name| name.starts_with(&format!("skerry-{tag}")));
    found
}

/// Interfaces in the host's own namespace: the one that may be there, and those that must not.
fn network_devices(tag: &str) -> Vec<String> {
    let strays = ["tap0", "up0", "out0"];
    let mut found = names_in("/sys/class/net");
    found.retain(|name| *name == format!("sk-{tag}") || strays.contains(&name.as_str()));
    found
}

/// Tables of the host's own packet filter; only root sees them, and only root has any.
fn packet_filter_tables(tag: &str) -> Vec<String> {
    let listed = std::process::Command::new("nft").args(["list", "tables"]).output();
    let text = listed.map(|output| output.stdout).unwrap_or_default();
    let lines = String::from_utf8_lossy(&text).into_owned();
    lines
        .lines()
        .filter(|line| line.contains(&format!("skerry-{tag}")))
        .map(str::to_owned)
        .collect()
}

fn names_in(dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
