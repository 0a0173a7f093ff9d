//! Certificates from a real ACME server (pebble) for names that a name server of the test's own leads
//! here: shown to be ours by a request on the one listener or by a handshake on the other.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use axum::Router;
use hickory_resolver::proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, TXT},
    },
};
use rcgen::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use skerry_control::internal_api::{
    EdgeApi as _, EdgeError, GuestApi, OpenPreview, PreviewAddress, PreviewCredential,
    PreviewRefusal, RouteApi, RouteCredential, RouteError,
};
use skerry_gateway::{
    domains::{Acme, AcmeChallenge, AcmeSettings, Edge, ServedNames, Texts},
    http::{self, PreviewHosts, Previews, Scheme},
    tls::{self, Certificates},
};
use skerry_model::{HostName, Secret, WorkspaceId};
use skerry_server::{
    config::Settings,
    listener::{Limits, Transport, serve},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::world::{Server, WORKSPACES, World, until};

pub(crate) const DOMAINS: &str = "/skerry/v1/domains";
pub(crate) const BOUND: Duration = Duration::from_secs(240);
const LIMITS: Limits = Limits {
    connections: 64,
    head_within: Duration::from_secs(60),
    handshake_within: Duration::from_secs(60),
};
/// The only name there is.
const NAME: &str = "www.brought.test";
const TEXT: &str = "the text of the name";

/// What the TXT records say: by name with the root's dot.
pub(crate) type Records = Arc<Mutex<BTreeMap<String, String>>>;

fn name() -> HostName {
    HostName::parse(NAME).unwrap()
}

/// A name server for which `NAME` is here.
fn name_server() -> SocketAddr {
    let texts = BTreeMap::from([(format!("{NAME}."), TEXT.to_owned())]);
    name_server_of(Arc::new(Mutex::new(texts)))
}

/// A name server: `NAME` is here, names with a text have it, everything else is nowhere. Answers as long
/// as the process lives.
pub(crate) fn name_server_of(texts: Records) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((count, peer)) = socket.recv_from(&mut buffer) {
            let Ok(question) = Message::from_vec(&buffer[..count]) else { continue };
            let bytes = answer(&question, &texts.lock().unwrap()).to_vec().unwrap();
            // Whoever has asked may have gone.
            let _ = socket.send_to(&bytes, peer);
        }
    });
    address
}

fn answer(question: &Message, texts: &BTreeMap<String, String>) -> Message {
    let mut answer = question.clone();
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.recursion_available = true;
    answer.edns = None;
    answer.additionals.clear();
    let query = question.queries[0].clone();
    let asked = query.name().to_ascii().to_ascii_lowercase();
    let (is_here, text) = (asked == format!("{NAME}."), texts.get(&asked));
    if !is_here && text.is_none() {
        answer.metadata.response_code = ResponseCode::NXDomain;
        return answer;
    }
    let data = match query.query_type() {
        RecordType::A if is_here => Some(RData::A(A(Ipv4Addr::LOCALHOST))),
        RecordType::TXT => text.map(|text| RData::TXT(TXT::new(vec![text.clone()]))),
        _ => None,
    };
    if let Some(data) = data {
        answer.add_answer(Record::from_rdata(query.name().clone(), 0, data));
    }
    answer
}

/// Nothing is published here.
struct Nowhere;

#[async_trait]
impl RouteApi for Nowhere {
    async fn find(&self, _: &RouteCredential, _: &str) -> Result<WorkspaceId, RouteError> {
        Err(RouteError::NotFound)
    }

    async fn log_in(
        &self,
        _: &str,
        _: &str,
        _: &Secret,
    ) -> Result<(RouteCredential, WorkspaceId), RouteError> {
        Err(RouteError::NotFound)
    }

    async fn enter(
        &self,
        _: &RouteCredential,
        _: WorkspaceId,
    ) -> Result<Arc<dyn GuestApi>, RouteError> {
        Err(RouteError::NotFound)
    }

