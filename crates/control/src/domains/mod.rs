//! Custom domains: names that people have brought for their published ports.

mod certificates;
mod check;

use std::{collections::HashSet, sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use skerry_internal_api::{EdgeApi, EdgeError};
use skerry_model::{
    AccountId, CustomDomain, DnsAccess, DomainId, DomainState, ErrorKind, HostName, Invalid,
    Issuance, Timestamp, check_domain_name,
};
use tokio::{sync::Mutex, time::timeout};

pub(crate) use certificates::attend;
pub use check::DomainCheck;

use crate::{
    Caller, Control, Error, PublishedPort,
    control::Inner,
    store::{DomainInsertion, Write},
};

/// Domains that one account has.
pub const DOMAINS_MAX: u32 = 100;
/// Of a proof: it tells accounts from each other, and is no secret.
const PROOF_BYTES: usize = 16;
/// A backstop above the edge's own bound of a question to name servers.
const ASK_WITHIN: Duration = Duration::from_secs(30);
/// How often a change is computed anew because the record changed meanwhile.
const MAX_REDOS: u32 = 32;

/// The edge, and what it was told.
pub(crate) struct Edge {
    pub(crate) api: Arc<dyn EdgeApi>,
    /// Held while it is told: of two at a time the later reading of the records must be told last.
    telling: Mutex<()>,
    /// The domains of the server itself: nobody brings them.
    ours: Vec<String>,
}

/// Which domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainRef {
    /// By its identity.
    Id(DomainId),
    /// By its number.
    Number(u64),
    /// By its name, or anything else somebody typed.
    Name(String),
}

/// A domain and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainView {
    /// The record.
    pub domain: CustomDomain,
    /// Its state now.
    pub state: DomainState,
    /// The port.
    pub port: PublishedPort,
}

impl Control {
    /// Has names served by this edge, and those that are proven at once. `ours` are the domains of the
    /// server itself, lower case: nobody can bring them or a name below them.
    ///
    /// # Errors
    /// Faults of the store; `Conflict` when there is an edge already.
    pub async fn attach_edge(
        &self,
        edge: Arc<dyn EdgeApi>,
        ours: Vec<String>,
    ) -> Result<(), Error> {
        let edge = Edge { api: edge, telling: Mutex::default(), ours };
        let there = |_| Error::new(ErrorKind::Conflict("there is an edge already".to_owned()));
        self.inner.edge.set(edge).map_err(there)?;
        self.inner.tell_edge().await?;
        self.inner.show_certificates().await?;
        self.inner.domains_changed.notify_one();
        Ok(())
    }

    /// Whether certificates are got for names that are brought.
    #[must_use]
    pub fn gets_certificates(&self) -> bool {
        self.inner.edge.get().is_some_and(|edge| edge.api.issuer().is_some())
    }

    /// Claims a name for a published port of the caller's. Nobody is served by it until it is verified.
    /// Claims do not exclude each other: the name is the account's that proves it first. With `dns` its
    /// certificates are got by records in its zone.
    ///
    /// # Errors
    /// `Invalid` (`domain`, `dns_provider` where no certificates are got); `NotFound` (`port`); `Conflict` when the account has claimed it, another
    /// has proven it, or there are [`DOMAINS_MAX`].
    pub async fn add_domain(
        &self,
        caller: &Caller,
        name: &str,
        port: &PublishedPort,
        dns: Option<DnsAccess>,
    ) -> Result<DomainView, Error> {
        let edge = self.inner.edge()?;
        let name = check_domain_name(name, &edge.ours)?;
        if dns.is_some() {
            edge.check_use_of_dns()?;
        }
        let owner = self.inner.store.workspace(port.workspace_id).await?;
        if owner.is_none_or(|workspace| workspace.account_id != caller.account_id) {
            return Err(Error::not_found("port"));
        }
        let domain = CustomDomain {
            id: DomainId::from_random(self.inner.random()),
            number: 0,
            account_id: caller.account_id,
            port_id: port.id,
            proof: proof_of(caller.account_id, &name),
            name,
            dns_provider: dns.as_ref().map(DnsAccess::kind),
            proven_at: None,
            certificate_not_after: None,
            failures: 0,
            last_error: None,
            next_attempt_at: None,
            created_at: self.inner.now(),
            revision: 0,
        };
        let conflict = |why: &str| Err(Error::new(ErrorKind::Conflict(why.to_owned())));
        match self.inner.store.insert_domain(&domain, dns.as_ref(), DOMAINS_MAX).await? {
            DomainInsertion::Done(domain) => Ok(DomainView {
                state: domain.state(self.now()),
                domain: *domain,
                port: port.clone(),
            }),
            DomainInsertion::Claimed => conflict("this domain was added already"),
            DomainInsertion::Taken => conflict(UNAVAILABLE),
            DomainInsertion::TooMany => {
                conflict(&format!("an account has at most {DOMAINS_MAX} domains"))
            }
            DomainInsertion::NoPort => Err(Error::not_found("port")),
        }
    }

