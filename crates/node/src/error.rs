//! What can go wrong on the node, with its cause. Callers of [`crate::Node`] see only the
//! [`NodeError`] it turns into; the cause is logged where that happens.

use std::{
    io,
    path::{Path, PathBuf},
};

use skerry_internal_api::NodeError;
use skerry_vmm::VmmError;
use thiserror::Error;
use tokio::task::JoinError;

use crate::seal::SealError;

/// A failure on the host.
#[derive(Debug, Error)]
pub enum Error {
    /// A system call or file operation failed.
    #[error("{context}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another server already owns the data directory.
    #[error("the data directory {0} is in use by another server")]
    DataDirInUse(PathBuf),
    /// A setting that cannot work.
    #[error("{setting}: {problem}")]
    Config {
        /// Which setting.
        setting: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The host has no room.
    #[error("no capacity: {0}")]
    NoCapacity(String),
    /// The image is not on this node.
    #[error("image {0} is not present")]
    NoSuchImage(String),
    /// The kernel and initial file system are not on this node.
    #[error("boot files are not present: {0}")]
    NoBootFiles(String),
    /// The overlay is damaged or was tampered with.
    #[error("disk {path}: {problem}")]
    Disk {
        /// The overlay.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A saved state is missing, damaged or of another machine.
    #[error("saved state {path}: {problem}")]
    SavedState {
        /// Its directory, or the file in it that is wrong.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No complete snapshot of this identifier is there.
    #[error("there is no such snapshot")]
    NoSuchSnapshot,
    /// No volume of this identifier is there.
    #[error("there is no such volume")]
    NoSuchVolume,
    /// The volume has no checkpoint of this identifier.
    #[error("there is no such checkpoint")]
    NoSuchCheckpoint,
    /// Another VM writes the volume.
    #[error("another VM writes the volume")]
    VolumeInUse,
    /// The guest's file systems took writes while they were copied.
    #[error("the guest's file systems did not stay frozen")]
    NotOfOneMoment,
    /// A program of the host failed.
    #[error("{program}: {problem}")]
    Program {
        /// Which program.
        program: &'static str,
        /// Its message, shortened.
        problem: String,
    },
    /// Did not finish within its bound.
    #[error("did not finish within {bound_seconds} s")]
    Timeout {
        /// The bound.
        bound_seconds: u64,
    },
    /// A stop, a deletion or a newer start took precedence, or the node is shutting down.
    #[error("cancelled")]
    Cancelled,
    /// The guest ended before it was ready.
    #[error("the guest ended before it was ready: {0}")]
    EndedEarly(String),
    /// The hypervisor failed.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The guest's agent refused or is lost.
    #[error("guest: {0}")]
    Guest(#[source] NodeError),
    /// A secret could not be sealed or opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A step was taken without one it builds on: a fault of ours.
    #[error("step {0} was not taken")]
    StepMissing(&'static str),
    /// A fault planned by a test.
    #[error("planned fault after {0}")]
    Planned(&'static str),
}

impl Error {
    /// An I/O error with what was being done.
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }

    /// An I/O error about `path`.
    pub(crate) fn path(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let context = format!("{verb} {}", path.display());
        move |source| Self::Io { context, source }
    }

    /// What the tenant is told when `step` failed like this. Paths and causes stay here.
    pub(crate) fn public(&self, step: &'static str) -> NodeError {
        match self {
            Self::NoCapacity(what) => NodeError::NoCapacity(what.clone()),
            Self::NoSuchImage(image) => NodeError::NoSuchImage(image.clone()),
            Self::NoBootFiles(_) => NodeError::NoSuchImage("boot".to_owned()),
            Self::Timeout { bound_seconds } => {
                NodeError::Timeout { step, bound_seconds: *bound_seconds }
            }
            Self::NoSuchSnapshot => NodeError::NoSuchSnapshot,
            Self::NoSuchVolume => NodeError::NoSuchVolume,
            Self::NoSuchCheckpoint => NodeError::NoSuchCheckpoint,
            Self::VolumeInUse => NodeError::VolumeInUse,
            Self::Cancelled => NodeError::NotRunning,
            Self::Guest(error) => error.clone(),
            Self::SavedState { path, problem } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                NodeError::SavedStateUnusable(format!("{name} {problem}"))
            }
            Self::Io { source, .. } if is_full(source) => {
                NodeError::NoCapacity("the host's disk is full".to_owned())
            }
            Self::Io { .. }
            | Self::DataDirInUse(_)
            | Self::Config { .. }
            | Self::Disk { .. }
            | Self::Program { .. }
            | Self::EndedEarly(_)
            | Self::NotOfOneMoment
            | Self::Vmm(_)
            | Self::Seal(_)
            | Self::StepMissing(_)
            | Self::Planned(_) => NodeError::Step { step },
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An error and everything it was caused by, on one line, for the log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

/// Runs `work` where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    outcome_of(tokio::task::spawn_blocking(work)).await
}

/// Waits for a task that nobody aborts. If the runtime takes it along, this never returns: it goes
/// down without having waited for us, as a process that is killed does, and whoever took that for a
/// failed step would undo what the next life of the server is to find.
pub(crate) async fn outcome_of<T>(task: impl Future<Output = Result<T, JoinError>>) -> T {
    match task.await {
        Ok(outcome) => outcome,
        Err(lost) if lost.is_panic() => std::panic::resume_unwind(lost.into_panic()),
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn work_that_a_dying_runtime_takes_along_is_not_a_failure() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
        let runtime = runtime.expect("threads can be made");
        let handle = runtime.handle().clone();
        runtime.shutdown_background();
        let _inside = handle.enter();
        assert!(blocking(|| Ok(())).now_or_never().is_none());
    }
}
