//! A control plane to be measured: real clock, real disk, simulated node.

use std::{path::Path, sync::Arc, time::Instant};

use skerry_control::{
    Caller, Control, ControlConfig, Credential, Environment,
    sim_node::SimNode,
    store::{KeyRing, Store},
    testing::{KEY, SeededRng},
};
use skerry_model::{Plan, Pool, Secret, Timestamp};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The first second of 2026: the benchmark's clock begins here and runs as the machine's does.
const START_SECOND: i64 = 1_767_225_600;

pub struct Ground {
    pub control: Control,
    pub caller: Caller,
    shutdown: CancellationToken,
    background: JoinHandle<()>,
    _directory: TempDir,
}

impl Ground {
    /// A control plane on an empty database below `directory`, with its background work running.
    pub async fn open(directory: &Path) -> Self {
        let directory = tempfile::tempdir_in(directory).expect("a temporary directory");
        let begin = Timestamp::from_second(START_SECOND).expect("2026 is a year");
        let began = Instant::now();
        let now: Arc<dyn Fn() -> Timestamp + Send + Sync> =
            Arc::new(move || begin.saturating_add(began.elapsed()).expect("not the end of time"));
        let environment = Environment { now: Arc::clone(&now), rng: Arc::new(SeededRng::new(1)) };
        let endless = Pool { vcpu_count: 1 << 40, memory_mib: 1 << 40, disk_mib: 1 << 40 };
        let plan = Plan::self_hosted(1 << 40, endless, endless);
        let config = ControlConfig::new(Secret::new(KEY), plan);
        let keys = KeyRing::open(&directory.path().join("secret.key"), environment.rng.clone())
            .expect("a key file");
        let store =
            Store::open(&directory.path().join("skerry.db"), keys).await.expect("a database");
        let control = Control::open(config, environment, store, SimNode::new(now))
            .await
            .expect("a control plane");
        let credential = Credential { secret: Secret::new(KEY), account: None };
        let caller = control.authenticate(&credential).await.expect("the key works");
        let shutdown = CancellationToken::new();
        let (running, until) = (control.clone(), shutdown.clone());
        let background = tokio::spawn(async move { running.run(until).await });
        Self { control, caller, shutdown, background, _directory: directory }
    }

    /// Ends the background work.
    pub async fn close(self) {
        self.shutdown.cancel();
        self.background.await.expect("the background work ends without a panic");
    }
}
