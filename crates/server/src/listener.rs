//! Carries connections to the HTTP front, so many and so long as is reasonable: a client that connects
//! and says nothing, or half a request, must not keep a place for ever.
//!
//! Our own loop where `axum::serve` exists, because that has neither of the two limits and no TLS.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::ConnectInfo, http::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use skerry_gateway::{http::Scheme, tls::ACME_TLS};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// How long accepting pauses when the system has no more descriptors.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A request's head and what is read ahead of its body, per connection.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// An HTTP/2 client is asked for a sign of life this often,
const PING_EVERY: Duration = Duration::from_secs(30);
/// and given up after this long.
const PING_WITHIN: Duration = Duration::from_secs(20);
/// Requests at the same time on one HTTP/2 connection.
const HTTP2_STREAMS: u32 = 128;

/// What clients are allowed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at the same time; further ones wait in the system's queue.
    pub connections: usize,
    /// How long a client may take for the head of a request: the first one after connecting, and
    /// with HTTP/1 each further one after the answer to the one before.
    pub head_within: Duration,
    /// How long an encrypted client may take for the handshake.
    pub handshake_within: Duration,
}

/// How clients speak to a listener.
#[derive(Clone)]
pub enum Transport {
    /// As they are.
    Clear,
    /// By TLS.
    Tls(TlsAcceptor),
}

impl Limits {
    /// Limits for each of so many listeners that leave most of the process's descriptors to the VMs.
    /// Raises the process's own limit on descriptors as far as it may.
    #[must_use]
    pub fn for_this_process(listeners: usize) -> Self {
        let descriptors = match getrlimit(Resource::RLIMIT_NOFILE) {
            Ok((soft, hard)) => match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
                Ok(()) => hard,
                Err(_) => soft,
            },
            // The least any system gives.
            Err(_) => 256,
        };
        let share = usize::try_from(descriptors / 4).unwrap_or(usize::MAX) / listeners.max(1);
        Self {
            connections: share.clamp(64, 4096),
            head_within: Duration::from_secs(60),
            handshake_within: Duration::from_secs(10),
        }
    }
}

/// Serves until `shutdown`; then no connection is taken any more, and those that are there end with
/// their request. Dropping the future cuts them off.
pub async fn serve(
    listener: TcpListener,
    transport: Transport,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            // Only to bury the task: what went wrong on a connection is its client's affair.
            Some(_) = connections.join_next() => {}
            (stream, peer, place) = accept(&listener, &places) => {
                let client = Client { peer, router: router.clone(), limits, shutdown: shutdown.clone() };
                let transport = transport.clone();
                connections.spawn(async move {
                    client.served(stream, transport).await;
                    drop(place);
                });
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// The next connection, when there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, Option<OwnedSemaphorePermit>) {
    // Never closed, so always a place.
    let place = Arc::clone(places).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, place),
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::error!(%error, "connections cannot be accepted");
                sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
}

/// accept(2) reports what went wrong on a connection before it was taken.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Somebody who has connected.
struct Client {
    peer: SocketAddr,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
}

