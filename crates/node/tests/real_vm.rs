//! The node with real guests: QEMU, the built kernel and agent, the base image.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{fs, time::Instant};

use futures::TryStreamExt;
use skerry_internal_api::{LogSource, NodeApi, NodeEvent, StopMode, VmExit, VmPhase};
use skerry_model::Incarnation;
use skerry_node::FaultKind;
use support::{
    GRACEFUL,
    real::{RealWorld, bounded, stdout},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_vm_boots_runs_commands_keeps_its_disk_and_leaves_nothing() {
    bounded(async {
        let world = RealWorld::new().await;
        let id = world.id;
        let node = world.open().await;
        let began = Instant::now();
        let report = node.ensure_running(world.spec(1, 256)).await.unwrap();
        eprintln!("boot to ready: {:?}", began.elapsed());
        let uname = stdout(&node, id, "uname -a").await;
        assert!(uname.starts_with("Linux lighthouse "), "{uname}");
        assert_eq!(stdout(&node, id, "echo $GREETING").await, "hello\n");
        let machine_id = stdout(&node, id, "cat /etc/machine-id").await;
        let size_kib = "df --output=size / | tail -1";
        let before: u64 = stdout(&node, id, size_kib).await.trim().parse().unwrap();
        stdout(&node, id, "echo kept > /root/kept && sync").await;

        // The process has rights and limits of its own.
        let pid = report.pid.unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        if nix::unistd::geteuid().is_root() {
            let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap();
            assert!(uid.starts_with("20"), "{uid}");
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            assert!(cgroup.contains(&format!("skerry-vm-{id}")), "{cgroup}");
        }
        assert!(status.contains("Seccomp:\t2"), "{status}");

        let began = Instant::now();
        node.ensure_stopped(id, Incarnation(1), GRACEFUL).await.unwrap();
        eprintln!("stop: {:?}", began.elapsed());
        assert_eq!(node.inspect(id).await.unwrap().phase, VmPhase::Stopped);

        // The next start has the same disk, grown as asked, and the same identity.
        node.ensure_running(world.spec(2, 1024)).await.unwrap();
        assert_eq!(stdout(&node, id, "cat /root/kept").await, "kept\n");
        assert_eq!(stdout(&node, id, "cat /etc/machine-id").await, machine_id);
        let after: u64 = stdout(&node, id, size_kib).await.trim().parse().unwrap();
        assert!(after > before + 600 * 1024, "{before} KiB, then {after} KiB");
        let log: Vec<bytes::Bytes> =
            node.log(id, LogSource::Console, 1 << 20).await.unwrap().try_collect().await.unwrap();
        assert!(!log.is_empty());

        let began = Instant::now();
        node.ensure_deleted(id).await.unwrap();
        eprintln!("delete: {:?}", began.elapsed());
        assert_eq!(world.left(), Vec::<String>::new());
        node.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_vm_outlives_its_node_and_is_taken_over() {
    bounded(async {
        let world = RealWorld::new().await;
        let id = world.id;
        let node = world.open().await;
        let before = node.ensure_running(world.spec(1, 256)).await.unwrap();
        let uptime = stdout(&node, id, "cut -d. -f1 /proc/uptime").await;
        node.abandon().await;

        let node = world.open().await;
        assert_eq!(node.list().await, [before]);
        let later = stdout(&node, id, "cut -d. -f1 /proc/uptime").await;
        let seconds = |text: &str| text.trim().parse::<u64>().unwrap();
        assert!(seconds(&later) >= seconds(&uptime), "the same kernel still runs");

        // It powers itself off: reported, released, the disk kept.
        let mut events = node.subscribe();
        let guest = node.guest(id).await.unwrap();
        let request = skerry_internal_api::ExecRequest {
            argv: vec!["sh".into(), "-c".into(), "kill -9 -1; echo o > /proc/sysrq-trigger".into()],
            env: std::collections::BTreeMap::new(),
            working_dir: None,
            user: skerry_internal_api::User::Root,
            pty: None,
            timeout: None,
        };
        let _session = guest.exec(request).await.unwrap();
        let NodeEvent::Exited { workspace_id, exit, .. } = events.recv().await.unwrap();
        assert_eq!((workspace_id, exit), (id, VmExit::PoweredOff));
        assert_eq!(node.inspect(id).await.unwrap().phase, VmPhase::Stopped);

        node.ensure_stopped(id, Incarnation(1), StopMode::Kill).await.unwrap();
        node.ensure_deleted(id).await.unwrap();
        assert_eq!(world.left(), Vec::<String>::new());
        node.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_while_a_real_process_is_there_finds_a_clean_slate() {
    bounded(async {
        let world = RealWorld::new().await;
        let id = world.id;
        let points = ["boot", "guest_ready", "power_off", "release_process", "tombstone"];
        for (incarnation, point) in (1..).zip(points) {
            let node = world.open().await;
            assert!(world.faults.plan(point, FaultKind::Hang));
            let life = async {
                node.ensure_running(world.spec(incarnation, 256)).await.unwrap();
                if point == "tombstone" {
                    node.ensure_deleted(id).await
                } else {
                    node.ensure_stopped(id, Incarnation(incarnation), GRACEFUL).await
                }
            };
            tokio::select! {
                _ = life => panic!("the node did not stop at {point}"),
                () = world.faults.happened(point) => {}
            }
            node.abandon().await;

            let node = world.open().await;
            let dir = world.dir.path().join("data/vms").join(id.to_string());
            if point == "tombstone" {
                assert_eq!(node.inspect(id).await, None);
                assert_eq!(world.left(), Vec::<String>::new());
            } else {
                assert_eq!(node.inspect(id).await.unwrap().phase, VmPhase::Stopped, "{point}");
                assert_eq!(world.left(), [dir.display().to_string()], "{point}");
                assert!(!dir.join("run").exists(), "{point}");
            }
            node.shutdown().await;
        }
    })
    .await;
}
