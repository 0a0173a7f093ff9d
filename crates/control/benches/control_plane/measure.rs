//! Calls made by several callers at once, each timed.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How long each of some calls took, and how long they all took together.
pub struct Timings {
    latencies: Vec<Duration>,
    pub took: Duration,
}

impl Timings {
    pub fn new(mut latencies: Vec<Duration>, took: Duration) -> Self {
        latencies.sort_unstable();
        Self { latencies, took }
    }

    pub fn count(&self) -> usize {
        self.latencies.len()
    }

    pub fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// The latency that this share of the calls did not pass, in milliseconds.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let index = (share * last as f64).ceil() as usize;
        self.latencies.get(index.min(last)).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }
}

/// Has `callers` make one call after another until `each` is over; a call under way is awaited.
pub async fn timed<C, F>(callers: usize, each: Duration, call: C) -> Timings
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let call = call.clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            while began.elapsed() < each {
                let start = Instant::now();
                call().await;
                latencies.push(start.elapsed());
            }
            latencies
        });
    }
    let latencies = tasks.join_all().await.concat();
    Timings::new(latencies, began.elapsed())
}
