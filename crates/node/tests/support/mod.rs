//! A node on a fake machine: real directories, ledgers, disks and cgroups; fake hypervisor; the real
//! agent as the guest, in this process.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod inside;
pub mod machine;
pub mod real;
pub mod seal;

use std::{
    ops::Deref,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sha2::{Digest, Sha256};
use skerry_internal_api::{
    ExecExit, ExecOutput, ExecRequest, GuestApi, NodeApi, StopMode, User, VmPhase, VmReport, VmSpec,
};
use skerry_model::{
    DiskMib, EnvVar, Incarnation, MemMib, Shape, Timestamp, VcpuCount, WorkspaceId,
    spec::{CpuKind, LogRetention},
};
use skerry_node::{Faults, NetworkChoice, Node, NodeConfig, NodeEnvironment};
use skerry_vmm::fake::FakeVmm;

pub use machine::Machine;

/// Longer than any of these tests takes on a busy machine.
pub const TEST_BOUND: Duration = Duration::from_secs(120);
pub const GRACEFUL: StopMode = StopMode::Graceful { within: Duration::from_secs(20) };

/// Runs a test within the bound.
pub async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_BOUND, test).await.expect("the test did not end")
}

/// Everything that survives a crash of the node.
pub struct World {
    machine: Machine,
    pub faults: Faults,
    pub memory_mib: Option<u64>,
    pub boot_timeout: Duration,
    /// Room for templates; 0 makes none, and every start boots.
    pub template_budget_mib: u64,
    /// VMs that may wait in the pool.
    pub pool_max_warm: u32,
    /// Whether VMs get a network.
    pub network: NetworkChoice,
    /// What secrets in the node's files are sealed with.
    pub seal: seal::TestSeal,
    clock: Arc<AtomicU64>,
    random: Arc<Mutex<u64>>,
}

impl Deref for World {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl World {
    pub fn new() -> Self {
        Self {
            machine: Machine::new(),
            faults: Faults::default(),
            memory_mib: Some(4096),
            boot_timeout: Duration::from_secs(40),
            template_budget_mib: 0,
            pool_max_warm: 0,
            network: NetworkChoice::Off,
            seal: seal::TestSeal::default(),
            clock: Arc::new(AtomicU64::new(1_700_000_000)),
            random: Arc::default(),
        }
    }

    /// A world whose starts come from templates, and from a pool of so many.
    pub fn instant(pool_max_warm: u32) -> Self {
        Self { template_budget_mib: 1024, pool_max_warm, ..Self::new() }
    }

    /// The same with a network.
    pub fn networked(self) -> Self {
        Self { network: NetworkChoice::On, ..self }
    }

    pub fn config(&self) -> NodeConfig {
        let mut config = NodeConfig::new(self.data_dir(), self.image_dir());
        config.memory_dir = Some(self.memory_dir());
        config.runtime_dir = Some(self.dir.path().join("short"));
        config.boot_timeout = Some(self.boot_timeout);
        config.guest_memory_mib = self.memory_mib;
        config.min_disk_free_mib = 1;
        config.template_budget_mib = self.template_budget_mib;
        config.pool_max_warm = self.pool_max_warm;
        config.network = self.network;
        config.faults = self.faults.clone();
        config
    }

    pub async fn open(&self) -> Node {
        self.try_open().await.unwrap()
    }

    /// A node with another driver.
    pub async fn open_with(&self, vmm: Arc<dyn skerry_vmm::Vmm>) -> Node {
        Node::open(self.config(), vmm, self.environment()).await.unwrap()
    }

    pub async fn try_open(&self) -> Result<Node, skerry_node::Error> {
        let vmm = Arc::new(FakeVmm::new(self.host.clone()));
        Node::open(self.config(), vmm, self.environment()).await
    }

    /// Each look at the clock is one second later; randomness counts, and goes on counting in the
    /// next life of the server.
    pub fn environment(&self) -> NodeEnvironment {
        let (clock, random) = (Arc::clone(&self.clock), Arc::clone(&self.random));
        NodeEnvironment {
            seal: Arc::new(self.seal.clone()),
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
            start_from: skerry_internal_api::StartFrom::Disk,
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
            volumes: Vec::new(),
        }
    }
}

/// Runs `request` until the planned fault has happened, then lets the node die there.
pub async fn die_at<T>(world: &World, node: Node, point: &str, request: impl Future<Output = T>) {
    assert!(world.faults.plan(point, skerry_node::FaultKind::Hang));
    tokio::select! {
        _ = request => panic!("the node did not stop at {point}"),
        () = world.faults.happened(point) => {}
    }
    node.abandon().await;
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
