//! Connections that a policy permits only by name, at the ports where a client says whom it means:
//! HTTP (`Host`) and TLS (server name indication). Many names share an address, so an address alone
//! does not tell.
//!
//! The client's own idea of the address does not count: the name that it gives is looked up again, and
//! the connection goes there. TLS is then passed through unread; HTTP is asked request by request, for
//! a connection may be used for another name later.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header, uri::Authority};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::Acceptor;
use skerry_internal_api::RefusedEgress;
use skerry_model::{HostName, Ipv4Network, NetworkPolicy, OutboundProxy, Transport};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    guards::{Guard, Guards},
    interception::Interceptor,
    names::Names,
    namespace::Namespace,
    outside::{self, Far},
    rules::Terrain,
    tracked,
    uplink::Outer,
};
use crate::error::{blocking, chain};

/// How long a client may take to say whom it means.
pub(super) const SAID_WITHIN: Duration = Duration::from_secs(10);
/// The longest ClientHello: one with post-quantum keys has less than 4 KiB.
const MAX_HELLO_BYTES: usize = 16 * 1024;
/// The port of HTTP without TLS.
const HTTP_PORT: u16 = 80;

/// What inspected connections are made with.
pub(super) struct Inspector {
    pub names: Arc<Names>,
    pub guards: Arc<Guards>,
    /// The hub: what goes out from there is held to what guests themselves are.
    pub hub: Arc<Outer>,
    pub terrain: Terrain,
    /// What connections to hosts of vaults are served with.
    pub interceptor: Interceptor,
    /// Ends all of it.
    pub end: CancellationToken,
    /// Every connection, and every half of one.
    pub tasks: TaskTracker,
}

pub(super) type Body = BoxBody<Bytes, hyper::Error>;

