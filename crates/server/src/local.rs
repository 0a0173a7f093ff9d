//! Commands that need this machine and no server: building images, and looking at the host.

use std::{
    io::Write,
    num::NonZero,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use skerry_cli::{ImageBuildArgs, KernelBuildArgs, LocalCommands};
use skerry_control::internal_api::{DoctorCheck, DoctorLevel, NodeDoctor};
use skerry_model::ImageRef;
use skerry_node::images::{
    BootRecipe, BuildContext, ImageStore, KernelRecipe, KernelSource, Progress, Rebuild,
    SmallKernel, build_boot, build_image, build_small_kernel,
};

use crate::{ambient, assemble, config::Settings, hypervisor, progress_lines::ProgressLines};

/// The file name of the guest agent.
const AGENT: &str = "skerry-agent";

/// The commands of this machine.
pub struct ThisMachine;

#[async_trait]
impl LocalCommands for ThisMachine {
    async fn build_images(&self, arguments: &ImageBuildArgs, json: bool) -> ExitCode {
        let order = BuildOrder {
            recipes_dir: arguments.recipes.clone().unwrap_or_else(|| PathBuf::from("images")),
            image_dir: arguments.image_dir.clone(),
            names: arguments.names.clone(),
            rebuild: match arguments.always {
                true => Rebuild::Always,
                false => Rebuild::WhenRecipeChanged,
            },
        };
        // The builders run the distribution's programs for minutes.
        let built = tokio::task::spawn_blocking(move || build(order)).await;
        let built = built.context("the build's task").and_then(|built| built);
        report(built, json, |images| {
            let lines = images.iter().map(|(name, digest)| format!("{name}\t{digest}"));
            lines.collect::<Vec<_>>().join("\n")
        })
    }

    async fn build_kernel(&self, arguments: &KernelBuildArgs, json: bool) -> ExitCode {
        let (image_dir, jobs) = (arguments.image_dir.clone(), arguments.jobs);
        let built = tokio::task::spawn_blocking(move || build_kernel(image_dir, jobs)).await;
        let built = built.context("the build's task").and_then(|built| built);
        let shown = built.map(|kernel| BuiltKernel {
            release: kernel.manifest.release,
            digest: kernel.manifest.kernel.digest.to_string(),
            size_bytes: kernel.manifest.kernel.length_bytes,
            path: kernel.kernel,
        });
        report(shown, json, |kernel| {
            let BuiltKernel { release, digest, path, .. } = kernel;
            format!("{release}\t{digest}\t{}", path.display())
        })
    }

    async fn doctor(&self, json: bool) -> ExitCode {
        let doctor = look_at_host().await;
        let usable = match &doctor {
            Ok(doctor) => doctor.checks.iter().all(|check| check.level != DoctorLevel::Missing),
            Err(_) => false,
        };
        let code = report(doctor, json, doctor_text);
        if usable { code } else { ExitCode::FAILURE }
    }
}

/// What `skerry image build` was asked for.
struct BuildOrder {
    recipes_dir: PathBuf,
    /// `None` for that of the server.
    image_dir: Option<PathBuf>,
    /// None named means every recipe.
    names: Vec<String>,
    rebuild: Rebuild,
}

/// Builds the boot files and the ordered images. Returns what they are now.
fn build(order: BuildOrder) -> Result<Vec<(String, String)>> {
    let BuildOrder { recipes_dir, image_dir, names, rebuild } = order;
    // Before anything is built: a wrong directory is the commonest mistake.
    let recipes = all_recipes(&recipes_dir)?;
    if let Some(unknown) = names.iter().find(|name| !recipes.contains(name)) {
        bail!(
            "there is no recipe `{unknown}` in {}; there are: {}",
            recipes_dir.display(),
            recipes.join(", ")
        );
    }
    let (store, cache_dir) = open_store(image_dir)?;
    let now = (ambient::environment().now)();
    let mut progress = ProgressLines::on_stderr();
    let mut show = |news: Progress<'_>| progress.show(news);
    let boot = BootRecipe {
        kernel: KernelSource::DebianCloud,
        agent: find_agent()?,
        cache_dir: cache_dir.clone(),
    };
    let mut built = Vec::new();
    let files = build_boot(&boot, &store, now, &mut show).context("building the boot files")?;
    built.push(("boot".to_owned(), files.manifest.kernel.digest.to_string()));
    let names = if names.is_empty() { recipes } else { names };
    let context = BuildContext { recipes_dir, cache_dir, now, rebuild };
    for name in names {
        let image = build_image(&ImageRef(name.clone()), &context, &store, &mut show)
            .with_context(|| format!("building the image {name}"))?;
        built.push((name, image.digest().to_string()));
    }
    Ok(built)
}

/// What `skerry kernel build` answers.
#[derive(serde::Serialize)]
struct BuiltKernel {
    /// As `uname -r` prints it in the guest.
    release: String,
    digest: String,
    size_bytes: u64,
    path: PathBuf,
}

/// Builds the small kernel, or finds that it is up to date.
fn build_kernel(image_dir: Option<PathBuf>, jobs: Option<NonZero<u32>>) -> Result<SmallKernel> {
    let (store, cache_dir) = open_store(image_dir)?;
    let cpus = std::thread::available_parallelism().ok();
    let all_cpus = cpus.and_then(|cpus| NonZero::<u32>::try_from(cpus).ok());
    let jobs = jobs.or(all_cpus).unwrap_or(NonZero::<u32>::MIN);
    let now = (ambient::environment().now)();
    let mut progress = ProgressLines::on_stderr();
    let mut show = |news: Progress<'_>| progress.show(news);
    build_small_kernel(&KernelRecipe { cache_dir, jobs }, &store, now, &mut show)
        .context("building the small kernel")
}

/// The store in a directory, of the server's settings if none is given, and the directory where
/// downloads are kept for it.
fn open_store(image_dir: Option<PathBuf>) -> Result<(ImageStore, PathBuf)> {
    let image_dir = match image_dir {
        Some(dir) => dir,
        None => Settings::from_environment()?.resolve()?.image_dir,
    };
    let store = ImageStore::open(&image_dir)
        .with_context(|| format!("opening the images in {}", image_dir.display()))?;
    let cache_dir = store.directory().parent().unwrap_or(store.directory()).join("cache");
    Ok((store, cache_dir))
}

/// The agent beside our own binary, or where a build in the source tree puts it.
fn find_agent() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding our own binary")?;
    let beside = own.with_file_name(AGENT);
    let built = own
        .parent()
        .and_then(Path::parent)
        .map(|target| target.join("x86_64-unknown-linux-gnu/release").join(AGENT));
    // The build in the source tree is static; what lies beside a debug binary may not be.
    let candidates = built.into_iter().chain([beside]);
    let places: Vec<PathBuf> = candidates.collect();
    match places.iter().find(|path| path.is_file()) {
        Some(agent) => Ok(agent.clone()),
        None => bail!("the guest agent is in none of {places:?}: run `make setup`"),
    }
}

