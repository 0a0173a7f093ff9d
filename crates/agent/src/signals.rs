//! What this process does with signals, as far as its children inherit it.

use std::{ffi::c_int, ptr};

use nix::libc;

/// The signals this process ignores. What a process ignores its children ignore too, and a shell cannot
/// even trap such a signal: whoever started the agent must not decide how a tenant's commands take a
/// hang-up.
#[derive(Debug)]
pub(crate) struct IgnoredSignals(Vec<c_int>);

impl IgnoredSignals {
    /// As it is now; the agent changes nothing about it later.
    pub(crate) fn of_this_process() -> Self {
        Self((1..=libc::SIGRTMAX()).filter(|signal| is_ignored(*signal)).collect())
    }

    pub(crate) fn as_slice(&self) -> &[c_int] {
        &self.0
    }
}

fn is_ignored(signal: c_int) -> bool {
    // SAFETY: all zeroes is a valid `sigaction`, and the call only fills it. It refuses numbers that
    // are no signals of ours.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}
