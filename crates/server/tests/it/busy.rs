//! One workspace's trouble is not another's.

use std::time::{Duration, Instant};

use serde_json::json;
use skerry_vmm::{
    Vmm,
    fake::{FakeVmm, Fault},
};

use crate::world::{WORKSPACES, World, bounded};

/// Far below every bound on a guest, far above what an answer takes on a busy machine.
const FAST: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_guest_and_one_that_hangs_in_boot_slow_nobody_and_can_be_stopped() {
    bounded(async {
        let mut world = World::new();
        world.stop_grace = Duration::from_secs(1);
        let server = world.start().await;
        let frozen = server.create("frozen").await;
        let vm = FakeVmm::new(world.host.clone()).adopt(&world.only_vm()).await.unwrap();
        vm.pause(Duration::from_secs(1)).await.unwrap();
        world.host.inject(Fault::SilentGuest);
        let hanging =
            server.expect(201, "POST", WORKSPACES, Some(json!({"name": "hanging"}))).await;
        world.booted(2).await;
        let client = server.clone();
        let path = format!("{WORKSPACES}/{frozen}/exec");
        let stuck = tokio::spawn(async move {
            let body = json!({"argv": ["true"], "timeout_seconds": 30});
            client.ask("POST", &path, Some(body)).await
        });

        let began = Instant::now();
        for path in
            [WORKSPACES, "/api/v1/workspaces", "/workspaces", "/v1/vms/", "/workspace", "/healthz"]
        {
            server.get(path).await;
        }
        assert_eq!(server.workspace(&frozen).await["state"], "running");
        let fine = server.create("fine").await;
        assert_eq!(server.run(&fine, "echo fine").await, "fine\n");
        assert!(began.elapsed() < FAST, "{:?}", began.elapsed());

        assert_eq!(server.power(&frozen, "stop").await["state"], "stopped");
        server.delete(hanging["id"].as_str().unwrap()).await;
        let (status, body) = stuck.await.unwrap().unwrap();
        assert!((400..600).contains(&status), "{status} {body}");
        assert_eq!(world.host.running().len(), 1);
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_output_in_one_workspace_stalls_no_command_of_another() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let noisy = server.create("noisy").await;
        let quiet = server.create("quiet").await;
        let started = world.dir.path().join("home/flood");
        let floods: Vec<_> = (0..2)
            .map(|number| {
                let client = server.clone();
                let path = format!("{WORKSPACES}/{noisy}/exec");
                let script = format!("touch {}{number}; exec yes", started.display());
                let body = json!({"argv": ["sh", "-c", script], "timeout_seconds": 5,
                                  "max_output_bytes": 1000});
                tokio::spawn(async move { client.expect(200, "POST", &path, Some(body)).await })
            })
            .collect();
        for number in 0..2 {
            let path = format!("{}{number}", started.display());
            crate::world::until("floods", async || std::fs::exists(&path).unwrap()).await;
        }
        let began = Instant::now();
        let mut count = 0;
        while !floods.iter().all(tokio::task::JoinHandle::is_finished) && count < 20 {
            assert_eq!(server.run(&quiet, "echo heard").await, "heard\n");
            // The same workspace answers too: one stream does not block another.
            assert_eq!(server.run(&noisy, "echo heard").await, "heard\n");
            count += 1;
        }
        assert!(count >= 3, "only {count} commands while the floods ran {:?}", began.elapsed());
        for flood in floods {
            let ended = flood.await.unwrap();
            assert_eq!(ended["timed_out"], true, "{ended}");
            assert_eq!(ended["stdout_truncated"], true, "{ended}");
            assert_eq!(ended["stdout"].as_str().unwrap().len(), 1000);
        }
        server.end().await;
    })
    .await;
}
