//! Who enters workspaces by SSH, beside the account's keys.

use async_trait::async_trait;
use skerry_internal_api::SshPasswordId;
use skerry_model::{Secret, WorkspaceId};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{
    Sqlite,
    writer::{Broken, Operation},
};
use crate::{
    Error,
    store::{
        EarlierPassword, PasswordInsertion, SshAccessStore, SshPassword,
        row::{id, json, nanos, time},
        sealing::KeyRing,
    },
};

fn owner(password: &str) -> String {
    format!("ssh password {password}")
}

fn password_from(row: &SqliteRow, keys: &KeyRing) -> Result<SshPassword, Error> {
    let name: &str = row.try_get("id")?;
    let plain = keys.open_sealed(&owner(name), row.try_get("sealed")?)?;
    // The error would hold the bytes.
    let hash = String::from_utf8(plain).map_err(|_| Error::internal("a sealed text is none"))?;
    Ok(SshPassword {
        id: name.parse().map_err(Error::internal)?,
        workspace_id: id(row.try_get("workspace_id")?)?,
        login: row.try_get("login")?,
        hash: Secret::new(hash),
        is_chosen: row.try_get("is_chosen")?,
        created_at: time(row.try_get("created_at")?)?,
    })
}

struct InsertPassword {
    password: SshPassword,
    sealed: Vec<u8>,
    earlier: EarlierPassword,
    max: u32,
}

#[async_trait]
impl Operation for InsertPassword {
    type Answer = PasswordInsertion;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<PasswordInsertion, Error>, Broken> {
        let password = &self.password;
        let workspace = password.workspace_id.to_string();
        let found = sqlx::query(
            "SELECT (SELECT count(*) FROM workspaces WHERE id = ?1), \
             (SELECT count(*) FROM ssh_closed WHERE workspace_id = ?1), \
             coalesce(sum(login <> ?2), 0), coalesce(sum(login = ?2), 0) \
             FROM ssh_passwords WHERE workspace_id = ?1",
        )
        .bind(&workspace)
        .bind(&password.login)
        .fetch_one(&mut *db)
        .await?;
        let [workspaces, closed, others, same] =
            [0, 1, 2, 3].map(|column| found.try_get::<u32, _>(column));
        if workspaces? == 0 {
            return Ok(Ok(PasswordInsertion::NoWorkspace));
        }
        if closed? > 0 {
            return Ok(Ok(PasswordInsertion::Closed));
        }
        if same? > 0 && self.earlier == EarlierPassword::Stays {
            return Ok(Ok(PasswordInsertion::There));
        }
        if others? >= self.max {
            return Ok(Ok(PasswordInsertion::TooMany));
        }
        sqlx::query("DELETE FROM ssh_passwords WHERE workspace_id = ? AND login = ?")
            .bind(&workspace)
            .bind(&password.login)
            .execute(&mut *db)
            .await?;
        sqlx::query(
            "INSERT INTO ssh_passwords (id, workspace_id, login, sealed, is_chosen, created_at) \
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(password.id.to_string())
        .bind(&workspace)
        .bind(&password.login)
        .bind(&self.sealed)
        .bind(password.is_chosen)
        .bind(nanos(password.created_at))
        .execute(db)
        .await?;
        Ok(Ok(PasswordInsertion::Done))
    }
}

struct OpenSsh(WorkspaceId);

#[async_trait]
impl Operation for OpenSsh {
    type Answer = ();

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<(), Error>, Broken> {
        sqlx::query("DELETE FROM ssh_closed WHERE workspace_id = ?")
            .bind(self.0.to_string())
            .execute(db)
            .await?;
        Ok(Ok(()))
    }
}

struct CloseSsh(WorkspaceId);

#[async_trait]
impl Operation for CloseSsh {
    type Answer = ();

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<(), Error>, Broken> {
        let workspace = self.0.to_string();
        sqlx::query(
            "INSERT INTO ssh_closed (workspace_id) SELECT id FROM workspaces WHERE id = ? \
             ON CONFLICT (workspace_id) DO NOTHING",
        )
        .bind(&workspace)
        .execute(&mut *db)
        .await?;
        sqlx::query("DELETE FROM ssh_passwords WHERE workspace_id = ?")
            .bind(&workspace)
            .execute(db)
            .await?;
        Ok(Ok(()))
    }
}

/// Seals with the current key what was sealed with another; answers how many rows that were.
pub(super) async fn seal_anew(db: &mut SqliteConnection, keys: &KeyRing) -> Result<u64, Error> {
    let current = keys.newest_header();
    let rows = sqlx::query("SELECT id, sealed FROM ssh_passwords WHERE substr(sealed, 1, 9) <> ?")
        .bind(current.as_slice())
        .fetch_all(&mut *db)
        .await?;
    for row in &rows {
        let (name, sealed): (&str, &[u8]) = (row.try_get(0)?, row.try_get(1)?);
        let plain = keys.open_sealed(&owner(name), sealed)?;
        sqlx::query("UPDATE ssh_passwords SET sealed = ? WHERE id = ?")
            .bind(keys.seal(&owner(name), &plain)?)
            .bind(name)
            .execute(&mut *db)
            .await?;
    }
    Ok(rows.len() as u64)
}

#[async_trait]
impl SshAccessStore for Sqlite {
    async fn insert_ssh_password(
        &self,
        password: &SshPassword,
        earlier: EarlierPassword,
        max: u32,
    ) -> Result<PasswordInsertion, Error> {
        let hash = password.hash.expose().as_bytes();
        let sealed = self.keys.seal(&owner(&password.id.to_string()), hash)?;
        let password = password.clone();
        self.writer.run(InsertPassword { password, sealed, earlier, max }).await
    }

    async fn ssh_passwords(&self, workspace: WorkspaceId) -> Result<Vec<SshPassword>, Error> {
        let rows = sqlx::query("SELECT * FROM ssh_passwords WHERE workspace_id = ? ORDER BY login")
            .bind(workspace.to_string())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| password_from(row, &self.keys)).collect()
    }

    async fn ssh_password_owner(
        &self,
        password: SshPasswordId,
    ) -> Result<Option<WorkspaceId>, Error> {
        let found: Option<String> =
            sqlx::query_scalar("SELECT workspace_id FROM ssh_passwords WHERE id = ?")
                .bind(password.to_string())
                .fetch_optional(&self.readers)
                .await?;
        found.as_deref().map(id).transpose()
    }

    async fn open_ssh(&self, workspace: WorkspaceId) -> Result<(), Error> {
        self.writer.run(OpenSsh(workspace)).await
    }

    async fn close_ssh(&self, workspace: WorkspaceId) -> Result<(), Error> {
        self.writer.run(CloseSsh(workspace)).await
    }

    async fn closed_to_ssh(&self, workspaces: &[WorkspaceId]) -> Result<Vec<WorkspaceId>, Error> {
        let closed: Vec<String> = sqlx::query_scalar(
            "SELECT workspace_id FROM ssh_closed \
             WHERE workspace_id IN (SELECT value FROM json_each(?))",
        )
        .bind(json(&workspaces)?)
        .fetch_all(&self.readers)
        .await?;
        closed.iter().map(|text| id(text)).collect()
    }
}
