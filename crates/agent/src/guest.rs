//! What outlives a connection: the mode the agent runs in, the environment, the running commands.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
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
    users::{Account, Accounts},
};

/// Short file operations that run at the same time.
const FILE_OPERATIONS: usize = 16;
/// Tree transfers at the same time; each holds a thread for as long as the host reads or writes.
const TREE_TRANSFERS: usize = 16;

/// The state shared by all connections to one guest.
pub struct Guest {
    kind: Kind,
    env: Mutex<BTreeMap<String, String>>,
    boot_id: String,
    children: Arc<Children>,
    file_operations: Arc<Semaphore>,
    tree_transfers: Arc<Semaphore>,
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
    Machine,
    /// A guest in name only, inside somebody else's process.
    Hosted { home: PathBuf },
}

impl Guest {
    /// The guest of which this process is PID 1.
    #[must_use]
    pub fn machine() -> Self {
        Self::new(Kind::Machine, Arc::new(Children::of_init()))
    }

    /// A guest for tests: commands run as the current user with `home` as their home directory,
    /// paths are the real machine's, and nothing is mounted, renamed, reseeded or powered off.
    #[must_use]
    pub fn hosted(home: PathBuf) -> Self {
        Self::new(Kind::Hosted { home }, Arc::new(Children::of_a_process()))
    }

    fn new(kind: Kind, children: Arc<Children>) -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_or_else(|_| String::from("unknown"), |text| text.trim().to_owned());
        Self {
            kind,
            env: Mutex::default(),
            boot_id,
            children,
            file_operations: Arc::new(Semaphore::new(FILE_OPERATIONS)),
            tree_transfers: Arc::new(Semaphore::new(TREE_TRANSFERS)),
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

    pub(crate) const fn is_machine(&self) -> bool {
        matches!(self.kind, Kind::Machine)
    }

    pub(crate) fn boot_id(&self) -> &str {
        &self.boot_id
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
            Kind::Machine => Accounts::load()?.find(user),
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