impl Inspector {
    /// Serves one port until the end; connections end then, too, as the tasks that they are.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, port: u16) {
        while let Some((stream, from, guard)) = self.guards.accepted(&listener, &self.end).await {
            let Ok(permit) = Arc::clone(&guard.inspected).try_acquire_owned() else {
                guard.refused(RefusedEgress::Connection(port), None);
                continue;
            };
            let this = Arc::clone(&self);
            self.spawn(async move {
                // How it failed is between the guest and whom it speaks with.
                let _ = this.connection(stream, from, port, guard).await;
                drop(permit);
            });
        }
    }

    /// Does something until the end at the latest.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = work => {}
            }
        });
    }

    async fn connection(
        self: &Arc<Self>,
        stream: TcpStream,
        from: SocketAddrV4,
        port: u16,
        guard: Arc<Guard>,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        match port {
            HTTP_PORT => self.http(stream, guard).await,
            _ => self.tls(stream, from, port, guard).await,
        }
    }

    async fn tls(
        self: &Arc<Self>,
        mut client: TcpStream,
        from: SocketAddrV4,
        port: u16,
        guard: Arc<Guard>,
    ) -> io::Result<()> {
        let direct = self.direct(&guard, from, port).await;
        let mut said = Vec::with_capacity(2048);
        let name = match timeout(SAID_WITHIN, hello(&mut client, &mut said)).await {
            Ok(Ok(name)) => name,
            // It may speak anything with an address that is permitted.
            Ok(Err(_)) | Err(_) if direct.is_some() => None,
            Ok(Err(_)) | Err(_) => {
                guard.refused(RefusedEgress::Connection(port), None);
                return Ok(());
            }
        };
        let is_served = |name: &&HostName| guard.injections().borrow().service_of(name).is_some();
        if let Some(name) = name.as_ref().filter(is_served).cloned() {
            return self.intercept(client, said, name, guard).await;
        }
        let policy = guard.policy();
        let proxy = policy.borrow().proxy.clone();
        if let Some(to) = direct {
            let mut server = outside::dial(&self.hub, proxy.as_ref(), to).await?;
            server.write_all(&said).await?;
            let (mut policy, own) = (policy, self.terrain.own);
            return tokio::select! {
                spliced = copy_bidirectional(&mut client, &mut server) => spliced.map(drop),
                _ = policy.wait_for(|now| now.proxy != proxy || !is_listed(now, own, to)) => Ok(()),
            };
        }
        if !name.as_ref().is_some_and(|name| permits(&policy.borrow(), name, port)) {
            guard.refused(RefusedEgress::Connection(port), name);
            return Ok(());
        }
        let Some(name) = name else { return Ok(()) };
        let mut server = self.connect(&guard, proxy.as_ref(), &name, port).await?;
        server.write_all(&said).await?;
        tokio::select! {
            spliced = copy_bidirectional(&mut client, &mut server) => spliced.map(drop),
            () = taken_back(policy, proxy, &name, port) => Ok(()),
        }
    }

    /// The address that the guest meant, where connections are asked for names that are permitted by it
    /// alone.
    async fn direct(
        &self,
        guard: &Arc<Guard>,
        from: SocketAddrV4,
        port: u16,
    ) -> Option<SocketAddrV4> {
        let policy = Arc::clone(&guard.policy().borrow());
        if !policy.inspects_tls {
            return None;
        }
        let by = SocketAddrV4::new(self.terrain.gateway, port);
        let guard = Arc::clone(guard);
        let looked = move || Namespace::open(guard.namespace())?.enter(|| tracked::meant(by, from));
        let meant = blocking(looked).await;
        let meant = meant.inspect_err(|error| {
            tracing::debug!(error = chain(error), "a guest's connection to nowhere");
        });
        meant.ok().filter(|to| is_listed(&policy, self.terrain.own, *to))
    }

    async fn http(&self, client: TcpStream, guard: Arc<Guard>) -> io::Result<()> {
        let service = service_fn(|request| self.request(request, Arc::clone(&guard)));
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(SAID_WITHIN).preserve_header_case(true);
        // A client may have said all that it wants to and still listen.
        server.half_close(true);
        let served = server.serve_connection(TokioIo::new(client), service).with_upgrades();
        served.await.map_err(io::Error::other)
    }

    /// One request, over a connection of its own: the next may be for another name.
    async fn request(
        &self,
        mut request: Request<Incoming>,
        guard: Arc<Guard>,
    ) -> Result<Response<Body>, hyper::Error> {
        let policy = guard.policy();
        let is_permitted = |name: &HostName| permits(&policy.borrow(), name, HTTP_PORT);
        let name = match host_of(&request) {
            Some(name) if is_permitted(&name) => name,
            name => {
                guard.refused(RefusedEgress::Connection(HTTP_PORT), name);
                return Ok(plain(StatusCode::FORBIDDEN, "forbidden by the workspace's policy\n"));
            }
        };
        let proxy = policy.borrow().proxy.clone();
        let Ok(server) = self.connect(&guard, proxy.as_ref(), &name, HTTP_PORT).await else {
            return Ok(plain(StatusCode::BAD_GATEWAY, "the host cannot be reached\n"));
        };
        let mut client = hyper::client::conn::http1::Builder::new();
        client.preserve_header_case(true);
        let (mut sender, connection) = client.handshake(TokioIo::new(server)).await?;
        let by_client = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
        // Ends when the answer has been read, with the policy, or with what it upgraded to.
        let connection = connection.with_upgrades();
        let watching = policy.clone();
        let (named, by) = (name.clone(), proxy.clone());
        self.spawn(async move {
            tokio::select! {
                _ = connection => {}
                () = taken_back(watching, by, &named, HTTP_PORT) => {}
            }
        });
        to_origin_form(&mut request);
        let mut response = sender.send_request(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(by_client) = by_client
        {
            let by_server = hyper::upgrade::on(&mut response);
            self.spawn(async move {
                let (Ok(client), Ok(server)) = tokio::join!(by_client, by_server) else { return };
                let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server) => {}
                    () = taken_back(policy, proxy, &name, HTTP_PORT) => {}
                }
            });
        }
        Ok(response.map(BodyExt::boxed))
    }

    /// A connection to one of the addresses that the name has now.
    pub(super) async fn connect(
        &self,
        guard: &Guard,
        proxy: Option<&OutboundProxy>,
        name: &HostName,
        port: u16,
    ) -> io::Result<Far> {
        let addresses: Vec<Ipv4Addr> =
            self.names.addresses(name).await.map_err(io::Error::other)?;
        let mut failed = io::Error::from(io::ErrorKind::NotFound);
        // A few, so that a long list does not become a long wait.
        for address in addresses.into_iter().take(4) {
            match outside::dial(&self.hub, proxy, SocketAddrV4::new(address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            }
        }
        if let Some(proxy) = proxy {
            guard.proxy_failed(proxy, &failed);
        }
        Err(failed)
    }
}

