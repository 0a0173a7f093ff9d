//! Published ports and their visitors, on the simulated node.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ground;

use std::sync::Arc;

use ground::{LONG, by_id, running};
use skerry_control::{
    Caller, CreateWorkspace, PortVisibility, PublishPort, WorkspaceRef,
    internal_api::{
        OpenPreview, PreviewAddress, PreviewCredential, PreviewRefusal, RouteApi, TokenAddress,
    },
    testing::{self, KEY, TestControl},
};
use skerry_model::{ErrorKind, Secret, Workspace};

fn publish(port: u16, visibility: PortVisibility) -> PublishPort {
    PublishPort { port, slug: None, label: None, visibility: Some(visibility) }
}

fn named(port: u16, slug: &str) -> PublishPort {
    let slug = Some(slug.to_owned());
    PublishPort { slug, ..publish(port, PortVisibility::Public) }
}

struct Ground {
    test: TestControl,
    caller: Caller,
    workspace: Workspace,
    routes: Arc<dyn RouteApi>,
}

impl Ground {
    async fn open() -> Self {
        Self::with(running()).await
    }

    async fn with(request: CreateWorkspace) -> Self {
        let test = testing::open().await;
        let caller = test.caller().await;
        let workspace = test.control.create_workspace(&caller, request).await.unwrap();
        let routes = test.control.routes(|text| WorkspaceRef::SlugOrName(text.to_owned()));
        Self { test, caller, workspace, routes }
    }

    fn which(&self) -> WorkspaceRef {
        by_id(&self.workspace)
    }

    async fn visit(
        &self,
        slug: &str,
        shown: &[PreviewCredential],
    ) -> Result<OpenPreview, PreviewRefusal> {
        self.routes.open_preview(&PreviewAddress::parse(slug).unwrap(), shown).await
    }

    async fn by_token(&self, id: u128, token: &str) -> Result<OpenPreview, PreviewRefusal> {
        let id_prefix = u32::try_from(id >> 96).unwrap();
        let address = TokenAddress { port: 3000, id_prefix, token: Secret::new(token) };
        self.routes.open_preview(&PreviewAddress::Token(address), &[]).await
    }
}

fn token(text: &str) -> PreviewCredential {
    PreviewCredential::PortToken(Secret::new(text))
}

#[tokio::test]
async fn a_public_port_is_open_to_everybody_until_it_is_revoked() {
    let ground = Ground::open().await;
    let control = &ground.test.control;
    let made = control.publish_port(&ground.caller, &ground.which(), named(3000, "front")).await;
    let made = made.unwrap();
    assert_eq!((made.port.slug.as_str(), made.token), ("front", None));
    let open = ground.visit("front", &[]).await.unwrap();
    assert_eq!((open.workspace, open.port, open.was_woken), (ground.workspace.id, 3000, false));
    assert!(!open.closed.is_cancelled());

    control.revoke_port(&ground.caller, &ground.which(), 3000).await.unwrap();
    assert!(open.closed.is_cancelled());
    assert_eq!(ground.visit("front", &[]).await.unwrap_err(), PreviewRefusal::NotFound);
    let again = control.revoke_port(&ground.caller, &ground.which(), 3000).await.unwrap_err();
    assert_eq!(again.kind(), &ErrorKind::NotFound { what: "port" });
}

/// Begins `work`, and drops it after it was asked `times` times; whether it had ended by then.
async fn dropped_after<T>(times: u32, work: impl Future<Output = T>) -> bool {
    let mut work = std::pin::pin!(work);
    for _ in 0..times {
        if futures::poll!(work.as_mut()).is_ready() {
            return true;
        }
        tokio::task::yield_now().await;
    }
    false
}

