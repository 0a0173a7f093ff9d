//! The embedded database: SQLite with a write-ahead log, every commit synced to disk. One
//! connection writes, several read; a reader never waits for the writer.

mod statements;

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use skerry_model::{AccountId, ApiKeyId, ProjectId, Timestamp, Usage, Workspace, WorkspaceId};
use sqlx::{
    QueryBuilder, Row, Sqlite as Db, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    Account, Admission, KeyOwner, KeyRemoval, SecretHash, StateStore, StoredKey, Write,
    row::{
        COLUMNS, desired_word, from_row, id, json, lifetime_word, nanos, signed, time, unsigned,
    },
};
use crate::{ApiKey, Error, ListWorkspaces, Page, Project};

use statements::{
    IsBootstrap, admit, insert_key, insert_project, key_from, project_from, push_filter,
    usage_without,
};

const READERS: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::internal(error)
    }
}

impl Sqlite {
    pub(super) async fn open(path: &Path) -> Result<Self, Error> {
        make_private(path).await.map_err(Error::internal)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(BUSY_TIMEOUT)
            .connect_with(options.clone())
            .await?;
        sqlx::migrate!("./migrations").run(&writer).await.map_err(Error::internal)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(BUSY_TIMEOUT)
            .connect_with(options.read_only(true))
            .await?;
        Ok(Self { writer, readers })
    }

    /// A transaction that holds the write lock from its first statement on, so that what it reads
    /// is still so when it writes.
    async fn begin(&self) -> Result<Transaction<'static, Db>, Error> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// Makes the file, and narrows the rights of one that is there: it holds hashes of keys and
/// tenants' environments. The log files beside it take over its rights.
async fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let file =
        tokio::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).await?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).await
}

fn is_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

#[async_trait]
impl StateStore for Sqlite {
    async fn ensure_account(
        &self,
        account: &Account,
        default_project: &Project,
    ) -> Result<(Account, bool), Error> {
        let mut tx = self.begin().await?;
        let there = sqlx::query("SELECT id, created_at FROM accounts WHERE handle = ?")
            .bind(&account.handle)
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(row) = there {
            let account = Account {
                id: id(row.try_get("id")?)?,
                handle: account.handle.clone(),
                created_at: time(row.try_get("created_at")?)?,
            };
            return Ok((account, false));
        }
        sqlx::query("INSERT INTO accounts (id, handle, created_at) VALUES (?, ?, ?)")
            .bind(account.id.to_string())
            .bind(&account.handle)
            .bind(nanos(account.created_at))
            .execute(&mut *tx)
            .await?;
        insert_project(&mut tx, account.id, default_project).await?;
        tx.commit().await?;
        Ok((account.clone(), true))
    }

