//! Custom domains, of the store that dies.

use async_trait::async_trait;
use skerry_control::{
    Error,
    store::{DomainInsertion, DomainStore, KeptCertificate, StoredPort, Write},
};
use skerry_model::{
    AccountId, CustomDomain, DnsAccess, DomainId, HostName, KeyedCertificate, PublishedPortId,
    Secret, Timestamp,
};

use super::FusedStore;

#[async_trait]
impl DomainStore for FusedStore {
    async fn insert_domain(
        &self,
        domain: &CustomDomain,
        dns: Option<&DnsAccess>,
        max: u32,
    ) -> Result<DomainInsertion, Error> {
        self.1.counted(self.0.insert_domain(domain, dns, max)).await
    }

    async fn update_domain(
        &self,
        domain: &CustomDomain,
        certificate: Option<&KeyedCertificate>,
    ) -> Result<Write<CustomDomain>, Error> {
        self.1.counted(self.0.update_domain(domain, certificate)).await
    }

    async fn remove_domain(&self, account_id: AccountId, id: DomainId) -> Result<bool, Error> {
        self.1.counted(self.0.remove_domain(account_id, id)).await
    }

    async fn domain(&self, id: DomainId) -> Result<Option<CustomDomain>, Error> {
        self.1.uncounted(self.0.domain(id)).await
    }

    async fn dns_access(&self, id: DomainId) -> Result<Option<DnsAccess>, Error> {
        self.1.uncounted(self.0.dns_access(id)).await
    }

    async fn list_domains(&self, account_id: AccountId) -> Result<Vec<CustomDomain>, Error> {
        self.1.uncounted(self.0.list_domains(account_id)).await
    }

    async fn port_by_domain(&self, name: &HostName) -> Result<Option<StoredPort>, Error> {
        self.1.uncounted(self.0.port_by_domain(name)).await
    }

    async fn port(&self, id: PublishedPortId) -> Result<Option<StoredPort>, Error> {
        self.1.uncounted(self.0.port(id)).await
    }

    async fn proven_names(&self) -> Result<Vec<HostName>, Error> {
        self.1.uncounted(self.0.proven_names()).await
    }

    async fn certificates(&self) -> Result<Vec<KeptCertificate>, Error> {
        self.1.uncounted(self.0.certificates()).await
    }

    async fn due_domains(&self, now: Timestamp, limit: u32) -> Result<Vec<DomainId>, Error> {
        self.1.uncounted(self.0.due_domains(now, limit)).await
    }

    async fn next_due_domain(&self) -> Result<Option<Timestamp>, Error> {
        self.1.uncounted(self.0.next_due_domain()).await
    }

    async fn acme_account(&self, directory: &str) -> Result<Option<Secret>, Error> {
        self.1.uncounted(self.0.acme_account(directory)).await
    }

    async fn keep_acme_account(&self, directory: &str, account: &Secret) -> Result<Secret, Error> {
        self.1.counted(self.0.keep_acme_account(directory, account)).await
    }
}
