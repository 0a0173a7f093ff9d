//! The server dies at the worst moments; nothing is lost and nothing leaks.

use anyhow::{Result, ensure};
use serde_json::json;
use skerry_e2e::{BRING_UP_STEPS, DELETION_STEPS, Options, Server};

#[tokio::test]
async fn a_server_killed_with_vms_running_finds_them_again_with_their_uptime() -> Result<()> {
    let mut server = Server::start(Options::booting()).await?;
    let made = server.expect(200, "POST", "/v1/vms", Some(json!({}))).await?;
    let id = made["vm_id"].as_str().unwrap().to_owned();
    let boot = server.run(&id, "cat /proc/sys/kernel/random/boot_id").await?;
    server
        .run(&id, "(setsid sleep 1000 & echo $! > /run/sleeper) >/dev/null 2>&1 </dev/null")
        .await?;
    let path = format!("/skerry/v1/workspaces/{id}");
    let before = server.expect(200, "GET", &path, None).await?;

    server.kill_9().await?;
    ensure!(server.census().counts()["processes"] == 1, "the VM died with the server");
    server.spawn().await?;

    let after = server.until(&path, |answer| answer["state"] == "running").await?;
    ensure!(before["running_since"] == after["running_since"], "{before} {after}");
    ensure!(server.run(&id, "cat /proc/sys/kernel/random/boot_id").await? == boot, "rebooted");
    server.run(&id, "kill -0 $(cat /run/sleeper)").await?;
    server.finish().await
}

#[tokio::test]
async fn a_vm_that_died_while_the_server_was_away_is_reported_and_can_be_started_again()
-> Result<()> {
    let mut server = Server::start(Options::booting()).await?;
    let made = server.expect(200, "POST", "/v1/vms", Some(json!({}))).await?;
    let id = made["vm_id"].as_str().unwrap().to_owned();
    server.run(&id, "echo kept > /root/file && sync").await?;
    server.kill_9().await?;
    for pid in server.census().process_ids() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    }
    server.spawn().await?;
    let path = format!("/skerry/v1/workspaces/{id}");
    let failed = server.until(&path, |answer| answer["state"] == "failed").await?;
    ensure!(failed["failure"]["retryable"] == true, "{failed}");
    server.expect(200, "POST", &format!("{path}/start?wait=240"), None).await?;
    ensure!(server.run(&id, "cat /root/file").await? == "kept\n", "the disk was kept");
    server.finish().await
}

#[tokio::test]
async fn a_server_that_dies_after_any_step_of_bringing_a_vm_up_finishes_the_start_afterwards()
-> Result<()> {
    let mut server = Server::start(Options::booting()).await?;
    server.terminate().await?;
    for step in BRING_UP_STEPS {
        server.spawn_with(&[("SKERRY_FAULT", &format!("{step}:abort"))]).await?;
        // The answer never comes: the server dies while it works on it.
        let body = json!({"name": format!("after {step}")});
        let asked = server.request("POST", "/skerry/v1/workspaces?wait=240", Some(body)).await;
        ensure!(asked.is_err(), "{step}: the fault did not strike: {asked:?}");
        server.wait_ended().await?;
        server.spawn().await?;
        let listed = server.expect(200, "GET", "/skerry/v1/workspaces", None).await?;
        let id = listed["workspaces"][0]["id"].as_str().unwrap().to_owned();
        let path = format!("/skerry/v1/workspaces/{id}");
        server.until(&path, |answer| answer["state"] == "running").await?;
        ensure!(server.run(&id, "echo alive").await? == "alive\n", "{step}");
        ensure!(server.census().counts()["processes"] == 1, "{step}:\n{}", server.census());
        server.expect(200, "DELETE", &format!("{path}?wait=240"), None).await?;
        let left = server.census();
        for kind in ["processes", "vm files", "memory files", "cgroups", "sockets"] {
            ensure!(left.counts()[kind] == 0, "after {step}:\n{left}");
        }
        server.terminate().await?;
    }
    server.spawn().await?;
    server.finish().await
}

#[tokio::test]
async fn a_server_that_dies_after_any_step_of_a_deletion_finishes_it_afterwards() -> Result<()> {
    let mut server = Server::start(Options::booting()).await?;
    server.terminate().await?;
    for step in DELETION_STEPS {
        server.spawn_with(&[("SKERRY_FAULT", &format!("{step}:abort"))]).await?;
        let body = json!({"name": format!("before {step}"), "memory_mib": 256});
        let path = "/skerry/v1/workspaces";
        let made = server.expect(201, "POST", &format!("{path}?wait=240"), Some(body)).await?;
        let item = format!("{path}/{}", made["id"].as_str().unwrap());
        let asked = server.request("DELETE", &format!("{item}?wait=240"), None).await;
        ensure!(asked.is_err(), "{step}: the fault did not strike: {asked:?}");
        server.wait_ended().await?;
        server.spawn().await?;
        server.until_gone(&item).await?;
        let left = server.census();
        for kind in ["processes", "vm files", "memory files", "cgroups", "sockets"] {
            ensure!(left.counts()[kind] == 0, "after {step}:\n{left}");
        }
        server.terminate().await?;
    }
    server.spawn().await?;
    server.finish().await
}

#[tokio::test]
async fn a_server_that_dies_while_a_guest_powers_off_finishes_the_stop_afterwards() -> Result<()> {
    let mut server = Server::start(Options::booting()).await?;
    server.terminate().await?;
    server.spawn_with(&[("SKERRY_FAULT", "power_off:abort")]).await?;
    let path = "/skerry/v1/workspaces";
    let body = json!({"name": "box", "memory_mib": 256});
    server.expect(201, "POST", &format!("{path}?wait=240"), Some(body)).await?;
    server.run("box", "echo kept > /root/file && sync").await?;
    let asked = server.request("POST", &format!("{path}/box/stop?wait=240"), None).await;
    ensure!(asked.is_err(), "the fault did not strike: {asked:?}");
    server.wait_ended().await?;
    server.spawn().await?;
    server.until(&format!("{path}/box"), |answer| answer["state"] == "stopped").await?;
    ensure!(server.census().counts()["processes"] == 0, "{}", server.census());
    server.expect(200, "POST", &format!("{path}/box/start?wait=240"), None).await?;
    ensure!(server.run("box", "cat /root/file").await? == "kept\n", "the disk was kept");
    server.finish().await
}
