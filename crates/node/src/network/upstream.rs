//! The far side of connections that are intercepted: TLS to the host itself, HTTP/1.1 or HTTP/2.

use std::{io, path::Path, pin::Pin, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use skerry_model::HostName;
use tokio::{sync::Mutex, time::timeout};
use tokio_rustls::TlsConnector;

use super::{
    certificates::provider,
    guards::Guard,
    inspector::{Inspector, to_origin_form},
    rules::TLS_PORT,
};
use crate::{Error, error::chain};

/// How long a handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// What is spoken over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// RFC 9112.
    Http1,
    /// RFC 9113.
    Http2,
}

impl Protocol {
    /// Its name in TLS (RFC 7301).
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }

    /// Those of a client's offers that are known here, in its order.
    pub fn offered<'a>(alpn: Option<impl Iterator<Item = &'a [u8]>>) -> Vec<Self> {
        let known =
            |name: &[u8]| [Self::Http1, Self::Http2].into_iter().find(|it| it.alpn() == name);
        alpn.map(|names| names.filter_map(known).collect()).unwrap_or_default()
    }
}

/// By whom hosts are certified.
#[derive(Clone, Debug)]
pub(super) struct Roots(Arc<RootCertStore>);

impl Roots {
    /// The system's, and those in the PEM file `more`. Blocks.
    pub fn load(more: Option<&Path>) -> Result<Self, Error> {
        let mut store = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(system.certs);
        if let Some(file) = more {
            let failed = |error| Error::path("reading", file)(io::Error::other(error));
            let found = CertificateDer::pem_file_iter(file).map_err(failed)?;
            let found = found.collect::<Result<Vec<_>, _>>().map_err(failed)?;
            let (added, _) = store.add_parsable_certificates(found);
            if added == 0 {
                let none = io::Error::new(io::ErrorKind::InvalidData, "it holds no certificate");
                return Err(Error::path("reading", file)(none));
            }
        }
        if store.is_empty() {
            tracing::warn!(errors = ?system.errors,
                "the system has no certificates of authorities: vaults reach no host");
        }
        Ok(Self(Arc::new(store)))
    }

    fn config(&self, protocols: &[Protocol]) -> Result<ClientConfig, rustls::Error> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(Arc::clone(&self.0));
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|one| one.alpn().to_vec()).collect();
        Ok(config)
    }
}

/// Has what a connection of HTTP/2 leaves to others done as a task that has an owner.
#[derive(Clone)]
pub(super) struct Tasks(pub Arc<Inspector>);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, work: F) {
        self.0.spawn(async move {
            let _ = work.await;
        });
    }
}

enum Sender {
    Http1(http1::SendRequest<Incoming>),
    Http2(http2::SendRequest<Incoming>),
}

type Sent = Pin<
    Box<dyn Send + Future<Output = Result<Response<Incoming>, TrySendError<Request<Incoming>>>>>,
>;

/// The host of one connection of a guest.
pub(super) struct Upstream {
    inspector: Arc<Inspector>,
    guard: Arc<Guard>,
    host: HostName,
    connected: Mutex<Connected>,
}

struct Connected {
    protocol: Protocol,
    /// `None`: to be connected.
    sender: Option<Sender>,
}

impl Upstream {
    pub fn new(inspector: Arc<Inspector>, guard: Arc<Guard>, host: HostName) -> Self {
        let connected = Mutex::new(Connected { protocol: Protocol::Http1, sender: None });
        Self { inspector, guard, host, connected }
    }

    /// Connects, and answers which of the offered protocols the host has chosen. One that cannot be reached
    /// is tried again for each request, by the protocol that the client likes best.
    pub async fn agree(&self, offered: &[Protocol]) -> Protocol {
        let offered = if offered.is_empty() { &[Protocol::Http1][..] } else { offered };
        let mut connected = self.connected.lock().await;
        match self.connect(offered).await {
            Ok((protocol, sender)) => *connected = Connected { protocol, sender: Some(sender) },
            Err(_) => connected.protocol = offered.first().copied().unwrap_or(Protocol::Http1),
        }
        connected.protocol
    }

    /// Sends a request. A connection that ended while nobody used it is made anew.
    ///
    /// # Errors
    /// Why there is no answer, in words for whoever asked.
    pub async fn send(&self, mut request: Request<Incoming>) -> Result<Response<Incoming>, String> {
        // The first may find that the connection has just ended.
        for _ in 0..2 {
            match self.begin(request).await?.await {
                Ok(response) => return Ok(response),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(format!("no answer: {}", chain(failed.error()))),
                },
            }
        }
        Err("the connection ends again and again".to_owned())
    }

    async fn begin(&self, mut request: Request<Incoming>) -> Result<Sent, String> {
        let mut connected = self.connected.lock().await;
        let Connected { protocol, sender } = &mut *connected;
        let is_ready = match sender {
            Some(Sender::Http1(sender)) => sender.ready().await.is_ok(),
            Some(Sender::Http2(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        if !is_ready {
            *sender = None;
            let (_, new) = self.connect(&[*protocol]).await?;
            *sender = Some(new);
        }
        match sender {
            Some(Sender::Http1(sender)) => {
                to_origin_form(&mut request);
                Ok(Box::pin(sender.try_send_request(request)))
            }
            Some(Sender::Http2(sender)) => Ok(Box::pin(sender.try_send_request(request))),
            None => Err("no connection".to_owned()),
        }
    }

    async fn connect(&self, offered: &[Protocol]) -> Result<(Protocol, Sender), String> {
        let proxy = self.guard.policy().borrow().proxy.clone();
        let connecting = self.inspector.connect(&self.guard, proxy.as_ref(), &self.host, TLS_PORT);
        let far = connecting.await.map_err(|error| format!("cannot be reached: {error}"))?;
        let name = ServerName::try_from(self.host.as_str().to_owned())
            .map_err(|_| "has a name that no certificate can have".to_owned())?;
        let config = self.inspector.interceptor.roots.config(offered);
        let config = config.map_err(|error| error.to_string())?;
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, far);
        let stream = match timeout(HANDSHAKE_WITHIN, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(format!("is not who it should be, or fails: {error}")),
            Err(_) => return Err("did not finish its handshake in time".to_owned()),
        };
        let chosen = stream.get_ref().1.alpn_protocol();
        let protocol = match chosen {
            Some(name) if name == Protocol::Http2.alpn() => Protocol::Http2,
            Some(_) | None => Protocol::Http1,
        };
        if !offered.contains(&protocol) {
            return Err("speaks another version of HTTP than the client".to_owned());
        }
        let io = TokioIo::new(stream);
        let failed = |error: hyper::Error| format!("does not speak HTTP: {}", chain(&error));
        let sender = match protocol {
            Protocol::Http1 => {
                let mut client = http1::Builder::new();
                client.preserve_header_case(true);
                let (sender, connection) = client.handshake(io).await.map_err(failed)?;
                self.inspector.spawn(async move {
                    let _ = connection.with_upgrades().await;
                });
                Sender::Http1(sender)
            }
            Protocol::Http2 => {
                let mut client = http2::Builder::new(Tasks(Arc::clone(&self.inspector)));
                client.timer(TokioTimer::new());
                let (sender, connection) = client.handshake(io).await.map_err(failed)?;
                self.inspector.spawn(async move {
                    let _ = connection.await;
                });
                Sender::Http2(sender)
            }
        };
        Ok((protocol, sender))
    }
}
