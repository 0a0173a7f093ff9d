//! Automation with logic in it, run as `cargo run -p skerry-xtask -- <command>`: building images and
//! boot artefacts without the server. Checks of the tree itself are this crate's tests.

mod images;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the boot artefacts, or images, into a store.
    Image(images::Args),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Image(args) => images::run(&args),
    }
}
