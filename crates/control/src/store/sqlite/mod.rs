//! The embedded database: SQLite with a write-ahead log, every commit synced to disk. One task writes,
//! several connections read; a reader never waits for the writer.

mod accounts;
mod blueprints;
mod checkpoints;
mod domains;
mod networks;
mod picture;
mod ports;
mod recent;
mod records;
mod rows;
mod runtime_access;
mod snapshots;
mod ssh_access;
mod ssh_keys;
#[cfg(test)]
mod tests;
mod upgrade;
mod usage;
mod vaults;
mod volumes;
mod writer;

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use skerry_internal_api::KeyFingerprint;
use skerry_model::{
    AccountId, ApiKeyId, ErrorKind, Neighbourhood, Plan, PrivateAddress, ProjectId, Slug, Snapshot,
    SnapshotId, SshKeyId, Timestamp, Usage, Workspace, WorkspaceId,
};
use sqlx::{
    ConnectOptions as _, QueryBuilder, Sqlite as Db, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    Account, Admission, KeyOwner, KeyRemoval, PortInsertion, SecretHash, SnapshotDeletion,
    SshKeyInsertion, StateStore, StoredKey, StoredPort, Tenant, Write,
    row::{WorkspaceRow, id, json, nanos, signed, time, unsigned},
    sealing::KeyRing,
};
use crate::{ApiKey, Error, ListSnapshots, ListWorkspaces, Page, Project, PublishedPort, SshKey};

use accounts::{
    EnsureAccount, EnsureBootstrapKey, InsertKey, InsertProject, RemoveKey, TouchKey, key_from,
    key_owner_from, project_from,
};
use picture::{Asked, WorkspaceWrite};
use ports::{InsertPort, RemovePort, UpdatePort, port_from};
use recent::Recent;
use records::NoteActivity;
use rows::{WORKSPACES, workspace_from};
use snapshots::{
    BeginSnapshotDeletion, InsertFork, InsertSnapshot, RemoveSnapshot, UpdateSnapshot,
    snapshot_from,
};
use ssh_keys::{InsertSshKey, RemoveSshKey, ssh_key_from, tenant_from};
use writer::Writer;

const READERS: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Sqlite {
    writer: Writer,
    readers: SqlitePool,
    recent: Recent,
    keys: KeyRing,
}

/// SQLite's code for a disk (or a quota on it) that is full.
const FULL: &str = "13";

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        if code.as_deref() == Some(FULL) {
            let full = "the disk that the database is on is full".to_owned();
            return Self::with_cause(ErrorKind::Unavailable(full), error);
        }
        Self::internal(error)
    }
}

impl Sqlite {
    pub(super) async fn open(path: &Path, keys: KeyRing) -> Result<Self, Error> {
        make_private(path).await.map_err(Error::internal)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let mut connection = options.connect().await?;
        sqlx::migrate!("./migrations")
            .run_direct(&mut connection)
            .await
            .map_err(Error::internal)?;
        upgrade::upgrade(&mut connection, &keys).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(BUSY_TIMEOUT)
            // A connection to a file of ours does not go away by itself.
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone().read_only(true))
            .await?;
        let recent = Recent::new();
        let writer = Writer::start(connection, options, recent.clone());
        Ok(Self { writer, readers, recent, keys })
    }

    /// One workspace by a condition with these values.
    async fn find_workspace(
        &self,
        condition: &str,
        values: &[&str],
    ) -> Result<Option<Workspace>, Error> {
        let text = format!("SELECT {WORKSPACES} FROM workspaces WHERE {condition}");
        let mut query = sqlx::query(&text);
        for value in values {
            query = query.bind(*value);
        }
        let row = query.fetch_optional(&self.readers).await?;
        row.as_ref().map(|row| workspace_from(row, &self.keys)).transpose()
    }

    /// At most `limit` workspaces by a condition with these values, in the order it ends with.
    async fn find_workspaces(
        &self,
        condition_and_order: &str,
        values: &[&str],
        limit: u32,
    ) -> Result<Vec<Workspace>, Error> {
        let text =
            format!("SELECT {WORKSPACES} FROM workspaces WHERE {condition_and_order} LIMIT ?");
        let mut query = sqlx::query(&text);
        for value in values {
            query = query.bind(*value);
        }
        let rows = query.bind(i64::from(limit)).fetch_all(&self.readers).await?;
        rows.iter().map(|row| workspace_from(row, &self.keys)).collect()
    }
}

