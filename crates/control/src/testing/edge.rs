//! An edge whose DNS and issuer of certificates are tables.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use skerry_internal_api::{EdgeApi, EdgeError};
use skerry_model::{DnsProvider, HostName, Issuance, KeyedCertificate, Secret, Timestamp};
use tokio::sync::watch;

use super::TestControl;

/// Who we are at the issuer of a [`PlayedEdge`].
pub const ISSUER_ACCOUNT: &str = "credentials at the issuer";
/// The key of each of its certificates.
pub const CERTIFICATE_KEY: &str = "the private key";
/// How long they are good.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// The edge of a test.
pub struct PlayedEdge {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    issuance: Issuance,
    tables: Mutex<Tables>,
    /// The names that are served.
    pub served: watch::Sender<HashSet<HostName>>,
    /// The certificates that were shown, one after the other.
    pub shown: watch::Sender<Vec<(HostName, KeyedCertificate)>>,
}

#[derive(Default)]
struct Tables {
    texts: BTreeMap<String, String>,
    addresses: BTreeMap<String, IpAddr>,
    refusal: Option<String>,
    accounts: u32,
    certificates: u32,
    provider: Option<DnsProvider>,
}

impl PlayedEdge {
    /// Its clock is the one of `test`.
    #[must_use]
    pub fn new(test: &TestControl, issuance: Issuance) -> Arc<Self> {
        Arc::new(Self {
            now: test.clock.as_fn(),
            issuance,
            tables: Mutex::default(),
            served: watch::Sender::default(),
            shown: watch::Sender::default(),
        })
    }

    /// The name has this TXT record from now on.
    pub fn put_text(&self, name: &str, text: &str) {
        self.tables().texts.insert(name.to_owned(), text.to_owned());
    }

    /// The name has this address from now on.
    pub fn put_address(&self, name: &str, address: impl Into<IpAddr>) {
        self.tables().addresses.insert(name.to_owned(), address.into());
    }

    /// From now on every certificate is refused with this reason, or none is.
    pub fn refuse(&self, reason: Option<&str>) {
        self.tables().refusal = reason.map(str::to_owned);
    }

    /// How many accounts and how many certificates were asked for.
    #[must_use]
    pub fn asked(&self) -> (u32, u32) {
        let tables = self.tables();
        (tables.accounts, tables.certificates)
    }

    /// By which provider of DNS the last certificate was asked for.
    #[must_use]
    pub fn provider(&self) -> Option<DnsProvider> {
        self.tables().provider.clone()
    }

    /// The names that are served.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.served.borrow().iter().map(ToString::to_string).collect()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl EdgeApi for PlayedEdge {
    /// The name servers of `broken.test` do not answer.
    async fn texts(&self, name: &HostName) -> Result<Vec<String>, EdgeError> {
        if name.as_str().ends_with("broken.test") {
            return Err(EdgeError("the name servers are gone".to_owned()));
        }
        Ok(self.tables().texts.get(name.as_str()).cloned().into_iter().collect())
    }

    async fn addresses(&self, name: &HostName) -> Result<Vec<IpAddr>, EdgeError> {
        Ok(self.tables().addresses.get(name.as_str()).copied().into_iter().collect())
    }

    fn serve(&self, names: HashSet<HostName>) {
        self.served.send_replace(names);
    }

    fn show(&self, name: &HostName, certificate: &KeyedCertificate) -> Result<(), EdgeError> {
        self.shown.send_modify(|shown| shown.push((name.clone(), certificate.clone())));
        Ok(())
    }

    fn issuer(&self) -> Option<&str> {
        match self.issuance {
            Issuance::Automatic => Some("https://ca.test/dir"),
            Issuance::None => None,
        }
    }

    async fn register(&self) -> Result<Secret, EdgeError> {
        self.tables().accounts += 1;
        Ok(Secret::new(ISSUER_ACCOUNT))
    }

    async fn obtain(
        &self,
        account: &Secret,
        name: &HostName,
        dns: Option<&DnsProvider>,
    ) -> Result<KeyedCertificate, EdgeError> {
        let mut tables = self.tables();
        tables.certificates += 1;
        tables.provider = dns.cloned();
        if account.expose() != ISSUER_ACCOUNT {
            return Err(EdgeError("the account is not known".to_owned()));
        }
        if let Some(reason) = &tables.refusal {
            return Err(EdgeError(reason.clone()));
        }
        let now = (self.now)();
        Ok(KeyedCertificate {
            chain: format!("chain of {name}"),
            key: Secret::new(CERTIFICATE_KEY),
            not_before: now,
            not_after: now.saturating_add(LIFETIME).unwrap_or(Timestamp::MAX),
        })
    }
}
