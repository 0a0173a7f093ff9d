//! Accounts, keys and projects.

use async_trait::async_trait;
use skerry_model::{AccountId, ApiKeyId, Timestamp};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::writer::{Broken, Operation};
use crate::{
    ApiKey, Error, Project,
    store::{
        Account, KeyOwner, KeyRemoval, StoredKey, Write,
        row::{id, nanos, time},
    },
};

pub(super) fn project_from(row: &SqliteRow) -> Result<Project, Error> {
    Ok(Project {
        id: id(row.try_get("id")?)?,
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        is_default: row.try_get("is_default")?,
        created_at: time(row.try_get("created_at")?)?,
        updated_at: time(row.try_get("updated_at")?)?,
    })
}

pub(super) fn key_from(row: &SqliteRow) -> Result<ApiKey, Error> {
    Ok(ApiKey {
        id: id(row.try_get("id")?)?,
        name: row.try_get("name")?,
        secret_tail: row.try_get("secret_tail")?,
        created_at: time(row.try_get("created_at")?)?,
        last_used_at: row.try_get::<Option<i64>, _>("last_used_at")?.map(time).transpose()?,
    })
}

pub(super) fn key_owner_from(row: &SqliteRow) -> Result<KeyOwner, Error> {
    Ok(KeyOwner {
        account: Account {
            id: id(row.try_get("account_id")?)?,
            handle: row.try_get("handle")?,
            created_at: time(row.try_get("created_at")?)?,
        },
        default_project_id: id(row.try_get("project_id")?)?,
        key_id: id(row.try_get("key_id")?)?,
        last_used_at: row.try_get::<Option<i64>, _>("last_used_at")?.map(time).transpose()?,
    })
}