    async fn open_preview(
        &self,
        _: &PreviewAddress,
        _: &[PreviewCredential],
    ) -> Result<OpenPreview, PreviewRefusal> {
        Err(PreviewRefusal::NotFound)
    }
}

/// Both listeners, and an ACME server that looks at them.
struct Ground {
    encrypted: SocketAddr,
    edge: Edge,
    pebble: Pebble,
    shutdown: CancellationToken,
    serving: JoinSet<()>,
}

impl Ground {
    async fn open(challenge: AcmeChallenge) -> Self {
        let (names, certificates) = (Arc::<ServedNames>::default(), Arc::<Certificates>::default());
        let listen = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (clear, encrypted) = (listen().await, listen().await);
        let (clear_at, encrypted_at) =
            (clear.local_addr().unwrap(), encrypted.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let hosts = PreviewHosts {
            domains: vec!["localhost".to_owned()],
            own: Vec::new(),
            brought: Arc::clone(&names),
            scheme: Scheme::Http,
        };
        let random = Arc::new(|bytes: &mut [u8]| bytes.fill(7));
        let previews = Previews::new(
            Arc::new(Nowhere),
            hosts,
            http::Limits::default(),
            random,
            shutdown.clone(),
        );
        let router = previews.beside(Router::new().fallback(async || "the front"));
        let config = Arc::new(tls::server_config(&certificates).unwrap());
        let mut serving = JoinSet::new();
        for (listener, transport) in
            [(clear, Transport::Clear), (encrypted, Transport::Tls(TlsAcceptor::from(config)))]
        {
            serving.spawn(serve(listener, transport, router.clone(), LIMITS, shutdown.clone()));
        }
        let servers = name_server();
        let pebble = Pebble::start(clear_at.port(), encrypted_at.port(), servers).await;
        let settings = AcmeSettings {
            directory: pebble.directory.clone(),
            contact: Some("ops@brought.test".to_owned()),
            root: Some(pebble.root()),
            challenge,
            update_networks: Vec::new(),
        };
        let texts = Arc::new(Texts::new(Some(servers)).unwrap());
        let (named, shown) = (Arc::clone(&names), Arc::clone(&certificates));
        let acme = Acme::new(settings, named, shown, Arc::clone(&texts)).unwrap();
        let edge = Edge::new(names, certificates, texts, Some(acme));
        edge.serve(HashSet::from([name()]));
        Self { encrypted: encrypted_at, edge, pebble, shutdown, serving }
    }

    /// Gets a certificate and has it shown to a visitor who trusts nobody.
    async fn certificate_is_got_and_shown(&self) {
        let edge = &self.edge;
        let account = timeout(BOUND, edge.register()).await.unwrap().unwrap();
        assert!(!format!("{account:?}").contains("key"), "{account:?}");
        let got = timeout(BOUND, edge.obtain(&account, &name(), None)).await.unwrap().unwrap();
        assert!(got.not_before < got.not_after);
        edge.show(&name(), &got).unwrap();
        let shown = shown_to(self.encrypted, NAME, &[b"h2"]).await.unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(got.chain.as_bytes()).unwrap();
        assert_eq!(shown, pem.contents);
        // What was shown to the ACME server is shown no more.
        shown_to(self.encrypted, NAME, &[b"acme-tls/1"]).await.unwrap_err();
        // Once more, with the same account: the certificate is another.
        let again = timeout(BOUND, edge.obtain(&account, &name(), None)).await.unwrap().unwrap();
        assert!(again.chain != got.chain && again.key != got.key);
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = timeout(BOUND, self.serving.join_next()).await.unwrap() {
            ended.unwrap();
        }
        self.pebble.child.kill().await.unwrap();
    }
}

/// An ACME server that asks these two listeners instead of ports 80 and 443.
pub(crate) struct Pebble {
    pub child: Child,
    pub directory: String,
    dir: TempDir,
}

impl Pebble {
    pub async fn start(clear: u16, encrypted: u16, names: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certificate = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let CertifiedKey { cert, signing_key } = certificate;
        let (chain, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        fs::write(&chain, cert.pem()).unwrap();
        fs::write(&key, signing_key.serialize_pem()).unwrap();
        let config = serde_json::json!({"pebble": {
            "listenAddress": "127.0.0.1:0",
            "managementListenAddress": "",
            "certificate": chain,
            "privateKey": key,
            "httpPort": clear,
            "tlsPort": encrypted,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        let file = dir.path().join("pebble.json");
        fs::write(&file, config.to_string()).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut child = Command::new("pebble")
            .arg("-config")
            .arg(&file)
            .arg("-dnsserver")
            .arg(names.to_string())
            // It looks at once, refuses no nonce by chance, and looks anew for each order.
            .envs([
                ("PEBBLE_VA_NOSLEEP", "1"),
                ("PEBBLE_WFE_NONCEREJECT", "0"),
                ("PEBBLE_AUTHZREUSE", "0"),
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("pebble, which scripts/packages installs");
        let deadline = Instant::now() + BOUND;
        let mut look = tokio::time::interval(Duration::from_millis(20));
        let port = loop {
            if let Some(port) = listening_port(child.id().unwrap()) {
                break port;
            }
            let log = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            assert!(child.try_wait().unwrap().is_none(), "pebble ended: {}", log());
            assert!(Instant::now() < deadline, "pebble does not listen: {}", log());
            look.tick().await;
        };
        Self { child, directory: format!("https://127.0.0.1:{port}/dir"), dir }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }
}

/// The port on which the process listens: it does not say which it was given for port 0.
fn listening_port(process: u32) -> Option<u16> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let sockets: HashSet<String> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    let table = fs::read_to_string(format!("/proc/{process}/net/tcp")).ok()?;
    // proc_pid_net(5): the second column is the local address, the fourth the state, the tenth the inode.
    table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        let listens = columns.get(3) == Some(&"0A");
        let is_its = sockets.contains(&format!("socket:[{}]", columns.get(9)?));
        let (_, port) = columns.get(1)?.split_once(':')?;
        (listens && is_its).then(|| u16::from_str_radix(port, 16).ok()).flatten()
    })
}

/// A visitor who believes whatever they are shown.
async fn shaken(
    address: SocketAddr,
    name: &str,
    offers: &[&[u8]],
) -> Result<TlsStream<TcpStream>, std::io::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = offers.iter().map(|offer| offer.to_vec()).collect();
    config.dangerous().set_certificate_verifier(Arc::new(credulous::Credulous(provider)));
    let stream = TcpStream::connect(address).await?;
    let name = name.to_owned().try_into().unwrap();
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream);
    timeout(BOUND, shaken).await.unwrap()
}

/// The certificate that is shown to a visitor who asks for this name and looks at nothing else.
pub(crate) async fn shown_to(
    address: SocketAddr,
    name: &str,
    offers: &[&[u8]],
) -> Result<Vec<u8>, std::io::Error> {
    let stream = shaken(address, name, offers).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec())
}

mod credulous {
    //! Believes every certificate: the tests look at it themselves.

