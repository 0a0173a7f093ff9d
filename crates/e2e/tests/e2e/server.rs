//! The server as a program: ready line, health, keys in every dialect's way, termination.

use anyhow::{Result, ensure};
use serde_json::json;
use skerry_e2e::{Options, Server, server::KEY};

#[tokio::test]
async fn the_ready_line_names_url_version_and_accelerator_and_health_answers() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    ensure!(server.ready["version"].is_string(), "{}", server.ready);
    ensure!(
        ["kvm", "tcg"].contains(&server.ready["accelerator"].as_str().unwrap_or("")),
        "{}",
        server.ready
    );
    let answer = reqwest::get(format!("{}/healthz", server.url)).await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    server.finish().await
}

#[tokio::test]
async fn the_bootstrap_key_works_at_once_in_every_dialects_way() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = |path: &str| format!("{}{path}", server.url);
    let ways = [
        client.get(url("/workspaces")).bearer_auth(KEY),
        client.get(url("/api/v1/workspaces")).bearer_auth(KEY),
        client.get(url("/v1/vms")).header("X-API-Key", KEY),
        client.get(url("/workspace")).header("X-Client-ID", "admin").header("X-Client-Secret", KEY),
        client.post(url("/v1/vms")).json(&json!({"api_key": KEY, "memory_mb": 256})),
    ];
    for (number, request) in ways.into_iter().enumerate() {
        let answer = request.send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "way {number}: {status} {}", answer.text().await?);
    }
    let wrong = client.get(url("/workspaces")).bearer_auth("wrong").send().await?;
    ensure!(wrong.status() == 401, "{}", wrong.status());
    let other = client
        .get(url("/workspace"))
        .header("X-Client-ID", "somebody-else")
        .header("X-Client-Secret", KEY);
    ensure!(other.send().await?.status() == 401, "a key works for another account");
    server.finish().await
}

#[tokio::test]
async fn sigterm_ends_the_server_within_seconds_and_keeps_the_vms() -> Result<()> {
    let mut server = Server::start(Options::booting()).await?;
    let body = json!({"name": "kept", "memory_mib": 256});
    server.expect(201, "POST", "/skerry/v1/workspaces?wait=240", Some(body)).await?;
    let took = server.terminate().await?;
    println!("SIGTERM to exit: {took:?}");
    ensure!(server.census().counts()["processes"] == 1, "{}", server.census());
    server.spawn().await?;
    ensure!(server.run("kept", "echo alive").await? == "alive\n", "the VM was taken over");
    server.finish().await
}

#[tokio::test]
async fn on_shutdown_stop_leaves_no_vm_and_keeps_the_disks() -> Result<()> {
    let options = Options {
        arguments: vec!["--on-shutdown".to_owned(), "stop".to_owned()],
        ..Options::default()
    };
    let mut server = Server::start(options).await?;
    let body = json!({"name": "stopped", "memory_mib": 256});
    server.expect(201, "POST", "/skerry/v1/workspaces?wait=240", Some(body)).await?;
    server.run("stopped", "echo kept > /root/file && sync").await?;
    server.terminate().await?;
    ensure!(server.census().counts()["processes"] == 0, "{}", server.census());
    server.spawn().await?;
    server.expect(200, "POST", "/skerry/v1/workspaces/stopped/start?wait=240", None).await?;
    ensure!(server.run("stopped", "cat /root/file").await? == "kept\n", "the disk was kept");
    server.finish().await
}
