//! The frequency of the host's time-stamp counter, which an emulated guest sees unchanged.

use std::{
    arch::x86_64::_rdtsc,
    thread,
    time::{Duration, Instant},
};

/// Long enough that reading the two clocks a microsecond apart is an error of 0.005 %.
const INTERVAL: Duration = Duration::from_millis(20);

/// Measures for 20 ms, blocking the thread. In kHz.
pub(super) fn measure_tsc_khz() -> u64 {
    let (start_ticks, start) = read_both();
    thread::sleep(INTERVAL);
    let (end_ticks, end) = read_both();
    let nanoseconds = (end - start).as_nanos().max(1);
    let ticks = u128::from(end_ticks.wrapping_sub(start_ticks));
    u64::try_from(ticks * 1_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

/// The closest pair of several: being scheduled away between the two readings would spoil one.
fn read_both() -> (u64, Instant) {
    let read = || {
        // SAFETY: reads a counter; every x86-64 processor has it.
        let before = unsafe { _rdtsc() };
        let now = Instant::now();
        // SAFETY: as above.
        let after = unsafe { _rdtsc() };
        (after.wrapping_sub(before), before + after.wrapping_sub(before) / 2, now)
    };
    let (_, ticks, now) = (0..5).map(|_| read()).min_by_key(|pair| pair.0).unwrap_or_else(read);
    (ticks, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frequency_is_one_a_processor_may_have() {
        let khz = measure_tsc_khz();
        assert!((200_000..=10_000_000).contains(&khz), "{khz} kHz");
    }
}
