//! The machine under a node or a whole server: real directories, images and cgroups; the fake
//! hypervisor's host; the real agent as the guest, in this process. Other crates' tests include this
//! file by its path.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, symlink},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::stream::{FuturesUnordered, StreamExt};
use sha2::{Digest, Sha256};
use skerry_agent::Guest;
use skerry_model::{
    Timestamp, WorkspaceId,
    spec::{ImageDigest, ImageRef},
};
use skerry_node::images::{BootManifest, ImageManifest, SealedFile};
use skerry_vmm::{
    BootSpec, Cable,
    fake::{FakeGuest, FakeGuestIo, FakeHost, FakeMemory, GuestEnd, GuestStart},
};
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    sync::watch,
    task::JoinSet,
};

/// What a channel inside a guest holds before its writer waits.
const CHANNEL_BYTES: usize = 64 * 1024;

/// Everything that survives a crash of whoever runs VMs on it.
pub struct Machine {
    pub dir: tempfile::TempDir,
    pub host: FakeHost,
    pub image: ImageDigest,
    /// Every boot, in order.
    pub boots: watch::Sender<Vec<BootSpec>>,
    /// The part of each guest's memory that lives on in saved states, by the directory of its VM's
    /// sockets.
    pub memories: watch::Sender<BTreeMap<PathBuf, FakeMemory>>,
    /// What guests that run now are told to do by themselves: `None` is to go on.
    pub guest_end: watch::Sender<Option<GuestEnd>>,
}

impl Machine {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("skn").tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        let image = write_images(&dir.path().join("images"));
        let boots = watch::Sender::new(Vec::new());
        let guest_end = watch::Sender::new(None);
        let home = dir.path().join("home");
        let memories = watch::Sender::new(BTreeMap::new());
        let host = FakeHost::new(guest(home, boots.clone(), memories.clone(), guest_end.clone()));
        Self { dir, host, image, boots, memories, guest_end }
    }

    pub fn image_dir(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn memory_dir(&self) -> PathBuf {
        self.dir.path().join("memory")
    }

    pub fn vm_dir(&self, workspace: u128) -> PathBuf {
        self.data_dir().join("vms").join(WorkspaceId::from_u128(workspace).to_string())
    }

    /// Guests boot with another kernel from now on.
    pub fn replace_kernel(&self, content: &[u8]) {
        let store = self.image_dir();
        write_boot(&store, "boot@1111111111111111", content);
        fs::remove_file(store.join("boot")).unwrap();
        symlink("boot@1111111111111111", store.join("boot")).unwrap();
    }

    /// The uids of the VMs that exist now.
    pub fn live_uids(&self) -> BTreeSet<u32> {
        let running = self.host.running();
        let lives = |spec: &&BootSpec| running.iter().any(|vm| vm.run_dir == spec.run_dir);
        self.boots.borrow().iter().filter(lives).filter_map(|spec| spec.sandbox.uid).collect()
    }

    /// Waits until so many guests have been booted in all.
    pub async fn booted(&self, count: usize) {
        self.boots.subscribe().wait_for(|boots| boots.len() >= count).await.unwrap();
    }

    /// Everything a VM of this workspace could have left on this machine, apart from the directory
    /// with its disk and logs.
    pub fn held(&self, workspace: u128) -> Vec<String> {
        let id = WorkspaceId::from_u128(workspace);
        let mut held: Vec<String> =
            self.host.running().iter().map(|record| format!("process {}", record.pid)).collect();
        held.extend(names(&self.memory_dir()).into_iter().map(|name| format!("memory {name}")));
        let run_dir = self.vm_dir(workspace).join("run");
        if run_dir.exists() {
            held.push("run directory".to_owned());
        }
        for group in self.own_groups() {
            let group = group.join(format!("skerry-vm-{id}"));
            if group.exists() {
                held.push(format!("cgroup {}", group.display()));
            }
        }
        for name in names(&self.vm_dir(workspace)).iter().filter(|name| name.ends_with(".qcow2")) {
            let found = fs::metadata(self.vm_dir(workspace).join(name)).unwrap();
            if found.uid() != nix::unistd::geteuid().as_raw() {
                held.push(format!("disk {name} of uid {}", found.uid()));
            }
        }
        held
    }

    /// Whether the workspace has a disk.
    pub fn has_disk(&self, workspace: u128) -> bool {
        self.vm_dir(workspace).join("disk.json").exists()
    }

    /// Everything that is nobody's: VMs that wait or are being made, their groups, directories and
    /// sockets, and templates that are being made.
    pub fn nobodys(&self) -> Vec<String> {
        let mut found = names(&self.data_dir().join("pool"));
        found.extend(names(&self.data_dir().join("run")));
        found.extend(self.unfinished_templates());
        found
    }

    fn unfinished_templates(&self) -> impl Iterator<Item = String> {
        let names = names(&self.data_dir().join("templates"));
        names.into_iter().filter(|name| name.starts_with('.'))
    }

    /// The keys of the templates.
    pub fn templates(&self) -> Vec<String> {
        let names = names(&self.data_dir().join("templates"));
        names.into_iter().filter(|name| !name.starts_with('.')).collect()
    }

    /// The frozen layers of disks.
    pub fn layers(&self) -> Vec<String> {
        let names = names(&self.data_dir().join("layers"));
        names.into_iter().filter(|name| name.ends_with(".qcow2")).collect()
    }

    /// Our control groups that a VM could be in.
    pub fn groups(&self) -> Vec<String> {
        let groups = self.own_groups().into_iter().flat_map(|group| names(&group));
        groups.filter(|name| name.starts_with("skerry-vm-")).collect()
    }

    /// The weight for CPU time of a VM's control group; `None` when there are no groups.
    pub fn cpu_weight(&self, number: &str) -> Option<u64> {
        let groups = self.own_groups().into_iter();
        let mut groups = groups.map(|group| group.join(format!("skerry-vm-{number}")));
        groups.find_map(|group| {
            let read = |name: &str| fs::read_to_string(group.join(name)).ok();
            let weight = read("cpu.weight").or_else(|| read("cpu.shares"))?;
            Some(weight.trim().parse().unwrap())
        })
    }

    /// The groups of this world's node, which carry a hash of the data directory's path.
    fn own_groups(&self) -> Vec<PathBuf> {
        let data_dir = self.data_dir();
        let path = data_dir.canonicalize().unwrap_or(data_dir);
        let digest = Sha256::digest(path.as_os_str().as_bytes());
        let tag: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut found = Vec::new();
        let name = format!("skerry-{tag}");
        find(Path::new("/sys/fs/cgroup"), &|found| found == name, 6, &mut found);
        found.into_iter().map(PathBuf::from).collect()
    }

    /// [`World::held`], and the directory too.
    pub fn left(&self, workspace: u128) -> Vec<String> {
        let mut left = self.held(workspace);
        if self.vm_dir(workspace).exists() {
            left.push(format!("directory with {:?}", names(&self.vm_dir(workspace))));
        }
        left
    }
}

