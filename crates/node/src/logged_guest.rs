//! The guest as it is handed out: every command without a terminal is also written to the command
//! log. Everything else is passed on as it is.

use std::sync::Arc;

use async_trait::async_trait;
use skerry_internal_api::{
    ByteStream, ExecOutput, ExecRequest, ExecSession, FileStat, GuestApi, GuestListener,
    GuestStats, GuestStream, ListeningPort, NodeError, SupervisorApi, User, WriteMode,
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    NodeEnvironment,
    command_log::{CommandEntry, CommandLog},
};

/// Pieces of output between the guest and the caller: with 64 KiB each, 1 MiB.
const RELAY_QUEUE: usize = 16;

/// A guest whose commands are logged.
pub(crate) struct LoggedGuest {
    guest: Arc<dyn GuestApi>,
    log: CommandLog,
    environment: NodeEnvironment,
    relays: TaskTracker,
    closed: CancellationToken,
}

impl LoggedGuest {
    /// Wraps `guest`. The tasks that carry output belong to `relays` and end when `closed` is
    /// cancelled.
    pub fn new(
        guest: Arc<dyn GuestApi>,
        log: CommandLog,
        environment: NodeEnvironment,
        relays: TaskTracker,
        closed: CancellationToken,
    ) -> Self {
        Self { guest, log, environment, relays, closed }
    }
}

#[async_trait]
impl GuestApi for LoggedGuest {
    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, NodeError> {
        if request.pty.is_some() {
            return self.guest.exec(request).await;
        }
        let began_at = self.environment.now();
        let argv = request.argv.clone();
        let session = self.guest.exec(request).await?;
        let entry = self.log.begin(&argv, began_at);
        let (to_caller, output) = mpsc::channel(RELAY_QUEUE);
        let closed = self.closed.clone();
        self.relays.spawn(async move {
            tokio::select! {
                () = relay(&entry, session.output, to_caller) => {}
                () = closed.cancelled() => entry.lost(),
            }
        });
        Ok(ExecSession { control: session.control, output })
    }

    async fn stat(&self, path: &str) -> Result<FileStat, NodeError> {
        self.guest.stat(path).await
    }

    async fn list_dir(&self, path: &str) -> Result<Vec<FileStat>, NodeError> {
        self.guest.list_dir(path).await
    }

    async fn read_file(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<ByteStream, NodeError> {
        self.guest.read_file(path, offset, length).await
    }

    async fn write_file(
        &self,
        path: &str,
        mode: u32,
        how: WriteMode,
        user: User,
        content: ByteStream,
    ) -> Result<u64, NodeError> {
        self.guest.write_file(path, mode, how, user, content).await
    }

    async fn make_dir(&self, path: &str, mode: u32, user: User) -> Result<(), NodeError> {
        self.guest.make_dir(path, mode, user).await
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), NodeError> {
        self.guest.rename(from, to).await
    }

    async fn remove(&self, path: &str) -> Result<(), NodeError> {
        self.guest.remove(path).await
    }

    async fn upload_tree(&self, path: &str, user: User, tar: ByteStream) -> Result<u64, NodeError> {
        self.guest.upload_tree(path, user, tar).await
    }

    async fn download_tree(&self, path: &str) -> Result<ByteStream, NodeError> {
        self.guest.download_tree(path).await
    }

    async fn stats(&self) -> Result<GuestStats, NodeError> {
        self.guest.stats().await
    }

    async fn connect(&self, host: &str, port: u16) -> Result<GuestStream, NodeError> {
        self.guest.connect(host, port).await
    }

    async fn listen(&self, port: u16, user: User) -> Result<Box<dyn GuestListener>, NodeError> {
        self.guest.listen(port, user).await
    }

    async fn listening_ports(&self) -> Result<Vec<ListeningPort>, NodeError> {
        self.guest.listening_ports().await
    }

    fn supervisor(&self) -> Arc<dyn SupervisorApi> {
        self.guest.supervisor()
    }
}

/// Carries output to the caller until the command ends or the caller hangs up; dropping the guest's
/// side hangs up there too.
async fn relay(
    entry: &CommandEntry,
    mut from_guest: mpsc::Receiver<Result<ExecOutput, NodeError>>,
    to_caller: mpsc::Sender<Result<ExecOutput, NodeError>>,
) {
    let mut ended = false;
    loop {
        let item = tokio::select! {
            item = from_guest.recv() => item,
            () = to_caller.closed() => None,
        };
        let Some(item) = item else { break };
        match &item {
            Ok(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)) => entry.output(bytes),
            Ok(ExecOutput::Exit(exit)) => {
                entry.ended(*exit);
                ended = true;
            }
            Err(_) => {}
        }
        if to_caller.send(item).await.is_err() {
            break;
        }
    }
    if !ended {
        entry.lost();
    }
}
