//! What the platform costs on top of the hypervisor. Measures the floor (the VMM, the same kernel and a
//! minimal exchange with the agent) and the platform (the built server over its public API) in turns in
//! one run, and says by how much each goal is met or missed. See `docs/operations/benchmark.md`.
//!
//! Absolute times are shown and never judged by the exit code: it is 1 only when something failed or was
//! left behind.

mod ambient;
mod bench;
mod census;
mod floor;
mod goal;
mod platform;
mod report;
mod rows;
mod samples;
mod statistics;

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    bench::{Bench, Ingredients, Kernel},
    goal::Row,
    platform::Mode,
    report::Report,
    rows::{Counts, Subject},
};

/// The command every sample ends with,
const ARGV: [&str; 2] = ["echo", "ready"];
/// and what it says: the clock stops when that was read.
const SAYS: &str = "ready\n";

/// Measures what the platform costs on top of the hypervisor
#[derive(Parser, Debug)]
#[command(version, args_override_self = true)]
struct Arguments {
    /// Few samples of everything: to see that it works, not for figures
    #[arg(long)]
    quick: bool,
    /// Only these rows
    #[arg(long, value_enum, value_delimiter = ',')]
    rows: Vec<Subject>,
    /// So many samples of every row instead of each one's default
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    samples: Option<u32>,
    /// VMs the server has when it is killed [default: 10, with --quick 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    vms: Option<u32>,
    /// Workspaces a fork makes [default: 8, with --quick 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    forks: Option<u32>,
    /// Writes the figures here, with every sample
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The server [default: skerry beside this program]
    #[arg(long, value_name = "FILE", env = "SKERRY_BIN")]
    skerry: Option<PathBuf>,
    /// The images
    #[arg(long, value_name = "DIR", env = "SKERRY_IMAGE_DIR", default_value = "var/images")]
    image_dir: PathBuf,
    /// Where the run's directory is made; the disk below it is part of what is measured
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// The guests' kernel
    #[arg(long, value_enum, default_value_t)]
    kernel: Kernel,
    /// Decides the bounds of the intervals, and nothing else
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Arguments {
    fn counts(&self) -> Counts {
        let mut counts = if self.quick { Counts::QUICK } else { Counts::FULL };
        // No host this runs on has fewer than 32 bits.
        let number = |asked: u32| usize::try_from(asked).unwrap_or(usize::MAX);
        if let Some(samples) = self.samples {
            counts = counts.with_samples(number(samples));
        }
        counts.vms = self.vms.map_or(counts.vms, number);
        counts.forks = self.forks.map_or(counts.forks, number);
        counts
    }

    /// What is measured, in the order of the measuring: one mode of the server after the other.
    fn subjects(&self) -> Vec<Subject> {
        let all = <Subject as clap::ValueEnum>::value_variants();
        let wanted: BTreeSet<Subject> =
            if self.rows.is_empty() { all } else { &self.rows }.iter().copied().collect();
        let modes = [Some(Mode::Boot), Some(Mode::Restore), Some(Mode::Default), None];
        let in_mode = |mode| wanted.iter().copied().filter(move |subject| subject.mode() == mode);
        modes.into_iter().flat_map(in_mode).collect()
    }

    fn ingredients(&self) -> Result<Ingredients> {
        let binary = match &self.skerry {
            Some(binary) => binary.clone(),
            None => std::env::current_exe()?.with_file_name("skerry"),
        };
        ensure!(binary.is_file(), "{} is missing: run `make setup`", binary.display());
        let image_dir = &self.image_dir;
        ensure!(image_dir.is_dir(), "{} is missing: run `make setup`", image_dir.display());
        Ok(Ingredients {
            binary,
            image_dir: image_dir.canonicalize()?,
            directory: self.directory.canonicalize().context("the run's directory")?,
            kernel: self.kernel,
        })
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let report = runtime
        .context("starting the runtime")
        .and_then(|runtime| runtime.block_on(run(&arguments)));
    match report {
        Ok(report) if report.is_sound() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("skerry-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, clears away, and shows what was found; interrupted, what was found until then.
async fn run(arguments: &Arguments) -> Result<Report> {
    let began = Instant::now();
    let mut bench = Bench::new(arguments.ingredients()?)?;
    let mut found = Found::default();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        () = measure(arguments, &mut bench, &mut found) => {}
        _ = interrupt.recv() => found.broken.push("interrupted".to_owned()),
        _ = terminate.recv() => found.broken.push("terminated".to_owned()),
    }
    let (host, version) = (bench.host(), bench.version());
    eprintln!("==> clearing away");
    let leaked = tokio::select! {
        leaked = bench.close() => leaked,
        // Whoever asks twice does not want to wait; dropping the run kills what it has.
        _ = interrupt.recv() => vec!["not looked for: interrupted twice".to_owned()],
    };
    found.rows.sort_by_key(|(subject, _)| *subject);
    let rows = found.rows.into_iter().map(|(_, row)| row.judge(arguments.seed)).collect();
    let report = Report {
        benchmark: "platform",
        version,
        host,
        seed: arguments.seed,
        took_seconds: began.elapsed().as_secs_f64(),
        rows,
        broken: found.broken,
        leaked,
    };
    println!("{}", report.table());
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, json + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(report)
}

/// What was measured so far.
#[derive(Default)]
struct Found {
    rows: Vec<(Subject, Row)>,
    broken: Vec<String>,
}

async fn measure(arguments: &Arguments, bench: &mut Bench, found: &mut Found) {
    let counts = arguments.counts();
    for subject in arguments.subjects() {
        let (name, began) = (subject.name(), Instant::now());
        eprintln!("==> {name}");
        match subject.measure(bench, &counts).await {
            Ok(rows) => found.rows.extend(rows.into_iter().map(|row| (subject, row))),
            Err(error) => found.broken.push(format!("{name}: {error:#}")),
        }
        if let Err(error) = bench.clear().await {
            found.broken.push(format!("clearing away after {name}: {error:#}"));
        }
        eprintln!("==> {name}: {:.0} s", began.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Arguments {
        Arguments::parse_from(std::iter::once(&"skerry-bench").chain(arguments))
    }

    #[test]
    fn every_row_is_measured_once_and_those_of_one_mode_one_after_the_other() {
        let subjects = parsed(&[]).subjects();
        let all = <Subject as clap::ValueEnum>::value_variants();
        assert_eq!(subjects.len(), all.len());
        let mut modes: Vec<_> = subjects.iter().map(|subject| subject.mode()).collect();
        modes.dedup();
        assert_eq!(modes.len(), 4);
        let asked = parsed(&["--rows", "exec,cold,exec"]).subjects();
        assert_eq!(asked, [Subject::Cold, Subject::Exec]);
    }

    #[test]
    fn the_number_of_samples_can_be_said_for_all_rows_and_of_vms_for_one() {
        let counts = parsed(&["--quick", "--samples", "3", "--vms", "5"]).counts();
        assert_eq!((counts.cold, counts.exec, counts.vms, counts.forks), (3, 3, 5, 2));
        assert_eq!(parsed(&[]).counts(), Counts::FULL);
    }
}
