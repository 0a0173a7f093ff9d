//! From nothing, or from what waits, to the output of a first command.

use anyhow::Result;

use super::MEMORY_MIB;
use crate::{
    bench::Bench,
    floor::{Identity, start},
    goal::{Goal, Row, Unit},
    platform::{Api, Mode},
    samples::{Clock, Rounds, in_turns},
};

/// One sample of the platform: create, wait until it runs, run a command, read what it says. It is
/// deleted off the clock.
async fn create_to_first_exec(api: &Api, path: &str) -> Result<f64> {
    let clock = Clock::start();
    let workspace = api.create(MEMORY_MIB).await?;
    let said = api.exec(&workspace.id).await;
    let took = clock.ms();
    api.delete(&workspace.id).await?;
    said?;
    workspace.came_by(path)?;
    Ok(took)
}

pub(super) async fn from_pool(bench: &mut Bench, samples: usize) -> Result<Vec<Row>> {
    let (api, floor) = bench.both(Mode::Default).await?;
    let template = floor.template(MEMORY_MIB).await?;
    let floor = &*floor;
    api.ensure_template(MEMORY_MIB).await?;
    let rounds = Rounds { warm_up: 1, counted: samples };
    let of_floor = async || {
        let vm = template.waiting_clone(floor).await?;
        // Nothing else is to be at work; the pool is filled after a sample of the platform.
        api.pool_is_full().await?;
        let clock = Clock::start();
        vm.resume().await?;
        vm.exec().await?;
        let took = clock.ms();
        vm.end().await?;
        Ok(took)
    };
    let of_platform = async || {
        api.pool_is_full().await?;
        create_to_first_exec(&api, "pool").await
    };
    let samples = in_turns("pool", rounds, of_floor, of_platform).await;
    let path = "platform: POST workspaces (start_path pool), POST exec; floor: a clone that was \
                restored, configured, exercised and paused beforehand: CPUs on, exec";
    let goals = [Goal::TaxAtMost(1.5)];
    Ok(vec![samples.into_row("create to first exec, pool", path, Unit::Milliseconds, &goals)])
}

pub(super) async fn by_restore(bench: &mut Bench, samples: usize) -> Result<Vec<Row>> {
    let (api, floor) = bench.both(Mode::Restore).await?;
    let template = floor.template(MEMORY_MIB).await?;
    let floor = &*floor;
    api.ensure_template(MEMORY_MIB).await?;
    let rounds = Rounds { warm_up: 1, counted: samples };
    let of_floor = async || {
        let (spec, files) = template.prepare(floor)?;
        let clock = Clock::start();
        let mut vm = start(floor, &spec, files).await?;
        vm.meet(Identity::Somebody).await?;
        vm.exec().await?;
        let took = clock.ms();
        vm.end().await?;
        Ok(took)
    };
    let of_platform = async || create_to_first_exec(&api, "template").await;
    let samples = in_turns("restore", rounds, of_floor, of_platform).await;
    let path = "platform: POST workspaces (start_path template), POST exec; floor: process, state \
                loaded, memory of the template mapped privately, CPUs on, configure, exec";
    let goals = [Goal::TaxAtMost(1.1)];
    Ok(vec![samples.into_row("create to first exec, restore", path, Unit::Milliseconds, &goals)])
}

pub(super) async fn by_boot(bench: &mut Bench, samples: usize) -> Result<Vec<Row>> {
    let (api, floor) = bench.both(Mode::Boot).await?;
    let floor = &*floor;
    let rounds = Rounds { warm_up: 0, counted: samples };
    let of_floor = async || {
        let clock = Clock::start();
        let mut vm = floor.boot(MEMORY_MIB).await?;
        vm.meet(Identity::Somebody).await?;
        vm.exec().await?;
        let took = clock.ms();
        vm.end().await?;
        Ok(took)
    };
    let of_platform = async || create_to_first_exec(&api, "boot").await;
    let samples = in_turns("cold", rounds, of_floor, of_platform).await;
    let path = "platform: POST workspaces (start_path boot), POST exec; floor: process, kernel, \
                agent, configure, exec";
    let goals = [Goal::TaxAtMost(1.15)];
    Ok(vec![samples.into_row("create to first exec, cold boot", path, Unit::Milliseconds, &goals)])
}
