//! Vaults.

use std::collections::BTreeSet;

use async_trait::async_trait;
use skerry_model::{
    AccountId, NamePattern, Secret, Timestamp, Vault, VaultCredential, VaultCredentialId, VaultId,
    VaultRequest, VaultService, VaultServiceId, WorkspaceId,
};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{
    Sqlite,
    writer::{Broken, Operation},
};
use crate::{
    Error,
    store::{
        CredentialValue, VaultAuthority, VaultInsertion, VaultStore,
        row::{id, json, nanos, parse, time},
        sealing::KeyRing,
    },
};

fn owner_of_value(credential: &str) -> String {
    format!("vault credential {credential}")
}

fn owner_of_authority(account: &str) -> String {
    format!("vault authority {account}")
}

fn opened(keys: &KeyRing, owner: &str, sealed: &[u8]) -> Result<Secret, Error> {
    // The error would hold the bytes.
    let text = String::from_utf8(keys.open_sealed(owner, sealed)?);
    text.map(Secret::new).map_err(|_| Error::internal("a sealed text is none"))
}

fn vault_from(row: &SqliteRow) -> Result<Vault, Error> {
    Ok(Vault {
        id: id(row.try_get("id")?)?,
        account_id: id(row.try_get("account_id")?)?,
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        created_at: time(row.try_get("created_at")?)?,
    })
}

fn credential_from(row: &SqliteRow) -> Result<VaultCredential, Error> {
    Ok(VaultCredential {
        id: id(row.try_get("id")?)?,
        vault_id: id(row.try_get("vault_id")?)?,
        name: row.try_get("name")?,
        kind: row.try_get("kind")?,
        description: row.try_get("description")?,
        created_at: time(row.try_get("created_at")?)?,
        rotated_at: row.try_get::<Option<i64>, _>("rotated_at")?.map(time).transpose()?,
    })
}

fn service_from(row: &SqliteRow) -> Result<VaultService, Error> {
    Ok(VaultService {
        id: id(row.try_get("id")?)?,
        vault_id: id(row.try_get("vault_id")?)?,
        host: NamePattern::parse(row.try_get("host")?).map_err(Error::internal)?,
        auth: parse(row.try_get("auth_json")?)?,
        is_enabled: row.try_get("is_enabled")?,
        description: row.try_get("description")?,
        created_at: time(row.try_get("created_at")?)?,
    })
}

fn request_from(row: &SqliteRow) -> Result<VaultRequest, Error> {
    Ok(VaultRequest {
        vault_id: id(row.try_get("vault_id")?)?,
        workspace_id: id(row.try_get("workspace_id")?)?,
        at: time(row.try_get("at")?)?,
        host: row.try_get("host")?,
        method: row.try_get("method")?,
        status: row.try_get("status")?,
        credentials: parse(row.try_get("credentials_json")?)?,
    })
}

/// One parameter of a statement.
enum Bound {
    Text(String),
    OptionalText(Option<String>),
    Number(i64),
    Bytes(Vec<u8>),
}

impl From<&dyn std::fmt::Display> for Bound {
    fn from(of: &dyn std::fmt::Display) -> Self {
        Self::Text(of.to_string())
    }
}

fn text(of: &dyn std::fmt::Display) -> Bound {
    of.into()
}

/// A statement with its parameters; its answer is how many rows it changed.
struct Change {
    sql: &'static str,
    bound: Vec<Bound>,
}

impl Change {
    async fn execute(&self, db: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
        let mut query = sqlx::query(self.sql);
        for bound in &self.bound {
            query = match bound {
                Bound::Text(text) => query.bind(text),
                Bound::OptionalText(text) => query.bind(text),
                Bound::Number(number) => query.bind(number),
                Bound::Bytes(bytes) => query.bind(bytes),
            };
        }
        Ok(query.execute(db).await?.rows_affected())
    }
}

#[async_trait]
impl Operation for Change {
    type Answer = u64;

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<u64, Error>, Broken> {
        Ok(Ok(self.execute(db).await?))
    }
}

/// Rows that are recorded together, if there is room and nothing is in the way.
struct Insertion {
    /// Of a vault that must be there.
    vault: Option<String>,
    /// How many of its kind there are beside them, and how many of the same name.
    there: &'static str,
    /// Its first parameter.
    of: String,
    /// Its second.
    name: Option<String>,
    max: u32,
    rows: Vec<Change>,
}