async fn insert_project(
    db: &mut SqliteConnection,
    account_id: AccountId,
    project: &Project,
) -> Result<Write<Project>, Broken> {
    let done = sqlx::query(
        "INSERT INTO projects (id, account_id, name, description, is_default, created_at, \
         updated_at) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(project.id.to_string())
    .bind(account_id.to_string())
    .bind(&project.name)
    .bind(&project.description)
    .bind(project.is_default)
    .bind(nanos(project.created_at))
    .bind(nanos(project.updated_at))
    .execute(db)
    .await?;
    Ok(if done.rows_affected() == 1 { Write::Done(project.clone()) } else { Write::Taken })
}

#[derive(Clone, Copy)]
enum IsBootstrap {
    Yes,
    No,
}

async fn insert_key(
    db: &mut SqliteConnection,
    key: &StoredKey,
    is_bootstrap: IsBootstrap,
) -> Result<(), Broken> {
    sqlx::query(
        "INSERT INTO api_keys (id, account_id, name, secret_hash, secret_tail, is_bootstrap, \
         created_at, last_used_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(key.key.id.to_string())
    .bind(key.account_id.to_string())
    .bind(&key.key.name)
    .bind(key.hash.0.as_slice())
    .bind(&key.key.secret_tail)
    .bind(matches!(is_bootstrap, IsBootstrap::Yes))
    .bind(nanos(key.key.created_at))
    .bind(key.key.last_used_at.map(nanos))
    .execute(db)
    .await?;
    Ok(())
}

pub(super) struct EnsureAccount {
    pub(super) account: Account,
    pub(super) default_project: Project,
}

#[async_trait]
impl Operation for EnsureAccount {
    type Answer = (Account, bool);

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let account = &self.account;
        let there = sqlx::query("SELECT id, created_at FROM accounts WHERE handle = ?")
            .bind(&account.handle)
            .fetch_optional(&mut *db)
            .await?;
        if let Some(row) = there {
            let account = Account {
                id: id(row.try_get("id")?)?,
                handle: account.handle.clone(),
                created_at: time(row.try_get("created_at")?)?,
            };
            return Ok(Ok((account, false)));
        }
        sqlx::query("INSERT INTO accounts (id, handle, created_at) VALUES (?, ?, ?)")
            .bind(account.id.to_string())
            .bind(&account.handle)
            .bind(nanos(account.created_at))
            .execute(&mut *db)
            .await?;
        match insert_project(db, account.id, &self.default_project).await? {
            Write::Done(_) => Ok(Ok((account.clone(), true))),
            Write::Stale | Write::Taken => {
                Err(Error::internal("a new account has a project already").into())
            }
        }
    }
}

pub(super) struct EnsureBootstrapKey(pub(super) StoredKey);

#[async_trait]
impl Operation for EnsureBootstrapKey {
    type Answer = ();

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<(), Error>, Broken> {
        let key = &self.0;
        let account_id = key.account_id.to_string();
        let owner: Option<String> =
            sqlx::query_scalar("SELECT account_id FROM api_keys WHERE secret_hash = ?")
                .bind(key.hash.0.as_slice())
                .fetch_optional(&mut *db)
                .await?;
        if owner.as_ref().is_some_and(|owner| *owner != account_id) {
            return Ok(Err(Error::internal("the bootstrap key belongs to another account")));
        }
        sqlx::query(
            "DELETE FROM api_keys WHERE account_id = ? AND is_bootstrap = 1 AND secret_hash <> ?",
        )
        .bind(&account_id)
        .bind(key.hash.0.as_slice())
        .execute(&mut *db)
        .await?;
        if owner.is_none() {
            insert_key(db, key, IsBootstrap::Yes).await?;
            return Ok(Ok(()));
        }
        // The secret may have been made as an ordinary key before it was configured: the same key.
        sqlx::query("UPDATE api_keys SET is_bootstrap = 1 WHERE secret_hash = ?")
            .bind(key.hash.0.as_slice())
            .execute(&mut *db)
            .await?;
        Ok(Ok(()))
    }
}

pub(super) struct InsertKey(pub(super) StoredKey);

#[async_trait]
impl Operation for InsertKey {
    type Answer = ();

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<(), Error>, Broken> {
        insert_key(db, &self.0, IsBootstrap::No).await.map(Ok)
    }
}

pub(super) struct RemoveKey {
    pub(super) account_id: AccountId,
    pub(super) key: ApiKeyId,
}

#[async_trait]
impl Operation for RemoveKey {
    type Answer = KeyRemoval;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<KeyRemoval, Error>, Broken> {
        let key = self.key.to_string();
        let keys: Vec<String> = sqlx::query_scalar("SELECT id FROM api_keys WHERE account_id = ?")
            .bind(self.account_id.to_string())
            .fetch_all(&mut *db)
            .await?;
        if !keys.contains(&key) {
            return Ok(Ok(KeyRemoval::NotFound));
        }
        if keys.len() == 1 {
            return Ok(Ok(KeyRemoval::LastOne));
        }
        sqlx::query("DELETE FROM api_keys WHERE id = ?").bind(key).execute(&mut *db).await?;
        Ok(Ok(KeyRemoval::Removed))
    }
}

pub(super) struct TouchKey {
    pub(super) key: ApiKeyId,
    pub(super) at: Timestamp,
}

#[async_trait]
impl Operation for TouchKey {
    type Answer = ();

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<(), Error>, Broken> {
        sqlx::query(
            "UPDATE api_keys SET last_used_at = ?1 \
             WHERE id = ?2 AND (last_used_at IS NULL OR last_used_at <= ?1 - 60000000000)",
        )
        .bind(nanos(self.at))
        .bind(self.key.to_string())
        .execute(&mut *db)
        .await?;
        Ok(Ok(()))
    }
}

pub(super) struct InsertProject {
    pub(super) account_id: AccountId,
    pub(super) project: Project,
}

#[async_trait]
impl Operation for InsertProject {
    type Answer = Write<Project>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        insert_project(db, self.account_id, &self.project).await.map(Ok)
    }
}
