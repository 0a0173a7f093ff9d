//! The inside of a workspace as tenants get it: every use is noted, and what is open counts as use.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use futures::StreamExt as _;
use skerry_internal_api::{
    ByteStream, ExecOutput, ExecRequest, ExecSession, FileStat, GuestApi, GuestListener,
    GuestStats, GuestStream, GuestVisitor, ListeningPort, NodeError, SupervisorApi, User,
    WriteMode,
};
use skerry_model::{EnvVar, WorkspaceId};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};

use super::Session;
use crate::control::Inner;

/// Pieces of output that wait for the caller, beyond those that wait on the guest's side.
const WAITING_PIECES: usize = 4;

/// A guest whose use is noted.
pub(crate) struct ActiveGuest {
    guest: Arc<dyn GuestApi>,
    inner: Arc<Inner>,
    id: WorkspaceId,
    /// What its commands find in their environment that a VM which runs for long may not know of.
    env: Vec<EnvVar>,
}

impl ActiveGuest {
    pub(crate) fn new(
        guest: Arc<dyn GuestApi>,
        inner: Arc<Inner>,
        id: WorkspaceId,
        env: Vec<EnvVar>,
    ) -> Self {
        Self { guest, inner, id, env }
    }

    fn session(&self) -> Session {
        Session::open(&self.inner, self.id)
    }

    /// The stream counts as use until it is dropped.
    fn held(&self, stream: ByteStream) -> ByteStream {
        let session = self.session();
        stream
            .map(move |piece| {
                let _open = &session;
                piece
            })
            .boxed()
    }
}

/// A connection that counts as use until it is dropped.
struct HeldConnection {
    stream: GuestStream,
    _open: Session,
}

impl AsyncRead for HeldConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for HeldConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A port that counts as use until it is closed, as does each connection to it.
struct HeldListener {
    listener: Box<dyn GuestListener>,
    inner: Arc<Inner>,
    id: WorkspaceId,
    _open: Session,
}

#[async_trait]
impl GuestListener for HeldListener {
    fn port(&self) -> u16 {
        self.listener.port()
    }

    async fn accept(&mut self) -> Result<GuestVisitor, NodeError> {
        let GuestVisitor { stream, peer } = self.listener.accept().await?;
        let open = Session::open(&self.inner, self.id);
        Ok(GuestVisitor { stream: Box::new(HeldConnection { stream, _open: open }), peer })
    }
}

/// Carries output to the caller until the command ends or either side hangs up.
async fn relay(
    mut from_guest: mpsc::Receiver<Result<ExecOutput, NodeError>>,
    to_caller: &mpsc::Sender<Result<ExecOutput, NodeError>>,
) {
    loop {
        let item = tokio::select! {
            item = from_guest.recv() => item,
            () = to_caller.closed() => None,
        };
        let Some(item) = item else { return };
        if to_caller.send(item).await.is_err() {
            return;
        }
    }
}

#[async_trait]
impl GuestApi for ActiveGuest {
    async fn exec(&self, mut request: ExecRequest) -> Result<ExecSession, NodeError> {
        for variable in &self.env {
            let value = || variable.value.clone();
            request.env.entry(variable.key.clone()).or_insert_with(value);
        }
        let session = self.session();
        let ExecSession { control, output: from_guest } = self.guest.exec(request).await?;
        let (to_caller, output) = mpsc::channel(WAITING_PIECES);
        let ending = self.inner.ending.clone();
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = relay(from_guest, &to_caller) => {}
                () = ending.cancelled() => {}
            }
            // A caller that sees the end of the output finds the session closed.
            drop(session);
        });
        Ok(ExecSession { control, output })
    }

    async fn stat(&self, path: &str) -> Result<FileStat, NodeError> {
        let _session = self.session();
        self.guest.stat(path).await
    }

    async fn list_dir(&self, path: &str) -> Result<Vec<FileStat>, NodeError> {
        let _session = self.session();
        self.guest.list_dir(path).await
    }

    async fn read_file(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<ByteStream, NodeError> {
        Ok(self.held(self.guest.read_file(path, offset, length).await?))
    }

    async fn write_file(
        &self,
        path: &str,
        mode: u32,
        how: WriteMode,
        user: User,
        content: ByteStream,
    ) -> Result<u64, NodeError> {
        let _session = self.session();
        self.guest.write_file(path, mode, how, user, content).await
    }

    async fn make_dir(&self, path: &str, mode: u32, user: User) -> Result<(), NodeError> {
        let _session = self.session();
        self.guest.make_dir(path, mode, user).await
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), NodeError> {
        let _session = self.session();
        self.guest.rename(from, to).await
    }

    async fn remove(&self, path: &str) -> Result<(), NodeError> {
        let _session = self.session();
        self.guest.remove(path).await
    }

    async fn upload_tree(&self, path: &str, user: User, tar: ByteStream) -> Result<u64, NodeError> {
        let _session = self.session();
        self.guest.upload_tree(path, user, tar).await
    }

    async fn download_tree(&self, path: &str) -> Result<ByteStream, NodeError> {
        Ok(self.held(self.guest.download_tree(path).await?))
    }

    async fn stats(&self) -> Result<GuestStats, NodeError> {
        // Looking is no use.
        self.guest.stats().await
    }

    async fn connect(&self, host: &str, port: u16) -> Result<GuestStream, NodeError> {
        let session = self.session();
        let stream = self.guest.connect(host, port).await?;
        Ok(Box::new(HeldConnection { stream, _open: session }))
    }

    async fn listen(&self, port: u16, user: User) -> Result<Box<dyn GuestListener>, NodeError> {
        let open = self.session();
        let listener = self.guest.listen(port, user).await?;
        let inner = Arc::clone(&self.inner);
        Ok(Box::new(HeldListener { listener, inner, id: self.id, _open: open }))
    }

    async fn listening_ports(&self) -> Result<Vec<ListeningPort>, NodeError> {
        self.guest.listening_ports().await
    }

    fn supervisor(&self) -> Arc<dyn SupervisorApi> {
        self.guest.supervisor()
    }
}
