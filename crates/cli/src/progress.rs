//! Signs of life while something takes its time: on standard error, and only if that is a terminal.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Output;

const TICK: Duration = Duration::from_millis(100);

fn visible(output: Output) -> bool {
    !output.is_json() && io::stderr().is_terminal()
}

/// A spinner with a message and the time gone by. It vanishes when it is dropped.
pub(crate) fn spinner(output: Output, message: impl Into<String>) -> Progress {
    let bar = if visible(output) {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        bar
    } else {
        ProgressBar::hidden()
    };
    bar.set_message(message.into());
    Progress { bar }
}

/// A bar that counts bytes; `total` is `None` when it is not known beforehand.
pub(crate) fn transfer(output: Output, message: impl Into<String>, total: Option<u64>) -> Progress {
    let bar = if visible(output) {
        let (bar, template) = match total {
            Some(total) => (
                ProgressBar::new(total),
                "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
            ),
            None => (
                ProgressBar::new_spinner(),
                "{spinner} {msg} {binary_bytes} {binary_bytes_per_sec}",
            ),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        bar
    } else {
        ProgressBar::hidden()
    };
    bar.set_message(message.into());
    Progress { bar }
}

/// Something that goes on.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Counts bytes.
    pub(crate) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Something that counts on another thread.
    pub(crate) fn counter(&self) -> impl Fn(u64) + Send + Sync + 'static {
        let bar = self.bar.clone();
        move |bytes| bar.inc(bytes)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
