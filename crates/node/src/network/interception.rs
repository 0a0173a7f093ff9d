//! Connections to hosts for which a guest's requests are given something: TLS ends here, under a
//! certificate of the workspace's own authority; what a request is given is put into it; and it goes on
//! over a connection whose certificate is verified as a careful client does.
//!
//! Guest and host speak the same protocol, whichever the host has chosen of what the guest offers, and
//! bodies pass in pieces as they come. What a request is given is looked up for each anew, so that a
//! change holds from the next one on. Whatever prevents a request is said in an answer of its own: a
//! failure to verify the host looks to the guest as it is, and not like a host that is fine.

use std::{io, sync::Arc};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
    uri::{Authority, PathAndQuery},
};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::Acceptor;
use skerry_internal_api::{InjectedRequest, InjectedService, Injection};
use skerry_model::HostName;
use tokio::{
    io::{AsyncReadExt, copy_bidirectional},
    net::TcpStream,
    sync::broadcast,
    time::{Duration, timeout},
};
use tokio_rustls::LazyConfigAcceptor;

use super::{
    certificates,
    guards::Guard,
    inspector::{Body, Inspector, SAID_WITHIN, plain_text},
    upstream::{Protocol, Roots, Tasks, Upstream},
};

/// How long a guest may keep a connection without asking for anything.
const IDLE: Duration = Duration::from_secs(300);

/// What connections are intercepted with.
pub(super) struct Interceptor {
    /// By whom hosts are certified.
    pub roots: Roots,
    /// Who is told of requests.
    pub requests: broadcast::Sender<InjectedRequest>,
}

/// One connection of a guest.
pub(super) struct Intercepted {
    inspector: Arc<Inspector>,
    guard: Arc<Guard>,
    host: HostName,
    upstream: Upstream,
}

impl Inspector {
    /// Serves a connection to a host for which requests are given something, of which `said` was read.
    pub(super) async fn intercept(
        self: &Arc<Self>,
        client: TcpStream,
        said: Vec<u8>,
        host: HostName,
        guard: Arc<Guard>,
    ) -> io::Result<()> {
        let (mut injections, mut policy) = (guard.injections(), guard.policy());
        let proxy = policy.borrow().proxy.clone();
        let named = host.clone();
        let serving = self.serve_intercepted(client, said, host, guard);
        tokio::select! {
            served = serving => served,
            // That the guard is gone is a change, too.
            _ = injections.wait_for(|now| now.service_of(&named).is_none()) => Ok(()),
            _ = policy.wait_for(|now| now.proxy != proxy) => Ok(()),
        }
    }

    async fn serve_intercepted(
        self: &Arc<Self>,
        client: TcpStream,
        said: Vec<u8>,
        host: HostName,
        guard: Arc<Guard>,
    ) -> io::Result<()> {
        let issuer = guard.injections().borrow().issuer.clone();
        let Some(issuer) = issuer else { return Ok(()) };
        let (reading, writing) = client.into_split();
        let whole = tokio::io::join(io::Cursor::new(said).chain(reading), writing);
        let begun = timeout(SAID_WITHIN, LazyConfigAcceptor::new(Acceptor::default(), whole));
        let begun = begun.await??;
        let offered = Protocol::offered(begun.client_hello().alpn());
        let upstream = Upstream::new(Arc::clone(self), Arc::clone(&guard), host.clone());
        let protocol = upstream.agree(&offered).await;
        let config = certificates::server_config(&issuer, &host, &offered, protocol)?;
        let accepted = timeout(SAID_WITHIN, begun.into_stream(Arc::new(config)));
        let stream = TokioIo::new(accepted.await??);
        let inspector = Arc::clone(self);
        let this = Arc::new(Intercepted { inspector, guard, host, upstream });
        let service = service_fn(|request| {
            let this = Arc::clone(&this);
            async move { Ok::<_, hyper::Error>(this.request(request).await) }
        });
        match protocol {
            Protocol::Http1 => {
                let mut server = hyper::server::conn::http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(IDLE);
                server.preserve_header_case(true).half_close(true);
                server.serve_connection(stream, service).with_upgrades().await
            }
            Protocol::Http2 => {
                let tasks = Tasks(Arc::clone(self));
                let mut server = hyper::server::conn::http2::Builder::new(tasks);
                server.timer(TokioTimer::new());
                server.serve_connection(stream, service).await
            }
        }
        .map_err(io::Error::other)
    }
}

