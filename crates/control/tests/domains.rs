//! Custom domains and their certificates, on a played edge.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod ground;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use ground::{LONG, by_id, provisioned, running};
use skerry_control::{
    Caller, DomainRef, DomainView, PortVisibility, PublishPort, PublishedPort, WorkspaceRef,
    internal_api::{EdgeApi, EdgeError, PreviewAddress, PreviewRefusal},
    testing::{self, TestControl},
};
use skerry_model::{
    DomainState, ErrorKind, HostName, KeyedCertificate, Secret, Timestamp, Workspace,
};
use tokio::sync::watch;

const NAME: &str = "www.example.com";
const ACCOUNT: &str = "credentials at the issuer";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// An edge whose DNS and issuer are tables.
struct PlayedEdge {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    issues: bool,
    texts: Mutex<BTreeMap<String, String>>,
    refuses: Mutex<Option<String>>,
    /// How many accounts and certificates were asked for.
    asked: Mutex<(u32, u32)>,
    served: watch::Sender<HashSet<HostName>>,
    shown: watch::Sender<Vec<(HostName, KeyedCertificate)>>,
}

impl PlayedEdge {
    fn new(test: &TestControl, issues: bool) -> Arc<Self> {
        Arc::new(Self {
            now: test.clock.as_fn(),
            issues,
            texts: Mutex::default(),
            refuses: Mutex::default(),
            asked: Mutex::default(),
            served: watch::Sender::default(),
            shown: watch::Sender::default(),
        })
    }

    fn names(&self) -> Vec<String> {
        self.served.borrow().iter().map(ToString::to_string).collect()
    }
}

#[async_trait]
impl EdgeApi for PlayedEdge {
    async fn texts(&self, name: &HostName) -> Result<Vec<String>, EdgeError> {
        if name.as_str().ends_with("broken.test") {
            return Err(EdgeError("the name servers are gone".to_owned()));
        }
        Ok(self.texts.lock().unwrap().get(name.as_str()).cloned().into_iter().collect())
    }

    fn serve(&self, names: HashSet<HostName>) {
        self.served.send_replace(names);
    }

    fn show(&self, name: &HostName, certificate: &KeyedCertificate) -> Result<(), EdgeError> {
        self.shown.send_modify(|shown| shown.push((name.clone(), certificate.clone())));
        Ok(())
    }

    fn issuer(&self) -> Option<&str> {
        self.issues.then_some("https://ca.test/dir")
    }

    async fn register(&self) -> Result<Secret, EdgeError> {
        self.asked.lock().unwrap().0 += 1;
        Ok(Secret::new(ACCOUNT))
    }

    async fn obtain(
        &self,
        account: &Secret,
        name: &HostName,
    ) -> Result<KeyedCertificate, EdgeError> {
        assert_eq!(account.expose(), ACCOUNT);
        self.asked.lock().unwrap().1 += 1;
        if let Some(why) = self.refuses.lock().unwrap().clone() {
            return Err(EdgeError(why));
        }
        let now = (self.now)();
        Ok(KeyedCertificate {
            chain: format!("chain of {name}"),
            key: Secret::new("the private key"),
            not_before: now,
            not_after: now.saturating_add(90 * DAY).unwrap(),
        })
    }
}

struct Ground {
    test: TestControl,
    caller: Caller,
    workspace: Workspace,
    port: PublishedPort,
    edge: Arc<PlayedEdge>,
}

async fn publish(test: &TestControl, caller: &Caller, workspace: &Workspace) -> PublishedPort {
    let visibility = Some(PortVisibility::Public);
    let request = PublishPort { port: 3000, slug: None, label: None, visibility };
    test.control.publish_port(caller, &by_id(workspace), request).await.unwrap().port
}

impl Ground {
    async fn open(issues: bool) -> Self {
        let test = testing::open().await;
        let caller = test.caller().await;
        let workspace = test.control.create_workspace(&caller, running()).await.unwrap();
        let port = publish(&test, &caller, &workspace).await;
        let edge = PlayedEdge::new(&test, issues);
        test.control.attach_edge(edge.clone(), vec!["localhost".to_owned()]).await.unwrap();
        Self { test, caller, workspace, port, edge }
    }

    async fn add(&self, name: &str) -> DomainView {
        self.test.control.add_domain(&self.caller, name, &self.port).await.unwrap()
    }

    fn put_proof(&self, view: &DomainView) {
        let (name, value) = (view.domain.challenge_name(), view.domain.challenge_value());
        self.edge.texts.lock().unwrap().insert(name, value);
    }

    async fn verify(&self, view: &DomainView) -> DomainView {
        let which = DomainRef::Id(view.domain.id);
        self.test.control.verify_domain(&self.caller, &which).await.unwrap()
    }

