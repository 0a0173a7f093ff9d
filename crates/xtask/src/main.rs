//! Automation of the repository that needs logic: checks of the tree against its own rules. Run as
//! `cargo run -p skerry-xtask -- check`; the tests of this crate run the same checks.

mod dependency_edges;
mod file_rules;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compares the tree with the rules of ARCHITECTURE.md and CONTRIBUTING.md
    Check,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Check => {
            let root = repository();
            let mut problems = dependency_edges::problems(&root)?;
            problems.extend(file_rules::problems(&root)?);
            for problem in &problems {
                eprintln!("{problem}");
            }
            ensure!(problems.is_empty(), "{} rules are broken", problems.len());
            Ok(())
        }
    }
}

/// The root of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