/// Why a request is not made.
enum Refused {
    /// It is for somebody else than the connection, or for nobody.
    Misdirected,
    /// It asks for a tunnel, or to be told what was received, which has the credential in it.
    Method,
    /// The host is not served any more.
    NotServed,
    /// A credential that it would be given is not there.
    Missing(String),
    /// What it would be given cannot be put there.
    Unfit,
    /// The host does not answer, or not as the one that it should be.
    Host(String),
}

impl Intercepted {
    async fn request(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let method = request.method().clone();
        let service = self.guard.injections().borrow().service_of(&self.host).cloned();
        let Some(service) = service else { return self.answer(&Refused::NotServed) };
        let response = match self.forward(request, &service).await {
            Ok(response) => response,
            Err(refused) => self.answer(&refused),
        };
        self.note(&method, &service, response.status());
        response
    }

    async fn forward(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        service: &InjectedService,
    ) -> Result<Response<Body>, Refused> {
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err(Refused::Method);
        }
        if !is_for(&request, &self.host) {
            return Err(Refused::Misdirected);
        }
        give(&mut request, &service.injection)?;
        let by_guest = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
        let mut response = self.upstream.send(request).await.map_err(|problem| {
            self.guard.host_failed(&self.host, &problem);
            Refused::Host(problem)
        })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(by_guest) = by_guest
        {
            let by_host = hyper::upgrade::on(&mut response);
            let (mut injections, host) = (self.guard.injections(), self.host.clone());
            self.inspector.spawn(async move {
                let (Ok(guest), Ok(host_side)) = tokio::join!(by_guest, by_host) else { return };
                let (mut guest, mut host_side) = (TokioIo::new(guest), TokioIo::new(host_side));
                tokio::select! {
                    _ = copy_bidirectional(&mut guest, &mut host_side) => {}
                    _ = injections.wait_for(|now| now.service_of(&host).is_none()) => {}
                }
            });
        }
        Ok(response.map(BodyExt::boxed))
    }

    fn answer(&self, refused: &Refused) -> Response<Body> {
        let host = &self.host;
        let (status, text) = match refused {
            Refused::Misdirected => (
                StatusCode::MISDIRECTED_REQUEST,
                format!("this connection is for {host} and port 443 alone"),
            ),
            Refused::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{host} is served by a vault of this workspace: no CONNECT and no TRACE"),
            ),
            Refused::NotServed => (
                StatusCode::BAD_GATEWAY,
                format!("no vault of this workspace serves {host} any more"),
            ),
            Refused::Missing(credential) => (
                StatusCode::BAD_GATEWAY,
                format!("the vault that serves {host} has no credential {credential}"),
            ),
            Refused::Unfit => (
                StatusCode::BAD_GATEWAY,
                format!("the credential for {host} cannot be put into this request"),
            ),
            Refused::Host(problem) => (StatusCode::BAD_GATEWAY, format!("{host}: {problem}")),
        };
        plain_text(status, format!("skerry: {text}\n"))
    }

    fn note(&self, method: &Method, service: &InjectedService, status: StatusCode) {
        let Some(workspace_id) = self.guard.owner() else { return };
        let request = InjectedRequest {
            vault_id: service.vault_id,
            workspace_id,
            host: self.host.to_string(),
            method: method.to_string(),
            status: status.as_u16(),
            credentials: service.credentials.clone(),
        };
        // Nobody may be listening yet.
        let _ = self.inspector.interceptor.requests.send(request);
    }
}

