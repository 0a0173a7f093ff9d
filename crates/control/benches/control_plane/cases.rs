//! What is measured.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use skerry_control::{
    CreateWorkspace, Credential, ListWorkspaces, StartPolicy, Wait, WorkspaceRef,
};
use skerry_model::{EnvVar, Secret, State, WorkspaceId};

use crate::{
    ground::Ground,
    measure::{Stopwatch, Timings, offered, timed},
    report::{Figure, Target},
};

/// How the cases are run.
pub struct Plan {
    /// Where the databases are made.
    pub directory: PathBuf,
    /// How long each case runs.
    pub each: Duration,
    /// How many workspaces the reading cases are run over.
    pub workspaces: u64,
    /// Only the cases whose name contains this.
    pub only: Option<String>,
}

impl Plan {
    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only))
    }
}

/// More than any bring-up here takes.
const LONG: Wait = Wait::UpTo(Duration::from_secs(120));
const CALLERS: [usize; 3] = [1, 64, 512];
/// With so many callers a sync is shared, and none of them waits for many others.
const SOME: usize = 64;
/// Creates per second.
const THROUGHPUT: Target = Target { per_second: Some(3000.0), p99_ms: None };
/// So many creates begin each second, whether or not earlier ones are answered.
const OFFERED: u32 = 3000;
/// The 99th percentile of their latency.
const LATENCY: Target = Target { per_second: None, p99_ms: Some(50.0) };
/// A page of a list.
const PAGE: Target = Target { per_second: None, p99_ms: Some(20.0) };
const PAGE_LEN: u64 = 100;

/// What is read from a database with many workspaces.
const READS: [&str; 7] = [
    "first page of 100",
    "last page of 100",
    "page of one state",
    "page of one namespace",
    "whole list",
    "one workspace",
    "authenticate",
];

/// Runs every case that is wanted.
pub async fn run(plan: &Plan) -> Vec<Figure> {
    let mut figures = Vec::new();
    if plan.wants("sync") {
        let timings = sync_of_the_disk(&plan.directory, plan.each);
        figures.push(Figure::new("sync of 4 KiB to the disk", 1, &timings, Target::NONE));
    }
    let creates = [
        ("create, not started", StartPolicy::Later),
        ("create, start in the background", StartPolicy::Now(Wait::No)),
        ("create to running", StartPolicy::Now(LONG)),
    ];
    for (name, start) in creates {
        for callers in CALLERS.into_iter().filter(|_| plan.wants(name)) {
            let timings = create(plan, start, Load::Callers(callers)).await;
            let target = if callers == SOME { THROUGHPUT } else { Target::NONE };
            figures.push(Figure::new(name, callers, &timings, target));
        }
    }
    for (name, start) in [
        ("3,000 creates/s, not started", StartPolicy::Later),
        ("3,000 creates/s, started too", StartPolicy::Now(Wait::No)),
    ] {
        if plan.wants(name) {
            let timings = create(plan, start, Load::Offered(OFFERED)).await;
            figures.push(Figure::new(name, 0, &timings, LATENCY));
        }
    }
    if READS.iter().any(|name| plan.wants(name)) {
        reads(plan, &mut figures).await;
    }
    figures
}

/// The floor of every durable write: one block appended and synced.
fn sync_of_the_disk(directory: &Path, each: Duration) -> Timings {
    let directory = tempfile::tempdir_in(directory).expect("a temporary directory");
    let mut file = File::create(directory.path().join("block")).expect("a file");
    let watch = Stopwatch::start();
    let mut latencies = Vec::new();
    while watch.began.elapsed() < each {
        let start = Instant::now();
        file.write_all(&[7; 4096]).expect("room on the disk");
        file.sync_data().expect("a disk that can sync");
        latencies.push(start.elapsed());
    }
    Timings::new(latencies, &watch)
}

fn request(start: StartPolicy) -> CreateWorkspace {
    let variable = |key: &str, value: &str| EnvVar { key: key.to_owned(), value: value.to_owned() };
    CreateWorkspace {
        env: vec![
            variable("DATABASE_URL", "postgres://user:password@db.internal:5432/app"),
            variable("LOG_LEVEL", "info"),
        ],
        ..CreateWorkspace::new(start)
    }
}

/// How calls are made.
#[derive(Clone, Copy)]
enum Load {
    /// By so many callers, each one after another.
    Callers(usize),
    /// So many a second.
    Offered(u32),
}

