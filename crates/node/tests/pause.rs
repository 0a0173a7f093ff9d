//! Pausing and resuming a VM on a fake machine, with failures and crashes at every step.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{sync::Arc, time::Duration};

use skerry_internal_api::{
    ExecControl, ExecOutput, ExecRequest, NodeApi, NodeError, NodeEvent, SnapshotContents,
    StopMode, User, VmPhase,
};
use skerry_model::{Incarnation, SnapshotId, WorkspaceId};
use skerry_node::FaultKind;
use skerry_vmm::{
    BootSpec, Capabilities, Commit, Vm, Vmm, VmmError, VmmRecord,
    fake::{FakeVmm, Step, StepFault, VmState},
};
use support::{
    GRACEFUL, World, assert_nothing, assert_only_disk, assert_running, bounded, die_at, exec,
    outcome,
};

const ID: WorkspaceId = WorkspaceId::from_u128(1);
const FIRST: Incarnation = Incarnation(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_vm_stands_still_until_it_is_resumed_and_both_can_be_repeated() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let before = node.ensure_running(world.spec(1, 1)).await.unwrap();
        for _ in 0..2 {
            let report = node.ensure_paused(ID, FIRST).await.unwrap();
            assert_eq!((report.phase, report.pid), (VmPhase::Paused, before.pid));
            assert_eq!(world.vm_state(1), Some(VmState::Paused));
            assert_eq!(node.guest(ID).await.err(), Some(NodeError::NotRunning));
        }
        for _ in 0..2 {
            assert_eq!(node.ensure_resumed(ID, FIRST).await.unwrap(), before);
            assert_eq!(world.vm_state(1), Some(VmState::Running));
        }
        assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
        assert_eq!(world.host.started_count(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_goes_on_over_a_pause() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        let request = ExecRequest {
            argv: ["sh", "-c", "echo before; read line; echo $line"].map(str::to_owned).to_vec(),
            env: std::collections::BTreeMap::new(),
            working_dir: None,
            user: User::Root,
            pty: None,
            timeout: None,
        };
        let guest = node.guest(ID).await.unwrap();
        let mut session = guest.exec(request).await.unwrap();
        let first = session.output.recv().await.unwrap().unwrap();
        assert!(matches!(first, ExecOutput::Stdout(text) if text == "before\n"));
        node.ensure_paused(ID, FIRST).await.unwrap();
        session.control.send(ExecControl::Stdin("after\n".into())).await.unwrap();
        let silence = tokio::time::timeout(Duration::from_millis(100), session.output.recv());
        assert!(silence.await.is_err(), "a guest that stands still says nothing");
        node.ensure_resumed(ID, FIRST).await.unwrap();
        let second = session.output.recv().await.unwrap().unwrap();
        assert!(matches!(second, ExecOutput::Stdout(text) if text == "after\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_or_not_running_can_be_neither_paused_nor_resumed() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        assert_eq!(node.ensure_paused(ID, FIRST).await, Err(NodeError::NoSuchVm));
        assert_eq!(node.ensure_resumed(ID, FIRST).await, Err(NodeError::NoSuchVm));
        node.ensure_running(world.spec(1, 2)).await.unwrap();
        assert_eq!(node.ensure_paused(ID, FIRST).await, Err(NodeError::NoSuchVm));
        node.ensure_stopped(ID, Incarnation(2), StopMode::Kill).await.unwrap();
        assert_eq!(node.ensure_paused(ID, Incarnation(2)).await, Err(NodeError::NotRunning));
        assert_eq!(node.ensure_resumed(ID, Incarnation(2)).await, Err(NodeError::NotRunning));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_fails_after_any_step_leaves_the_vm_running() {
    for point in ["pause_noted", "paused"] {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            let before = node.ensure_running(world.spec(1, 1)).await.unwrap();
            assert!(world.faults.plan(point, FaultKind::Fail));
            let error = node.ensure_paused(ID, FIRST).await.unwrap_err();
            assert_eq!(error, NodeError::Step { step: point });
            assert_eq!(node.inspect(ID).await.unwrap(), before, "{point}");
            assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
            node.ensure_paused(ID, FIRST).await.unwrap();
            node.ensure_deleted(ID).await.unwrap();
            assert_nothing(&world, 1);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_does_not_pause_or_resume_leaves_the_vm_as_it_was() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        world.host.inject_at(Step::Pause, StepFault::Refuse);
        node.ensure_paused(ID, FIRST).await.unwrap_err();
        assert_running(&node.inspect(ID).await.unwrap());
        node.ensure_paused(ID, FIRST).await.unwrap();
        world.host.inject_at(Step::Resume, StepFault::Refuse);
        node.ensure_resumed(ID, FIRST).await.unwrap_err();
        assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Paused);
        assert_running(&node.ensure_resumed(ID, FIRST).await.unwrap());
        assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_of_a_pause_and_resume_taken_twice_change_nothing() {
    for point in ["pause_noted", "paused", "cpus_resumed", "resume_noted"] {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            node.ensure_running(world.spec(1, 1)).await.unwrap();
            assert!(world.faults.plan(point, FaultKind::Repeat));
            node.ensure_paused(ID, FIRST).await.unwrap();
            assert_running(&node.ensure_resumed(ID, FIRST).await.unwrap());
            assert!(!world.faults.pending(), "{point}");
            assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_during_a_pause_or_resume_takes_the_vm_over_paused() {
    for (point, resuming) in
        [("pause_noted", false), ("paused", false), ("cpus_resumed", true), ("", false)]
    {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            let before = node.ensure_running(world.spec(1, 1)).await.unwrap();
            if resuming || point.is_empty() {
                node.ensure_paused(ID, FIRST).await.unwrap();
            }
            match (point, resuming) {
                ("", _) => node.clone().abandon().await,
                (_, false) => {
                    die_at(&world, node.clone(), point, node.ensure_paused(ID, FIRST)).await;
                }
                (_, true) => {
                    die_at(&world, node.clone(), point, node.ensure_resumed(ID, FIRST)).await;
                }
            }
            drop(node);
            let node = world.open().await;
            let report = node.inspect(ID).await.unwrap();
            assert_eq!((report.phase, report.pid), (VmPhase::Paused, before.pid), "{point}");
            assert_eq!(world.vm_state(1), Some(VmState::Paused), "{point}");
            assert_eq!(node.ensure_resumed(ID, FIRST).await.unwrap(), before, "{point}");
            assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_when_the_resume_is_noted_takes_the_vm_over_running() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let before = node.ensure_running(world.spec(1, 1)).await.unwrap();
        node.ensure_paused(ID, FIRST).await.unwrap();
        die_at(&world, node.clone(), "resume_noted", node.ensure_resumed(ID, FIRST)).await;
        drop(node);
        let node = world.open().await;
        assert_eq!(node.inspect(ID).await.unwrap(), before);
        assert_eq!(world.vm_state(1), Some(VmState::Running));
        assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_vm_is_woken_to_power_off_and_killed_without_that() {
    for (mode, taken_over) in
        [(GRACEFUL, false), (GRACEFUL, true), (StopMode::Kill, false), (StopMode::Kill, true)]
    {
        bounded(async {
            let world = World::new();
            let mut node = world.open().await;
            node.ensure_running(world.spec(1, 1)).await.unwrap();
            node.ensure_paused(ID, FIRST).await.unwrap();
            if taken_over {
                node.abandon().await;
                node = world.open().await;
            }
            let process = world.process(1).unwrap();
            let exit = world.exit_of(&process).await;
            node.ensure_stopped(ID, FIRST, mode).await.unwrap();
            assert_only_disk(&world, 1);
            let expected = match mode {
                StopMode::Graceful { .. } => skerry_vmm::Exit::PoweredOff,
                StopMode::Kill => skerry_vmm::Exit::Killed,
            };
            assert_eq!(exit.await.unwrap(), expected);
            assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped);
            assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_start_replaces_a_paused_vm_and_the_same_start_resumes_it() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let first = node.ensure_running(world.spec(1, 1)).await.unwrap();
        node.ensure_paused(ID, FIRST).await.unwrap();
        assert_eq!(node.ensure_running(world.spec(1, 1)).await.unwrap(), first);
        node.ensure_paused(ID, FIRST).await.unwrap();
        let second = node.ensure_running(world.spec(1, 2)).await.unwrap();
        assert_running(&second);
        assert_ne!(first.pid, second.pid);
        assert_eq!(world.host.running().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_dies_while_it_is_paused_is_reported_and_released() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let mut events = node.subscribe();
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        node.ensure_paused(ID, FIRST).await.unwrap();
        world.host.crash(&world.process(1).unwrap()).await;
        let NodeEvent::Exited { workspace_id, incarnation, .. } = events.recv().await.unwrap();
        assert_eq!((workspace_id, incarnation), (ID, FIRST));
        assert_only_disk(&world, 1);
        assert_eq!(node.ensure_resumed(ID, FIRST).await, Err(NodeError::NotRunning));
    })
    .await;
}

/// A driver that only boots, adopts and kills.
struct Plain(FakeVmm, Capabilities);

#[async_trait::async_trait]
impl Vmm for Plain {
    fn capabilities(&self) -> &Capabilities {
        &self.1
    }

    async fn boot(
        &self,
        spec: &BootSpec,
        committed: &mut Commit<'_>,
    ) -> Result<Arc<dyn Vm>, VmmError> {
        self.0.boot(spec, committed).await
    }

    async fn adopt(&self, record: &VmmRecord) -> Result<Arc<dyn Vm>, VmmError> {
        self.0.adopt(record).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_driver_cannot_do_is_refused_and_the_vm_runs_on() {
    bounded(async {
        let world = World::new();
        let fake = FakeVmm::new(world.host.clone());
        let capabilities = Capabilities { supported: Vec::new(), ..fake.capabilities().clone() };
        let node = world.open_with(Arc::new(Plain(fake, capabilities))).await;
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        let unsupported = |error| assert!(matches!(error, NodeError::Unsupported(_)), "{error:?}");
        unsupported(node.ensure_paused(ID, FIRST).await.unwrap_err());
        unsupported(node.ensure_suspended(ID, FIRST).await.unwrap_err());
        for contents in [SnapshotContents::Disk, SnapshotContents::DiskAndMemory] {
            let snapshot_id = SnapshotId::from_u128(1);
            unsupported(node.take_snapshot(ID, snapshot_id, contents).await.unwrap_err());
        }
        assert_running(&node.inspect(ID).await.unwrap());
        assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
        // A disk at rest needs no driver.
        node.ensure_stopped(ID, FIRST, GRACEFUL).await.unwrap();
        let snapshot_id = SnapshotId::from_u128(1);
        node.take_snapshot(ID, snapshot_id, SnapshotContents::Disk).await.unwrap();
    })
    .await;
}
