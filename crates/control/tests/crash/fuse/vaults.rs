//! Vaults, of the store that dies.

use async_trait::async_trait;
use skerry_control::{
    Error,
    store::{CredentialValue, VaultAuthority, VaultInsertion, VaultStore},
};
use skerry_model::{
    AccountId, Secret, Timestamp, Vault, VaultCredential, VaultCredentialId, VaultId, VaultRequest,
    VaultService, VaultServiceId, WorkspaceId,
};

use super::FusedStore;

#[async_trait]
impl VaultStore for FusedStore {
    async fn insert_vault(&self, vault: &Vault, max: u32) -> Result<VaultInsertion, Error> {
        self.1.counted(self.0.insert_vault(vault, max)).await
    }

    async fn update_vault(&self, vault: &Vault) -> Result<bool, Error> {
        self.1.counted(self.0.update_vault(vault)).await
    }

    async fn remove_vault(&self, id: VaultId) -> Result<bool, Error> {
        self.1.counted(self.0.remove_vault(id)).await
    }

    async fn vault(&self, id: VaultId) -> Result<Option<Vault>, Error> {
        self.1.uncounted(self.0.vault(id)).await
    }

    async fn list_vaults(&self, account_id: AccountId) -> Result<Vec<Vault>, Error> {
        self.1.uncounted(self.0.list_vaults(account_id)).await
    }

    async fn workspaces_with_vault(&self, id: VaultId) -> Result<Vec<WorkspaceId>, Error> {
        self.1.uncounted(self.0.workspaces_with_vault(id)).await
    }

    async fn insert_vault_credential(
        &self,
        credential: &VaultCredential,
        value: &Secret,
        max: u32,
    ) -> Result<VaultInsertion, Error> {
        self.1.counted(self.0.insert_vault_credential(credential, value, max)).await
    }

    async fn rotate_vault_credential(
        &self,
        vault: VaultId,
        id: VaultCredentialId,
        value: &Secret,
        at: Timestamp,
    ) -> Result<bool, Error> {
        self.1.counted(self.0.rotate_vault_credential(vault, id, value, at)).await
    }

    async fn remove_vault_credential(
        &self,
        vault: VaultId,
        id: VaultCredentialId,
    ) -> Result<bool, Error> {
        self.1.counted(self.0.remove_vault_credential(vault, id)).await
    }

    async fn vault_credentials(&self, vault: VaultId) -> Result<Vec<VaultCredential>, Error> {
        self.1.uncounted(self.0.vault_credentials(vault)).await
    }

    async fn credential_values(&self, vaults: &[VaultId]) -> Result<Vec<CredentialValue>, Error> {
        self.1.uncounted(self.0.credential_values(vaults)).await
    }

    async fn insert_vault_services(
        &self,
        vault: VaultId,
        services: &[VaultService],
        max: u32,
    ) -> Result<VaultInsertion, Error> {
        self.1.counted(self.0.insert_vault_services(vault, services, max)).await
    }

    async fn remove_vault_service(
        &self,
        vault: VaultId,
        id: VaultServiceId,
    ) -> Result<bool, Error> {
        self.1.counted(self.0.remove_vault_service(vault, id)).await
    }

    async fn vault_services(&self, vault: VaultId) -> Result<Vec<VaultService>, Error> {
        self.1.uncounted(self.0.vault_services(vault)).await
    }

    async fn vault_authority(&self, account: AccountId) -> Result<Option<VaultAuthority>, Error> {
        self.1.uncounted(self.0.vault_authority(account)).await
    }

    async fn keep_vault_authority(
        &self,
        account: AccountId,
        authority: &VaultAuthority,
    ) -> Result<VaultAuthority, Error> {
        self.1.counted(self.0.keep_vault_authority(account, authority)).await
    }

    async fn note_vault_requests(&self, requests: &[VaultRequest], keep: u32) -> Result<(), Error> {
        self.1.counted(self.0.note_vault_requests(requests, keep)).await
    }

    async fn vault_requests(&self, vault: VaultId, limit: u32) -> Result<Vec<VaultRequest>, Error> {
        self.1.uncounted(self.0.vault_requests(vault, limit)).await
    }
}
