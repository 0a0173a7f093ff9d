//! A guest whose requests to one host are given a credential, and that host, which says what it saw.

use std::{
    io,
    net::TcpListener,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Version, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
};
use skerry_internal_api::{
    CertificateIssuer, InjectedRequest, InjectedService, Injection, Injections,
};
use skerry_model::{Destination, EgressRule, NetworkPolicy, Secret, VaultId};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use super::{
    super::{UplinkSettings, certificates::provider},
    ground::{Booted, Ground, Guest, OWNER},
    names::{NamedWorld, client_hello, name},
    world::{API_SITE, OTHER_SITE, SITE, permits},
};

const YEARS: (i32, i32) = (2020, 2060);
const VAULT: VaultId = VaultId::from_u128(7);
/// Longer than anything here takes on a machine that is busy.
const AT_MOST: Duration = Duration::from_secs(120);

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) =
        (date_time_ymd(YEARS.0, 1, 1), date_time_ymd(YEARS.1, 1, 1));
    params
}

/// Somebody who certifies.
struct Authority {
    name: &'static str,
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new(name: &'static str) -> Self {
        let key = KeyPair::generate().unwrap();
        let made = authority_params(name).self_signed(&key).unwrap();
        Self { name, certificate: made.der().clone(), key }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::new(authority_params(self.name), &self.key)
    }

    fn of_workspace(&self) -> CertificateIssuer {
        let key = KeyPair::generate().unwrap();
        let name = "authority of a workspace";
        let made = authority_params(name).signed_by(&key, &self.issuer()).unwrap();
        CertificateIssuer {
            name: name.to_owned(),
            certificate: made.der().to_vec(),
            key: Secret::new(key.serialize_pem()),
            years: YEARS,
        }
    }

    fn server(&self, host: &str, protocols: &[&[u8]]) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let made = params.signed_by(&key, &self.issuer()).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.der().clone()], key.into())
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|one| one.to_vec()).collect();
        config
    }
}

/// A request as the host saw it.
#[derive(Clone, Debug)]
struct Seen {
    version: Version,
    target: String,
    authorization: Vec<String>,
}

/// The host: what it saw, and how it is ended.
struct Host {
    seen: Arc<Mutex<Vec<Seen>>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    fn new(listener: TcpListener, config: ServerConfig) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = oneshot::channel();
        let noted = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                tokio::select! {
                    () = serve(listener, config, noted) => {}
                    _ = ended => {}
                }
            });
        });
        Self { seen, end: Some(end), thread: Some(thread) }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

async fn serve(listener: TcpListener, config: ServerConfig, seen: Arc<Mutex<Vec<Seen>>>) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            // Who does not trust it goes.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

/// Sends back every piece of the body as it comes; after an upgrade, what is said then.
async fn answer(
    mut request: Request<Incoming>,
    seen: Arc<Mutex<Vec<Seen>>>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, hyper::Error> {
    let authorization = request.headers().get_all(header::AUTHORIZATION).iter();
    let target = request.uri().path_and_query().map(ToString::to_string);
    seen.lock().unwrap().push(Seen {
        version: request.version(),
        target: target.unwrap_or_default(),
        authorization: authorization.map(|one| one.to_str().unwrap().to_owned()).collect(),
    });
    if request.headers().contains_key(header::UPGRADE) {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let (mut from, mut into) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut from, &mut into).await;
        });
        let switching = Response::builder().status(101).header(header::UPGRADE, "echo");
        let switching = switching.header(header::CONNECTION, "upgrade");
        let nothing = Full::default().map_err(|never| match never {});
        return Ok(switching.body(nothing.boxed()).unwrap());
    }
    Ok(Response::new(request.into_body().boxed()))
}

/// The internet with the host in it, and who certifies whom.
struct Scene {
    host: Host,
    world: NamedWorld,
    authority: Authority,
    /// Of the world's hosts.
    trusted: PathBuf,
    _dir: TempDir,
}

impl Scene {
    fn new(protocols: &[&[u8]]) -> Self {
        Self::certified_by(&Authority::new("the world's"), None, protocols)
    }

