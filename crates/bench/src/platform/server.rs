//! The process of `skerry serve`.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::Api;

/// It may probe the accelerator by booting a guest.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// What waits in the pool is ended first.
const ENDED_WITHIN: Duration = Duration::from_secs(60);
/// The key of a server that only listens on loopback and only as long as the run.
const KEY: &str = "sk_benchmark_on_loopback_only_0123456789";
/// How much of its log explains a failure.
const LOG_LINES: usize = 20;

/// How workspaces come to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No templates: every start is a boot.
    Boot,
    /// Templates, and nothing that waits.
    Restore,
    /// As installed.
    Default,
}

impl Mode {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Boot => &["--template-budget-mib", "0", "--pool-max-warm", "0"],
            Self::Restore => &["--pool-max-warm", "0"],
            Self::Default => &[],
        }
    }
}

/// What every start of the server has in common.
#[derive(Clone, Debug)]
pub struct ServerPlan {
    /// The binary.
    pub binary: PathBuf,
    /// Where it finds its images.
    pub image_dir: PathBuf,
    /// Its own directory.
    pub data_dir: PathBuf,
    /// Where its guests' memory is.
    pub memory_dir: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// The value of `--kernel`.
    pub kernel: &'static str,
}

/// A running server. Dropping it kills the server, not its VMs: they are the caller's to sweep.
pub struct Server {
    plan: ServerPlan,
    mode: Mode,
    child: Child,
    address: SocketAddr,
    /// How guest instructions run, from its ready line.
    pub accelerator: String,
    /// Its version, from its ready line.
    pub version: String,
    /// Where it speaks SSH.
    pub ssh: SocketAddr,
    /// Its HTTP API.
    pub api: Api,
}

impl Server {
    /// Starts it and returns once it has said that it is ready.
    ///
    /// # Errors
    /// It did not; the end of its log is in the message.
    pub async fn start(plan: &ServerPlan, mode: Mode) -> Result<Self> {
        let mut child = spawn(plan, mode, "127.0.0.1:0")?;
        let ready = ready_line(plan, &mut child).await?;
        let text = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
        let url = text("url");
        let address = url.strip_prefix("http://").context("its URL is not HTTP")?;
        Ok(Self {
            plan: plan.clone(),
            mode,
            child,
            address: address.parse().with_context(|| format!("its URL is {url}"))?,
            accelerator: text("accelerator"),
            version: text("version"),
            ssh: text("ssh").parse().context("it does not say where it speaks SSH")?,
            api: Api::new(&url, KEY)?,
        })
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.child.id().and_then(|pid| i32::try_from(pid).ok())
    }

    /// Whether its process is there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// How it was started.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Kills it as a power cut would, and starts it again on the same port. Returns when the new
    /// process was started; it is not ready then.
    ///
    /// # Errors
    /// It did not run, or cannot be started.
    pub async fn kill_and_start_again(&mut self) -> Result<Instant> {
        self.child.kill().await.context("killing the server")?;
        let began = Instant::now();
        self.child = spawn(&self.plan, self.mode, &self.address.to_string())?;
        Ok(began)
    }

    /// Sends SIGTERM and waits for its end.
    ///
    /// # Errors
    /// It did not end, or not well.
    pub async fn stop(mut self) -> Result<()> {
        let pid = self.pid().context("the server ended by itself")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("telling the server to end")?;
        let status = timeout(ENDED_WITHIN, self.child.wait())
            .await
            .with_context(|| format!("SIGTERM did not end it:\n{}", self.plan.end_of_log()))??;
        ensure!(status.success(), "it ended with {status}:\n{}", self.plan.end_of_log());
        Ok(())
    }
}

fn spawn(plan: &ServerPlan, mode: Mode, listen: &str) -> Result<Child> {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(&plan.log)
        .with_context(|| format!("opening {}", plan.log.display()))?;
    let mut command = Command::new(&plan.binary);
    // What is measured must not depend on who measures.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SKERRY_") {
            command.env_remove(name);
        }
    }
    command
        .args(["serve", "--listen", listen, "--kernel", plan.kernel])
        .args(["--ssh-listen", "127.0.0.1:0"])
        .arg("--data-dir")
        .arg(&plan.data_dir)
        .arg("--image-dir")
        .arg(&plan.image_dir)
        .arg("--memory-dir")
        .arg(&plan.memory_dir)
        .args(mode.arguments())
        .env("SKERRY_BOOTSTRAP_KEY", KEY)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        // A terminal's interrupt is ours to answer: the server has to be there to clear away.
        .process_group(0)
        .kill_on_drop(true);
    command.spawn().with_context(|| format!("starting {}", plan.binary.display()))
}

async fn ready_line(plan: &ServerPlan, child: &mut Child) -> Result<Value> {
    let stdout = child.stdout.take().context("the server has no standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    let line = timeout(READY_WITHIN, lines.next_line())
        .await
        .with_context(|| format!("the server is not ready:\n{}", plan.end_of_log()))??;
    let Some(line) = line else {
        bail!("the server ended before it was ready:\n{}", plan.end_of_log());
    };
    serde_json::from_str(&line).with_context(|| format!("its ready line is {line}"))
}

impl ServerPlan {
    fn end_of_log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}