/// Makes the file, and narrows the rights of one that is there: it holds hashes of keys. The log files
/// beside it take over its rights.
async fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let file =
        tokio::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).await?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).await
}

fn asked(Admission { plan, demand }: Admission<'_>) -> Asked {
    Asked { plan: plan.clone(), demand }
}

/// The record that was written.
fn written(write: Write<WorkspaceWrite>) -> Result<Write<Workspace>, Error> {
    match write {
        Write::Done(write) => match write.into_record() {
            Some(record) => Ok(Write::Done(record)),
            None => Err(Error::internal("a record was removed instead of written")),
        },
        Write::Stale => Ok(Write::Stale),
        Write::Taken => Ok(Write::Taken),
    }
}

#[async_trait]
impl StateStore for Sqlite {
    async fn ensure_account(
        &self,
        account: &Account,
        default_project: &Project,
    ) -> Result<(Account, bool), Error> {
        let (account, default_project) = (account.clone(), default_project.clone());
        self.writer.run(EnsureAccount { account, default_project }).await
    }

    async fn ensure_bootstrap_key(&self, key: &StoredKey) -> Result<(), Error> {
        self.writer.run(EnsureBootstrapKey(key.clone())).await
    }

    async fn key_owner(&self, hash: &SecretHash) -> Result<Option<KeyOwner>, Error> {
        let row = sqlx::query(
            "SELECT k.id AS key_id, k.last_used_at, a.id AS account_id, a.handle, a.created_at, \
             p.id AS project_id FROM api_keys k JOIN accounts a ON a.id = k.account_id \
             JOIN projects p ON p.account_id = a.id AND p.is_default = 1 WHERE k.secret_hash = ?",
        )
        .bind(hash.0.as_slice())
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref().map(key_owner_from).transpose()
    }

    async fn insert_key(&self, key: &StoredKey) -> Result<(), Error> {
        self.writer.run(InsertKey(key.clone())).await
    }

    async fn list_keys(&self, account_id: AccountId) -> Result<Vec<ApiKey>, Error> {
        sqlx::query(
            "SELECT id, name, secret_tail, created_at, last_used_at FROM api_keys \
             WHERE account_id = ? ORDER BY seq",
        )
        .bind(account_id.to_string())
        .fetch_all(&self.readers)
        .await?
        .iter()
        .map(key_from)
        .collect()
    }

    async fn remove_key(&self, account_id: AccountId, key: ApiKeyId) -> Result<KeyRemoval, Error> {
        self.writer.run(RemoveKey { account_id, key }).await
    }

    async fn touch_key(&self, key: ApiKeyId, at: Timestamp) -> Result<(), Error> {
        self.writer.run(TouchKey { key, at }).await
    }

    async fn insert_ssh_key(
        &self,
        account_id: AccountId,
        key: &SshKey,
        max: u32,
    ) -> Result<SshKeyInsertion, Error> {
        self.writer.run(InsertSshKey { account_id, key: key.clone(), max }).await
    }

    async fn list_ssh_keys(&self, account_id: AccountId) -> Result<Vec<SshKey>, Error> {
        sqlx::query(
            "SELECT id, name, public_key, fingerprint, created_at FROM ssh_keys \
             WHERE account_id = ? ORDER BY seq",
        )
        .bind(account_id.to_string())
        .fetch_all(&self.readers)
        .await?
        .iter()
        .map(ssh_key_from)
        .collect()
    }

    async fn ssh_key_owner(&self, fingerprint: &KeyFingerprint) -> Result<Option<Tenant>, Error> {
        sqlx::query(
            "SELECT a.id AS account_id, a.handle, a.created_at, p.id AS project_id \
             FROM ssh_keys k JOIN accounts a ON a.id = k.account_id \
             JOIN projects p ON p.account_id = a.id AND p.is_default = 1 WHERE k.fingerprint = ?",
        )
        .bind(fingerprint.0.as_slice())
        .fetch_optional(&self.readers)
        .await?
        .as_ref()
        .map(tenant_from)
        .transpose()
    }

