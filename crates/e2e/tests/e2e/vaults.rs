//! Credentials that work in guests without ever being in them: real guests, the unmodified package, and
//! a host that says what it was sent.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use skerry_e2e::{Options, Server, World, world::SITE};
use tokio::process::Command;

use crate::official_clients::{client, python_with_instavm};

const SECRET: &str = "sk-e2e-4f1d07c2b9a8e6";
/// What is in the guest, so that looking for something there is seen to find it.
const MARK: &str = "mark-e2e-0a6c53d1f27b";

async fn drive(server: &Server, python: &Path, phase: &str, notes: &Path) -> Result<()> {
    let home = tempfile::tempdir()?;
    let output = Command::new(python)
        .arg(client("instavm_vaults.py"))
        .arg(phase)
        .arg(notes)
        .env("HOME", home.path())
        .env("SKERRY_URL", &server.url)
        .env("SKERRY_KEY", skerry_e2e::server::KEY)
        .env("SKERRY_SECRET", SECRET)
        .env("SKERRY_MARK", MARK)
        .kill_on_drop(true)
        .output()
        .await
        .context("running the package")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.success() && said.contains("instavm vaults: ok") {
        return Ok(());
    }
    Err(anyhow!("{phase}: {said}\n{errors}\n{}", server.log()))
}

/// The files below these directories that hold a word.
async fn holding(dirs: &[PathBuf], word: &str) -> Result<Vec<String>> {
    let there = dirs.iter().filter(|dir| dir.exists());
    let mut grep = Command::new("grep");
    grep.args(["-rlaF", "--devices=skip", "-e", word]).args(there).kill_on_drop(true);
    let output = grep.output().await?;
    let found = String::from_utf8_lossy(&output.stdout);
    // 1: in none.
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(matches!(output.status.code(), Some(0 | 1)), "{:?}: {errors}", output.status);
    Ok(found.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn a_credential_of_a_vault_reaches_its_host_and_is_nowhere_in_the_guest() -> Result<()> {
    let python = python_with_instavm().await?;
    let world = World::start().await?;
    let dir = tempfile::tempdir()?;
    let (trusted, notes) = (dir.path().join("trusted.pem"), dir.path().join("notes.json"));
    std::fs::write(&trusted, world.certificate()?)?;
    let mut options = Options::booting();
    let uplink = world.uplink();
    let trusted = trusted.display().to_string();
    let arguments = ["--network", "on", "--uplink", &uplink, "--name-servers", SITE];
    options.arguments.extend(arguments.map(str::to_owned));
    options.arguments.extend(["--trusted-certificates", &trusted].map(str::to_owned));
    let mut server = Server::start(options).await?;

    drive(&server, &python, "before", &notes).await?;
    // The host has seen the value, the one that holds, and never the name in its place.
    let log = world.log();
    let real = format!("authorization site Bearer {SECRET}");
    ensure!(log.lines().filter(|line| *line == real).count() >= 9, "{log}");
    ensure!(!log.contains("Bearer SITE_KEY") && !log.contains("Bearer first-"), "{log}");
    // Disks, saved memory, snapshots, the database and its log; the memory of what runs; what was logged.
    let dirs = [server.data_dir(), server.memory_dir()];
    let holders = holding(&dirs, SECRET).await?;
    ensure!(holders.is_empty(), "the credential is in {holders:?}");
    ensure!(!holding(&dirs, MARK).await?.is_empty(), "nothing of the guests was looked into");
    ensure!(!server.log().contains(SECRET), "the credential was logged");

    // The server dies and another comes: guests trust it as before.
    server.kill_9().await?;
    server.spawn().await?;
    drive(&server, &python, "after", &notes).await?;
    ensure!(!server.log().contains(SECRET), "the credential was logged");
    server.finish().await
}
