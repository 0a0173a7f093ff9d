//! A node on a fake machine: real directories, ledgers, disks and cgroups; fake hypervisor; the real
//! agent as the guest, in this process.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, symlink},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sha2::{Digest, Sha256};
use skerry_agent::Guest;
use skerry_internal_api::{
    ExecExit, ExecOutput, ExecRequest, GuestApi, NodeApi, StopMode, User, VmPhase, VmReport, VmSpec,
};
use skerry_model::{
    DiskMib, EnvVar, Incarnation, MemMib, Shape, Timestamp, VcpuCount, WorkspaceId,
    spec::{CpuKind, ImageDigest, ImageRef, LogRetention},
};
use skerry_node::{
    Faults, Node, NodeConfig, NodeEnvironment,
    images::{BootManifest, ImageManifest, SealedFile},
};
use skerry_vmm::{
    BootSpec,
    fake::{FakeGuest, FakeGuestIo, FakeHost, FakeVmm, GuestEnd},
};
use tokio::{sync::watch, task::JoinSet};

/// Longer than any of these tests takes on a busy machine.
pub const TEST_BOUND: Duration = Duration::from_secs(120);
pub const GRACEFUL: StopMode = StopMode::Graceful { within: Duration::from_secs(20) };

/// Runs a test within the bound.
pub async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_BOUND, test).await.expect("the test did not end")
}