    /// The caller's domains, oldest first.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn list_domains(&self, caller: &Caller) -> Result<Vec<DomainView>, Error> {
        let mut views = Vec::new();
        for domain in self.inner.store.list_domains(caller.account_id).await? {
            // One that goes with its port meanwhile is not there.
            views.extend(self.inner.domain_view(domain).await?);
        }
        Ok(views)
    }

    /// One of the caller's domains.
    ///
    /// # Errors
    /// `NotFound` (`domain`).
    pub async fn domain(&self, caller: &Caller, which: &DomainRef) -> Result<DomainView, Error> {
        let domain = self.find_domain(caller, which).await?;
        self.inner.domain_view(domain).await?.ok_or_else(missing)
    }

    /// Looks for the proof of a domain that is pending; it is served from then on, and a certificate is
    /// got if the edge gets any. What is missing is in the record's `last_error`. One that is verified
    /// already and could not get a certificate is tried again soon.
    ///
    /// # Errors
    /// `NotFound` (`domain`); `Conflict` when another account has proven the name.
    pub async fn verify_domain(
        &self,
        caller: &Caller,
        which: &DomainRef,
    ) -> Result<DomainView, Error> {
        let edge = self.inner.edge()?;
        let mut domain = self.find_domain(caller, which).await?;
        let mut asked = None;
        for _ in 0..MAX_REDOS {
            let mut changed = domain.clone();
            if domain.proven_at.is_some() {
                changed.hurry(self.now());
            } else {
                if asked.is_none() {
                    asked = Some(proof(edge, &domain).await);
                }
                let issuance = match edge.api.issuer() {
                    Some(_) => Issuance::Automatic,
                    None => Issuance::None,
                };
                match asked.as_ref() {
                    Some(Ok(())) => changed.prove(self.now(), issuance),
                    Some(Err(why)) => changed.miss_proof(why),
                    None => {}
                }
            }
            if changed == domain {
                return self.inner.domain_view(domain).await?.ok_or_else(missing);
            }
            match self.inner.store.update_domain(&changed, None).await? {
                Write::Done(written) => {
                    self.inner.domains_changed.notify_one();
                    self.inner.tell_edge().await?;
                    return self.inner.domain_view(written).await?.ok_or_else(missing);
                }
                Write::Taken => return Err(ErrorKind::Conflict(UNAVAILABLE.to_owned()).into()),
                Write::Stale => {
                    let again = self.inner.store.domain(domain.id).await?;
                    domain = again.ok_or_else(missing)?;
                }
            }
        }
        Err(ErrorKind::Unavailable("the domain is being changed by others".to_owned()).into())
    }

    /// Gives a name up. Requests for it are not served from the next one on, and its certificate and
    /// key are forgotten.
    ///
    /// # Errors
    /// `NotFound` (`domain`).
    pub async fn remove_domain(
        &self,
        caller: &Caller,
        which: &DomainRef,
    ) -> Result<CustomDomain, Error> {
        let domain = self.find_domain(caller, which).await?;
        if !self.inner.store.remove_domain(caller.account_id, domain.id).await? {
            return Err(missing());
        }
        self.inner.tell_edge().await?;
        Ok(domain)
    }

    async fn find_domain(&self, caller: &Caller, which: &DomainRef) -> Result<CustomDomain, Error> {
        let name = match which {
            DomainRef::Id(_) | DomainRef::Number(_) => None,
            DomainRef::Name(text) => Some(HostName::parse(text).map_err(|_| missing())?),
        };
        let is_meant = |domain: &CustomDomain| match which {
            DomainRef::Id(id) => domain.id == *id,
            DomainRef::Number(number) => domain.number == *number,
            DomainRef::Name(_) => name.as_ref() == Some(&domain.name),
        };
        let all = self.inner.store.list_domains(caller.account_id).await?;
        all.into_iter().find(is_meant).ok_or_else(missing)
    }
}

