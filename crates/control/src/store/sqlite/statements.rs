//! Statements used by more than one operation.

use skerry_model::{AccountId, Pool, Usage, Workspace, WorkspaceId, limits};
use sqlx::{QueryBuilder, Row, Sqlite as Db, SqliteConnection, sqlite::SqliteRow};

use crate::{
    ApiKey, Error, ListWorkspaces, Project,
    store::{
        Admission, StoredKey,
        row::{id, lifetime_word, nanos, time, unsigned},
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

pub(super) async fn insert_project(
    db: &mut SqliteConnection,
    account_id: AccountId,
    project: &Project,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO projects (id, account_id, name, description, is_default, created_at, \
         updated_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(project.id.to_string())
    .bind(account_id.to_string())
    .bind(&project.name)
    .bind(&project.description)
    .bind(project.is_default)
    .bind(nanos(project.created_at))
    .bind(nanos(project.updated_at))
    .execute(db)
    .await
    .map(drop)
}

pub(super) async fn insert_key(
    db: &mut SqliteConnection,
    key: &StoredKey,
    is_bootstrap: IsBootstrap,
) -> Result<(), sqlx::Error> {
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
    .await
    .map(drop)
}

#[derive(Clone, Copy)]
pub(super) enum IsBootstrap {
    Yes,
    No,
}

pub(super) async fn usage_without(
    db: &mut SqliteConnection,
    account_id: AccountId,
    excluded: Option<WorkspaceId>,
) -> Result<Usage, Error> {
    let row = sqlx::query(
        "SELECT count(*) AS workspaces, \
         coalesce(sum(vcpu_count), 0) AS owned_vcpu, \
         coalesce(sum(memory_mib), 0) AS owned_memory, \
         coalesce(sum(disk_mib), 0) AS owned_disk, \
         coalesce(sum(vcpu_count * runs), 0) AS running_vcpu, \
         coalesce(sum(memory_mib * runs), 0) AS running_memory, \
         coalesce(sum(disk_mib * runs), 0) AS running_disk \
         FROM workspaces WHERE account_id = ? AND id IS NOT ?",
    )
    .bind(account_id.to_string())
    .bind(excluded.map(|id| id.to_string()))
    .fetch_one(db)
    .await?;
    let number = |column: &str| unsigned(row.try_get::<i64, _>(column)?);
    Ok(Usage {
        workspaces: number("workspaces")?,
        owned: Pool {
            vcpu_count: number("owned_vcpu")?,
            memory_mib: number("owned_memory")?,
            disk_mib: number("owned_disk")?,
        },
        running: Pool {
            vcpu_count: number("running_vcpu")?,
            memory_mib: number("running_memory")?,
            disk_mib: number("running_disk")?,
        },
    })
}

pub(super) async fn admit(
    db: &mut SqliteConnection,
    workspace: &Workspace,
    Admission { plan, demand }: Admission<'_>,
) -> Result<(), Error> {
    let others = usage_without(db, workspace.account_id, Some(workspace.id)).await?;
    Ok(limits::admit(plan, &others, &workspace.spec.shape, demand)?)
}

pub(super) fn push_filter(
    query: &mut QueryBuilder<'_, Db>,
    account_id: AccountId,
    filter: &ListWorkspaces,
) {
    query.push(" WHERE account_id = ").push_bind(account_id.to_string());
    if let Some(project) = filter.project_id {
        query.push(" AND project_id = ").push_bind(project.to_string());
    }
    if let Some(namespace) = &filter.namespace {
        query.push(" AND namespace = ").push_bind(namespace.clone());
    }
    if let Some(lifetime) = filter.lifetime {
        query.push(" AND lifetime = ").push_bind(lifetime_word(lifetime));
    }
    if !filter.states.is_empty() {
        query.push(" AND state IN (");
        let mut states = query.separated(", ");
        for state in &filter.states {
            states.push_bind(*state);
        }
        states.push_unseparated(")");
    }
}
