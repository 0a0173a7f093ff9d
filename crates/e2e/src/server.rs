//! A running `skerry serve`.

use std::{
    path::{Path, PathBuf},
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
};

use crate::Census;

/// The key every test server accepts.
pub const KEY: &str = "sk_end_to_end_tests_only_0123456789";

/// How long a workspace may take to become ready: software emulation on a busy machine.
pub const READY_WITHIN: Duration = Duration::from_secs(240);

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// More arguments of `skerry serve`.
    pub arguments: Vec<String>,
    /// More environment.
    pub environment: Vec<(String, String)>,
    /// Where its images are, if not where those of all tests are.
    pub image_dir: Option<PathBuf>,
}

impl Options {
    /// A server that boots every VM: no templates, no VMs that wait. What it has on the host is then
    /// what its workspaces have.
    #[must_use]
    pub fn booting() -> Self {
        let arguments = ["--template-budget-mib", "0", "--pool-max-warm", "0"];
        Self {
            arguments: arguments.map(str::to_owned).into(),
            environment: Vec::new(),
            image_dir: None,
        }
    }
}

/// A server with a data directory of its own. Dropping it kills the server and every VM it has.
pub struct Server {
    options: Options,
    directory: tempfile::TempDir,
    child: Option<Child>,
    before: Census,
    /// Its URL, from its ready line.
    pub url: String,
    /// Its ready line.
    pub ready: Value,
    /// An HTTP client that presents the key as a bearer token.
    pub http: reqwest::Client,
}