    async fn remove_ssh_key(&self, account_id: AccountId, key: SshKeyId) -> Result<bool, Error> {
        self.writer.run(RemoveSshKey { account_id, key }).await
    }

    async fn tenant(&self, account: AccountId) -> Result<Option<Tenant>, Error> {
        sqlx::query(
            "SELECT a.id AS account_id, a.handle, a.created_at, p.id AS project_id FROM accounts a \
             JOIN projects p ON p.account_id = a.id AND p.is_default = 1 WHERE a.id = ?",
        )
        .bind(account.to_string())
        .fetch_optional(&self.readers)
        .await?
        .as_ref()
        .map(tenant_from)
        .transpose()
    }

    async fn insert_port(&self, port: &StoredPort, max: u32) -> Result<PortInsertion, Error> {
        self.writer.run(InsertPort { port: port.clone(), max }).await
    }

    async fn update_port(&self, port: &StoredPort) -> Result<Write<()>, Error> {
        self.writer.run(UpdatePort(port.clone())).await
    }

    async fn list_ports(&self, workspaces: &[WorkspaceId]) -> Result<Vec<StoredPort>, Error> {
        sqlx::query(
            "SELECT * FROM published_ports \
             WHERE workspace_id IN (SELECT value FROM json_each(?)) ORDER BY workspace_id, port",
        )
        .bind(json(&workspaces)?)
        .fetch_all(&self.readers)
        .await?
        .iter()
        .map(port_from)
        .collect()
    }

    async fn port_by_slug(&self, slug: &Slug) -> Result<Option<StoredPort>, Error> {
        sqlx::query("SELECT * FROM published_ports WHERE slug = ?")
            .bind(slug.as_str())
            .fetch_optional(&self.readers)
            .await?
            .as_ref()
            .map(port_from)
            .transpose()
    }

    async fn remove_port(
        &self,
        workspace: WorkspaceId,
        port: u16,
    ) -> Result<Option<PublishedPort>, Error> {
        self.writer.run(RemovePort { workspace, port }).await
    }

    async fn workspaces_by_prefix(&self, prefix: u32, limit: u32) -> Result<Vec<Workspace>, Error> {
        let [from, to] = ports::identifiers_with(prefix);
        let values = [&from, &to, &from, &to, &from, &to].map(String::as_str);
        self.find_workspaces(ports::BY_PREFIX, &values, limit).await
    }

    async fn insert_project(
        &self,
        account_id: AccountId,
        project: &Project,
    ) -> Result<Write<Project>, Error> {
        self.writer.run(InsertProject { account_id, project: project.clone() }).await
    }

    async fn list_projects(&self, account_id: AccountId) -> Result<Vec<Project>, Error> {
        sqlx::query("SELECT * FROM projects WHERE account_id = ? ORDER BY is_default DESC, seq")
            .bind(account_id.to_string())
            .fetch_all(&self.readers)
            .await?
            .iter()
            .map(project_from)
            .collect()
    }

    async fn project(
        &self,
        account_id: AccountId,
        project: ProjectId,
    ) -> Result<Option<Project>, Error> {
        sqlx::query("SELECT * FROM projects WHERE account_id = ? AND id = ?")
            .bind(account_id.to_string())
            .bind(project.to_string())
            .fetch_optional(&self.readers)
            .await?
            .as_ref()
            .map(project_from)
            .transpose()
    }

    async fn insert_workspace(
        &self,
        workspace: &Workspace,
        admission: Admission<'_>,
    ) -> Result<Write<Workspace>, Error> {
        let record = Workspace { revision: 1, ..workspace.clone() };
        let row = Box::new(WorkspaceRow::of(record, &self.keys)?);
        let write = WorkspaceWrite::Insert { row, admission: asked(admission) };
        written(self.writer.write(write).await?)
    }

    async fn insert_fork(
        &self,
        snapshot: &Snapshot,
        workspaces: &[Workspace],
        admission: Admission<'_>,
    ) -> Result<Write<Vec<Workspace>>, Error> {
        let write = |workspace: &Workspace| {
            let record = Workspace { revision: 1, ..workspace.clone() };
            let row = Box::new(WorkspaceRow::of(record, &self.keys)?);
            Ok(WorkspaceWrite::Insert { row, admission: asked(admission) })
        };
        let writes = workspaces.iter().map(write).collect::<Result<_, Error>>()?;
        self.writer.run(InsertFork { snapshot: snapshot.clone(), writes }).await
    }

