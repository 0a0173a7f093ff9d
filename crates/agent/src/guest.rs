//! What outlives a connection: the mode the agent runs in, the environment, the running commands.

use std::{
    collections::BTreeMap,
    fmt,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use skerry_agent_protocol::message::{self, FailureCode};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    AgentError,
    children::Children,
    configure::Identity,
    freeze::{FileSystem, Freezer},
    host_keys::KeyMaker,
    init::disk::RootDisk,
    signals::IgnoredSignals,
    users::{Account, AccountFiles},
    workloads::Supervisor,
};

/// Short file operations that run at the same time.
const FILE_OPERATIONS: usize = 16;
/// Tree transfers at the same time; each holds a thread for as long as the host reads or writes.
const TREE_TRANSFERS: usize = 16;

/// The state shared by all connections to one guest.
pub struct Guest {
    kind: Kind,
    env: Mutex<BTreeMap<String, String>>,
    /// What the last configure call made of the machine; held while one is at it.
    identity: tokio::sync::Mutex<Option<Identity>>,
    ignored_signals: IgnoredSignals,
    accounts: AccountFiles,
    children: Arc<Children>,
    freezer: Freezer,
    key_maker: KeyMaker,
    supervisor: Supervisor,
    file_operations: Arc<Semaphore>,
    tree_transfers: Arc<Semaphore>,
    /// Held while disks come or go.
    volumes: tokio::sync::Mutex<()>,
    power_off: CancellationToken,
    tasks: TaskTracker,
}

impl fmt::Debug for Guest {
    /// Without the environment, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Kind {
    /// PID 1 of a machine that is ours alone.
    Machine(Machine),
    /// A guest in name only, inside somebody else's process.
    Hosted { home: PathBuf },
}

/// What the boot has found.
#[derive(Debug)]
pub(crate) struct Machine {
    /// `None` on a machine that stays in its initial file system.
    pub(crate) root_disk: Option<Arc<RootDisk>>,
    /// The directory of the control group that commands run in; `None` where there are none.
    pub(crate) workload_cgroup: Option<OwnedFd>,
}

impl Guest {
    /// The guest of which this process is PID 1. `file_systems` are those on its disks.
    pub(crate) fn machine(machine: Machine, file_systems: Vec<FileSystem>) -> Self {
        Self::new(Kind::Machine(machine), Arc::new(Children::of_init()), Freezer::new(file_systems))
    }

    /// A guest for tests: commands run as the current user with `home` as their home directory,
    /// paths are the real machine's, and nothing is mounted, renamed, reseeded, frozen or powered off.
    #[must_use]
    pub fn hosted(home: PathBuf) -> Self {
        let children = Arc::new(Children::of_a_process());
        Self::new(Kind::Hosted { home }, children, Freezer::new(Vec::new()))
    }

    fn new(kind: Kind, children: Arc<Children>, freezer: Freezer) -> Self {
        Self {
            kind,
            env: Mutex::default(),
            identity: tokio::sync::Mutex::default(),
            ignored_signals: IgnoredSignals::of_this_process(),
            accounts: AccountFiles::of_the_guest(),
            children,
            freezer,
            key_maker: KeyMaker::default(),
            supervisor: Supervisor::default(),
            file_operations: Arc::new(Semaphore::new(FILE_OPERATIONS)),
            tree_transfers: Arc::new(Semaphore::new(TREE_TRANSFERS)),
            volumes: tokio::sync::Mutex::default(),
            power_off: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Completes once a host has asked for power off.
    pub async fn powering_off(&self) {
        self.power_off.cancelled().await;
    }

    /// Whether a host has asked for power off.
    #[must_use]
    pub fn power_off_requested(&self) -> bool {
        self.power_off.is_cancelled()
    }

    /// Waits until nothing runs any more for connections that have ended, for at most `within`.
    pub async fn settle(&self, within: Duration) {
        self.supervisor.end();
        self.tasks.close();
        // What is left then hangs in the kernel.
        let _ = timeout(within, self.tasks.wait()).await;
    }

    pub(crate) const fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    pub(crate) fn request_power_off(&self) {
        self.power_off.cancel();
    }

    /// The machine, if it is ours alone.
    pub(crate) const fn as_machine(&self) -> Option<&Machine> {
        match &self.kind {
            Kind::Machine(machine) => Some(machine),
            Kind::Hosted { .. } => None,
        }
    }

    pub(crate) const fn identity(&self) -> &tokio::sync::Mutex<Option<Identity>> {
        &self.identity
    }

    pub(crate) const fn freezer(&self) -> &Freezer {
        &self.freezer
    }

    /// Held while disks come or go.
    pub(crate) const fn volumes(&self) -> &tokio::sync::Mutex<()> {
        &self.volumes
    }

    /// What runs without a host.
    pub(crate) const fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// The home directory of a guest in name only.
    pub(crate) fn hosted_home(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Machine(_) => None,
            Kind::Hosted { home } => Some(home),
        }
    }

    pub(crate) const fn key_maker(&self) -> &KeyMaker {
        &self.key_maker
    }

    pub(crate) const fn ignored_signals(&self) -> &IgnoredSignals {
        &self.ignored_signals
    }

    pub(crate) fn workload_cgroup(&self) -> Option<&OwnedFd> {
        self.as_machine()?.workload_cgroup.as_ref()
    }

    pub(crate) const fn children(&self) -> &Arc<Children> {
        &self.children
    }

    pub(crate) fn env(&self) -> BTreeMap<String, String> {
        self.env.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_env(&self, env: BTreeMap<String, String>) {
        *self.env.lock().unwrap_or_else(PoisonError::into_inner) = env;
    }

    /// Who `user` is in this guest. Reads files: call it where blocking is allowed.
    pub(crate) fn account(&self, user: &message::User) -> Result<Account, AgentError> {
        match &self.kind {
            Kind::Machine(_) => self.accounts.load()?.find(user),
            Kind::Hosted { home } => Ok(Account::current(home)),
        }
    }

    /// Runs a short blocking operation on a bounded number of threads.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        operation: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
    ) -> Result<T, AgentError> {
        let stopped = || AgentError::refused(FailureCode::Other, "the agent is stopping");
        let permit =
            Arc::clone(&self.file_operations).acquire_owned().await.map_err(|_| stopped())?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            operation()
        })
        .await
        .map_err(|_| stopped())?
    }

    /// The right to one more tree transfer.
    pub(crate) fn tree_transfer(&self) -> Result<OwnedSemaphorePermit, AgentError> {
        Arc::clone(&self.tree_transfers).try_acquire_owned().map_err(|_| {
            AgentError::refused(
                FailureCode::Other,
                format!("{TREE_TRANSFERS} tree transfers are running already"),
            )
        })
    }
}
