//! The handle of one running QEMU.

use std::{
    fs::File,
    io,
    net::Shutdown,
    path::Path,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use skerry_model::VolumeSlot;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::{Mutex, watch},
};

use super::{
    Driver,
    files::Sockets,
    process::{Facts, Process},
    qmp::QmpClient,
    save::Save,
    sealed_memory::SealedMemory,
};
use crate::{Channel, DiskSpec, Exit, SaveProgress, SavedMemory, Vm, VmmError, VmmRecord};

/// SIGKILL ends a process at once, except while it waits in the kernel for a device.
pub(super) const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// A local socket answers a connect at once or not at all.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// What all handles of one VM share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) record: VmmRecord,
    pub(super) process: Arc<Process>,
    pub(super) facts: Arc<Facts>,
    pub(super) exit: watch::Receiver<Option<Exit>>,
    /// Set once the control socket has answered.
    pub(super) qmp: OnceLock<QmpClient>,
    /// A second hold on the open guest connection, to end it when a newer one comes.
    guest: Mutex<Option<std::os::unix::net::UnixStream>>,
    /// What the machine does, as far as we have told it.
    pub(super) cpus: watch::Sender<Cpus>,
    /// The last save of this life.
    pub(super) save: Mutex<Option<Save>>,
    /// The template that it is a clone of, if it lies in our memory.
    template: OnceLock<Arc<SealedMemory>>,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cpus {
    /// It waits for a saved state.
    Parked,
    /// Its guest runs.
    Running,
    /// Its guest stands still.
    Stopped,
    /// Its guest stands still for ever: its memory belongs to a saved state.
    GivenAway,
}

impl Shared {
    pub(super) fn new(
        record: VmmRecord,
        process: Arc<Process>,
        facts: Arc<Facts>,
        exit: watch::Receiver<Option<Exit>>,
    ) -> Self {
        Self {
            record,
            process,
            facts,
            exit,
            qmp: OnceLock::new(),
            guest: Mutex::new(None),
            cpus: watch::Sender::new(Cpus::Running),
            save: Mutex::new(None),
            template: OnceLock::new(),
        }
    }

    /// Keeps the template's memory for the next clone as long as this one lives.
    pub(super) fn use_template(&self, template: Arc<SealedMemory>) {
        // There is one for each clone.
        let _ = self.template.set(template);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    pub(super) async fn wait_exit(&self) -> Exit {
        let mut exit = self.exit.clone();
        let exit = exit.wait_for(Option::is_some).await;
        // The watching task is gone only when the driver was closed under us.
        exit.ok().and_then(|exit| exit.clone()).unwrap_or(Exit::Unknown)
    }

    pub(super) async fn kill(&self) -> Result<(), VmmError> {
        if self.has_ended() {
            return Ok(());
        }
        self.facts.request_kill();
        self.process
            .kill()
            .map_err(|source| VmmError::Io { context: "kill the VMM".into(), source })?;
        tokio::time::timeout(KILL_DEADLINE, self.wait_exit())
            .await
            .map_err(|_| VmmError::Timeout("killing the VMM"))?;
        Ok(())
    }

    async fn connect_guest(&self) -> Result<GuestChannel, VmmError> {
        let mut open = self.guest.lock().await;
        if let Some(older) = open.take() {
            // QEMU serves one connection at a time: the newer would wait for ever behind the older.
            let _ = older.shutdown(Shutdown::Both);
        }
        let path = Sockets::in_dir(&self.record.run_dir).agent;
        let stream = match connect(&path, "connect to the guest channel").await {
            Ok(stream) => stream,
            Err(error) => return Err(self.gone_or(error).await),
        };
        let context = |source| VmmError::Io { context: "set up the guest channel".into(), source };
        let std_stream = stream.into_std().map_err(context)?;
        *open = Some(std_stream.try_clone().map_err(context)?);
        Ok(GuestChannel(UnixStream::from_std(std_stream).map_err(context)?))
    }

    /// A socket that fails because its process is ending means that the VM is gone. Only a broken
    /// connection is worth the wait for the process's end.
    pub(super) async fn gone_or(&self, error: VmmError) -> VmmError {
        let VmmError::Io { .. } = error else { return error };
        match tokio::time::timeout(Duration::from_secs(1), self.wait_exit()).await {
            Ok(_) => VmmError::Gone,
            Err(_) => error,
        }
    }
}

pub(super) async fn connect(path: &Path, context: &'static str) -> Result<UnixStream, VmmError> {
    tokio::time::timeout(CONNECT_DEADLINE, UnixStream::connect(path))
        .await
        .map_err(|_| VmmError::Timeout(context))?
        .map_err(|source| VmmError::Io { context: context.into(), source })
}

/// One VM under QEMU.
#[derive(Debug)]
pub(super) struct QemuVm {
    pub(super) shared: Arc<Shared>,
    /// The tasks that watch the VM live as long as any handle.
    pub(super) driver: Arc<Driver>,
}

#[async_trait]
impl Vm for QemuVm {
    fn record(&self) -> &VmmRecord {
        &self.shared.record
    }