async fn create(plan: &Plan, start: StartPolicy, load: Load) -> Timings {
    let ground = Ground::open(&plan.directory).await;
    let (control, caller) = (ground.control.clone(), ground.caller.clone());
    let watch = Stopwatch::start();
    let call = move || {
        let (control, caller) = (control.clone(), caller.clone());
        async move {
            let made = control.create_workspace(&caller, request(start)).await.expect("created");
            let runs = matches!(made.state, State::Running { .. });
            assert!(runs || start != StartPolicy::Now(LONG), "{}", made.state.name());
        }
    };
    let timings = match load {
        Load::Callers(callers) => timed(callers, plan.each, call).await,
        Load::Offered(per_second) => offered(per_second, plan.each, call).await,
    };
    let running = match start {
        StartPolicy::Later => 0,
        StartPolicy::Now(_) => timings.count() as u64,
    };
    // What was begun in the background is part of the work.
    while count(&ground, &["running"]).await != running {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let timings = timings.extended(&watch);
    assert_eq!(count(&ground, &[]).await, timings.count() as u64, "an answered create is lost");
    ground.close().await;
    timings
}

async fn count(ground: &Ground, states: &[&'static str]) -> u64 {
    let filter = ListWorkspaces { states: states.to_vec(), limit: Some(0), ..Default::default() };
    ground.control.list_workspaces(&ground.caller, &filter).await.expect("a list").total
}

async fn reads(plan: &Plan, figures: &mut Vec<Figure>) {
    let ground = Ground::open(&plan.directory).await;
    let ids = fill(&ground, plan.workspaces).await;
    let pages = [
        ("first page of 100", ListWorkspaces::default()),
        (
            "last page of 100",
            ListWorkspaces { offset: plan.workspaces - PAGE_LEN, ..Default::default() },
        ),
        ("page of one state", ListWorkspaces { states: vec!["provisioned"], ..Default::default() }),
        (
            "page of one namespace",
            ListWorkspaces { namespace: Some("none".to_owned()), ..Default::default() },
        ),
    ];
    for (name, filter) in pages {
        let filter = ListWorkspaces { limit: Some(PAGE_LEN), ..filter };
        for callers in [1, 8].into_iter().filter(|_| plan.wants(name)) {
            let (control, caller, filter) =
                (ground.control.clone(), ground.caller.clone(), filter.clone());
            let timings = timed(callers, plan.each, move || {
                let (control, caller, filter) = (control.clone(), caller.clone(), filter.clone());
                async move {
                    control.list_workspaces(&caller, &filter).await.expect("a page");
                }
            })
            .await;
            let target = if callers == 1 { PAGE } else { Target::NONE };
            figures.push(Figure::new(name, callers, &timings, target));
        }
    }
    if plan.wants("whole list") {
        let (control, caller) = (ground.control.clone(), ground.caller.clone());
        let timings = timed(1, plan.each, move || {
            let (control, caller) = (control.clone(), caller.clone());
            async move {
                let all = ListWorkspaces::default();
                control.list_workspaces(&caller, &all).await.expect("a list");
            }
        })
        .await;
        figures.push(Figure::new("whole list", 1, &timings, Target::NONE));
    }
    for callers in [1, 64] {
        if plan.wants("one workspace") {
            let (control, caller) = (ground.control.clone(), ground.caller.clone());
            let which = WorkspaceRef::Id(*ids.get(ids.len() / 2).expect("workspaces"));
            let timings = timed(callers, plan.each, move || {
                let (control, caller, which) = (control.clone(), caller.clone(), which.clone());
                async move {
                    control.get_workspace(&caller, &which).await.expect("it is there");
                }
            })
            .await;
            figures.push(Figure::new("one workspace", callers, &timings, Target::NONE));
        }
        if plan.wants("authenticate") {
            let control = ground.control.clone();
            let timings = timed(callers, plan.each, move || {
                let control = control.clone();
                async move {
                    let secret = Secret::new(skerry_control::testing::KEY);
                    let credential = Credential { secret, account: None };
                    control.authenticate(&credential).await.expect("the key works");
                }
            })
            .await;
            figures.push(Figure::new("authenticate", callers, &timings, Target::NONE));
        }
    }
    ground.close().await;
}

/// Makes this many workspaces; every fourth carries labels of some size.
async fn fill(ground: &Ground, workspaces: u64) -> Vec<WorkspaceId> {
    let mut tasks = tokio::task::JoinSet::new();
    for share in 0..64 {
        let (control, caller) = (ground.control.clone(), ground.caller.clone());
        tasks.spawn(async move {
            let mut ids = Vec::new();
            for number in (share..workspaces).step_by(64) {
                let mut request = request(StartPolicy::Later);
                if number % 4 == 0 {
                    let label = serde_json::Value::String("x".repeat(4096));
                    request.metadata.insert("label".to_owned(), label);
                }
                let made = control.create_workspace(&caller, request).await.expect("created");
                ids.push(made.id);
            }
            ids
        });
    }
    tasks.join_all().await.concat()
}
