//! A command in a guest that runs, and its output.

use anyhow::Result;

use super::MEMORY_MIB;
use crate::{
    bench::Bench,
    goal::{Goal, Row, Unit},
    platform::Mode,
    samples::{Clock, Rounds, in_turns},
};

pub(super) async fn measure(bench: &mut Bench, samples: usize) -> Result<Vec<Row>> {
    let (api, floor) = bench.both(Mode::Restore).await?;
    let template = floor.template(MEMORY_MIB).await?;
    api.ensure_template(MEMORY_MIB).await?;
    let vm = template.running_clone(floor).await?;
    let id = api.create(MEMORY_MIB).await?.id;
    // Under emulation a guest's first commands are slower: their code is translated.
    let rounds = Rounds { warm_up: 10.min(samples), counted: samples };
    let of_floor = async || {
        let clock = Clock::start();
        vm.exec().await?;
        Ok(clock.ms())
    };
    let of_platform = async || {
        let clock = Clock::start();
        api.exec(&id).await?;
        Ok(clock.ms())
    };
    let samples = in_turns("exec", rounds, of_floor, of_platform).await;
    vm.end().await?;
    api.delete(&id).await?;
    let path = "platform: POST exec on a connection that is kept; floor: the same command over the \
                line to the agent";
    let goals = [Goal::AboveFloorAtMost(1.0), Goal::TailAtMost(3.0)];
    Ok(vec![samples.into_row("exec round trip", path, Unit::Milliseconds, &goals)])
}
