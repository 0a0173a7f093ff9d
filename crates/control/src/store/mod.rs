//! The store: everything control remembers.
//!
//! [`StateStore`] is what a database has to offer; [`Store`] is the handle on one. A mutation is one
//! transaction that is durable when the call returns. Outcomes a caller has to handle (a stale
//! revision, a name taken) are values; only faults and refusals by the plan are errors.

mod blueprints;
#[cfg(test)]
mod contract;
mod domains;
mod row;
mod runtime_access;
pub mod sealing;
mod sqlite;
mod ssh_access;
mod vaults;
mod volumes;

use std::{ops::Deref, path::Path, sync::Arc};

use async_trait::async_trait;
use skerry_internal_api::KeyFingerprint;
use skerry_model::{
    AccountId, ApiKeyId, Demand, Neighbourhood, Plan, PrivateAddress, ProjectId, Slug, Snapshot,
    SnapshotId, SshKeyId, Timestamp, Usage, Workspace, WorkspaceId,
};

pub use blueprints::{BlueprintInsertion, BlueprintStore};
pub use domains::{DomainInsertion, DomainStore, KeptCertificate};
pub use runtime_access::{EarlierTokens, RuntimeAccessStore, StoredRuntimeToken};
pub use sealing::KeyRing;
pub use ssh_access::{EarlierPassword, PasswordInsertion, SshAccessStore, SshPassword};
pub use vaults::{CredentialValue, VaultAuthority, VaultInsertion, VaultStore};
pub use volumes::{
    Attaching, CheckpointDeletion, CheckpointInsertion, VolumeDeletion, VolumeStore, WantedMount,
};

use crate::{ApiKey, Error, ListSnapshots, ListWorkspaces, Page, Project, PublishedPort, SshKey};

/// A handle on a store. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Store(Arc<dyn StateStore>);

impl Store {
    /// Opens (or makes) the embedded database at `path`, a file only its owner can read, and brings
    /// its schema up to date. What workspaces keep secret is encrypted in it with `keys`. Only one
    /// process may have it open.
    ///
    /// # Errors
    /// When the file cannot be opened, a migration fails, or the keys are not the database's.
    pub async fn open(path: &Path, keys: KeyRing) -> Result<Self, Error> {
        Ok(Self(Arc::new(sqlite::Sqlite::open(path, keys).await?)))
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
    /// The account's default project; it stays the same as long as the account is there.
    pub default_project_id: ProjectId,
    /// The key.
    pub key_id: ApiKeyId,
    /// When the key was last used, as recorded.
    pub last_used_at: Option<Timestamp>,
}

/// An account, and where what it makes goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// The account.
    pub account: Account,
    /// The account's default project.
    pub default_project_id: ProjectId,
}

/// What came of adding an SSH key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SshKeyInsertion {
    /// It is the account's now.
    Done,
    /// Some account has it already.
    Taken,
    /// The account has as many as it may.
    TooMany,
}

/// A published port as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredPort {
    /// What may be shown.
    pub port: PublishedPort,
    /// What a token is checked against; `None` when everybody may come.
    pub token: Option<SecretHash>,
}

/// What came of publishing a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortInsertion {
    /// It is published.
    Done,
    /// The workspace has published this port already.
    Published,
    /// The slug is another port's.
    SlugTaken,
    /// The workspace has as many as it may.
    TooMany,
    /// There is no such workspace.
    NoWorkspace,
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
    /// The slug, the project's name or the identifier belongs to another record.
    Taken,
}

impl<T> Write<T> {
    /// The same outcome with another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Write<U> {
        match self {
            Self::Done(value) => Write::Done(change(value)),
            Self::Stale => Write::Stale,
            Self::Taken => Write::Taken,
        }
    }
}

/// What came of beginning a snapshot's deletion.
#[derive(Clone, Debug, PartialEq)]
pub enum SnapshotDeletion {
    /// It is being deleted: the record as it now is.
    Begun(Box<Snapshot>),
    /// The record has changed since it was read, or is gone.
    Stale,
    /// This workspace cannot start without it ([`Workspace::needed_snapshot`]).
    NeededBy(Box<Workspace>),
}