    async fn update_workspace(
        &self,
        workspace: &Workspace,
        admission: Option<Admission<'_>>,
    ) -> Result<Write<Workspace>, Error> {
        let record = Workspace { revision: workspace.revision + 1, ..workspace.clone() };
        let row = Box::new(WorkspaceRow::of(record, &self.keys)?);
        let write = WorkspaceWrite::Update { row, admission: admission.map(asked) };
        written(self.writer.write(write).await?)
    }

    async fn remove_workspace(&self, id: WorkspaceId, revision: u64) -> Result<Write<()>, Error> {
        let removed = self.writer.write(WorkspaceWrite::Remove { id, revision }).await?;
        Ok(removed.map(drop))
    }

    async fn workspace(&self, workspace: WorkspaceId) -> Result<Option<Workspace>, Error> {
        if let Some(found) = self.recent.get(workspace) {
            return Ok(Some(found));
        }
        self.find_workspace("id = ?", &[&workspace.to_string()]).await
    }

    async fn workspace_by_slug(
        &self,
        account_id: AccountId,
        slug: &str,
    ) -> Result<Option<Workspace>, Error> {
        self.find_workspace("slug = ? AND account_id = ?", &[slug, &account_id.to_string()]).await
    }

    async fn workspaces_by_name(
        &self,
        account_id: AccountId,
        name: &str,
        limit: u32,
    ) -> Result<Vec<Workspace>, Error> {
        let found = "account_id = ? AND name = ? ORDER BY seq DESC";
        self.find_workspaces(found, &[&account_id.to_string(), name], limit).await
    }

    async fn list_workspaces(
        &self,
        account_id: AccountId,
        filter: &ListWorkspaces,
    ) -> Result<Page<Workspace>, Error> {
        // The page and the total are of one moment.
        let mut tx = self.readers.begin().await?;
        let mut count = QueryBuilder::<Db>::new("SELECT count(*) FROM workspaces");
        rows::push_filter(&mut count, account_id, filter);
        let total: i64 = count.build_query_scalar().fetch_one(&mut *tx).await?;
        // Which rows are shown is found in the index alone; only those are then read.
        let mut select = QueryBuilder::<Db>::new(format!(
            "SELECT {WORKSPACES} FROM workspaces WHERE seq IN (SELECT seq FROM workspaces"
        ));
        rows::push_filter(&mut select, account_id, filter);
        select.push(" ORDER BY seq DESC LIMIT ").push_bind(filter.limit.map_or(-1, signed));
        select.push(" OFFSET ").push_bind(signed(filter.offset));
        select.push(") ORDER BY seq DESC");
        let rows = select.build().fetch_all(&mut *tx).await?;
        let items = rows.iter().map(|row| workspace_from(row, &self.keys));
        Ok(Page { items: items.collect::<Result<_, _>>()?, total: unsigned(total)? })
    }

    async fn workspaces_after(
        &self,
        after: Option<WorkspaceId>,
        limit: u32,
    ) -> Result<Vec<Workspace>, Error> {
        let after = after.map(|id| id.to_string()).unwrap_or_default();
        self.find_workspaces("id > ? ORDER BY id", &[&after], limit).await
    }

    async fn admits_anybody(&self, account_id: AccountId) -> Result<bool, Error> {
        networks::admits_anybody(&self.readers, account_id).await
    }

    async fn neighbourhood(&self, account_id: AccountId) -> Result<Neighbourhood, Error> {
        networks::neighbourhood(&self.readers, account_id).await
    }

    async fn workspaces_at(&self, address: PrivateAddress) -> Result<Vec<WorkspaceId>, Error> {
        networks::workspaces_at(&self.readers, address).await
    }

    async fn workspaces_needing(
        &self,
        snapshot: SnapshotId,
        limit: u32,
    ) -> Result<Vec<Workspace>, Error> {
        let needing = "needed_snapshot_id = ? ORDER BY seq";
        self.find_workspaces(needing, &[&snapshot.to_string()], limit).await
    }

