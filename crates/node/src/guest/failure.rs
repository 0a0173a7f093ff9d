//! From the agent's words to ours.

use skerry_agent_protocol::message::{Failure, FailureCode};
use skerry_internal_api::{ConnectFailure, NodeError};

use super::call::printable;

/// What a refusal of the agent is on this side.
pub(super) fn node_error(failure: &Failure) -> NodeError {
    let message = printable(&failure.message);
    let code = match failure.code {
        FailureCode::NoSuchFile => {
            let path = message.strip_suffix(": no such file or directory").unwrap_or(&message);
            return NodeError::NoSuchFile(path.to_owned());
        }
        FailureCode::Invalid => {
            return NodeError::Invalid { field: "request", problem: message };
        }
        FailureCode::NotConfigured => return NodeError::GuestUnreachable(message),
        FailureCode::ConnectionRefused => return not_connected(ConnectFailure::Refused, message),
        FailureCode::Unreachable => return not_connected(ConnectFailure::Unreachable, message),
        FailureCode::ConnectTimeout => return not_connected(ConnectFailure::TimedOut, message),
        FailureCode::NoSuchHost => return not_connected(ConnectFailure::NoSuchHost, message),
        FailureCode::Exists => "exists",
        FailureCode::IsDirectory => "is_directory",
        FailureCode::NotDirectory => "not_directory",
        FailureCode::PermissionDenied => "permission_denied",
        FailureCode::TooLarge => "too_large",
        FailureCode::NoSpace => "no_space",
        FailureCode::NoSuchUser => "no_such_user",
        FailureCode::NoSuchCommand => "no_such_command",
        FailureCode::Busy => "busy",
        FailureCode::Other => "other",
    };
    NodeError::Guest { code, message }
}

fn not_connected(why: ConnectFailure, message: String) -> NodeError {
    NodeError::NotConnected { why, message }
}

/// The guest broke the connection or the protocol.
pub(super) fn lost(what: impl std::fmt::Display) -> NodeError {
    NodeError::GuestUnreachable(printable(&what.to_string()))
}