#[async_trait]
impl Operation for Insertion {
    type Answer = VaultInsertion;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<VaultInsertion, Error>, Broken> {
        if let Some(vault) = &self.vault {
            let vaults: u32 = sqlx::query_scalar("SELECT count(*) FROM vaults WHERE id = ?")
                .bind(vault)
                .fetch_one(&mut *db)
                .await?;
            if vaults == 0 {
                return Ok(Ok(VaultInsertion::NoVault));
            }
        }
        let there = sqlx::query(self.there).bind(&self.of).bind(&self.name);
        let there = there.fetch_one(&mut *db).await?;
        let (all, same): (u32, u32) = (there.try_get(0)?, there.try_get(1)?);
        if same > 0 {
            return Ok(Ok(VaultInsertion::Taken));
        }
        let new = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        if all.saturating_add(new) > self.max {
            return Ok(Ok(VaultInsertion::TooMany));
        }
        for row in &self.rows {
            row.execute(&mut *db).await?;
        }
        Ok(Ok(VaultInsertion::Done))
    }
}

struct NoteRequests {
    rows: Vec<Change>,
    vaults: BTreeSet<VaultId>,
    keep: u32,
}

#[async_trait]
impl Operation for NoteRequests {
    type Answer = ();

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<(), Error>, Broken> {
        for row in &self.rows {
            row.execute(&mut *db).await?;
        }
        for vault in &self.vaults {
            sqlx::query(
                "DELETE FROM vault_requests WHERE vault_id = ?1 AND seq <= \
                 (SELECT seq FROM vault_requests WHERE vault_id = ?1 \
                  ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
            )
            .bind(vault.to_string())
            .bind(self.keep)
            .execute(&mut *db)
            .await?;
        }
        Ok(Ok(()))
    }
}

/// Seals with the current key what was sealed with another; answers how many rows that were.
pub(super) async fn seal_anew(db: &mut SqliteConnection, keys: &KeyRing) -> Result<u64, Error> {
    let current = keys.newest_header();
    let mut count = 0;
    type Owner = fn(&str) -> String;
    let kinds: [(&str, &str, Owner); 2] = [
        (
            "SELECT id, sealed FROM vault_credentials WHERE substr(sealed, 1, 9) <> ?",
            "UPDATE vault_credentials SET sealed = ? WHERE id = ?",
            owner_of_value,
        ),
        (
            "SELECT account_id, sealed FROM vault_authorities WHERE substr(sealed, 1, 9) <> ?",
            "UPDATE vault_authorities SET sealed = ? WHERE account_id = ?",
            owner_of_authority,
        ),
    ];
    for (select, update, owner) in kinds {
        let rows = sqlx::query(select).bind(current.as_slice()).fetch_all(&mut *db).await?;
        for row in &rows {
            let (name, sealed): (&str, &[u8]) = (row.try_get(0)?, row.try_get(1)?);
            let plain = keys.open_sealed(&owner(name), sealed)?;
            sqlx::query(update)
                .bind(keys.seal(&owner(name), &plain)?)
                .bind(name)
                .execute(&mut *db)
                .await?;
        }
        count += rows.len() as u64;
    }
    Ok(count)
}

#[async_trait]
impl VaultStore for Sqlite {
    async fn insert_vault(&self, vault: &Vault, max: u32) -> Result<VaultInsertion, Error> {
        let row = Change {
            sql: "INSERT INTO vaults (id, account_id, name, description, created_at) \
                  VALUES (?, ?, ?, ?, ?)",
            bound: vec![
                text(&vault.id),
                text(&vault.account_id),
                text(&vault.name),
                Bound::OptionalText(vault.description.clone()),
                Bound::Number(nanos(vault.created_at)),
            ],
        };
        let insertion = Insertion {
            vault: None,
            there: "SELECT count(*), 0 FROM vaults WHERE account_id = ?1 AND ?2 IS NULL",
            of: vault.account_id.to_string(),
            name: None,
            max,
            rows: vec![row],
        };
        self.writer.run(insertion).await
    }

    async fn update_vault(&self, vault: &Vault) -> Result<bool, Error> {
        let change = Change {
            sql: "UPDATE vaults SET name = ?, description = ? WHERE id = ?",
            bound: vec![
                text(&vault.name),
                Bound::OptionalText(vault.description.clone()),
                text(&vault.id),
            ],
        };
        Ok(self.writer.run(change).await? > 0)
    }