impl Client {
    async fn served(self, stream: TcpStream, transport: Transport) {
        // Small answers must not wait for more bytes to fill a packet.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        match transport {
            Transport::Clear => self.carried(stream, None).await,
            Transport::Tls(acceptor) => {
                let peer = self.peer;
                let shaken = tokio::select! {
                    shaken = timeout(self.limits.handshake_within, acceptor.accept(stream)) => shaken,
                    () = self.shutdown.cancelled() => return,
                };
                match shaken {
                    Ok(Ok(stream)) => self.encrypted(stream).await,
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
                    Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
                }
            }
        }
    }

    async fn encrypted(self, stream: TlsStream<TcpStream>) {
        if stream.get_ref().1.alpn_protocol() == Some(ACME_TLS) {
            // The handshake was all they wanted to see.
            return;
        }
        self.carried(stream, Some(Scheme::Https)).await;
    }

    /// Answers requests. `scheme` is the one that is known for certain: before a connection in the
    /// clear there may be a proxy.
    async fn carried(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        scheme: Option<Scheme>,
    ) {
        let Self { peer, router, limits, shutdown } = self;
        let heard = Arc::new(AtomicBool::new(false));
        let service = TowerToHyperService::new(router.map_request({
            let heard = Arc::clone(&heard);
            move |mut request: Request<Incoming>| {
                heard.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(ConnectInfo(peer));
                if let Some(scheme) = scheme {
                    request.extensions_mut().insert(scheme);
                }
                request
            }
        }));
        let builder = builder(limits);
        let mut connection =
            pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        // Which version it speaks is decided before either version's own limits hold.
        let mut silent = pin!(async {
            sleep(limits.head_within).await;
            if heard.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        });
        let mut told = false;
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a client's connection broke");
                    }
                    return;
                }
                () = &mut silent => return,
                () = shutdown.cancelled(), if !told => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Both versions of HTTP, within these limits.
fn builder(limits: Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_within)
        .max_buf_size(READ_AHEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WITHIN)
        .max_concurrent_streams(HTTP2_STREAMS)
        // WebSockets over HTTP/2.
        .enable_connect_protocol();
    builder
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::JoinHandle,
        time::timeout,
    };

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    const GENEROUS: Duration = Duration::from_secs(20);

    fn limits(connections: usize) -> Limits {
        Limits { connections, head_within: GENEROUS, handshake_within: GENEROUS }
    }

    async fn front(limits: Limits) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(async || "hello"));
        let shutdown = CancellationToken::new();
        let serving =
            tokio::spawn(serve(listener, Transport::Clear, router, limits, shutdown.clone()));
        (address, shutdown, serving)
    }

    /// Everything until the server closes.
    async fn rest(client: &mut TcpStream) -> String {
        let mut text = Vec::new();
        // A connection cut off with bytes of ours unread is reset, which is an end as well.
        let _ = timeout(GENEROUS, client.read_to_end(&mut text)).await.expect("closed in time");
        String::from_utf8_lossy(&text).into_owned()
    }

    async fn answer(client: &mut TcpStream) {
        client.write_all(REQUEST).await.unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"hello") {
            let count = timeout(GENEROUS, client.read_buf(&mut text)).await.unwrap().unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&text));
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_finish_a_request_is_cut_off() {
        let limits = Limits { head_within: Duration::from_millis(100), ..limits(10) };
        let (address, ..) = front(limits).await;
        let halves: [&[u8]; 4] = [
            b"",
            b"GET / HTTP/1.1\r\nHost: x\r\n",
            b"PRI * HT",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ];
        for half in halves {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(half).await.unwrap();
            let text = rest(&mut client).await;
            assert!(!text.contains("hello"), "{text}");
        }
        let mut idle = TcpStream::connect(address).await.unwrap();
        answer(&mut idle).await;
        assert_eq!(rest(&mut idle).await, "", "idle after an answer");
    }

    #[tokio::test]
    async fn a_client_beyond_the_limit_is_served_when_another_has_left() {
        let (address, ..) = front(limits(1)).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        answer(&mut first).await;
        let mut second = TcpStream::connect(address).await.unwrap();
        second.write_all(REQUEST).await.unwrap();
        let early = timeout(Duration::from_millis(100), second.read_u8()).await;
        assert!(early.is_err(), "served beside the first");
        drop(first);
        assert_eq!(timeout(GENEROUS, second.read_u8()).await.unwrap().unwrap(), b'H');
    }

    #[tokio::test]
    async fn at_the_end_idle_clients_are_let_go_and_no_new_ones_are_taken() {
        let (address, shutdown, serving) = front(limits(10)).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        answer(&mut client).await;
        shutdown.cancel();
        timeout(GENEROUS, serving).await.unwrap().unwrap();
        assert_eq!(rest(&mut client).await, "");
        assert!(TcpStream::connect(address).await.is_err());
    }
}
