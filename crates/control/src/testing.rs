//! A whole control plane for tests: SQLite in a temporary directory, a clock that stands until it is
//! set, seeded randomness and the simulated node.

pub mod edge;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use skerry_model::{Plan, Pool, Secret, Timestamp, Workspace, WorkspaceId};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    Caller, Control, ControlConfig, Credential, Environment, Error, Rng,
    sim_node::SimNode,
    store::{KeyRing, Store},
};

/// The bootstrap key of every control plane opened here.
pub const KEY: &str = "sk_test_bootstrap_key_of_the_simulated_server";

/// A clock that stands still. Clones are one clock.
#[derive(Clone, Debug)]
pub struct TestClock(Arc<Mutex<Timestamp>>);

impl TestClock {
    /// A clock that shows this time.
    #[must_use]
    pub fn at(time: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(time)))
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets it forward.
    pub fn advance(&self, by: Duration) {
        let mut time = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *time = time.saturating_add(by).unwrap_or(Timestamp::MAX);
    }

    /// As a function.
    #[must_use]
    pub fn as_fn(&self) -> Arc<dyn Fn() -> Timestamp + Send + Sync> {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}

/// Random bytes that are the same in every run.
pub struct SeededRng(Mutex<StdRng>);

impl SeededRng {
    /// Bytes decided by `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Rng for SeededRng {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }
}

/// A plan whose pools no ordinary test reaches: 100 workspaces, 64 vCPU, 128 GiB, 1 TiB owned, half
/// of it running.
#[must_use]
pub fn plan() -> Plan {
    let owned = Pool { vcpu_count: 64, memory_mib: 131_072, disk_mib: 1_048_576 };
    let running = Pool { vcpu_count: 32, memory_mib: 65_536, disk_mib: 524_288 };
    Plan::self_hosted(100, owned, running)
}

/// The configuration used by [`open`].
#[must_use]
pub fn config() -> ControlConfig {
    let mut config = ControlConfig::new(Secret::new(KEY), plan());
    config.image_aliases = [("ubuntu", "base"), ("debian", "base"), ("node", "node-20")]
        .map(|(alias, name)| (alias.to_owned(), name.to_owned()))
        .into();
    config.node_call_timeout = Duration::from_secs(30);
    // Tests that want a comparison ask for it by opening again.
    config.reconcile_interval = Duration::from_secs(3600);
    config
}

/// A control plane with everything around it. Its background work ends when it is dropped.
pub struct TestControl {
    /// The control plane; its background work runs.
    pub control: Control,
    /// Its node.
    pub node: Arc<SimNode>,
    /// Its clock and the node's: 2026-01-01T00:00:00Z at first.
    pub clock: TestClock,
    /// Where the database is.
    pub database: PathBuf,
    config: ControlConfig,
    seed: u64,
    shutdown: Option<DropGuard>,
    background: JoinHandle<()>,
    directory: Option<TempDir>,
}

/// Opens a control plane with [`config`] and a new node.
///
/// # Panics
/// When the temporary directory or the database cannot be made.
pub async fn open() -> TestControl {
    open_with(config()).await
}

/// Opens a control plane with this configuration and a new node.
///
/// # Panics
/// When the temporary directory or the database cannot be made.
#[allow(clippy::expect_used, reason = "a test's own ground; there is nobody to tell")]
pub async fn open_with(config: ControlConfig) -> TestControl {
    let start = Timestamp::from_second(1_767_225_600).expect("2026 is a year");
    let clock = TestClock::at(start);
    let node = SimNode::new(clock.as_fn());
    let directory = tempfile::tempdir().expect("a temporary directory");
    let database = directory.path().join("skerry.db");
    let opened = assemble(config, clock, node, database, 1).await;
    let mut test = opened.expect("a control plane opens on an empty database");
    test.directory = Some(directory);
    test
}

/// Opens the store at `database`; its key file is beside it.
///
/// # Errors
/// As [`Store::open`].
pub async fn open_store(database: &Path) -> Result<Store, Error> {
    let keys = KeyRing::open(&database.with_extension("key"), Arc::new(SeededRng::new(0)))?;
    Store::open(database, keys).await
}

async fn assemble(
    config: ControlConfig,
    clock: TestClock,
    node: Arc<SimNode>,
    database: PathBuf,
    seed: u64,
) -> Result<TestControl, Error> {
    let environment = Environment { now: clock.as_fn(), rng: Arc::new(SeededRng::new(seed)) };
    let store = open_store(&database).await?;
    let control = Control::open(config.clone(), environment, store, node.clone()).await?;
    let token = CancellationToken::new();
    let running = control.clone();
    let until = token.clone();
    let background = tokio::spawn(async move { running.run(until).await });
    let shutdown = Some(token.drop_guard());
    let directory = None;
    Ok(TestControl {
        control,
        node,
        clock,
        database,
        config,
        seed,
        shutdown,
        background,
        directory,
    })
}