/// Whether a request is for this host at port 443: everything in it that says so has to agree
/// (RFC 9110, 7.2; RFC 9113, 8.3.1).
fn is_for<B>(request: &Request<B>, host: &HostName) -> bool {
    let in_target = request.uri().authority().map(|said| said.as_str().to_owned());
    let in_headers = request.headers().get_all(header::HOST).iter();
    let in_headers = in_headers.map(|said| said.to_str().unwrap_or_default().to_owned());
    let mut said = in_target.into_iter().chain(in_headers).peekable();
    said.peek().is_some()
        && said.all(|text| {
            let Ok(authority) = text.parse::<Authority>() else { return false };
            let port = authority.port().is_none_or(|port| port.as_str() == "443");
            let named = HostName::parse(authority.host()).is_ok_and(|named| named == *host);
            port && named && !text.contains('@')
        })
}

/// Puts into a request what it is to be given.
fn give<B>(request: &mut Request<B>, injection: &Injection) -> Result<(), Refused> {
    match injection {
        Injection::Nothing => Ok(()),
        Injection::Missing { credential } => Err(Refused::Missing(credential.clone())),
        Injection::Headers(headers) => {
            for (name, value) in headers {
                let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Refused::Unfit)?;
                let value = HeaderValue::from_bytes(value.expose().as_bytes());
                let mut value = value.map_err(|_| Refused::Unfit)?;
                value.set_sensitive(true);
                insert(request.headers_mut(), name, value);
            }
            Ok(())
        }
        Injection::Path { placeholder, value } => {
            let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
            let (path, query) = match target.split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (target, None),
            };
            let mut given = path.replace(placeholder, &as_segment(value.expose()));
            if let Some(query) = query {
                given.push('?');
                given.push_str(query);
            }
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = Some(given.parse().map_err(|_| Refused::Unfit)?);
            *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Refused::Unfit)?;
            Ok(())
        }
    }
}

/// In place of every header of this name.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    headers.insert(name, value);
}

/// A text as a part of a path: what cannot stand there is percent-encoded (RFC 3986, 3.3).
fn as_segment(text: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b);
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        match is_plain(byte) {
            true => segment.push(char::from(byte)),
            false => segment.push_str(&format!("%{byte:02X}")),
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use skerry_model::Secret;

    use super::*;

    fn asked(target: &str, hosts: &[&str]) -> bool {
        let mut request = Request::builder().uri(target);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        is_for(&request.body(()).unwrap(), &"api.example".parse().unwrap())
    }

    #[test]
    fn a_request_is_for_the_host_of_its_connection_or_for_nobody() {
        for (target, hosts) in [
            ("/", &["api.example"][..]),
            ("/", &["API.example:443"]),
            ("https://api.example/", &[]),
            ("https://api.example/", &["api.example"]),
        ] {
            assert!(asked(target, hosts), "{target} {hosts:?}");
        }
        for (target, hosts) in [
            ("/", &[][..]),
            ("/", &["other.example"]),
            ("/", &["api.example", "other.example"]),
            ("/", &["api.example:8443"]),
            ("/", &["user@api.example"]),
            ("https://other.example/", &["api.example"]),
            ("https://api.example/", &["other.example"]),
        ] {
            assert!(!asked(target, hosts), "{target} {hosts:?}");
        }
    }

    #[test]
    fn what_a_guest_has_put_in_a_headers_place_is_gone() {
        let request = Request::builder().header("Authorization", "Bearer OPENAI_API_KEY");
        let mut request = request.header("authorization", "Basic x").body(()).unwrap();
        let value = Secret::new("Bearer sk-1");
        let injection = Injection::Headers(vec![("Authorization".to_owned(), value)]);
        assert!(give(&mut request, &injection).is_ok());
        let values: Vec<_> = request.headers().get_all(header::AUTHORIZATION).iter().collect();
        assert!(values == ["Bearer sk-1"] && values[0].is_sensitive());
    }

    #[test]
    fn a_value_takes_a_texts_place_in_the_path_and_nowhere_else() {
        let uri = "/botTOKEN/send?chat=TOKEN";
        let mut request = Request::builder().uri(uri).body(()).unwrap();
        let (placeholder, value) = ("TOKEN".to_owned(), Secret::new("12:a/b c?d"));
        assert!(give(&mut request, &Injection::Path { placeholder, value }).is_ok());
        assert_eq!(request.uri(), "/bot12:a%2Fb%20c%3Fd/send?chat=TOKEN");
    }
}
