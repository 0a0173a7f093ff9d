//! Custom domains and their certificates, on a played edge.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod ground;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ground::{LONG, by_id, provisioned, running};
use skerry_control::{
    Caller, DomainRef, DomainView, PortVisibility, PublishPort, PublishedPort, WorkspaceRef,
    internal_api::{PreviewAddress, PreviewRefusal},
    testing::{
        self, TestControl,
        edge::{CERTIFICATE_KEY, ISSUER_ACCOUNT, PlayedEdge},
    },
};
use skerry_model::{
    DnsAccess, DnsProviderKind, DomainState, ErrorKind, HostName, Issuance, Secret, Workspace,
};

const NAME: &str = "www.example.com";
const DAY: Duration = Duration::from_secs(24 * 3600);

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
    async fn open(issuance: Issuance) -> Self {
        let test = testing::open().await;
        let caller = test.caller().await;
        let workspace = test.control.create_workspace(&caller, running()).await.unwrap();
        let port = publish(&test, &caller, &workspace).await;
        let edge = PlayedEdge::new(&test, issuance);
        test.control.attach_edge(edge.clone(), vec!["localhost".to_owned()]).await.unwrap();
        Self { test, caller, workspace, port, edge }
    }

    async fn add(&self, name: &str) -> DomainView {
        self.test.control.add_domain(&self.caller, name, &self.port, None).await.unwrap()
    }

    fn put_proof(&self, view: &DomainView) {
        self.edge.put_text(&view.domain.challenge_name(), &view.domain.challenge_value());
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

    /// Waits for the edge to show so many certificates in all, and for the last to be recorded.
    async fn until_issued(&self, view: &DomainView, count: usize) -> DomainView {
        self.until_shown(count).await;
        let last = self.edge.shown.borrow().last().map(|(_, shown)| shown.not_after);
        until(async || self.get(view).await.domain.certificate_not_after == last).await;
        self.get(view).await
    }

    async fn visit(&self, name: &str) -> Result<u16, PreviewRefusal> {
        let routes = self.test.control.routes(|text| WorkspaceRef::SlugOrName(text.to_owned()));
        let address = PreviewAddress::Domain(HostName::parse(name).unwrap());
        routes.open_preview(&address, &[]).await.map(|open| open.port)
    }
}

#[tokio::test]
async fn a_name_is_served_once_it_is_proven_until_it_is_given_up() {
    let ground = Ground::open(Issuance::None).await;
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
    let ground = Ground::open(Issuance::None).await;
    let wrong = ground.add(NAME).await;
    let name = wrong.domain.challenge_name();
    ground.edge.put_text(&name, "skerry-domain-verification=x");
    let why = ground.verify(&wrong).await.domain.last_error.unwrap();
    assert!(why.contains(&wrong.domain.challenge_value()), "{why}");
    let broken = ground.add("broken.test").await;
    let broken = ground.verify(&broken).await;
    assert_eq!(broken.domain.last_error.as_deref(), Some("the name servers are gone"));
    assert_eq!(broken.state, DomainState::Pending);
}

#[tokio::test]
async fn a_name_is_whose_account_proves_it_first_and_nobody_is_told_whose() {
    let ground = Ground::open(Issuance::None).await;
    let control = &ground.test.control;
    let (other, _) = ground.test.other_caller("other").await;
    let theirs = control.create_workspace(&other, provisioned()).await.unwrap();
    let their_port = publish(&ground.test, &other, &theirs).await;

    let first = ground.add(NAME).await;
    let second = control.add_domain(&other, NAME, &their_port, None).await.unwrap();
    assert_ne!(first.domain.proof, second.domain.proof);
    ground.put_proof(&first);
    let verify = async || control.verify_domain(&other, &DomainRef::Id(second.domain.id)).await;
    assert_eq!(verify().await.unwrap().state, DomainState::Pending, "another's proof");
    assert_eq!(ground.verify(&first).await.state, DomainState::Verified);
    ground.put_proof(&second);
    let taken = verify().await.unwrap_err();
    assert!(matches!(taken.kind(), ErrorKind::Conflict(why) if why.contains("not available")));
    control.remove_domain(&other, &DomainRef::Id(second.domain.id)).await.unwrap();
    let again = control.add_domain(&other, NAME, &their_port, None).await.unwrap_err();
    assert_eq!(again.to_string(), taken.to_string());
    assert!(!again.to_string().contains("admin"));

    let foreign = control.add_domain(&other, "a.test", &ground.port, None).await.unwrap_err();
    assert_eq!(foreign.kind(), &ErrorKind::NotFound { what: "port" });
    for which in [DomainRef::Id(first.domain.id), DomainRef::Number(first.domain.number)] {
        let hidden = control.domain(&other, &which).await.unwrap_err();
        assert_eq!(hidden.kind(), &ErrorKind::NotFound { what: "domain" });
    }
    assert_eq!(control.list_domains(&other).await.unwrap(), []);
}

