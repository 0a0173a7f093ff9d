//! The link against the real agent, hosted in this process, over an in-memory line.

mod clock;
mod connect;
mod exec;
mod files;
mod hostile;
mod line;
mod listen;
mod pause;
mod state;
mod workloads;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use skerry_agent::Guest;
use skerry_internal_api::{
    ByteStream, ExecControl, ExecExit, ExecOutput, ExecRequest, ExecSession, NodeError, User,
};
use skerry_vmm::{Channel, VmmError};
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Dial, Fresh, Frozen, GuestHello, GuestLink, Unsaid};

/// Every test ends within this.
const TEST_WITHIN: Duration = Duration::from_secs(60);

/// A guest and a home directory for it.
struct Lab {
    home: tempfile::TempDir,
    guest: Arc<Guest>,
    line: Arc<Line>,
    link: Arc<GuestLink>,
}

/// The wire to the guest; it can be cut.
struct Line {
    guest: Arc<Guest>,
    /// Bytes an older connection left behind, in both directions.
    stale: Bytes,
    current: Mutex<CancellationToken>,
    dials: Mutex<u32>,
}

impl Line {
    fn new(guest: &Arc<Guest>, stale: Bytes) -> Arc<Self> {
        Arc::new(Self {
            guest: Arc::clone(guest),
            stale,
            current: Mutex::default(),
            dials: Mutex::default(),
        })
    }

    /// Both ends see the connection end at once.
    fn cut(&self) {
        self.current.lock().unwrap().cancel();
    }

    fn dials(&self) -> u32 {
        *self.dials.lock().unwrap()
    }
}

#[async_trait]
impl Dial for Line {
    async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
        self.cut();
        *self.dials.lock().unwrap() += 1;
        let (mut host, mut guest_end) = tokio::io::duplex(64 * 1024);
        host.write_all(&self.stale).await.unwrap();
        guest_end.write_all(&self.stale).await.unwrap();
        let cut = CancellationToken::new();
        *self.current.lock().unwrap() = cut.clone();
        let guest = Arc::clone(&self.guest);
        tokio::spawn(async move {
            tokio::select! {
                _ = skerry_agent::serve(guest_end, &guest) => {}
                () = cut.cancelled() => {}
            }
        });
        Ok(Box::new(host))
    }
}

fn hello() -> GuestHello {
    GuestHello {
        hostname: String::from("lab"),
        machine_id: "0123456789abcdef".repeat(2),
        env: BTreeMap::from([(String::from("FROM_WORKSPACE"), String::from("yes"))]),
        unsaid: Unsaid::default(),
        incarnation: 3,
        fresh: Arc::new(|| Fresh {
            entropy: vec![7; 64],
            now: skerry_model::Timestamp::from_second(1_700_000_000).unwrap(),
        }),
    }
}

impl Lab {
    async fn open() -> Self {
        Self::open_with(Bytes::new()).await
    }

    async fn open_with(stale: Bytes) -> Self {
        let home = tempfile::tempdir().unwrap();
        let guest = Arc::new(Guest::hosted(home.path().to_owned()));
        let line = Line::new(&guest, stale);
        let dial: Arc<dyn Dial> = Arc::clone(&line) as _;
        let link = GuestLink::open(dial, hello(), Duration::from_secs(20)).await.unwrap();
        Self { home, guest, line, link }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn text_path(&self, name: &str) -> String {
        text(&self.path(name))
    }

    async fn shell(&self, script: &str) -> ExecSession {
        use skerry_internal_api::GuestApi;
        self.link.exec(shell(script)).await.unwrap()
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn shell(script: &str) -> ExecRequest {
    ExecRequest {
        argv: vec![String::from("/bin/sh"), String::from("-c"), script.to_owned()],
        env: BTreeMap::new(),
        working_dir: None,
        user: User::Root,
        pty: None,
        timeout: None,
    }
}

/// What a command said until its end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: Option<ExecExit>,
    error: Option<NodeError>,
}

impl Said {
    fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

async fn finish(session: ExecSession) -> Said {
    let ExecSession { control, mut output } = session;
    drop(control);
    read_on(&mut output, Said::default(), |_| false).await
}

/// Reads until the end or until `enough`.
async fn read_on(
    output: &mut tokio::sync::mpsc::Receiver<Result<ExecOutput, NodeError>>,
    mut said: Said,
    enough: impl Fn(&Said) -> bool,
) -> Said {
    within(async move {
        while !enough(&said) {
            match output.recv().await {
                Some(Ok(ExecOutput::Stdout(bytes))) => said.stdout.extend_from_slice(&bytes),
                Some(Ok(ExecOutput::Stderr(bytes))) => said.stderr.extend_from_slice(&bytes),
                Some(Ok(ExecOutput::Exit(exit))) => said.exit = Some(exit),
                Some(Err(error)) => said.error = Some(error),
                None => break,
            }
        }
        said
    })
    .await
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(TEST_WITHIN, what).await.expect("the test took too long")
}

fn stream_of(pieces: Vec<Bytes>) -> ByteStream {
    Box::pin(futures::stream::iter(pieces.into_iter().map(Ok)))
}

async fn collect(stream: ByteStream) -> Result<Vec<u8>, NodeError> {
    within(stream.fold(Ok(Vec::new()), |all, piece| async move {
        let (mut all, piece) = (all?, piece?);
        all.extend_from_slice(&piece);
        Ok(all)
    }))
    .await
}

fn stdin(text: &str) -> ExecControl {
    ExecControl::Stdin(Bytes::copy_from_slice(text.as_bytes()))
}
