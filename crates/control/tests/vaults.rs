//! Vaults of workspaces, on the simulated node.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ground;

use std::time::Duration;

use ground::{LONG, by_id, is_running, provisioned, running};
use skerry_control::{
    Caller, CreateWorkspace, Error, ForkWorkspace, NewCredential, NewService, StartPolicy,
    internal_api::{ExecRequest, InjectedRequest, Injection, Injections, NodeError, User},
    sim_node::{Point, SimNode},
    testing::{self, TestControl},
};
use skerry_model::{
    Destination, EgressRule, EgressWish, ErrorKind, NetworkWish, Secret, ServiceAuth, Vault,
    VaultCredential, VaultId, Workspace,
};

async fn networked() -> TestControl {
    let test = testing::open().await;
    test.node.set_network(Some(SimNode::NETWORK));
    test
}

fn bearer(token: &str) -> ServiceAuth {
    ServiceAuth::Bearer { token: token.to_owned() }
}

async fn credential(
    test: &TestControl,
    vault: VaultId,
    name: &str,
    value: &str,
) -> VaultCredential {
    let new = NewCredential {
        name: name.to_owned(),
        value: Secret::new(value),
        kind: None,
        description: None,
    };
    let caller = test.caller().await;
    test.control.add_vault_credential(&caller, vault, new).await.unwrap()
}

async fn service(test: &TestControl, vault: VaultId, host: &str, auth: ServiceAuth) {
    let new = NewService { host: host.to_owned(), auth, is_enabled: true, description: None };
    let caller = test.caller().await;
    test.control.add_vault_services(&caller, vault, vec![new]).await.unwrap();
}

/// A vault with one credential, for one host.
async fn vault(test: &TestControl, host: &str, name: &str, value: &str) -> Vault {
    let caller = test.caller().await;
    let made = test.control.create_vault(&caller, "keys", None).await.unwrap();
    credential(test, made.id, name, value).await;
    service(test, made.id, host, bearer(name)).await;
    made
}

async fn with(test: &TestControl, caller: &Caller, vaults: &[VaultId]) -> Workspace {
    let request = CreateWorkspace { vaults: vaults.to_vec(), ..running() };
    let made = test.control.create_workspace(caller, request).await.unwrap();
    assert!(is_running(&made), "{made:?}");
    made
}

/// What each host is given: headers, as `name: value`.
fn given(injections: &Injections) -> Vec<(String, String)> {
    let text = |injection: &Injection| match injection {
        Injection::Headers(headers) => headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.expose()))
            .collect::<Vec<_>>()
            .join("; "),
        Injection::Path { placeholder, value } => format!("{placeholder} -> {}", value.expose()),
        Injection::Nothing => "nothing".to_owned(),
        Injection::Missing { credential } => format!("{credential} is missing"),
    };
    let services = injections.services.iter();
    services.map(|one| (one.host.to_string(), text(&one.injection))).collect()
}

fn pair(host: &str, text: &str) -> (String, String) {
    (host.to_owned(), text.to_owned())
}

fn invalid(error: &Error) -> &'static str {
    let ErrorKind::Invalid(invalid) = error.kind() else { panic!("{error}") };
    invalid.field
}

#[tokio::test]
async fn a_vm_with_a_vault_is_given_its_credentials_and_may_reach_its_hosts() {
    let test = networked().await;
    let caller = test.caller().await;
    let vault = vault(&test, "api.example", "API_KEY", "sk-1").await;
    let request = CreateWorkspace {
        vaults: vec![vault.id],
        network: Some(NetworkWish { egress: EgressWish::default(), ..NetworkWish::default() }),
        ..running()
    };
    let made = test.control.create_workspace(&caller, request).await.unwrap();
    let injections = test.node.injections(made.id);
    assert_eq!(given(&injections), [pair("api.example", "authorization: Bearer sk-1")]);
    assert!(injections.issuer.is_some());
    let policy = test.node.policy(made.id).unwrap();
    let host = Destination::Name("api.example".parse().unwrap());
    assert_eq!(policy.egress, [EgressRule::tcp(host, 443).unwrap()].into());
    assert!(policy.inspects_tls);
    // One without vaults has nothing of it.
    let other = with(&test, &caller, &[]).await;
    assert_eq!(test.node.injections(other.id), Injections::default());
    assert!(!test.node.policy(other.id).unwrap().inspects_tls);
}

