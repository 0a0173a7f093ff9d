//! The store: everything control remembers.
//!
//! [`StateStore`] is what a database has to offer; [`Store`] is the handle on one. A mutation is one
//! transaction that is durable when the call returns. Outcomes a caller has to handle (a stale
//! revision, a name taken) are values; only faults and refusals by the plan are errors.

#[cfg(test)]
mod contract;
mod row;
mod sqlite;

use std::{ops::Deref, path::Path, sync::Arc};

use async_trait::async_trait;
use skerry_model::{
    AccountId, ApiKeyId, Demand, Plan, ProjectId, Timestamp, Usage, Workspace, WorkspaceId,
};

use crate::{ApiKey, Error, ListWorkspaces, Page, Project};

/// A handle on a store. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Store(Arc<dyn StateStore>);

impl Store {
    /// Opens (or makes) the embedded database at `path`, a file only its owner can read, and brings
    /// its schema up to date.
    ///
    /// # Errors
    /// When the file cannot be opened or a migration fails.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self(Arc::new(sqlite::Sqlite::open(path).await?)))
    }

    /// A handle on another implementation.
    #[must_use]
    pub fn from_backend(backend: Arc<dyn StateStore>) -> Self {
        Self(backend)
    }
}

impl Deref for Store {
    type Target = dyn StateStore;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref()
    }
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its identity.
    pub id: AccountId,
    /// Its name in credentials: `[a-z0-9-]`, 1 to 63 characters. Unique.
    pub handle: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// SHA-256 of a key's secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretHash(pub [u8; 32]);

/// A key as it is stored.
#[derive(Clone)]
pub struct StoredKey {
    /// What may be shown.
    pub key: ApiKey,
    /// Whose it is.
    pub account_id: AccountId,
    /// What the secret is checked against.
    pub hash: SecretHash,
}

/// Who a secret belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyOwner {
    /// The account.
    pub account: Account,
    /// The key.
    pub key_id: ApiKeyId,
    /// When the key was last used, as recorded.
    pub last_used_at: Option<Timestamp>,
}

/// What came of revoking a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRemoval {
    /// It is revoked.
    Removed,
    /// The account has no such key.
    NotFound,
    /// It is the account's only key.
    LastOne,
}

/// A demand to be admitted by a plan in the same transaction as the write that makes it.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'a> {
    /// The account's plan.
    pub plan: &'a Plan,
    /// What the write adds.
    pub demand: Demand,
}

/// What came of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write<T> {
    /// Done: the record as it now is.
    Done(T),
    /// The record has changed since it was read, or is gone.
    Stale,
    /// The slug, or the project's name, belongs to another record.
    Taken,
}

/// What a database has to offer.
#[async_trait]
pub trait StateStore: Send + Sync {
    /// Makes the account and its default project in one transaction, unless an account of this
    /// handle is there. Returns the account that is there afterwards and whether it was made.
    async fn ensure_account(
        &self,
        account: &Account,
        default_project: &Project,
    ) -> Result<(Account, bool), Error>;

    /// Makes `key` the account's only bootstrap key: another one is revoked, the same secret is
    /// left as it is.
    async fn ensure_bootstrap_key(&self, key: &StoredKey) -> Result<(), Error>;

    /// Whose secret has this hash.
    async fn key_owner(&self, hash: &SecretHash) -> Result<Option<KeyOwner>, Error>;

    /// Records a new key.
    async fn insert_key(&self, key: &StoredKey) -> Result<(), Error>;

    /// The account's keys, oldest first.
    async fn list_keys(&self, account_id: AccountId) -> Result<Vec<ApiKey>, Error>;

    /// Revokes a key of the account, unless it is the only one.
    async fn remove_key(&self, account_id: AccountId, id: ApiKeyId) -> Result<KeyRemoval, Error>;

    /// Records the use of a key, if the recorded one is older than a minute.
    async fn touch_key(&self, id: ApiKeyId, at: Timestamp) -> Result<(), Error>;

    /// Records a project; [`Write::Taken`] when the account has one of that name.
    async fn insert_project(
        &self,
        account_id: AccountId,
        project: &Project,
    ) -> Result<Write<Project>, Error>;

    /// The account's projects, the default one first, then oldest first.
    async fn list_projects(&self, account_id: AccountId) -> Result<Vec<Project>, Error>;

    /// One project of the account.
    async fn project(&self, account_id: AccountId, id: ProjectId)
    -> Result<Option<Project>, Error>;

    /// Records a workspace if the plan admits it; [`Write::Taken`] when the slug is.
    async fn insert_workspace(
        &self,
        workspace: &Workspace,
        admission: Admission<'_>,
    ) -> Result<Write<Workspace>, Error>;

    /// Replaces the record if its revision is still `workspace.revision` (and the plan admits what
    /// it adds). The written record has the next revision.
    async fn update_workspace(
        &self,
        workspace: &Workspace,
        admission: Option<Admission<'_>>,
    ) -> Result<Write<Workspace>, Error>;

    /// Removes the record if its revision is still this one; `Stale` otherwise.
    async fn remove_workspace(&self, id: WorkspaceId, revision: u64) -> Result<Write<()>, Error>;

    /// One workspace, of any account.
    async fn workspace(&self, id: WorkspaceId) -> Result<Option<Workspace>, Error>;

    /// The account's workspace with this slug.
    async fn workspace_by_slug(
        &self,
        account_id: AccountId,
        slug: &str,
    ) -> Result<Option<Workspace>, Error>;

    /// At most `limit` of the account's workspaces with this name.
    async fn workspaces_by_name(
        &self,
        account_id: AccountId,
        name: &str,
        limit: u32,
    ) -> Result<Vec<Workspace>, Error>;

    /// A part of the account's workspaces, newest first, and how many there are.
    async fn list_workspaces(
        &self,
        account_id: AccountId,
        filter: &ListWorkspaces,
    ) -> Result<Page<Workspace>, Error>;

    /// At most `limit` workspaces of all accounts with an identifier after `after`, in order of
    /// identifiers: for walking over everything without holding it.
    async fn workspaces_after(
        &self,
        after: Option<WorkspaceId>,
        limit: u32,
    ) -> Result<Vec<Workspace>, Error>;

    /// What the account uses.
    async fn usage(&self, account_id: AccountId) -> Result<Usage, Error>;

    /// When the next workspace expires.
    async fn next_expiry(&self) -> Result<Option<Timestamp>, Error>;

    /// At most `limit` workspaces whose time is over, longest first.
    async fn expired_workspaces(
        &self,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<WorkspaceId>, Error>;
}
