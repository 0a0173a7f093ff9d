//! One running workspace becomes many: clones per second, counted until all have said something.

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};

use super::MEMORY_MIB;
use crate::{
    bench::Bench,
    floor::{Floor, FloorVm, Identity, Template, start},
    goal::{Goal, Row, Unit},
    platform::{Api, Mode},
    samples::{Clock, Rounds, in_turns},
};

pub(super) async fn measure(bench: &mut Bench, samples: usize, forks: usize) -> Result<Vec<Row>> {
    let (api, floor) = bench.both(Mode::Restore).await?;
    let template = floor.template(MEMORY_MIB).await?;
    let floor = &*floor;
    api.ensure_template(MEMORY_MIB).await?;
    let source = api.create(MEMORY_MIB).await?.id;
    api.exec(&source).await?;
    let rounds = Rounds { warm_up: 0, counted: samples };
    let of_floor = async || clones(floor, &template, forks).await;
    let of_platform = async || forked(&api, &source, forks).await;
    let samples = in_turns("fork", rounds, of_floor, of_platform).await;
    api.delete(&source).await?;
    let path = "platform: POST fork of a running workspace, its saving included, and an exec in each; \
                floor: as many clones of a template that is there already, as many at a time as the \
                host has CPUs, and an exec in each";
    let name = format!("fork into {forks}, clones");
    Ok(vec![samples.into_row(name, path, Unit::PerSecond, &[Goal::TaxAtLeast(0.9)])])
}

async fn clones(floor: &Floor, template: &Template, count: usize) -> Result<f64> {
    let prepared = (0..count).map(|_| template.prepare(floor)).collect::<Result<Vec<_>>>()?;
    let at_a_time = std::thread::available_parallelism().map_or(1, usize::from);
    let clock = Clock::start();
    let started = stream::iter(prepared).map(|(spec, files)| async move {
        let mut vm = start(floor, &spec, files).await?;
        vm.meet(Identity::Somebody).await?;
        vm.exec().await?;
        anyhow::Ok(vm)
    });
    let vms: Vec<FloorVm> = started.buffer_unordered(at_a_time).try_collect().await?;
    let rate = clock.per_second(vms.len());
    try_join_all(vms.into_iter().map(FloorVm::end)).await?;
    Ok(rate)
}

async fn forked(api: &Api, source: &str, count: usize) -> Result<f64> {
    let clock = Clock::start();
    let forks = api.fork(source, count).await?;
    let said = try_join_all(forks.iter().map(|fork| api.exec(&fork.id))).await;
    let rate = clock.per_second(forks.len());
    try_join_all(forks.iter().map(|fork| api.delete(&fork.id))).await?;
    said?;
    forks.iter().try_for_each(|fork| fork.came_by("snapshot_memory"))?;
    Ok(rate)
}
