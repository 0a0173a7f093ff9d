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
    /// So far a step that counts has come.
    Counted {
        /// How many are done.
        done: u32,
        /// About how many there are.
        of: u32,
        /// What is counted, in the plural.
        things: &'a str,
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
    /// Does one step that runs a program, and counts the lines of its output that `counts` says yes
    /// to. Returns how many there were.
    pub(super) fn counting_step(
        &mut self,
        step: &str,
        (about, things): (u32, &str),
        counts: impl Fn(&str) -> bool,
        work: impl FnOnce(&mut dyn FnMut(&str)) -> Result<(), ImageError>,
    ) -> Result<u32, ImageError> {
        let started = Instant::now();
        let report = &mut *self.report;
        report(Progress::Started { step });
        let mut done = 0;
        work(&mut |line| {
            report(Progress::Output { line });
            if counts(line) {
                done += 1;
                // More than were expected are still not more than all.
                report(Progress::Counted { done, of: about.max(done), things });
            }
        })?;
        report(Progress::Finished { step, took: started.elapsed() });
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counting_step_tells_how_far_it_is() {
        let mut told = Vec::new();
        let mut report = |progress: Progress<'_>| {
            if let Progress::Counted { done, of, things } = progress {
                told.push(format!("{done} of {of} {things}"));
            }
        };
        let done = Steps::new(&mut report)
            .counting_step(
                "do",
                (2, "files"),
                |line| line.starts_with("CC"),
                |on_line| {
                    ["CC a", "LD b", "CC c", "CC d"].into_iter().for_each(on_line);
                    Ok(())
                },
            )
            .unwrap();
        assert_eq!(done, 3);
        assert_eq!(told, ["1 of 2 files", "2 of 2 files", "3 of 3 files"]);
    }
}