/// Every directory with a recipe, sorted.
fn all_recipes(recipes_dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(recipes_dir).with_context(|| {
        format!(
            "reading the recipes in {} (run this in the source tree, or say --recipes)",
            recipes_dir.display()
        )
    })?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", recipes_dir.display()))?;
        if entry.path().join("recipe.toml").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Programs that running or building needs: the program, what for, and Debian's package.
const PROGRAMS: [(&str, &str, DoctorLevel, &str); 4] = [
    ("qemu-system-x86_64", "runs the VMs", DoctorLevel::Missing, "qemu-system-x86"),
    ("mmdebstrap", "builds images", DoctorLevel::Degraded, "mmdebstrap"),
    ("mkfs.ext4", "builds images", DoctorLevel::Degraded, "e2fsprogs"),
    ("npm", "builds the image node-20", DoctorLevel::Degraded, "npm"),
];

/// The programs, then what a node would find here. Takes no lock: a server may be at work.
async fn look_at_host() -> Result<NodeDoctor> {
    let mut checks: Vec<DoctorCheck> = PROGRAMS.iter().map(check_program).collect();
    let config = Settings::from_environment()?.resolve()?;
    let vmm = hypervisor::open(&config).await.map_err(|error| format!("{error:#}"));
    let NodeDoctor { accelerator, checks: found } =
        skerry_node::doctor(assemble::node_config(&config), vmm).await;
    checks.extend(found);
    Ok(NodeDoctor { accelerator, checks })
}

fn check_program(
    (program, purpose, without, package): &(&str, &str, DoctorLevel, &str),
) -> DoctorCheck {
    let search = std::env::var_os("PATH").unwrap_or_default();
    // Services and ordinary users often have a path without the administrator's directories.
    let directories =
        std::env::split_paths(&search).chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from));
    let found = directories.map(|directory| directory.join(program)).find(|path| path.is_file());
    match found {
        Some(path) => DoctorCheck {
            name: (*program).to_owned(),
            level: DoctorLevel::Ok,
            found: path.display().to_string(),
            remedy: None,
        },
        None => DoctorCheck {
            name: (*program).to_owned(),
            level: *without,
            found: format!("not found; it {purpose}"),
            remedy: Some(format!("apt-get install {package}")),
        },
    }
}