    fn certified_by(theirs: &Authority, ours: Option<&Authority>, protocols: &[&[u8]]) -> Self {
        let world = NamedWorld::new();
        let listener = world.world.listen(API_SITE, 443);
        let host = Host::new(listener, theirs.server("api.test", protocols));
        let dir = tempfile::tempdir().unwrap();
        let trusted = dir.path().join("trusted.pem");
        let root = ours.unwrap_or(theirs);
        std::fs::write(&trusted, pem(&root.certificate)).unwrap();
        Self { host, world, authority: Authority::new("of the account"), trusted, _dir: dir }
    }

    fn ground(&self) -> Ground {
        let trusted_certificates = Some(self.trusted.clone());
        Ground::serving(UplinkSettings { trusted_certificates, ..self.world.uplink() })
    }

    fn injections(&self, injection: Injection) -> Injections {
        let service = InjectedService {
            vault_id: VAULT,
            host: "api.test".parse().unwrap(),
            injection,
            credentials: vec!["API_KEY".to_owned()],
        };
        Injections { issuer: Some(self.authority.of_workspace()), services: vec![service] }
    }

    /// A client in the guest: what it offers, and what it trusts.
    fn connector(&self, protocols: &[&[u8]]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|one| one.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

fn bearer(value: &str) -> Injection {
    Injection::Headers(vec![("authorization".to_owned(), Secret::new(format!("Bearer {value}")))])
}

fn inject(ground: &Ground, guest: &Guest<'_>, injections: Injections) {
    ground.network.inject(OWNER, &guest.holding, guest.address(), injections);
}

/// Everything, and connections by TLS are asked whom they are for.
fn everything() -> NetworkPolicy {
    let policy = permits([EgressRule::all(Destination::Anywhere)]);
    NetworkPolicy { inspects_tls: true, ..policy }
}

/// The vault's host and nothing else.
fn the_host_alone() -> NetworkPolicy {
    let policy = permits([EgressRule::tcp(name("api.test"), 443).unwrap()]);
    NetworkPolicy { inspects_tls: true, ..policy }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(AT_MOST, work).await.expect("it takes too long") })
}

type Sending = BoxBody<Bytes, io::Error>;

fn whole(text: &'static str) -> Sending {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed()
}

async fn connected(
    scene: &Scene,
    guest: &Booted<'_>,
    protocols: &[&[u8]],
) -> io::Result<TlsStream<tokio::net::TcpStream>> {
    let stream = guest.connect(API_SITE, 443)?;
    stream.set_nonblocking(true)?;
    let stream = tokio::net::TcpStream::from_std(stream)?;
    let host = ServerName::try_from("api.test").unwrap();
    scene.connector(protocols).connect(host, stream).await
}

