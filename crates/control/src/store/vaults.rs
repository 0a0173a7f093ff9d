//! What a database has to offer for vaults.

use async_trait::async_trait;
use skerry_model::{
    AccountId, Secret, Timestamp, Vault, VaultCredential, VaultCredentialId, VaultId, VaultRequest,
    VaultService, VaultServiceId, WorkspaceId,
};

use crate::Error;

/// What came of recording something of a vault, or a vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaultInsertion {
    /// It is recorded.
    Done,
    /// There is one of this name.
    Taken,
    /// There are as many as there may be.
    TooMany,
    /// The vault is gone.
    NoVault,
}

/// A credential's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialValue {
    /// Of which vault.
    pub vault_id: VaultId,
    /// Of which name.
    pub name: String,
    /// The value.
    pub value: Secret,
}

/// Who certifies names to the guests of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultAuthority {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub key: Secret,
}

/// Vaults in the database.
#[async_trait]
pub trait VaultStore: Send + Sync {
    /// Records a vault, if its account has fewer than `max`; never `Taken` or `NoVault`.
    async fn insert_vault(&self, vault: &Vault, max: u32) -> Result<VaultInsertion, Error>;

    /// Replaces name and description; answers whether it is there.
    async fn update_vault(&self, vault: &Vault) -> Result<bool, Error>;

    /// Removes a vault with everything in it; answers whether it was there.
    async fn remove_vault(&self, id: VaultId) -> Result<bool, Error>;

    /// One vault, of any account.
    async fn vault(&self, id: VaultId) -> Result<Option<Vault>, Error>;

    /// The account's vaults, oldest first.
    async fn list_vaults(&self, account_id: AccountId) -> Result<Vec<Vault>, Error>;

    /// The workspaces that use a vault.
    async fn workspaces_with_vault(&self, id: VaultId) -> Result<Vec<WorkspaceId>, Error>;

    /// Records a credential with its value, if the vault has fewer than `max` and none of this name.
    async fn insert_vault_credential(
        &self,
        credential: &VaultCredential,
        value: &Secret,
        max: u32,
    ) -> Result<VaultInsertion, Error>;

    /// Gives a credential another value; answers whether it is there.
    async fn rotate_vault_credential(
        &self,
        vault: VaultId,
        id: VaultCredentialId,
        value: &Secret,
        at: Timestamp,
    ) -> Result<bool, Error>;

    /// Removes a credential; answers whether it was there.
    async fn remove_vault_credential(
        &self,
        vault: VaultId,
        id: VaultCredentialId,
    ) -> Result<bool, Error>;

    /// The vault's credentials, oldest first.
    async fn vault_credentials(&self, vault: VaultId) -> Result<Vec<VaultCredential>, Error>;

    /// The values of all credentials of these vaults.
    async fn credential_values(&self, vaults: &[VaultId]) -> Result<Vec<CredentialValue>, Error>;

    /// Records services of one vault, all or none, if it then has at most `max`; never `Taken`.
    async fn insert_vault_services(
        &self,
        vault: VaultId,
        services: &[VaultService],
        max: u32,
    ) -> Result<VaultInsertion, Error>;

    /// Removes a service; answers whether it was there.
    async fn remove_vault_service(&self, vault: VaultId, id: VaultServiceId)
    -> Result<bool, Error>;

    /// The vault's services, oldest first.
    async fn vault_services(&self, vault: VaultId) -> Result<Vec<VaultService>, Error>;

    /// Who certifies names to the guests of an account.
    async fn vault_authority(&self, account: AccountId) -> Result<Option<VaultAuthority>, Error>;

    /// Keeps who does, unless somebody is kept already; answers who is.
    async fn keep_vault_authority(
        &self,
        account: AccountId,
        authority: &VaultAuthority,
    ) -> Result<VaultAuthority, Error>;

    /// Notes requests, and forgets all but the last `keep` of each vault. Those of vaults that are gone
    /// are not noted.
    async fn note_vault_requests(&self, requests: &[VaultRequest], keep: u32) -> Result<(), Error>;

    /// The last requests of a vault, the newest first.
    async fn vault_requests(&self, vault: VaultId, limit: u32) -> Result<Vec<VaultRequest>, Error>;
}
