//! A network namespace that plays the internet for guests: a name server, two sites that speak HTTP and
//! TLS, a host of the operator's network and a metadata service. It has no way out: no packet of a
//! guest leaves it.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::{process::Child, time::timeout};

const WORLD: &str = include_str!("world.py");

/// Addresses for measurements (RFC 2544): no host of the real internet has one. `site.test` and
/// `a.below.test` are at the first, `other.test` at the second; both are name servers.
pub const SITE: &str = "198.18.0.1";
/// The other site.
pub const OTHER: &str = "198.19.0.1";
/// A host of the operator's own network; `rebound.test` leads to it.
pub const INTERNAL: &str = "192.168.7.1";
/// Where clouds keep their metadata.
pub const METADATA: &str = "169.254.169.254";
/// An address of the documentation's (RFC 3849).
pub const SITE_V6: &str = "2001:db8:18::1";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The internet, as long as it is not dropped.
pub struct World {
    name: String,
    dir: tempfile::TempDir,
    program: Child,
}

impl World {
    /// Makes it, and returns when it serves. Needs root.
    ///
    /// # Errors
    /// When the namespace cannot be made, or its program does not come up; what that says is in the
    /// message.
    pub async fn start() -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("e2e-world-{:x}-{number}", std::process::id());
        let dir = tempfile::tempdir()?;
        let namespace = Namespace::make(name)?;
        let (certificate, key) = (dir.path().join("certificate"), dir.path().join("key"));
        let names = "subjectAltName=DNS:site.test,DNS:a.below.test,DNS:other.test";
        run(Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", "30", "-subj", "/CN=test", "-addext", names])
            // Of a server, not of somebody who certifies others.
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate))?;
        let script = dir.path().join("world.py");
        std::fs::write(&script, WORLD)?;
        let path = dir.path().join("log");
        let log = std::fs::File::create(&path)?;
        let mut program = tokio::process::Command::new("nsenter");
        program
            .arg(format!("--net=/run/netns/{}", namespace.name))
            .arg("python3")
            .args([&script, &certificate, &key])
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        let program = program.spawn().context("starting the world")?;
        let world = Self { name: namespace.keep(), dir, program };
        world.until(|log| log.lines().any(|line| line == "ready")).await?;
        Ok(world)
    }

    /// What `--uplink` is told.
    #[must_use]
    pub fn uplink(&self) -> String {
        format!("netns:{}", self.name)
    }

    /// The certificate of its sites, in PEM.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn certificate(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join("certificate"))?)
    }

    /// What reached it so far, a line for each thing.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Returns once its log is as wanted.
    ///
    /// # Errors
    /// Not within a minute; the log is in the message.
    pub async fn until(&self, reached: impl Fn(&str) -> bool) -> Result<()> {
        let wait = async {
            let mut look = tokio::time::interval(Duration::from_millis(50));
            while !reached(&self.log()) {
                look.tick().await;
            }
        };
        let in_time = timeout(Duration::from_secs(60), wait).await;
        in_time.with_context(|| format!("the world's log:\n{}", self.log()))
    }

    /// The interfaces in it.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let listed = run(Command::new("ip").args(["-n", &self.name, "-o", "link"]))?;
        let names = listed.lines().filter_map(|line| line.split(": ").nth(1));
        Ok(names.map(|name| name.split('@').next().unwrap_or(name).to_owned()).collect())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The namespace ends with its last process.
        let _ = self.program.start_kill();
        remove(&self.name);
    }
}

/// A namespace that is removed if nobody keeps it.
struct Namespace {
    name: String,
}

impl Namespace {
    fn make(name: String) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let made = Self { name };
        let ip = |args: &[&str]| run(Command::new("ip").args(["-n", &made.name]).args(args));
        ip(&["link", "set", "lo", "up"])?;
        for address in [SITE, OTHER, INTERNAL, METADATA, SITE_V6] {
            ip(&["address", "add", address, "dev", "lo"])?;
        }
        Ok(made)
    }

    fn keep(mut self) -> String {
        std::mem::take(&mut self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            remove(&self.name);
        }
    }
}

fn remove(name: &str) {
    let _ = Command::new("ip").args(["netns", "delete", name]).output();
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
