//! Snapshots, and the forks that begin with one.

use async_trait::async_trait;
use skerry_model::{
    AccountId, DisplayName, ImageRef, Plan, Snapshot, SnapshotContents, SnapshotId,
    SnapshotPurpose, SnapshotState, Workspace, limits::admit_snapshot, spec::ImageDigest,
};
use sqlx::{QueryBuilder, Row as _, Sqlite as Db, SqliteConnection, sqlite::SqliteRow};

use super::{
    picture::{Picture, Verdict, WorkspaceWrite},
    records::{apply, picture_of},
    rows::{WORKSPACES, workspace_from},
    usage,
    writer::{Broken, Operation},
};
use crate::{
    Error, ListSnapshots,
    store::{
        SnapshotDeletion, Write,
        row::{id, json, nanos, parse, signed, time, unsigned},
        sealing::KeyRing,
    },
};

/// The columns of a snapshot, in the order in which [`snapshot_from`] reads and [`insert`] binds them.
pub(super) const COLUMNS: &str = "id, account_id, workspace_id, name, purpose, contents, state, \
     image, image_digest, size_bytes, blackout_nanos, taken_at, shape_json, state_json, \
     metadata_json, created_at, updated_at, revision";

pub(super) fn snapshot_from(row: &SqliteRow) -> Result<Snapshot, Error> {
    let text = |index: usize| row.try_get::<&str, _>(index);
    let number = |index: usize| row.try_get::<i64, _>(index);
    let optional = |index: usize| row.try_get::<Option<i64>, _>(index);
    let blackout = optional(10)?.map(unsigned).transpose()?;
    Ok(Snapshot {
        id: id(text(0)?)?,
        account_id: id(text(1)?)?,
        workspace_id: id(text(2)?)?,
        name: DisplayName::parse(text(3)?).map_err(Error::internal)?,
        purpose: purpose(text(4)?)?,
        contents: contents(text(5)?)?,
        state: parse::<SnapshotState>(text(13)?)?,
        image: ImageRef(row.try_get(7)?),
        image_digest: ImageDigest(row.try_get(8)?),
        shape: parse(text(12)?)?,
        size_bytes: unsigned(number(9)?)?,
        blackout: blackout.map(std::time::Duration::from_nanos),
        taken_at: optional(11)?.map(time).transpose()?,
        metadata: parse(text(14)?)?,
        created_at: time(number(15)?)?,
        updated_at: time(number(16)?)?,
        revision: unsigned(number(17)?)?,
    })
}

fn purpose(word: &str) -> Result<SnapshotPurpose, Error> {
    [SnapshotPurpose::User, SnapshotPurpose::Fork, SnapshotPurpose::Terminate]
        .into_iter()
        .find(|purpose| purpose.as_str() == word)
        .ok_or_else(|| Error::internal(format!("a snapshot's purpose is {word:?} in the store")))
}

fn contents(word: &str) -> Result<SnapshotContents, Error> {
    [SnapshotContents::DiskAndMemory, SnapshotContents::Disk]
        .into_iter()
        .find(|contents| contents.as_str() == word)
        .ok_or_else(|| Error::internal(format!("a snapshot contains {word:?} in the store")))
}

pub(super) fn push_filter(
    query: &mut QueryBuilder<'_, Db>,
    account_id: AccountId,
    filter: &ListSnapshots,
) {
    query.push(" WHERE account_id = ").push_bind(account_id.to_string());
    if let Some(workspace) = filter.workspace_id {
        query.push(" AND workspace_id = ").push_bind(workspace.to_string());
    }
    if let Some(name) = &filter.name {
        query.push(" AND name = ").push_bind(name.clone());
    }
    let purposes: Vec<&'static str> =
        filter.purposes.iter().map(|purpose| purpose.as_str()).collect();
    for (column, words) in [("purpose", &purposes), ("state", &filter.states)] {
        if words.is_empty() {
            continue;
        }
        query.push(format!(" AND {column} IN ("));
        let mut places = query.separated(", ");
        for word in words {
            places.push_bind(*word);
        }
        places.push_unseparated(")");
    }
}

