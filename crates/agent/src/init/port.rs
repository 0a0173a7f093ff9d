//! The virtio-serial port the host is behind.
//!
//! The port's `poll` reports a hang-up for as long as the host is away and takes it back when the
//! host returns. A reactor that treats a hang-up as final, like tokio's, would spin on it, so the
//! port is watched through epoll instances of its own (edge-triggered: each change once), and only
//! those are given to the reactor: they never hang up themselves.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use skerry_agent_protocol::PORT_NAME;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    time::timeout,
};

use super::disk::Uevents;

/// The host's coming is announced by an event; looking again once a while guards against one lost.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Waits for the port's device file, which the kernel names by number.
pub(super) fn find(uevents: &Uevents, within: Duration) -> io::Result<PathBuf> {
    uevents.wait_for(within, by_name).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("there is no serial port {PORT_NAME}"))
    })
}

fn by_name() -> Option<PathBuf> {
    fs::read_dir("/sys/class/virtio-ports").ok()?.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        let device = PathBuf::from("/dev").join(port.file_name());
        (name.trim() == PORT_NAME && device.exists()).then_some(device)
    })
}

/// The open port. The kernel lets it be open once only, so connections share it.
pub(super) struct VirtioPort {
    file: Arc<File>,
}

impl VirtioPort {
    pub(super) fn open(device: &PathBuf) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(device)?;
        Ok(Self { file: Arc::new(file) })
    }

    /// Completes when the host is there.
    pub(super) async fn wait_for_host(&self) -> io::Result<()> {
        let changes = Watch::new(&self.file, EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT)?;
        loop {
            let mut port = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            poll(&mut port, PollTimeout::ZERO)?;
            let seen = port[0].revents().unwrap_or(PollFlags::empty());
            // Without a host a read does not wait either, so the port claims to be readable then too:
            // only the hang-up tells. Bytes that come before the news of the host wait for it.
            if !seen.contains(PollFlags::POLLHUP) {
                return Ok(());
            }
            if let Ok(changed) = timeout(LOOK_AGAIN, changes.changed()).await {
                changed?;
            }
        }
    }

    /// A stream that ends when the host goes away.
    pub(super) fn connect(&self) -> io::Result<Connection> {
        Ok(Connection {
            file: Arc::clone(&self.file),
            readable: Watch::new(&self.file, EpollFlags::EPOLLIN)?,
            writable: Watch::new(&self.file, EpollFlags::EPOLLOUT)?,
            hung_up: false,
        })
    }
}

/// Wakes on changes of the port.
struct Watch(AsyncFd<EpollFd>);

/// `Epoll` with the one trait the reactor needs.
struct EpollFd(Epoll);

impl std::os::fd::AsRawFd for EpollFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.0.as_raw_fd()
    }
}

impl Watch {
    fn new(file: &File, changes: EpollFlags) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(file, EpollEvent::new(changes | EpollFlags::EPOLLET, 0))?;
        // SAFETY: an `Epoll` gives the same open descriptor for as long as it lives.
        let watched =
            unsafe { AsyncFd::register_with_interest(EpollFd(epoll), Interest::READABLE) }?;
        Ok(Self(watched))
    }

    /// Completes when the port has changed since the last time.
    fn poll_changed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut ready = ready!(self.0.poll_read_ready(cx))?;
        self.take_changes();
        // Whatever happens from here on makes the epoll readable anew and is seen by the reactor.
        ready.clear_ready();
        Poll::Ready(Ok(()))
    }

    async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        self.take_changes();
        ready.clear_ready();
        Ok(())
    }

    fn take_changes(&self) {
        let mut events = [EpollEvent::empty(); 2];
        // What changed is found out by reading and writing.
        let _ = self.0.get_ref().0.wait(&mut events, EpollTimeout::ZERO);
    }
}

/// One connection of the host, from its coming to its going.
pub(super) struct Connection {
    file: Arc<File>,
    readable: Watch,
    writable: Watch,
    hung_up: bool,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match (&*this.file).read(buffer.initialize_unfilled()) {
                Ok(length) => {
                    // No bytes: the host is away.
                    this.hung_up |= length == 0;
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(this.readable.poll_changed(cx))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            if this.hung_up {
                // What was meant for the host that left must not reach the next one.
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            match (&*this.file).write(bytes) {
                Ok(length) => return Poll::Ready(Ok(length)),
                // Also for a moment after the host came: its bytes may arrive before the news.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(this.writable.poll_changed(cx))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