impl Edge {
    /// What is of no use is not accepted.
    fn check_use_of_dns(&self) -> Result<(), Invalid> {
        match self.api.issuer() {
            Some(_) => Ok(()),
            None => Err(Invalid {
                field: "dns_provider",
                problem: "is of no use: this server gets no certificates".to_owned(),
                allowed: "none".to_owned(),
            }),
        }
    }
}

/// Says nothing of whose it is.
const UNAVAILABLE: &str =
    "this domain is not available: it was verified for another workspace here";

/// What tells an account's proof for a name from those of others. It is the same whenever it is asked for:
/// whoever gives a name up and takes it back need not change the DNS, and it can be told beforehand.
fn proof_of(account: AccountId, name: &HostName) -> String {
    let digest = Sha256::digest(format!("skerry custom domain\0{account}\0{name}"));
    digest.iter().take(PROOF_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

fn missing() -> Error {
    Error::not_found("domain")
}

/// Whether the proof is there now; if not, why not.
async fn proof(edge: &Edge, domain: &CustomDomain) -> Result<(), String> {
    let name = domain.challenge_name();
    // The rules for names of domains leave room for it.
    let asked = HostName::parse(&name).map_err(|invalid| invalid.to_string())?;
    match timeout(ASK_WITHIN, edge.api.texts(&asked)).await {
        Ok(Ok(texts)) if domain.is_proven_by(&texts) => Ok(()),
        Ok(Ok(texts)) if texts.is_empty() => Err(format!("there is no TXT record {name}")),
        Ok(Ok(_)) => Err(format!("no TXT record {name} says {}", domain.challenge_value())),
        Ok(Err(EdgeError(why))) => Err(why),
        Err(_) => Err("the name servers did not answer in time".to_owned()),
    }
}

impl Inner {
    pub(crate) fn edge(&self) -> Result<&Edge, Error> {
        let none = || ErrorKind::Unavailable("this server serves no custom domains".to_owned());
        self.edge.get().ok_or_else(|| none().into())
    }

    async fn domain_view(&self, domain: CustomDomain) -> Result<Option<DomainView>, Error> {
        let port = self.store.port(domain.port_id).await?;
        let state = domain.state(self.now());
        Ok(port.map(|stored| DomainView { domain, state, port: stored.port }))
    }

    /// Tells the edge which names are served.
    pub(crate) async fn tell_edge(&self) -> Result<(), Error> {
        let Some(edge) = self.edge.get() else { return Ok(()) };
        let _telling = edge.telling.lock().await;
        let names: HashSet<HostName> = self.store.proven_names().await?.into_iter().collect();
        edge.api.serve(names);
        Ok(())
    }

    /// When something is next to be done for a domain.
    async fn next_domain(&self) -> Result<Option<Timestamp>, Error> {
        self.store.next_due_domain().await
    }
}
