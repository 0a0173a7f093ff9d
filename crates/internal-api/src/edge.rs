//! What control asks of the edge of the installation: what the DNS says, certificates, and that names
//! are served.

use std::{collections::HashSet, net::IpAddr};

use async_trait::async_trait;
use skerry_model::{DnsProvider, HostName, KeyedCertificate, Secret};
use thiserror::Error;

/// Why the edge could not do something; fit to be shown to a domain's owner.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct EdgeError(pub String);

/// The edge of the installation. Every call is bounded by the edge itself.
#[async_trait]
pub trait EdgeApi: Send + Sync {
    /// What the TXT records of this name say now; none when there is no such name.
    ///
    /// # Errors
    /// The name servers could not be asked.
    async fn texts(&self, name: &HostName) -> Result<Vec<String>, EdgeError>;

    /// The addresses that this name has now; none when there is no such name.
    ///
    /// # Errors
    /// The name servers could not be asked.
    async fn addresses(&self, name: &HostName) -> Result<Vec<IpAddr>, EdgeError>;

    /// From now on visits of these names, and of no others, are looked up
    /// ([`crate::PreviewAddress::Domain`]). Certificates of others are shown no more.
    fn serve(&self, names: HashSet<HostName>);

    /// From now on this certificate is shown for the name.
    ///
    /// # Errors
    /// It is of no use.
    fn show(&self, name: &HostName, certificate: &KeyedCertificate) -> Result<(), EdgeError>;

    /// From whom certificates are got: the URL of an ACME directory; `None` when none are.
    fn issuer(&self) -> Option<&str>;

    /// Makes an account there; its words are for [`EdgeApi::obtain`].
    ///
    /// # Errors
    /// The server could not be reached or refuses.
    async fn register(&self) -> Result<Secret, EdgeError>;

    /// Gets a certificate for this name, which has to lead here; or, with `dns`, in whose zone a record
    /// is put in place for as long as the issuer looks.
    ///
    /// # Errors
    /// The server could not be reached or refuses.
    async fn obtain(
        &self,
        account: &Secret,
        name: &HostName,
        dns: Option<&DnsProvider>,
    ) -> Result<KeyedCertificate, EdgeError>;
}