    async fn connect_guest(&self) -> Result<Box<dyn Channel>, VmmError> {
        if self.shared.has_ended() {
            return Err(VmmError::Gone);
        }
        Ok(Box::new(self.shared.connect_guest().await?))
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.shared.kill().await
    }

    async fn wait_exit(&self) -> Exit {
        self.shared.wait_exit().await
    }

    async fn pause(&self, within: Duration) -> Result<(), VmmError> {
        self.shared.pause(within).await
    }

    async fn resume(&self, within: Duration) -> Result<(), VmmError> {
        self.shared.resume(within).await
    }

    async fn load(&self, within: Duration) -> Result<(), VmmError> {
        self.shared.load(within).await
    }

    async fn begin_save(&self, state: File, memory: SavedMemory) -> Result<(), VmmError> {
        self.shared.begin_save(&self.driver, state, memory).await
    }

    async fn wait_save(&self, progress: SaveProgress, within: Duration) -> Result<(), VmmError> {
        self.shared.wait_save(progress, within).await
    }

    async fn cancel_save(&self, within: Duration) -> Result<(), VmmError> {
        self.shared.cancel_save(within).await
    }

    async fn push_overlay(&self, overlay: &Path, within: Duration) -> Result<(), VmmError> {
        self.shared.push_overlay(overlay, within).await
    }

    async fn flatten_disk(&self, within: Duration) -> Result<(), VmmError> {
        self.shared.flatten_disk(within).await
    }

    async fn grow_disk(
        &self,
        size_bytes: u64,
        most_file_bytes: u64,
        within: Duration,
    ) -> Result<(), VmmError> {
        self.shared.grow_disk(size_bytes, most_file_bytes, within).await
    }

    async fn grow_volume(
        &self,
        slot: VolumeSlot,
        size_bytes: u64,
        most_file_bytes: u64,
        within: Duration,
    ) -> Result<(), VmmError> {
        self.shared.grow_volume(slot, size_bytes, most_file_bytes, within).await
    }

    async fn attach_volume(
        &self,
        slot: VolumeSlot,
        disk: &DiskSpec,
        most_file_bytes: u64,
        within: Duration,
    ) -> Result<(), VmmError> {
        self.shared.attach_volume(slot, disk, most_file_bytes, within).await
    }

    async fn push_volume_overlay(
        &self,
        slot: VolumeSlot,
        overlay: &Path,
        within: Duration,
    ) -> Result<(), VmmError> {
        self.shared.push_volume_overlay(slot, overlay, within).await
    }

    async fn flatten_volume(&self, slot: VolumeSlot, within: Duration) -> Result<(), VmmError> {
        self.shared.flatten_volume(slot, within).await
    }

    async fn detach_volume(&self, slot: VolumeSlot, within: Duration) -> Result<(), VmmError> {
        self.shared.detach_volume(slot, within).await
    }
}

/// The agent's byte stream. [`Shared`] keeps a duplicate of the descriptor, so closing this one
/// alone would not end the connection.
#[derive(Debug)]
struct GuestChannel(UnixStream);

impl Drop for GuestChannel {
    fn drop(&mut self) {
        // Already disconnected is fine.
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&self.0),
            nix::sys::socket::Shutdown::Both,
        );
    }
}

impl AsyncRead for GuestChannel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for GuestChannel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
