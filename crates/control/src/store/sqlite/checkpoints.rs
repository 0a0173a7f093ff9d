//! Checkpoints of volumes.

use async_trait::async_trait;
use skerry_model::{
    Checkpoint, CheckpointId, DisplayName, MAX_CHECKPOINTS_OF_A_VOLUME, VolumeId, VolumeState,
};
use sqlx::{Row as _, SqliteConnection, SqlitePool, sqlite::SqliteRow};

use super::{
    volumes::{attachments, by_id as volume_by_id},
    writer::{Broken, Operation},
};
use crate::{
    Error,
    store::{
        CheckpointDeletion, CheckpointInsertion, Write,
        row::{id, json, nanos, parse, signed, time, unsigned},
    },
};

const CHECKPOINT: &str = "SELECT id, volume_id, account_id, name, state_json, created_at, \
     updated_at, revision FROM volume_checkpoints";

fn checkpoint_from(row: &SqliteRow) -> Result<Checkpoint, Error> {
    let text = |index: usize| row.try_get::<&str, _>(index);
    let number = |index: usize| row.try_get::<i64, _>(index);
    Ok(Checkpoint {
        id: id(text(0)?)?,
        volume_id: id(text(1)?)?,
        account_id: id(text(2)?)?,
        name: DisplayName::parse(text(3)?).map_err(Error::internal)?,
        state: parse::<VolumeState>(text(4)?)?,
        created_at: time(number(5)?)?,
        updated_at: time(number(6)?)?,
        revision: unsigned(number(7)?)?,
    })
}

async fn by_id(db: &mut SqliteConnection, id: CheckpointId) -> Result<Option<Checkpoint>, Broken> {
    let row = sqlx::query(&format!("{CHECKPOINT} WHERE id = ?"))
        .bind(id.to_string())
        .fetch_optional(db)
        .await?;
    Ok(row.as_ref().map(checkpoint_from).transpose()?)
}

/// Whether the volume has this checkpoint, and it can be read.
pub(super) async fn is_ready(
    db: &mut SqliteConnection,
    volume_id: VolumeId,
    id: CheckpointId,
) -> Result<bool, Broken> {
    let found = by_id(db, id).await?;
    Ok(found.is_some_and(|found| found.volume_id == volume_id && found.state == VolumeState::Ready))
}

pub(super) async fn one(
    readers: &SqlitePool,
    id: CheckpointId,
) -> Result<Option<Checkpoint>, Error> {
    let row = sqlx::query(&format!("{CHECKPOINT} WHERE id = ?"))
        .bind(id.to_string())
        .fetch_optional(readers)
        .await?;
    row.as_ref().map(checkpoint_from).transpose()
}

pub(super) async fn of_volume(
    readers: &SqlitePool,
    volume_id: VolumeId,
) -> Result<Vec<Checkpoint>, Error> {
    let text = format!("{CHECKPOINT} WHERE volume_id = ? ORDER BY created_at DESC, rowid DESC");
    let rows = sqlx::query(&text).bind(volume_id.to_string()).fetch_all(readers).await?;
    rows.iter().map(checkpoint_from).collect()
}

pub(super) async fn after(
    readers: &SqlitePool,
    after: Option<CheckpointId>,
    limit: u32,
) -> Result<Vec<Checkpoint>, Error> {
    let rows = sqlx::query(&format!("{CHECKPOINT} WHERE id > ? ORDER BY id LIMIT ?"))
        .bind(after.map(|id| id.to_string()).unwrap_or_default())
        .bind(i64::from(limit))
        .fetch_all(readers)
        .await?;
    rows.iter().map(checkpoint_from).collect()
}

async fn update(
    db: &mut SqliteConnection,
    checkpoint: &Checkpoint,
) -> Result<Write<Checkpoint>, Broken> {
    let before = by_id(&mut *db, checkpoint.id).await?;
    let Some(before) = before.filter(|before| before.revision == checkpoint.revision) else {
        return Ok(Write::Stale);
    };
    let written = Checkpoint {
        state: checkpoint.state.clone(),
        updated_at: checkpoint.updated_at,
        revision: checkpoint.revision + 1,
        ..before
    };
    sqlx::query(
        "UPDATE volume_checkpoints SET state = ?, state_json = ?, updated_at = ?, revision = ? \
         WHERE id = ?",
    )
    .bind(written.state.name())
    .bind(json(&written.state)?)
    .bind(nanos(written.updated_at))
    .bind(signed(written.revision))
    .bind(written.id.to_string())
    .execute(db)
    .await?;
    Ok(Write::Done(written))
}

pub(super) struct Insert(pub(super) Checkpoint);

#[async_trait]
impl Operation for Insert {
    type Answer = CheckpointInsertion;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let volume = volume_by_id(&mut *db, self.0.volume_id).await?;
        if volume.is_none_or(|volume| volume.state != VolumeState::Ready) {
            return Ok(Ok(CheckpointInsertion::NoVolume));
        }
        let volume_id = self.0.volume_id.to_string();
        let there = sqlx::query("SELECT count(*) FROM volume_checkpoints WHERE volume_id = ?")
            .bind(&volume_id)
            .fetch_one(&mut *db)
            .await?;
        if unsigned(there.try_get(0)?)? >= u64::from(MAX_CHECKPOINTS_OF_A_VOLUME) {
            return Ok(Ok(CheckpointInsertion::TooMany(MAX_CHECKPOINTS_OF_A_VOLUME)));
        }
        let written = Checkpoint { revision: 1, ..self.0.clone() };
        sqlx::query(
            "INSERT INTO volume_checkpoints (id, volume_id, account_id, name, state, state_json, \
             created_at, updated_at, revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(written.id.to_string())
        .bind(&volume_id)
        .bind(written.account_id.to_string())
        .bind(written.name.as_str())
        .bind(written.state.name())
        .bind(json(&written.state)?)
        .bind(nanos(written.created_at))
        .bind(nanos(written.updated_at))
        .bind(signed(written.revision))
        .execute(db)
        .await?;
        Ok(Ok(CheckpointInsertion::Done(written)))
    }
}

pub(super) struct Update(pub(super) Checkpoint);

#[async_trait]
impl Operation for Update {
    type Answer = Write<Checkpoint>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        update(db, &self.0).await.map(Ok)
    }
}

pub(super) struct BeginDeletion(pub(super) Checkpoint);

#[async_trait]
impl Operation for BeginDeletion {
    type Answer = CheckpointDeletion;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let held = attachments(&mut *db, "checkpoint_id", self.0.id.to_string()).await?;
        if let Some(held) = held.first() {
            return Ok(Ok(CheckpointDeletion::AttachedTo(held.workspace_id)));
        }
        Ok(Ok(match update(db, &self.0).await? {
            Write::Done(begun) => CheckpointDeletion::Begun(begun),
            Write::Stale | Write::Taken => CheckpointDeletion::Stale,
        }))
    }
}

pub(super) struct Remove {
    pub(super) id: CheckpointId,
    pub(super) revision: u64,
}

#[async_trait]
impl Operation for Remove {
    type Answer = Write<()>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let done = sqlx::query("DELETE FROM volume_checkpoints WHERE id = ? AND revision = ?")
            .bind(self.id.to_string())
            .bind(signed(self.revision))
            .execute(db)
            .await?;
        Ok(Ok(if done.rows_affected() == 0 { Write::Stale } else { Write::Done(()) }))
    }
}