#[tokio::test]
async fn a_name_is_added_once_and_never_the_servers_own() {
    let ground = Ground::open(Issuance::None).await;
    ground.add(NAME).await;
    let add = async |name: &str| {
        let outcome =
            ground.test.control.add_domain(&ground.caller, name, &ground.port, None).await;
        outcome.unwrap_err()
    };
    assert!(matches!(add(NAME).await.kind(), ErrorKind::Conflict(_)));
    for name in ["x.localhost", "127.0.0.1", "nonsense"] {
        assert!(matches!(add(name).await.kind(), ErrorKind::Invalid(_)), "{name}");
    }
}

#[tokio::test]
async fn a_domain_goes_with_its_workspace() {
    let ground = Ground::open(Issuance::None).await;
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
    let ground = Ground::open(Issuance::Automatic).await;
    let made = ground.add(NAME).await;
    ground.put_proof(&made);
    ground.verify(&made).await;
    let issued = ground.until_issued(&made, 1).await;
    assert_eq!((issued.state, ground.edge.asked()), (DomainState::Issued, (1, 1)));

    ground.test.advance(59 * DAY);
    assert_eq!(ground.get(&made).await.state, DomainState::Issued);
    ground.test.advance(2 * DAY);
    let renewed = ground.until_issued(&made, 2).await.domain;
    assert_eq!(ground.edge.asked(), (1, 2), "with the account of the first time");
    assert!(renewed.certificate_not_after > issued.domain.certificate_not_after);
}

#[tokio::test]
async fn a_certificate_that_is_refused_is_asked_for_again_later() {
    let ground = Ground::open(Issuance::Automatic).await;
    ground.edge.refuse(Some("the name does not lead here"));
    let made = ground.add(NAME).await;
    ground.put_proof(&made);
    ground.verify(&made).await;
    let failed = async || ground.get(&made).await.state == DomainState::Failed;
    until(failed).await;
    let view = ground.get(&made).await;
    assert_eq!(view.domain.last_error.as_deref(), Some("the name does not lead here"));
    assert_eq!(ground.visit(NAME).await, Ok(3000), "served all the same");
    ground.edge.refuse(None);
    ground.test.advance(Duration::from_secs(5 * 60));
    assert_eq!(ground.until_issued(&made, 1).await.state, DomainState::Issued);
}

#[tokio::test]
async fn what_was_proven_and_got_is_there_after_a_restart() {
    let ground = Ground::open(Issuance::Automatic).await;
    let made = ground.add(NAME).await;
    ground.put_proof(&made);
    ground.verify(&made).await;
    ground.until_issued(&made, 1).await;
    let Ground { test, .. } = ground;
    let database = test.database.clone();
    let test = test.reopen().await;
    let edge = PlayedEdge::new(&test, Issuance::Automatic);
    test.control.attach_edge(edge.clone(), Vec::new()).await.unwrap();
    assert_eq!(edge.names(), [NAME]);
    let shown = edge.shown.borrow().clone();
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].1.key.expose(), CERTIFICATE_KEY);
    assert_eq!(edge.asked(), (0, 0));
    for file in ["", "-wal"] {
        let path = format!("{}{file}", database.display());
        let bytes = std::fs::read(&path).unwrap_or_default();
        for secret in [CERTIFICATE_KEY, ISSUER_ACCOUNT] {
            let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "{secret} in {path}");
        }
    }
}

const TOKEN: &str = "the-token-of-the-zone";

