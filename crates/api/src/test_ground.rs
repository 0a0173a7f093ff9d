//! What the tests of several dialects start from.

use skerry_model::{Failure, State, Timestamp};

/// One of each state.
pub(crate) fn every_state() -> [State; 10] {
    let at = Timestamp::UNIX_EPOCH;
    let failure = Failure {
        code: "boot_timeout".to_owned(),
        message: "the guest did not answer".to_owned(),
        attempts: 1,
        retryable: true,
        at,
    };
    [
        State::Provisioned,
        State::Starting,
        State::Running { since: at },
        State::Paused { since: at },
        State::Suspending,
        State::Suspended,
        State::Stopping,
        State::Stopped,
        State::Failed(failure),
        State::Deleting,
    ]
}
