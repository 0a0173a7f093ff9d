//! What a database has to offer for custom domains and their certificates.

use async_trait::async_trait;
use skerry_model::{
    AccountId, CustomDomain, DnsAccess, DomainId, HostName, KeyedCertificate, PublishedPortId,
    Secret, Timestamp,
};

use super::{StoredPort, Write};
use crate::Error;

/// What came of claiming a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainInsertion {
    /// It is claimed: the record as it now is.
    Done(Box<CustomDomain>),
    /// The account has claimed it already.
    Claimed,
    /// Another account has proven that it is theirs.
    Taken,
    /// The account has as many as it may.
    TooMany,
    /// There is no such port.
    NoPort,
}

/// A certificate that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptCertificate {
    /// For which name.
    pub name: HostName,
    /// PEM.
    pub chain: String,
    /// PEM.
    pub key: Secret,
}

/// Custom domains in the database.
#[async_trait]
pub trait DomainStore: Send + Sync {
    /// Records a claim, with what its provider of DNS asks for if it has one. The written record has a
    /// number and revision 1.
    async fn insert_domain(
        &self,
        domain: &CustomDomain,
        dns: Option<&DnsAccess>,
        max: u32,
    ) -> Result<DomainInsertion, Error>;

    /// Replaces the record if its revision is still `domain.revision`, with a certificate if one is
    /// given; [`Write::Taken`] when it is to be proven and another account has proven the name. The
    /// written record has the next revision.
    async fn update_domain(
        &self,
        domain: &CustomDomain,
        certificate: Option<&KeyedCertificate>,
    ) -> Result<Write<CustomDomain>, Error>;

    /// Removes a domain of the account; answers whether it had it.
    async fn remove_domain(&self, account_id: AccountId, id: DomainId) -> Result<bool, Error>;

    /// One domain, of any account.
    async fn domain(&self, id: DomainId) -> Result<Option<CustomDomain>, Error>;

    /// What a domain's provider of DNS asks for; `None` without a provider.
    async fn dns_access(&self, id: DomainId) -> Result<Option<DnsAccess>, Error>;

    /// The account's domains, oldest first.
    async fn list_domains(&self, account_id: AccountId) -> Result<Vec<CustomDomain>, Error>;

    /// Where a proven name leads.
    async fn port_by_domain(&self, name: &HostName) -> Result<Option<StoredPort>, Error>;

    /// A published port, of any account.
    async fn port(&self, id: PublishedPortId) -> Result<Option<StoredPort>, Error>;

    /// All names that are proven.
    async fn proven_names(&self) -> Result<Vec<HostName>, Error>;

    /// All certificates that are kept.
    async fn certificates(&self) -> Result<Vec<KeptCertificate>, Error>;

    /// At most `limit` domains whose next attempt is due, longest due first.
    async fn due_domains(&self, now: Timestamp, limit: u32) -> Result<Vec<DomainId>, Error>;

    /// When the next attempt of any domain is due.
    async fn next_due_domain(&self) -> Result<Option<Timestamp>, Error>;

    /// Who we are at this ACME directory.
    async fn acme_account(&self, directory: &str) -> Result<Option<Secret>, Error>;

    /// Keeps who we are there, unless somebody is kept already; answers who is.
    async fn keep_acme_account(&self, directory: &str, account: &Secret) -> Result<Secret, Error>;
}
