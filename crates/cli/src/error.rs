//! Everything that can go wrong, and with which exit code the client then ends.

use std::io;

use serde_json::{Value, json};
use thiserror::Error;

/// Why a command was not carried out.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The server refused or failed.
    #[error("{message}")]
    Api {
        /// Its stable word.
        code: String,
        /// Its sentence.
        message: String,
        /// The error object as it came.
        detail: Value,
    },
    /// No server answers.
    #[error("cannot reach {url}: {cause}")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What the system says.
        cause: String,
    },
    /// The connection ended in the middle.
    #[error("the connection to the server broke off: {0}")]
    BrokenOff(String),
    /// The server's answer is not one of this API.
    #[error("the server's answer is not understood: {0}")]
    BadAnswer(String),
    /// Something on this machine.
    #[error("{what}: {cause}")]
    Local {
        /// The file or step.
        what: String,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// A workspace did not become what it should be.
    #[error("{0}")]
    NotReached(String),
    /// The workspace would have to be in another state.
    #[error("{0}")]
    Refused(String),
    /// Whoever read standard output has stopped.
    #[error("standard output was closed")]
    OutputClosed,
    /// The user pressed Ctrl-C, or the process was told to end.
    #[error("interrupted")]
    Interrupted {
        /// By which signal.
        signal: u8,
    },
}

impl Error {
    pub(crate) fn local(what: impl Into<String>, cause: io::Error) -> Self {
        Self::Local { what: what.into(), cause }
    }

    /// Stable word for `--json`.
    fn code(&self) -> &str {
        match self {
            Self::Usage(_) => "usage",
            Self::Api { code, .. } => code,
            Self::Unreachable { .. } => "unreachable",
            Self::BrokenOff(_) => "broken_off",
            Self::BadAnswer(_) => "bad_answer",
            Self::Local { .. } => "local",
            Self::NotReached(_) => "not_reached",
            Self::Refused(_) => "refused",
            Self::OutputClosed => "output_closed",
            Self::Interrupted { .. } => "interrupted",
        }
    }

    /// As one JSON document.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Api { detail, .. } => json!({ "error": detail }),
            Self::Usage(_)
            | Self::Unreachable { .. }
            | Self::BrokenOff(_)
            | Self::BadAnswer(_)
            | Self::Local { .. }
            | Self::NotReached(_)
            | Self::Refused(_)
            | Self::OutputClosed
            | Self::Interrupted { .. } => {
                json!({ "error": { "code": self.code(), "message": self.to_string() } })
            }
        }
    }

    /// What may help, beyond the sentence itself.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Api { code, detail, .. } => match code.as_str() {
                "unauthenticated" => {
                    Some("set SKERRY_KEY, pass --key, or use skerry login".to_owned())
                }
                _ => detail
                    .get("allowed")
                    .and_then(Value::as_str)
                    .map(|allowed| format!("allowed: {allowed}")),
            },
            Self::Unreachable { .. } => {
                Some("is the server running? set SKERRY_URL or pass --url".to_owned())
            }
            Self::Usage(_)
            | Self::BrokenOff(_)
            | Self::BadAnswer(_)
            | Self::Local { .. }
            | Self::NotReached(_)
            | Self::Refused(_)
            | Self::OutputClosed
            | Self::Interrupted { .. } => None,
        }
    }

    /// The exit code of every command but `exec` and `shell`.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Api { code, .. } => match code.as_str() {
                "invalid" | "bad_json" | "no_such_user" => 2,
                "not_found" => 3,
                "conflict" | "refused_by_state" | "quota" | "no_capacity" | "exists"
                | "is_directory" | "not_directory" => 4,
                "unauthenticated" | "forbidden" => 6,
                _ => 1,
            },
            Self::Refused(_) => 4,
            Self::Unreachable { .. } => 5,
            Self::BrokenOff(_)
            | Self::BadAnswer(_)
            | Self::Local { .. }
            | Self::NotReached(_)
            | Self::OutputClosed => 1,
            Self::Interrupted { signal } => 128_u8.saturating_add(*signal),
        }
    }

    /// The exit code of `exec` and `shell`, whose other codes are the command's.
    pub(crate) fn exec_exit_code(&self) -> u8 {
        match self {
            Self::Api { code, .. } => match code.as_str() {
                "no_such_command" => 127,
                "permission_denied" => 126,
                _ => 125,
            },
            // What a program killed by SIGPIPE would have ended with.
            Self::OutputClosed => 141,
            Self::Interrupted { signal } => 128_u8.saturating_add(*signal),
            Self::Usage(_)
            | Self::Unreachable { .. }
            | Self::BrokenOff(_)
            | Self::BadAnswer(_)
            | Self::Local { .. }
            | Self::NotReached(_)
            | Self::Refused(_) => 125,
        }
    }
}