/// How much of the limit on the number of snapshots it takes.
fn counted(snapshot: &Snapshot) -> i64 {
    match snapshot.purpose {
        SnapshotPurpose::User | SnapshotPurpose::Terminate => 1,
        SnapshotPurpose::Fork => 0,
    }
}

/// Writes a new record; answers whether its identifier was free.
async fn insert(db: &mut SqliteConnection, snapshot: &Snapshot) -> Result<Write<Snapshot>, Broken> {
    let written = Snapshot { revision: 1, ..snapshot.clone() };
    let text = format!(
        "INSERT INTO snapshots ({COLUMNS}) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
    );
    let done = sqlx::query(&text)
        .bind(written.id.to_string())
        .bind(written.account_id.to_string())
        .bind(written.workspace_id.to_string())
        .bind(written.name.as_str())
        .bind(written.purpose.as_str())
        .bind(written.contents.as_str())
        .bind(written.state.name())
        .bind(&written.image.0)
        .bind(&written.image_digest.0)
        .bind(signed(written.size_bytes))
        .bind(blackout_nanos(&written))
        .bind(written.taken_at.map(nanos))
        .bind(json(&written.shape)?)
        .bind(json(&written.state)?)
        .bind(json(&written.metadata)?)
        .bind(nanos(written.created_at))
        .bind(nanos(written.updated_at))
        .bind(signed(written.revision))
        .execute(&mut *db)
        .await?;
    if done.rows_affected() == 0 {
        return Ok(Write::Taken);
    }
    let bytes = signed(written.size_bytes);
    usage::change_snapshots(db, written.account_id, counted(&written), bytes).await?;
    Ok(Write::Done(written))
}

fn blackout_nanos(snapshot: &Snapshot) -> Option<i64> {
    snapshot.blackout.map(|blackout| i64::try_from(blackout.as_nanos()).unwrap_or(i64::MAX))
}

async fn by_id(db: &mut SqliteConnection, id: SnapshotId) -> Result<Option<Snapshot>, Broken> {
    let row = sqlx::query(&format!("SELECT {COLUMNS} FROM snapshots WHERE id = ?"))
        .bind(id.to_string())
        .fetch_optional(db)
        .await?;
    Ok(row.as_ref().map(snapshot_from).transpose()?)
}

/// Replaces the record if its revision is still `snapshot.revision`. To whom it belongs, of what it
/// was taken and why never change.
async fn update(db: &mut SqliteConnection, snapshot: &Snapshot) -> Result<Write<Snapshot>, Broken> {
    let before = by_id(db, snapshot.id).await?;
    let Some(before) = before.filter(|before| before.revision == snapshot.revision) else {
        return Ok(Write::Stale);
    };
    let written = Snapshot {
        account_id: before.account_id,
        workspace_id: before.workspace_id,
        purpose: before.purpose,
        created_at: before.created_at,
        revision: snapshot.revision + 1,
        ..snapshot.clone()
    };
    sqlx::query(
        "UPDATE snapshots SET name = ?, contents = ?, state = ?, image = ?, image_digest = ?, \
         size_bytes = ?, blackout_nanos = ?, taken_at = ?, shape_json = ?, state_json = ?, \
         metadata_json = ?, updated_at = ?, revision = ? WHERE id = ?",
    )
    .bind(written.name.as_str())
    .bind(written.contents.as_str())
    .bind(written.state.name())
    .bind(&written.image.0)
    .bind(&written.image_digest.0)
    .bind(signed(written.size_bytes))
    .bind(blackout_nanos(&written))
    .bind(written.taken_at.map(nanos))
    .bind(json(&written.shape)?)
    .bind(json(&written.state)?)
    .bind(json(&written.metadata)?)
    .bind(nanos(written.updated_at))
    .bind(signed(written.revision))
    .bind(written.id.to_string())
    .execute(&mut *db)
    .await?;
    let grown = signed(written.size_bytes) - signed(before.size_bytes);
    if grown != 0 {
        usage::change_snapshots(db, written.account_id, 0, grown).await?;
    }
    Ok(Write::Done(written))
}

