//! The figures, for people and for programs.

use std::{io, path::Path};

use serde_json::{Value, json};

use crate::measure::Timings;

/// What a case is to reach.
#[derive(Clone, Copy)]
pub struct Target {
    /// At least this many calls per second.
    pub per_second: Option<f64>,
    /// At most this many milliseconds at the 99th percentile.
    pub p99_ms: Option<f64>,
}

impl Target {
    /// The case is shown to compare with, not to be judged.
    pub const NONE: Self = Self { per_second: None, p99_ms: None };
}

/// One case's outcome.
pub struct Figure {
    name: &'static str,
    callers: usize,
    count: usize,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
    target: Target,
}

impl Figure {
    pub fn new(name: &'static str, callers: usize, timings: &Timings, target: Target) -> Self {
        Self {
            name,
            callers,
            count: timings.count(),
            per_second: timings.per_second(),
            p50_ms: timings.quantile_ms(0.5),
            p99_ms: timings.quantile_ms(0.99),
            cpu_us: timings.cpu_us(),
            target,
        }
    }

    /// Whether the target is reached; `None` without one.
    fn met(&self) -> Option<bool> {
        let fast = self.target.per_second.map(|least| self.per_second >= least);
        let soon = self.target.p99_ms.map(|most| self.p99_ms <= most);
        match (fast, soon) {
            (None, None) => None,
            (fast, soon) => Some(fast.unwrap_or(true) && soon.unwrap_or(true)),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "callers": self.callers,
            "count": self.count,
            "per_second": self.per_second,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "cpu_us_per_call": self.cpu_us,
            "target_per_second": self.target.per_second,
            "target_p99_ms": self.target.p99_ms,
            "met": self.met(),
        })
    }
}

/// Prints a table; answers whether every target is reached.
pub fn print(figures: &[Figure]) -> bool {
    println!(
        "{:<34} {:>7} {:>8} {:>10} {:>9} {:>9} {:>9}  goal",
        "case", "callers", "calls", "per second", "p50 ms", "p99 ms", "CPU us"
    );
    for figure in figures {
        let goal = match figure.met() {
            None => String::new(),
            Some(met) => {
                let rate = figure.target.per_second.map(|least| format!(">= {least:.0}/s"));
                let p99 = figure.target.p99_ms.map(|most| format!("p99 <= {most:.0} ms"));
                let asked: Vec<String> = rate.into_iter().chain(p99).collect();
                format!("{} {}", asked.join(", "), if met { "met" } else { "MISSED" })
            }
        };
        println!(
            "{:<34} {:>7} {:>8} {:>10.0} {:>9.3} {:>9.3} {:>9.1}  {goal}",
            figure.name,
            if figure.callers == 0 { "-".to_owned() } else { figure.callers.to_string() },
            figure.count,
            figure.per_second,
            figure.p50_ms,
            figure.p99_ms,
            figure.cpu_us
        );
    }
    figures.iter().all(|figure| figure.met() != Some(false))
}

/// Writes the same as JSON.
pub fn write(path: &Path, figures: &[Figure]) -> io::Result<()> {
    let figures: Vec<Value> = figures.iter().map(Figure::to_json).collect();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let report = json!({ "benchmark": "control_plane", "cpus": cpus, "figures": figures });
    std::fs::write(path, format!("{report:#}\n"))
}
