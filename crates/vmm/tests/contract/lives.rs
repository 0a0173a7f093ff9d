//! The death of the process that drives the VMs, for real: a helper process boots a VM and is killed
//! with SIGKILL, and this process, which is not the VM's parent, takes over from the record.

use std::{fs, process::Stdio};

use skerry_agent_protocol::handshake;
use skerry_vmm::{
    BootSpec, Exit, Vmm, VmmError, VmmRecord,
    qemu::{AcceleratorChoice, QemuConfig, QemuVmm},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use crate::{
    qemu::QemuHarness,
    suite::{Harness, TEST_DEADLINE},
};

const TASK: &str = "SKERRY_TEST_LIFE";

/// Begins the line of the helper's output that holds the record.
const RECORD: &str = "record: ";

/// What the helper is to do.
#[derive(serde::Serialize, serde::Deserialize)]
struct Task {
    spec: BootSpec,
    dies_in: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum Stage {
    Commit,
    Running,
}

/// The helper's program. It waits to be killed, for a bounded time.
#[tokio::test]
#[ignore = "a process started by the tests below"]
async fn helper() {
    let Ok(task) = std::env::var(TASK) else {
        println!("nothing to do: {TASK} is not set");
        return;
    };
    let task: Task = serde_json::from_str(&task).unwrap();
    let vmm = open().await;
    let tell = |record: &VmmRecord| {
        println!("\n{RECORD}{}", serde_json::to_string(record).unwrap());
    };
    let vm = vmm
        .boot(&task.spec, &mut |record| {
            if task.dies_in == Stage::Commit {
                tell(record);
                std::thread::park_timeout(TEST_DEADLINE);
            }
            Ok(())
        })
        .await
        .unwrap();
    tell(vm.record());
    let _ = tokio::time::timeout(TEST_DEADLINE, vm.wait_exit()).await;
}

async fn open() -> QemuVmm {
    let config = QemuConfig { binary: None, accelerator: AcceleratorChoice::Tcg };
    QemuVmm::open(config).await.unwrap()
}

/// Lets a helper live until it has told its record, and kills it.
async fn a_life_that_ends(spec: BootSpec, dies_in: Stage) -> VmmRecord {
    let mut helper = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lives::helper", "--ignored", "--nocapture"])
        .env(TASK, serde_json::to_string(&Task { spec, dies_in }).unwrap())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = BufReader::new(helper.stdout.take().unwrap()).lines();
    let record = loop {
        let line = output.next_line().await.unwrap().expect("the helper tells its record");
        if let Some(record) = line.strip_prefix(RECORD) {
            break serde_json::from_str(record).unwrap();
        }
    };
    helper.kill().await.unwrap();
    record
}

async fn bounded(test: impl Future<Output = ()>) {
    tokio::time::timeout(TEST_DEADLINE, test).await.unwrap();
}

#[tokio::test]
async fn a_child_that_was_never_let_go_ends_with_its_parent() {
    bounded(async {
        let harness = QemuHarness::new();
        let record = a_life_that_ends(harness.spec(), Stage::Commit).await;
        // It may still be ending when we look; adopting it then finishes it.
        let outcome = open().await.adopt(&record).await;
        assert!(matches!(outcome, Err(VmmError::Gone)));
        assert!(!harness.is_alive(&record));
    })
    .await;
}

#[tokio::test]
async fn a_vm_of_a_killed_life_is_adopted_and_its_end_explained() {
    bounded(async {
        let harness = QemuHarness::new();
        let spec = BootSpec { kernel_args: vec!["skerry.probe".into()], ..harness.spec() };
        let record = a_life_that_ends(spec, Stage::Running).await;
        let vm = open().await.adopt(&record).await.unwrap();
        assert_eq!(vm.wait_exit().await, Exit::PoweredOff);
        vm.kill().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_vm_of_a_killed_life_talks_and_its_crash_is_noticed() {
    bounded(async {
        let harness = QemuHarness::new();
        let record = a_life_that_ends(harness.spec(), Stage::Running).await;
        let vm = open().await.adopt(&record).await.unwrap();
        let mut channel = vm.connect_guest().await.unwrap();
        handshake::connect(&mut channel, [1; 16], TEST_DEADLINE).await.unwrap();
        // The console goes on where the killed life left it.
        assert!(fs::metadata(&record.console_log).unwrap().len() > 0);

        harness.kill_from_outside(&record).await;
        assert!(matches!(vm.wait_exit().await, Exit::Crashed(_)));
        assert!(matches!(vm.connect_guest().await, Err(VmmError::Gone)));
    })
    .await;
}
