//! What can go wrong in the agent.

use std::io;

use nix::errno::Errno;
use skerry_agent_protocol::message::FailureCode;
use thiserror::Error;

/// A call the agent refuses, or a boot it cannot finish.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The call failed; told to the host as it stands.
    #[error("{message}")]
    Refused {
        /// Which kind.
        code: FailureCode,
        /// A sentence.
        message: String,
    },
    /// The guest cannot come up.
    #[error("{step}: {source}")]
    Boot {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl AgentError {
    pub(crate) fn refused(code: FailureCode, message: impl Into<String>) -> Self {
        Self::Refused { code, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::refused(FailureCode::Invalid, message)
    }

    /// The refusal that a failed system call about `subject` (a path, a program) amounts to.
    pub(crate) fn from_io(subject: &str, error: &io::Error) -> Self {
        Self::refused(code_of(error), format!("{subject}: {}", plain(error)))
    }

    pub(crate) fn boot(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Boot { step, source }
    }
}

fn code_of(error: &io::Error) -> FailureCode {
    let Some(errno) = error.raw_os_error().map(Errno::from_raw) else {
        return match error.kind() {
            io::ErrorKind::NotFound => FailureCode::NoSuchFile,
            io::ErrorKind::AlreadyExists => FailureCode::Exists,
            io::ErrorKind::PermissionDenied => FailureCode::PermissionDenied,
            _ => FailureCode::Other,
        };
    };
    match errno {
        Errno::ENOENT => FailureCode::NoSuchFile,
        Errno::EEXIST | Errno::ENOTEMPTY => FailureCode::Exists,
        Errno::EISDIR => FailureCode::IsDirectory,
        Errno::ENOTDIR => FailureCode::NotDirectory,
        Errno::EACCES | Errno::EPERM | Errno::EROFS => FailureCode::PermissionDenied,
        Errno::EFBIG | Errno::ENAMETOOLONG | Errno::E2BIG => FailureCode::TooLarge,
        Errno::ENOSPC | Errno::EDQUOT => FailureCode::NoSpace,
        Errno::EINVAL | Errno::EXDEV | Errno::ELOOP | Errno::EBUSY => FailureCode::Invalid,
        _ => FailureCode::Other,
    }
}

/// The system's own sentence without the "(os error 2)" that Rust adds.
fn plain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}
