//! A guest's clock, compared with this host's.

use std::{
    fmt,
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Server, workspaces::WORKSPACES};

/// A guest stamps files with the time of its last tick, of which there are at least a hundred in a
/// second, and it is told in whole milliseconds.
const STAMP_LATE_BY_MOST: f64 = 0.011;
/// Where a clock is off by no more than what is asked for, but too little to tell, this ends the trying.
const MEASURED_WITHIN: Duration = Duration::from_secs(60);

/// How far a guest's clock is ahead of the host's, in seconds: somewhere between two bounds that are
/// both certain.
#[derive(Clone, Copy, Debug)]
pub struct ClockOffset {
    /// It is ahead by this at least (negative: it is behind).
    pub at_least: f64,
    /// It is ahead by this at most.
    pub at_most: f64,
}

impl fmt::Display for ClockOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+.0} to {:+.0} ms", 1e3 * self.at_least, 1e3 * self.at_most)
    }
}

impl Server {
    /// Measures a guest's clock until it is certain that it is within `allowed` of the host's.
    ///
    /// Each sample is a file written in the guest: its stamp was made between the moment at which the
    /// host began to ask and the moment at which it had the answer, which bounds the difference from both
    /// sides, however long the exchange took. All samples are of one clock, so the difference lies in all of
    /// their intervals.
    ///
    /// # Errors
    /// It is further off; it was set while it was measured; the exchanges were too slow to tell.
    pub async fn clock_within(&self, id: &str, allowed: Duration) -> Result<ClockOffset> {
        let allowed = allowed.as_secs_f64();
        let began = Instant::now();
        let mut offset = ClockOffset { at_least: f64::NEG_INFINITY, at_most: f64::INFINITY };
        loop {
            let sample = self.clock_sample(id).await?;
            offset.at_least = offset.at_least.max(sample.at_least);
            offset.at_most = offset.at_most.min(sample.at_most);
            ensure!(offset.at_least <= offset.at_most, "it moved: {sample} after {offset}");
            ensure!(
                offset.at_most >= -allowed && offset.at_least <= allowed,
                "the guest's clock is off by {offset}"
            );
            if offset.at_least >= -allowed && offset.at_most <= allowed {
                return Ok(offset);
            }
            ensure!(began.elapsed() < MEASURED_WITHIN, "not known better than {offset}");
        }
    }

    async fn clock_sample(&self, id: &str) -> Result<ClockOffset> {
        let file = "/run/clock-sample";
        let path = format!("{WORKSPACES}/{id}/files");
        let url = format!("{}{path}/content?path={file}", self.url);
        let asked = UNIX_EPOCH.elapsed()?.as_secs_f64();
        let answer = self.http.put(url).body("now").send().await?;
        let answered = UNIX_EPOCH.elapsed()?.as_secs_f64();
        ensure!(answer.status().is_success(), "{}", answer.text().await?);
        let looked = self.expect(200, "GET", &format!("{path}?path={file}"), None).await?;
        let stamp = looked["file"]["modified_at"].as_str().context("no time")?;
        let stamp: jiff::Timestamp = stamp.parse().context("no time")?;
        let stamp = Duration::try_from(stamp.as_duration())?.as_secs_f64();
        Ok(ClockOffset { at_least: stamp - answered, at_most: stamp + STAMP_LATE_BY_MOST - asked })
    }
}

/// How a workspace came to run, as the API tells it.
#[must_use]
pub fn start_path(workspace: &Value) -> &str {
    workspace["start_path"].as_str().unwrap_or("not known")
}