#[tokio::test]
async fn every_kind_of_service_gives_what_it_says() {
    let test = networked().await;
    let caller = test.caller().await;
    let made = test.control.create_vault(&caller, "keys", None).await.unwrap();
    credential(&test, made.id, "USER", "ada").await;
    credential(&test, made.id, "KEY", "k").await;
    let text = |text: &str| text.to_owned();
    let services = [
        ServiceAuth::ApiKey { header: text("X-Key"), key: text("KEY"), prefix: text("Token ") },
        ServiceAuth::Basic { username: text("USER"), password: text("KEY") },
        ServiceAuth::Custom { headers: vec![(text("X-A"), text("{{ USER }}/{{KEY}}"))] },
        ServiceAuth::UrlPath { token: text("KEY"), placeholder: text("HERE") },
        ServiceAuth::Passthrough,
        bearer("NOT_THERE"),
    ];
    for (number, auth) in services.into_iter().enumerate() {
        service(&test, made.id, &format!("h{number}.example"), auth).await;
    }
    let disabled = NewService {
        host: text("h9.example"),
        auth: bearer("KEY"),
        is_enabled: false,
        description: None,
    };
    test.control.add_vault_services(&caller, made.id, vec![disabled]).await.unwrap();
    let workspace = with(&test, &caller, &[made.id]).await;
    assert_eq!(
        given(&test.node.injections(workspace.id)),
        [
            pair("h0.example", "X-Key: Token k"),
            pair("h1.example", "authorization: Basic YWRhOms="),
            pair("h2.example", "X-A: ada/k"),
            pair("h3.example", "HERE -> k"),
            pair("h4.example", "nothing"),
            pair("h5.example", "NOT_THERE is missing"),
        ]
    );
}

#[tokio::test]
async fn what_changes_in_a_vault_reaches_the_vms_that_use_it() {
    let test = networked().await;
    let caller = test.caller().await;
    let made = test.control.create_vault(&caller, "keys", None).await.unwrap();
    let workspace = with(&test, &caller, &[made.id]).await;
    let now = || given(&test.node.injections(workspace.id));
    assert!(now().is_empty());
    service(&test, made.id, "api.example", bearer("KEY")).await;
    assert_eq!(now(), [pair("api.example", "KEY is missing")]);
    let kept = credential(&test, made.id, "KEY", "one").await;
    assert_eq!(now(), [pair("api.example", "authorization: Bearer one")]);
    let control = &test.control;
    let two = Secret::new("two");
    control.rotate_vault_credential(&caller, made.id, kept.id, two).await.unwrap();
    assert_eq!(now(), [pair("api.example", "authorization: Bearer two")]);
    // A node that cannot be told at once is told later.
    test.node.fail_next(Point::SetInjections, NodeError::Step { step: "network_policy" });
    control.remove_vault_credential(&caller, made.id, kept.id).await.unwrap();
    testing::quiet(&test.control).await;
    assert_eq!(now(), [pair("api.example", "KEY is missing")]);
    let services = control.list_vault_services(&caller, made.id).await.unwrap();
    control.remove_vault_service(&caller, made.id, services[0].id).await.unwrap();
    assert!(now().is_empty());
    assert!(!test.node.policy(workspace.id).unwrap().inspects_tls);
}

#[tokio::test]
async fn vaults_are_used_from_the_moment_they_are_named_and_the_first_comes_first() {
    let test = networked().await;
    let caller = test.caller().await;
    let first = vault(&test, "api.example", "A", "one").await;
    let second = vault(&test, "*.example", "B", "two").await;
    let workspace = with(&test, &caller, &[]).await;
    let which = by_id(&workspace);
    test.control.set_vaults(&caller, &which, &[second.id]).await.unwrap();
    test.control.add_vaults(&caller, &which, &[first.id, second.id]).await.unwrap();
    let of = |host: &str| {
        let injections = test.node.injections(workspace.id);
        injections.service_of(&host.parse().unwrap()).map(|service| service.vault_id)
    };
    assert_eq!(of("api.example"), Some(second.id));
    let changed = test.control.set_vaults(&caller, &which, &[first.id, second.id]).await.unwrap();
    assert_eq!(changed.spec.vaults, [first.id, second.id]);
    assert_eq!((of("api.example"), of("b.example")), (Some(first.id), Some(second.id)));
    test.control.delete_vault(&caller, first.id).await.unwrap();
    testing::quiet(&test.control).await;
    assert_eq!(of("api.example"), Some(second.id));
    test.control.set_vaults(&caller, &which, &[]).await.unwrap();
    assert_eq!(test.node.injections(workspace.id), Injections::default());
}