fn by_cloudflare() -> DnsAccess {
    let said = BTreeMap::from([("CLOUDFLARE_API_TOKEN".to_owned(), Secret::new(TOKEN))]);
    DnsAccess::new(DnsProviderKind::Cloudflare, said).unwrap()
}

#[tokio::test]
async fn what_a_provider_of_dns_asks_for_is_kept_sealed_and_used_for_every_certificate() {
    let ground = Ground::open(Issuance::Automatic).await;
    let control = &ground.test.control;
    let access = by_cloudflare();
    let provider = access.provider().unwrap();
    let adding = control.add_domain(&ground.caller, NAME, &ground.port, Some(access));
    let made = adding.await.unwrap();
    assert_eq!(made.domain.dns_provider, Some(DnsProviderKind::Cloudflare));
    assert!(!format!("{made:?}").contains(TOKEN));
    ground.put_proof(&made);
    ground.verify(&made).await;
    ground.until_issued(&made, 1).await;
    assert_eq!(ground.edge.provider().as_ref(), Some(&provider));
    let Ground { test, caller, .. } = ground;
    let database = test.database.clone();
    let test = test.reopen().await;
    for file in ["", "-wal"] {
        let path = format!("{}{file}", database.display());
        let bytes = std::fs::read(&path).unwrap_or_default();
        let found = bytes.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes());
        assert!(!found, "the token in {path}");
    }
    let edge = PlayedEdge::new(&test, Issuance::Automatic);
    test.control.attach_edge(edge.clone(), Vec::new()).await.unwrap();
    test.advance(61 * DAY);
    let shown = async || edge.shown.borrow().len() == 2;
    until(shown).await;
    assert_eq!(edge.provider().as_ref(), Some(&provider), "also when renewed");
    let which = DomainRef::Id(made.domain.id);
    test.control.remove_domain(&caller, &which).await.unwrap();
}

#[tokio::test]
async fn a_provider_of_dns_that_would_be_of_no_use_is_refused() {
    let ground = Ground::open(Issuance::None).await;
    let adding =
        ground.test.control.add_domain(&ground.caller, NAME, &ground.port, Some(by_cloudflare()));
    let refused = adding.await.unwrap_err();
    let ErrorKind::Invalid(invalid) = refused.kind() else { panic!("{refused:?}") };
    assert_eq!(invalid.field, "dns_provider");
    assert!(ground.test.control.list_domains(&ground.caller).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_proof_is_told_beforehand_and_is_the_same_when_a_name_is_taken_back() {
    let ground = Ground::open(Issuance::None).await;
    let control = &ground.test.control;
    let check = async || control.check_domain(&ground.caller, NAME, "here.test").await.unwrap();
    let before = check().await;
    assert!(!before.is_proven && !before.leads_here && before.texts.is_empty());
    ground.edge.put_text(&before.challenge_name, &before.challenge_value);
    ground.edge.put_address(NAME, [192, 0, 2, 1]);
    ground.edge.put_address("here.test", [192, 0, 2, 1]);
    let after = check().await;
    assert!(after.is_proven && after.leads_here && after.problems.is_empty());
    for _ in 0..2 {
        let made = ground.add(NAME).await;
        assert_eq!(made.domain.challenge_value(), before.challenge_value);
        assert_eq!(ground.verify(&made).await.state, DomainState::Verified);
        let which = DomainRef::Id(made.domain.id);
        control.remove_domain(&ground.caller, &which).await.unwrap();
    }
    let (other, _) = ground.test.other_caller("other").await;
    let theirs = control.check_domain(&other, NAME, "here.test").await.unwrap();
    assert!(!theirs.is_proven && theirs.challenge_value != before.challenge_value);
    let broken = control.check_domain(&ground.caller, "broken.test", "192.0.2.1").await.unwrap();
    assert_eq!(broken.problems, ["the name servers are gone"]);
}

#[tokio::test]
async fn without_an_edge_no_name_is_taken() {
    let test = testing::open().await;
    let caller = test.caller().await;
    let workspace = test.control.create_workspace(&caller, provisioned()).await.unwrap();
    let port = publish(&test, &caller, &workspace).await;
    let refused = test.control.add_domain(&caller, NAME, &port, None).await.unwrap_err();
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