fn doctor_text(doctor: &NodeDoctor) -> String {
    let mut lines = vec![format!("accelerator: {}", doctor.accelerator)];
    for check in &doctor.checks {
        let word = match check.level {
            DoctorLevel::Ok => "ok      ",
            DoctorLevel::Degraded => "degraded",
            DoctorLevel::Missing => "MISSING ",
        };
        lines.push(format!("{word} {}: {}", check.name, check.found));
        lines.extend(check.remedy.iter().map(|remedy| format!("         -> {remedy}")));
    }
    lines.join("\n")
}

/// Prints a result and turns it into an exit code.
fn report<T: serde::Serialize>(
    result: Result<T>,
    json: bool,
    text: impl FnOnce(&T) -> String,
) -> ExitCode {
    let text = result.and_then(|value| match json {
        true => Ok(serde_json::to_string(&value)?),
        false => Ok(text(&value)),
    });
    match text {
        // Whoever reads this may stop early (`| head`), which is no failure of ours.
        Ok(text) => match writeln!(std::io::stdout().lock(), "{text}") {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
            Ok(()) | Err(_) => ExitCode::SUCCESS,
        },
        Err(error) => {
            if json {
                let body = serde_json::json!({"error": {"code": "failed", "message": format!("{error:#}")}});
                eprintln!("{body}");
            } else {
                eprintln!("skerry: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doctor_says_what_to_do_below_what_is_missing() {
        let check = |level, remedy: Option<&str>| DoctorCheck {
            name: "npm".to_owned(),
            level,
            found: "found".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let checks =
            vec![check(DoctorLevel::Ok, None), check(DoctorLevel::Missing, Some("install it"))];
        let text = doctor_text(&NodeDoctor { accelerator: "tcg".to_owned(), checks });
        assert_eq!(
            text,
            "accelerator: tcg\nok       npm: found\nMISSING  npm: found\n         -> install it"
        );
    }

    #[test]
    fn a_recipe_that_is_not_there_is_told_before_anything_is_built() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("recipes/base")).unwrap();
        std::fs::write(dir.path().join("recipes/base/recipe.toml"), "").unwrap();
        let order = |recipes: &str| BuildOrder {
            recipes_dir: dir.path().join(recipes),
            image_dir: Some(dir.path().join("images")),
            names: vec!["bse".to_owned()],
            rebuild: Rebuild::WhenRecipeChanged,
        };
        let error = format!("{:#}", build(order("recipes")).unwrap_err());
        assert!(error.contains("no recipe `bse`") && error.contains("base"), "{error}");
        let error = format!("{:#}", build(order("elsewhere")).unwrap_err());
        assert!(error.contains("--recipes"), "{error}");
        assert!(!dir.path().join("images").exists());
    }
}
