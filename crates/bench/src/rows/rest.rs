//! Going on after a rest, to the output of a command.

use anyhow::{Context, Result};

use super::MEMORY_MIB;
use crate::{
    bench::Bench,
    floor::SavedMachine,
    goal::{Goal, Row, Unit},
    platform::Mode,
    samples::{Clock, Rounds, in_turns},
};

pub(super) async fn from_memory(bench: &mut Bench, samples: usize) -> Result<Vec<Row>> {
    let (api, floor) = bench.both(Mode::Restore).await?;
    let template = floor.template(MEMORY_MIB).await?;
    api.ensure_template(MEMORY_MIB).await?;
    let vm = template.running_clone(floor).await?;
    let id = api.create(MEMORY_MIB).await?.id;
    let rounds = Rounds { warm_up: 2, counted: samples };
    let of_floor = async || {
        vm.pause().await?;
        let clock = Clock::start();
        vm.resume().await?;
        vm.exec().await?;
        Ok(clock.ms())
    };
    let of_platform = async || {
        api.change(&id, "pause", "paused").await?;
        let clock = Clock::start();
        api.change(&id, "resume", "running").await?;
        api.exec(&id).await?;
        Ok(clock.ms())
    };
    let samples = in_turns("resume", rounds, of_floor, of_platform).await;
    vm.end().await?;
    api.delete(&id).await?;
    let path = "platform: POST resume of a paused workspace, POST exec; floor: CPUs on, exec";
    let goals = [Goal::TaxAtMost(2.0)];
    Ok(vec![samples.into_row("resume to exec, resident", path, Unit::Milliseconds, &goals)])
}

pub(super) async fn from_disk(bench: &mut Bench, samples: usize) -> Result<Vec<Row>> {
    let (api, floor) = bench.both(Mode::Restore).await?;
    let template = floor.template(MEMORY_MIB).await?;
    let floor = &*floor;
    api.ensure_template(MEMORY_MIB).await?;
    let mut running = Some(template.running_clone(floor).await?);
    let id = api.create(MEMORY_MIB).await?.id;
    let rounds = Rounds { warm_up: 1, counted: samples };
    let of_floor = async || {
        let vm = running.take().context("the VM of the floor was lost")?;
        let saved = SavedMachine::suspend(vm).await?;
        let clock = Clock::start();
        let vm = saved.resume(floor).await?;
        vm.exec().await?;
        let took = clock.ms();
        running = Some(vm);
        Ok(took)
    };
    let of_platform = async || {
        api.change(&id, "suspend", "suspended").await?;
        let clock = Clock::start();
        let resumed = api.change(&id, "resume", "running").await?;
        api.exec(&id).await?;
        let took = clock.ms();
        resumed.came_by("saved_memory")?;
        Ok(took)
    };
    let samples = in_turns("suspend", rounds, of_floor, of_platform).await;
    if let Some(vm) = running {
        vm.end().await?;
    }
    api.delete(&id).await?;
    let path = "platform: POST resume of a suspended workspace (start_path saved_memory), POST exec; \
                floor: process, memory and devices loaded from a file in the page cache, CPUs on, \
                configure, exec";
    let goals = [Goal::TaxAtMost(1.15)];
    Ok(vec![samples.into_row("resume to exec, from disk", path, Unit::Milliseconds, &goals)])
}