impl Server {
    /// Starts a server on a free port with a fresh data directory.
    ///
    /// # Errors
    /// It did not print its ready line in time; its log is in the message.
    pub async fn start(options: Options) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("skerry-e2e-").tempdir()?;
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("authorization", format!("Bearer {KEY}").parse()?);
        let mut server = Self {
            options,
            directory,
            child: None,
            before: Census::default(),
            url: String::new(),
            ready: Value::Null,
            http: reqwest::Client::builder()
                .default_headers(headers)
                .no_proxy()
                .timeout(READY_WITHIN)
                .build()?,
        };
        server.before = server.census();
        server.spawn().await?;
        Ok(server)
    }

    /// Starts the process again on the same data directory (after [`Server::kill_9`] or
    /// [`Server::terminate`]).
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn spawn(&mut self) -> Result<()> {
        self.spawn_with(&[]).await
    }

    /// As [`Server::spawn`], with more environment for this one start.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn spawn_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut child = Command::new(crate::skerry_binary())
            .arg("serve")
            .args(["--listen", "127.0.0.1:0", "--bootstrap-key", KEY])
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--image-dir")
            .arg(self.options.image_dir.clone().unwrap_or_else(crate::image_dir))
            .arg("--memory-dir")
            .arg(self.memory_dir())
            .env("SKERRY_KERNEL", crate::kernel())
            .args(&self.options.arguments)
            .envs(self.options.environment.iter().map(|(name, value)| (name, value)))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting skerry serve")?;
        let stdout = child.stdout.take().context("no stdout")?;
        self.child = Some(child);
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line())
            .await
            .with_context(|| format!("no ready line:\n{}", self.log()))??
            .with_context(|| format!("it ended before its ready line:\n{}", self.log()))?;
        self.ready = serde_json::from_str(&line).with_context(|| line.clone())?;
        self.url = self.ready["url"].as_str().context("no url")?.to_owned();
        Ok(())
    }

    /// The server's process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Where its guests' memory is.
    #[must_use]
    pub fn memory_dir(&self) -> PathBuf {
        Path::new("/dev/shm").join(self.directory.path().file_name().unwrap_or_default())
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    /// What it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// What it has on this host now, beyond what was there before it.
    #[must_use]
    pub fn census(&self) -> Census {
        Census::take(&self.data_dir(), &self.memory_dir(), self.pid()).since(&self.before)
    }

    /// Kills the server as a power cut would, leaving its VMs.
    ///
    /// # Errors
    /// It was not running.
    pub async fn kill_9(&mut self) -> Result<()> {
        let mut child = self.child.take().context("no server runs")?;
        child.kill().await?;
        Ok(())
    }

    /// Waits until the server ended by itself (an injected fault).
    ///
    /// # Errors
    /// It did not, within the time that a workspace may take.
    pub async fn wait_ended(&mut self) -> Result<()> {
        let mut child = self.child.take().context("no server runs")?;
        tokio::time::timeout(READY_WITHIN, child.wait())
            .await
            .context("the server still runs")??;
        Ok(())
    }

    /// Sends SIGTERM and waits; returns how long it took.
    ///
    /// # Errors
    /// It did not end within 30 seconds, or not with success.
    pub async fn terminate(&mut self) -> Result<Duration> {
        let mut child = self.child.take().context("no server runs")?;
        let pid = child.id().context("it ended already")?;
        let began = Instant::now();
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
        let status = tokio::time::timeout(Duration::from_secs(30), child.wait())
            .await
            .with_context(|| format!("SIGTERM did not end it:\n{}", self.log()))??;
        ensure!(status.success(), "it ended with {status}:\n{}", self.log());
        Ok(began.elapsed())
    }

    /// One request; returns the status and the decoded body (`Null` for an empty one).
    ///
    /// # Errors
    /// No answer, or a body that is not JSON.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<(u16, Value)> {
        let mut request = self.http.request(method.parse()?, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.with_context(|| format!("{method} {path}"))?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        let value = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).with_context(|| format!("{method} {path}: {text}"))?
        };
        Ok((status, value))
    }

    /// One request that must answer with `expected`.
    ///
    /// # Errors
    /// It answered otherwise; the body and the server's log are in the message.
    pub async fn expect(
        &self,
        expected: u16,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value> {
        let (status, value) = self.request(method, path, body).await?;
        if status != expected {
            bail!("{method} {path}: {status} instead of {expected}: {value}\n{}", self.log());
        }
        Ok(value)
    }

    /// Asks with GET until `reached` answers true.
    ///
    /// # Errors
    /// Not within [`READY_WITHIN`].
    pub async fn until(&self, path: &str, reached: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + READY_WITHIN;
        let mut pause = tokio::time::interval(Duration::from_millis(100));
        loop {
            pause.tick().await;
            let (status, value) = self.request("GET", path, None).await?;
            if status == 200 && reached(&value) {
                return Ok(value);
            }
            ensure!(Instant::now() < deadline, "GET {path}: {status} {value}\n{}", self.log());
        }
    }

    /// Asks with GET until the answer is 404.
    ///
    /// # Errors
    /// Not within [`READY_WITHIN`].
    pub async fn until_gone(&self, path: &str) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        let mut pause = tokio::time::interval(Duration::from_millis(100));
        loop {
            pause.tick().await;
            let (status, value) = self.request("GET", path, None).await?;
            if status == 404 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "GET {path}: {status} {value}\n{}", self.log());
        }
    }

    /// Runs a shell command in a workspace through the native API.
    ///
    /// # Errors
    /// It did not run, or its exit code is not 0.
    pub async fn run(&self, workspace: &str, command: &str) -> Result<String> {
        let path = format!("/skerry/v1/workspaces/{workspace}/exec");
        let body = serde_json::json!({"argv": ["sh", "-c", command]});
        let answer = self.expect(200, "POST", &path, Some(body)).await?;
        ensure!(answer["exit_code"] == 0, "{command}: {answer}");
        Ok(answer["stdout"].as_str().unwrap_or_default().to_owned())
    }

    /// The command-line client, pointed at this server.
    #[must_use]
    pub fn cli(&self) -> Command {
        let mut command = Command::new(crate::skerry_binary());
        command
            .env("SKERRY_URL", &self.url)
            .env("SKERRY_KEY", KEY)
            .env("HOME", self.directory.path())
            .kill_on_drop(true);
        command
    }

    /// Ends the server and removes every workspace it had.
    ///
    /// # Errors
    /// Something was left behind: the census is in the message.
    pub async fn finish(mut self) -> Result<()> {
        let listed = self.expect(200, "GET", "/skerry/v1/workspaces", None).await?;
        for workspace in listed["workspaces"].as_array().into_iter().flatten() {
            let id = workspace["id"].as_str().context("no id")?;
            self.expect(200, "DELETE", &format!("/skerry/v1/workspaces/{id}?wait=240"), None)
                .await?;
        }
        self.terminate().await?;
        let census = self.census();
        for (kind, count) in census.counts() {
            ensure!(count == 0, "left behind, {kind}:\n{census}\n{}", self.log());
        }
        Ok(())
    }
}

impl Drop for Server {
    /// A failed test must not leave VMs: whatever still names our directories is killed.
    fn drop(&mut self) {
        if let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for name in self.census().process_ids() {
            let _ = kill(Pid::from_raw(name), Signal::SIGKILL);
        }
        for name in self.census().network_namespaces() {
            let _ = std::process::Command::new("ip").args(["netns", "delete", name]).output();
        }
        let _ = std::fs::remove_dir_all(self.memory_dir());
    }
}