pub(super) struct InsertSnapshot {
    pub(super) snapshot: Snapshot,
    pub(super) plan: Option<Plan>,
}

#[async_trait]
impl Operation for InsertSnapshot {
    type Answer = Write<Snapshot>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        if let Some(plan) = &self.plan {
            let usage = usage::of(db, self.snapshot.account_id).await?;
            if let Err(refusal) = admit_snapshot(plan, &usage) {
                return Ok(Err(refusal.into()));
            }
        }
        insert(db, &self.snapshot).await.map(Ok)
    }
}

pub(super) struct UpdateSnapshot(pub(super) Snapshot);

#[async_trait]
impl Operation for UpdateSnapshot {
    type Answer = Write<Snapshot>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        update(db, &self.0).await.map(Ok)
    }
}

pub(super) struct BeginSnapshotDeletion {
    pub(super) snapshot: Snapshot,
    pub(super) keys: KeyRing,
}

#[async_trait]
impl Operation for BeginSnapshotDeletion {
    type Answer = SnapshotDeletion;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let needing = sqlx::query(&format!(
            "SELECT {WORKSPACES} FROM workspaces WHERE needed_snapshot_id = ? LIMIT 1"
        ))
        .bind(self.snapshot.id.to_string())
        .fetch_optional(&mut *db)
        .await?;
        if let Some(row) = needing {
            let workspace = Box::new(workspace_from(&row, &self.keys)?);
            return Ok(Ok(SnapshotDeletion::NeededBy(workspace)));
        }
        Ok(Ok(match update(db, &self.snapshot).await? {
            Write::Done(begun) => SnapshotDeletion::Begun(Box::new(begun)),
            Write::Stale | Write::Taken => SnapshotDeletion::Stale,
        }))
    }
}

pub(super) struct RemoveSnapshot {
    pub(super) id: SnapshotId,
    pub(super) revision: u64,
}

#[async_trait]
impl Operation for RemoveSnapshot {
    type Answer = Write<()>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let before = by_id(db, self.id).await?;
        let Some(before) = before.filter(|before| before.revision == self.revision) else {
            return Ok(Ok(Write::Stale));
        };
        sqlx::query("DELETE FROM snapshots WHERE id = ?")
            .bind(self.id.to_string())
            .execute(&mut *db)
            .await?;
        let bytes = signed(before.size_bytes);
        usage::change_snapshots(db, before.account_id, -counted(&before), -bytes).await?;
        Ok(Ok(Write::Done(())))
    }
}

/// A snapshot and the workspaces that are made from it, all or nothing.
pub(super) struct InsertFork {
    pub(super) snapshot: Snapshot,
    pub(super) writes: Vec<WorkspaceWrite>,
}

#[async_trait]
impl Operation for InsertFork {
    type Answer = Write<Vec<Workspace>>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let mut writes: Vec<&mut WorkspaceWrite> = self.writes.iter_mut().collect();
        let mut picture: Picture = picture_of(db, &writes).await?;
        // It is recorded with them, so that it is there for them and for nobody else yet.
        picture.snapshots.insert((self.snapshot.id, self.snapshot.account_id));
        let mut verdicts = Vec::with_capacity(writes.len());
        for write in &mut writes {
            match picture.decide(write) {
                Verdict::Refused(error) => return Ok(Err(error)),
                Verdict::Taken => return Ok(Ok(Write::Taken)),
                Verdict::Stale => return Ok(Ok(Write::Stale)),
                done @ Verdict::Done(_) => verdicts.push(done),
            }
        }
        if let Write::Taken | Write::Stale = insert(db, &self.snapshot).await? {
            return Ok(Ok(Write::Taken));
        }
        apply(db, &writes, &verdicts, &picture).await?;
        let made = self.writes.iter().filter_map(WorkspaceWrite::record).cloned();
        Ok(Ok(Write::Done(made.collect())))
    }
}
