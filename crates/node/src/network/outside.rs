//! Sockets in other namespaces, for the parts of the server that guests speak to and that speak for
//! them.

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use hickory_resolver::net::runtime::{
    RuntimeProvider, TokioHandle, TokioTime, iocompat::AsyncIoTokioAsStd,
};
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

use super::uplink::Outer;
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
            inspected: inspected.into_iter().collect::<io::Result<_>>()?,
        })
    }
}
