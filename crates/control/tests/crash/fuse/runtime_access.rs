//! Tokens of runtimes, of the store that dies.

use async_trait::async_trait;
use skerry_control::{
    Error,
    store::{EarlierTokens, RuntimeAccessStore, SecretHash, StoredRuntimeToken},
};
use skerry_model::{Timestamp, WorkspaceId};

use super::FusedStore;

#[async_trait]
impl RuntimeAccessStore for FusedStore {
    async fn open_runtime(&self, workspace: WorkspaceId) -> Result<bool, Error> {
        self.1.counted(self.0.open_runtime(workspace)).await
    }

    async fn close_runtime(&self, workspace: WorkspaceId) -> Result<(), Error> {
        self.1.counted(self.0.close_runtime(workspace)).await
    }

    async fn is_runtime_open(&self, workspace: WorkspaceId) -> Result<bool, Error> {
        self.1.uncounted(self.0.is_runtime_open(workspace)).await
    }

    async fn insert_runtime_token(
        &self,
        token: &StoredRuntimeToken,
        earlier: EarlierTokens,
        now: Timestamp,
        max: u32,
    ) -> Result<bool, Error> {
        self.1.counted(self.0.insert_runtime_token(token, earlier, now, max)).await
    }

    async fn runtime_token_workspace(
        &self,
        hash: &SecretHash,
        now: Timestamp,
    ) -> Result<Option<WorkspaceId>, Error> {
        self.1.uncounted(self.0.runtime_token_workspace(hash, now)).await
    }
}
