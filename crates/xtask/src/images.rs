//! The image builders from the command line.

use std::{io::Write, path::PathBuf};

use jiff::Timestamp;
use skerry_node::images::{
    BootRecipe, BuildContext, ImageStore, KernelSource, Progress, Rebuild, build_boot, build_image,
};
use skerry_model::ImageRef;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to build: `boot`, or the name of a recipe.
    #[arg(required = true)]
    names: Vec<String>,
    /// The image store.
    #[arg(long, default_value = "var/images")]
    store: PathBuf,
    /// Where downloads and trees are kept between builds.
    #[arg(long, default_value = "var/cache")]
    cache: PathBuf,
    /// The directory with the recipes.
    #[arg(long, default_value = "images")]
    recipes: PathBuf,
    /// The statically linked agent.
    #[arg(long, default_value = "target/x86_64-unknown-linux-gnu/release/skerry-agent")]
    agent: PathBuf,
    /// An uncompressed kernel with everything built in, instead of Debian's cloud kernel.
    #[arg(long)]
    vmlinux: Option<PathBuf>,
    /// Build images although their recipes have not changed.
    #[arg(long)]
    always: bool,
    /// Print what the programs print.
    #[arg(long)]
    verbose: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let store = ImageStore::open(&args.store)?;
    let mut show = |progress: Progress<'_>| print(progress, args.verbose);
    for name in &args.names {
        if name == "boot" {
            let kernel =
                args.vmlinux.clone().map_or(KernelSource::DebianCloud, KernelSource::Vmlinux);
            let recipe =
                BootRecipe { kernel, agent: args.agent.clone(), cache_dir: args.cache.clone() };
            let files = build_boot(&recipe, &store, Timestamp::now(), &mut show)?;
            println!("boot {} {}", files.manifest.kernel_release, files.initramfs.display());
        } else {
            let context = BuildContext {
                recipes_dir: args.recipes.clone(),
                cache_dir: args.cache.clone(),
                now: Timestamp::now(),
                rebuild: if args.always { Rebuild::Always } else { Rebuild::WhenRecipeChanged },
            };
            let image = build_image(&ImageRef(name.clone()), &context, &store, &mut show)?;
            println!("{name} {} {}", image.digest(), image.disk.display());
        }
    }
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
