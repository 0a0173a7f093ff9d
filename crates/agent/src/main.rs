//! The guest agent's binary: `/init` of the initial file system.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        skerry_agent::init::run();
    }
    eprintln!(
        "skerry-agent {} runs as the first process of a virtual machine and does nothing anywhere else",
        env!("CARGO_PKG_VERSION")
    );
    ExitCode::FAILURE
}
