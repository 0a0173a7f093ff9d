//! A machine, and the servers that live on it one after the other.

use std::{
    future::Future,
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use skerry_control::{
    Environment,
    testing::{SeededRng, TestClock},
};
use skerry_model::Timestamp;
use skerry_node::{FaultKind, Faults};
use skerry_server::{
    assemble,
    config::{Config, OnShutdown, Settings},
    serving,
};
use skerry_vmm::{
    VmmRecord,
    fake::{FakeVmm, GuestEnd},
};
use tokio::{net::TcpListener, runtime::Runtime, sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::machine::Machine;

/// The bootstrap key of every server.
pub const KEY: &str = "sk_of_the_tests_in_one_process";
/// Longer than anything takes on a busy machine.
pub const BOUND: Duration = Duration::from_secs(50);
/// Where workspaces are.
pub const WORKSPACES: &str = "/skerry/v1/workspaces";

/// Runs a test within a bound.
pub async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(100), test).await.expect("the test did not end")
}

/// A machine with its clock.
pub struct World {
    pub machine: Machine,
    pub clock: TestClock,
    /// How long guests may take to power off.
    pub stop_grace: Duration,
    /// What a server does with workspaces at its end.
    pub on_shutdown: OnShutdown,
    /// What else a server is told; stronger than what all are.
    pub settings: Settings,
    /// Where the next server listens, if it has to be known before it starts.
    pub listener: Mutex<Option<TcpListener>>,
    lives: AtomicU64,
}

impl Deref for World {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl World {
    pub fn new() -> Self {
        Self {
            machine: Machine::new(),
            clock: TestClock::at(Timestamp::from_second(1_767_225_600).unwrap()),
            stop_grace: Duration::from_secs(20),
            on_shutdown: OnShutdown::Keep,
            settings: Settings::default(),
            listener: Mutex::default(),
            lives: AtomicU64::new(0),
        }
    }

    fn config(&self) -> Config {
        let settings = Settings {
            data_dir: Some(self.data_dir()),
            // Every start is a boot, and nobody works in the background.
            template_budget_mib: Some(0),
            image_dir: Some(self.image_dir()),
            memory_dir: Some(self.memory_dir()),
            bootstrap_key: Some(KEY.parse().unwrap()),
            boot_timeout_seconds: Some(40),
            stop_grace_seconds: Some(self.stop_grace.as_secs()),
            on_shutdown: Some(self.on_shutdown),
            image_aliases: [("node-20".to_owned(), "base".to_owned())].into(),
            ..Settings::default()
        };
        let mut config = self.settings.clone().or(settings).resolve().unwrap();
        config.runtime_dir = Some(self.dir.path().join("short"));
        config
    }

    pub async fn start(&self) -> Server {
        self.try_start().await.unwrap()
    }

    /// Starts a server on the machine.
    pub async fn try_start(&self) -> Result<Server> {
        let life = self.lives.fetch_add(1, Ordering::Relaxed);
        let faults = Faults::default();
        let mut config = self.config();
        config.faults = faults.clone();
        let environment =
            Environment { now: self.clock.as_fn(), rng: Arc::new(SeededRng::new(life)) };
        let vmm = Arc::new(FakeVmm::new(self.host.clone()));
        let shutdown = CancellationToken::new();
        let listener = self.listener.lock().unwrap().take();
        let (ready, is_ready) = oneshot::channel();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let served = runtime.spawn({
            let shutdown = shutdown.clone();
            async move {
                let listener = match listener {
                    // Of this runtime from now on.
                    Some(listener) => TcpListener::from_std(listener.into_std()?)?,
                    None => TcpListener::bind("127.0.0.1:0").await?,
                };
                let url = format!("http://{}", listener.local_addr()?);
                let assembled =
                    assemble::assemble(&config, &url, vmm, environment, shutdown.clone()).await?;
                let encrypted = assembled.encrypted.as_ref().map(|tls| tls.listener.local_addr());
                let _ = ready.send((url, encrypted.transpose()?));
                serving::serve_until(listener, assembled, &config, shutdown).await
            }
        });
        let mut server = Server {
            client: Client { url: String::new(), http: http_client(), host: None },
            encrypted: None,
            faults,
            shutdown,
            served: Some(served),
            runtime: Some(runtime),
        };
        match is_ready.await {
            Ok((url, encrypted)) => {
                server.client.url = url;
                server.encrypted = encrypted;
                Ok(server)
            }
            Err(_) => {
                let served = server.served.take().unwrap().await?;
                server.end_runtime().await;
                Err(served.expect_err("it ended before it was ready"))
            }
        }
    }

    /// Everything a workspace has on the machine beside its disk and logs.
    pub fn held_by(&self, id: &str) -> Vec<String> {
        self.held(number(id))
    }

    /// Everything a workspace has on the machine.
    pub fn left_of(&self, id: &str) -> Vec<String> {
        self.left(number(id))
    }

    /// The only VM.
    pub fn only_vm(&self) -> VmmRecord {
        let running = self.host.running();
        assert_eq!(running.len(), 1, "{running:?}");
        running.into_iter().next().unwrap()
    }

