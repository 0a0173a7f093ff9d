//! Who enters workspaces by SSH, of the store that dies.

use async_trait::async_trait;
use skerry_control::{
    Error,
    internal_api::SshPasswordId,
    store::{EarlierPassword, PasswordInsertion, SshAccessStore, SshPassword},
};
use skerry_model::WorkspaceId;

use super::FusedStore;

#[async_trait]
impl SshAccessStore for FusedStore {
    async fn insert_ssh_password(
        &self,
        password: &SshPassword,
        earlier: EarlierPassword,
        max: u32,
    ) -> Result<PasswordInsertion, Error> {
        self.1.counted(self.0.insert_ssh_password(password, earlier, max)).await
    }

    async fn ssh_passwords(&self, workspace: WorkspaceId) -> Result<Vec<SshPassword>, Error> {
        self.1.uncounted(self.0.ssh_passwords(workspace)).await
    }

    async fn ssh_password_owner(&self, id: SshPasswordId) -> Result<Option<WorkspaceId>, Error> {
        self.1.uncounted(self.0.ssh_password_owner(id)).await
    }

    async fn open_ssh(&self, workspace: WorkspaceId) -> Result<(), Error> {
        self.1.counted(self.0.open_ssh(workspace)).await
    }

    async fn close_ssh(&self, workspace: WorkspaceId) -> Result<(), Error> {
        self.1.counted(self.0.close_ssh(workspace)).await
    }

    async fn closed_to_ssh(&self, workspaces: &[WorkspaceId]) -> Result<Vec<WorkspaceId>, Error> {
        self.1.uncounted(self.0.closed_to_ssh(workspaces)).await
    }
}