#[tokio::test]
async fn commands_find_the_names_of_credentials_and_where_certificates_are() {
    let test = networked().await;
    let caller = test.caller().await;
    let vault = vault(&test, "api.example", "API_KEY", "sk-secret").await;
    credential(&test, vault.id, "not-a-variable", "sk-other").await;
    let env = |workspace: Workspace| {
        let (control, caller) = (test.control.clone(), caller.clone());
        async move {
            let guest = control.guest(&caller, &by_id(&workspace)).await.unwrap();
            let request = ExecRequest {
                argv: vec!["env".to_owned()],
                env: [("OWN".to_owned(), "1".to_owned())].into(),
                working_dir: None,
                user: User::Root,
                pty: None,
                timeout: None,
            };
            let mut session = guest.exec(request).await.unwrap();
            let mut said = String::new();
            while let Some(piece) = session.output.recv().await {
                use skerry_control::internal_api::ExecOutput;
                if let ExecOutput::Stdout(bytes) = piece.unwrap() {
                    said.push_str(std::str::from_utf8(&bytes).unwrap());
                }
            }
            said
        }
    };
    let started = with(&test, &caller, &[vault.id]).await;
    let late = with(&test, &caller, &[]).await;
    assert!(!env(late.clone()).await.contains("API_KEY"));
    let late = test.control.set_vaults(&caller, &by_id(&late), &[vault.id]).await.unwrap();
    for workspace in [started, late] {
        let env = env(workspace).await;
        assert!(env.contains("API_KEY=API_KEY\n") && env.contains("OWN=1\n"), "{env}");
        assert!(env.contains("NODE_EXTRA_CA_CERTS=/usr/local/share/"), "{env}");
        assert!(env.contains("SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt\n"), "{env}");
        assert!(!env.contains("not-a-variable") && !env.contains("sk-"), "{env}");
    }
}

#[tokio::test]
async fn forks_use_what_their_source_uses_and_trust_the_same_authority() {
    let test = networked().await;
    let caller = test.caller().await;
    let vault = vault(&test, "api.example", "A", "one").await;
    let source = with(&test, &caller, &[vault.id]).await;
    let request = ForkWorkspace {
        count: 1,
        name: None,
        metadata: None,
        snapshot_name: None,
        start: StartPolicy::Now(LONG),
    };
    let forked = test.control.fork_workspace(&caller, &by_id(&source), request).await.unwrap();
    let fork = &forked.workspaces[0];
    assert!(is_running(fork), "{fork:?}");
    let (of_source, of_fork) = (test.node.injections(source.id), test.node.injections(fork.id));
    assert_eq!(given(&of_source), given(&of_fork));
    let (one, other) = (of_source.issuer.unwrap(), of_fork.issuer.unwrap());
    // Each workspace has its own, and both are certified by the account's, which is what is trusted.
    assert_ne!(one.certificate, other.certificate);
    assert!(one.key != other.key);
}

#[tokio::test]
async fn vaults_of_others_and_too_many_are_refused_and_so_is_what_reaches_nothing() {
    let test = networked().await;
    let caller = test.caller().await;
    let nobodys = VaultId::from_u128(7);
    let request = CreateWorkspace { vaults: vec![nobodys], ..provisioned() };
    let refused = test.control.create_workspace(&caller, request).await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::NotFound { what: "vault" });
    let mut many = Vec::new();
    for _ in 0..9 {
        many.push(test.control.create_vault(&caller, "keys", None).await.unwrap().id);
    }
    let request = CreateWorkspace { vaults: many.clone(), ..provisioned() };
    let refused = test.control.create_workspace(&caller, request).await.unwrap_err();
    assert_eq!(invalid(&refused), "vault_ids");
    let (_, key) = test.control.create_account("other").await.unwrap();
    let credential = skerry_control::Credential { secret: key.secret, account: None };
    let other = test.control.authenticate(&credential).await.unwrap();
    let refused = test.control.vault(&other, many[0]).await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::NotFound { what: "vault" });
    test.node.set_network(Some(SimNode::NETWORK_WITHOUT_UPLINK));
    let request = CreateWorkspace { vaults: vec![many[0]], ..provisioned() };
    let refused = test.control.create_workspace(&caller, request).await.unwrap_err();
    assert_eq!(invalid(&refused), "vault_ids");
}

#[tokio::test]
async fn what_went_out_by_a_vault_is_noted_in_it() {
    let test = networked().await;
    let caller = test.caller().await;
    let vault = vault(&test, "api.example", "A", "one").await;
    let workspace = with(&test, &caller, &[vault.id]).await;
    for status in [200, 502] {
        test.node.report_injected(InjectedRequest {
            vault_id: vault.id,
            workspace_id: workspace.id,
            host: "api.example".to_owned(),
            method: "GET".to_owned(),
            status,
            credentials: vec!["A".to_owned()],
        });
    }
    let noted = async {
        loop {
            let noted = test.control.vault_requests(&caller, vault.id, 10).await.unwrap();
            if noted.len() == 2 {
                return noted;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let noted = tokio::time::timeout(Duration::from_secs(60), noted).await.unwrap();
    let statuses: Vec<u16> = noted.iter().map(|one| one.status).collect();
    assert_eq!(statuses, [502, 200]);
    assert_eq!(noted[0].workspace_id, workspace.id);
}