    /// Guests that run now end by themselves; those of later boots do not.
    pub async fn end_guests(&self, end: GuestEnd) {
        self.guest_end.send_replace(Some(end));
        until("guests end", async || self.host.running().is_empty()).await;
        self.guest_end.send_replace(None);
    }
}

fn number(id: &str) -> u128 {
    Uuid::parse_str(id).unwrap().as_u128()
}

/// Looks again and again until something is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}: not in time");
        pause.tick().await;
    }
}

fn http_client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(BOUND).build().unwrap()
}

/// A server at work. Dropping it is a crash of which nobody waits for the end.
pub struct Server {
    client: Client,
    /// Where it speaks TLS, if it does.
    pub encrypted: Option<SocketAddr>,
    /// What goes wrong in this life.
    pub faults: Faults,
    shutdown: CancellationToken,
    served: Option<JoinHandle<Result<()>>>,
    runtime: Option<Runtime>,
}

impl Deref for Server {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Server {
    /// Dies as by `kill -9`: no task of it does anything any more.
    pub async fn die(mut self) {
        self.end_runtime().await;
    }

    /// Dies at a step of what a request asks for.
    pub async fn die_at<T>(self, point: &str, request: impl Future<Output = T>) {
        assert!(self.faults.plan(point, FaultKind::Hang));
        tokio::select! {
            _ = request => panic!("the server did not stop at {point}"),
            () = self.faults.happened(point) => {}
        }
        self.die().await;
    }

    /// Ends as by SIGTERM; returns how long that took.
    pub async fn end(mut self) -> Duration {
        let began = Instant::now();
        self.shutdown.cancel();
        self.served.take().unwrap().await.unwrap().unwrap();
        self.end_runtime().await;
        began.elapsed()
    }

    async fn end_runtime(&mut self) {
        let runtime = self.runtime.take().unwrap();
        let ended = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(BOUND));
        ended.await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A client of a server.
#[derive(Clone)]
pub struct Client {
    pub url: String,
    pub http: reqwest::Client,
    host: Option<String>,
}

impl Client {
    /// The same client, calling a host label.
    pub fn on_host(&self, host: &str) -> Self {
        Self { host: Some(host.to_owned()), ..self.clone() }
    }

    /// A request with the key.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(KEY);
        match &self.host {
            Some(host) => request.header("host", host),
            None => request,
        }
    }

    /// What one request is answered with; the body is null when it is empty.
    pub async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Result<(u16, Value)> {
        let request = self.request(method.parse()?, path);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        let body = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).with_context(|| format!("{method} {path}: {text}"))?
        };
        Ok((status, body))
    }

    /// One request that must be answered with `status`.
    pub async fn expect(
        &self,
        status: u16,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Value {
        let (answered, body) = self.ask(method, path, body).await.unwrap();
        assert_eq!(answered, status, "{method} {path}: {body}");
        body
    }

    pub async fn get(&self, path: &str) -> Value {
        self.expect(200, "GET", path, None).await
    }

    /// Makes a workspace that runs; returns its id.
    pub async fn create(&self, name: &str) -> String {
        let body = json!({"name": name, "memory_mib": 256});
        let path = format!("{WORKSPACES}?wait=60");
        let made = self.expect(201, "POST", &path, Some(body)).await;
        assert_eq!(made["state"], "running", "{made}");
        made["id"].as_str().unwrap().to_owned()
    }

    pub async fn workspace(&self, id: &str) -> Value {
        self.get(&format!("{WORKSPACES}/{id}")).await
    }

    /// `start`, `stop` or `restart`, to the end.
    pub async fn power(&self, id: &str, verb: &str) -> Value {
        self.expect(200, "POST", &format!("{WORKSPACES}/{id}/{verb}?wait=60"), None).await
    }

    /// Deletes a workspace to the end.
    pub async fn delete(&self, id: &str) {
        let path = format!("{WORKSPACES}/{id}?wait=60");
        let deleted = self.expect(200, "DELETE", &path, None).await;
        assert_eq!(deleted["complete"], true, "{deleted}");
    }

    /// The workspace, once it is in this state.
    pub async fn reaches(&self, id: &str, state: &str) -> Value {
        let mut last = Value::Null;
        until(state, async || {
            last = self.workspace(id).await;
            last["state"] == state
        })
        .await;
        last
    }

    pub async fn is_gone(&self, id: &str) {
        let path = format!("{WORKSPACES}/{id}");
        until("gone", async || self.ask("GET", &path, None).await.unwrap().0 == 404).await;
    }

    /// Runs a shell command; returns what it printed.
    pub async fn run(&self, id: &str, command: &str) -> String {
        let body = json!({"argv": ["sh", "-c", command]});
        let path = format!("{WORKSPACES}/{id}/exec");
        let answer = self.expect(200, "POST", &path, Some(body)).await;
        assert_eq!(answer["exit_code"], 0, "{answer}");
        answer["stdout"].as_str().unwrap().to_owned()
    }
}
