//! What the node is told at start, and the ambient things it is handed instead of reaching for them.

use std::{fmt, num::NonZero, path::PathBuf, sync::Arc, time::Duration};

use skerry_model::{Shape, Timestamp, spec::ImageRef};

use crate::{
    faults::Faults,
    images::{KernelChoice, PullPolicy},
    network::{AddressPrefix, UplinkSettings},
    seal::Seal,
};

/// A range of uids that belong to the node alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UidRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// Whether VMM processes are put into cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupPolicy {
    /// As far as the host permits.
    #[default]
    Auto,
    /// Never (resource limits of the process only).
    Off,
}

/// Whether VMs have a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkChoice {
    /// Their network card is plugged in nowhere.
    #[default]
    Off,
    /// Each has a namespace of its own and a private address; nothing passes but what its policy
    /// says ([`skerry_internal_api::NodeApi::set_network_policy`]).
    On,
}

/// A template that is to be ready before anybody asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplatePreset {
    /// The image's catalogue name; its newest build is used.
    pub image: ImageRef,
    /// The shape of the workspaces that will start from it.
    pub shape: Shape,
}

/// Configuration of the node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where VMs' directories, the node's id and its lock live. Absolute. Made if missing.
    pub data_dir: PathBuf,
    /// Where images are. Absolute.
    pub image_dir: PathBuf,
    /// Which of the kernels in `image_dir` guests boot with.
    pub kernel: KernelChoice,
    /// Where guest memory files are made; `None` chooses `/dev/shm` when it is a tmpfs of at least
    /// half the memory, else a directory below `data_dir`.
    pub memory_dir: Option<PathBuf>,
    /// A private directory with a short path (`$XDG_RUNTIME_DIR`), used for sockets when `data_dir`
    /// is too deep for the 107 bytes of a socket's address.
    pub runtime_dir: Option<PathBuf>,
    /// Each VM runs as a uid of its own from this range, if the server runs as root.
    pub uids: UidRange,
    /// Use of cgroups.
    pub cgroups: CgroupPolicy,
    /// How long a guest may take from boot to its first answer, one repetition after a hang
    /// included; `None` is 30 s with hardware virtualisation and 180 s without.
    pub boot_timeout: Option<Duration>,
    /// How many workspaces' guests may boot at the same time; further ones wait their turn, however long.
    pub boot_concurrency: NonZero<usize>,
    /// How many may be restored from a saved state at the same time, boots not counted. A VM that
    /// waits in the pool is taken at once.
    pub restore_concurrency: NonZero<usize>,
    /// How long a guest of an older incarnation may take to power off when a newer one replaces it.
    pub replace_grace: Duration,
    /// Host memory that guests may be promised in all; `None` leaves the host a tenth, at least
    /// 512 MiB.
    pub guest_memory_mib: Option<u64>,
    /// A VM is not started when less than this is free where disks live.
    pub min_disk_free_mib: u64,
    /// The most a console log takes; the driver keeps its newest part.
    pub console_limit_bytes: u64,
    /// The most one of the two command log files of a workspace takes.
    pub command_log_limit_bytes: u64,
    /// The most that templates (saved machines from which workspaces start without a boot) take on
    /// disk; the least recently used go first. 0 makes and uses none.
    pub template_budget_mib: u64,
    /// Templates made ahead of time. Others are made when a workspace of their image and shape has
    /// booted.
    pub template_presets: Vec<TemplatePreset>,
    /// The most VMs that wait, restored and paused, to be claimed by a workspace; how many there are
    /// of which image and shape follows demand. 0 turns the pool off.
    pub pool_max_warm: u32,
    /// The most host memory that waiting VMs take in all; `None` is a tenth of what guests may be
    /// promised. 0 turns the pool off.
    pub pool_memory_mib: Option<u64>,
    /// Whether VMs have a network.
    pub network: NetworkChoice,
    /// From where workspaces get their private addresses.
    pub network_prefix: AddressPrefix,
    /// The way out to the world; used with a network only.
    pub uplink: UplinkSettings,
    /// From which registries images are pulled, and how.
    pub pull: PullPolicy,
    /// Planned failures, for tests: empty in production.
    pub faults: Faults,
}

impl NodeConfig {
    /// The defaults for a data directory and an image directory; as many boots at a time as the
    /// machine has CPUs, which each keeps busy, and twice as many restores.
    #[must_use]
    pub fn new(data_dir: PathBuf, image_dir: PathBuf) -> Self {
        let cpus = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        Self {
            data_dir,
            image_dir,
            kernel: KernelChoice::default(),
            memory_dir: None,
            runtime_dir: None,
            uids: UidRange { first: 200_000, count: 10_000 },
            cgroups: CgroupPolicy::Auto,
            boot_timeout: None,
            boot_concurrency: cpus,
            restore_concurrency: cpus.saturating_add(cpus.get()),
            replace_grace: Duration::from_secs(10),
            guest_memory_mib: None,
            min_disk_free_mib: 512,
            console_limit_bytes: 4 * 1024 * 1024,
            command_log_limit_bytes: 4 * 1024 * 1024,
            template_budget_mib: 4096,
            template_presets: Vec::new(),
            pool_max_warm: 8,
            pool_memory_mib: None,
            network: NetworkChoice::default(),
            network_prefix: AddressPrefix::DEFAULT,
            uplink: UplinkSettings::default(),
            pull: PullPolicy::default(),
            faults: Faults::default(),
        }
    }
}

/// Fills a buffer with random bytes.
pub type FillRandom = dyn Fn(&mut [u8]) + Send + Sync;

/// Clock, randomness and keys, passed in so that tests own them.
#[derive(Clone)]
pub struct NodeEnvironment {
    /// The time now.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Fills a buffer with bytes from a cryptographic source.
    pub fill_random: Arc<FillRandom>,
    /// Keeps what is secret unreadable in the node's files.
    pub seal: Arc<dyn Seal>,
}

impl NodeEnvironment {
    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// `N` random bytes.
    #[must_use]
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0_u8; N];
        (self.fill_random)(&mut bytes);
        bytes
    }
}

impl fmt::Debug for NodeEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeEnvironment")
    }
}
