//! What a build tells while it works.

use std::time::{Duration, Instant};

use super::ImageError;

/// One piece of news from a build. The caller decides how to show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Another build holds the store; this one waits for it.
    WaitingForLock,
    /// A step begins.
    Started {
        /// What is done, as an order: `download the kernel`.
        step: &'a str,
    },
    /// A line of output of the program that does the step.
    Output {
        /// The line.
        line: &'a str,
    },
    /// The step is done.
    Finished {
        /// What was done.
        step: &'a str,
        /// How long it took.
        took: Duration,
    },
    /// Nothing had to be done.
    UpToDate {
        /// What was looked at.
        what: &'a str,
    },
}

/// Tells about the steps of one build.
pub(super) struct Steps<'a> {
    report: &'a mut dyn FnMut(Progress<'_>),
}

impl<'a> Steps<'a> {
    pub(super) fn new(report: &'a mut dyn FnMut(Progress<'_>)) -> Self {
        Self { report }
    }

    pub(super) fn waiting_for_lock(&mut self) {
        (self.report)(Progress::WaitingForLock);
    }

    pub(super) fn up_to_date(&mut self, what: &str) {
        (self.report)(Progress::UpToDate { what });
    }

    /// Does one step; `work` gets a place for the output of programs.
    pub(super) fn step<T>(
        &mut self,
        step: &str,
        work: impl FnOnce(&mut dyn FnMut(&str)) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let started = Instant::now();
        (self.report)(Progress::Started { step });
        let outcome = work(&mut |line| (self.report)(Progress::Output { line }))?;
        (self.report)(Progress::Finished { step, took: started.elapsed() });
        Ok(outcome)
    }
}
