//! What WebSockets that say nothing cost the server in memory: its own listener and the gateway behind
//! it, in a process of their own, in front of a workspace of a simulated node. What the process grows by
//! includes the simulated guest's ends of the connections; that of a real guest is in the guest. As many
//! as are asked for lead into one workspace here, where a server lets 80 lead into each.
//!
//! ```text
//! cargo bench -p skerry-server --bench idle_websockets -- --json sockets.json
//! ```

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use axum::Router;
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use skerry_control::{
    CreateWorkspace, PortVisibility, PublishPort, StartPolicy, Wait, WorkspaceRef, testing,
};
use skerry_gateway::http::{Limits, PreviewHosts, Previews, Scheme};
use skerry_server::listener::{self, Transport};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How many are opened at the same time.
const AT_A_TIME: usize = 64;
/// How long one may take, on however busy a machine.
const WITHIN: Duration = Duration::from_secs(60);
/// Descriptors besides those of the connections.
const SPARE: u64 = 256;
const PORT: u16 = 3000;
const HOST: &str = "front.localhost";
/// RFC 6455, 4.2.2: what is said to the key of every client here.
const AGREES: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                      Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Measures the memory of idle WebSockets.
#[derive(Parser, Debug)]
struct Arguments {
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Writes the figures here, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Be the server.
    #[arg(long, hide = true)]
    serve: bool,
    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let done = runtime.block_on(async {
        match arguments.serve {
            true => serve(arguments.connections).await,
            false => measure(&arguments).await,
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("idle_websockets: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until standard input ends.
async fn serve(connections: usize) -> Result<()> {
    let test = testing::open().await;
    let caller = test.caller().await;
    let request = CreateWorkspace::new(StartPolicy::Now(Wait::UpTo(WITHIN)));
    let workspace = test.control.create_workspace(&caller, request).await?;
    let port = PublishPort {
        port: PORT,
        slug: Some("front".to_owned()),
        label: None,
        visibility: Some(PortVisibility::Public),
    };
    test.control.publish_port(&caller, &WorkspaceRef::Id(workspace.id), port).await?;
    let guest = test.node.sim_guest(workspace.id).context("the workspace has no guest")?;
    let mut visitors = guest.serve(PORT);
    tokio::spawn(async move {
        while let Some(mut visitor) = visitors.recv().await {
            tokio::spawn(async move {
                let (mut head, mut byte) = ([0_u8; 4], [0]);
                // A byte at a time: nothing is kept of it.
                while head != *b"\r\n\r\n" {
                    visitor.read_exact(&mut byte).await?;
                    head.rotate_left(1);
                    head[3] = byte[0];
                }
                visitor.write_all(AGREES.as_bytes()).await?;
                // Until the client goes.
                visitor.read_exact(&mut byte).await
            });
        }
    });
    let ending = CancellationToken::new();
    let hosts = PreviewHosts {
        domains: vec!["localhost".to_owned()],
        own: Vec::new(),
        brought: Arc::default(),
        scheme: Scheme::Http,
    };
    let limits = Limits { connections, waiting: connections, ..Limits::default() };
    let routes = test.control.routes(|text| WorkspaceRef::SlugOrName(text.to_owned()));
    let random = Arc::new(|bytes: &mut [u8]| bytes.fill(7));
    let previews = Previews::new(routes, hosts, limits, random, ending.clone());
    let router = previews.beside(Router::new());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let of_listener = listener::Limits {
        connections: connections + AT_A_TIME,
        ..listener::Limits::for_this_process(1)
    };
    let serving = listener::serve(listener, Transport::Clear, router, of_listener, ending.clone());
    let told = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    tokio::select! {
        () = serving => bail!("the listener ended"),
        told = told => told.map(drop).map_err(Into::into),
    }
}

/// The server's process; killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    fn start(connections: usize) -> Result<(Self, SocketAddr)> {
        let child = Command::new(std::env::current_exe()?)
            .args(["--serve", "--connections", &connections.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the server")?;
        let mut server = Self(child);
        let output = server.0.stdout.take().context("it has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context("reading where it listens")?;
        let address = line.trim().parse().with_context(|| format!("it says {line:?}"))?;
        Ok((server, address))
    }

    /// Its resident memory in KiB, by proc_pid_status(5).
    fn resident_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        number.and_then(|text| text.parse().ok()).context("its memory is not said")
    }
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let wanted = arguments.connections;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = u64::try_from(wanted)? + SPARE;
    ensure!(most >= needed, "{wanted} connections need {needed} descriptors; {most} are allowed");
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let (server, address) = Server::start(wanted)?;
    // What the first visit of all costs is not the others' price.
    drop(open(address).await?);
    let before = server.resident_kib()?;
    let began = Instant::now();
    let opening = stream::iter(0..wanted).map(|_| open(address)).buffer_unordered(AT_A_TIME);
    let open: Vec<TcpStream> = opening.try_collect().await?;
    let seconds = began.elapsed().as_secs_f64();
    let after = server.resident_kib()?;
    let ended = open.iter().filter(|stream| stream.try_read(&mut [0]).is_ok()).count();
    ensure!(ended == 0, "{ended} connections did not stay");
    let grown = after.saturating_sub(before);
    let bytes_each = grown * 1024 / u64::try_from(wanted.max(1))?;
    println!(
        "{wanted} idle WebSockets: {before} KiB before, {after} KiB with them, {bytes_each} bytes \
         each; opened in {seconds:.1} s"
    );
    if let Some(path) = &arguments.json {
        let figures = serde_json::json!({
            "benchmark": "idle_websockets",
            "connections": wanted,
            "before_kib": before,
            "after_kib": after,
            "grown_kib": grown,
            "bytes_each": bytes_each,
            "opened_in_seconds": seconds,
        });
        std::fs::write(path, figures.to_string())?;
    }
    Ok(())
}

/// A WebSocket that was agreed to.
async fn open(address: SocketAddr) -> Result<TcpStream> {
    let opening = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!(
            "GET /chat HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::with_capacity(512);
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(stream.read_buf(&mut head).await? > 0, "the server closed the connection");
        }
        ensure!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        Ok(stream)
    };
    timeout(WITHIN, opening).await.context("no WebSocket in time")?
}
