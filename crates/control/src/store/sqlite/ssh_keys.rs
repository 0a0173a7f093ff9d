//! SSH keys.

use async_trait::async_trait;
use skerry_internal_api::KeyFingerprint;
use skerry_model::{AccountId, SshKeyId};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::writer::{Broken, Operation};
use crate::{
    Error, SshKey,
    store::{
        Account, SshKeyInsertion, Tenant,
        row::{id, nanos, time},
    },
};

pub(super) fn ssh_key_from(row: &SqliteRow) -> Result<SshKey, Error> {
    let fingerprint: Vec<u8> = row.try_get("fingerprint")?;
    let damaged = |_| Error::internal("a fingerprint in the database is not 32 bytes long");
    Ok(SshKey {
        id: id(row.try_get("id")?)?,
        name: row.try_get("name")?,
        public_key: row.try_get("public_key")?,
        fingerprint: KeyFingerprint(fingerprint.try_into().map_err(damaged)?),
        created_at: time(row.try_get("created_at")?)?,
    })
}

pub(super) fn tenant_from(row: &SqliteRow) -> Result<Tenant, Error> {
    Ok(Tenant {
        account: Account {
            id: id(row.try_get("account_id")?)?,
            handle: row.try_get("handle")?,
            created_at: time(row.try_get("created_at")?)?,
        },
        default_project_id: id(row.try_get("project_id")?)?,
    })
}

pub(super) struct InsertSshKey {
    pub(super) account_id: AccountId,
    pub(super) key: SshKey,
    pub(super) max: u32,
}

#[async_trait]
impl Operation for InsertSshKey {
    type Answer = SshKeyInsertion;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<SshKeyInsertion, Error>, Broken> {
        let account_id = self.account_id.to_string();
        let there: u32 = sqlx::query_scalar("SELECT count(*) FROM ssh_keys WHERE account_id = ?")
            .bind(&account_id)
            .fetch_one(&mut *db)
            .await?;
        if there >= self.max {
            return Ok(Ok(SshKeyInsertion::TooMany));
        }
        let done = sqlx::query(
            "INSERT INTO ssh_keys (id, account_id, name, public_key, fingerprint, created_at) \
             VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (fingerprint) DO NOTHING",
        )
        .bind(self.key.id.to_string())
        .bind(&account_id)
        .bind(&self.key.name)
        .bind(&self.key.public_key)
        .bind(self.key.fingerprint.0.as_slice())
        .bind(nanos(self.key.created_at))
        .execute(db)
        .await?;
        let is_new = done.rows_affected() == 1;
        Ok(Ok(if is_new { SshKeyInsertion::Done } else { SshKeyInsertion::Taken }))
    }
}

pub(super) struct RemoveSshKey {
    pub(super) account_id: AccountId,
    pub(super) key: SshKeyId,
}

#[async_trait]
impl Operation for RemoveSshKey {
    type Answer = bool;

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<bool, Error>, Broken> {
        let done = sqlx::query("DELETE FROM ssh_keys WHERE account_id = ? AND id = ?")
            .bind(self.account_id.to_string())
            .bind(self.key.to_string())
            .execute(db)
            .await?;
        Ok(Ok(done.rows_affected() == 1))
    }
}
