//! The encrypted listener: who is shown which certificate, and what is spoken inside.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use axum::{Extension, Router, http::Version, routing::get};
use rcgen::{CertifiedKey, KeyPair};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use skerry_gateway::{
    http::Scheme,
    tls::{self, CertificateFiles, Certificates, ServerCertificate},
};
use skerry_model::Secret;
use skerry_server::listener::{Limits, Transport, serve};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

const GENEROUS: Duration = Duration::from_secs(60);
const LIMITS: Limits =
    Limits { connections: 16, head_within: GENEROUS, handshake_within: GENEROUS };

/// A listener that says which version and scheme a request came by.
struct Door {
    address: SocketAddr,
    certificates: Arc<Certificates>,
    roots: RootCertStore,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl Door {
    async fn open(limits: Limits) -> Self {
        let certificates = Arc::new(Certificates::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = tls::server_config(&certificates).unwrap();
        let transport = Transport::Tls(TlsAcceptor::from(Arc::new(config)));
        let said = async |version: Version, Extension(scheme): Extension<Scheme>| {
            format!("{version:?} {}", scheme.as_str())
        };
        let router = Router::new().route("/", get(said));
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, transport, router, limits, shutdown.clone()));
        Self { address, certificates, roots: RootCertStore::empty(), shutdown, serving }
    }

    /// Has visitors trust a certificate for these names.
    fn trusted(&mut self, names: &[&str]) -> (String, KeyPair) {
        let (chain, key, der) = certificate(names);
        self.roots.add(der).unwrap();
        (chain, key)
    }

    async fn shake(&self, name: &str, offers: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(self.roots.clone())
                .with_no_client_auth();
        config.alpn_protocols = offers.iter().map(|offer| offer.to_vec()).collect();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = name.to_owned().try_into().unwrap();
        let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream);
        timeout(GENEROUS, shaken).await.unwrap()
    }

    async fn end(self) {
        self.shutdown.cancel();
        timeout(GENEROUS, self.serving).await.unwrap().unwrap();
    }
}

fn certificate(names: &[&str]) -> (String, KeyPair, CertificateDer<'static>) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names).unwrap();
    (cert.pem(), signing_key, cert.der().clone())
}

fn usable((chain, key): &(String, KeyPair)) -> ServerCertificate {
    ServerCertificate::from_pem(chain, &Secret::new(key.serialize_pem())).unwrap()
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_and_known_to_be_encrypted() {
    let mut door = Door::open(LIMITS).await;
    let (pair, der) = {
        let (chain, key, der) = certificate(&["door.test"]);
        ((chain, key), der)
    };
    door.certificates.set_default(usable(&pair));
    let client = |builder: reqwest::ClientBuilder| {
        let root = reqwest::Certificate::from_der(&der).unwrap();
        let builder = builder.add_root_certificate(root).resolve("door.test", door.address);
        builder.no_proxy().timeout(GENEROUS).build().unwrap()
    };
    for (client, expected) in [
        (client(reqwest::Client::builder()), "HTTP/2.0 https"),
        (client(reqwest::Client::builder().http1_only()), "HTTP/1.1 https"),
    ] {
        let url = format!("https://door.test:{}/", door.address.port());
        let answer = client.get(url).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), expected);
    }
    door.roots.add(der).unwrap();
    door.shake("door.test", &[b"acme-tls/1"]).await.expect_err("not spoken");
    let mut plain = TcpStream::connect(door.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: door.test\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = timeout(GENEROUS, plain.read_to_end(&mut said)).await.unwrap();
    assert!(!said.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&said));
    door.end().await;
}

#[tokio::test]
async fn a_visitor_is_shown_the_certificate_of_the_name_they_ask_for() {
    let mut door = Door::open(LIMITS).await;
    let default = door.trusted(&["other.test", "gone.test"]);
    let own = door.trusted(&["own.test"]);
    let gone = door.trusted(&["gone.test"]);
    door.shake("own.test", &[b"h2"]).await.expect_err("nothing to show");
    for (name, pair) in [("Own.Test", &own), ("gone.test", &gone)] {
        door.certificates.set(name, usable(pair));
    }
    door.shake("other.test", &[b"h2"]).await.expect_err("nothing to show to this one");
    door.certificates.set_default(usable(&default));
    let first = shown(&door.shake("own.test", &[b"h2"]).await.unwrap());
    let second = shown(&door.shake("other.test", &[b"h2"]).await.unwrap());
    let third = shown(&door.shake("gone.test", &[b"h2"]).await.unwrap());
    assert!(first != second && second != third && first != third);
    door.certificates.retain(|name| name == "own.test");
    assert_eq!(shown(&door.shake("own.test", &[]).await.unwrap()), first);
    assert_eq!(shown(&door.shake("gone.test", &[]).await.unwrap()), second);
    door.end().await;
}

#[tokio::test]
async fn whoever_does_not_finish_the_handshake_is_cut_off() {
    let limits = Limits { handshake_within: Duration::from_millis(50), ..LIMITS };
    let door = Door::open(limits).await;
    for half in [&b""[..], b"\x16\x03\x01"] {
        let mut client = TcpStream::connect(door.address).await.unwrap();
        client.write_all(half).await.unwrap();
        // Cut off with bytes of ours unread is reset, which is an end as well.
        let mut said = Vec::new();
        let _ = timeout(GENEROUS, client.read_to_end(&mut said)).await.expect("cut off");
        assert_eq!(said, b"");
    }
    door.end().await;
}

#[tokio::test]
async fn at_the_end_a_handshake_under_way_holds_nobody_up() {
    let door = Door::open(LIMITS).await;
    let client = TcpStream::connect(door.address).await.unwrap();
    door.end().await;
    drop(client);
}

fn write(dir: &Path, chain: &str, key: &str) {
    fs::write(dir.join("chain.pem"), chain).unwrap();
    fs::write(dir.join("key.pem"), key).unwrap();
}

#[test]
fn files_are_read_again_when_they_have_changed_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = CertificateFiles::new(dir.path().join("chain.pem"), dir.path().join("key.pem"));
    let missing = files.read().unwrap_err().to_string();
    assert!(missing.contains("chain.pem"), "{missing}");
    let (chain, key, _) = certificate(&["a.test"]);
    let secret = key.serialize_pem();
    write(dir.path(), &chain, &secret);
    files.read().unwrap();
    assert!(files.read_if_changed().unwrap().is_none());
    // One of the two is newer: of no use, and told once.
    let (second, newer, _) = certificate(&["b.test", "c.test"]);
    write(dir.path(), &second, &secret);
    let refused = files.read_if_changed().unwrap_err().to_string();
    assert!(refused.contains("key.pem") && !refused.contains("BEGIN"), "{refused}");
    assert!(files.read_if_changed().unwrap().is_none());
    // Of another length: two changes within a tick of the clock that files are stamped with look alike.
    write(dir.path(), &second, &format!("the newer key\n{}", newer.serialize_pem()));
    assert!(files.read_if_changed().unwrap().is_some());
    write(dir.path(), "words\n", "words\n");
    files.read_if_changed().unwrap_err();
}
