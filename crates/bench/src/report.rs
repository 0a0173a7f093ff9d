//! The figures, as a table for people and as JSON for programs. Pure.

use std::fmt::Write;

use serde::Serialize;

use crate::goal::Outcome;

/// Where the figures come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Host {
    /// Processors.
    pub cpus: usize,
    /// How guest instructions ran: `kvm` or `tcg`.
    pub accelerator: String,
    /// The hypervisor's version.
    pub hypervisor: String,
    /// The guests' kernel.
    pub guest_kernel: String,
    /// The host's load average over one minute before the run: above a few tenths, others were at work.
    pub load_before: f64,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Which format this is.
    pub benchmark: &'static str,
    /// Of the server that was measured.
    pub version: String,
    /// Where.
    pub host: Host,
    /// Decides the intervals.
    pub seed: u64,
    /// How long the run took, in seconds.
    pub took_seconds: f64,
    /// What was measured.
    pub rows: Vec<Outcome>,
    /// Rows that could not be measured to their end, and why.
    pub broken: Vec<String>,
    /// What was still there at the end and should not have been.
    pub leaked: Vec<String>,
}

const HEADINGS: [&str; 9] =
    ["", "ok", "floor p50", "p50", "p99", "p99/p50", "tax [95 %]", "goal", "result"];
/// Columns that are words; the others are numbers and end at the same place.
const WORDS: [usize; 3] = [0, 7, 8];

