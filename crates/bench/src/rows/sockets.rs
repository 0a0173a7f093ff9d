//! Memory of WebSockets that say nothing: the listener and the gateway alone, by their own benchmark.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::program::Program;
use crate::{
    bench::Bench,
    goal::{Goal, Measured, Row, Unit},
};

/// What its JSON says; the rest is its own business.
#[derive(Debug, Deserialize)]
struct Figures {
    connections: usize,
    grown_kib: f64,
}

const PROGRAM: Program = Program { package: "skerry-server", name: "idle_websockets" };
/// What so many may cost, by the goals.
const GOAL_MIB: f64 = 150.0;
const GOAL_CONNECTIONS: f64 = 10_000.0;

pub(super) async fn measure(bench: &mut Bench, connections: usize) -> Result<Vec<Row>> {
    let asked = ["--connections", &connections.to_string()];
    let json = PROGRAM.figures(bench.directory(), &asked).await?;
    Ok(vec![row(&json)?])
}

fn row(json: &[u8]) -> Result<Row> {
    let Figures { connections, grown_kib } = serde_json::from_slice(json).context("its JSON")?;
    // No run has so many that this is not exact.
    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    let share = connections as f64 / GOAL_CONNECTIONS;
    Ok(Row {
        name: format!("{connections} idle WebSockets"),
        path: "cargo bench -p skerry-server: what the process of listener and gateway grows by, with a \
               simulated guest's ends"
            .to_owned(),
        unit: Unit::Mebibytes,
        floor: Vec::new(),
        measured: Measured::Figures { p50: grown_kib / 1024.0, p99: None, count: connections },
        failures: Vec::new(),
        goals: vec![Goal::MedianAtMost(GOAL_MIB * share)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_goal_is_for_as_many_as_there_were() {
        let says = |json: &[u8]| row(json).unwrap().judge(1).goals[0].says.clone();
        assert_eq!(says(br#"{"connections": 10000, "grown_kib": 102400, "more": 1}"#), "met");
        assert_eq!(says(br#"{"connections": 500, "grown_kib": 7680}"#), "met");
        assert_eq!(says(br#"{"connections": 500, "grown_kib": 15360}"#), "MISSED by 100 %");
        assert!(row(b"{}").is_err());
    }
}
