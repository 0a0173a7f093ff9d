//! The official packages, unmodified, as their registries serve them.

use std::{
    net::UdpSocket,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, ensure};
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
    // What went wrong stands at the end of a trace.
    let said = stderr.lines().rev().take(20).collect::<Vec<_>>();
    ensure!(output.status.success(), "{}: {said:#?}\n{stdout}\n{command:?}", output.status);
    Ok(stdout)
}

/// Copies `script` beside the installed package, so that its import finds it.
fn place(script: &str, beside: &Path) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(script);
    let target = beside.join(script);
    std::fs::copy(source, &target)?;
    Ok(target)
}

/// Runs a script against the server, with a home of its own: the packages keep credentials there.
async fn drive(server: &Server, program: &Path, script: &Path, success: &str) -> Result<()> {
    drive_with(server, program, script, success, &[]).await
}

/// The same with more variables.
async fn drive_with(
    server: &Server,
    program: &Path,
    script: &Path,
    success: &str,
    variables: &[(&str, &str)],
) -> Result<()> {
    let home = tempfile::tempdir()?;
    let output = run(Command::new(program)
        .arg(script)
        .envs(variables.iter().copied())
        .env("HOME", home.path())
        .env("SKERRY_URL", &server.url)
        .env("SKERRY_CLIENT_SCRIPTS", Path::new(env!("CARGO_MANIFEST_DIR")).join("clients"))
        .env("SKERRY_DIALECT_DOCS", repository().join("docs/dialects/instavm.md"))
        .env("SKERRY_OBLIEN_DOCS", repository().join("docs/dialects/oblien.md"))
        .env("SKERRY_KEY", skerry_e2e::server::KEY))
    .await;
    let output = output.map_err(|error| anyhow!("{error:#}\n{}", server.log()))?;
    ensure!(output.contains(success), "{output}");
    Ok(())
}

/// A directory whose scripts find the package.
async fn npm_with_oblien() -> Result<PathBuf> {
    let dir = packages().join("npm");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("package.json"), "{\"private\": true}")?;
    let install = ["install", "--no-audit", "--no-fund", "--prefer-offline", OBLIEN];
    run(Command::new("npm").args(install).current_dir(&dir)).await?;
    Ok(dir)
}

#[tokio::test]
async fn the_oblien_package_and_its_command_do_with_workspaces_what_the_reference_says()
-> Result<()> {
    let dir = npm_with_oblien().await?;

    // A port that nobody has: domains are looked up nowhere else.
    let nobody = UdpSocket::bind("127.0.0.1:0")?;
    let arguments = vec!["--domain-name-server".to_owned(), nobody.local_addr()?.to_string()];
    drop(nobody);
    let server = Server::start(Options { arguments, ..Options::default() }).await?;
    let node = Path::new("node");
    drive(&server, node, &place("oblien.mjs", &dir)?, "oblien: ok").await?;
    drive(&server, node, &place("oblien_cli.mjs", &dir)?, "oblien cli: ok").await?;
    server.finish().await
}

#[tokio::test]
async fn the_oblien_package_has_workloads_supervised_and_reads_what_they_say() -> Result<()> {
    let dir = npm_with_oblien().await?;
    let server = Server::start(Options::default()).await?;
    let script = place("oblien_workloads.mjs", &dir)?;
    drive(&server, Path::new("node"), &script, "oblien workloads: ok").await?;
    server.finish().await
}

/// As `docs/dialects/oblien.md` tells users of the package: its hard-coded host is redirected by a file
/// that the server hands out.
#[tokio::test]
async fn the_oblien_package_and_its_command_work_inside_workspaces() -> Result<()> {
    let dir = npm_with_oblien().await?;
    let server = Server::start(Options::default()).await?;
    let url = format!("{}/runtime/redirect.mjs", server.url);
    let text = reqwest::get(url).await?.error_for_status()?.text().await?;
    let redirect = dir.join("redirect.mjs");
    std::fs::write(&redirect, text)?;
    let options = format!("--experimental-websocket --import={}", redirect.display());
    let variables = [("NODE_OPTIONS", &*options), ("OBLIEN_BASE_URL", &*server.url)];
    let node = Path::new("node");
    for (script, success) in [
        ("oblien_runtime.mjs", "oblien runtime: ok"),
        ("oblien_runtime_cli.mjs", "oblien runtime cli: ok"),
    ] {
        drive_with(&server, node, &place(script, &dir)?, success, &variables).await?;
    }
    server.finish().await
}

#[tokio::test]
async fn the_table_of_the_oblien_packages_methods_is_whole_and_true() -> Result<()> {
    let dir = npm_with_oblien().await?;
    let server = Server::start(Options::default()).await?;
    drive(&server, Path::new("node"), &place("oblien_rest.mjs", &dir)?, "oblien rest: ok").await?;
    let script = place("oblien_methods.mjs", &dir)?;
    let variables = [("OBLIEN_BASE_URL", &*server.url)];
    drive_with(&server, Path::new("node"), &script, "oblien methods: ok", &variables).await?;
    server.finish().await
}

/// The interpreter of an environment that has the package.
pub(crate) async fn python_with_instavm() -> Result<PathBuf> {
    let dir = packages().join("python");
    let python = dir.join("bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&dir)).await?;
    }
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", INSTAVM])).await?;
    Ok(python)
}

pub(crate) fn client(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(script)
}

#[tokio::test]
async fn the_instavm_package_and_its_command_make_use_and_delete_vms_and_sessions() -> Result<()> {
    let python = python_with_instavm().await?;
    let server = Server::start(Options::default()).await?;
    drive(&server, &python, &client("instavm_sdk.py"), "instavm: ok").await?;
    drive(&server, &python, &client("instavm_cli.py"), "instavm cli: ok").await?;
    server.finish().await
}

#[tokio::test]
async fn the_instavm_package_parks_resumes_and_clones_vms_and_makes_them_from_snapshots()
-> Result<()> {
    let python = python_with_instavm().await?;
    let server = Server::start(Options::default()).await?;
    drive(&server, &python, &client("instavm_life.py"), "instavm life: ok").await?;
    server.finish().await
}

#[tokio::test]
async fn the_instavm_package_runs_python_in_one_kernel_moves_files_and_leaves_tasks() -> Result<()>
{
    let python = python_with_instavm().await?;
    let server = Server::start(Options::default()).await?;
    drive(&server, &python, &client("instavm_inside.py"), "instavm inside: ok").await?;
    server.finish().await
}

#[tokio::test]
async fn the_instavm_package_opens_terminals_and_manages_keys() -> Result<()> {
    let python = python_with_instavm().await?;
    let server = Server::start(Options::default()).await?;
    drive(&server, &python, &client("instavm_account.py"), "instavm account: ok").await?;
    server.finish().await
}

#[tokio::test]
async fn the_instavm_package_moves_volumes_from_vm_to_vm() -> Result<()> {
    let python = python_with_instavm().await?;
    let server = Server::start(Options::default()).await?;
    drive(&server, &python, &client("instavm_volumes.py"), "instavm volumes: ok").await?;
    server.finish().await
}

#[tokio::test]
async fn the_table_of_the_instavm_packages_methods_is_whole_and_true() -> Result<()> {
    let python = python_with_instavm().await?;
    let server = Server::start(Options::default()).await?;
    drive(&server, &python, &client("instavm_methods.py"), "instavm methods: ok").await?;
    server.finish().await
}
