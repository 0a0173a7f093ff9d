//! A node with real guests: QEMU, the built kernel and agent, the base image.
#![allow(clippy::disallowed_methods, reason = "real guests get the real clock and randomness")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use skerry_internal_api::{ExecExit, NodeApi, VmSpec};
use skerry_model::{
    DiskMib, EnvVar, Incarnation, MemMib, Shape, Timestamp, VcpuCount, WorkspaceId,
    spec::{CpuKind, ImageDigest, ImageRef, LogRetention},
};
use skerry_node::{Faults, NetworkChoice, Node, NodeConfig, NodeEnvironment, images::ImageStore};
use skerry_vmm::{
    Vmm,
    qemu::{AcceleratorChoice, QemuConfig, QemuVmm},
};

use super::exec_in;

/// Emulated guests on two busy cores are slow; a test that needs this long has failed.
const TEST_BOUND: Duration = Duration::from_secs(600);

pub struct RealWorld {
    pub dir: tempfile::TempDir,
    pub images: PathBuf,
    pub base: ImageDigest,
    pub vmm: Arc<dyn Vmm>,
    pub faults: Faults,
    /// Room for templates; 0 makes none, and every start boots.
    pub template_budget_mib: u64,
    /// VMs that may wait in the pool.
    pub pool_max_warm: u32,
    /// Whether VMs get a network.
    pub network: NetworkChoice,
    /// Random, because these tests may run at the same time on one host.
    pub id: WorkspaceId,
}

impl RealWorld {
    pub async fn new() -> Self {
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
            template_budget_mib: 0,
            pool_max_warm: 0,
            network: NetworkChoice::Off,
            id: WorkspaceId::from_random(rand::random()),
        }
    }

    pub async fn open(&self) -> Node {
        let mut config = NodeConfig::new(self.dir.path().join("data"), self.images.clone());
        config.faults = self.faults.clone();
        config.template_budget_mib = self.template_budget_mib;
        config.pool_max_warm = self.pool_max_warm;
        config.network = self.network;
        let environment = NodeEnvironment {
            now: Arc::new(Timestamp::now),
            fill_random: Arc::new(|bytes| rand::fill(bytes)),
            seal: Arc::new(super::seal::TestSeal::default()),
        };
        Node::open(config, Arc::clone(&self.vmm), environment).await.unwrap()
    }

    pub fn spec(&self, incarnation: u64, disk_mib: u32) -> VmSpec {
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
            volumes: Vec::new(),
        }
    }

    /// What the VM could have left on this machine: files, memory, process, cgroups.
    pub fn left(&self) -> Vec<String> {
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
            super::machine::find(Path::new(place), &|name| name.contains(&plain), 6, &mut left);
        }
        left
    }
}

/// What a script prints that succeeds.
pub async fn stdout(node: &Node, id: WorkspaceId, script: &str) -> String {
    let guest = node.guest(id).await.unwrap();
    let outcome = exec_in(&*guest, &["sh", "-c", script]).await;
    assert_eq!(outcome.exit, ExecExit::Code(0), "{script}: {}", outcome.stdout);
    outcome.stdout
}

/// Runs a test within the bound.
pub async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_BOUND, test).await.expect("the test did not end")
}
