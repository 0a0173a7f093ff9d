//! Percentiles, and how sure a ratio of two medians is. Pure; randomness comes from a seed.
//!
//! Percentiles are nearest-rank: always one of the samples. With fewer than a hundred samples the 99th
//! is the largest.

use rand::{Rng, SeedableRng, rngs::StdRng};

/// How often samples are drawn anew for an interval.
const RESAMPLES: usize = 2000;
/// The bounds of an interval that holds the truth in 95 of 100 runs.
const LOWER: f64 = 0.025;
const UPPER: f64 = 0.975;

/// The value that `share` of the samples (0 to 1) do not pass; `None` of no samples.
pub fn percentile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    of_sorted(&sorted, share)
}

/// The 50th percentile.
pub fn median(samples: &[f64]) -> Option<f64> {
    percentile(samples, 0.5)
}

fn of_sorted(sorted: &[f64], share: f64) -> Option<f64> {
    // Truncation is meant; nobody has 2^52 samples.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "see above"
    )]
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// A ratio and where it surely is.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Ratio {
    /// Of the medians.
    pub value: f64,
    /// The lower bound of its 95 % interval.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

/// The median of `measured` over the median of `base`, with a percentile bootstrap: both are drawn
/// anew, with replacement and independently, and the ratio is taken of each drawing. `None` when a
/// side has no samples or the base's median is not above zero.
pub fn ratio_of_medians(measured: &[f64], base: &[f64], seed: u64) -> Option<Ratio> {
    let value = ratio(median(measured)?, median(base)?)?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut drawn = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let of = median(&draw(measured, &mut rng)).zip(median(&draw(base, &mut rng)));
        drawn.extend(of.and_then(|(measured, base)| ratio(measured, base)));
    }
    drawn.sort_unstable_by(f64::total_cmp);
    Some(Ratio { value, low: of_sorted(&drawn, LOWER)?, high: of_sorted(&drawn, UPPER)? })
}

fn ratio(measured: f64, base: f64) -> Option<f64> {
    (base > 0.0).then(|| measured / base)
}

fn draw(samples: &[f64], rng: &mut StdRng) -> Vec<f64> {
    (0..samples.len())
        .filter_map(|_| samples.get(rng.random_range(0..samples.len())).copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_percentile_is_the_sample_of_its_rank() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(median(&samples), Some(50.0));
        assert_eq!(percentile(&samples, 0.99), Some(99.0));
        assert_eq!(percentile(&samples, 1.0), Some(100.0));
        assert_eq!(percentile(&samples, 0.0), Some(1.0));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn few_samples_have_their_largest_as_the_99th_percentile() {
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 0.99), Some(3.0));
    }

    #[test]
    fn the_interval_of_equal_samples_is_a_point() {
        let found = ratio_of_medians(&[3.0; 5], &[2.0; 5], 1).unwrap();
        assert_eq!(found, Ratio { value: 1.5, low: 1.5, high: 1.5 });
    }

    #[test]
    fn the_same_seed_gives_the_same_interval_and_more_samples_a_narrower_one() {
        let noisy = |count: u32| -> Vec<f64> {
            (0..count).map(|number| 10.0 + f64::from(number * 7 % 10)).collect()
        };
        let few = ratio_of_medians(&noisy(10), &noisy(10), 4).unwrap();
        assert_eq!(few, ratio_of_medians(&noisy(10), &noisy(10), 4).unwrap());
        let many = ratio_of_medians(&noisy(1000), &noisy(1000), 4).unwrap();
        assert!(many.high - many.low < few.high - few.low, "{many:?} {few:?}");
    }

    #[test]
    fn nothing_is_said_about_a_side_without_samples_or_a_base_of_zero() {
        assert_eq!(ratio_of_medians(&[], &[1.0], 1), None);
        assert_eq!(ratio_of_medians(&[1.0], &[], 1), None);
        assert_eq!(ratio_of_medians(&[1.0], &[0.0], 1), None);
    }

    proptest! {
        // Each case draws thousands of times.
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn the_ratio_lies_in_its_interval_and_scales_with_the_samples(
            measured in proptest::collection::vec(0.1_f64..1e6, 1..40),
            base in proptest::collection::vec(0.1_f64..1e6, 1..40),
        ) {
            let once = ratio_of_medians(&measured, &base, 9).unwrap();
            prop_assert!(once.low <= once.high);
            let doubled: Vec<f64> = measured.iter().map(|sample| sample * 2.0).collect();
            let twice = ratio_of_medians(&doubled, &base, 9).unwrap();
            prop_assert!((twice.value - 2.0 * once.value).abs() <= 1e-9 * twice.value);
            prop_assert!((twice.low - 2.0 * once.low).abs() <= 1e-9 * twice.low);
        }
    }
}
