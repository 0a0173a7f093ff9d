//! A guest has the host's time as soon as it is there, whatever way it came.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use skerry_e2e::{Options, Server, guest_clock::start_path};

/// How far a guest's clock may be from the host's.
const ALLOWED: Duration = Duration::from_millis(50);

fn small(name: &str) -> Value {
    json!({"name": name, "memory_mib": 256})
}

async fn check(server: &Server, id: &str, after: &str) -> Result<()> {
    let offset = server.clock_within(id, ALLOWED).await;
    let offset = offset.map_err(|error| error.context(format!("after {after}")))?;
    println!("after {after}: {offset}");
    Ok(())
}

/// Makes a workspace that has to come to run in this way.
async fn create(server: &Server, body: Value, path: &str) -> Result<String> {
    let id = server.create(body).await?;
    let made = server.expect(200, "GET", &format!("/skerry/v1/workspaces/{id}"), None).await?;
    ensure!(start_path(&made) == path, "{made}");
    Ok(id)
}

#[tokio::test]
async fn a_guests_clock_is_the_hosts_after_every_kind_of_start_and_resume() -> Result<()> {
    let server = Server::start(Options::booting()).await?;
    let booted = create(&server, small("booted"), "boot").await?;
    check(&server, &booted, "a boot").await?;
    server.finish().await?;

    let arguments = ["--pool-max-warm", "0"].map(str::to_owned).into();
    let mut server = Server::start(Options { arguments, ..Options::default() }).await?;
    server.with_template(256).await?;
    let id = create(&server, small("restored"), "template").await?;
    check(&server, &id, "a restore of a template").await?;
    for round in 1..=3 {
        server.ask(&id, "pause", None).await?;
        // Long enough for a clock that stands still to be noticed.
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.ask(&id, "resume", None).await?;
        check(&server, &id, &format!("resume {round} of resident memory")).await?;
    }
    server.ask(&id, "pause", None).await?;
    server.kill_9().await?;
    server.spawn().await?;
    server.ask(&id, "resume", None).await?;
    check(&server, &id, "a resume of resident memory by another server").await?;
    for round in 1..=3 {
        server.ask(&id, "suspend", None).await?;
        server.ask(&id, "resume", None).await?;
        check(&server, &id, &format!("resume {round} from the disk")).await?;
    }
    server.ask(&id, "snapshots", Some(json!({"name": "point"}))).await?;
    check(&server, &id, "a snapshot was taken of it").await?;
    let body = json!({"name": "of a snapshot", "from_snapshot": "point"});
    let other = create(&server, body, "snapshot_memory").await?;
    check(&server, &other, "a start from a snapshot").await?;
    server.ask(&id, "restore", Some(json!({"snapshot": "point"}))).await?;
    check(&server, &id, "a restore in place").await?;
    let forked = server.ask(&id, "fork", Some(json!({"count": 2, "name": "fork"}))).await?;
    for fork in forked["workspaces"].as_array().into_iter().flatten() {
        check(&server, fork["id"].as_str().unwrap_or_default(), "a fork").await?;
    }
    check(&server, &id, "it was forked").await?;
    server.finish().await?;

    let arguments = ["--pool-max-warm", "2"].map(str::to_owned).into();
    let server = Server::start(Options { arguments, ..Options::default() }).await?;
    server.with_template(256).await?;
    server.pool_filled().await?;
    let claimed = create(&server, small("claimed"), "pool").await?;
    check(&server, &claimed, "a claim from the pool").await?;
    server.finish().await
}
