//! The Python kernel of a session. It lives in the guest, so it is saved, restored and cloned with it:
//! see `docs/decisions/2026-11-22-the-python-kernel-lives-in-the-guest.md`.

use std::time::Duration;

/// The program: client, supervisor and worker.
const PROGRAM: &str = include_str!("kernel.py");
/// Where the kernel is found. The last part is the generation of what client and supervisor say to each
/// other: one of another generation is another kernel.
const DIRECTORY: &str = "/run/skerry-python/1";

/// What the kernel takes for its own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Accepts {
    /// Python; everything else is an error of syntax.
    Python,
    /// What is no Python but begins with a command of the guest's is run by bash.
    ScriptsToo,
}

/// The command that runs the code on its standard input in the session's kernel.
pub(super) fn argv(accepts: Accepts, timeout_seconds: u64, left: Duration) -> Vec<String> {
    let language = match accepts {
        Accepts::Python => "python",
        Accepts::ScriptsToo => "auto",
    };
    // Isolated and without site-packages: the client needs neither and starts faster.
    let interpreter = ["python3", "-I", "-S", "-c", PROGRAM];
    let arguments = ["client", DIRECTORY, language];
    let times = [timeout_seconds.to_string(), left.as_millis().to_string()];
    interpreter.into_iter().chain(arguments).map(str::to_owned).chain(times).collect()
}
