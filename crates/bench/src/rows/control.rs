//! The control plane alone, on a simulated node: its own benchmark is run, and its figures are taken.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

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

/// What cargo calls it.
const NAME: &str = "control_plane";
/// Only the cases about creating: reading has its targets and its table there.
const ONLY: &str = "create";

pub(super) async fn measure(bench: &mut Bench, seconds: u32) -> Result<Vec<Row>> {
    let json = tempfile::NamedTempFile::new_in(bench.directory())?;
    run(bench.directory(), json.path(), seconds).await?;
    let text = std::fs::read(json.path()).context("reading what the benchmark has written")?;
    rows(&text)
}

async fn run(directory: &Path, json: &Path, seconds: u32) -> Result<()> {
    // It ends with a failure when it misses a target of its own: that is for the table to say.
    let output = Command::new(built().await?)
        .args(["--bench", "--only", ONLY, "--seconds", &seconds.to_string(), "--json"])
        .arg(json)
        .arg("--directory")
        .arg(directory)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("running the control plane's benchmark")?;
    let written = std::fs::metadata(json).is_ok_and(|metadata| metadata.len() > 0);
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(written, "the control plane's benchmark: {}: {said}", output.status);
    Ok(())
}

/// Has cargo build the benchmark, and say where it is: run by us and not by cargo, it ends with us.
async fn built() -> Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["bench", "--locked", "--no-run", "--message-format=json"])
        .args(["-p", "skerry-control", "--bench", NAME])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("running cargo bench")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo bench: {said}");
    executable(&output.stdout).with_context(|| format!("cargo bench has built nothing: {said}"))
}

/// The executable among cargo's messages.
fn executable(messages: &[u8]) -> Option<PathBuf> {
    let messages = serde_json::Deserializer::from_slice(messages).into_iter::<Value>();
    messages.map_while(Result::ok).find_map(|message| {
        let is_it = message["target"]["name"] == NAME;
        is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    })
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
    fn the_benchmark_is_found_among_what_cargo_says() {
        let messages = br#"{"reason":"compiler-artifact","target":{"name":"nix"},"executable":null}
            {"reason":"compiler-artifact","target":{"name":"control_plane"},"executable":"/x/y-1"}
            {"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/x/y-1")));
        assert_eq!(executable(br#"{"reason":"build-finished","success":true}"#), None);
    }

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
