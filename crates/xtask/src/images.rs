//! The image builders from the command line.

use std::{io::Write, path::PathBuf};

use jiff::Timestamp;
use skerry_node::images::{BootRecipe, ImageStore, KernelSource, Progress, build_boot};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image store.
    #[arg(long, default_value = "var/images")]
    store: PathBuf,
    /// Where downloads and trees are kept between builds.
    #[arg(long, default_value = "var/cache")]
    cache: PathBuf,
    /// The statically linked agent.
    #[arg(long, default_value = "target/x86_64-unknown-linux-gnu/release/skerry-agent")]
    agent: PathBuf,
    /// An uncompressed kernel with everything built in, instead of Debian's cloud kernel.
    #[arg(long)]
    vmlinux: Option<PathBuf>,
    /// Print what the programs print.
    #[arg(long)]
    verbose: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let store = ImageStore::open(&args.store)?;
    let kernel = args.vmlinux.clone().map_or(KernelSource::DebianCloud, KernelSource::Vmlinux);
    let recipe =
        BootRecipe { kernel, agent: args.agent.clone(), cache_dir: args.cache.canonicalize()? };
    let files = build_boot(&recipe, &store, Timestamp::now(), &mut |progress| {
        print(progress, args.verbose);
    })?;
    println!("{}\n{}", files.kernel.display(), files.initramfs.display());
    Ok(())
}

fn print(progress: Progress<'_>, verbose: bool) {
    match progress {
        Progress::WaitingForLock => eprintln!("waiting for another build"),
        Progress::Started { step } => eprint!("{step} ..."),
        Progress::Output { line } if verbose => eprint!("\n  {line}"),
        Progress::Output { .. } => {}
        Progress::Finished { took, .. } => eprintln!(" {:.1} s", took.as_secs_f64()),
        Progress::UpToDate { what } => eprintln!("{what}: up to date"),
    }
    let _ = std::io::stderr().flush();
}
