//! Custom domains at the edge: which names are served, what the DNS says of them, and certificates for
//! them by ACME (RFC 8555).

mod acme;
mod dns;
mod names;
mod requests;
mod texts;

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use async_trait::async_trait;
use skerry_internal_api::{EdgeApi, EdgeError};
use skerry_model::{DnsProvider, HostName, KeyedCertificate, Secret};

pub use acme::{Acme, AcmeChallenge, AcmeSettings};
pub use names::ServedNames;
pub use texts::Texts;

use crate::tls::{Certificates, ServerCertificate};

/// The edge of one installation.
pub struct Edge {
    names: Arc<ServedNames>,
    certificates: Arc<Certificates>,
    texts: Arc<Texts>,
    acme: Option<Acme>,
}

impl Edge {
    /// An edge that serves through `names` and shows `certificates`; without `acme` it gets none.
    #[must_use]
    pub fn new(
        names: Arc<ServedNames>,
        certificates: Arc<Certificates>,
        texts: Arc<Texts>,
        acme: Option<Acme>,
    ) -> Self {
        Self { names, certificates, texts, acme }
    }

    fn acme(&self) -> Result<&Acme, EdgeError> {
        let none = || EdgeError("this server gets no certificates".to_owned());
        self.acme.as_ref().ok_or_else(none)
    }
}

#[async_trait]
impl EdgeApi for Edge {
    async fn texts(&self, name: &HostName) -> Result<Vec<String>, EdgeError> {
        self.texts.of(name).await
    }

    async fn addresses(&self, name: &HostName) -> Result<Vec<IpAddr>, EdgeError> {
        self.texts.addresses(name).await
    }

    fn serve(&self, names: HashSet<HostName>) {
        self.certificates
            .retain(|name| HostName::parse(name).is_ok_and(|name| names.contains(&name)));
        self.names.replace(names);
    }

    fn show(&self, name: &HostName, certificate: &KeyedCertificate) -> Result<(), EdgeError> {
        // Between the record and this call the name may have gone.
        if !self.names.contains(name) {
            return Ok(());
        }
        let usable = ServerCertificate::from_pem(&certificate.chain, &certificate.key);
        let usable = usable.map_err(|error| EdgeError(error.to_string()))?;
        self.certificates.set(name.as_str(), usable);
        Ok(())
    }

    fn issuer(&self) -> Option<&str> {
        self.acme.as_ref().map(Acme::directory)
    }

    async fn register(&self) -> Result<Secret, EdgeError> {
        self.acme()?.register().await
    }

    async fn obtain(
        &self,
        account: &Secret,
        name: &HostName,
        dns: Option<&DnsProvider>,
    ) -> Result<KeyedCertificate, EdgeError> {
        self.acme()?.obtain(account, name, dns).await
    }
}
