//! Many VMs, and a server that dies among them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use skerry_e2e::{Options, Server, WORKSPACES, size};

/// Starts that are asked for at the same time where it is not their number that matters.
const AT_ONCE: usize = 4;
/// Of so many VMs one runs; the others are paused and take no CPU time.
const ONE_RUNS_OF: usize = 10;

async fn all(server: &Server) -> Result<Vec<Value>> {
    let listed = server.expect(200, "GET", &format!("{WORKSPACES}?limit=1000"), None).await?;
    Ok(listed["workspaces"].as_array().context("no list")?.clone())
}

fn id(workspace: &Value) -> &str {
    workspace["id"].as_str().unwrap_or_default()
}

/// Asks again and again until every workspace is as it has to be; how long that took.
async fn until_all(server: &Server, right: impl Fn(&Value) -> bool) -> Result<Duration> {
    let began = Instant::now();
    let mut look = tokio::time::interval(Duration::from_millis(20));
    loop {
        let found = all(server).await?;
        let wrong: Vec<_> = found.iter().filter(|one| !right(one)).collect();
        if wrong.is_empty() {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < skerry_e2e::server::READY_WITHIN, "{wrong:#?}\n{}", server.log());
        look.tick().await;
    }
}

#[tokio::test]
async fn a_server_that_is_killed_finds_all_of_its_vms_again_at_once() -> Result<()> {
    let count = size("SKERRY_TEST_VMS", 8);
    let mut server = Server::start(Options::default()).await?;
    server.with_template(128).await?;
    let began = Instant::now();
    let make = async |number: usize| {
        let body = json!({"name": format!("vm {number}"), "memory_mib": 128, "disk_mib": 256});
        let id = server.create(body).await?;
        server.run(&id, &format!("echo {number} > /run/number")).await?;
        if !number.is_multiple_of(ONE_RUNS_OF) {
            server.ask(&id, "pause", None).await?;
        }
        anyhow::Ok((id, number))
    };
    let made: BTreeMap<String, usize> =
        stream::iter(0..count).map(make).buffer_unordered(AT_ONCE).try_collect().await?;
    println!("{count} VMs made in {:?}", began.elapsed());
    let before: BTreeMap<String, Value> =
        all(&server).await?.into_iter().map(|one| (id(&one).to_owned(), one)).collect();
    ensure!(before.len() == count, "{before:#?}");
    let processes = server.census().process_ids();

    server.kill_9().await?;
    let began = Instant::now();
    server.spawn().await?;
    let ready_after = began.elapsed();
    let asked = Instant::now();
    let found = all(&server).await?;
    let first_answer = asked.elapsed();
    let adopted_after = until_all(&server, |now| {
        let then = &before[id(now)];
        let same = |field: &str| now[field] == then[field];
        same("state") && same("incarnation") && same("running_since")
    });
    let adopted_after = ready_after + first_answer + adopted_after.await?;
    ensure!(found.len() == count, "{} of {count} are there", found.len());
    let now = server.census().process_ids();
    // What waited in the pool was nobody's; it may go.
    let lost = made.len().saturating_sub(now.iter().filter(|pid| processes.contains(pid)).count());
    ensure!(lost == 0, "{lost} processes are gone");

    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let asked = Instant::now();
        all(&server).await?;
        slowest = slowest.max(asked.elapsed());
    }
    // Each of them still has what it had in its memory.
    let check = async |(id, number): (&String, &usize)| {
        if !number.is_multiple_of(ONE_RUNS_OF) {
            server.ask(id, "resume", None).await?;
        }
        let found = server.run(id, "cat /run/number").await?;
        ensure!(found.trim() == number.to_string(), "{number}: {found}");
        server.delete(id).await
    };
    stream::iter(&made).map(check).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    println!(
        "{count} VMs: server ready {ready_after:?} after it was started, its first answer took \
         {first_answer:?}, the slowest of the next twenty {slowest:?}, all taken over after \
         {adopted_after:?}, none lost"
    );
    ensure!(adopted_after < Duration::from_secs(30), "{adopted_after:?}");
    ensure!(slowest < Duration::from_secs(5), "{slowest:?}");
    server.finish().await
}

#[tokio::test]
async fn a_server_that_is_killed_while_32_workspaces_are_made_leaves_none_of_them_stuck()
-> Result<()> {
    let mut server = Server::start(Options::default()).await?;
    server.with_template(128).await?;
    // Early, when most are only recorded; in the middle; and when most are there.
    for (round, after) in [1, 12, 28].into_iter().enumerate() {
        let creates: Vec<_> = (0..32)
            .map(|number| {
                let body = json!({
                    "name": format!("round {round} number {number}"),
                    "memory_mib": 128,
                    "disk_mib": 256,
                });
                let url = format!("{}{WORKSPACES}?wait=240", server.url);
                tokio::spawn(server.http.post(url).json(&body).send())
            })
            .collect();
        let began = Instant::now();
        let mut look = tokio::time::interval(Duration::from_millis(20));
        let running =
            |found: &[Value]| found.iter().filter(|one| one["state"] == "running").count();
        while running(&all(&server).await?) < after {
            ensure!(began.elapsed() < skerry_e2e::server::READY_WITHIN, "{}", server.log());
            look.tick().await;
        }
        let there = all(&server).await?;
        server.kill_9().await?;
        let mut answered = 0;
        for create in creates {
            answered += usize::from(create.await?.is_ok_and(|answer| answer.status() == 201));
        }
        server.spawn().await?;
        let found = all(&server).await?;
        ensure!(found.len() >= there.len(), "{} of {} are recorded", found.len(), there.len());
        let settled = until_all(&server, |one| one["state"] == "running").await?;
        println!(
            "killed with {} of 32 running, {answered} answered: {} recorded, all run {settled:?} later",
            running(&there),
            found.len()
        );
        let check = async |one: &Value| {
            let said = server.run(id(one), "echo alive").await?;
            ensure!(said == "alive\n", "{one}");
            server.delete(id(one)).await
        };
        stream::iter(&found).map(check).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        let left = all(&server).await?;
        ensure!(left.is_empty(), "{left:#?}");
    }
    server.finish().await
}
