//! The node with real guests: QEMU, the built kernel and agent, the base image.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]
#![allow(clippy::disallowed_methods, reason = "real guests get the real clock and randomness")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use skerry_internal_api::{
    ExecExit, LogSource, NodeApi, NodeEvent, StopMode, VmExit, VmPhase, VmSpec,
};
use skerry_model::{
    DiskMib, EnvVar, Incarnation, MemMib, Shape, Timestamp, VcpuCount, WorkspaceId,
    spec::{CpuKind, ImageDigest, ImageRef, LogRetention},
};
use skerry_node::{FaultKind, Faults, Node, NodeConfig, NodeEnvironment, images::ImageStore};
use skerry_vmm::{
    Vmm,
    qemu::{AcceleratorChoice, QemuConfig, QemuVmm},
};
use support::{GRACEFUL, exec_in};

/// Emulated guests on two busy cores are slow; a test that needs this long has failed.
const TEST_BOUND: Duration = Duration::from_secs(600);

struct RealWorld {
    dir: tempfile::TempDir,
    images: PathBuf,
    base: ImageDigest,
    vmm: Arc<dyn Vmm>,
    faults: Faults,
    /// Random, because these tests may run at the same time on one host.
    id: WorkspaceId,
}

impl RealWorld {
    async fn new() -> Self {
        let images = std::env::var_os("SKERRY_IMAGE_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../var/images"),
            PathBuf::from,
        );
        let store = ImageStore::open(&images).unwrap();
        let base = store
            .by_name(&ImageRef("base".into()))
            .unwrap_or_else(|error| panic!("{error}: run make setup"));
        let config = QemuConfig { binary: None, accelerator: AcceleratorChoice::Tcg };
        let vmm = QemuVmm::open(config).await.unwrap_or_else(|e| panic!("{e}: run make setup"));
        Self {
            dir: tempfile::Builder::new().prefix("skn").tempdir().unwrap(),
            images: store.directory().to_owned(),
            base: base.digest().clone(),
            vmm: Arc::new(vmm),
            faults: Faults::default(),
            id: WorkspaceId::from_random(rand::random()),
        }
    }

    async fn open(&self) -> Node {
        let mut config = NodeConfig::new(self.dir.path().join("data"), self.images.clone());
        config.faults = self.faults.clone();
        let environment = NodeEnvironment {
            now: Arc::new(Timestamp::now),
            fill_random: Arc::new(|bytes| rand::fill(bytes)),
        };
        Node::open(config, Arc::clone(&self.vmm), environment).await.unwrap()
    }

    fn spec(&self, incarnation: u64, disk_mib: u32) -> VmSpec {
        VmSpec {
            start_from: skerry_internal_api::StartFrom::Disk,
            workspace_id: self.id,
            incarnation: Incarnation(incarnation),
            hostname: "lighthouse".to_owned(),
            image_digest: self.base.clone(),
            shape: Shape {
                vcpu_count: VcpuCount(1),
                memory_mib: MemMib(512),
                disk_mib: DiskMib(disk_mib),
                cpu_kind: CpuKind::Shared,
            },
            env: vec![EnvVar { key: "GREETING".into(), value: "hello".into() }],
            log_retention: LogRetention::AcrossStarts,
        }
    }

    /// What the VM could have left on this machine: files, memory, process, cgroups.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for entry in fs::read_dir(self.dir.path().join("data/vms")).unwrap() {
            left.push(entry.unwrap().path().display().to_string());
        }
        let (plain, simple) = (self.id.to_string(), self.id.as_uuid().simple().to_string());
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains(&simple) {
                left.push(format!("process {}", process.path().display()));
            }
        }
        for place in ["/dev/shm", "/sys/fs/cgroup"] {
            support::machine::find(Path::new(place), &|name| name.contains(&plain), 6, &mut left);
        }
        left
    }
}

async fn stdout(node: &Node, id: WorkspaceId, script: &str) -> String {
    let guest = node.guest(id).await.unwrap();
    let outcome = exec_in(&*guest, &["sh", "-c", script]).await;
    assert_eq!(outcome.exit, ExecExit::Code(0), "{script}: {}", outcome.stdout);
    outcome.stdout
}