/// Completes when a connection to the name is not permitted any more, or not by this way.
async fn taken_back(
    mut policy: watch::Receiver<Arc<NetworkPolicy>>,
    proxy: Option<OutboundProxy>,
    name: &HostName,
    port: u16,
) {
    // That the guard is gone is a change, too.
    let _ = policy.wait_for(|now| now.proxy != proxy || !permits(now, name, port)).await;
}

fn permits(policy: &NetworkPolicy, name: &HostName, port: u16) -> bool {
    policy.permits_by_name(name, Transport::Tcp, port)
        || policy.permits_anywhere(Transport::Tcp, port)
}

/// Whether a policy permits connections by TCP to this address by itself, whatever its name.
fn is_listed(policy: &NetworkPolicy, own: Ipv4Network, to: SocketAddrV4) -> bool {
    policy.reach(own).iter().any(|class| {
        let ports = class.ports.first()..=class.ports.last();
        class.transports.contains(&Transport::Tcp)
            && ports.contains(&to.port())
            && class.addresses.iter().any(|(first, last)| (first..=last).contains(&to.ip()))
    })
}

/// The name in a ClientHello (RFC 6066, RFC 8446). Every byte that was read is in `said`.
async fn hello(client: &mut TcpStream, said: &mut Vec<u8>) -> io::Result<Option<HostName>> {
    let mut acceptor = Acceptor::default();
    loop {
        let begin = said.len();
        if begin >= MAX_HELLO_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if client.read_buf(said).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut new = said.get(begin..).unwrap_or_default();
        while !new.is_empty() {
            acceptor.read_tls(&mut new)?;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_owned);
                    return Ok(name.and_then(|name| HostName::parse(&name).ok()));
                }
                Err(_) => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

/// Whom a request is for (RFC 9112, 3.3): the target's authority if it has one, else `Host`, of which
/// there must be one. A port other than ours, and a name that is none, is nobody.
fn host_of<B>(request: &Request<B>) -> Option<HostName> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let said: Authority = hosts.next()?.to_str().ok()?.parse().ok()?;
    if hosts.next().is_some() || said.as_str().contains('@') {
        return None;
    }
    let target = request.uri().authority();
    let agrees = target.is_none_or(|target| target.as_str().eq_ignore_ascii_case(said.as_str()));
    let ours = said.port().is_none_or(|port| port.as_str() == "80");
    (agrees && ours).then(|| HostName::parse(said.host()).ok())?
}

/// A target as origin servers are asked (RFC 9112, 3.2.1).
pub(super) fn to_origin_form<B>(request: &mut Request<B>) {
    if request.uri().authority().is_some() {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        if let Ok(uri) = path.parse() {
            *request.uri_mut() = uri;
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = plain_text(status, text.to_owned());
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

/// A text as an answer.
pub(super) fn plain_text(status: StatusCode, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(target: &str, hosts: &[&str]) -> Option<String> {
        let mut request = Request::builder().uri(target);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        host_of(&request.body(()).unwrap()).map(|name| name.to_string())
    }

    #[test]
    fn a_request_is_for_the_one_host_that_it_names() {
        assert_eq!(asked("/", &["Example.org"]).as_deref(), Some("example.org"));
        assert_eq!(asked("/", &["example.org:80"]).as_deref(), Some("example.org"));
        assert_eq!(asked("http://example.org/a", &["example.org"]).as_deref(), Some("example.org"));
    }

    #[test]
    fn a_request_that_names_none_or_two_is_for_nobody() {
        assert_eq!(asked("/", &[]), None);
        assert_eq!(asked("/", &["a.example", "b.example"]), None);
        assert_eq!(asked("http://a.example/", &["b.example"]), None);
        for bad in ["", "198.18.0.1", "a.example:8080", "user@a.example", "a.example, b.example"] {
            assert_eq!(asked("/", &[bad]), None, "{bad}");
        }
    }

    #[test]
    fn a_target_is_sent_on_as_origin_servers_are_asked() {
        let mut request = Request::builder().uri("http://example.org/a?b=c").body(()).unwrap();
        to_origin_form(&mut request);
        assert_eq!(request.uri(), "/a?b=c");
    }
}