    async fn ensure_bootstrap_key(&self, key: &StoredKey) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "DELETE FROM api_keys WHERE account_id = ? AND is_bootstrap = 1 AND secret_hash <> ?",
        )
        .bind(key.account_id.to_string())
        .bind(key.hash.0.as_slice())
        .execute(&mut *tx)
        .await?;
        let owner: Option<String> =
            sqlx::query_scalar("SELECT account_id FROM api_keys WHERE secret_hash = ?")
                .bind(key.hash.0.as_slice())
                .fetch_optional(&mut *tx)
                .await?;
        match owner {
            None => insert_key(&mut tx, key, IsBootstrap::Yes).await?,
            // The secret was made as an ordinary key before it was configured: the same key.
            Some(owner) if owner == key.account_id.to_string() => {
                sqlx::query("UPDATE api_keys SET is_bootstrap = 1 WHERE secret_hash = ?")
                    .bind(key.hash.0.as_slice())
                    .execute(&mut *tx)
                    .await?;
            }
            Some(_) => {
                return Err(Error::internal("the bootstrap key belongs to another account"));
            }
        }
        tx.commit().await?;
        Ok(())
    }

    async fn key_owner(&self, hash: &SecretHash) -> Result<Option<KeyOwner>, Error> {
        let row = sqlx::query(
            "SELECT k.id AS key_id, k.last_used_at, a.id AS account_id, a.handle, a.created_at \
             FROM api_keys k JOIN accounts a ON a.id = k.account_id WHERE k.secret_hash = ?",
        )
        .bind(hash.0.as_slice())
        .fetch_optional(&self.readers)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(KeyOwner {
            account: Account {
                id: id(row.try_get("account_id")?)?,
                handle: row.try_get("handle")?,
                created_at: time(row.try_get("created_at")?)?,
            },
            key_id: id(row.try_get("key_id")?)?,
            last_used_at: row.try_get::<Option<i64>, _>("last_used_at")?.map(time).transpose()?,
        }))
    }

    async fn insert_key(&self, key: &StoredKey) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        insert_key(&mut tx, key, IsBootstrap::No).await?;
        tx.commit().await?;
        Ok(())
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
        let mut tx = self.begin().await?;
        let keys: Vec<String> = sqlx::query_scalar("SELECT id FROM api_keys WHERE account_id = ?")
            .bind(account_id.to_string())
            .fetch_all(&mut *tx)
            .await?;
        if !keys.contains(&key.to_string()) {
            return Ok(KeyRemoval::NotFound);
        }
        if keys.len() == 1 {
            return Ok(KeyRemoval::LastOne);
        }
        sqlx::query("DELETE FROM api_keys WHERE id = ?")
            .bind(key.to_string())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(KeyRemoval::Removed)
    }

    async fn touch_key(&self, key: ApiKeyId, at: Timestamp) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "UPDATE api_keys SET last_used_at = ?1 \
             WHERE id = ?2 AND (last_used_at IS NULL OR last_used_at <= ?1 - 60000000000)",
        )
        .bind(nanos(at))
        .bind(key.to_string())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    async fn insert_project(
        &self,
        account_id: AccountId,
        project: &Project,
    ) -> Result<Write<Project>, Error> {
        let mut tx = self.begin().await?;
        match insert_project(&mut tx, account_id, project).await {
            Ok(()) => {}
            Err(error) if is_taken(&error) => return Ok(Write::Taken),
            Err(error) => return Err(error.into()),
        }
        tx.commit().await?;
        Ok(Write::Done(project.clone()))
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
        let mut tx = self.begin().await?;
        admit(&mut tx, workspace, admission).await?;
        let written = Workspace { revision: 1, ..workspace.clone() };
        let mut insert = QueryBuilder::<Db>::new(
            "INSERT INTO workspaces (id, account_id, project_id, namespace, name, slug, lifetime, \
             vcpu_count, memory_mib, disk_mib, desired, state, runs, incarnation, \
             replace_through, failed_starts, start_began_at, node_id, expires_at, \
             preview_token, spec_json, state_json, created_at, updated_at, revision) VALUES (",
        );
        let mut values = insert.separated(", ");
        values.push_bind(written.id.to_string());
        values.push_bind(written.account_id.to_string());
        values.push_bind(written.project_id.to_string());
        values.push_bind(written.namespace.clone());
        values.push_bind(written.name.as_str().to_owned());
        values.push_bind(written.slug.as_str().to_owned());
        values.push_bind(lifetime_word(written.spec.lifetime));
        values.push_bind(i64::from(written.spec.shape.vcpu_count.get()));
        values.push_bind(i64::from(written.spec.shape.memory_mib.get()));
        values.push_bind(i64::from(written.spec.shape.disk_mib.get()));
        values.push_bind(desired_word(written.desired));
        values.push_bind(written.state.name());
        values.push_bind(written.counts_as_running());
        values.push_bind(signed(written.incarnation.0));
        values.push_bind(signed(written.replace_through.0));
        values.push_bind(i64::from(written.failed_starts));
        values.push_bind(written.start_began_at.map(nanos));
        values.push_bind(written.node_id.map(|node| node.to_string()));
        values.push_bind(written.expires_at.map(nanos));
        values.push_bind(written.preview_token.expose().to_owned());
        values.push_bind(json(&written.spec)?);
        values.push_bind(json(&written.state)?);
        values.push_bind(nanos(written.created_at));
        values.push_bind(nanos(written.updated_at));
        values.push_bind(signed(written.revision));
        values.push_unseparated(")");
        match insert.build().execute(&mut *tx).await {
            Ok(_) => {}
            Err(error) if is_taken(&error) => return Ok(Write::Taken),
            Err(error) => return Err(error.into()),
        }
        tx.commit().await?;
        Ok(Write::Done(written))
    }

    async fn update_workspace(
        &self,
        workspace: &Workspace,
        admission: Option<Admission<'_>>,
    ) -> Result<Write<Workspace>, Error> {
        let mut tx = self.begin().await?;
        if let Some(admission) = admission {
            admit(&mut tx, workspace, admission).await?;
        }
        let written = Workspace { revision: workspace.revision + 1, ..workspace.clone() };
        let outcome = sqlx::query(
            "UPDATE workspaces SET project_id = ?, namespace = ?, name = ?, slug = ?, \
             lifetime = ?, vcpu_count = ?, memory_mib = ?, disk_mib = ?, desired = ?, state = ?, \
             runs = ?, incarnation = ?, replace_through = ?, failed_starts = ?, \
             start_began_at = ?, node_id = ?, expires_at = ?, spec_json = ?, state_json = ?, \
             updated_at = ?, revision = ? WHERE id = ? AND revision = ?",
        )
        .bind(written.project_id.to_string())
        .bind(&written.namespace)
        .bind(written.name.as_str())
        .bind(written.slug.as_str())
        .bind(lifetime_word(written.spec.lifetime))
        .bind(i64::from(written.spec.shape.vcpu_count.get()))
        .bind(i64::from(written.spec.shape.memory_mib.get()))
        .bind(i64::from(written.spec.shape.disk_mib.get()))
        .bind(desired_word(written.desired))
        .bind(written.state.name())
        .bind(written.counts_as_running())
        .bind(signed(written.incarnation.0))
        .bind(signed(written.replace_through.0))
        .bind(i64::from(written.failed_starts))
        .bind(written.start_began_at.map(nanos))
        .bind(written.node_id.map(|node| node.to_string()))
        .bind(written.expires_at.map(nanos))
        .bind(json(&written.spec)?)
        .bind(json(&written.state)?)
        .bind(nanos(written.updated_at))
        .bind(signed(written.revision))
        .bind(written.id.to_string())
        .bind(signed(workspace.revision))
        .execute(&mut *tx)
        .await;
        match outcome {
            Ok(done) if done.rows_affected() == 0 => return Ok(Write::Stale),
            Ok(_) => {}
            Err(error) if is_taken(&error) => return Ok(Write::Taken),
            Err(error) => return Err(error.into()),
        }
        tx.commit().await?;
        Ok(Write::Done(written))
    }

    async fn remove_workspace(
        &self,
        workspace: WorkspaceId,
        revision: u64,
    ) -> Result<Write<()>, Error> {
        let mut tx = self.begin().await?;
        let done = sqlx::query("DELETE FROM workspaces WHERE id = ? AND revision = ?")
            .bind(workspace.to_string())
            .bind(signed(revision))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(if done.rows_affected() == 1 { Write::Done(()) } else { Write::Stale })
    }

    async fn workspace(&self, workspace: WorkspaceId) -> Result<Option<Workspace>, Error> {
        sqlx::query(&format!("SELECT {COLUMNS} FROM workspaces WHERE id = ?"))
            .bind(workspace.to_string())
            .fetch_optional(&self.readers)
            .await?
            .as_ref()
            .map(from_row)
            .transpose()
    }

    async fn workspace_by_slug(
        &self,
        account_id: AccountId,
        slug: &str,
    ) -> Result<Option<Workspace>, Error> {
        sqlx::query(&format!("SELECT {COLUMNS} FROM workspaces WHERE account_id = ? AND slug = ?"))
            .bind(account_id.to_string())
            .bind(slug)
            .fetch_optional(&self.readers)
            .await?
            .as_ref()
            .map(from_row)
            .transpose()
    }

    async fn workspaces_by_name(
        &self,
        account_id: AccountId,
        name: &str,
        limit: u32,
    ) -> Result<Vec<Workspace>, Error> {
        sqlx::query(&format!(
            "SELECT {COLUMNS} FROM workspaces WHERE account_id = ? AND name = ? \
             ORDER BY seq DESC LIMIT ?"
        ))
        .bind(account_id.to_string())
        .bind(name)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?
        .iter()
        .map(from_row)
        .collect()
    }

    async fn list_workspaces(
        &self,
        account_id: AccountId,
        filter: &ListWorkspaces,
    ) -> Result<Page<Workspace>, Error> {
        // The page and the total are of one moment.
        let mut tx = self.readers.begin().await?;
        let mut count = QueryBuilder::<Db>::new("SELECT count(*) FROM workspaces");
        push_filter(&mut count, account_id, filter);
        let total: i64 = count.build_query_scalar().fetch_one(&mut *tx).await?;
        let mut select = QueryBuilder::<Db>::new(format!("SELECT {COLUMNS} FROM workspaces"));
        push_filter(&mut select, account_id, filter);
        select.push(" ORDER BY seq DESC LIMIT ");
        select.push_bind(filter.limit.map_or(-1, signed));
        select.push(" OFFSET ").push_bind(signed(filter.offset));
        let rows = select.build().fetch_all(&mut *tx).await?;
        Ok(Page {
            items: rows.iter().map(from_row).collect::<Result<_, _>>()?,
            total: unsigned(total)?,
        })
    }

    async fn workspaces_after(
        &self,
        after: Option<WorkspaceId>,
        limit: u32,
    ) -> Result<Vec<Workspace>, Error> {
        sqlx::query(&format!("SELECT {COLUMNS} FROM workspaces WHERE id > ? ORDER BY id LIMIT ?"))
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await?
            .iter()
            .map(from_row)
            .collect()
    }

    async fn usage(&self, account_id: AccountId) -> Result<Usage, Error> {
        let mut reader = self.readers.acquire().await?;
        usage_without(&mut reader, account_id, None).await
    }

    async fn next_expiry(&self) -> Result<Option<Timestamp>, Error> {
        let earliest: Option<i64> = sqlx::query_scalar(
            "SELECT min(expires_at) FROM workspaces WHERE expires_at IS NOT NULL",
        )
        .fetch_one(&self.readers)
        .await?;
        earliest.map(time).transpose()
    }

    async fn expired_workspaces(
        &self,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<WorkspaceId>, Error> {
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM workspaces WHERE expires_at <= ? ORDER BY expires_at LIMIT ?",
        )
        .bind(nanos(now))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        ids.iter().map(|text| id(text)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::fs::PermissionsExt;

    use crate::store::{Store, contract::store_contract};

    async fn empty() -> (Store, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        (Store::open(&directory.path().join("store.db")).await.unwrap(), directory)
    }

    store_contract!(empty);

    #[tokio::test]
    async fn only_the_owner_can_read_the_file_and_its_logs() {
        let (store, directory) = empty().await;
        assert_eq!(store.next_expiry().await.unwrap(), None);
        let mut seen = 0;
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
            seen += 1;
        }
        assert!(seen >= 2, "the database and its log: {seen}");
    }
}