#[tokio::test]
async fn visits_of_a_port_end_with_it_whoever_asked_for_that_and_went_away() {
    let ground = Ground::open().await;
    let control = &ground.test.control;
    for times in 1.. {
        let asked = named(3000, "front");
        control.publish_port(&ground.caller, &ground.which(), asked.clone()).await.unwrap();
        let open = ground.visit("front", &[]).await.unwrap();
        let (which, renamed) = (ground.which(), named(3000, "other"));
        let revoked = dropped_after(times, control.revoke_port(&ground.caller, &which, 3000)).await;
        // What was begun before this is done when this is.
        control.publish_port(&ground.caller, &which, named(81, "beside")).await.unwrap();
        let there = control.list_published_ports(&ground.caller, &which).await.unwrap();
        if there.iter().all(|port| port.port != 3000) {
            within(open.closed.cancelled()).await;
            control.publish_port(&ground.caller, &which, asked).await.unwrap();
        }
        // The same of a change of its address.
        let open = ground.visit("front", &[]).await.unwrap();
        let moved =
            dropped_after(times, control.update_port(&ground.caller, &which, renamed)).await;
        control.publish_port(&ground.caller, &which, named(81, "beside")).await.unwrap();
        let there = control.list_published_ports(&ground.caller, &which).await.unwrap();
        if there.iter().any(|port| port.slug.as_str() == "other") {
            within(open.closed.cancelled()).await;
        }
        if revoked && moved {
            break;
        }
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(60), work).await.unwrap()
}

#[tokio::test]
async fn a_private_port_is_open_to_its_token_and_to_the_accounts_keys() {
    let ground = Ground::open().await;
    let control = &ground.test.control;
    let (_, other_key) = ground.test.other_caller("other").await;
    let request = publish(80, PortVisibility::Private);
    let made = control.publish_port(&ground.caller, &ground.which(), request).await.unwrap();
    let (slug, secret) = (made.port.slug.as_str(), made.token.unwrap());
    let api_key = |key: &str| PreviewCredential::ApiKey(Secret::new(key));
    for shown in [vec![token(secret.expose())], vec![token("x"), api_key(KEY)]] {
        assert_eq!(ground.visit(slug, &shown).await.unwrap().port, 80);
    }
    let wrong = [token("x"), api_key("x"), api_key(other_key.expose()), token(KEY)];
    for shown in [&[][..], &wrong] {
        assert_eq!(ground.visit(slug, shown).await.unwrap_err(), PreviewRefusal::Forbidden);
    }
}

#[tokio::test]
async fn a_new_token_ends_what_the_one_before_has_opened() {
    let ground = Ground::open().await;
    let control = &ground.test.control;
    let request = publish(80, PortVisibility::Private);
    let first =
        control.publish_port(&ground.caller, &ground.which(), request.clone()).await.unwrap();
    let slug = first.port.slug.as_str();
    let shown = [token(first.token.unwrap().expose())];
    let open = ground.visit(slug, &shown).await.unwrap();

    // Another label is no reason to show anybody out.
    let label = PublishPort { label: Some("web".to_owned()), visibility: None, ..request.clone() };
    let named = control.update_port(&ground.caller, &ground.which(), label).await.unwrap();
    assert_eq!((named.port.label.as_deref(), named.token), (Some("web"), None));
    assert!(!open.closed.is_cancelled());

    let second = control.publish_port(&ground.caller, &ground.which(), request).await.unwrap();
    assert_eq!((&second.port.slug, &second.port.id), (&first.port.slug, &first.port.id));
    assert!(open.closed.is_cancelled());
    assert_eq!(ground.visit(slug, &shown).await.unwrap_err(), PreviewRefusal::Forbidden);
    ground.visit(slug, &[token(second.token.unwrap().expose())]).await.unwrap();
}

#[tokio::test]
async fn a_preview_token_opens_every_port_of_its_workspace_alone() {
    let ground = Ground::open().await;
    let workspace = &ground.workspace;
    let secret = workspace.preview_token.expose();
    let open = ground.by_token(workspace.id.as_u128(), secret).await.unwrap();
    assert_eq!((open.workspace, open.port), (workspace.id, 3000));
    let by_project = ground.by_token(workspace.project_id.as_u128(), secret).await.unwrap();
    assert_eq!(by_project.workspace, workspace.id);

    let (other, _) = ground.test.other_caller("other").await;
    let theirs = ground.test.control.create_workspace(&other, running()).await.unwrap();
    let wrong = ground.by_token(theirs.id.as_u128(), secret).await.unwrap_err();
    assert_eq!(wrong, PreviewRefusal::Forbidden);
    let nobody = ground.by_token(!workspace.id.as_u128(), secret).await.unwrap_err();
    assert_eq!(nobody, PreviewRefusal::NotFound);
}

