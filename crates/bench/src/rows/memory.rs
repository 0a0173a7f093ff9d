//! What an idle VM takes of the host's memory.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;

use super::MEMORY_MIB;
use crate::{
    bench::Bench,
    census::{proportional_bytes, vmms_of},
    floor::FloorVm,
    goal::{Goal, Measured, Row, Unit},
    platform::Mode,
};

/// For so long the VMs are left alone before they are weighed: that is what is measured.
const IDLE_FOR: Duration = Duration::from_secs(4);
const MIB: f64 = 1024.0 * 1024.0;

pub(super) async fn measure(bench: &mut Bench, rounds: usize, vms: usize) -> Result<Vec<Row>> {
    let (mut floor, mut platform, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        // One after the other: what all VMs of the host share is counted in proportion.
        for side in if round % 2 == 0 {
            [Side::Floor, Side::Platform]
        } else {
            [Side::Platform, Side::Floor]
        } {
            let (name, weighed, samples) = match side {
                Side::Floor => ("floor", of_floor(bench, vms).await, &mut floor),
                Side::Platform => ("platform", of_platform(bench, vms).await, &mut platform),
            };
            match weighed {
                Ok(weights) => {
                    eprintln!("    memory {}: {name} {weights:.1?} MiB", round + 1);
                    samples.extend(weights);
                }
                Err(error) => failures.push(format!("{name}: {error:#}")),
            }
        }
    }
    Ok(vec![Row {
        name: format!("memory per idle VM, of {vms}"),
        path: "proportional set size of each VMM process, clones of one template, idle for 4 s after a \
               command; platform: with the server's growth, shared out among its VMs"
            .to_owned(),
        unit: Unit::Mebibytes,
        floor,
        measured: Measured::Samples(platform),
        failures,
        goals: vec![Goal::TaxAtMost(1.1)],
    }])
}

#[derive(Clone, Copy)]
enum Side {
    Floor,
    Platform,
}

async fn of_floor(bench: &mut Bench, count: usize) -> Result<Vec<f64>> {
    let (_, floor) = bench.both(Mode::Restore).await?;
    let template = floor.template(MEMORY_MIB).await?;
    let floor = &*floor;
    let mut vms = Vec::new();
    for _ in 0..count {
        let vm = template.running_clone(floor).await?;
        vm.exec().await?;
        vms.push(vm);
    }
    tokio::time::sleep(IDLE_FOR).await;
    let weights = vms.iter().map(|vm| mib_of(vm.pid()?)).collect();
    try_join_all(vms.into_iter().map(FloorVm::end)).await?;
    weights
}

async fn of_platform(bench: &mut Bench, count: usize) -> Result<Vec<f64>> {
    let data_dir = bench.places().data.clone();
    let server = bench.server(Mode::Restore).await?;
    let api = server.api.clone();
    let pid = server.pid().context("the server has ended")?;
    api.ensure_template(MEMORY_MIB).await?;
    let before = mib_of(pid)?;
    let mut ids = Vec::new();
    for _ in 0..count {
        let workspace = api.create(MEMORY_MIB).await?;
        workspace.came_by("template")?;
        api.exec(&workspace.id).await?;
        ids.push(workspace.id);
    }
    tokio::time::sleep(IDLE_FOR).await;
    let vmms = vmms_of(&[&data_dir]);
    ensure!(vmms.len() == count, "{} VMM processes instead of {count}", vmms.len());
    #[allow(clippy::cast_precision_loss, reason = "there are few")]
    let share = (mib_of(pid)? - before) / count as f64;
    let weights = vmms.iter().map(|vmm| Ok(mib_of(vmm.pid)? + share)).collect();
    try_join_all(ids.iter().map(|id| api.delete(id))).await?;
    weights
}

fn mib_of(pid: i32) -> Result<f64> {
    let bytes = proportional_bytes(pid).with_context(|| format!("weighing process {pid}"))?;
    #[allow(clippy::cast_precision_loss, reason = "no process has 2^52 bytes")]
    Ok(bytes as f64 / MIB)
}
