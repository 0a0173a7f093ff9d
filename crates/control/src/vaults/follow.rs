//! What follows from vaults for the VMs that use them, and what is noted of what they did.

use std::{collections::BTreeSet, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use skerry_internal_api::{InjectedRequest, InjectedService, Injection, Injections};
use skerry_model::{
    Destination, EgressRule, EnvVar, NamePattern, NetworkPolicy, Secret, ServiceAuth, Transport,
    VaultId, VaultRequest, Workspace,
    vault::{MAX_SERVICES_OF_A_WORKSPACE, MAX_VAULT_REQUESTS, TemplatePart, parts},
};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{Error, control::Inner, store::CredentialValue};

/// The port of HTTP over TLS: the only one at which requests are given anything.
const HTTPS_PORT: u16 = 443;
/// Requests that are noted in one write at most.
const NOTED_TOGETHER: usize = 256;

/// Where the system's certificates are, ours among them.
pub(super) const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Ours alone.
pub(super) const OWN: &str = "/usr/local/share/ca-certificates/skerry-vaults.crt";

/// Programs that have certificates of their own, told where the system's are: OpenSSL's, Python's
/// requests, curl's, pip's and the AWS CLI's; Node.js is told what to add.
const TRUST: [(&str, &str); 6] = [
    ("SSL_CERT_FILE", BUNDLE),
    ("REQUESTS_CA_BUNDLE", BUNDLE),
    ("CURL_CA_BUNDLE", BUNDLE),
    ("PIP_CERT", BUNDLE),
    ("AWS_CA_BUNDLE", BUNDLE),
    ("NODE_EXTRA_CA_CERTS", OWN),
];

struct Values(Vec<CredentialValue>);

impl Values {
    fn of(&self, vault: VaultId, name: &str) -> Result<&Secret, String> {
        let found = self.0.iter().find(|one| one.vault_id == vault && one.name == name);
        found.map(|one| &one.value).ok_or_else(|| name.to_owned())
    }

    /// What a service does now; `Err`: the credential that is missing.
    fn injection(&self, vault: VaultId, auth: &ServiceAuth) -> Result<Injection, String> {
        let value = |name: &str| self.of(vault, name);
        let one = |name: &str, value: String| {
            Injection::Headers(vec![(name.to_owned(), Secret::new(value))])
        };
        const AUTHORIZATION: &str = "authorization";
        Ok(match auth {
            ServiceAuth::Bearer { token } => {
                one(AUTHORIZATION, format!("Bearer {}", value(token)?.expose()))
            }
            ServiceAuth::ApiKey { header, key, prefix } => {
                one(header, format!("{prefix}{}", value(key)?.expose()))
            }
            ServiceAuth::Basic { username, password } => {
                let both = format!("{}:{}", value(username)?.expose(), value(password)?.expose());
                one(AUTHORIZATION, format!("Basic {}", STANDARD.encode(both)))
            }
            ServiceAuth::Custom { headers } => {
                let header = |(name, template): &(String, String)| {
                    let rendered = parts(template).into_iter().map(|part| match part {
                        TemplatePart::Text(text) => Ok(text),
                        TemplatePart::Credential(name) => value(name).map(Secret::expose),
                    });
                    let rendered: String = rendered.collect::<Result<_, _>>()?;
                    Ok((name.clone(), Secret::new(rendered)))
                };
                Injection::Headers(headers.iter().map(header).collect::<Result<_, String>>()?)
            }
            ServiceAuth::UrlPath { token, placeholder } => {
                Injection::Path { placeholder: placeholder.clone(), value: value(token)?.clone() }
            }
            ServiceAuth::Passthrough => Injection::Nothing,
        })
    }
}

impl Inner {
    /// What the guest's requests are given, as it follows from the store. Of several services for a host,
    /// one of a vault that is named earlier counts, and in a vault the older one.
    pub(crate) async fn injections_of(&self, workspace: &Workspace) -> Result<Injections, Error> {
        if workspace.spec.vaults.is_empty() {
            return Ok(Injections::default());
        }
        let vaults = &workspace.spec.vaults;
        let values = Values(self.store.credential_values(vaults).await?);
        let mut services = Vec::new();
        for vault in vaults {
            let enabled = self.store.vault_services(*vault).await?;
            for service in enabled.into_iter().filter(|service| service.is_enabled) {
                let missing = |credential| Injection::Missing { credential };
                let names = service.auth.credentials();
                services.push(InjectedService {
                    vault_id: *vault,
                    injection: values.injection(*vault, &service.auth).unwrap_or_else(missing),
                    credentials: names.into_iter().map(str::to_owned).collect(),
                    host: service.host,
                });
            }
        }
        if services.len() > MAX_SERVICES_OF_A_WORKSPACE {
            tracing::warn!(workspace.id = %workspace.id, services = services.len(),
                "more services of vaults than a workspace can use: the last are not used");
            services.truncate(MAX_SERVICES_OF_A_WORKSPACE);
        }
        let issuer = match services.is_empty() {
            true => None,
            false => Some(self.issuer_of(workspace.account_id, workspace.id).await?),
        };
        Ok(Injections { issuer, services })
    }

    /// What is in the environment of a workspace's processes: its own variables, and what its vaults put
    /// there beside them. A credential's variable holds its name.
    pub(crate) async fn env_of(&self, workspace: &Workspace) -> Result<Vec<EnvVar>, Error> {
        let mut env = workspace.spec.env.clone();
        env.extend(self.env_of_vaults(workspace).await?);
        Ok(env)
    }

    /// What vaults put into the environment of every process.
    pub(crate) async fn env_of_vaults(&self, workspace: &Workspace) -> Result<Vec<EnvVar>, Error> {
        if workspace.spec.vaults.is_empty() {
            return Ok(Vec::new());
        }
        let mut names = BTreeSet::new();
        for vault in &workspace.spec.vaults {
            let credentials = self.store.vault_credentials(*vault).await?;
            names.extend(credentials.into_iter().map(|credential| credential.name));
        }
        let own = |name: &str| workspace.spec.env.iter().any(|variable| variable.key == name);
        let placeholders = names.into_iter().map(|name| (name.clone(), name));
        let trust = TRUST.map(|(name, path)| (name.to_owned(), path.to_owned()));
        let all = trust.into_iter().chain(placeholders);
        let is_variable = |name: &str| EnvVar::check_all(&[variable(name, "")]).is_ok();
        let added = all.filter(|(name, _)| is_variable(name) && !own(name));
        Ok(added.map(|(name, value)| variable(&name, &value)).collect())
    }
}

fn variable(key: &str, value: &str) -> EnvVar {
    EnvVar { key: key.to_owned(), value: value.to_owned() }
}

/// Lets a VM reach the hosts for which it is given something.
pub(crate) fn permit(policy: &mut NetworkPolicy, injections: &Injections) -> Result<(), Error> {
    let everywhere = policy.permits_anywhere(Transport::Tcp, HTTPS_PORT);
    let hosts: BTreeSet<NamePattern> =
        injections.services.iter().map(|service| service.host.clone()).collect();
    policy.inspects_tls = !hosts.is_empty();
    for host in hosts.into_iter().filter(|_| !everywhere) {
        policy.egress.insert(EgressRule::tcp(Destination::Name(host), HTTPS_PORT)?);
    }
    Ok(())
}

/// Keeps what the node says was sent out, until control ends.
pub(crate) async fn note_requests(inner: Arc<Inner>, mut requests: Receiver<InjectedRequest>) {
    loop {
        let first = tokio::select! {
            () = inner.ending.cancelled() => return,
            first = requests.recv() => first,
        };
        let mut noted = Vec::new();
        let mut next = first;
        loop {
            match next {
                Ok(request) => noted.push(record(&inner, request)),
                Err(RecvError::Lagged(lost)) => {
                    tracing::warn!(lost, "requests by vaults were not noted: too many at once");
                }
                Err(RecvError::Closed) => return,
            }
            if noted.len() >= NOTED_TOGETHER {
                break;
            }
            match requests.try_recv() {
                Ok(request) => next = Ok(request),
                Err(_) => break,
            }
        }
        if let Err(error) = inner.store.note_vault_requests(&noted, MAX_VAULT_REQUESTS).await {
            tracing::warn!(%error, "requests by vaults could not be noted");
        }
    }
}

fn record(inner: &Inner, request: InjectedRequest) -> VaultRequest {
    VaultRequest {
        vault_id: request.vault_id,
        workspace_id: request.workspace_id,
        at: inner.now(),
        host: request.host,
        method: request.method,
        status: request.status,
        credentials: request.credentials,
    }
}