async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_BOUND, test).await.expect("the test did not end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_vm_boots_runs_commands_keeps_its_disk_and_leaves_nothing() {
    bounded(async {
        let world = RealWorld::new().await;
        let id = world.id;
        let node = world.open().await;
        let began = Instant::now();
        let report = node.ensure_running(world.spec(1, 256)).await.unwrap();
        eprintln!("boot to ready: {:?}", began.elapsed());
        let uname = stdout(&node, id, "uname -a").await;
        assert!(uname.starts_with("Linux lighthouse "), "{uname}");
        assert_eq!(stdout(&node, id, "echo $GREETING").await, "hello\n");
        let machine_id = stdout(&node, id, "cat /etc/machine-id").await;
        let size_kib = "df --output=size / | tail -1";
        let before: u64 = stdout(&node, id, size_kib).await.trim().parse().unwrap();
        stdout(&node, id, "echo kept > /root/kept && sync").await;

        // The process has rights and limits of its own.
        let pid = report.pid.unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        if nix::unistd::geteuid().is_root() {
            let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap();
            assert!(uid.starts_with("20"), "{uid}");
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            assert!(cgroup.contains(&format!("skerry-vm-{id}")), "{cgroup}");
        }
        assert!(status.contains("Seccomp:\t2"), "{status}");

        let began = Instant::now();
        node.ensure_stopped(id, Incarnation(1), GRACEFUL).await.unwrap();
        eprintln!("stop: {:?}", began.elapsed());
        assert_eq!(node.inspect(id).await.unwrap().phase, VmPhase::Stopped);

        // The next start has the same disk, grown as asked, and the same identity.
        node.ensure_running(world.spec(2, 1024)).await.unwrap();
        assert_eq!(stdout(&node, id, "cat /root/kept").await, "kept\n");
        assert_eq!(stdout(&node, id, "cat /etc/machine-id").await, machine_id);
        let after: u64 = stdout(&node, id, size_kib).await.trim().parse().unwrap();
        assert!(after > before + 600 * 1024, "{before} KiB, then {after} KiB");
        let log: Vec<bytes::Bytes> =
            node.log(id, LogSource::Console, 1 << 20).await.unwrap().try_collect().await.unwrap();
        assert!(!log.is_empty());

        let began = Instant::now();
        node.ensure_deleted(id).await.unwrap();
        eprintln!("delete: {:?}", began.elapsed());
        assert_eq!(world.left(), Vec::<String>::new());
        node.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_vm_outlives_its_node_and_is_taken_over() {
    bounded(async {
        let world = RealWorld::new().await;
        let id = world.id;
        let node = world.open().await;
        let before = node.ensure_running(world.spec(1, 256)).await.unwrap();
        let uptime = stdout(&node, id, "cut -d. -f1 /proc/uptime").await;
        node.abandon().await;

        let node = world.open().await;
        assert_eq!(node.list().await, [before]);
        let later = stdout(&node, id, "cut -d. -f1 /proc/uptime").await;
        let seconds = |text: &str| text.trim().parse::<u64>().unwrap();
        assert!(seconds(&later) >= seconds(&uptime), "the same kernel still runs");

        // It powers itself off: reported, released, the disk kept.
        let mut events = node.subscribe();
        let guest = node.guest(id).await.unwrap();
        let request = skerry_internal_api::ExecRequest {
            argv: vec!["sh".into(), "-c".into(), "kill -9 -1; echo o > /proc/sysrq-trigger".into()],
            env: std::collections::BTreeMap::new(),
            working_dir: None,
            user: skerry_internal_api::User::Root,
            pty: None,
            timeout: None,
        };
        let _session = guest.exec(request).await.unwrap();
        let NodeEvent::Exited { workspace_id, exit, .. } = events.recv().await.unwrap();
        assert_eq!((workspace_id, exit), (id, VmExit::PoweredOff));
        assert_eq!(node.inspect(id).await.unwrap().phase, VmPhase::Stopped);

        node.ensure_stopped(id, Incarnation(1), StopMode::Kill).await.unwrap();
        node.ensure_deleted(id).await.unwrap();
        assert_eq!(world.left(), Vec::<String>::new());
        node.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_while_a_real_process_is_there_finds_a_clean_slate() {
    bounded(async {
        let world = RealWorld::new().await;
        let id = world.id;
        let points = ["boot", "guest_ready", "power_off", "release_process", "tombstone"];
        for (incarnation, point) in (1..).zip(points) {
            let node = world.open().await;
            assert!(world.faults.plan(point, FaultKind::Hang));
            let life = async {
                node.ensure_running(world.spec(incarnation, 256)).await.unwrap();
                if point == "tombstone" {
                    node.ensure_deleted(id).await
                } else {
                    node.ensure_stopped(id, Incarnation(incarnation), GRACEFUL).await
                }
            };
            tokio::select! {
                _ = life => panic!("the node did not stop at {point}"),
                () = world.faults.happened(point) => {}
            }
            node.abandon().await;

            let node = world.open().await;
            let dir = world.dir.path().join("data/vms").join(id.to_string());
            if point == "tombstone" {
                assert_eq!(node.inspect(id).await, None);
                assert_eq!(world.left(), Vec::<String>::new());
            } else {
                assert_eq!(node.inspect(id).await.unwrap().phase, VmPhase::Stopped, "{point}");
                assert_eq!(world.left(), [dir.display().to_string()], "{point}");
                assert!(!dir.join("run").exists(), "{point}");
            }
            node.shutdown().await;
        }
    })
    .await;
}
