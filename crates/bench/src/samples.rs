//! Taking samples of both sides in turns.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::goal::{Goal, Measured, Row, Unit};

/// So many failures in a row, and the rest would only cost time.
const FAILURES_IN_A_ROW: usize = 3;

/// How often a row is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// Rounds that are not counted: caches fill.
    pub warm_up: usize,
    /// Rounds that are, each with one sample of either side.
    pub counted: usize,
}

/// Both sides' samples.
#[derive(Debug, Default)]
pub struct Samples {
    /// Without the platform.
    pub floor: Vec<f64>,
    /// With it.
    pub platform: Vec<f64>,
    /// What went wrong, on either side.
    pub failures: Vec<String>,
}

/// Takes a sample of each side in every round, in turns one or the other first, so that whatever else
/// the host does meets both.
pub async fn in_turns(
    name: &str,
    rounds: Rounds,
    mut floor: impl AsyncFnMut() -> Result<f64>,
    mut platform: impl AsyncFnMut() -> Result<f64>,
) -> Samples {
    let mut samples = Samples::default();
    let mut failed_in_a_row = 0;
    for round in 0..rounds.warm_up + rounds.counted {
        let (of_floor, of_platform) = if round % 2 == 0 {
            let of_floor = floor().await;
            (of_floor, platform().await)
        } else {
            let of_platform = platform().await;
            (floor().await, of_platform)
        };
        let is_counted = round >= rounds.warm_up;
        say(name, round, &of_floor, &of_platform);
        failed_in_a_row =
            if of_floor.is_ok() && of_platform.is_ok() { 0 } else { failed_in_a_row + 1 };
        samples.take(is_counted, of_floor, of_platform);
        if failed_in_a_row == FAILURES_IN_A_ROW {
            break;
        }
    }
    samples
}

fn say(name: &str, round: usize, floor: &Result<f64>, platform: &Result<f64>) {
    let text = |sample: &Result<f64>| match sample {
        Ok(value) => format!("{value:.2}"),
        Err(_) => "failed".to_owned(),
    };
    eprintln!("    {name} {}: floor {}, platform {}", round + 1, text(floor), text(platform));
}

impl Samples {
    /// A failure counts also while warming up.
    fn take(&mut self, is_counted: bool, floor: Result<f64>, platform: Result<f64>) {
        for (side, sample) in [("floor", floor), ("platform", platform)] {
            match sample {
                Ok(value) if is_counted && side == "floor" => self.floor.push(value),
                Ok(value) if is_counted => self.platform.push(value),
                Ok(_) => {}
                Err(error) => self.failures.push(format!("{side}: {error:#}")),
            }
        }
    }

    /// The row of these samples.
    pub fn into_row(self, name: impl Into<String>, path: &str, unit: Unit, goals: &[Goal]) -> Row {
        Row {
            name: name.into(),
            path: path.to_owned(),
            unit,
            floor: self.floor,
            measured: Measured::Samples(self.platform),
            failures: self.failures,
            goals: goals.to_vec(),
        }
    }
}

/// Since when a clock runs.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Starts it.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Reads it, in milliseconds.
    pub fn ms(self) -> f64 {
        milliseconds(self.0.elapsed())
    }

    /// So many in the time it shows, per second.
    #[allow(clippy::cast_precision_loss, reason = "there are at most a few hundred")]
    pub fn per_second(self, count: usize) -> f64 {
        count as f64 / self.0.elapsed().as_secs_f64()
    }
}

impl From<Instant> for Clock {
    fn from(began: Instant) -> Self {
        Self(began)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.elapsed())
    }
}

/// In milliseconds.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use anyhow::anyhow;

    use super::*;

    #[tokio::test]
    async fn both_sides_are_sampled_in_turns_and_each_begins_every_other_round() {
        let order = RefCell::new(String::new());
        let rounds = Rounds { warm_up: 1, counted: 2 };
        let note = |side: char| {
            order.borrow_mut().push(side);
            f64::from(u32::try_from(order.borrow().len()).unwrap())
        };
        let samples = in_turns("row", rounds, async || Ok(note('f')), async || Ok(note('p'))).await;
        assert_eq!(*order.borrow(), "fppffp");
        assert_eq!((samples.floor, samples.platform), (vec![4.0, 5.0], vec![3.0, 6.0]));
        assert_eq!(samples.failures, Vec::<String>::new());
    }

    #[tokio::test]
    async fn failures_are_kept_with_their_side_and_too_many_end_the_row() {
        let rounds = Rounds { warm_up: 0, counted: 100 };
        let mut count = 0;
        let platform = async || {
            count += 1;
            if count == 1 { Ok(1.0) } else { Err(anyhow!("no answer")) }
        };
        let samples = in_turns("row", rounds, async || Ok(2.0), platform).await;
        assert_eq!((samples.floor.len(), samples.platform.len()), (4, 1));
        assert_eq!(samples.failures, ["platform: no answer"; 3]);
    }
}
