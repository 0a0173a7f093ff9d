//! What a row is to reach, and whether it did. Pure.

use serde::Serialize;

use crate::statistics::{Ratio, median, percentile, ratio_of_medians};

/// In what a row is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Time; less is better.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Memory; less is better.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// A rate; more is better.
    #[serde(rename = "/s")]
    PerSecond,
    /// Bytes in some time; more is better.
    #[serde(rename = "MiB/s")]
    MebibytesPerSecond,
}

impl Unit {
    /// As it is written behind a number.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::PerSecond => "/s",
            Self::MebibytesPerSecond => "MiB/s",
        }
    }
}

/// What a row is to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The median, as a multiple of the floor's, is at most this.
    TaxAtMost(f64),
    /// The same is at least this, where more is better.
    TaxAtLeast(f64),
    /// The median is at most so much above the floor's, in the row's unit.
    AboveFloorAtMost(f64),
    /// The median is at most this, in the row's unit.
    MedianAtMost(f64),
    /// The median is at least this.
    MedianAtLeast(f64),
    /// The 99th percentile is at most this.
    P99AtMost(f64),
    /// The 99th percentile is at most so many times the median.
    TailAtMost(f64),
}

/// What was measured on the platform's side.
#[derive(Clone, Debug, PartialEq)]
pub enum Measured {
    /// Here, one by one.
    Samples(Vec<f64>),
    /// By another program, which keeps its samples to itself.
    Figures {
        /// The median, or the rate.
        p50: f64,
        /// The 99th percentile; none of a rate.
        p99: Option<f64>,
        /// Of how many samples.
        count: usize,
    },
}

/// One row, measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What was done.
    pub name: String,
    /// By which path, and what it is compared with.
    pub path: String,
    /// In what.
    pub unit: Unit,
    /// Without the platform; empty where there is no such thing.
    pub floor: Vec<f64>,
    /// With it.
    pub measured: Measured,
    /// Why tries failed, on either side.
    pub failures: Vec<String>,
    /// What is to be reached.
    pub goals: Vec<Goal>,
}

/// What came of one goal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The goal, for people.
    pub goal: String,
    /// What is compared with the limit; absent when it was not measured.
    pub value: Option<f64>,
    /// The limit.
    pub limit: f64,
    /// Whether the goal holds. It does not unless everything succeeded.
    pub met: bool,
    /// The verdict, for people: by how much it is missed.
    pub says: String,
}

/// A row with everything that is said about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// See [`Row::name`].
    pub name: String,
    /// See [`Row::path`].
    pub path: String,
    /// See [`Row::unit`].
    pub unit: Unit,
    /// The floor's median.
    pub floor_p50: Option<f64>,
    /// The platform's.
    pub p50: Option<f64>,
    /// The platform's 99th percentile.
    pub p99: Option<f64>,
    /// The platform's 99th percentile over its median.
    pub tail: Option<f64>,
    /// The platform's median over the floor's.
    pub tax: Option<Ratio>,
    /// Tries that succeeded, on both sides.
    pub succeeded: usize,
    /// Tries, on both sides.
    pub attempted: usize,
    /// What was to be reached.
    pub goals: Vec<Verdict>,
    /// Why tries failed.
    pub failures: Vec<String>,
    /// The floor's samples, in the order they were taken.
    pub floor_samples: Vec<f64>,
    /// The platform's.
    pub samples: Vec<f64>,
}

impl Row {
    /// What is to be said about it. The seed decides the bounds of the tax, and nothing else.
    pub fn judge(self, seed: u64) -> Outcome {
        let Self { name, path, unit, floor, measured, failures, goals } = self;
        let (p50, p99, count, samples) = match measured {
            Measured::Samples(samples) => {
                // The largest of some rates is the best of them and says nothing.
                let p99 = match unit {
                    Unit::Milliseconds | Unit::Mebibytes => percentile(&samples, 0.99),
                    Unit::PerSecond | Unit::MebibytesPerSecond => None,
                };
                (median(&samples), p99, samples.len(), samples)
            }
            Measured::Figures { p50, p99, count } => (Some(p50), p99, count, Vec::new()),
        };
        let succeeded = count + floor.len();
        let mut outcome = Outcome {
            name,
            path,
            unit,
            floor_p50: median(&floor),
            p50,
            p99,
            tail: p99.zip(p50).filter(|(_, p50)| *p50 > 0.0).map(|(p99, p50)| p99 / p50),
            tax: ratio_of_medians(&samples, &floor, seed),
            succeeded,
            attempted: succeeded + failures.len(),
            goals: Vec::new(),
            failures,
            floor_samples: floor,
            samples,
        };
        outcome.goals = goals.into_iter().map(|goal| outcome.verdict(goal)).collect();
        outcome
    }
}

