//! The progress of a build, for whoever waits for it.

use std::io::{IsTerminal, Write};

use skerry_node::images::Progress;

/// Writes one line a step; one that counts is rewritten in place on a terminal, and elsewhere told of
/// at every tenth.
pub struct ProgressLines<W> {
    out: W,
    terminal: bool,
    /// The step under way.
    step: String,
    /// Of ten, how many were told of.
    tenths_told: u32,
}

impl ProgressLines<std::io::Stderr> {
    /// For people; standard output is for results.
    pub fn on_stderr() -> Self {
        let out = std::io::stderr();
        let terminal = out.is_terminal();
        Self { out, terminal, step: String::new(), tenths_told: 0 }
    }
}

impl<W: Write> ProgressLines<W> {
    /// Shows one piece of news.
    pub fn show(&mut self, news: Progress<'_>) {
        // Progress that cannot be shown is no reason to end a build.
        let _ = self.write(news).and_then(|()| self.out.flush());
    }

    fn write(&mut self, news: Progress<'_>) -> std::io::Result<()> {
        let (out, step) = (&mut self.out, &mut self.step);
        match news {
            Progress::WaitingForLock => writeln!(out, "another build is under way: waiting"),
            Progress::Started { step: started } => {
                started.clone_into(step);
                self.tenths_told = 0;
                match self.terminal {
                    true => write!(out, "{started} ..."),
                    false => writeln!(out, "{started} ..."),
                }
            }
            Progress::Output { .. } => Ok(()),
            Progress::Counted { done, of, things } if self.terminal => {
                write!(out, "\r{step} ... {done} of about {of} {things}")
            }
            Progress::Counted { done, of, things } => {
                let tenths = done.saturating_mul(10) / of.max(1);
                // The end has a line of its own.
                if tenths <= self.tenths_told || tenths >= 10 {
                    return Ok(());
                }
                self.tenths_told = tenths;
                writeln!(out, "{step}: {done} of about {of} {things}")
            }
            Progress::Finished { took, .. } if self.terminal => {
                writeln!(out, " {:.1} s", took.as_secs_f64())
            }
            Progress::Finished { step, took } => {
                writeln!(out, "{step}: {:.1} s", took.as_secs_f64())
            }
            Progress::UpToDate { what } => writeln!(out, "{what}: up to date"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(terminal: bool) -> String {
        let (out, step) = (Vec::new(), String::new());
        let mut lines = ProgressLines { out, terminal, step, tenths_told: 0 };
        lines.show(Progress::Started { step: "compile" });
        for done in 1..=25 {
            lines.show(Progress::Output { line: "CC something" });
            lines.show(Progress::Counted { done, of: 20.max(done), things: "files" });
        }
        lines.show(Progress::Finished { step: "compile", took: Duration::from_millis(1500) });
        lines.show(Progress::UpToDate { what: "the rest" });
        String::from_utf8(lines.out).unwrap()
    }

    #[test]
    fn a_long_step_moves_in_a_log_without_filling_it() {
        let text = written(false);
        assert_eq!(text.lines().count(), 1 + 9 + 1 + 1, "{text}");
        assert!(text.contains("compile: 2 of about 20 files\n"), "{text}");
        assert!(text.ends_with("compile: 1.5 s\nthe rest: up to date\n"), "{text}");
    }

    #[test]
    fn a_long_step_is_one_line_on_a_terminal() {
        let text = written(true);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("\rcompile ... 25 of about 25 files 1.5 s\n"), "{text}");
    }
}
