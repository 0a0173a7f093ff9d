//! Starts without a boot, rest, snapshots and forks, on real VMs.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::json;
use skerry_e2e::{Options, Server, WORKSPACES};

/// A program in the background that counts in memory, and the count so far.
const COUNT: &str = "(setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; \
                     sleep 0.1; done' >/dev/null 2>&1 </dev/null &)";

async fn count(server: &Server, id: &str) -> Result<u64> {
    // The file is empty for a moment each time it is written.
    let text = "until [ -s /dev/shm/count ]; do :; done; cat /dev/shm/count";
    Ok(server.run(id, text).await?.trim().parse()?)
}

#[tokio::test]
async fn workspaces_of_one_shape_start_from_one_saved_machine_and_share_nothing_that_should_differ()
-> Result<()> {
    let server = Server::start(Options::default()).await?;
    server.with_template(512).await?;
    let mut clones = Vec::new();
    for number in 0..6 {
        clones.push(
            server.create(json!({"name": format!("clone {number}"), "memory_mib": 512})).await?,
        );
    }
    let script = "cat /proc/sys/kernel/random/boot_id /etc/machine-id /etc/hostname; \
                  head -c 16 /dev/urandom | od -An -tx1; \
                  python3 -c 'import random, uuid; print(random.random(), uuid.uuid4())'; \
                  date +%s.%N";
    let mut identities = BTreeSet::new();
    for id in &clones {
        let said = server.run(id, script).await?;
        let lines: Vec<&str> = said.lines().collect();
        ensure!(lines.len() == 6, "{said}");
        identities.extend(lines[..5].iter().map(|line| (*line).to_owned()));
        let guest: f64 = lines[5].parse()?;
        let host = std::time::UNIX_EPOCH.elapsed()?.as_secs_f64();
        ensure!((host - guest).abs() < 5.0, "the guest's clock is {guest}, the host's {host}");
    }
    ensure!(identities.len() == 5 * clones.len(), "something is there twice: {identities:?}");
    server.finish().await
}

#[tokio::test]
async fn a_paused_and_a_suspended_workspace_survive_the_death_of_the_server() -> Result<()> {
    let mut server = Server::start(Options::default()).await?;
    let id = server.create(json!({"name": "box"})).await?;
    let path = format!("{WORKSPACES}/{id}");
    server.run(&id, COUNT).await?;
    let boot = server.run(&id, "cat /proc/sys/kernel/random/boot_id").await?;

    ensure!(server.ask(&id, "pause", None).await?["state"] == "paused");
    server.kill_9().await?;
    server.spawn().await?;
    server.until(&path, |answer| answer["state"] == "paused").await?;
    ensure!(server.ask(&id, "resume", None).await?["state"] == "running");
    let before = count(&server, &id).await?;

    ensure!(server.ask(&id, "suspend", None).await?["state"] == "suspended");
    server.kill_9().await?;
    server.spawn().await?;
    server.until(&path, |answer| answer["state"] == "suspended").await?;
    ensure!(server.ask(&id, "resume", None).await?["state"] == "running");
    let after = count(&server, &id).await?;
    ensure!(after >= before && after < before + 3000, "it counted from {before} to {after}");
    ensure!(server.run(&id, "cat /proc/sys/kernel/random/boot_id").await? == boot, "it booted");
    let guest: f64 = server.run(&id, "date +%s.%N").await?.trim().parse()?;
    let host = std::time::UNIX_EPOCH.elapsed()?.as_secs_f64();
    ensure!((host - guest).abs() < 5.0, "the guest's clock is {guest}, the host's {host}");
    server.finish().await
}

#[tokio::test]
async fn a_running_workspace_is_saved_restored_and_forked() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    let id = server.create(json!({"name": "source"})).await?;
    server.run(&id, COUNT).await?;
    server.run(&id, "echo one > /root/file; echo early > /dev/shm/mark").await?;
    let saved_at = count(&server, &id).await?;
    let taken = server.ask(&id, "snapshots", Some(json!({"name": "point"}))).await?;
    ensure!(taken["state"] == "ready" && taken["contents"] == "disk_and_memory", "{taken}");
    server.run(&id, "echo two > /root/file; echo late > /dev/shm/mark").await?;

    let forked = server.ask(&id, "fork", Some(json!({"count": 2, "name": "fork"}))).await?;
    for fork in forked["workspaces"].as_array().unwrap() {
        let fork = fork["id"].as_str().unwrap();
        ensure!(server.run(fork, "cat /root/file").await? == "two\n");
        server.run(fork, "echo fork > /root/file").await?;
    }
    ensure!(server.run(&id, "cat /root/file").await? == "two\n", "a fork wrote to its source");

    ensure!(
        server.ask(&id, "restore", Some(json!({"snapshot": "point"}))).await?["state"] == "running"
    );
    ensure!(server.run(&id, "cat /root/file").await? == "one\n", "the disk of the snapshot");
    ensure!(server.run(&id, "cat /dev/shm/mark").await? == "early\n", "the memory of the snapshot");
    ensure!(count(&server, &id).await? >= saved_at, "it goes on counting");

    let other = server.create(json!({"name": "other", "from_snapshot": "point"})).await?;
    ensure!(server.run(&other, "cat /root/file").await? == "one\n");
    ensure!(count(&server, &other).await? >= saved_at);
    let names = [
        server.run(&id, "hostname; cat /etc/machine-id").await?,
        server.run(&other, "hostname; cat /etc/machine-id").await?,
    ];
    ensure!(names[0] != names[1], "{names:?}");

    server.expect(200, "DELETE", "/skerry/v1/snapshots/point?wait=60", None).await?;
    ensure!(server.run(&other, "cat /root/file").await? == "one\n", "it stands on its own");
    server.finish().await
}
