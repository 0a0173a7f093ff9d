//! Calls made by several callers at once, each timed.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};

/// How long each of some calls took, how long they all took together, and the CPU time this process
/// spent meanwhile: on a busy machine that is the figure to compare.
pub struct Timings {
    latencies: Vec<Duration>,
    took: Duration,
    cpu: Duration,
}

impl Timings {
    pub fn new(mut latencies: Vec<Duration>, since: &Stopwatch) -> Self {
        latencies.sort_unstable();
        Self { latencies, took: since.began.elapsed(), cpu: cpu_time().saturating_sub(since.cpu) }
    }

    /// The same calls, with what was done after their answers.
    pub fn extended(self, since: &Stopwatch) -> Self {
        Self::new(self.latencies, since)
    }

    pub fn count(&self) -> usize {
        self.latencies.len()
    }

    pub fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// Microseconds of CPU time for each call, the callers' own included.
    pub fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.latencies.len() as f64
    }

    /// The latency that this share of the calls did not pass, in milliseconds.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let index = (share * last as f64).ceil() as usize;
        self.latencies.get(index.min(last)).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }
}

/// When something began.
pub struct Stopwatch {
    pub began: Instant,
    cpu: Duration,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self { began: Instant::now(), cpu: cpu_time() }
    }
}

/// The CPU time of this process so far.
fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process knows its own use");
    let micros = |time: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0))
    };
    micros(usage.user_time()) + micros(usage.system_time())
}

/// Has `callers` make one call after another until `each` is over; a call under way is awaited.
pub async fn timed<C, F>(callers: usize, each: Duration, call: C) -> Timings
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let watch = Stopwatch::start();
    let began = watch.began;
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
    Timings::new(latencies, &watch)
}

/// Begins `per_second` calls each second, evenly and whether or not earlier ones are answered, until
/// `each` is over. A call's time counts from when it was due, so that one that had to wait for its turn
/// shows it.
pub async fn offered<C, F>(per_second: u32, each: Duration, call: C) -> Timings
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let watch = Stopwatch::start();
    let began = watch.began;
    let mut tasks = tokio::task::JoinSet::new();
    let between = Duration::from_secs(1) / per_second;
    let mut due = Duration::ZERO;
    while due < each {
        while due <= began.elapsed() && due < each {
            let (call, due_at) = (call.clone(), began + due);
            tasks.spawn(async move {
                call().await;
                due_at.elapsed()
            });
            due += between;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let latencies = tasks.join_all().await;
    Timings::new(latencies, &watch)
}
