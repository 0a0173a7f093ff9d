//! How many VMs should wait of each template: claims are counted and forgotten at an even rate, and
//! what the bounds allow is shared out by that count. Pure: the time is passed in.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::templates::TemplateKey;

/// After this long a claim counts a third of what it did.
const MEMORY_SECONDS: f64 = 300.0;
/// Below this a template is no longer wanted: 23 minutes after a single claim.
const FORGOTTEN: f64 = 0.01;
/// One more VM waits for every so many claims remembered.
const CLAIMS_PER_SLOT: f64 = 4.0;

/// The claims of one template.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    remembered: f64,
    at: Instant,
}

impl Demand {
    /// Nothing claimed yet.
    pub fn none(now: Instant) -> Self {
        Self { remembered: 0.0, at: now }
    }

    /// One more claim.
    pub fn claim(&mut self, now: Instant) {
        *self = Self { remembered: self.level(now) + 1.0, at: now };
    }

    /// A claim of that age, the first that is remembered.
    pub fn claimed_ago(age: std::time::Duration, now: Instant) -> Self {
        Self { remembered: (-age.as_secs_f64() / MEMORY_SECONDS).exp(), at: now }
    }

    /// The claims as they are remembered now.
    pub fn level(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at).as_secs_f64();
        self.remembered * (-age / MEMORY_SECONDS).exp()
    }
}

/// What is known of one template when slots are shared out.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub key: TemplateKey,
    /// [`Demand::level`].
    pub level: f64,
    /// One waits whatever the demand.
    pub preset: bool,
}

/// How many may wait in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The most that are restored and paused.
    pub max_warm: u32,
    /// The memory for both kinds.
    pub memory_mib: u64,
    /// What one that is restored and paused takes.
    pub warm_mib: u64,
    /// What one takes that has not loaded its state.
    pub parked_mib: u64,
}

/// How many of one template should wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// Restored, exercised and paused.
    pub warm: u32,
    /// A process that has not loaded its state: the next to become warm, and the second best answer
    /// to a claim.
    pub parked: u32,
}

/// Shares out what the bounds allow: first one for each template that is wanted, the most wanted
/// first, then one more in turns; parked ones from the memory that is left.
pub(super) fn targets(mut wanted: Vec<Wanted>, bounds: Bounds) -> BTreeMap<TemplateKey, Target> {
    wanted.retain(|one| one.preset || one.level >= FORGOTTEN);
    wanted.sort_by(|one, other| other.level.total_cmp(&one.level).then(one.key.cmp(&other.key)));
    let mut targets: Vec<(Wanted, Target)> =
        wanted.into_iter().map(|one| (one, Target::default())).collect();
    let mut memory_mib = bounds.memory_mib;
    let mut warm = bounds.max_warm;
    fill(&mut targets, |wanted, target| {
        if target.warm >= wished(wanted) || warm == 0 || memory_mib < bounds.warm_mib {
            return false;
        }
        target.warm += 1;
        warm -= 1;
        memory_mib -= bounds.warm_mib;
        true
    });
    fill(&mut targets, |_, target| {
        if target.parked >= target.warm.div_ceil(2) || memory_mib < bounds.parked_mib {
            return false;
        }
        target.parked += 1;
        memory_mib -= bounds.parked_mib;
        true
    });
    targets.into_iter().map(|(wanted, target)| (wanted.key, target)).collect()
}

/// Gives in turns until nobody takes any more.
fn fill(targets: &mut [(Wanted, Target)], mut give: impl FnMut(&Wanted, &mut Target) -> bool) {
    loop {
        let mut given = false;
        for (wanted, target) in &mut *targets {
            given |= give(wanted, target);
        }
        if !given {
            return;
        }
    }
}

fn wished(wanted: &Wanted) -> u32 {
    // Truncation is meant; no host has claims beyond the range.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
    let more = (wanted.level / CLAIMS_PER_SLOT).clamp(0.0, 1e6) as u32;
    1 + more
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { max_warm: 8, memory_mib: 400, warm_mib: 24, parked_mib: 12 };

    fn wanted(number: u8, level: f64) -> Wanted {
        Wanted { key: TemplateKey::for_tests(number), level, preset: false }
    }

    fn of(targets: &BTreeMap<TemplateKey, Target>, number: u8) -> (u32, u32) {
        let found = targets.get(&TemplateKey::for_tests(number)).copied().unwrap_or_default();
        (found.warm, found.parked)
    }

    #[test]
    fn a_claim_is_forgotten_in_minutes_and_many_add_up() {
        let start = Instant::now();
        let mut demand = Demand::none(start);
        for _ in 0..10 {
            demand.claim(start);
        }
        assert!((demand.level(start) - 10.0).abs() < 1e-9);
        let later = demand.level(start + Duration::from_secs(300));
        assert!((3.6..3.8).contains(&later), "{later}");
        assert!(demand.level(start + Duration::from_secs(3600)) < FORGOTTEN);
    }

    #[test]
    fn one_waits_for_the_first_claim_and_more_for_many() {
        let found = targets(vec![wanted(1, 1.0)], BOUNDS);
        assert_eq!(of(&found, 1), (1, 1));
        let found = targets(vec![wanted(1, 9.0)], BOUNDS);
        assert_eq!(of(&found, 1), (3, 2));
        assert_eq!(targets(vec![wanted(1, 0.001)], BOUNDS), BTreeMap::new());
    }

    #[test]
    fn a_preset_waits_whether_or_not_anybody_asked() {
        let preset = Wanted { preset: true, ..wanted(1, 0.0) };
        assert_eq!(of(&targets(vec![preset], BOUNDS), 1), (1, 1));
    }

    #[test]
    fn every_template_gets_one_before_any_gets_two() {
        let bounds = Bounds { max_warm: 3, ..BOUNDS };
        let found = targets(vec![wanted(1, 100.0), wanted(2, 1.0)], bounds);
        assert_eq!((of(&found, 1).0, of(&found, 2).0), (2, 1));
        let bounds = Bounds { max_warm: 1, ..BOUNDS };
        let found = targets(vec![wanted(2, 1.0), wanted(1, 100.0)], bounds);
        assert_eq!((of(&found, 1).0, of(&found, 2).0), (1, 0));
    }

    #[test]
    fn no_bound_no_pool() {
        let off = Bounds { max_warm: 0, ..BOUNDS };
        assert_eq!(of(&targets(vec![wanted(1, 50.0)], off), 1), (0, 0));
        let off = Bounds { memory_mib: 0, ..BOUNDS };
        assert_eq!(of(&targets(vec![wanted(1, 50.0)], off), 1), (0, 0));
    }

    proptest! {
        #[test]
        fn the_bounds_hold_whatever_is_wanted(
            levels in proptest::collection::vec(0.0_f64..1e9, 0..12),
            max_warm in 0_u32..20,
            memory_mib in 0_u64..1000,
        ) {
            let bounds = Bounds { max_warm, memory_mib, ..BOUNDS };
            let all = (0..).zip(levels).map(|(number, level)| wanted(number, level)).collect();
            let found = targets(all, bounds);
            let warm: u32 = found.values().map(|target| target.warm).sum();
            let parked: u32 = found.values().map(|target| target.parked).sum();
            prop_assert!(warm <= max_warm);
            let used_mib = u64::from(warm) * bounds.warm_mib + u64::from(parked) * bounds.parked_mib;
            prop_assert!(used_mib <= memory_mib);
        }
    }
}
