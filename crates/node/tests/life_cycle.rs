//! A VM's life on a node with a fake hypervisor and the real agent.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{fs, time::Duration};

use bytes::Bytes;
use futures::TryStreamExt;
use skerry_internal_api::{
    DoctorLevel, LogSource, NodeApi, NodeError, NodeEvent, StopMode, VmExit, VmPhase,
};
use skerry_model::{Incarnation, MemMib, WorkspaceId, spec::LogRetention};
use skerry_node::Error;
use skerry_vmm::fake::Fault;
use support::{
    GRACEFUL, World, assert_nothing, assert_only_disk, assert_running, bounded, exec, outcome,
};

const ID: WorkspaceId = WorkspaceId::from_u128(1);

async fn read_log(node: &skerry_node::Node, source: LogSource) -> String {
    let pieces: Vec<Bytes> =
        node.log(ID, source, 1 << 20).await.unwrap().try_collect().await.unwrap();
    String::from_utf8(pieces.concat()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_started_vm_runs_commands_and_a_stop_keeps_only_its_disk() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let report = node.ensure_running(world.spec(1, 1)).await.unwrap();
        assert_running(&report);
        assert_eq!(node.inspect(ID).await, Some(report.clone()));
        assert_eq!(node.list().await, [report]);
        assert_eq!(exec(&node, 1, &["sh", "-c", "echo $GREETING"]).await, outcome("hello\n"));

        node.ensure_stopped(ID, Incarnation(1), GRACEFUL).await.unwrap();
        assert_only_disk(&world, 1);
        assert!(world.has_disk(1));
        let report = node.inspect(ID).await.unwrap();
        assert_eq!((report.phase, report.pid, report.ready_at), (VmPhase::Stopped, None, None));
        assert_eq!(node.guest(ID).await.err(), Some(NodeError::NotRunning));

        node.ensure_deleted(ID).await.unwrap();
        assert_nothing(&world, 1);
        assert_eq!(node.inspect(ID).await, None);
        assert_eq!(node.guest(ID).await.err(), Some(NodeError::NoSuchVm));
        node.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_and_deleting_what_is_not_there_is_a_success() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        node.ensure_stopped(ID, Incarnation(3), StopMode::Kill).await.unwrap();
        node.ensure_deleted(ID).await.unwrap();
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        for _ in 0..2 {
            node.ensure_stopped(ID, Incarnation(1), StopMode::Kill).await.unwrap();
        }
        for _ in 0..2 {
            node.ensure_deleted(ID).await.unwrap();
        }
        assert_nothing(&world, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_repeated_is_the_same_vm_and_starts_at_once_are_one() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let (one, two) = tokio::join!(
            node.ensure_running(world.spec(1, 1)),
            node.ensure_running(world.spec(1, 1))
        );
        assert_eq!(one.unwrap(), two.unwrap());
        assert_eq!(world.host.started_count(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_start_replaces_the_vm_and_an_older_one_is_refused() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let first = node.ensure_running(world.spec(1, 1)).await.unwrap();
        let second = node.ensure_running(world.spec(1, 3)).await.unwrap();
        assert_ne!(first.pid, second.pid);
        assert_eq!(second.incarnation, Incarnation(3));
        assert_eq!(world.host.running().len(), 1);
        assert_eq!(node.ensure_running(world.spec(1, 2)).await, Err(NodeError::NoSuchVm));
        // A stop that speaks of the older start does not touch the newer one.
        node.ensure_stopped(ID, Incarnation(2), StopMode::Kill).await.unwrap();
        assert_running(&node.inspect(ID).await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_during_start_wins() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        world.host.inject(Fault::SilentGuest);
        let start = node.ensure_running(world.spec(1, 1));
        let stop = async {
            world.booted(1).await;
            node.ensure_stopped(ID, Incarnation(1), GRACEFUL).await
        };
        let (started, stopped) = tokio::join!(start, stop);
        assert_eq!(started, Err(NodeError::NotRunning));
        stopped.unwrap();
        assert_only_disk(&world, 1);
        assert_eq!(world.host.started_count(), 1, "no second boot after the stop");
        assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_during_start_leaves_nothing() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        world.host.inject(Fault::SilentGuest);
        let start = node.ensure_running(world.spec(1, 1));
        let delete = async {
            world.booted(1).await;
            node.ensure_deleted(ID).await
        };
        let (started, deleted) = tokio::join!(start, delete);
        assert_eq!(started, Err(NodeError::NotRunning));
        deleted.unwrap();
        assert_nothing(&world, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_does_not_leave_a_start_half_done() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let caller = tokio::spawn({
            let (node, spec) = (node.clone(), world.spec(1, 1));
            async move { node.ensure_running(spec).await }
        });
        world.booted(1).await;
        caller.abort();
        assert_running(&node.ensure_running(world.spec(1, 1)).await.unwrap());
        assert_eq!(world.host.started_count(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_ends_by_itself_is_reported_and_released() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let mut events = node.subscribe();
        node.ensure_running(world.spec(1, 4)).await.unwrap();
        world.host.crash(&world.host.running()[0]).await;
        let NodeEvent::Exited { workspace_id, incarnation, exit } = events.recv().await.unwrap();
        assert_eq!((workspace_id, incarnation), (ID, Incarnation(4)));
        assert!(matches!(&exit, VmExit::Crashed { reason } if reason.contains("SIGKILL")));
        assert_only_disk(&world, 1);
        let report = node.inspect(ID).await.unwrap();
        assert_eq!((report.phase, report.last_exit), (VmPhase::Stopped, Some(exit)));
        let report = node.ensure_running(world.spec(1, 5)).await.unwrap();
        assert_eq!(report.last_exit, None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_hangs_in_boot_is_booted_once_more() {
    bounded(async {
        let mut world = World::new();
        world.boot_timeout = Duration::from_secs(10);
        let node = world.open().await;
        world.host.inject(Fault::SilentGuest);
        assert_running(&node.ensure_running(world.spec(1, 1)).await.unwrap());
        assert_eq!((node.repeated_boots(), world.host.started_count()), (1, 2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_always_hangs_is_given_up_within_the_bound() {
    bounded(async {
        let mut world = World::new();
        world.boot_timeout = Duration::from_secs(2);
        let node = world.open().await;
        world.host.inject(Fault::SilentGuest);
        world.host.inject(Fault::SilentGuest);
        let error = node.ensure_running(world.spec(1, 1)).await.unwrap_err();
        let given_up = matches!(&error, NodeError::Timeout { .. } | NodeError::GuestUnreachable(_));
        assert!(given_up, "{error:?}");
        assert_only_disk(&world, 1);
        assert_eq!(world.host.started_count(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boot_that_fails_leaves_only_the_disk() {
    for fault in [Fault::FailBeforeCommit, Fault::FailAfterCommit] {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            world.host.inject(fault);
            let error = node.ensure_running(world.spec(1, 1)).await.unwrap_err();
            assert_eq!(error, NodeError::Step { step: "boot" });
            assert_only_disk(&world, 1);
            assert_eq!(node.capacity().await.memory_promised_mib, 0);
            assert_running(&node.ensure_running(world.spec(1, 2)).await.unwrap());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_room_or_image_is_told_before_anything_is_touched() {
    bounded(async {
        let mut world = World::new();
        world.memory_mib = Some(300);
        let node = world.open().await;
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        assert_eq!(node.capacity().await.memory_promised_mib, 256);
        let refused = node.ensure_running(world.spec(2, 1)).await;
        assert!(matches!(refused, Err(NodeError::NoCapacity(_))), "{refused:?}");
        assert!(!world.vm_dir(2).exists());
        assert_eq!(node.inspect(WorkspaceId::from_u128(2)).await, None);

        node.ensure_stopped(ID, Incarnation(1), StopMode::Kill).await.unwrap();
        assert_eq!(node.capacity().await.memory_promised_mib, 0);
        let mut spec = world.spec(2, 1);
        spec.image_digest.0 = format!("sha256:{}", "0".repeat(64));
        spec.shape.memory_mib = MemMib(128);
        let refused = node.ensure_running(spec).await;
        assert!(matches!(refused, Err(NodeError::NoSuchImage(_))), "{refused:?}");
        assert!(!world.vm_dir(2).exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_keeps_its_identity_across_starts_and_shares_it_with_none() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        for (workspace, incarnation) in [(1, 1), (1, 2), (2, 1)] {
            node.ensure_running(world.spec(workspace, incarnation)).await.unwrap();
        }
        let macs: Vec<[u8; 6]> = world.boots.borrow().iter().map(|spec| spec.mac).collect();
        assert_eq!(macs[0], macs[1]);
        assert_ne!(macs[0], macs[2]);
        let id =
            |workspace| fs::read_to_string(world.vm_dir(workspace).join("machine-id")).unwrap();
        assert_ne!(id(1), id(2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_vms_never_share_a_uid_a_memory_file_or_a_directory() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        node.ensure_running(world.spec(2, 1)).await.unwrap();
        let boots = world.boots.borrow().clone();
        assert_ne!(boots[0].memory_file, boots[1].memory_file);
        assert_ne!(boots[0].run_dir, boots[1].run_dir);
        assert!(boots[0].sandbox.uid.is_none() || boots[0].sandbox.uid != boots[1].sandbox.uid);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn console_and_command_logs_can_be_read_and_are_kept_as_asked() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        assert_eq!(read_log(&node, LogSource::Console).await, "");
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        exec(&node, 1, &["sh", "-c", "echo out; echo err >&2; exit 3"]).await;
        node.ensure_stopped(ID, Incarnation(1), GRACEFUL).await.unwrap();
        let log = read_log(&node, LogSource::Commands).await;
        assert!(log.contains("$ sh -c 'echo out; echo err >&2; exit 3'"), "{log}");
        assert!(
            log.contains("out\n") && log.contains("err\n") && log.contains(" exit 3, "),
            "{log}"
        );

        node.ensure_running(world.spec(1, 2)).await.unwrap();
        assert_eq!(read_log(&node, LogSource::Console).await.matches("boots").count(), 2);
        assert!(read_log(&node, LogSource::Commands).await.contains("exit 3"));
        let vm_dir = world.config().data_dir.join("vms").join(ID.to_string());
        std::fs::write(vm_dir.join("console.log.1"), "boots, long ago\n").unwrap();
        let mut spec = world.spec(1, 3);
        spec.log_retention = LogRetention::ThisStart;
        node.ensure_running(spec).await.unwrap();
        assert_eq!(read_log(&node, LogSource::Console).await.matches("boots").count(), 1);
        assert_eq!(read_log(&node, LogSource::Commands).await, "");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_on_the_same_directory_is_refused() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        assert!(matches!(world.try_open().await, Err(Error::DataDirInUse(_))));
        let id = node.id();
        node.shutdown().await;
        drop(node);
        assert_eq!(world.open().await.id(), id, "the node keeps its id");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_of_a_deep_data_directory_get_a_short_path() {
    bounded(async {
        let world = World::new();
        let deep = world.dir.path().join("d".repeat(60));
        let mut config = world.config();
        config.data_dir = deep.clone();
        let vmm = std::sync::Arc::new(skerry_vmm::fake::FakeVmm::new(world.host.clone()));
        let environment = skerry_node::NodeEnvironment {
            now: std::sync::Arc::new(|| skerry_model::Timestamp::UNIX_EPOCH),
            fill_random: std::sync::Arc::new(|bytes| bytes.fill(7)),
            seal: std::sync::Arc::new(support::seal::TestSeal::default()),
        };
        let node = skerry_node::Node::open(config, vmm, environment).await.unwrap();
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        let run_dir = world.boots.borrow()[0].run_dir.clone();
        assert!(
            run_dir.as_os_str().len() <= 80 && run_dir.starts_with(world.dir.path().join("short"))
        );
        node.ensure_deleted(ID).await.unwrap();
        assert!(!run_dir.exists());
        node.shutdown().await;
        assert!(!run_dir.parent().unwrap().exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_names_every_check_and_the_images_found() {
    bounded(async {
        let world = World::new();
        let node = world.open().await;
        let doctor = node.doctor().await;
        let names: Vec<&str> = doctor.checks.iter().map(|check| check.name.as_str()).collect();
        insta::assert_debug_snapshot!(names);
        let images = doctor.checks.iter().find(|check| check.name == "images").unwrap();
        assert_eq!((images.level, images.found.as_str()), (DoctorLevel::Ok, "base"));
        assert_eq!(node.images().await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_without_a_node_or_hypervisor_says_what_is_missing_and_makes_nothing() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let config =
            skerry_node::NodeConfig::new(dir.path().join("data"), dir.path().join("images"));
        let doctor = skerry_node::doctor(config, Err("not installed".into())).await;
        assert_eq!(doctor.accelerator, "none");
        for name in ["hypervisor", "images", "boot files"] {
            let check = doctor.checks.iter().find(|check| check.name == name).unwrap();
            assert_eq!(check.level, DoctorLevel::Missing, "{name}");
            assert!(check.remedy.is_some(), "{name}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    })
    .await;
}

#[test]
fn a_vm_whose_owner_is_gone_answers_with_an_error_instead_of_being_asked_for_ever() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (owners, callers) = (runtime(), runtime());
    let world = World::new();
    let node = owners.block_on(bounded(async {
        let node = world.open().await;
        node.ensure_running(world.spec(1, 1)).await.unwrap();
        node
    }));
    owners.shutdown_timeout(Duration::from_secs(20));

    callers.block_on(bounded(async {
        let lost = Some(NodeError::Step { step: "vm_owner" });
        assert_eq!(node.ensure_running(world.spec(1, 2)).await.err(), lost);
        assert_eq!(node.ensure_paused(ID, Incarnation(1)).await.err(), lost);
        assert_eq!(node.ensure_stopped(ID, Incarnation(1), GRACEFUL).await.err(), lost);
        assert_eq!(node.ensure_deleted(ID).await.err(), lost);
    }));
}
