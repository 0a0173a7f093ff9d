//! Certificates from a real ACME server (pebble) for names in a zone of a real name server (knot): shown
//! to be ours by records that are put there by dynamic updates.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use skerry_control::internal_api::{EdgeApi as _, EdgeError};
use skerry_gateway::{
    domains::{Acme, AcmeChallenge, AcmeSettings, Edge, ServedNames, Texts},
    tls::Certificates,
};
use skerry_model::{DnsAccess, DnsProvider, DnsProviderKind, HostName, Secret};
use skerry_server::config::Settings;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{
    acme::{BOUND, DOMAINS, Pebble, Records, name_server_of, shown_to},
    world::{WORKSPACES, World, until},
};

const ZONE: &str = "zoned.test";
const NAME: &str = "www.zoned.test";
const KEY: &str = "acme-key";
/// 32 bytes.
const SECRET: &str = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U=";
const OTHER_SECRET: &str = "bm90IHRoZSBzZWNyZXRub3QgdGhlIHNlY3JldG5vdCE=";
/// A text that was there before, at the name of the challenge.
const OTHERS: &str = "somebody else's";

fn name(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

/// A name server for the zone, which may be changed with the key.
struct Knot {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Knot {
    async fn start() -> Self {
        let (dir, address) = (tempfile::tempdir().unwrap(), own_address());
        let path = dir.path().display();
        let config = format!(
            "server:\n    rundir: \"{path}\"\n    listen: {}@{}\n\
             log:\n  - target: stderr\n    any: info\n\
             database:\n    storage: \"{path}\"\n\
             key:\n  - id: {KEY}\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
             acl:\n  - id: acme\n    key: {KEY}\n    action: update\n    update-type: TXT\n    \
             update-owner: name\n    update-owner-match: equal\n    \
             update-owner-name: [_acme-challenge.www]\n\
             zone:\n  - domain: {ZONE}\n    storage: \"{path}\"\n    file: zone\n    \
             zonefile-sync: -1\n    journal-content: all\n    zonefile-load: difference-no-serial\n    \
             acl: acme\n",
            address.ip(),
            address.port()
        );
        let zone = format!(
            "@ 1 SOA ns ops 1 3600 600 86400 1\n@ 1 NS ns\nns 1 A 127.0.0.1\nwww 1 A 127.0.0.1\n\
             ready 1 TXT \"yes\"\n_acme-challenge.www 1 TXT \"{OTHERS}\"\n"
        );
        fs::write(dir.path().join("knot.conf"), config).unwrap();
        fs::write(dir.path().join("zone"), format!("$ORIGIN {ZONE}.\n{zone}")).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut child = Command::new("knotd")
            .arg("--config")
            .arg(dir.path().join("knot.conf"))
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("knot, which scripts/packages installs");
        let asked = edge(address, None);
        let deadline = Instant::now() + BOUND;
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while asked.texts(&name("ready.zoned.test")).await.ok() != Some(vec!["yes".to_owned()]) {
            let log = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            assert!(child.try_wait().unwrap().is_none(), "knot ended: {}", log());
            assert!(Instant::now() < deadline, "knot does not answer: {}", log());
            look.tick().await;
        }
        Self { child, address, _dir: dir }
    }

    fn credentials(&self, secret: &str) -> BTreeMap<String, String> {
        let said = [
            ("RFC2136_NAMESERVER", self.address.to_string()),
            ("RFC2136_TSIG_KEY", KEY.to_owned()),
            ("RFC2136_TSIG_SECRET", secret.to_owned()),
            // There are no other servers that would have to copy it.
            ("RFC2136_PROPAGATION_SECONDS", "0".to_owned()),
        ];
        said.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn provider(&self, secret: &str) -> DnsProvider {
        let said = self.credentials(secret).into_iter();
        let said = said.map(|(key, value)| (key, Secret::new(value))).collect();
        DnsAccess::new(DnsProviderKind::Rfc2136, said).unwrap().provider().unwrap()
    }
}

/// An address of the loopback network that no other process has: knot takes no port 0.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(5300);
    // Process ids have 22 bits.
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    SocketAddr::from((Ipv4Addr::new(127, 64 | high, middle, low), port))
}

/// An edge that asks this name server, and gets certificates from `pebble` if there is one.
fn edge(names: SocketAddr, pebble: Option<(&Pebble, &[&str])>) -> Edge {
    let (served, certificates) = (Arc::<ServedNames>::default(), Arc::<Certificates>::default());
    let texts = Arc::new(Texts::new(Some(names)).unwrap());
    let acme = pebble.map(|(pebble, networks)| {
        let settings = AcmeSettings {
            directory: pebble.directory.clone(),
            contact: None,
            root: Some(pebble.root()),
            challenge: AcmeChallenge::Http01,
            update_networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
        };
        let (served, certificates) = (Arc::clone(&served), Arc::clone(&certificates));
        Acme::new(settings, served, certificates, Arc::clone(&texts)).unwrap()
    });
    let edge = Edge::new(served, certificates, texts, acme);
    edge.serve(HashSet::from([name(NAME)]));
    edge
}

const LOOPBACK: &[&str] = &["127.0.0.0/8"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_shown_to_be_ours_by_a_record_that_is_taken_away_afterwards() {
    let mut knot = Knot::start().await;
    // Nobody listens where a request or a handshake would go.
    let mut pebble = Pebble::start(1, 1, knot.address).await;
    let edge = edge(knot.address, Some((&pebble, LOOPBACK)));
    let account = timeout(BOUND, edge.register()).await.unwrap().unwrap();
    let provider = knot.provider(SECRET);
    let name_of_site = name(NAME);
    let obtaining = edge.obtain(&account, &name_of_site, Some(&provider));
    let got = timeout(BOUND, obtaining).await.unwrap().unwrap();
    assert!(got.not_before < got.not_after);
    let left = edge.texts(&name("_acme-challenge.www.zoned.test")).await.unwrap();
    assert_eq!(left, [OTHERS]);
    knot.child.kill().await.unwrap();
    pebble.child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_is_told_why_no_record_can_be_put_in_place() {
    let mut knot = Knot::start().await;
    let mut pebble = Pebble::start(1, 1, knot.address).await;
    let opened = edge(knot.address, Some((&pebble, LOOPBACK)));
    let account = timeout(BOUND, opened.register()).await.unwrap().unwrap();
    let why = async |edge: &Edge, secret: &str, name: HostName| {
        let provider = knot.provider(secret);
        let obtaining = edge.obtain(&account, &name, Some(&provider));
        let EdgeError(why) = timeout(BOUND, obtaining).await.unwrap().unwrap_err();
        assert!(!why.contains(secret), "{why}");
        why
    };
    let forged = why(&opened, OTHER_SECRET, name(NAME)).await;
    assert!(forged.contains("does not answer with the signature of acme-key"), "{forged}");
    let elsewhere = why(&opened, SECRET, name("www.elsewhere.test")).await;
    assert!(elsewhere.contains("does not say which zone"), "{elsewhere}");
    let closed = edge(knot.address, Some((&pebble, &[])));
    let inside = why(&closed, SECRET, name(NAME)).await;
    assert!(inside.contains("is not a name server of the internet"), "{inside}");
    let left = opened.texts(&name("_acme-challenge.www.zoned.test")).await.unwrap();
    assert_eq!(left, [OTHERS]);
    knot.child.kill().await.unwrap();
    pebble.child.kill().await.unwrap();
}

/// The whole way: added with credentials, proven, issued by a record, and shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_whose_owner_lets_us_change_its_zone_needs_no_port_80_for_its_certificate() {
    let mut knot = Knot::start().await;
    let texts = Records::default();
    let proofs = name_server_of(Arc::clone(&texts));
    let mut pebble = Pebble::start(1, 1, knot.address).await;
    let mut world = World::new();
    world.settings = Settings {
        tls_listen: Some("127.0.0.1:0".to_owned()),
        acme_directory: Some(pebble.directory.clone()),
        acme_root: Some(pebble.root()),
        dns_update_networks: Some(LOOPBACK.iter().map(ToString::to_string).collect()),
        domain_name_server: Some(proofs),
        ..Settings::default()
    };
    let server = world.start().await;
    let id = server.create("box").await;
    let port = json!({"port": 1, "slug": "front", "visibility": "public"});
    server.expect(201, "POST", &format!("{WORKSPACES}/{id}/published-ports"), Some(port)).await;
    let body = json!({
        "domain": NAME, "workspace": id, "port": 1, "dns_provider": "rfc2136",
        "dns_credentials": knot.credentials(SECRET),
    });
    let added = server.expect(201, "POST", DOMAINS, Some(body)).await;
    assert_eq!(added["dns_provider"], "rfc2136");
    let record = |name: &str| added["txt_record"][name].as_str().unwrap().to_owned();
    texts.lock().unwrap().insert(format!("{}.", record("name")), record("value"));
    let one = format!("{DOMAINS}/{NAME}");
    let verify = format!("{one}/verify");
    until("verified", async || {
        server.expect(200, "POST", &verify, None).await["state"] != "pending"
    })
    .await;
    until("issued", async || {
        let domain = server.get(&one).await;
        assert_eq!(domain["last_error"], json!(null));
        domain["state"] == "issued"
    })
    .await;
    let encrypted = server.encrypted.unwrap();
    until("shown", async || shown_to(encrypted, NAME, &[]).await.is_ok()).await;
    server.delete(&id).await;
    server.end().await;
    knot.child.kill().await.unwrap();
    pebble.child.kill().await.unwrap();
}