    async fn remove_vault(&self, vault: VaultId) -> Result<bool, Error> {
        let change = Change { sql: "DELETE FROM vaults WHERE id = ?", bound: vec![text(&vault)] };
        Ok(self.writer.run(change).await? > 0)
    }

    async fn vault(&self, vault: VaultId) -> Result<Option<Vault>, Error> {
        let row = sqlx::query("SELECT * FROM vaults WHERE id = ?")
            .bind(vault.to_string())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(vault_from).transpose()
    }

    async fn list_vaults(&self, account_id: AccountId) -> Result<Vec<Vault>, Error> {
        let rows = sqlx::query("SELECT * FROM vaults WHERE account_id = ? ORDER BY seq")
            .bind(account_id.to_string())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(vault_from).collect()
    }

    async fn workspaces_with_vault(&self, vault: VaultId) -> Result<Vec<WorkspaceId>, Error> {
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT workspaces.id FROM workspaces, json_each(workspaces.spec_json, '$.vaults') \
             WHERE json_each.value = ?",
        )
        .bind(vault.to_string())
        .fetch_all(&self.readers)
        .await?;
        ids.iter().map(|text| id(text)).collect()
    }

    async fn insert_vault_credential(
        &self,
        credential: &VaultCredential,
        value: &Secret,
        max: u32,
    ) -> Result<VaultInsertion, Error> {
        let owner = owner_of_value(&credential.id.to_string());
        let row = Change {
            sql: "INSERT INTO vault_credentials \
                  (id, vault_id, name, kind, description, sealed, created_at) \
                  VALUES (?, ?, ?, ?, ?, ?, ?)",
            bound: vec![
                text(&credential.id),
                text(&credential.vault_id),
                text(&credential.name),
                text(&credential.kind),
                Bound::OptionalText(credential.description.clone()),
                Bound::Bytes(self.keys.seal(&owner, value.expose().as_bytes())?),
                Bound::Number(nanos(credential.created_at)),
            ],
        };
        let insertion = Insertion {
            vault: Some(credential.vault_id.to_string()),
            there: "SELECT count(*), coalesce(sum(name = ?2), 0) FROM vault_credentials \
                    WHERE vault_id = ?1",
            of: credential.vault_id.to_string(),
            name: Some(credential.name.clone()),
            max,
            rows: vec![row],
        };
        self.writer.run(insertion).await
    }

    async fn rotate_vault_credential(
        &self,
        vault: VaultId,
        credential: VaultCredentialId,
        value: &Secret,
        at: Timestamp,
    ) -> Result<bool, Error> {
        let owner = owner_of_value(&credential.to_string());
        let change = Change {
            sql: "UPDATE vault_credentials SET sealed = ?, rotated_at = ? \
                  WHERE vault_id = ? AND id = ?",
            bound: vec![
                Bound::Bytes(self.keys.seal(&owner, value.expose().as_bytes())?),
                Bound::Number(nanos(at)),
                text(&vault),
                text(&credential),
            ],
        };
        Ok(self.writer.run(change).await? > 0)
    }

    async fn remove_vault_credential(
        &self,
        vault: VaultId,
        credential: VaultCredentialId,
    ) -> Result<bool, Error> {
        let change = Change {
            sql: "DELETE FROM vault_credentials WHERE vault_id = ? AND id = ?",
            bound: vec![text(&vault), text(&credential)],
        };
        Ok(self.writer.run(change).await? > 0)
    }

    async fn vault_credentials(&self, vault: VaultId) -> Result<Vec<VaultCredential>, Error> {
        let rows = sqlx::query("SELECT * FROM vault_credentials WHERE vault_id = ? ORDER BY seq")
            .bind(vault.to_string())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(credential_from).collect()
    }

    async fn credential_values(&self, vaults: &[VaultId]) -> Result<Vec<CredentialValue>, Error> {
        let rows = sqlx::query(
            "SELECT id, vault_id, name, sealed FROM vault_credentials \
             WHERE vault_id IN (SELECT value FROM json_each(?))",
        )
        .bind(json(&vaults)?)
        .fetch_all(&self.readers)
        .await?;
        let value = |row: &SqliteRow| {
            let owner = owner_of_value(row.try_get("id")?);
            Ok(CredentialValue {
                vault_id: id(row.try_get("vault_id")?)?,
                name: row.try_get("name")?,
                value: opened(&self.keys, &owner, row.try_get("sealed")?)?,
            })
        };
        rows.iter().map(value).collect()
    }

    async fn insert_vault_services(
        &self,
        vault: VaultId,
        services: &[VaultService],
        max: u32,
    ) -> Result<VaultInsertion, Error> {
        let row = |service: &VaultService| {
            Ok(Change {
                sql: "INSERT INTO vault_services \
                      (id, vault_id, host, auth_json, is_enabled, description, created_at) \
                      VALUES (?, ?, ?, ?, ?, ?, ?)",
                bound: vec![
                    text(&service.id),
                    text(&vault),
                    text(&service.host),
                    Bound::Text(json(&service.auth)?),
                    Bound::Number(service.is_enabled.into()),
                    Bound::OptionalText(service.description.clone()),
                    Bound::Number(nanos(service.created_at)),
                ],
            })
        };
        let insertion = Insertion {
            vault: Some(vault.to_string()),
            there: "SELECT count(*), 0 FROM vault_services WHERE vault_id = ?1 AND ?2 IS NULL",
            of: vault.to_string(),
            name: None,
            max,
            rows: services.iter().map(row).collect::<Result<_, Error>>()?,
        };
        self.writer.run(insertion).await
    }

    async fn remove_vault_service(
        &self,
        vault: VaultId,
        service: VaultServiceId,
    ) -> Result<bool, Error> {
        let change = Change {
            sql: "DELETE FROM vault_services WHERE vault_id = ? AND id = ?",
            bound: vec![text(&vault), text(&service)],
        };
        Ok(self.writer.run(change).await? > 0)
    }

    async fn vault_services(&self, vault: VaultId) -> Result<Vec<VaultService>, Error> {
        let rows = sqlx::query("SELECT * FROM vault_services WHERE vault_id = ? ORDER BY seq")
            .bind(vault.to_string())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(service_from).collect()
    }

    async fn vault_authority(&self, account: AccountId) -> Result<Option<VaultAuthority>, Error> {
        let account = account.to_string();
        let row =
            sqlx::query("SELECT certificate, sealed FROM vault_authorities WHERE account_id = ?")
                .bind(&account)
                .fetch_optional(&self.readers)
                .await?;
        let Some(row) = row else { return Ok(None) };
        let key = opened(&self.keys, &owner_of_authority(&account), row.try_get("sealed")?)?;
        Ok(Some(VaultAuthority { certificate: row.try_get("certificate")?, key }))
    }

    async fn keep_vault_authority(
        &self,
        account: AccountId,
        authority: &VaultAuthority,
    ) -> Result<VaultAuthority, Error> {
        let owner = owner_of_authority(&account.to_string());
        let change = Change {
            sql: "INSERT INTO vault_authorities (account_id, certificate, sealed) \
                  VALUES (?, ?, ?) ON CONFLICT (account_id) DO NOTHING",
            bound: vec![
                text(&account),
                text(&authority.certificate),
                Bound::Bytes(self.keys.seal(&owner, authority.key.expose().as_bytes())?),
            ],
        };
        self.writer.run(change).await?;
        let kept = self.vault_authority(account).await?;
        kept.ok_or_else(|| Error::internal("an authority that was kept is gone"))
    }

    async fn note_vault_requests(&self, requests: &[VaultRequest], keep: u32) -> Result<(), Error> {
        let row = |request: &VaultRequest| {
            Ok(Change {
                sql: "INSERT INTO vault_requests \
                      (vault_id, workspace_id, at, host, method, status, credentials_json) \
                      SELECT id, ?2, ?3, ?4, ?5, ?6, ?7 FROM vaults WHERE id = ?1",
                bound: vec![
                    text(&request.vault_id),
                    text(&request.workspace_id),
                    Bound::Number(nanos(request.at)),
                    text(&request.host),
                    text(&request.method),
                    Bound::Number(request.status.into()),
                    Bound::Text(json(&request.credentials)?),
                ],
            })
        };
        let rows = requests.iter().map(row).collect::<Result<_, Error>>()?;
        let vaults = requests.iter().map(|request| request.vault_id).collect();
        self.writer.run(NoteRequests { rows, vaults, keep }).await
    }

    async fn vault_requests(&self, vault: VaultId, limit: u32) -> Result<Vec<VaultRequest>, Error> {
        let rows = sqlx::query(
            "SELECT * FROM vault_requests WHERE vault_id = ? ORDER BY seq DESC LIMIT ?",
        )
        .bind(vault.to_string())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(request_from).collect()
    }
}
