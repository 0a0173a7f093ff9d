//! What a database has to offer for who enters a workspace by SSH, beside the account's keys.

use async_trait::async_trait;
use skerry_internal_api::SshPasswordId;
use skerry_model::{Secret, Timestamp, WorkspaceId};

use crate::Error;

/// A password of one login of a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshPassword {
    /// Its identity: another one for each password.
    pub id: SshPasswordId,
    /// Whose.
    pub workspace_id: WorkspaceId,
    /// A login of its guest.
    pub login: String,
    /// The Argon2id hash of it, as a PHC string.
    pub hash: Secret,
    /// Whether its owner has chosen it, or it was made here.
    pub is_chosen: bool,
    /// When it was set.
    pub created_at: Timestamp,
}

/// What becomes of a password that the login has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlierPassword {
    /// It stays, and the new one is not recorded.
    Stays,
    /// It opens nothing any more.
    Goes,
}

/// What came of recording a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordInsertion {
    /// It is recorded.
    Done,
    /// The login has one, which stays.
    There,
    /// The workspace has passwords for as many logins as it may.
    TooMany,
    /// Nobody enters the workspace by SSH.
    Closed,
    /// The workspace is gone.
    NoWorkspace,
}

/// Who enters workspaces by SSH.
#[async_trait]
pub trait SshAccessStore: Send + Sync {
    /// Records a password, if its workspace is open and has fewer than `max` others.
    async fn insert_ssh_password(
        &self,
        password: &SshPassword,
        earlier: EarlierPassword,
        max: u32,
    ) -> Result<PasswordInsertion, Error>;

    /// The workspace's passwords, by login.
    async fn ssh_passwords(&self, workspace: WorkspaceId) -> Result<Vec<SshPassword>, Error>;

    /// Whose password this is; `None` once there is another or none.
    async fn ssh_password_owner(&self, id: SshPasswordId) -> Result<Option<WorkspaceId>, Error>;

    /// Lets people in again.
    async fn open_ssh(&self, workspace: WorkspaceId) -> Result<(), Error>;

    /// Lets nobody in any more, and forgets the passwords. A workspace that is gone is a success.
    async fn close_ssh(&self, workspace: WorkspaceId) -> Result<(), Error>;

    /// Which of these nobody enters.
    async fn closed_to_ssh(&self, workspaces: &[WorkspaceId]) -> Result<Vec<WorkspaceId>, Error>;
}
