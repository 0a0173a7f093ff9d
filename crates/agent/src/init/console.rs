//! The machine's console, the only place to say something before the host listens.

use std::fs::File;

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// Makes the console our standard streams, whatever the kernel gave us.
pub(super) fn open() {
    if let Ok(console) = File::options().read(true).write(true).open("/dev/console") {
        // Without them there is just nothing to read on the console.
        let _ = dup2_stdin(&console);
        let _ = dup2_stdout(&console);
        let _ = dup2_stderr(&console);
    }
}

/// One line on the console. A full or missing console is no reason to stop.
pub(crate) fn log(message: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "skerry-agent: {message}");
}
