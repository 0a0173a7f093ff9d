//! A visit that wakes a workspace.

use anyhow::{Result, ensure};

use super::{MEMORY_MIB, preview};
use crate::{
    SAYS,
    bench::Bench,
    goal::{Goal, Row, Unit},
    platform::Mode,
    samples::{Clock, Rounds, in_turns},
};

/// The label of the workspace's host.
const SLUG: &str = "bench-sleeper";

pub(super) async fn measure(bench: &mut Bench, samples: usize) -> Result<Vec<Row>> {
    let (api, _) = bench.both(Mode::Restore).await?;
    api.ensure_template(MEMORY_MIB).await?;
    let id = preview::open(&api, SLUG).await?;
    let visit = async || {
        let said = api.visit(SLUG, "/0").await?;
        ensure!(said == SAYS.as_bytes(), "{}", String::from_utf8_lossy(&said));
        anyhow::Ok(())
    };
    let by_hand = async || {
        api.change(&id, "suspend", "suspended").await?;
        let clock = Clock::start();
        api.change(&id, "resume", "running").await?.came_by("saved_memory")?;
        visit().await?;
        Ok(clock.ms())
    };
    let by_visit = async || {
        api.change(&id, "suspend", "suspended").await?;
        let clock = Clock::start();
        visit().await?;
        Ok(clock.ms())
    };
    let rounds = Rounds { warm_up: 1, counted: samples };
    let samples = in_turns("wake", rounds, by_hand, by_visit).await;
    api.delete(&id).await?;
    let path = "platform: GET of a published port of a suspended workspace, which wakes it; floor: POST \
                resume of the same workspace, then the GET";
    let goals = [Goal::AboveFloorAtMost(2.0)];
    Ok(vec![samples.into_row("wake by a visit", path, Unit::Milliseconds, &goals)])
}