async fn by_http1(
    scene: &Scene,
    guest: &Booted<'_>,
) -> hyper::client::conn::http1::SendRequest<Sending> {
    let stream = connected(scene, guest, &[b"http/1.1"]).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn ask(target: &str, host: &str) -> Request<Sending> {
    let request = Request::builder().method("POST").uri(target).header(header::HOST, host);
    request.header(header::AUTHORIZATION, "Bearer API_KEY").body(whole("body")).unwrap()
}

async fn read(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[test]
fn a_request_to_a_vaults_host_is_given_its_credential_and_everything_else_is_untouched() {
    let scene = Scene::new(&[b"http/1.1"]);
    let ground = scene.ground();
    let mut requests = ground.network.injected_requests();
    let guest = ground.guest(&NetworkPolicy::default());
    inject(&ground, &guest, scene.injections(bearer("sk-real")));
    guest.apply(&everything());
    let guest = guest.boot();
    run(async {
        let mut sender = by_http1(&scene, &guest).await;
        let response = sender.send_request(ask("/v1?a=b", "api.test")).await.unwrap();
        assert_eq!(read(response).await, (200, "body".to_owned()));
        let seen = scene.host.seen();
        assert_eq!(seen[0].authorization, ["Bearer sk-real"]);
        assert_eq!(seen[0].target, "/v1?a=b");
        let expected = InjectedRequest {
            vault_id: VAULT,
            workspace_id: OWNER,
            host: "api.test".to_owned(),
            method: "POST".to_owned(),
            status: 200,
            credentials: vec!["API_KEY".to_owned()],
        };
        assert_eq!(requests.recv().await.unwrap(), expected);
        // Another host over the same connection is nobody's.
        let response = sender.send_request(ask("/", "other.test")).await.unwrap();
        assert_eq!(read(response).await.0, 421);
        // Nor is a method that has the host say what it was given.
        let mut trace = ask("/", "api.test");
        *trace.method_mut() = http::Method::TRACE;
        assert_eq!(read(sender.send_request(trace).await.unwrap()).await.0, 405);
        assert_eq!(scene.host.seen().len(), 1);
    });
    // Hosts of no vault, clients that name none, and what is no TLS at all.
    let other = guest.exchange(OTHER_SITE, 443, &client_hello(Some("other.test")));
    assert!(other.starts_with("other"), "{other}");
    let unnamed = guest.exchange(SITE, 443, &client_hello(None));
    assert!(unnamed.starts_with("site"), "{unnamed}");
    let plain = guest.exchange(SITE, 443, b"SSH-2.0-x\r\n");
    assert!(plain.starts_with("site"), "{plain}");
}

#[test]
fn a_vaults_host_is_reached_without_any_other_rule_and_opens_nothing_else() {
    let scene = Scene::new(&[b"http/1.1"]);
    let ground = scene.ground();
    let guest = ground.guest(&NetworkPolicy::default());
    inject(&ground, &guest, scene.injections(bearer("sk-real")));
    guest.apply(&the_host_alone());
    let guest = guest.boot();
    assert_eq!(guest.resolve("api.test").unwrap(), [API_SITE]);
    run(async {
        let mut sender = by_http1(&scene, &guest).await;
        let response = sender.send_request(ask("/", "api.test")).await.unwrap();
        assert_eq!(read(response).await.0, 200);
    });
    for (address, said) in [(OTHER_SITE, Some("other.test")), (SITE, None)] {
        assert_eq!(guest.exchange(address, 443, &client_hello(said)), "", "{said:?}");
    }
    // Names of others in the certificate's place are not served either.
    assert_eq!(guest.exchange(API_SITE, 443, &client_hello(Some("below.api.test"))), "");
}

#[test]
fn over_http_2_bodies_go_both_ways_in_pieces_as_they_come() {
    let scene = Scene::new(&[b"h2", b"http/1.1"]);
    let ground = scene.ground();
    let guest = ground.guest(&NetworkPolicy::default());
    inject(&ground, &guest, scene.injections(bearer("sk-real")));
    guest.apply(&everything());
    let guest = guest.boot();
    run(async {
        let stream = connected(&scene, &guest, &[b"h2", b"http/1.1"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let io = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let (pieces, received) = mpsc::channel::<Result<Frame<Bytes>, io::Error>>(4);
        let body = tokio_stream::wrappers::ReceiverStream::new(received);
        let body: Sending = StreamBody::new(body).boxed();
        let request = Request::builder().method("POST").uri("https://api.test/stream");
        let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
        assert_eq!(response.version(), Version::HTTP_2);
        let mut back = response.into_body();
        for text in ["one", "two", "three"] {
            pieces.send(Ok(Frame::data(Bytes::from_static(text.as_bytes())))).await.unwrap();
            let piece = back.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(piece, text);
        }
        drop(pieces);
        assert!(
            back.frame()
                .await
                .is_none_or(|last| last.unwrap().into_data().is_ok_and(|d| d.is_empty()))
        );
    });
    let seen = scene.host.seen();
    assert_eq!(
        (seen[0].version, seen[0].authorization.as_slice()),
        (Version::HTTP_2, &["Bearer sk-real".to_owned()][..])
    );
}

#[test]
fn a_connection_that_becomes_something_else_goes_on_both_ways() {
    let scene = Scene::new(&[b"http/1.1"]);
    let ground = scene.ground();
    let guest = ground.guest(&NetworkPolicy::default());
    inject(&ground, &guest, scene.injections(bearer("sk-real")));
    guest.apply(&everything());
    let guest = guest.boot();
    run(async {
        let stream = connected(&scene, &guest, &[b"http/1.1"]).await.unwrap();
        let io = TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let request = Request::builder().uri("/socket").header(header::HOST, "api.test");
        let request = request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, "echo");
        let response = sender.send_request(request.body(whole("")).unwrap()).await.unwrap();
        assert_eq!(response.status(), 101);
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        for said in [b"one", b"two"] {
            stream.write_all(said).await.unwrap();
            let mut heard = [0; 3];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, said);
        }
        // It ends with what it was for.
        inject(&ground, &guest.guest, Injections::default());
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
    });
    assert_eq!(scene.host.seen()[0].authorization, ["Bearer sk-real"]);
}

#[test]
fn a_host_that_is_not_who_it_should_be_gets_nothing_and_the_guest_is_told() {
    let (theirs, ours) = (Authority::new("somebody's"), Authority::new("the world's"));
    let scene = Scene::certified_by(&theirs, Some(&ours), &[b"http/1.1"]);
    let ground = scene.ground();
    let mut requests = ground.network.injected_requests();
    let guest = ground.guest(&NetworkPolicy::default());
    inject(&ground, &guest, scene.injections(bearer("sk-real")));
    guest.apply(&everything());
    let guest = guest.boot();
    run(async {
        let mut sender = by_http1(&scene, &guest).await;
        let response = sender.send_request(ask("/", "api.test")).await.unwrap();
        let (status, text) = read(response).await;
        assert_eq!(status, 502);
        assert!(text.contains("api.test") && text.contains("certificate"), "{text}");
        assert_eq!(requests.recv().await.unwrap().status, 502);
    });
    assert!(scene.host.seen().is_empty());
}

#[test]
fn a_credential_that_changes_is_given_from_the_next_request_on_and_one_taken_back_to_none() {
    let scene = Scene::new(&[b"http/1.1"]);
    let ground = scene.ground();
    let guest = ground.guest(&NetworkPolicy::default());
    let first = scene.injections(bearer("sk-1"));
    inject(&ground, &guest, first.clone());
    guest.apply(&everything());
    let guest = guest.boot();
    run(async {
        let mut sender = by_http1(&scene, &guest).await;
        let response = sender.send_request(ask("/", "api.test")).await.unwrap();
        assert_eq!(read(response).await.0, 200);
        let rotated =
            Injections { issuer: first.issuer.clone(), ..scene.injections(bearer("sk-2")) };
        inject(&ground, &guest.guest, rotated);
        let response = sender.send_request(ask("/", "api.test")).await.unwrap();
        assert_eq!(read(response).await.0, 200);
        let missing = Injection::Missing { credential: "API_KEY".to_owned() };
        inject(&ground, &guest.guest, scene.injections(missing));
        let response = sender.send_request(ask("/", "api.test")).await.unwrap();
        let (status, text) = read(response).await;
        assert!(status == 502 && text.contains("API_KEY"), "{status} {text}");
        inject(&ground, &guest.guest, Injections::default());
        // The connection ends with what it was for.
        while sender.ready().await.is_ok() {
            if let Ok(response) = sender.send_request(ask("/", "api.test")).await {
                assert_eq!(read(response).await.0, 502);
            }
        }
    });
    let given: Vec<String> =
        scene.host.seen().into_iter().flat_map(|one| one.authorization).collect();
    assert_eq!(given, ["Bearer sk-1", "Bearer sk-2"]);
}

#[test]
fn a_guest_without_vaults_is_not_looked_into() {
    let scene = Scene::new(&[b"http/1.1"]);
    let ground = scene.ground();
    let policy = permits([EgressRule::tcp(name("api.test"), 443).unwrap()]);
    let guest = ground.guest(&policy).boot();
    let failed = run(connected(&scene, &guest, &[b"http/1.1"])).unwrap_err();
    // It sees the host's own certificate, by somebody whom it does not trust.
    assert!(failed.to_string().contains("UnknownIssuer"), "{failed}");
}