    async fn get(&self, view: &DomainView) -> DomainView {
        self.test.control.domain(&self.caller, &DomainRef::Id(view.domain.id)).await.unwrap()
    }

    /// Waits for the edge to show so many certificates in all.
    async fn until_shown(&self, count: usize) {
        let mut shown = self.edge.shown.subscribe();
        let enough = shown.wait_for(|shown| shown.len() >= count);
        tokio::time::timeout(Duration::from_secs(60), enough)
            .await
            .expect("shown in time")
            .unwrap();
    }

    async fn visit(&self, name: &str) -> Result<u16, PreviewRefusal> {
        let routes = self.test.control.routes(|text| WorkspaceRef::SlugOrName(text.to_owned()));
        let address = PreviewAddress::Domain(HostName::parse(name).unwrap());
        routes.open_preview(&address, &[]).await.map(|open| open.port)
    }
}

#[tokio::test]
async fn a_name_is_served_once_it_is_proven_until_it_is_given_up() {
    let ground = Ground::open(false).await;
    let made = ground.add("WWW.Example.com.").await;
    assert_eq!((made.domain.name.as_str(), made.state), (NAME, DomainState::Pending));
    assert_eq!(ground.visit(NAME).await, Err(PreviewRefusal::NotFound));
    let pending = ground.verify(&made).await;
    assert_eq!(pending.state, DomainState::Pending);
    let why = pending.domain.last_error.unwrap();
    assert!(why.contains("no TXT record _skerry-challenge.www.example.com"), "{why}");
    assert_eq!(ground.edge.names(), [""; 0]);

    ground.put_proof(&made);
    let verified = ground.verify(&made).await;
    assert_eq!((verified.state, verified.domain.last_error), (DomainState::Verified, None));
    assert_eq!(ground.edge.names(), [NAME]);
    assert_eq!(ground.visit(NAME).await, Ok(3000));

    let which = DomainRef::Name("www.EXAMPLE.com".to_owned());
    ground.test.control.remove_domain(&ground.caller, &which).await.unwrap();
    assert_eq!(ground.edge.names(), [""; 0]);
    assert_eq!(ground.visit(NAME).await, Err(PreviewRefusal::NotFound));
    let gone = ground.test.control.remove_domain(&ground.caller, &which).await.unwrap_err();
    assert_eq!(gone.kind(), &ErrorKind::NotFound { what: "domain" });
}

#[tokio::test]
async fn a_proof_that_is_wrong_or_cannot_be_looked_for_proves_nothing() {
    let ground = Ground::open(false).await;
    let wrong = ground.add(NAME).await;
    let texts = || ground.edge.texts.lock().unwrap();
    texts().insert(wrong.domain.challenge_name(), "skerry-domain-verification=x".to_owned());
    let why = ground.verify(&wrong).await.domain.last_error.unwrap();
    assert!(why.contains(&wrong.domain.challenge_value()), "{why}");
    let broken = ground.add("broken.test").await;
    let broken = ground.verify(&broken).await;
    assert_eq!(broken.domain.last_error.as_deref(), Some("the name servers are gone"));
    assert_eq!(broken.state, DomainState::Pending);
}

#[tokio::test]
async fn a_name_is_whose_account_proves_it_first_and_nobody_is_told_whose() {
    let ground = Ground::open(false).await;
    let control = &ground.test.control;
    let (other, _) = ground.test.other_caller("other").await;
    let theirs = control.create_workspace(&other, provisioned()).await.unwrap();
    let their_port = publish(&ground.test, &other, &theirs).await;

    let first = ground.add(NAME).await;
    let second = control.add_domain(&other, NAME, &their_port).await.unwrap();
    assert_ne!(first.domain.proof, second.domain.proof);
    ground.put_proof(&first);
    let verify = async || control.verify_domain(&other, &DomainRef::Id(second.domain.id)).await;
    assert_eq!(verify().await.unwrap().state, DomainState::Pending, "another's proof");
    assert_eq!(ground.verify(&first).await.state, DomainState::Verified);
    ground.put_proof(&second);
    let taken = verify().await.unwrap_err();
    assert!(matches!(taken.kind(), ErrorKind::Conflict(why) if why.contains("not available")));
    control.remove_domain(&other, &DomainRef::Id(second.domain.id)).await.unwrap();
    let again = control.add_domain(&other, NAME, &their_port).await.unwrap_err();
    assert_eq!(again.to_string(), taken.to_string());
    assert!(!again.to_string().contains("admin"));

    let foreign = control.add_domain(&other, "a.test", &ground.port).await.unwrap_err();
    assert_eq!(foreign.kind(), &ErrorKind::NotFound { what: "port" });
    for which in [DomainRef::Id(first.domain.id), DomainRef::Number(first.domain.number)] {
        let hidden = control.domain(&other, &which).await.unwrap_err();
        assert_eq!(hidden.kind(), &ErrorKind::NotFound { what: "domain" });
    }
    assert_eq!(control.list_domains(&other).await.unwrap(), []);
}