impl Drop for Machine {
    /// A test may end with VMs running; their groups are empty, for fake processes are in none.
    fn drop(&mut self) {
        for group in self.own_groups() {
            for child in names(&group) {
                let _ = fs::remove_dir(group.join(child));
            }
            let _ = fs::remove_dir(group);
        }
    }
}

pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Everything below a directory, `depth` levels down, whose name is `wanted`. Links are not followed.
pub fn find(below: &Path, wanted: &dyn Fn(&str) -> bool, depth: usize, found: &mut Vec<String>) {
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        let path = entry.path();
        if wanted(&entry.file_name().to_string_lossy()) {
            found.push(path.display().to_string());
        }
        if depth > 0 && path.is_dir() && !path.is_symlink() {
            find(&path, wanted, depth - 1, found);
        }
    }
}

/// The real agent, serving one connection after the other until it is told to power off.
fn guest(
    home: PathBuf,
    boots: watch::Sender<Vec<BootSpec>>,
    memories: watch::Sender<BTreeMap<PathBuf, FakeMemory>>,
    guest_end: watch::Sender<Option<GuestEnd>>,
) -> FakeGuest {
    Arc::new(move |mut io: FakeGuestIo| {
        let home = home.clone();
        let mut told = guest_end.subscribe();
        let mut boot = io.spec.clone();
        if let Cable::Tap { tap } = &mut boot.cable {
            // It is the process's, and goes with it.
            *tap = None;
        }
        boots.send_modify(|boots| boots.push(boot));
        memories.send_modify(|memories| {
            memories.insert(io.spec.run_dir.clone(), io.memory.clone());
        });
        if io.start == GuestStart::Booted {
            fill_template(&io);
        }
        Box::pin(async move {
            let guest = Arc::new(Guest::hosted(home));
            // A guest goes on when the host's disk is full.
            let _ = io.console.print("the guest boots\n");
            let mut sessions = JoinSet::new();
            let mut channels = FuturesUnordered::new();
            loop {
                tokio::select! {
                    connection = io.connections.recv() => match connection {
                        Some(stream) => {
                            let guest = Arc::clone(&guest);
                            let (theirs, ours) = tokio::io::duplex(CHANNEL_BYTES);
                            sessions.spawn(async move { skerry_agent::serve(ours, &guest).await });
                            channels.push(carry(stream, theirs));
                        }
                        None => return GuestEnd::Crashed("no more connections".to_owned()),
                    },
                    _ = channels.next(), if !channels.is_empty() => {}
                    Ok(end) = told.wait_for(Option::is_some) => {
                        return end.clone().expect("waited for");
                    }
                    () = guest.powering_off() => break,
                }
            }
            // The last answer goes out before the power does.
            tokio::join!(async { while sessions.join_next().await.is_some() {} }, async {
                while channels.next().await.is_some() {}
            },);
            GuestEnd::PoweredOff
        })
    })
}

