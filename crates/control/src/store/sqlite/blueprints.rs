//! Blueprints.

use async_trait::async_trait;
use skerry_model::{AccountId, Blueprint, BlueprintId, BlueprintKind};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{
    Sqlite,
    writer::{Broken, Operation},
};
use crate::{
    Error,
    store::{
        BlueprintInsertion, BlueprintStore, Write,
        row::{id, nanos, signed, time, unsigned},
        sealing::KeyRing,
    },
};

fn owner(blueprint: &str) -> String {
    format!("blueprint {blueprint}")
}

fn seal(blueprint: &Blueprint, keys: &KeyRing) -> Result<Vec<u8>, Error> {
    let plain = serde_json::to_vec(&blueprint.body).map_err(Error::internal)?;
    keys.seal(&owner(&blueprint.id.to_string()), &plain)
}

fn blueprint_from(row: &SqliteRow, keys: &KeyRing) -> Result<Blueprint, Error> {
    let name: &str = row.try_get("id")?;
    let plain = keys.open_sealed(&owner(name), row.try_get("sealed")?)?;
    // The words of a parser may repeat what they could not read.
    let body = serde_json::from_slice(&plain)
        .map_err(|_| Error::internal("a blueprint is not as it was written"))?;
    Ok(Blueprint {
        id: id(name)?,
        account_id: id(row.try_get("account_id")?)?,
        name: row.try_get("name")?,
        body,
        created_at: time(row.try_get("created_at")?)?,
        updated_at: time(row.try_get("updated_at")?)?,
        revision: unsigned(row.try_get("revision")?)?,
    })
}

struct Insert {
    blueprint: Blueprint,
    sealed: Vec<u8>,
    max: u32,
}

#[async_trait]
impl Operation for Insert {
    type Answer = BlueprintInsertion;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<BlueprintInsertion, Error>, Broken> {
        let written = Blueprint { revision: 1, ..self.blueprint.clone() };
        let account_id = written.account_id.to_string();
        let kind = written.kind().as_str();
        let there: u32 =
            sqlx::query_scalar("SELECT count(*) FROM blueprints WHERE account_id = ? AND kind = ?")
                .bind(&account_id)
                .bind(kind)
                .fetch_one(&mut *db)
                .await?;
        if there >= self.max {
            return Ok(Ok(BlueprintInsertion::TooMany));
        }
        let done = sqlx::query(
            "INSERT INTO blueprints (id, account_id, kind, name, sealed, created_at, updated_at, \
             revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(written.id.to_string())
        .bind(&account_id)
        .bind(kind)
        .bind(&written.name)
        .bind(&self.sealed)
        .bind(nanos(written.created_at))
        .bind(nanos(written.updated_at))
        .bind(signed(written.revision))
        .execute(db)
        .await?;
        let is_new = done.rows_affected() == 1;
        Ok(Ok(if is_new {
            BlueprintInsertion::Done(Box::new(written))
        } else {
            BlueprintInsertion::NameTaken
        }))
    }
}

struct Update {
    blueprint: Blueprint,
    sealed: Vec<u8>,
}

#[async_trait]
impl Operation for Update {
    type Answer = Write<Blueprint>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Write<Blueprint>, Error>, Broken> {
        let before = &self.blueprint;
        let there: Option<i64> =
            sqlx::query_scalar("SELECT revision FROM blueprints WHERE id = ? AND account_id = ?")
                .bind(before.id.to_string())
                .bind(before.account_id.to_string())
                .fetch_optional(&mut *db)
                .await?;
        if there != Some(signed(before.revision)) {
            return Ok(Ok(Write::Stale));
        }
        let written = Blueprint { revision: before.revision + 1, ..before.clone() };
        let done = sqlx::query(
            "UPDATE OR IGNORE blueprints SET name = ?, sealed = ?, updated_at = ?, revision = ? \
             WHERE id = ?",
        )
        .bind(&written.name)
        .bind(&self.sealed)
        .bind(nanos(written.updated_at))
        .bind(signed(written.revision))
        .bind(written.id.to_string())
        .execute(db)
        .await?;
        Ok(Ok(if done.rows_affected() == 0 { Write::Taken } else { Write::Done(written) }))
    }
}

struct Remove {
    account_id: AccountId,
    kind: BlueprintKind,
    id: BlueprintId,
}

#[async_trait]
impl Operation for Remove {
    type Answer = bool;

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<bool, Error>, Broken> {
        let done =
            sqlx::query("DELETE FROM blueprints WHERE account_id = ? AND kind = ? AND id = ?")
                .bind(self.account_id.to_string())
                .bind(self.kind.as_str())
                .bind(self.id.to_string())
                .execute(db)
                .await?;
        Ok(Ok(done.rows_affected() == 1))
    }
}

/// Seals with the current key what was sealed with another; answers how many rows that were.
pub(super) async fn seal_anew(db: &mut SqliteConnection, keys: &KeyRing) -> Result<u64, Error> {
    let current = keys.newest_header();
    let rows = sqlx::query("SELECT id, sealed FROM blueprints WHERE substr(sealed, 1, 9) <> ?")
        .bind(current.as_slice())
        .fetch_all(&mut *db)
        .await?;
    for row in &rows {
        let (name, sealed): (&str, &[u8]) = (row.try_get(0)?, row.try_get(1)?);
        let plain = keys.open_sealed(&owner(name), sealed)?;
        sqlx::query("UPDATE blueprints SET sealed = ? WHERE id = ?")
            .bind(keys.seal(&owner(name), &plain)?)
            .bind(name)
            .execute(&mut *db)
            .await?;
    }
    Ok(rows.len() as u64)
}

#[async_trait]
impl BlueprintStore for Sqlite {
    async fn insert_blueprint(
        &self,
        blueprint: &Blueprint,
        max: u32,
    ) -> Result<BlueprintInsertion, Error> {
        let sealed = seal(blueprint, &self.keys)?;
        self.writer.run(Insert { blueprint: blueprint.clone(), sealed, max }).await
    }

    async fn update_blueprint(&self, blueprint: &Blueprint) -> Result<Write<Blueprint>, Error> {
        let sealed = seal(blueprint, &self.keys)?;
        self.writer.run(Update { blueprint: blueprint.clone(), sealed }).await
    }

    async fn remove_blueprint(
        &self,
        account_id: AccountId,
        kind: BlueprintKind,
        id: BlueprintId,
    ) -> Result<bool, Error> {
        self.writer.run(Remove { account_id, kind, id }).await
    }

    async fn blueprints(
        &self,
        account_id: AccountId,
        kind: BlueprintKind,
    ) -> Result<Vec<Blueprint>, Error> {
        let rows = sqlx::query(
            "SELECT * FROM blueprints WHERE account_id = ? AND kind = ? ORDER BY created_at, id",
        )
        .bind(account_id.to_string())
        .bind(kind.as_str())
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| blueprint_from(row, &self.keys)).collect()
    }

    async fn blueprint(
        &self,
        account_id: AccountId,
        kind: BlueprintKind,
        id: BlueprintId,
    ) -> Result<Option<Blueprint>, Error> {
        let row =
            sqlx::query("SELECT * FROM blueprints WHERE account_id = ? AND kind = ? AND id = ?")
                .bind(account_id.to_string())
                .bind(kind.as_str())
                .bind(id.to_string())
                .fetch_optional(&self.readers)
                .await?;
        row.as_ref().map(|row| blueprint_from(row, &self.keys)).transpose()
    }
}
