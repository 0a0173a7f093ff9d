//! What the control plane takes by itself: the whole of `Control` on the embedded database, with a
//! simulated node that boots in no time. Prints a table and, as asked, writes the same as JSON.
//!
//! ```text
//! cargo bench -p skerry-control --bench control_plane -- --json control.json
//! ```
//!
//! Every create is counted only when its answer came, which is after its record was synced to the
//! disk that `--directory` is on. Afterwards the records are counted: an answer without a record
//! fails the run.

mod cases;
mod ground;
mod measure;
mod report;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;

/// Measures the control plane.
#[derive(Parser, Debug)]
struct Arguments {
    /// Where the databases are made; the disk below it is what is measured.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Writes the figures here, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// How long each case runs.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How many workspaces the cases that read are run over.
    #[arg(long, default_value_t = 10_000)]
    workspaces: u64,
    /// Only the cases whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let plan = cases::Plan {
        directory: arguments.directory,
        each: Duration::from_secs(arguments.seconds),
        workspaces: arguments.workspaces,
        only: arguments.only,
    };
    let figures = runtime.block_on(cases::run(&plan));
    let all_met = report::print(&figures);
    if let Some(path) = arguments.json {
        report::write(&path, &figures).expect("the figures can be written");
    }
    if all_met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
