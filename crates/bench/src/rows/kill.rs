//! The server is killed while VMs run, and started again.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::try_join_all;

use crate::{
    bench::Bench,
    goal::{Goal, Measured, Row, Unit},
    platform::{Api, Mode},
    samples::Clock,
};

/// Of each VM: what a hundred of them have is less than most machines.
const MEMORY_MIB: u32 = 128;
/// A server that takes longer is gone.
const BACK_WITHIN: Duration = Duration::from_secs(60);

pub(super) async fn measure(bench: &mut Bench, kills: usize, vms: usize) -> Result<Vec<Row>> {
    let server = bench.server(Mode::Default).await?;
    let api = server.api.clone();
    api.ensure_template(MEMORY_MIB).await?;
    let mut ids = Vec::new();
    for _ in 0..vms {
        let workspace = api.create(MEMORY_MIB).await?;
        api.exec(&workspace.id).await?;
        ids.push(workspace.id);
    }
    let (mut kills_survived, mut undisturbed, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=kills {
        api.pool_is_full().await?;
        let clock = Clock::start();
        exec_in_each(&api, &ids).await?;
        undisturbed.push(clock.ms());
        let clock = Clock::from(server.kill_and_start_again().await?);
        match back(&api, &ids, clock).await {
            Ok(times) => {
                eprintln!(
                    "    kill {number}: API {:.0} ms, guests {:.0}, commands {:.0}",
                    times.api, times.guests, times.commands
                );
                kills_survived.push(times);
            }
            Err(error) => failures.push(format!("kill {number}: {error:#}")),
        }
    }
    try_join_all(ids.iter().map(|id| api.delete(id))).await?;
    let row = |what: &str, path: &str, floor, time: fn(&Back) -> f64, goals| Row {
        name: format!("kill -9, {vms} VMs: {what}"),
        path: path.to_owned(),
        unit: Unit::Milliseconds,
        floor,
        measured: Measured::Samples(kills_survived.iter().map(time).collect()),
        failures: failures.clone(),
        goals,
    };
    Ok(vec![
        row(
            "API answers",
            "from the start of the new process to GET workspaces",
            Vec::new(),
            |times| times.api,
            vec![Goal::MedianAtMost(500.0)],
        ),
        row(
            "all VMs adopted",
            "the same, to an answer of every guest's agent, none restarted",
            Vec::new(),
            |times| times.guests,
            vec![Goal::MedianAtMost(2000.0)],
        ),
        row(
            "an exec in each",
            "the same, to the output of an exec in each; floor: those execs alone",
            undisturbed,
            |times| times.commands,
            Vec::new(),
        ),
    ])
}

/// How long after the start of a new server something was as before, in milliseconds.
struct Back {
    api: f64,
    guests: f64,
    commands: f64,
}

async fn exec_in_each(api: &Api, ids: &[String]) -> Result<()> {
    try_join_all(ids.iter().map(|id| api.exec(id))).await.map(drop)
}

async fn back(api: &Api, ids: &[String], clock: Clock) -> Result<Back> {
    api.answers(ids.len(), BACK_WITHIN).await?;
    let first = clock.ms();
    try_join_all(ids.iter().map(|id| api.guest_answers(id, BACK_WITHIN))).await?;
    let guests = clock.ms();
    exec_in_each(api, ids).await?;
    let commands = clock.ms();
    let states = api.workspaces().await?;
    let running = states.iter().filter(|workspace| workspace.state == "running").count();
    ensure!(running == ids.len(), "{running} of {} VMs run", ids.len());
    Ok(Back { api: first, guests, commands })
}