/// Everything that survives a crash of the node.
pub struct World {
    pub dir: tempfile::TempDir,
    pub host: FakeHost,
    pub faults: Faults,
    pub image: ImageDigest,
    /// Every boot, in order.
    pub boots: watch::Sender<Vec<BootSpec>>,
    pub memory_mib: Option<u64>,
    pub boot_timeout: Duration,
    clock: Arc<AtomicU64>,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("skn").tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        let image = write_images(&dir.path().join("images"));
        let boots = watch::Sender::new(Vec::new());
        let host = FakeHost::new(guest(dir.path().join("home"), boots.clone()));
        Self {
            dir,
            host,
            faults: Faults::default(),
            image,
            boots,
            memory_mib: Some(4096),
            boot_timeout: Duration::from_secs(40),
            clock: Arc::new(AtomicU64::new(1_700_000_000)),
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn memory_dir(&self) -> PathBuf {
        self.dir.path().join("memory")
    }

    pub fn config(&self) -> NodeConfig {
        let mut config = NodeConfig::new(self.data_dir(), self.dir.path().join("images"));
        config.memory_dir = Some(self.memory_dir());
        config.runtime_dir = Some(self.dir.path().join("short"));
        config.boot_timeout = Some(self.boot_timeout);
        config.guest_memory_mib = self.memory_mib;
        config.min_disk_free_mib = 1;
        config.faults = self.faults.clone();
        config
    }

    pub async fn open(&self) -> Node {
        self.try_open().await.unwrap()
    }

    pub async fn try_open(&self) -> Result<Node, skerry_node::Error> {
        let vmm = Arc::new(FakeVmm::new(self.host.clone()));
        Node::open(self.config(), vmm, self.environment()).await
    }

    /// Each look at the clock is one second later; randomness counts.
    fn environment(&self) -> NodeEnvironment {
        let (clock, random) = (Arc::clone(&self.clock), Arc::new(Mutex::new(0_u64)));
        NodeEnvironment {
            now: Arc::new(move || {
                let second = clock.fetch_add(1, Ordering::Relaxed);
                Timestamp::from_second(i64::try_from(second).unwrap()).unwrap()
            }),
            fill_random: Arc::new(move |bytes| {
                let mut count = random.lock().unwrap();
                for piece in bytes.chunks_mut(32) {
                    *count += 1;
                    piece.copy_from_slice(&Sha256::digest(count.to_be_bytes())[..piece.len()]);
                }
            }),
        }
    }

    pub fn spec(&self, workspace: u128, incarnation: u64) -> VmSpec {
        VmSpec {
            workspace_id: WorkspaceId::from_u128(workspace),
            incarnation: Incarnation(incarnation),
            hostname: "box".to_owned(),
            image_digest: self.image.clone(),
            shape: Shape {
                vcpu_count: VcpuCount(1),
                memory_mib: MemMib(256),
                disk_mib: DiskMib(64),
                cpu_kind: CpuKind::Shared,
            },
            env: vec![EnvVar { key: "GREETING".into(), value: "hello".into() }],
            log_retention: LogRetention::AcrossStarts,
        }
    }

    pub fn vm_dir(&self, workspace: u128) -> PathBuf {
        self.data_dir().join("vms").join(WorkspaceId::from_u128(workspace).to_string())
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
        let disk = self.vm_dir(workspace).join("disk.qcow2");
        if let Ok(found) = fs::metadata(disk)
            && found.uid() != nix::unistd::geteuid().as_raw()
        {
            held.push(format!("disk of uid {}", found.uid()));
        }
        held
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

impl Drop for World {
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

/// What a stop or a failed start may leave.
pub fn assert_only_disk(world: &World, workspace: u128) {
    assert_eq!(world.held(workspace), Vec::<String>::new());
}

/// What a deletion may leave.
pub fn assert_nothing(world: &World, workspace: u128) {
    assert_eq!(world.left(workspace), Vec::<String>::new());
}

pub fn assert_running(report: &VmReport) {
    assert_eq!(report.phase, VmPhase::Running);
    assert!(report.pid.is_some() && report.ready_at.is_some());
}

fn names(dir: &Path) -> Vec<String> {
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
fn guest(home: PathBuf, boots: watch::Sender<Vec<BootSpec>>) -> FakeGuest {
    Arc::new(move |mut io: FakeGuestIo| {
        let guest = Arc::new(Guest::hosted(home.clone()));
        boots.send_modify(|boots| boots.push(io.spec.clone()));
        Box::pin(async move {
            io.console.print("the guest boots\n").unwrap();
            let mut sessions = JoinSet::new();
            loop {
                tokio::select! {
                    connection = io.connections.recv() => match connection {
                        Some(stream) => {
                            let guest = Arc::clone(&guest);
                            sessions.spawn(async move { skerry_agent::serve(stream, &guest).await });
                        }
                        None => return GuestEnd::Crashed("no more connections".to_owned()),
                    },
                    () = guest.powering_off() => break,
                }
            }
            // The last answer goes out before the power does.
            while sessions.join_next().await.is_some() {}
            GuestEnd::PoweredOff
        })
    })
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
    };
    fs::write(image_dir.join("image.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    let boot_dir = store.join("boot@0000000000000000");
    fs::create_dir(&boot_dir).unwrap();
    let boot = BootManifest {
        format: 1,
        kernel_release: "6.1.0".into(),
        kernel_source: "test".into(),
        kernel: write_file(&boot_dir, "vmlinux", b"kernel"),
        initramfs: write_file(&boot_dir, "initramfs.cpio", b"initramfs"),
        agent_digest: disk.digest.clone(),
        modules: Vec::new(),
        built_at: Timestamp::UNIX_EPOCH,
    };
    fs::write(boot_dir.join("boot.json"), serde_json::to_vec(&boot).unwrap()).unwrap();
    symlink("boot@0000000000000000", store.join("boot")).unwrap();
    disk.digest
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

/// What a command printed and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub stdout: String,
    pub exit: ExecExit,
}

/// Runs a command in a workspace's guest to its end.
pub async fn exec(node: &Node, workspace: u128, argv: &[&str]) -> Outcome {
    let guest = node.guest(WorkspaceId::from_u128(workspace)).await.unwrap();
    exec_in(&*guest, argv).await
}

/// Runs a command to its end.
pub async fn exec_in(guest: &dyn GuestApi, argv: &[&str]) -> Outcome {
    let request = ExecRequest {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: std::collections::BTreeMap::new(),
        working_dir: None,
        user: User::Root,
        pty: None,
        timeout: Some(Duration::from_secs(60)),
    };
    let mut session = guest.exec(request).await.unwrap();
    let mut stdout = Vec::new();
    loop {
        match session.output.recv().await.expect("the output ends with an exit").unwrap() {
            ExecOutput::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            ExecOutput::Stderr(_) => {}
            ExecOutput::Exit(exit) => {
                return Outcome { stdout: String::from_utf8(stdout).unwrap(), exit };
            }
        }
    }
}

pub fn outcome(stdout: &str) -> Outcome {
    Outcome { stdout: stdout.to_owned(), exit: ExecExit::Code(0) }
}
