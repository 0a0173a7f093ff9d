//! The client as a process against the real API on a simulated node.

use std::{process::Stdio, sync::Arc, time::Duration};

use serde_json::Value;
use skerry_api::{ApiConfig, ApiState};
use skerry_control::{
    CreateWorkspace, StartPolicy, Wait,
    sim_node::SimGuest,
    testing::{self, KEY, TestControl},
};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpListener,
    process::{Child, Command},
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub const BOUND: Duration = Duration::from_secs(30);

pub struct Server {
    pub url: String,
    pub test: TestControl,
    pub scratch: TempDir,
    _stop_at_the_end: DropGuard,
}

pub struct Done {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Done {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).expect("one JSON document")
    }
}

impl Server {
    pub async fn start() -> Self {
        let test = testing::open().await;
        let config = ApiConfig {
            public_url: "http://localhost:7070".to_owned(),
            base_domain: "localhost".to_owned(),
            preview_domain: "localhost".to_owned(),
            version: "0.0.0-test",
        };
        let stop = CancellationToken::new();
        let state = ApiState::new(test.control.clone(), config, stop.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let until = stop.clone();
        tokio::spawn(async move {
            axum::serve(listener, skerry_api::router(state))
                .with_graceful_shutdown(until.cancelled_owned())
                .await
                .expect("serve");
        });
        let scratch = tempfile::tempdir().expect("tempdir");
        Self { url, test, scratch, _stop_at_the_end: stop.drop_guard() }
    }

    /// A server with the running workspace `box`.
    pub async fn with_box() -> (Self, Arc<SimGuest>) {
        let server = Self::start().await;
        let mut request = CreateWorkspace::new(StartPolicy::Now(Wait::UpTo(BOUND)));
        request.name = Some("box".to_owned());
        request.slug = Some("box-slug".to_owned());
        let caller = server.test.caller().await;
        let made = server.test.control.create_workspace(&caller, request).await.expect("created");
        let guest = server.test.node.sim_guest(made.id).expect("a guest");
        (server, guest)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skerry-client"));
        command
            .args(arguments)
            .env_clear()
            .env("SKERRY_URL", &self.url)
            .env("SKERRY_KEY", KEY)
            .env("XDG_CONFIG_HOME", self.scratch.path().join("config"))
            .current_dir(self.scratch.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn run(&self, arguments: &[&str]) -> Done {
        done(self.command(arguments).spawn().expect("spawned")).await
    }

    pub async fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Done {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().expect("spawned");
        let mut stdin = child.stdin.take().expect("stdin");
        let input = input.to_vec();
        let feeding = tokio::spawn(async move {
            // A command that ends before it has read everything is no failure.
            let _ = stdin.write_all(&input).await;
        });
        let done = done(child).await;
        feeding.await.expect("fed");
        done
    }
}

pub async fn done(child: Child) -> Done {
    let output =
        tokio::time::timeout(BOUND, child.wait_with_output()).await.expect("in time").expect("ran");
    Done {
        code: output.status.code().expect("an exit code"),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Server {
    /// What a person sees who types these lines.
    pub async fn transcript(&self, lines: &[&str]) -> String {
        let mut transcript = String::new();
        for line in lines {
            let arguments: Vec<&str> = line.split(' ').collect();
            let done = self.run(&arguments).await;
            transcript.push_str(&format!("$ skerry {line}\n{}{}", done.text(), done.stderr));
            transcript.push_str(&format!("[{}]\n\n", done.code));
        }
        transcript
    }
}
