//! The official packages, unmodified, as their registries serve them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use skerry_e2e::{Options, Server, repository};
use tokio::process::Command;

const OBLIEN: &str = "oblien@2.4.0";
const INSTAVM: &str = "instavm==0.26.1";

/// Where the packages are kept between runs.
fn packages() -> PathBuf {
    repository().join("var/cache/clients")
}

async fn run(command: &mut Command) -> Result<String> {
    let output = command.kill_on_drop(true).output().await.context("running it")?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    Ok(stdout)
}

/// Copies `script` beside the installed package, so that its import finds it.
fn place(script: &str, beside: &Path) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(script);
    let target = beside.join(script);
    std::fs::copy(source, &target)?;
    Ok(target)
}

#[tokio::test]
async fn the_oblien_package_creates_lists_renames_stops_starts_and_deletes() -> Result<()> {
    let dir = packages().join("npm");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("package.json"), "{\"private\": true}")?;
    let install = ["install", "--no-audit", "--no-fund", "--prefer-offline", OBLIEN];
    run(Command::new("npm").args(install).current_dir(&dir)).await?;

    let server = Server::start(Options::default()).await?;
    let script = place("oblien.mjs", &dir)?;
    let output = run(Command::new("node")
        .arg(script)
        .env("SKERRY_URL", &server.url)
        .env("SKERRY_KEY", skerry_e2e::server::KEY))
    .await
    .with_context(|| server.log())?;
    ensure!(output.contains("oblien: ok"), "{output}");
    server.finish().await
}

#[tokio::test]
async fn the_instavm_package_creates_lists_and_deletes_vms_and_opens_a_session() -> Result<()> {
    let dir = packages().join("python");
    let python = dir.join("bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&dir)).await?;
    }
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", INSTAVM])).await?;

    let server = Server::start(Options::default()).await?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/instavm_sdk.py");
    let output = run(Command::new(&python)
        .arg(script)
        .env("SKERRY_URL", &server.url)
        .env("SKERRY_KEY", skerry_e2e::server::KEY))
    .await
    .with_context(|| server.log())?;
    ensure!(output.contains("instavm: ok"), "{output}");
    server.finish().await
}