/// Waits until a workspace's record is as wanted, told by its changes; answers it as it is then.
///
/// # Panics
/// When it is gone, or not so within 20 seconds.
#[allow(clippy::expect_used, reason = "a test's own ground; there is nobody to tell")]
pub async fn until(
    control: &Control,
    id: WorkspaceId,
    wanted: impl Fn(&Workspace) -> bool,
) -> Workspace {
    let reached = control.inner.wait_for(id, Duration::from_secs(20), &wanted).await;
    let record = reached.expect("the store answers").expect("the workspace is there");
    assert!(wanted(&record), "not within 20 s: {record:?}");
    record
}

/// Waits until no timer is due and nobody is at work on a workspace, snapshot, volume or policy.
///
/// # Panics
/// When that is not so within 20 s, or the store does not answer.
#[allow(clippy::expect_used, reason = "a test's own ground; there is nobody to tell")]
pub async fn quiet(control: &Control) {
    let inner = &control.inner;
    let quiet = async {
        loop {
            let due = inner.store.due_workspaces(inner.now(), 1).await.expect("timers");
            // A timer that rings is not due any more before the one it concerns is woken.
            drop(inner.ringing.lock().await);
            let idle = inner.workers.is_idle()
                && inner.snapshot_workers.is_idle()
                && inner.volume_workers.is_idle()
                && inner.checkpoint_workers.is_idle()
                && inner.mount_workers.is_idle()
                && inner.policy_workers.is_idle();
            if due.is_empty() && idle {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), quiet).await.expect("quiet within 20 s");
}

/// Has the timers looked at, which nothing else does when a test sets the clock.
pub fn clock_was_set(control: &Control) {
    control.inner.timers_changed.notify_one();
    control.inner.domains_changed.notify_one();
}

impl TestControl {
    /// The bootstrap key's caller.
    ///
    /// # Panics
    /// When the bootstrap key is not accepted.
    #[allow(clippy::expect_used, reason = "a test's own ground; there is nobody to tell")]
    pub async fn caller(&self) -> Caller {
        let credential = Credential { secret: Secret::new(KEY), account: None };
        self.control.authenticate(&credential).await.expect("the bootstrap key works")
    }

    /// The first caller of another account.
    ///
    /// # Panics
    /// When the account cannot be made.
    #[allow(clippy::expect_used, reason = "a test's own ground; there is nobody to tell")]
    pub async fn other_caller(&self, handle: &str) -> (Caller, Secret) {
        let (_, key) = self.control.create_account(handle).await.expect("a new account");
        let credential = Credential { secret: key.secret.clone(), account: None };
        let caller = self.control.authenticate(&credential).await.expect("the first key works");
        (caller, key.secret)
    }

    /// Sets the clock forward and has the timers looked at.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
        clock_was_set(&self.control);
    }

    /// Returns once nobody is at work and no timer is due.
    ///
    /// # Panics
    /// When the store cannot be asked, or there is still work after 20 seconds.
    #[allow(clippy::expect_used, reason = "a test's own ground; there is nobody to tell")]
    pub async fn quiet(&self) {
        quiet(&self.control).await;
    }

    /// Returns once records and VMs were compared for the first time since it was opened.
    ///
    /// # Panics
    /// When that is not so within 20 seconds.
    #[allow(clippy::expect_used, reason = "a test's own ground; there is nobody to tell")]
    pub async fn compared(&self) {
        let mut comparisons = self.control.inner.comparisons.subscribe();
        let first = comparisons.wait_for(|done| *done > 0);
        let first = tokio::time::timeout(Duration::from_secs(20), first).await;
        first.expect("compared within 20 s").expect("control is there");
    }

    /// The configuration that the next one is opened with.
    pub fn configure(&mut self, config: ControlConfig) {
        self.config = config;
    }

    /// Ends the control plane as `SIGTERM` would and opens another one on the same database and
    /// node.
    ///
    /// # Panics
    /// When the background work does not end or the database does not open again.
    #[allow(clippy::expect_used, reason = "a test's own ground; there is nobody to tell")]
    pub async fn reopen(mut self) -> Self {
        drop(self.shutdown.take());
        (&mut self.background).await.expect("the background work ends without a panic");
        let Self { control, node, clock, database, config, seed, directory, .. } = self;
        drop(control);
        let opened = assemble(config, clock, node, database, seed + 1).await;
        let mut test = opened.expect("the control plane opens again");
        test.directory = directory;
        test
    }
}