    use std::sync::Arc;

    use rustls::{
        DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    };

    #[derive(Debug)]
    pub(super) struct Credulous(pub(super) Arc<CryptoProvider>);

    impl ServerCertVerifier for Credulous {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.0.signature_verification_algorithms;
            verify_tls12_signature(message, certificate, signature, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.0.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_shown_to_be_ours_by_a_request() {
    let ground = Ground::open(AcmeChallenge::Http01).await;
    ground.certificate_is_got_and_shown().await;
    ground.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_shown_to_be_ours_by_a_handshake() {
    let ground = Ground::open(AcmeChallenge::TlsAlpn01).await;
    ground.certificate_is_got_and_shown().await;
    ground.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_does_not_lead_here_gets_no_certificate_and_its_owner_is_told_why() {
    let ground = Ground::open(AcmeChallenge::Http01).await;
    let account = timeout(BOUND, ground.edge.register()).await.unwrap().unwrap();
    let elsewhere = HostName::parse("elsewhere.test").unwrap();
    let EdgeError(why) =
        timeout(BOUND, ground.edge.obtain(&account, &elsewhere, None)).await.unwrap().unwrap_err();
    assert!(why.contains("could not see that the name leads here: "), "{why}");
    ground.end().await;
}

/// The whole way: added, proven, issued, served by TLS, and there again after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_is_served_with_its_own_certificate_until_it_is_given_up() {
    let texts = Records::default();
    let servers = name_server_of(Arc::clone(&texts));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut pebble = Pebble::start(listener.local_addr().unwrap().port(), 1, servers).await;
    let mut world = World::new();
    world.settings = Settings {
        tls_listen: Some("127.0.0.1:0".to_owned()),
        acme_directory: Some(pebble.directory.clone()),
        acme_root: Some(pebble.root()),
        domain_name_server: Some(servers),
        ..Settings::default()
    };
    world.listener = Mutex::new(Some(listener));
    let server = world.start().await;
    let id = server.create("box").await;
    let port = json!({"port": 1, "slug": "front", "visibility": "public"});
    server.expect(201, "POST", &format!("{WORKSPACES}/{id}/published-ports"), Some(port)).await;
    let body = json!({"domain": NAME, "workspace": id, "port": 1});
    let added = server.expect(201, "POST", DOMAINS, Some(body)).await;
    let one = format!("{DOMAINS}/{NAME}");
    let record = |name: &str| added["txt_record"][name].as_str().unwrap().to_owned();
    texts.lock().unwrap().insert(format!("{}.", record("name")), record("value"));
    let verify = format!("{one}/verify");
    until("verified", async || {
        server.expect(200, "POST", &verify, None).await["state"] != "pending"
    })
    .await;
    until("issued", async || server.get(&one).await["state"] == "issued").await;
    // Nobody listens in the workspace on this port, which only the gateway can say.
    let visit = async |server: &Server| visited(server.encrypted.unwrap()).await;
    until("shown", async || shown_to(server.encrypted.unwrap(), NAME, &[]).await.is_ok()).await;
    assert!(visit(&server).await.contains("x-skerry-error: nothing_listens"));
    server.end().await;

    let server = world.start().await;
    assert!(visit(&server).await.contains("x-skerry-error: nothing_listens"));
    assert_eq!(server.get(&one).await["state"], "issued");
    server.expect(204, "DELETE", &one, None).await;
    shown_to(server.encrypted.unwrap(), NAME, &[]).await.expect_err("nothing to show");
    server.delete(&id).await;
    server.end().await;
    pebble.child.kill().await.unwrap();
}

/// What a visitor by TLS is answered.
async fn visited(address: SocketAddr) -> String {
    let mut stream = shaken(address, NAME, &[b"http/1.1"]).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The end of the connection need not be told by TLS.
    let _ = timeout(BOUND, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_are_asked_of_the_name_server_that_is_named() {
    let edge = |server| {
        let texts = Texts::new(Some(server)).unwrap();
        Edge::new(Arc::default(), Arc::default(), Arc::new(texts), None)
    };
    let asked = edge(name_server());
    assert_eq!(asked.texts(&name()).await.unwrap(), [TEXT]);
    let nowhere = HostName::parse("_skerry-challenge.elsewhere.test").unwrap();
    assert_eq!(asked.texts(&nowhere).await.unwrap(), [""; 0]);
    assert_eq!(asked.issuer(), None);
    asked.register().await.unwrap_err();
}