#[tokio::test]
async fn a_visit_wakes_a_workspace_that_may_be_woken() {
    let sleepy = CreateWorkspace { auto_resume: true, ..running() };
    let ground = Ground::with(sleepy).await;
    let control = &ground.test.control;
    control.publish_port(&ground.caller, &ground.which(), named(80, "front")).await.unwrap();
    control.suspend_workspace(&ground.caller, &ground.which(), LONG).await.unwrap();
    let visits = (0..8).map(|_| ground.visit("front", &[]));
    for visit in futures::future::join_all(visits).await {
        assert!(visit.unwrap().was_woken);
    }
    let now = ground::now(&ground.test, &ground.workspace).await;
    assert_eq!(now.incarnation.0, 2, "one wake for all");

    control.stop_workspace(&ground.caller, &ground.which(), LONG).await.unwrap();
    assert_eq!(ground.visit("front", &[]).await.unwrap_err(), PreviewRefusal::NotRunning);
}

#[tokio::test]
async fn bad_ports_are_named_with_what_is_allowed() {
    let ground = Ground::open().await;
    let control = &ground.test.control;
    let token_host = format!("3000-9f1c0de5-{}", "a".repeat(32));
    for (request, field) in [
        (named(0, "front"), "port"),
        (named(80, "-front"), "slug"),
        (named(80, "oblien"), "slug"),
        (named(80, &token_host), "slug"),
        (PublishPort { label: Some("\n".to_owned()), ..named(80, "front") }, "label"),
    ] {
        let error = control.publish_port(&ground.caller, &ground.which(), request).await;
        let ErrorKind::Invalid(invalid) = error.unwrap_err().kind().clone() else { panic!() };
        assert_eq!(invalid.field, field);
    }
    assert_eq!(control.list_published_ports(&ground.caller, &ground.which()).await.unwrap(), []);
}

#[tokio::test]
async fn another_tenants_ports_are_not_found_and_their_slugs_are_taken() {
    let ground = Ground::open().await;
    let control = &ground.test.control;
    let (other, _) = ground.test.other_caller("other").await;
    let theirs = control.create_workspace(&other, running()).await.unwrap();
    control.publish_port(&other, &by_id(&theirs), named(80, "front")).await.unwrap();
    let caller = &ground.caller;
    let missing = ErrorKind::NotFound { what: "workspace" };
    let which = by_id(&theirs);
    let refused = control.publish_port(caller, &which, named(81, "mine")).await.unwrap_err();
    assert_eq!(refused.kind(), &missing);
    assert_eq!(control.revoke_port(caller, &which, 80).await.unwrap_err().kind(), &missing);
    let listed = control.list_published_ports(caller, &which).await.unwrap_err();
    assert_eq!(listed.kind(), &missing);
    let shown = control.published_port(caller, "front").await.unwrap_err();
    assert_eq!(shown.kind(), &ErrorKind::NotFound { what: "port" });
    let taken = control.publish_port(caller, &ground.which(), named(80, "front")).await;
    assert!(matches!(taken.unwrap_err().kind(), ErrorKind::Conflict(_)));
}

#[tokio::test]
async fn a_workspace_publishes_twenty_ports_and_takes_them_with_it() {
    let ground = Ground::open().await;
    let control = &ground.test.control;
    for port in 1..=20 {
        let request = named(port, &format!("port-{port}"));
        control.publish_port(&ground.caller, &ground.which(), request).await.unwrap();
    }
    let more = control.publish_port(&ground.caller, &ground.which(), named(21, "more")).await;
    assert!(matches!(more.unwrap_err().kind(), ErrorKind::Conflict(_)));
    control.delete_workspace(&ground.caller, &ground.which(), LONG).await.unwrap();
    assert_eq!(ground.visit("port-1", &[]).await.unwrap_err(), PreviewRefusal::NotFound);
}
