//! What is put in order each time the database is opened, beyond what its schema's migrations do.

use skerry_model::{Workloads, Workspace};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{blueprints, domains, records, ssh_access, usage, vaults, writer::Broken};
use crate::{
    Error,
    store::{
        row::{WorkspaceColumns, WorkspaceRow, id, seal_again, seal_secrets},
        sealing::KeyRing,
    },
};

/// How many rows are held at a time.
const BATCH: i64 = 500;

/// Seals what an older server stored in plain text or with an older key, and adds up anew what
/// accounts use.
pub(super) async fn upgrade(db: &mut SqliteConnection, keys: &KeyRing) -> Result<(), Error> {
    check_keys(db, keys).await?;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *db).await?;
    let outcome = put_in_order(db, keys).await;
    let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
    sqlx::query(end).execute(&mut *db).await?;
    outcome?;
    // The log may still hold what is sealed now.
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *db).await?;
    Ok(())
}

/// Refuses a key file that is not the database's before anything is written with it.
async fn check_keys(db: &mut SqliteConnection, keys: &KeyRing) -> Result<(), Error> {
    let headers: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT substr(sealed, 1, 9) FROM workspaces \
             UNION SELECT substr(sealed, 1, 9) FROM domain_certificates \
             UNION SELECT substr(sealed, 1, 9) FROM domain_dns_access \
             UNION SELECT substr(sealed, 1, 9) FROM acme_accounts \
             UNION SELECT substr(sealed, 1, 9) FROM ssh_passwords \
             UNION SELECT substr(sealed, 1, 9) FROM blueprints \
             UNION SELECT substr(sealed, 1, 9) FROM vault_credentials \
             UNION SELECT substr(sealed, 1, 9) FROM vault_authorities",
    )
    .fetch_all(db)
    .await?;
    headers.iter().try_for_each(|header| keys.check(header))
}

async fn put_in_order(db: &mut SqliteConnection, keys: &KeyRing) -> Result<(), Error> {
    let plain = seal_plain_rows(db, keys).await?;
    if plain > 0 {
        tracing::info!(plain, "environments and tokens of workspaces are stored encrypted now");
    }
    let sealed_anew = seal_anew(db, keys).await?
        + domains::seal_anew(db, keys).await?
        + ssh_access::seal_anew(db, keys).await?
        + blueprints::seal_anew(db, keys).await?
        + vaults::seal_anew(db, keys).await?;
    if sealed_anew > 0 {
        tracing::info!(sealed_anew, "secrets are sealed with the newest key now");
    }
    let wrong = usage::recount(db).await?;
    if wrong > 0 && plain == 0 {
        tracing::warn!(accounts = wrong, "the use kept for accounts was not that of their records");
    }
    Ok(())
}

/// Moves the rows of the first schema; answers how many there were.
async fn seal_plain_rows(db: &mut SqliteConnection, keys: &KeyRing) -> Result<u64, Error> {
    let there: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'plain_workspaces'",
    )
    .fetch_one(&mut *db)
    .await?;
    if there == 0 {
        return Ok(0);
    }
    // What is removed is overwritten, not only forgotten.
    sqlx::query("PRAGMA secure_delete = ON").execute(&mut *db).await?;
    let mut moved = 0;
    loop {
        let rows = sqlx::query("SELECT * FROM plain_workspaces ORDER BY seq LIMIT ?")
            .bind(BATCH)
            .fetch_all(&mut *db)
            .await?;
        let Some(last) = rows.last() else { break };
        let sealed = rows
            .iter()
            .map(|row| WorkspaceRow::of(plain_record(row, keys)?, keys))
            .collect::<Result<Vec<_>, Error>>()?;
        let sealed: Vec<&WorkspaceRow> = sealed.iter().collect();
        records::upsert_rows(db, &sealed).await.map_err(Broken::told)?;
        sqlx::query("DELETE FROM plain_workspaces WHERE seq <= ?")
            .bind(last.try_get::<i64, _>("seq")?)
            .execute(&mut *db)
            .await?;
        moved += rows.len() as u64;
    }
    sqlx::query("DROP TABLE plain_workspaces").execute(&mut *db).await?;
    sqlx::query("PRAGMA secure_delete = OFF").execute(&mut *db).await?;
    Ok(moved)
}

/// The record in a row of the first schema.
fn plain_record(row: &SqliteRow, keys: &KeyRing) -> Result<Workspace, Error> {
    let mut spec: serde_json::Value =
        serde_json::from_str(row.try_get("spec_json")?).map_err(Error::internal)?;
    let env = spec.get_mut("env").map(serde_json::Value::take).unwrap_or_default();
    let env = serde_json::from_value::<Vec<skerry_model::EnvVar>>(env).map_err(Error::internal)?;
    if let Some(fields) = spec.as_object_mut() {
        fields.insert("env".to_owned(), serde_json::Value::Array(Vec::new()));
    }
    let workspace = row.try_get("id")?;
    let none = Workloads::default();
    let token = row.try_get("preview_token")?;
    let sealed = seal_secrets(id(workspace)?, &env, &none, None, token, keys)?;
    WorkspaceColumns {
        id: workspace,
        account_id: row.try_get("account_id")?,
        project_id: row.try_get("project_id")?,
        namespace: row.try_get("namespace")?,
        name: row.try_get("name")?,
        slug: row.try_get("slug")?,
        desired: row.try_get("desired")?,
        incarnation: row.try_get("incarnation")?,
        replace_through: row.try_get("replace_through")?,
        failed_starts: row.try_get("failed_starts")?,
        start_began_at: row.try_get("start_began_at")?,
        node_id: row.try_get("node_id")?,
        private_address: None,
        expires_at: row.try_get("expires_at")?,
        last_active_at: None,
        spec_json: &spec.to_string(),
        state_json: row.try_get("state_json")?,
        lifecycle_json: "{}",
        sealed: &sealed,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        revision: row.try_get("revision")?,
    }
    .record(keys)
}

/// Seals with the current key what was sealed with another; answers how many rows that were.
async fn seal_anew(db: &mut SqliteConnection, keys: &KeyRing) -> Result<u64, Error> {
    let current = keys.newest_header();
    let mut sealed_anew = 0;
    loop {
        let rows = sqlx::query(
            "SELECT id, sealed FROM workspaces WHERE substr(sealed, 1, 9) <> ? LIMIT ?",
        )
        .bind(current.as_slice())
        .bind(BATCH)
        .fetch_all(&mut *db)
        .await?;
        if rows.is_empty() {
            return Ok(sealed_anew);
        }
        for row in &rows {
            let workspace: &str = row.try_get("id")?;
            let sealed = seal_again(id(workspace)?, row.try_get("sealed")?, keys)?;
            sqlx::query("UPDATE workspaces SET sealed = ? WHERE id = ?")
                .bind(sealed)
                .bind(workspace)
                .execute(&mut *db)
                .await?;
        }
        sealed_anew += rows.len() as u64;
    }
}