/// What a guest that a template is made of has in its memory and on its disk once it has booted.
fn fill_template(io: &FakeGuestIo) {
    let overlay = io.spec.disk.as_ref().map(|disk| disk.overlay.clone());
    let in_pool = |path: &PathBuf| path.ancestors().nth(2).is_some_and(|dir| dir.ends_with("pool"));
    if let Some(overlay) = overlay.filter(in_pool) {
        io.memory.write(&vec![7; 300 << 10]);
        let mut overlay = fs::OpenOptions::new().append(true).open(overlay).unwrap();
        let _ = std::io::Write::write_all(&mut overlay, &[7; 8]);
    }
}

/// Carries bytes between the host and the agent, which has tasks of its own, as part of the guest:
/// a guest that is paused says nothing.
async fn carry(host: DuplexStream, agent: DuplexStream) {
    let (mut from_host, mut to_host) = tokio::io::split(host);
    let (mut from_agent, mut to_agent) = tokio::io::split(agent);
    let inward = async {
        let _ = tokio::io::copy(&mut from_host, &mut to_agent).await;
        let _ = to_agent.shutdown().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = inward => {}
        _ = tokio::io::copy(&mut from_agent, &mut to_host) => {}
    }
}

/// An image store with one small image and boot files, as a builder would leave them.
fn write_images(store: &Path) -> ImageDigest {
    fs::create_dir(store).unwrap();
    let disk = write_file(store, "disk", &[0_u8; 1 << 20]);
    let digits = disk.digest.0.strip_prefix("sha256:").unwrap();
    let image_dir = store.join(format!("base@{}", &digits[..16]));
    fs::create_dir(&image_dir).unwrap();
    fs::rename(store.join("disk"), image_dir.join("root.ext4")).unwrap();
    let manifest = ImageManifest {
        format: 1,
        name: ImageRef("base".into()),
        description: "for tests".into(),
        category: "os".into(),
        min_memory_mib: 64,
        allocated_bytes: disk.length_bytes,
        disk: disk.clone(),
        built_at: Timestamp::UNIX_EPOCH,
        recipe_digest: "none".into(),
        packages: Vec::new(),
        oci: None,
    };
    fs::write(image_dir.join("image.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    write_boot(store, "boot@0000000000000000", b"kernel");
    symlink("boot@0000000000000000", store.join("boot")).unwrap();
    disk.digest
}

fn write_boot(store: &Path, name: &str, kernel: &[u8]) {
    let boot_dir = store.join(name);
    fs::create_dir(&boot_dir).unwrap();
    let boot = BootManifest {
        format: 1,
        kernel_release: "6.1.0".into(),
        kernel_source: "test".into(),
        kernel: write_file(&boot_dir, "vmlinux", kernel),
        initramfs: write_file(&boot_dir, "initramfs.cpio", b"initramfs"),
        agent_digest: ImageDigest("sha256:none".into()),
        modules: Vec::new(),
        built_at: Timestamp::UNIX_EPOCH,
    };
    fs::write(boot_dir.join("boot.json"), serde_json::to_vec(&boot).unwrap()).unwrap();
}

fn write_file(dir: &Path, name: &str, content: &[u8]) -> SealedFile {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    let found = fs::metadata(&path).unwrap();
    let digest: String = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
    SealedFile {
        digest: ImageDigest(format!("sha256:{digest}")),
        length_bytes: found.len(),
        modified_ns: found.mtime() * 1_000_000_000 + found.mtime_nsec(),
    }
}
