//! Published ports.

use async_trait::async_trait;
use skerry_model::{Slug, WorkspaceId};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::writer::{Broken, Operation};
use crate::{
    Error, PortVisibility, PublishedPort,
    store::{
        PortInsertion, SecretHash, StoredPort, Write,
        row::{id, nanos, time},
    },
};

/// Workspaces whose identifier is in a range, or whose project's is; the bounds are bound three times.
/// What is not there is found out in indexes alone.
pub(super) const BY_PREFIX: &str = "id > ? AND id < ? OR \
     account_id IN (SELECT account_id FROM projects WHERE id > ? AND id < ?) \
     AND project_id IN (SELECT id FROM projects WHERE id > ? AND id < ?) ORDER BY seq DESC";

/// Between which two texts the identifiers with these first bits lie.
pub(super) fn identifiers_with(prefix: u32) -> [String; 2] {
    // The character after the hyphen that follows.
    [format!("{prefix:08x}-"), format!("{prefix:08x}.")]
}

pub(super) fn port_from(row: &SqliteRow) -> Result<StoredPort, Error> {
    let token: Option<Vec<u8>> = row.try_get("token_hash")?;
    let damaged = |_| Error::internal("a hash in the database is not 32 bytes long");
    let token = token.map(|bytes| bytes.try_into().map(SecretHash).map_err(damaged)).transpose()?;
    Ok(StoredPort {
        port: PublishedPort {
            id: id(row.try_get("id")?)?,
            workspace_id: id(row.try_get("workspace_id")?)?,
            port: row.try_get("port")?,
            slug: Slug::parse(row.try_get("slug")?).map_err(Error::internal)?,
            label: row.try_get("label")?,
            visibility: match token {
                Some(_) => PortVisibility::Private,
                None => PortVisibility::Public,
            },
            created_at: time(row.try_get("created_at")?)?,
        },
        token,
    })
}

fn token_bytes(port: &StoredPort) -> Option<&[u8]> {
    port.token.as_ref().map(|hash| hash.0.as_slice())
}

async fn has_slug(
    db: &mut SqliteConnection,
    StoredPort { port, .. }: &StoredPort,
) -> Result<bool, Broken> {
    let taken = sqlx::query("SELECT 1 FROM published_ports WHERE slug = ? AND id != ?")
        .bind(port.slug.as_str())
        .bind(port.id.to_string())
        .fetch_optional(db)
        .await?;
    Ok(taken.is_some())
}

pub(super) struct InsertPort {
    pub(super) port: StoredPort,
    pub(super) max: u32,
}

#[async_trait]
impl Operation for InsertPort {
    type Answer = PortInsertion;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<PortInsertion, Error>, Broken> {
        let port = &self.port.port;
        let workspace_id = port.workspace_id.to_string();
        let found = sqlx::query(
            "SELECT (SELECT count(*) FROM workspaces WHERE id = ?1), count(*), \
             coalesce(sum(port = ?2), 0) FROM published_ports WHERE workspace_id = ?1",
        )
        .bind(&workspace_id)
        .bind(port.port)
        .fetch_one(&mut *db)
        .await?;
        let [workspaces, published, same] = [0, 1, 2].map(|column| found.try_get::<u32, _>(column));
        let refusal = if workspaces? == 0 {
            PortInsertion::NoWorkspace
        } else if same? > 0 {
            PortInsertion::Published
        } else if published? >= self.max {
            PortInsertion::TooMany
        } else if has_slug(db, &self.port).await? {
            PortInsertion::SlugTaken
        } else {
            sqlx::query(
                "INSERT INTO published_ports (id, workspace_id, port, slug, label, token_hash, \
                 created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(port.id.to_string())
            .bind(&workspace_id)
            .bind(port.port)
            .bind(port.slug.as_str())
            .bind(&port.label)
            .bind(token_bytes(&self.port))
            .bind(nanos(port.created_at))
            .execute(db)
            .await?;
            PortInsertion::Done
        };
        Ok(Ok(refusal))
    }
}

pub(super) struct UpdatePort(pub(super) StoredPort);

#[async_trait]
impl Operation for UpdatePort {
    type Answer = Write<()>;

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<Write<()>, Error>, Broken> {
        if has_slug(db, &self.0).await? {
            return Ok(Ok(Write::Taken));
        }
        let port = &self.0.port;
        let done = sqlx::query(
            "UPDATE published_ports SET slug = ?, label = ?, token_hash = ? WHERE id = ?",
        )
        .bind(port.slug.as_str())
        .bind(&port.label)
        .bind(token_bytes(&self.0))
        .bind(port.id.to_string())
        .execute(db)
        .await?;
        Ok(Ok(if done.rows_affected() == 1 { Write::Done(()) } else { Write::Stale }))
    }
}

pub(super) struct RemovePort {
    pub(super) workspace: WorkspaceId,
    pub(super) port: u16,
}

#[async_trait]
impl Operation for RemovePort {
    type Answer = Option<PublishedPort>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Option<PublishedPort>, Error>, Broken> {
        let removed = sqlx::query(
            "DELETE FROM published_ports WHERE workspace_id = ? AND port = ? RETURNING *",
        )
        .bind(self.workspace.to_string())
        .bind(self.port)
        .fetch_optional(db)
        .await?;
        let removed = removed.as_ref().map(port_from).transpose()?;
        Ok(Ok(removed.map(|removed| removed.port)))
    }
}
