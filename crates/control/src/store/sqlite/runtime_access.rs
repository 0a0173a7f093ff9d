//! Tokens that open the inside of one workspace.

use async_trait::async_trait;
use skerry_model::{Timestamp, WorkspaceId};
use sqlx::SqliteConnection;

use super::{
    Sqlite,
    writer::{Broken, Operation},
};
use crate::{
    Error,
    store::{
        EarlierTokens, RuntimeAccessStore, SecretHash, StoredRuntimeToken,
        row::{id, nanos},
    },
};

struct Open(WorkspaceId);

#[async_trait]
impl Operation for Open {
    type Answer = bool;

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<bool, Error>, Broken> {
        let workspace = self.0.to_string();
        sqlx::query(
            "INSERT INTO runtime_access (workspace_id) SELECT id FROM workspaces WHERE id = ? \
             ON CONFLICT (workspace_id) DO NOTHING",
        )
        .bind(&workspace)
        .execute(&mut *db)
        .await?;
        Ok(Ok(is_open(db, &workspace).await?))
    }
}

struct Close(WorkspaceId);

#[async_trait]
impl Operation for Close {
    type Answer = ();

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<(), Error>, Broken> {
        sqlx::query("DELETE FROM runtime_access WHERE workspace_id = ?")
            .bind(self.0.to_string())
            .execute(db)
            .await?;
        Ok(Ok(()))
    }
}

struct InsertToken {
    token: StoredRuntimeToken,
    earlier: EarlierTokens,
    now: Timestamp,
    max: u32,
}

#[async_trait]
impl Operation for InsertToken {
    type Answer = bool;

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<bool, Error>, Broken> {
        let workspace = self.token.workspace_id.to_string();
        if !is_open(db, &workspace).await? {
            return Ok(Ok(false));
        }
        let others = match self.earlier {
            EarlierTokens::Stay => self.max.saturating_sub(1),
            EarlierTokens::Go => 0,
        };
        sqlx::query("DELETE FROM runtime_tokens WHERE expires_at <= ?")
            .bind(nanos(self.now))
            .execute(&mut *db)
            .await?;
        sqlx::query(
            "DELETE FROM runtime_tokens WHERE workspace_id = ?1 AND seq NOT IN (\
             SELECT seq FROM runtime_tokens WHERE workspace_id = ?1 ORDER BY seq DESC LIMIT ?2)",
        )
        .bind(&workspace)
        .bind(others)
        .execute(&mut *db)
        .await?;
        sqlx::query("INSERT INTO runtime_tokens (hash, workspace_id, expires_at) VALUES (?, ?, ?)")
            .bind(self.token.hash.0.as_slice())
            .bind(&workspace)
            .bind(nanos(self.token.expires_at))
            .execute(db)
            .await?;
        Ok(Ok(true))
    }
}

async fn is_open(db: &mut SqliteConnection, workspace: &str) -> Result<bool, sqlx::Error> {
    let found: i64 =
        sqlx::query_scalar("SELECT count(*) FROM runtime_access WHERE workspace_id = ?")
            .bind(workspace)
            .fetch_one(db)
            .await?;
    Ok(found > 0)
}

#[async_trait]
impl RuntimeAccessStore for Sqlite {
    async fn open_runtime(&self, workspace: WorkspaceId) -> Result<bool, Error> {
        self.writer.run(Open(workspace)).await
    }

    async fn close_runtime(&self, workspace: WorkspaceId) -> Result<(), Error> {
        self.writer.run(Close(workspace)).await
    }

    async fn is_runtime_open(&self, workspace: WorkspaceId) -> Result<bool, Error> {
        let found: i64 =
            sqlx::query_scalar("SELECT count(*) FROM runtime_access WHERE workspace_id = ?")
                .bind(workspace.to_string())
                .fetch_one(&self.readers)
                .await?;
        Ok(found > 0)
    }

    async fn insert_runtime_token(
        &self,
        token: &StoredRuntimeToken,
        earlier: EarlierTokens,
        now: Timestamp,
        max: u32,
    ) -> Result<bool, Error> {
        self.writer.run(InsertToken { token: *token, earlier, now, max }).await
    }

    async fn runtime_token_workspace(
        &self,
        hash: &SecretHash,
        now: Timestamp,
    ) -> Result<Option<WorkspaceId>, Error> {
        let found: Option<String> = sqlx::query_scalar(
            "SELECT workspace_id FROM runtime_tokens WHERE hash = ? AND expires_at > ?",
        )
        .bind(hash.0.as_slice())
        .bind(nanos(now))
        .fetch_optional(&self.readers)
        .await?;
        found.as_deref().map(id).transpose()
    }
}
