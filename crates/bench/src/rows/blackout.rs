//! For how long a running guest stands still for a snapshot of its disk and memory.

use anyhow::Result;

use crate::{
    bench::Bench,
    goal::{Goal, Measured, Row, Unit},
    platform::Mode,
    samples::{Rounds, in_turns, milliseconds},
};

/// Guests of these sizes; a mechanism that does not grow shows the same for both.
const SIZES_MIB: [u32; 2] = [512, 2048];
/// How much more the larger one may take.
const FLAT_WITHIN: f64 = 1.2;

pub(super) async fn measure(bench: &mut Bench, samples: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for memory_mib in SIZES_MIB {
        rows.push(of_size(bench, memory_mib, samples).await?);
    }
    let of = |row: &Row| match &row.measured {
        Measured::Samples(samples) => samples.clone(),
        Measured::Figures { .. } => Vec::new(),
    };
    if let [small, large] = &rows[..] {
        let (small, large) = (of(small), of(large));
        rows.push(Row {
            name: format!("... {} against {} MiB", SIZES_MIB[1], SIZES_MIB[0]),
            path: "the platform's blackouts of the two sizes; the smaller one's is the floor"
                .to_owned(),
            unit: Unit::Milliseconds,
            floor: small,
            measured: Measured::Samples(large),
            failures: Vec::new(),
            goals: vec![Goal::TaxAtMost(FLAT_WITHIN)],
        });
    }
    Ok(rows)
}

async fn of_size(bench: &mut Bench, memory_mib: u32, samples: usize) -> Result<Row> {
    let (api, floor) = bench.both(Mode::Restore).await?;
    let template = floor.template(memory_mib).await?;
    let floor = &*floor;
    api.ensure_template(memory_mib).await?;
    let vm = template.running_clone(floor).await?;
    vm.exec().await?;
    let id = api.create(memory_mib).await?.id;
    api.exec(&id).await?;
    let rounds = Rounds { warm_up: 1, counted: samples };
    let mut number = 0;
    let of_floor = async || {
        number += 1;
        vm.snapshot(floor, number).await.map(milliseconds)
    };
    let of_platform = async || {
        let (snapshot, stood_still) = api.snapshot(&id).await?;
        api.delete_snapshot(&snapshot).await?;
        Ok(stood_still)
    };
    let name = format!("snapshot blackout, {memory_mib} MiB");
    let samples = in_turns(&name, rounds, of_floor, of_platform).await;
    vm.end().await?;
    api.delete(&id).await?;
    let path = "memory copied while the guest runs, then file systems frozen, CPUs stopped, new \
                overlay, rest of memory, CPUs on, thawed; from freezing to thawed. platform: \
                blackout_ms of POST snapshots; floor: the same calls without the platform";
    Ok(samples.into_row(name, path, Unit::Milliseconds, &[Goal::TaxAtMost(1.3)]))
}
