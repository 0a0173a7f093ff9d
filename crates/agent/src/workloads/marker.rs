//! That setup has run, noted on the disk: whatever copies the disk copies it.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

use nix::libc;
use skerry_agent_protocol::workload::End;

use crate::AgentError;

const NAME: &str = "has-run";
const NEW: &str = "has-run.new";
/// More than any note of ours has.
const SIZE_MAX: u64 = 256;

/// Where it is noted.
#[derive(Clone, Debug)]
pub(super) struct Marker {
    dir: PathBuf,
}

impl Marker {
    pub(super) const fn in_dir(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// How it ended, if it has run for this turn.
    pub(super) fn end_of(&self, turn: u64) -> Option<End> {
        let opened =
            OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(self.dir.join(NAME));
        let mut text = String::new();
        opened.ok()?.take(SIZE_MAX).read_to_string(&mut text).ok()?;
        let (noted, end) = text.trim_end().split_once(' ')?;
        (noted.parse() == Ok(turn)).then(|| serde_json::from_str(end).ok())?
    }

    /// Notes it, durably. Blocks.
    pub(super) fn note(&self, turn: u64, end: End) -> Result<(), AgentError> {
        let failed = |error: &std::io::Error| AgentError::from_io(NAME, error);
        let end =
            serde_json::to_string(&end).map_err(|error| AgentError::invalid(error.to_string()))?;
        let write = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(self.dir.join(NEW))?;
            writeln!(file, "{turn} {end}")?;
            file.sync_all()?;
            fs::rename(self.dir.join(NEW), self.dir.join(NAME))?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|error: std::io::Error| failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_of_a_turn_says_nothing_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let marker = Marker::in_dir(dir.path().join("one"));
        assert_eq!(marker.end_of(1), None);
        marker.note(1, End::Code(3)).unwrap();
        assert_eq!((marker.end_of(1), marker.end_of(2)), (Some(End::Code(3)), None));
        marker.note(2, End::Signal(9)).unwrap();
        assert_eq!((marker.end_of(1), marker.end_of(2)), (None, Some(End::Signal(9))));
    }
}
