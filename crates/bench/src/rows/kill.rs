//! The server is killed while VMs run, and started again.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::try_join_all;

use super::MEMORY_MIB;
use crate::{
    bench::Bench,
    goal::{Goal, Measured, Row, Unit},
    platform::{Api, Mode},
    samples::Clock,
};

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
    let (mut answers, mut adopted, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..kills {
        api.pool_is_full().await?;
        let clock = Clock::from(server.kill_and_start_again().await?);
        match back(&api, &ids, clock).await {
            Ok((first, all)) => {
                eprintln!(
                    "    kill {}: answers after {first:.0} ms, all after {all:.0}",
                    number + 1
                );
                answers.push(first);
                adopted.push(all);
            }
            Err(error) => failures.push(format!("kill {}: {error:#}", number + 1)),
        }
    }
    try_join_all(ids.iter().map(|id| api.delete(id))).await?;
    let row = |what: &str, path: &str, samples, goal| Row {
        name: format!("kill -9, {vms} VMs: {what}"),
        path: path.to_owned(),
        unit: Unit::Milliseconds,
        floor: Vec::new(),
        measured: Measured::Samples(samples),
        failures: failures.clone(),
        goals: vec![Goal::MedianAtMost(goal)],
    };
    Ok(vec![
        row("API answers", "from the start of the new process to GET workspaces", answers, 500.0),
        row(
            "all VMs adopted",
            "the same, to the output of an exec in each, none restarted",
            adopted,
            2000.0,
        ),
    ])
}

/// When the API answers, and when every VM has, in milliseconds.
async fn back(api: &Api, ids: &[String], clock: Clock) -> Result<(f64, f64)> {
    api.answers(ids.len(), BACK_WITHIN).await?;
    let first = clock.ms();
    try_join_all(ids.iter().map(|id| api.exec_until_it_succeeds(id, BACK_WITHIN))).await?;
    let all = clock.ms();
    let states = api.workspaces().await?;
    let running = states.iter().filter(|workspace| workspace.state == "running").count();
    ensure!(running == ids.len(), "{running} of {} VMs run", ids.len());
    Ok((first, all))
}
