//! The control plane alone, on a simulated node: its own benchmark is run, and its figures are taken.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::program::Program;
use crate::{
    bench::Bench,
    goal::{Goal, Measured, Row, Unit},
};

/// What its JSON says of one case; the rest is its own business.
#[derive(Debug, Deserialize)]
struct Figure {
    name: String,
    callers: usize,
    count: usize,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    target_per_second: Option<f64>,
    target_p99_ms: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Figures {
    figures: Vec<Figure>,
}

const PROGRAM: Program = Program { package: "skerry-control", name: "control_plane" };
/// Only the cases about creating: reading has its targets and its table there.
const ONLY: &str = "create";

pub(super) async fn measure(bench: &mut Bench, seconds: u32) -> Result<Vec<Row>> {
    let directory = bench.directory();
    let place = directory.to_str().context("the run's directory has no name in UTF-8")?;
    let seconds = seconds.to_string();
    let asked = ["--only", ONLY, "--seconds", &seconds, "--directory", place];
    rows(&PROGRAM.figures(directory, &asked).await?)
}

/// One row for each target of each case that has one.
fn rows(json: &[u8]) -> Result<Vec<Row>> {
    let Figures { figures } = serde_json::from_slice(json).context("its JSON")?;
    let mut rows = Vec::new();
    for figure in &figures {
        let callers = match figure.callers {
            0 => String::new(),
            callers => format!(", {callers} callers"),
        };
        let row = |unit, p50, p99, goal| Row {
            name: format!("control: {}{callers}", figure.name),
            path: "cargo bench -p skerry-control: all of control on the embedded database, every \
                   answer after a sync of the disk, a simulated node"
                .to_owned(),
            unit,
            floor: Vec::new(),
            measured: Measured::Figures { p50, p99, count: figure.count },
            failures: Vec::new(),
            goals: vec![goal],
        };
        if let Some(least) = figure.target_per_second {
            let goal = Goal::MedianAtLeast(least);
            rows.push(row(Unit::PerSecond, figure.per_second, None, goal));
        }
        if let Some(most) = figure.target_p99_ms {
            let goal = Goal::P99AtMost(most);
            rows.push(row(Unit::Milliseconds, figure.p50_ms, Some(figure.p99_ms), goal));
        }
    }
    ensure!(!rows.is_empty(), "no figure of the control plane has a target");
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_of_the_control_planes_benchmark_is_a_row() {
        let json = br#"{ "benchmark": "control_plane", "cpus": 2, "figures": [
            { "name": "create, not started", "callers": 64, "count": 20000, "per_second": 4100.0,
              "p50_ms": 12.0, "p99_ms": 31.0, "cpu_us_per_call": 300.0,
              "target_per_second": 3000.0, "target_p99_ms": null, "met": true },
            { "name": "3,000 creates/s, not started", "callers": 0, "count": 15000,
              "per_second": 3000.0, "p50_ms": 3.0, "p99_ms": 70.0, "cpu_us_per_call": 300.0,
              "target_per_second": null, "target_p99_ms": 50.0, "met": false },
            { "name": "create to running", "callers": 1, "count": 1, "per_second": 1.0,
              "p50_ms": 1.0, "p99_ms": 1.0, "cpu_us_per_call": 1.0,
              "target_per_second": null, "target_p99_ms": null, "met": null } ] }"#;
        let outcomes: Vec<_> = rows(json).unwrap().into_iter().map(|row| row.judge(1)).collect();
        let said: Vec<_> = outcomes
            .iter()
            .map(|outcome| (outcome.name.as_str(), outcome.goals[0].says.as_str()))
            .collect();
        assert_eq!(
            said,
            [
                ("control: create, not started, 64 callers", "met"),
                ("control: 3,000 creates/s, not started", "MISSED by 40 %"),
            ]
        );
        assert!(rows(br#"{"figures": []}"#).is_err());
    }
}