#[tokio::test]
async fn a_name_is_added_once_and_never_the_servers_own() {
    let ground = Ground::open(false).await;
    ground.add(NAME).await;
    let add = async |name: &str| {
        let outcome = ground.test.control.add_domain(&ground.caller, name, &ground.port).await;
        outcome.unwrap_err()
    };
    assert!(matches!(add(NAME).await.kind(), ErrorKind::Conflict(_)));
    for name in ["x.localhost", "127.0.0.1", "nonsense"] {
        assert!(matches!(add(name).await.kind(), ErrorKind::Invalid(_)), "{name}");
    }
}

#[tokio::test]
async fn a_domain_goes_with_its_workspace() {
    let ground = Ground::open(false).await;
    let made = ground.add(NAME).await;
    ground.put_proof(&made);
    ground.verify(&made).await;
    let control = &ground.test.control;
    control.delete_workspace(&ground.caller, &by_id(&ground.workspace), LONG).await.unwrap();
    assert_eq!(ground.visit(NAME).await, Err(PreviewRefusal::NotFound));
    assert_eq!(control.list_domains(&ground.caller).await.unwrap(), []);
}

#[tokio::test]
async fn a_certificate_is_got_when_a_name_is_verified_and_again_before_it_ends() {
    let ground = Ground::open(true).await;
    let made = ground.add(NAME).await;
    ground.put_proof(&made);
    ground.verify(&made).await;
    ground.until_shown(1).await;
    let issued = ground.get(&made).await;
    assert_eq!((issued.state, *ground.edge.asked.lock().unwrap()), (DomainState::Issued, (1, 1)));

    ground.test.advance(59 * DAY);
    assert_eq!(ground.get(&made).await.state, DomainState::Issued);
    ground.test.advance(2 * DAY);
    ground.until_shown(2).await;
    assert_eq!(*ground.edge.asked.lock().unwrap(), (1, 2), "with the account of the first time");
    let renewed = ground.get(&made).await.domain;
    assert!(renewed.certificate_not_after > issued.domain.certificate_not_after);
}

#[tokio::test]
async fn a_certificate_that_is_refused_is_asked_for_again_later() {
    let ground = Ground::open(true).await;
    *ground.edge.refuses.lock().unwrap() = Some("the name does not lead here".to_owned());
    let made = ground.add(NAME).await;
    ground.put_proof(&made);
    ground.verify(&made).await;
    let failed = async || ground.get(&made).await.state == DomainState::Failed;
    until(failed).await;
    let view = ground.get(&made).await;
    assert_eq!(view.domain.last_error.as_deref(), Some("the name does not lead here"));
    assert_eq!(ground.visit(NAME).await, Ok(3000), "served all the same");
    *ground.edge.refuses.lock().unwrap() = None;
    ground.test.advance(Duration::from_secs(5 * 60));
    ground.until_shown(1).await;
    assert_eq!(ground.get(&made).await.state, DomainState::Issued);
}

#[tokio::test]
async fn what_was_proven_and_got_is_there_after_a_restart() {
    let ground = Ground::open(true).await;
    let made = ground.add(NAME).await;
    ground.put_proof(&made);
    ground.verify(&made).await;
    ground.until_shown(1).await;
    let Ground { test, .. } = ground;
    let database = test.database.clone();
    let test = test.reopen().await;
    let edge = PlayedEdge::new(&test, true);
    test.control.attach_edge(edge.clone(), Vec::new()).await.unwrap();
    assert_eq!(edge.names(), [NAME]);
    let shown = edge.shown.borrow().clone();
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].1.key.expose(), "the private key");
    assert_eq!(*edge.asked.lock().unwrap(), (0, 0));
    for file in ["", "-wal"] {
        let path = format!("{}{file}", database.display());
        let bytes = std::fs::read(&path).unwrap_or_default();
        for secret in ["the private key", ACCOUNT] {
            let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "{secret} in {path}");
        }
    }
}

#[tokio::test]
async fn without_an_edge_no_name_is_taken() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let workspace = test.control.create_workspace(&caller, provisioned()).await.unwrap();
    let port = publish(&test, &caller, &workspace).await;
    let refused = test.control.add_domain(&caller, NAME, &port).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Unavailable(_)));
}

/// Looks again and again until something is so.
async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looking).await.expect("in time");
}