    async fn note_activity(
        &self,
        id: WorkspaceId,
        revision: u64,
        at: Timestamp,
        due_at: Option<Timestamp>,
    ) -> Result<Write<()>, Error> {
        self.writer.run(NoteActivity { id, revision, at, due_at }).await
    }

    async fn usage(&self, account_id: AccountId) -> Result<Usage, Error> {
        let mut reader = self.readers.acquire().await?;
        usage::of(&mut reader, account_id).await
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, Error> {
        let earliest: Option<i64> =
            sqlx::query_scalar("SELECT min(due_at) FROM workspaces WHERE due_at IS NOT NULL")
                .fetch_one(&self.readers)
                .await?;
        earliest.map(time).transpose()
    }

    async fn due_workspaces(&self, now: Timestamp, limit: u32) -> Result<Vec<WorkspaceId>, Error> {
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM workspaces WHERE due_at <= ? ORDER BY due_at LIMIT ?",
        )
        .bind(nanos(now))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        ids.iter().map(|text| id(text)).collect()
    }

    async fn insert_snapshot(
        &self,
        snapshot: &Snapshot,
        plan: Option<&Plan>,
    ) -> Result<Write<Snapshot>, Error> {
        let (snapshot, plan) = (snapshot.clone(), plan.cloned());
        self.writer.run(InsertSnapshot { snapshot, plan }).await
    }

    async fn update_snapshot(&self, snapshot: &Snapshot) -> Result<Write<Snapshot>, Error> {
        self.writer.run(UpdateSnapshot(snapshot.clone())).await
    }

    async fn begin_snapshot_deletion(
        &self,
        snapshot: &Snapshot,
    ) -> Result<SnapshotDeletion, Error> {
        let (snapshot, keys) = (snapshot.clone(), self.keys.clone());
        self.writer.run(BeginSnapshotDeletion { snapshot, keys }).await
    }

    async fn remove_snapshot(&self, id: SnapshotId, revision: u64) -> Result<Write<()>, Error> {
        self.writer.run(RemoveSnapshot { id, revision }).await
    }

    async fn snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>, Error> {
        let text = format!("SELECT {} FROM snapshots WHERE id = ?", snapshots::COLUMNS);
        let row = sqlx::query(&text).bind(id.to_string()).fetch_optional(&self.readers).await?;
        row.as_ref().map(snapshot_from).transpose()
    }

    async fn list_snapshots(
        &self,
        account_id: AccountId,
        filter: &ListSnapshots,
    ) -> Result<Page<Snapshot>, Error> {
        let mut tx = self.readers.begin().await?;
        let mut count = QueryBuilder::<Db>::new("SELECT count(*) FROM snapshots");
        snapshots::push_filter(&mut count, account_id, filter);
        let total: i64 = count.build_query_scalar().fetch_one(&mut *tx).await?;
        let columns = snapshots::COLUMNS;
        let mut select = QueryBuilder::<Db>::new(format!("SELECT {columns} FROM snapshots"));
        snapshots::push_filter(&mut select, account_id, filter);
        select.push(" ORDER BY seq DESC LIMIT ").push_bind(filter.limit.map_or(-1, signed));
        select.push(" OFFSET ").push_bind(signed(filter.offset));
        let rows = select.build().fetch_all(&mut *tx).await?;
        let items = rows.iter().map(snapshot_from).collect::<Result<_, _>>()?;
        Ok(Page { items, total: unsigned(total)? })
    }

    async fn snapshots_after(
        &self,
        after: Option<SnapshotId>,
        limit: u32,
    ) -> Result<Vec<Snapshot>, Error> {
        let columns = snapshots::COLUMNS;
        sqlx::query(&format!("SELECT {columns} FROM snapshots WHERE id > ? ORDER BY id LIMIT ?"))
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await?
            .iter()
            .map(snapshot_from)
            .collect()
    }

    async fn unneeded_fork_snapshots(&self, limit: u32) -> Result<Vec<SnapshotId>, Error> {
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM snapshots WHERE purpose = 'fork' AND state IN ('ready', 'failed') \
             AND NOT EXISTS (SELECT 1 FROM workspaces WHERE needed_snapshot_id = snapshots.id) \
             ORDER BY seq LIMIT ?",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        ids.iter().map(|text| id(text)).collect()
    }
}
