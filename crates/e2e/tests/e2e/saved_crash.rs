//! The server dies while memory is saved, copied or made into a template; guests go on as if it had not.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skerry_e2e::{Options, Server, WORKSPACES};

/// A verb that is asked for, and the step of it after which the server dies.
const SAVING: &[(&str, &str)] = &[
    ("suspend", "suspension_stopped"),
    ("suspend", "suspension_saved"),
    ("suspend", "suspension_committed"),
    ("snapshots", "overlay_pushed"),
    ("snapshots", "snapshot_saved"),
    ("fork", "snapshot_captured"),
    ("fork", "load"),
    ("fork", "ready"),
];
/// Steps of what is made for later starts.
const TEMPLATE: &[&str] = &["template_prepared", "template_saved", "state_in_place"];

/// Kinds of things that only running VMs have.
const OF_RUNNING_VMS: &[&str] = &["processes", "memory files", "cgroups", "sockets"];

/// Asks for what makes the server die, and starts it again.
async fn dies_at(server: &mut Server, step: &str, path: &str, body: Value) -> Result<()> {
    server.terminate().await?;
    server.spawn_with(&[("SKERRY_FAULT", &format!("{step}:abort"))]).await?;
    let asked = server.request("POST", &format!("{path}?wait=240"), Some(body)).await;
    ensure!(asked.is_err(), "{step}: the fault did not strike: {asked:?}\n{}", server.log());
    server.wait_ended().await?;
    server.spawn().await
}

/// Waits until every workspace is at rest; returns the ids of all but `kept`.
async fn others_at_rest(server: &Server, kept: &str) -> Result<Vec<String>> {
    let at_rest = |answer: &Value| {
        let mut all = answer["workspaces"].as_array().into_iter().flatten();
        all.all(|one| one["state"] == "running" || one["state"] == "failed")
    };
    let listed = server.until(WORKSPACES, at_rest).await?;
    let all = listed["workspaces"].as_array().context("no list")?.iter();
    let ids = all.filter_map(|one| Some((one["id"].as_str()?.to_owned(), one["state"].clone())));
    let others: Vec<_> = ids.filter(|(id, _)| id != kept).collect();
    for (id, state) in &others {
        if state == "running" {
            ensure!(server.run(id, "echo alive").await? == "alive\n", "{id}");
        }
    }
    Ok(others.into_iter().map(|(id, _)| id).collect())
}

/// Deletes all snapshots, once none is under way.
async fn without_snapshots(server: &Server) -> Result<()> {
    let settled = |answer: &Value| {
        let mut all = answer["snapshots"].as_array().into_iter().flatten();
        all.all(|one| one["state"] == "ready" || one["state"] == "failed")
    };
    let listed = server.until("/skerry/v1/snapshots", settled).await?;
    for snapshot in listed["snapshots"].as_array().context("no list")? {
        let path = format!("/skerry/v1/snapshots/{}?wait=240", snapshot["id"].as_str().unwrap());
        server.expect(200, "DELETE", &path, None).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_dies_while_a_machine_is_saved_or_forked_costs_the_machine_nothing()
-> Result<()> {
    let mut server = Server::start(Options::booting()).await?;
    let id = server.create(json!({"name": "machine", "memory_mib": 256})).await?;
    let begin = "(setsid sleep 100000 & echo $! > /run/sleeper) > /dev/null 2>&1 < /dev/null";
    server.run(&id, begin).await?;
    let item = format!("{WORKSPACES}/{id}");
    for (number, (verb, step)) in SAVING.iter().enumerate() {
        // Only memory has it.
        server.run(&id, &format!("echo {number} > /dev/shm/number")).await?;
        let body = match *verb {
            "suspend" => Value::Null,
            _ => json!({"name": format!("after {step}")}),
        };
        dies_at(&mut server, step, &format!("{item}/{verb}"), body).await?;
        if *verb == "suspend" {
            server.until(&item, |answer| answer["state"] == "suspended").await?;
            let left = server.census();
            for kind in OF_RUNNING_VMS {
                ensure!(left.counts()[kind] == 0, "{step}:\n{left}");
            }
            server.ask(&id, "resume", None).await?;
        }
        for other in others_at_rest(&server, &id).await? {
            server.delete(&other).await?;
        }
        without_snapshots(&server).await?;
        let kept = server.run(&id, "kill -0 $(cat /run/sleeper) && cat /dev/shm/number").await?;
        ensure!(kept == format!("{number}\n"), "{verb} at {step}: {kept}");
        ensure!(server.census().counts()["processes"] == 1, "{step}:\n{}", server.census());
    }
    server.delete(&id).await?;
    server.finish().await
}

#[tokio::test]
async fn a_server_that_dies_while_a_template_is_made_makes_it_in_its_next_life() -> Result<()> {
    for step in TEMPLATE {
        let arguments = ["--pool-max-warm", "0"].map(str::to_owned).into();
        let mut server = Server::start(Options { arguments, ..Options::default() }).await?;
        server.terminate().await?;
        server.spawn_with(&[("SKERRY_FAULT", &format!("{step}:abort"))]).await?;
        let id = server.create(json!({"name": "first", "memory_mib": 256})).await?;
        // The template is made behind it, and the server dies of that.
        server.wait_ended().await?;
        server.spawn().await?;
        let path = format!("{WORKSPACES}/{id}");
        server.until(&path, |answer| answer["state"] == "running").await?;
        ensure!(server.run(&id, "echo alive").await? == "alive\n", "{step}");
        server.with_template(256).await?;
        let next = server.create(json!({"name": "next", "memory_mib": 256})).await?;
        let found = server.expect(200, "GET", &format!("{WORKSPACES}/{next}"), None).await?;
        ensure!(found["start_path"] == "template", "{step}: {found}");
        for id in [id, next] {
            server.delete(&id).await?;
        }
        server.finish().await?;
    }
    Ok(())
}
