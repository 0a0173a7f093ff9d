//! What can go wrong with images.

use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;

/// A failure while building, storing or reading images and boot artefacts.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The host refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A recipe is not usable.
    #[error("the recipe {} is not usable: {reason}", path.display())]
    Recipe {
        /// The recipe file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A program of the host is missing.
    #[error("`{program}` is not installed (Debian package {package})")]
    ProgramMissing {
        /// The program.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// Packages of the host are missing.
    #[error(
        "to {purpose}, these Debian packages are missing: {}; \
         `apt-get install --no-install-recommends {}` installs them",
        packages.join(", "),
        packages.join(" ")
    )]
    PackagesMissing {
        /// What needs them, as a verb.
        purpose: &'static str,
        /// The packages.
        packages: Vec<&'static str>,
    },
    /// A program of the host failed.
    #[error("`{program}` failed ({outcome}); it said last:\n{output_tail}")]
    ProgramFailed {
        /// The program.
        program: String,
        /// Its exit status in words.
        outcome: String,
        /// The end of what it printed.
        output_tail: String,
    },
    /// A program of the host took too long and was killed.
    #[error("`{program}` was killed after {} s without finishing", limit.as_secs())]
    ProgramTimedOut {
        /// The program.
        program: String,
        /// How long it was given.
        limit: Duration,
    },
    /// A kernel package or kernel file is not what was expected.
    #[error("the kernel is not usable: {reason}")]
    Kernel {
        /// Why.
        reason: String,
    },
    /// The agent binary cannot be PID 1 of a guest.
    #[error("the agent {} is not usable: {reason}", path.display())]
    Agent {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another process kept a lock for too long.
    #[error("another build held {} for more than {} s", path.display(), limit.as_secs())]
    Locked {
        /// The lock's file.
        path: PathBuf,
        /// How long this one waited.
        limit: Duration,
    },
    /// The store has no such thing, or what it has is damaged.
    #[error("no {what}: {reason}")]
    Unavailable {
        /// The image or `boot`.
        what: String,
        /// Why.
        reason: String,
    },
}

impl ImageError {
    /// A closure for `map_err` on file operations.
    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
