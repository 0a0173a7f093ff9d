//! Starts that do not boot: from templates and from the pool, with a fake hypervisor and the real
//! agent.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{collections::BTreeSet, fs};

use skerry_internal_api::{NodeApi, NodeError, StartPath, StopMode, VmPhase, VmReport};
use skerry_model::{Incarnation, MemMib, VcpuCount, WorkspaceId};
use skerry_node::{FaultKind, Node};
use skerry_vmm::fake::{Fault, Step, StepFault, VmState};
use support::{
    GRACEFUL, World, assert_nothing, assert_only_disk, assert_running, bounded, exec,
    machine::names, outcome,
};

fn id(workspace: u128) -> WorkspaceId {
    WorkspaceId::from_u128(workspace)
}

/// A node that has just started a first workspace, and has made what it makes after that.
async fn prepared(world: &World) -> Node {
    let node = world.open().await;
    let first = node.ensure_running(world.spec(1000, 1)).await.unwrap();
    assert_eq!(first.start_path, Some(StartPath::Boot));
    node.settled().await;
    node.ensure_deleted(id(1000)).await.unwrap();
    node
}

/// How a workspace that is started for the first time comes to run.
async fn start(node: &Node, world: &World, workspace: u128) -> VmReport {
    let report = node.ensure_running(world.spec(workspace, 1)).await.unwrap();
    assert_running(&report);
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_of_a_shape_boots_and_the_next_are_clones_of_its_template() {
    bounded(async {
        let world = World::instant(0);
        let node = prepared(&world).await;
        assert_eq!(world.templates().len(), 1);
        assert_eq!(world.nobodys(), Vec::<String>::new());
        for workspace in [1, 2] {
            let report = start(&node, &world, workspace).await;
            assert_eq!(report.start_path, Some(StartPath::Template));
            let greeting = exec(&node, workspace, &["sh", "-c", "echo $GREETING"]).await;
            assert_eq!(greeting, outcome("hello\n"));
        }
        let mut other = world.spec(3, 1);
        other.shape.memory_mib = MemMib(128);
        let report = node.ensure_running(other).await.unwrap();
        assert_eq!(report.start_path, Some(StartPath::Boot), "another shape is another machine");
        node.settled().await;

        let statistics = node.start_statistics().await;
        assert_eq!((statistics.boots, statistics.template_restores), (2, 2));
        assert_eq!((statistics.templates, statistics.restore_fallbacks), (2, 0));
        for workspace in 1..=3 {
            node.ensure_deleted(id(workspace)).await.unwrap();
        }
        for workspace in 1..=3 {
            assert_nothing(&world, workspace);
        }
        node.shutdown().await;
        assert_eq!(world.groups(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_has_no_memory_file_and_a_disk_on_the_templates_layer() {
    bounded(async {
        let world = World::instant(0);
        let node = prepared(&world).await;
        start(&node, &world, 1).await;
        assert_eq!(support::machine::names(&world.memory_dir()), Vec::<String>::new());
        let disk = world.host.disk_of(&world.host.running()[0]).unwrap();
        let layers = world.layers();
        assert_eq!((disk.layers.len(), layers.len()), (1, 1));
        assert!(disk.layers[0].ends_with(&layers[0]));

        // Its second start boots from its own disk, on the same layer.
        node.ensure_stopped(id(1), Incarnation(1), GRACEFUL).await.unwrap();
        let report = node.ensure_running(world.spec(1, 2)).await.unwrap();
        assert_eq!(report.start_path, Some(StartPath::Boot));
        let disk = world.host.disk_of(&world.host.running()[0]).unwrap();
        assert_eq!(disk.layers.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_used_by_the_next_life_of_the_server_and_not_by_one_that_differs() {
    bounded(async {
        let world = World::instant(0);
        prepared(&world).await.shutdown().await;
        let node = world.open().await;
        node.settled().await;
        assert_eq!(start(&node, &world, 1).await.start_path, Some(StartPath::Template));
        node.shutdown().await;
        drop(node);

        // Another kernel: what was saved of the old one stands for nothing any more.
        world.replace_kernel(b"another kernel");
        let node = world.open().await;
        node.settled().await;
        assert_eq!(world.templates(), Vec::<String>::new());
        assert_eq!(start(&node, &world, 2).await.start_path, Some(StartPath::Boot));
        node.settled().await;
        assert_eq!(world.templates().len(), 1);
        // The first workspace still stands on the old layer.
        assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
        assert_eq!(world.layers().len(), 2);
        node.ensure_deleted(id(1)).await.unwrap();
        assert_eq!(world.layers().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_template_is_made_anew() {
    bounded(async {
        let world = World::instant(0);
        prepared(&world).await.shutdown().await;
        let key = world.templates().remove(0);
        let ram = world.data_dir().join("templates").join(key).join("ram");
        let mut content = fs::read(&ram).unwrap();
        content[100] ^= 1;
        fs::remove_file(&ram).unwrap();
        fs::write(&ram, content).unwrap();
        let node = world.open().await;
        node.settled().await;
        assert_eq!(world.templates(), Vec::<String>::new());
        assert_eq!(start(&node, &world, 1).await.start_path, Some(StartPath::Boot));
        node.settled().await;
        assert_eq!(start(&node, &world, 2).await.start_path, Some(StartPath::Template));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_fails_at_any_step_is_a_boot_that_is_counted() {
    for step in [None, Some(Step::Load), Some(Step::Resume)] {
        bounded(async {
            let world = World::instant(0);
            let node = prepared(&world).await;
            match step {
                None => world.host.inject(Fault::FailAfterCommit),
                Some(step) => world.host.inject_at(step, StepFault::Die),
            }
            let report = start(&node, &world, 1).await;
            assert_eq!(report.start_path, Some(StartPath::Boot), "{step:?}");
            assert_eq!(node.start_statistics().await.restore_fallbacks, 1, "{step:?}");
            let disk = world.host.disk_of(&world.host.running()[0]).unwrap();
            assert_eq!(disk.layers.len(), 0, "a boot that replaces a restore has its own disk");
            assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
            node.ensure_deleted(id(1)).await.unwrap();
            assert_nothing(&world, 1);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_from_which_starts_fail_again_and_again_is_given_up() {
    bounded(async {
        let world = World::instant(0);
        let node = prepared(&world).await;
        for workspace in [1, 2] {
            world.host.inject(Fault::FailAfterCommit);
            assert_eq!(start(&node, &world, workspace).await.start_path, Some(StartPath::Boot));
        }
        assert_eq!(node.start_statistics().await.templates, 0);
        assert_eq!(start(&node, &world, 3).await.start_path, Some(StartPath::Boot));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn templates_over_the_budget_go_the_least_recently_used_first() {
    bounded(async {
        let mut world = World::instant(0);
        // One template with its layer takes less than a MiB here.
        world.template_budget_mib = 1;
        let node = world.open().await;
        for (workspace, vcpus) in (1..).zip([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]) {
            let mut spec = world.spec(workspace, 1);
            spec.shape.vcpu_count = VcpuCount(vcpus);
            node.ensure_running(spec).await.unwrap();
            node.settled().await;
        }
        node.shutdown().await;
        drop(node);
        let node = world.open().await;
        node.settled().await;
        let left = world.templates().len();
        assert!((1..12).contains(&left), "{left}");
        let mut spec = world.spec(99, 1);
        spec.shape.vcpu_count = VcpuCount(12);
        let report = node.ensure_running(spec).await.unwrap();
        assert_eq!(report.start_path, Some(StartPath::Template), "the last one is kept");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claimed_vm_is_the_workspaces_in_every_respect() {
    bounded(async {
        let world = World::instant(1);
        let node = prepared(&world).await;
        let statistics = node.start_statistics().await;
        assert_eq!((statistics.pool_warm, statistics.pool_parked), (1, 1));
        let waiting: BTreeSet<u32> = world.host.running().iter().map(|vm| vm.pid).collect();

        let report = start(&node, &world, 1).await;
        assert_eq!(report.start_path, Some(StartPath::Pool));
        assert!(waiting.contains(&report.pid.unwrap()), "it waited, it was not made");
        assert_eq!(exec(&node, 1, &["sh", "-c", "echo $GREETING"]).await, outcome("hello\n"));
        assert_eq!(node.capacity().await.memory_promised_mib, 256);
        assert_eq!(node.ensure_running(world.spec(1, 1)).await.unwrap(), report);

        node.ensure_stopped(id(1), Incarnation(1), GRACEFUL).await.unwrap();
        assert_eq!(node.inspect(id(1)).await.unwrap().phase, VmPhase::Stopped);
        assert!(world.has_disk(1));
        assert_eq!(node.capacity().await.memory_promised_mib, 0);
        node.ensure_deleted(id(1)).await.unwrap();
        node.shutdown().await;
        assert_nothing(&world, 1);
        assert_eq!(world.nobodys(), Vec::<String>::new());
        assert_eq!(world.groups(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claimed_vm_is_taken_over_by_the_next_life_of_the_server() {
    bounded(async {
        let world = World::instant(1);
        let node = prepared(&world).await;
        let before = start(&node, &world, 1).await;
        node.abandon().await;
        let node = world.open().await;
        assert_eq!(node.list().await, std::slice::from_ref(&before));
        assert_eq!(exec(&node, 1, &["sh", "-c", "echo $GREETING"]).await, outcome("hello\n"));
        node.settled().await;
        node.ensure_deleted(id(1)).await.unwrap();
        node.shutdown().await;
        assert_nothing(&world, 1);
        assert_eq!(world.nobodys(), Vec::<String>::new());
        assert_eq!(world.groups(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_made_good_and_a_miss_is_a_restore() {
    bounded(async {
        let world = World::instant(1);
        let node = prepared(&world).await;
        // Nobody makes another meanwhile: this task does not wait in between.
        let starts = (1..=3).map(|workspace| node.ensure_running(world.spec(workspace, 1)));
        let reports = futures::future::join_all(starts).await;
        let paths: Vec<StartPath> =
            reports.into_iter().map(|report| report.unwrap().start_path.unwrap()).collect();
        assert!(paths.contains(&StartPath::Pool), "{paths:?}");
        assert!(!paths.contains(&StartPath::Boot), "{paths:?}");
        node.settled().await;
        let statistics = node.start_statistics().await;
        assert_eq!(statistics.pool_warm, 1);
        assert_eq!(statistics.pool_hits + statistics.template_restores, 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_vms_of_the_pool_share_a_uid_a_directory_or_a_machine_id() {
    bounded(async {
        let world = World::instant(4);
        let node = prepared(&world).await;
        let mut ids = BTreeSet::new();
        for workspace in 1..=6 {
            start(&node, &world, workspace).await;
            ids.insert(fs::read(world.vm_dir(workspace).join("machine-id")).unwrap());
        }
        assert_eq!(ids.len(), 6);
        // The pool is full. What is only parked has no guest yet, and with it no uid that was seen.
        node.settled().await;
        let mut running = world.host.running();
        running.retain(|vm| world.host.state_of(vm) != Some(VmState::Parked));
        let dirs: BTreeSet<_> = running.iter().map(|vm| vm.run_dir.clone()).collect();
        assert_eq!(dirs.len(), running.len());
        let uids: Vec<u32> =
            world.boots.borrow().iter().filter_map(|spec| spec.sandbox.uid).collect();
        let live: BTreeSet<u32> = world.live_uids();
        assert!(uids.is_empty() || live.len() == running.len(), "{live:?} of {running:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_died_while_it_waited_is_not_handed_out() {
    bounded(async {
        let world = World::instant(1);
        let node = prepared(&world).await;
        for vm in world.host.running() {
            world.host.crash(&vm).await;
        }
        let report = start(&node, &world, 1).await;
        assert_eq!(report.start_path, Some(StartPath::Template));
        node.settled().await;
        assert_eq!(node.start_statistics().await.pool_warm, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_fails_after_any_step_is_a_restore() {
    for point in ["claim_intent", "claim", "resume", "claim_synced"] {
        bounded(async {
            let world = World::instant(1);
            let node = prepared(&world).await;
            assert!(world.faults.plan(point, FaultKind::Fail));
            let report = start(&node, &world, 1).await;
            assert_eq!(report.start_path, Some(StartPath::Template), "{point}");
            assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
            assert_eq!(node.start_statistics().await.restore_fallbacks, 0);
            node.ensure_deleted(id(1)).await.unwrap();
            node.shutdown().await;
            assert_nothing(&world, 1);
            assert_eq!(world.nobodys(), Vec::<String>::new(), "{point}");
            assert_eq!(world.groups(), Vec::<String>::new(), "{point}");
        })
        .await;
    }
}

/// Runs `request` until the planned fault has happened, then lets the node die there.
async fn die_at<T>(world: &World, node: Node, point: &str, request: impl Future<Output = T>) {
    assert!(world.faults.plan(point, FaultKind::Hang));
    tokio::select! {
        _ = request => panic!("the node did not stop at {point}"),
        () = world.faults.happened(point) => {}
    }
    node.abandon().await;
}

/// What a start must leave that died: at most a disk.
async fn assert_can_be_started(world: &World, point: &str) {
    let node = world.open().await;
    node.settled().await;
    if let Some(report) = node.inspect(id(1)).await {
        assert_eq!(report.phase, VmPhase::Stopped, "{point}");
        assert!(world.has_disk(1), "{point}");
    } else {
        assert!(!world.vm_dir(1).exists(), "{point}");
    }
    start(&node, world, 1).await;
    assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
    node.ensure_deleted(id(1)).await.unwrap();
    node.shutdown().await;
    assert_nothing(world, 1);
    assert_eq!(world.nobodys(), Vec::<String>::new(), "{point}");
    assert_eq!(world.groups(), Vec::<String>::new(), "{point}");
    assert_eq!(world.layers().len(), 1, "that of the template: {point}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_after_any_step_of_a_claim_finds_a_clean_slate() {
    for point in ["claim", "resume", "guest_ready"] {
        bounded(async {
            let world = World::instant(1);
            let node = prepared(&world).await;
            die_at(&world, node.clone(), point, node.ensure_running(world.spec(1, 1))).await;
            drop(node);
            assert_can_be_started(&world, point).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_after_any_step_of_a_restore_finds_a_clean_slate() {
    for point in ["cgroup", "disk", "console_log", "park", "load", "resume", "guest_ready"] {
        bounded(async {
            let world = World::instant(0);
            let node = prepared(&world).await;
            die_at(&world, node.clone(), point, node.ensure_running(world.spec(1, 1))).await;
            drop(node);
            assert_can_be_started(&world, point).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_or_claim_whose_steps_are_each_taken_twice_is_an_ordinary_one() {
    for (pool, point) in [
        (0, "park"),
        (0, "load"),
        (0, "resume"),
        (0, "guest_ready"),
        (0, "ready"),
        (1, "claim"),
        (1, "resume"),
        (1, "guest_ready"),
        (1, "ready"),
    ] {
        bounded(async {
            let world = World::instant(pool);
            let node = prepared(&world).await;
            assert!(world.faults.plan(point, FaultKind::Repeat));
            let path = if pool == 0 { StartPath::Template } else { StartPath::Pool };
            assert_eq!(start(&node, &world, 1).await.start_path, Some(path), "{point}");
            assert!(!world.faults.pending(), "{point}");
            assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_made_with_the_weight_of_the_workspaces_that_boot_without_it() {
    bounded(async {
        let world = World::instant(0);
        let node = world.open().await;
        assert!(world.faults.plan("template_prepared", FaultKind::Hang));
        start(&node, &world, 1).await;
        world.faults.happened("template_prepared").await;
        let nobodys = names(&world.data_dir().join("pool"));
        let [number] = nobodys.as_slice() else { panic!("{nobodys:?}") };
        // Without control groups there is nothing to see.
        assert_eq!(world.cpu_weight(number), world.cpu_weight(&id(1).to_string()));
        node.abandon().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_while_it_makes_something_leaves_nothing_of_it() {
    for point in [
        "vm_directory",
        "ledger_intent",
        "disk",
        "boot",
        "guest_ready",
        "template_prepared",
        "template_saved",
        "park",
        "slot_warmed",
        "slot_condemned",
        "release_process",
        "released",
        "release_disk",
        "release_ledger",
        "deleted",
    ] {
        bounded(async {
            let world = World::instant(1);
            let node = world.open().await;
            start(&node, &world, 1).await;
            assert!(world.faults.plan(point, FaultKind::Hang));
            world.faults.happened(point).await;
            node.abandon().await;
            let node = world.open().await;
            assert_eq!(exec(&node, 1, &["echo", "hi"]).await, outcome("hi\n"));
            node.ensure_deleted(id(1)).await.unwrap();
            node.shutdown().await;
            assert_nothing(&world, 1);
            assert_eq!(world.nobodys(), Vec::<String>::new(), "{point}");
            assert_eq!(world.groups(), Vec::<String>::new(), "{point}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_gives_way_to_a_workspace_that_needs_the_memory() {
    bounded(async {
        let mut world = World::instant(1);
        world.memory_mib = Some(520);
        let node = prepared(&world).await;
        assert_eq!(node.start_statistics().await.pool_warm, 1);
        // A machine of another shape, so that nothing that waits is of use.
        let mut spec = world.spec(1, 1);
        spec.shape.memory_mib = MemMib(510);
        node.ensure_running(spec).await.unwrap();
        let statistics = node.start_statistics().await;
        assert_eq!((statistics.pool_warm, statistics.pool_parked), (0, 0));
        assert_eq!(node.capacity().await.memory_promised_mib, 510);

        let mut too_large = world.spec(2, 1);
        too_large.shape.memory_mib = MemMib(128);
        let refused = node.ensure_running(too_large).await;
        assert!(matches!(refused, Err(NodeError::NoCapacity(_))), "{refused:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pools_bounds_hold_for_many_shapes() {
    bounded(async {
        let world = World::instant(2);
        let node = world.open().await;
        for (workspace, vcpus) in (1..).zip([1, 2, 3, 4]) {
            let mut spec = world.spec(workspace, 1);
            spec.shape.vcpu_count = VcpuCount(vcpus);
            node.ensure_running(spec).await.unwrap();
            node.settled().await;
            let statistics = node.start_statistics().await;
            assert!(statistics.pool_warm <= 2, "{statistics:?}");
        }
        let statistics = node.start_statistics().await;
        assert_eq!((statistics.pool_warm, statistics.templates), (2, 4));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_node_ends_what_waits_and_leaves_what_runs() {
    bounded(async {
        let world = World::instant(2);
        let node = prepared(&world).await;
        let report = start(&node, &world, 1).await;
        node.shutdown().await;
        let left: Vec<u32> = world.host.running().iter().map(|vm| vm.pid).collect();
        assert_eq!(left, [report.pid.unwrap()]);
        assert!(
            world.host.running().iter().all(|vm| world.host.state_of(vm) == Some(VmState::Running))
        );
        let pool = support::machine::names(&world.data_dir().join("pool"));
        assert_eq!(pool, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ends_while_it_makes_something_makes_an_end_of_it() {
    for point in ["guest_ready", "template_prepared", "template_saved", "park", "slot_warmed"] {
        bounded(async {
            let world = World::instant(1);
            let node = world.open().await;
            start(&node, &world, 1).await;
            assert!(world.faults.plan(point, FaultKind::Fail));
            world.faults.happened(point).await;
            node.ensure_deleted(id(1)).await.unwrap();
            node.shutdown().await;
            assert_nothing(&world, 1);
            assert_eq!(world.nobodys(), Vec::<String>::new(), "{point}");
            assert_eq!(world.groups(), Vec::<String>::new(), "{point}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_during_a_claim_wins() {
    bounded(async {
        let world = World::instant(1);
        let node = prepared(&world).await;
        // One for the claim and one for the slot that is made in its place, whichever comes first.
        world.host.inject_at(Step::Resume, StepFault::Hang);
        world.host.inject_at(Step::Resume, StepFault::Hang);
        let start = node.ensure_running(world.spec(1, 1));
        let stop = async {
            world.faults.happened("claim").await;
            node.ensure_stopped(id(1), Incarnation(1), StopMode::Kill).await
        };
        assert!(world.faults.plan("claim", FaultKind::Repeat));
        let (started, stopped) = tokio::join!(start, stop);
        assert_eq!(started, Err(NodeError::NotRunning));
        stopped.unwrap();
        node.ensure_deleted(id(1)).await.unwrap();
        node.shutdown().await;
        assert_nothing(&world, 1);
        assert_eq!(world.nobodys(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_switched_off_costs_nothing() {
    bounded(async {
        let world = World::instant(0);
        let node = prepared(&world).await;
        start(&node, &world, 1).await;
        node.settled().await;
        assert_eq!(world.host.running().len(), 1);
        assert_eq!(node.start_statistics().await.pool_warm, 0);
        node.ensure_stopped(id(1), Incarnation(1), StopMode::Kill).await.unwrap();
        assert_only_disk(&world, 1);
    })
    .await;
}
