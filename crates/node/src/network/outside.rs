//! Sockets in other namespaces, for the parts of the server that guests speak to and that speak for
//! them; and connections in guests' names, with a proxy and without.

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use hickory_resolver::net::runtime::{
    RuntimeProvider, TokioHandle, TokioTime, iocompat::AsyncIoTokioAsStd,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

use skerry_model::OutboundProxy;

use super::{proxy, uplink::Outer};
use crate::error::blocking;

/// How long a connection may take to come about.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Connects from inside a namespace.
pub(super) async fn connect(from: &Arc<Outer>, to: SocketAddr) -> io::Result<TcpStream> {
    let outer = Arc::clone(from);
    let made = blocking(move || outer.enter(TcpSocket::new_v4)).await;
    let socket = made.map_err(io::Error::other)?;
    timeout(CONNECT_WITHIN, socket.connect(to)).await?
}

/// A connection, however it was made.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection in a guest's name.
pub(super) type Far = Box<dyn Stream>;

/// Connects in a guest's name from inside a namespace: through the proxy that its policy names, or
/// directly where it names none. This is the one place where such connections are made.
pub(super) async fn dial(
    from: &Arc<Outer>,
    through: Option<&OutboundProxy>,
    to: SocketAddrV4,
) -> io::Result<Far> {
    match through {
        None => {
            let stream = connect(from, to.into()).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        Some(through) => proxy::connect(from, through, &proxy::To::Address(to)).await,
    }
}

/// How the resolver makes its sockets.
#[derive(Clone)]
pub(super) struct Provider {
    outer: Arc<Outer>,
    handle: TokioHandle,
}

impl Provider {
    pub fn new(outer: Arc<Outer>) -> Self {
        Self { outer, handle: TokioHandle::default() }
    }
}

type Opening<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

impl RuntimeProvider for Provider {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> TokioHandle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _: Option<SocketAddr>,
        within: Option<Duration>,
    ) -> Opening<Self::Tcp> {
        let outer = Arc::clone(&self.outer);
        Box::pin(async move {
            let connecting = connect(&outer, server);
            let stream = timeout(within.unwrap_or(CONNECT_WITHIN), connecting).await??;
            Ok(AsyncIoTokioAsStd(stream))
        })
    }

    fn bind_udp(&self, local: SocketAddr, _: SocketAddr) -> Opening<Self::Udp> {
        let outer = Arc::clone(&self.outer);
        Box::pin(async move {
            let bound = blocking(move || outer.enter(|| std::net::UdpSocket::bind(local))).await;
            from_std(bound.map_err(io::Error::other)?)
        })
    }
}

/// A socket of the runtime.
pub(super) fn from_std(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// The sockets at which the hub serves guests, not yet of any runtime.
#[derive(Debug)]
pub(super) struct Doors {
    pub names_udp: std::net::UdpSocket,
    pub names_tcp: std::net::TcpListener,
    /// With the ports that they are for.
    pub inspected: Vec<(u16, std::net::TcpListener)>,
    /// What is for a proxy.
    pub proxied: std::net::TcpListener,
}

impl Doors {
    /// In the calling thread's namespace.
    pub fn open(gateway: Ipv4Addr) -> io::Result<Self> {
        let listen = |port| {
            let listener = std::net::TcpListener::bind((gateway, port))?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>(listener)
        };
        let inspected = super::rules::INSPECTED_PORTS.map(|port| Ok((port, listen(port)?)));
        Ok(Self {
            names_udp: std::net::UdpSocket::bind((gateway, super::rules::DNS_PORT))?,
            names_tcp: listen(super::rules::DNS_PORT)?,
            proxied: listen(super::rules::PROXIED_PORT)?,
            inspected: inspected.into_iter().collect::<io::Result<_>>()?,
        })
    }
}
