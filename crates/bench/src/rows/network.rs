//! What a VM's place on the network costs: made when it is asked for, and ahead.

use anyhow::{Context, Result, ensure};
use skerry_node::{AddressPrefix, places::Places};

use crate::{
    bench::Bench,
    goal::{Goal, Measured, Row, Unit},
    samples::Clock,
};

/// A place that waits is handed over in no time that could be measured beside anything else.
const TAKEN_WITHIN_MS: f64 = 0.1;

pub(super) async fn measure(bench: &mut Bench, samples: usize) -> Result<Vec<Row>> {
    let directory = tempfile::tempdir_in(bench.directory())?;
    let tag = format!("{:08x}", 0xbe4c_0000_u32 | (std::process::id() & 0xffff));
    let measured = tokio::task::spawn_blocking(move || {
        let places = Places::open(&tag, AddressPrefix::DEFAULT, directory.path())
            .context("a network for measuring")?;
        let found = sample(&places, samples);
        // Whatever was found, nothing is to be left.
        places.close().context("removing the network")?;
        found
    });
    let Found { made, taken, dressed, removed } = measured.await??;
    let row = |name: &str, path: &str, samples, goals| Row {
        name: name.to_owned(),
        path: path.to_owned(),
        unit: Unit::Milliseconds,
        floor: Vec::new(),
        measured: Measured::Samples(samples),
        failures: Vec::new(),
        goals,
    };
    Ok(vec![
        row(
            "network place, made ahead",
            "the one that waits is taken",
            taken,
            vec![Goal::MedianAtMost(TAKEN_WITHIN_MS)],
        ),
        row(
            "network place, made when asked for",
            "namespace, tap, pair of interfaces, addresses and rules, by netlink",
            made,
            Vec::new(),
        ),
        row(
            "network place, becoming a workspace's",
            "its address, routes and egress rules",
            dressed,
            Vec::new(),
        ),
        row("network place, removed", "all of it", removed, Vec::new()),
    ])
}

#[derive(Default)]
struct Found {
    made: Vec<f64>,
    taken: Vec<f64>,
    dressed: Vec<f64>,
    removed: Vec<f64>,
}

fn sample(places: &Places, samples: usize) -> Result<Found> {
    ensure!(samples > 0, "no samples are asked for");
    let mut found = Found::default();
    // The first of everything is not the others' price.
    for counted in (0..=samples).map(|number| number > 0) {
        for ahead in [false, true] {
            if ahead {
                places.make_ahead()?;
            }
            let clock = Clock::start();
            let place = places.take()?;
            let took = clock.ms();
            let clock = Clock::start();
            let address = places.dress(&place)?;
            let dressed = clock.ms();
            let clock = Clock::start();
            places.release(place)?;
            let removed = clock.ms();
            drop(address);
            if counted {
                let of = if ahead { &mut found.taken } else { &mut found.made };
                of.push(took);
                found.dressed.push(dressed);
                found.removed.push(removed);
            }
        }
    }
    Ok(found)
}