/// What a database has to offer.
#[async_trait]
pub trait StateStore:
    VolumeStore + DomainStore + SshAccessStore + BlueprintStore + RuntimeAccessStore + VaultStore
{
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

    /// Records an SSH key, unless somebody has it or the account has `max` already.
    async fn insert_ssh_key(
        &self,
        account_id: AccountId,
        key: &SshKey,
        max: u32,
    ) -> Result<SshKeyInsertion, Error>;

    /// The account's SSH keys, oldest first.
    async fn list_ssh_keys(&self, account_id: AccountId) -> Result<Vec<SshKey>, Error>;

    /// Whose SSH key has this fingerprint.
    async fn ssh_key_owner(&self, fingerprint: &KeyFingerprint) -> Result<Option<Tenant>, Error>;

    /// Removes an SSH key of the account; answers whether it had it.
    async fn remove_ssh_key(&self, account_id: AccountId, id: SshKeyId) -> Result<bool, Error>;

    /// An account.
    async fn tenant(&self, id: AccountId) -> Result<Option<Tenant>, Error>;

    /// Records a published port, unless its workspace has published it, has `max` already or is gone,
    /// or its slug is taken.
    async fn insert_port(&self, port: &StoredPort, max: u32) -> Result<PortInsertion, Error>;

    /// Replaces the record of this identity; [`Write::Stale`] when it is gone, [`Write::Taken`] when
    /// its slug is another's.
    async fn update_port(&self, port: &StoredPort) -> Result<Write<()>, Error>;

    /// What these workspaces have published, by workspace and port.
    async fn list_ports(&self, workspaces: &[WorkspaceId]) -> Result<Vec<StoredPort>, Error>;

    /// The published port with this slug, of any account.
    async fn port_by_slug(&self, slug: &Slug) -> Result<Option<StoredPort>, Error>;

    /// Removes what the workspace has published of this port; answers what that was.
    async fn remove_port(
        &self,
        workspace: WorkspaceId,
        port: u16,
    ) -> Result<Option<PublishedPort>, Error>;

    /// At most `limit` workspaces of all accounts whose identifier begins with these bits, or whose
    /// project's does; newest first.
    async fn workspaces_by_prefix(&self, prefix: u32, limit: u32) -> Result<Vec<Workspace>, Error>;

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

    /// Records a workspace if the plan admits it; [`Write::Taken`] when the slug is. A workspace that
    /// needs a snapshot ([`Workspace::needed_snapshot`]) is refused with `NotFound` (`snapshot`)
    /// unless that is a ready one of the same account at the moment of the write.
    async fn insert_workspace(
        &self,
        workspace: &Workspace,
        admission: Admission<'_>,
    ) -> Result<Write<Workspace>, Error>;

    /// Records a fork's snapshot and the workspaces that are made from it, all or nothing: each is
    /// admitted as if those before it were there already. [`Write::Taken`] when a slug is.
    async fn insert_fork(
        &self,
        snapshot: &Snapshot,
        workspaces: &[Workspace],
        admission: Admission<'_>,
    ) -> Result<Write<Vec<Workspace>>, Error>;

    /// Replaces the record if its revision is still `workspace.revision` (and the plan admits what
    /// it adds). The written record has the next revision. A snapshot it needs now and did not need
    /// before has to be there as for [`StateStore::insert_workspace`]. `last_active_at` never goes
    /// back within one incarnation: the later one is kept.
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

    /// Whether any workspace of the account lets others in ([`skerry_model::NetworkWish::admits_peers`]).
    async fn admits_anybody(&self, account_id: AccountId) -> Result<bool, Error>;

    /// The account's workspaces that have a private address and are not being deleted; the wishes of
    /// those only that let others in.
    async fn neighbourhood(&self, account_id: AccountId) -> Result<Neighbourhood, Error>;

    /// The workspaces of all accounts whose records have this address: more than one only after a node
    /// lost what it had.
    async fn workspaces_at(&self, address: PrivateAddress) -> Result<Vec<WorkspaceId>, Error>;

    /// At most `limit` workspaces that cannot start without this snapshot.
    async fn workspaces_needing(
        &self,
        snapshot: SnapshotId,
        limit: u32,
    ) -> Result<Vec<Workspace>, Error>;

    /// Records that a workspace was used at `at`, and when its next timer rings after that
    /// ([`Workspace::due_at`]), if its revision is still this one; `Stale` otherwise. Neither the
    /// revision nor `updated_at` change: use is no change of the record.
    async fn note_activity(
        &self,
        id: WorkspaceId,
        revision: u64,
        at: Timestamp,
        due_at: Option<Timestamp>,
    ) -> Result<Write<()>, Error>;

    /// What the account uses.
    async fn usage(&self, account_id: AccountId) -> Result<Usage, Error>;

    /// When the next timer of any workspace rings: the least [`Workspace::due_at`].
    async fn next_due(&self) -> Result<Option<Timestamp>, Error>;

    /// At most `limit` workspaces with a timer that is due, longest due first.
    async fn due_workspaces(&self, now: Timestamp, limit: u32) -> Result<Vec<WorkspaceId>, Error>;

    /// Records a snapshot, if the plan admits it where one is given
    /// ([`skerry_model::limits::admit_snapshot`]); [`Write::Taken`] when there is one of its
    /// identifier. The written record has revision 1.
    async fn insert_snapshot(
        &self,
        snapshot: &Snapshot,
        plan: Option<&Plan>,
    ) -> Result<Write<Snapshot>, Error>;

    /// Replaces the record if its revision is still `snapshot.revision`. The written record has the
    /// next revision.
    async fn update_snapshot(&self, snapshot: &Snapshot) -> Result<Write<Snapshot>, Error>;

    /// Replaces the record by `snapshot`, whose deletion has begun, if its revision is still
    /// `snapshot.revision` and no workspace needs it at the moment of the write.
    async fn begin_snapshot_deletion(&self, snapshot: &Snapshot)
    -> Result<SnapshotDeletion, Error>;

    /// Removes the record if its revision is still this one; `Stale` otherwise.
    async fn remove_snapshot(&self, id: SnapshotId, revision: u64) -> Result<Write<()>, Error>;

    /// One snapshot, of any account.
    async fn snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>, Error>;

    /// A part of the account's snapshots, newest first, and how many there are.
    async fn list_snapshots(
        &self,
        account_id: AccountId,
        filter: &ListSnapshots,
    ) -> Result<Page<Snapshot>, Error>;

    /// At most `limit` snapshots of all accounts with an identifier after `after`, in order of
    /// identifiers: for walking over everything without holding it.
    async fn snapshots_after(
        &self,
        after: Option<SnapshotId>,
        limit: u32,
    ) -> Result<Vec<Snapshot>, Error>;

    /// At most `limit` snapshots of purpose fork that no workspace needs and that are not being
    /// created or deleted.
    async fn unneeded_fork_snapshots(&self, limit: u32) -> Result<Vec<SnapshotId>, Error>;
}