impl Outcome {
    fn verdict(&self, goal: Goal) -> Verdict {
        let unit = self.unit.text();
        let above = self.p50.zip(self.floor_p50).map(|(p50, floor)| p50 - floor);
        let tax = self.tax.map(|tax| tax.value);
        let (text, value, limit, holds) = match goal {
            Goal::TaxAtMost(limit) => (format!("<= {limit}x floor"), tax, limit, Bound::AtMost),
            Goal::TaxAtLeast(limit) => (format!(">= {limit}x floor"), tax, limit, Bound::AtLeast),
            Goal::AboveFloorAtMost(limit) => {
                (format!("<= floor + {limit} {unit}"), above, limit, Bound::AtMost)
            }
            Goal::MedianAtMost(limit) => {
                (format!("p50 <= {limit} {unit}"), self.p50, limit, Bound::AtMost)
            }
            Goal::MedianAtLeast(limit) => {
                (format!(">= {limit} {unit}"), self.p50, limit, Bound::AtLeast)
            }
            Goal::P99AtMost(limit) => {
                (format!("p99 <= {limit} {unit}"), self.p99, limit, Bound::AtMost)
            }
            Goal::TailAtMost(limit) => {
                (format!("p99 <= {limit}x p50"), self.tail, limit, Bound::AtMost)
            }
        };
        let failed = self.attempted - self.succeeded;
        let holding = value.is_some_and(|value| holds.holds(value, limit));
        let says = match (value, holding, failed) {
            (None, _, _) => "not measured".to_owned(),
            (Some(_), true, 0) => "met".to_owned(),
            (Some(_), true, failed) => format!("MISSED: {failed} of {} failed", self.attempted),
            (Some(value), false, _) => match goal {
                // The limit is a difference already: a share of it would say little.
                Goal::AboveFloorAtMost(_) => format!("MISSED by {:.2} {unit}", value - limit),
                Goal::TaxAtMost(_)
                | Goal::TaxAtLeast(_)
                | Goal::MedianAtMost(_)
                | Goal::MedianAtLeast(_)
                | Goal::P99AtMost(_)
                | Goal::TailAtMost(_) => {
                    format!("MISSED by {:.0} %", ((value / limit - 1.0) * 100.0).abs().max(1.0))
                }
            },
        };
        Verdict { goal: text, value, limit, met: holding && failed == 0, says }
    }
}

/// On which side of its limit a value has to be.
#[derive(Clone, Copy)]
enum Bound {
    AtMost,
    AtLeast,
}

impl Bound {
    fn holds(self, value: f64, limit: f64) -> bool {
        match self {
            Self::AtMost => value <= limit,
            Self::AtLeast => value >= limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(floor: &[f64], samples: &[f64], goal: Goal) -> Row {
        Row {
            name: "row".to_owned(),
            path: "path".to_owned(),
            unit: Unit::Milliseconds,
            floor: floor.to_vec(),
            measured: Measured::Samples(samples.to_vec()),
            failures: Vec::new(),
            goals: vec![goal],
        }
    }

    fn says(row: Row) -> (bool, String) {
        let verdict = row.judge(1).goals.remove(0);
        (verdict.met, verdict.says)
    }

    #[test]
    fn a_goal_that_is_missed_says_by_how_much() {
        let missed = |text: &str| (false, text.to_owned());
        let met = (true, "met".to_owned());
        let of = |goal| says(row(&[2.0], &[3.0], goal));
        assert_eq!(of(Goal::TaxAtMost(1.5)), met);
        assert_eq!(of(Goal::TaxAtMost(1.2)), missed("MISSED by 25 %"));
        assert_eq!(of(Goal::TaxAtLeast(1.5)), met);
        assert_eq!(of(Goal::TaxAtLeast(2.0)), missed("MISSED by 25 %"));
        assert_eq!(of(Goal::AboveFloorAtMost(1.0)), met);
        assert_eq!(of(Goal::AboveFloorAtMost(0.25)), missed("MISSED by 0.75 ms"));
        assert_eq!(of(Goal::MedianAtMost(2.0)), missed("MISSED by 50 %"));
        assert_eq!(of(Goal::MedianAtLeast(3.0)), met);
        assert_eq!(of(Goal::P99AtMost(3.0)), met);
        assert_eq!(of(Goal::TailAtMost(1.0)), met);
    }

    #[test]
    fn a_miss_by_next_to_nothing_is_not_written_as_a_miss_by_nothing() {
        let found = says(row(&[1000.0], &[1501.0], Goal::TaxAtMost(1.5)));
        assert_eq!(found, (false, "MISSED by 1 %".to_owned()));
    }

    #[test]
    fn a_goal_holds_only_when_everything_succeeded() {
        let mut failed = row(&[2.0], &[2.0], Goal::TaxAtMost(1.5));
        failed.failures.push("no answer".to_owned());
        assert_eq!(says(failed), (false, "MISSED: 1 of 3 failed".to_owned()));
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        assert_eq!(
            says(row(&[2.0], &[], Goal::TaxAtMost(1.5))),
            (false, "not measured".to_owned())
        );
        assert_eq!(
            says(row(&[], &[2.0], Goal::AboveFloorAtMost(1.0))),
            (false, "not measured".to_owned())
        );
    }

    #[test]
    fn figures_of_another_program_are_judged_without_samples() {
        let figures = Row {
            measured: Measured::Figures { p50: 2.0, p99: Some(60.0), count: 9 },
            ..row(&[], &[], Goal::P99AtMost(50.0))
        };
        let outcome = figures.judge(1);
        assert_eq!((outcome.succeeded, outcome.tax, outcome.tail), (9, None, Some(30.0)));
        assert_eq!(outcome.goals[0].says, "MISSED by 20 %");
    }
}