impl Report {
    /// Whether everything succeeded and nothing was left. Missed goals are no failure.
    pub fn is_sound(&self) -> bool {
        let succeeded = self.rows.iter().all(|row| row.failures.is_empty());
        succeeded && self.broken.is_empty() && self.leaked.is_empty()
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut lines = vec![HEADINGS.map(str::to_owned)];
        for row in &self.rows {
            lines.extend(lines_of(row));
        }
        let widths: Vec<usize> = (0..HEADINGS.len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = self.heading();
        for line in &lines {
            let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if WORDS.contains(&column) {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            let cells: Vec<String> = cells.collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text + &self.ending()
    }

    fn heading(&self) -> String {
        let Host { cpus, accelerator, hypervisor, guest_kernel, load_before } = &self.host;
        format!(
            "skerry {}, {cpus} CPUs, {accelerator}, {hypervisor}, guest kernel {guest_kernel}, \
             load before {load_before:.2}\n\n",
            self.version
        )
    }

    fn ending(&self) -> String {
        let mut text = String::from("\n");
        for row in self.rows.iter().filter(|row| !row.failures.is_empty()) {
            for failure in &row.failures {
                let _ = writeln!(text, "FAILED {}: {failure}", row.name);
            }
        }
        for broken in &self.broken {
            let _ = writeln!(text, "BROKEN OFF {broken}");
        }
        for leaked in &self.leaked {
            let _ = writeln!(text, "LEAKED {leaked}");
        }
        let verdicts: Vec<_> = self.rows.iter().flat_map(|row| &row.goals).collect();
        let met = verdicts.iter().filter(|verdict| verdict.met).count();
        let leaks = if self.leaked.is_empty() { "nothing leaked" } else { "LEAKS" };
        let (all, took) = (verdicts.len(), self.took_seconds);
        let _ = writeln!(text, "{met} of {all} goals met, {leaks}, {took:.0} s");
        text
    }
}

/// A row with its first goal, and one more line for each further goal.
fn lines_of(row: &Outcome) -> Vec<[String; 9]> {
    let number = |value: Option<f64>| {
        value.map_or_else(String::new, |value| format!("{} {}", digits(value), row.unit.text()))
    };
    let tax = row.tax.map_or_else(String::new, |tax| {
        format!("{:.2}x [{:.2}, {:.2}]", tax.value, tax.low, tax.high)
    });
    let first = [
        row.name.clone(),
        format!("{}/{}", row.succeeded, row.attempted),
        number(row.floor_p50),
        number(row.p50),
        number(row.p99),
        row.tail.map_or_else(String::new, |tail| format!("{tail:.2}")),
        tax,
    ];
    let mut goals = row.goals.iter().map(|verdict| [verdict.goal.clone(), verdict.says.clone()]);
    let [goal, result] = goals.next().unwrap_or_default();
    let [name, ok, floor, p50, p99, tail, tax] = first;
    let mut lines = vec![[name, ok, floor, p50, p99, tail, tax, goal, result]];
    lines.extend(goals.map(|[goal, result]| {
        let empty = String::new;
        [empty(), empty(), empty(), empty(), empty(), empty(), empty(), goal, result]
    }));
    lines
}

/// Three digits that mean something, more of large numbers.
fn digits(value: f64) -> String {
    match value.abs() {
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goal::{Goal, Measured, Row, Unit};

    fn row(name: &str, unit: Unit, floor: &[f64], samples: &[f64], goals: &[Goal]) -> Row {
        Row {
            name: name.to_owned(),
            path: "the path".to_owned(),
            unit,
            floor: floor.to_vec(),
            measured: Measured::Samples(samples.to_vec()),
            failures: Vec::new(),
            goals: goals.to_vec(),
        }
    }

    fn report() -> Report {
        let pool = row(
            "create to first exec, pool",
            Unit::Milliseconds,
            &[6.0, 6.2, 6.1, 7.0, 5.9],
            &[9.0, 8.8, 9.3, 12.0, 9.1],
            &[Goal::TaxAtMost(1.5), Goal::P99AtMost(25.0)],
        );
        let mut exec = row(
            "exec round trip",
            Unit::Milliseconds,
            &[2.25],
            &[3.5, 3.75],
            &[Goal::AboveFloorAtMost(1.0), Goal::TailAtMost(3.0)],
        );
        exec.failures.push("POST exec: 503".to_owned());
        let forks = row("fork", Unit::PerSecond, &[12.0], &[9.0], &[Goal::TaxAtLeast(0.9)]);
        let creates = Row {
            measured: Measured::Figures { p50: 4123.4, p99: None, count: 20_000 },
            ..row("creates", Unit::PerSecond, &[], &[], &[Goal::MedianAtLeast(3000.0)])
        };
        let rows = [pool, exec, forks, creates].map(|row| row.judge(1)).to_vec();
        Report {
            benchmark: "platform",
            version: "0.1.0".to_owned(),
            host: Host {
                cpus: 2,
                accelerator: "tcg".to_owned(),
                hypervisor: "7.2.22".to_owned(),
                guest_kernel: "6.1.0".to_owned(),
                load_before: 0.1,
            },
            seed: 1,
            took_seconds: 61.25,
            rows,
            broken: vec!["kill -9: the server did not come back".to_owned()],
            leaked: vec!["process 1234: qemu-system-x86_64".to_owned()],
        }
    }

    #[test]
    fn the_table_shows_what_was_measured_what_was_to_be_reached_and_by_how_much_it_was_missed() {
        insta::assert_snapshot!(report().table());
    }

    #[test]
    fn the_json_has_everything_the_table_has_and_every_sample() {
        insta::assert_json_snapshot!(report());
    }

    #[test]
    fn a_missed_goal_is_no_failure_and_a_failure_a_break_or_a_leak_is() {
        let sound = |change: fn(&mut Report)| {
            let mut changed = report();
            changed.rows.iter_mut().for_each(|row| row.failures.clear());
            changed.broken.clear();
            changed.leaked.clear();
            change(&mut changed);
            changed.is_sound()
        };
        assert!(sound(|report| report.rows[0].goals[0].met = false));
        assert!(!sound(|report| report.rows[0].failures.push("x".to_owned())));
        assert!(!sound(|report| report.broken.push("x".to_owned())));
        assert!(!sound(|report| report.leaked.push("x".to_owned())));
    }
}
