//! What a database has to offer for tokens that open the inside of one workspace.

use async_trait::async_trait;
use skerry_model::{Timestamp, WorkspaceId};

use super::SecretHash;
use crate::Error;

/// A token as it is stored.
#[derive(Clone, Copy)]
pub struct StoredRuntimeToken {
    /// What is shown is checked against it.
    pub hash: SecretHash,
    /// What it opens.
    pub workspace_id: WorkspaceId,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// What becomes of a workspace's tokens when there is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlierTokens {
    /// They stay, but for those whose time is over and the oldest of too many.
    Stay,
    /// They open nothing any more.
    Go,
}

/// Who is let into workspaces by tokens.
#[async_trait]
pub trait RuntimeAccessStore: Send + Sync {
    /// Lets tokens in; false when the workspace is gone.
    async fn open_runtime(&self, workspace: WorkspaceId) -> Result<bool, Error>;

    /// Lets no token in any more, and forgets all. A workspace that is gone is a success.
    async fn close_runtime(&self, workspace: WorkspaceId) -> Result<(), Error>;

    /// Whether tokens are let in.
    async fn is_runtime_open(&self, workspace: WorkspaceId) -> Result<bool, Error>;

    /// Records a token, beside at most `max - 1` others; false when its workspace lets none in.
    async fn insert_runtime_token(
        &self,
        token: &StoredRuntimeToken,
        earlier: EarlierTokens,
        now: Timestamp,
        max: u32,
    ) -> Result<bool, Error>;

    /// What this token opens now.
    async fn runtime_token_workspace(
        &self,
        hash: &SecretHash,
        now: Timestamp,
    ) -> Result<Option<WorkspaceId>, Error>;
}
