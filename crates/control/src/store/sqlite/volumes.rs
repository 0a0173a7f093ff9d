//! Volumes, and which workspace has which.

use async_trait::async_trait;
use skerry_model::{
    AccountId, Attachment, Checkpoint, CheckpointId, DisplayName, MountMode, MountPath, Plan,
    Timestamp, Volume, VolumeId, VolumeMount, VolumeSlot, VolumeState, WorkspaceId,
    admit_attachment,
    limits::{admit_volume, admit_volume_growth},
};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{
    Sqlite, checkpoints,
    writer::{Broken, Operation},
};
use crate::{
    Error,
    store::{
        Attaching, CheckpointDeletion, CheckpointInsertion, VolumeDeletion, VolumeStore,
        WantedMount, Write,
        row::{id, json, nanos, parse, signed, time, unsigned},
    },
};

const VOLUME: &str = "SELECT id, account_id, name, size_mib, state_json, created_at, updated_at, revision FROM volumes";
const ATTACHMENT: &str =
    "SELECT workspace_id, volume_id, slot, path, mode, checkpoint_id FROM volume_attachments";

fn volume_from(row: &SqliteRow) -> Result<Volume, Error> {
    let text = |index: usize| row.try_get::<&str, _>(index);
    let number = |index: usize| row.try_get::<i64, _>(index);
    Ok(Volume {
        id: id(text(0)?)?,
        account_id: id(text(1)?)?,
        name: DisplayName::parse(text(2)?).map_err(Error::internal)?,
        size_mib: unsigned(number(3)?)?,
        state: parse::<VolumeState>(text(4)?)?,
        created_at: time(number(5)?)?,
        updated_at: time(number(6)?)?,
        revision: unsigned(number(7)?)?,
    })
}

fn attachment_from(row: &SqliteRow) -> Result<Attachment, Error> {
    let slot = u8::try_from(row.try_get::<i64, _>(2)?).map_err(Error::internal)?;
    let mode: &str = row.try_get(4)?;
    let checkpoint: Option<&str> = row.try_get(5)?;
    Ok(Attachment {
        workspace_id: id(row.try_get(0)?)?,
        mount: VolumeMount {
            volume_id: id(row.try_get(1)?)?,
            slot: VolumeSlot::try_from(slot).map_err(Error::internal)?,
            path: MountPath::parse(row.try_get(3)?).map_err(Error::internal)?,
            mode: MountMode::of_word(mode)
                .ok_or_else(|| Error::internal(format!("a volume is mounted {mode:?}")))?,
            checkpoint_id: checkpoint.map(id).transpose()?,
        },
    })
}

pub(super) async fn by_id(
    db: &mut SqliteConnection,
    id: VolumeId,
) -> Result<Option<Volume>, Broken> {
    let row = sqlx::query(&format!("{VOLUME} WHERE id = ?"))
        .bind(id.to_string())
        .fetch_optional(db)
        .await?;
    Ok(row.as_ref().map(volume_from).transpose()?)
}

/// Those with this text in that column.
pub(super) async fn attachments(
    db: &mut SqliteConnection,
    column: &'static str,
    value: String,
) -> Result<Vec<Attachment>, Broken> {
    let text = format!("{ATTACHMENT} WHERE {column} = ? ORDER BY slot");
    let rows = sqlx::query(&text).bind(value).fetch_all(db).await?;
    Ok(rows.iter().map(attachment_from).collect::<Result<_, Error>>()?)
}

async fn update(db: &mut SqliteConnection, volume: &Volume) -> Result<Write<Volume>, Broken> {
    let before = by_id(&mut *db, volume.id).await?;
    let Some(before) = before.filter(|before| before.revision == volume.revision) else {
        return Ok(Write::Stale);
    };
    let written = Volume {
        name: volume.name.clone(),
        state: volume.state.clone(),
        updated_at: volume.updated_at,
        revision: volume.revision + 1,
        ..before
    };
    let done = sqlx::query(
        "UPDATE OR IGNORE volumes SET name = ?, state = ?, state_json = ?, updated_at = ?, \
         revision = ? WHERE id = ?",
    )
    .bind(written.name.as_str())
    .bind(written.state.name())
    .bind(json(&written.state)?)
    .bind(nanos(written.updated_at))
    .bind(signed(written.revision))
    .bind(written.id.to_string())
    .execute(db)
    .await?;
    Ok(if done.rows_affected() == 0 { Write::Taken } else { Write::Done(written) })
}

struct InsertVolume {
    volume: Volume,
    plan: Plan,
}

#[async_trait]
impl Operation for InsertVolume {
    type Answer = Write<Volume>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let account_id = self.volume.account_id.to_string();
        let there = sqlx::query(
            "SELECT count(*), coalesce(sum(size_mib), 0) FROM volumes WHERE account_id = ?",
        )
        .bind(&account_id)
        .fetch_one(&mut *db)
        .await?;
        let (volumes, mib) = (unsigned(there.try_get(0)?)?, unsigned(there.try_get(1)?)?);
        if let Err(refusal) = admit_volume(&self.plan, volumes, mib, self.volume.size_mib) {
            return Ok(Err(refusal.into()));
        }
        let written = Volume { revision: 1, ..self.volume.clone() };
        let done = sqlx::query(
            "INSERT INTO volumes (id, account_id, name, size_mib, state, state_json, created_at, \
             updated_at, revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(written.id.to_string())
        .bind(&account_id)
        .bind(written.name.as_str())
        .bind(signed(written.size_mib))
        .bind(written.state.name())
        .bind(json(&written.state)?)
        .bind(nanos(written.created_at))
        .bind(nanos(written.updated_at))
        .bind(signed(written.revision))
        .execute(db)
        .await?;
        Ok(Ok(if done.rows_affected() == 0 { Write::Taken } else { Write::Done(written) }))
    }
}

struct UpdateVolume(Volume);

#[async_trait]
impl Operation for UpdateVolume {
    type Answer = Write<Volume>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        update(db, &self.0).await.map(Ok)
    }
}

struct GrowVolume {
    volume: Volume,
    plan: Plan,
}

#[async_trait]
impl Operation for GrowVolume {
    type Answer = Write<Volume>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let before = by_id(&mut *db, self.volume.id).await?;
        let Some(before) = before.filter(|before| before.revision == self.volume.revision) else {
            return Ok(Ok(Write::Stale));
        };
        let there: i64 = sqlx::query_scalar(
            "SELECT coalesce(sum(size_mib), 0) FROM volumes WHERE account_id = ?",
        )
        .bind(before.account_id.to_string())
        .fetch_one(&mut *db)
        .await?;
        let more_mib = self.volume.size_mib.saturating_sub(before.size_mib);
        if let Err(refusal) = admit_volume_growth(&self.plan, unsigned(there)?, more_mib) {
            return Ok(Err(refusal.into()));
        }
        let written = Volume {
            size_mib: self.volume.size_mib,
            updated_at: self.volume.updated_at,
            revision: before.revision + 1,
            ..before
        };
        sqlx::query("UPDATE volumes SET size_mib = ?, updated_at = ?, revision = ? WHERE id = ?")
            .bind(signed(written.size_mib))
            .bind(nanos(written.updated_at))
            .bind(signed(written.revision))
            .bind(written.id.to_string())
            .execute(db)
            .await?;
        Ok(Ok(Write::Done(written)))
    }
}

struct BeginVolumeDeletion(Volume);

#[async_trait]
impl Operation for BeginVolumeDeletion {
    type Answer = VolumeDeletion;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let held = attachments(&mut *db, "volume_id", self.0.id.to_string()).await?;
        if let Some(held) = held.first() {
            return Ok(Ok(VolumeDeletion::AttachedTo(held.workspace_id)));
        }
        Ok(Ok(match update(db, &self.0).await? {
            Write::Done(begun) => VolumeDeletion::Begun(Box::new(begun)),
            Write::Stale | Write::Taken => VolumeDeletion::Stale,
        }))
    }
}

struct RemoveVolume {
    id: VolumeId,
    revision: u64,
}

#[async_trait]
impl Operation for RemoveVolume {
    type Answer = Write<()>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let done = sqlx::query("DELETE FROM volumes WHERE id = ? AND revision = ?")
            .bind(self.id.to_string())
            .bind(signed(self.revision))
            .execute(db)
            .await?;
        Ok(Ok(if done.rows_affected() == 0 { Write::Stale } else { Write::Done(()) }))
    }
}

struct AttachVolumes {
    account_id: AccountId,
    workspace_id: WorkspaceId,
    wanted: Vec<WantedMount>,
    now: Timestamp,
}

#[async_trait]
impl Operation for AttachVolumes {
    type Answer = Attaching;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let held = attachments(&mut *db, "workspace_id", self.workspace_id.to_string()).await?;
        let mut of_workspace: Vec<VolumeMount> = held.into_iter().map(|held| held.mount).collect();
        let mut granted = Vec::with_capacity(self.wanted.len());
        for WantedMount { volume_id, path, mode, checkpoint_id } in self.wanted.iter().cloned() {
            let found = by_id(&mut *db, volume_id).await?;
            let Some(volume) = found.filter(|found| found.account_id == self.account_id) else {
                return Ok(Ok(Attaching::NoVolume(volume_id)));
            };
            if volume.state != VolumeState::Ready {
                return Ok(Ok(Attaching::NotReady(volume_id, volume.state.name())));
            }
            if let Some(checkpoint_id) = checkpoint_id
                && !checkpoints::is_ready(&mut *db, volume_id, checkpoint_id).await?
            {
                return Ok(Ok(Attaching::NoCheckpoint(volume_id)));
            }
            let mut of_volume = attachments(&mut *db, "volume_id", volume_id.to_string()).await?;
            // Those of this very call are not written yet.
            let asked_before =
                granted.iter().filter(|mount: &&VolumeMount| mount.volume_id == volume_id);
            of_volume.extend(
                asked_before
                    .cloned()
                    .map(|mount| Attachment { workspace_id: self.workspace_id, mount }),
            );
            let admitted = admit_attachment(
                self.workspace_id,
                &path,
                mode,
                checkpoint_id,
                &of_volume,
                &of_workspace,
            );
            let slot = match admitted {
                Ok(slot) => slot,
                Err(refusal) => return Ok(Ok(Attaching::Refused(volume_id, refusal))),
            };
            let mount = VolumeMount { volume_id, slot, path, mode, checkpoint_id };
            of_workspace.push(mount.clone());
            granted.push(mount);
        }
        for mount in &granted {
            sqlx::query(
                "INSERT INTO volume_attachments (workspace_id, volume_id, slot, path, mode, \
                 created_at, checkpoint_id) VALUES (?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(self.workspace_id.to_string())
            .bind(mount.volume_id.to_string())
            .bind(i64::from(mount.slot.get()))
            .bind(mount.path.as_str())
            .bind(mount.mode.as_str())
            .bind(nanos(self.now))
            .bind(mount.checkpoint_id.map(|id| id.to_string()))
            .execute(&mut *db)
            .await?;
        }
        Ok(Ok(Attaching::Done(granted)))
    }
}

struct DetachVolume {
    workspace_id: WorkspaceId,
    volume_id: VolumeId,
}

#[async_trait]
impl Operation for DetachVolume {
    type Answer = bool;

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<bool, Error>, Broken> {
        let done =
            sqlx::query("DELETE FROM volume_attachments WHERE workspace_id = ? AND volume_id = ?")
                .bind(self.workspace_id.to_string())
                .bind(self.volume_id.to_string())
                .execute(db)
                .await?;
        Ok(Ok(done.rows_affected() == 1))
    }
}

struct DetachFromUnrecorded {
    before: Timestamp,
}

#[async_trait]
impl Operation for DetachFromUnrecorded {
    type Answer = u64;

    async fn run(&mut self, db: &mut SqliteConnection) -> Result<Result<u64, Error>, Broken> {
        let done = sqlx::query(
            "DELETE FROM volume_attachments WHERE created_at < ? \
             AND workspace_id NOT IN (SELECT id FROM workspaces)",
        )
        .bind(nanos(self.before))
        .execute(db)
        .await?;
        Ok(Ok(done.rows_affected()))
    }
}

#[async_trait]
impl VolumeStore for Sqlite {
    async fn insert_volume(&self, volume: &Volume, plan: &Plan) -> Result<Write<Volume>, Error> {
        self.writer.run(InsertVolume { volume: volume.clone(), plan: plan.clone() }).await
    }

    async fn update_volume(&self, volume: &Volume) -> Result<Write<Volume>, Error> {
        self.writer.run(UpdateVolume(volume.clone())).await
    }

    async fn grow_volume(&self, volume: &Volume, plan: &Plan) -> Result<Write<Volume>, Error> {
        self.writer.run(GrowVolume { volume: volume.clone(), plan: plan.clone() }).await
    }

    async fn begin_volume_deletion(&self, volume: &Volume) -> Result<VolumeDeletion, Error> {
        self.writer.run(BeginVolumeDeletion(volume.clone())).await
    }

    async fn remove_volume(&self, id: VolumeId, revision: u64) -> Result<Write<()>, Error> {
        self.writer.run(RemoveVolume { id, revision }).await
    }

    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, Error> {
        let row = sqlx::query(&format!("{VOLUME} WHERE id = ?"))
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(volume_from).transpose()
    }

    async fn list_volumes(&self, account_id: AccountId) -> Result<Vec<Volume>, Error> {
        let text = format!("{VOLUME} WHERE account_id = ? ORDER BY created_at DESC, id DESC");
        let rows = sqlx::query(&text).bind(account_id.to_string()).fetch_all(&self.readers).await?;
        rows.iter().map(volume_from).collect()
    }

    async fn volumes_after(
        &self,
        after: Option<VolumeId>,
        limit: u32,
    ) -> Result<Vec<Volume>, Error> {
        let after = after.map(|id| id.to_string()).unwrap_or_default();
        let rows = sqlx::query(&format!("{VOLUME} WHERE id > ? ORDER BY id LIMIT ?"))
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(volume_from).collect()
    }

    async fn attach_volumes(
        &self,
        account_id: AccountId,
        workspace_id: WorkspaceId,
        wanted: &[WantedMount],
        now: Timestamp,
    ) -> Result<Attaching, Error> {
        let wanted = wanted.to_vec();
        self.writer.run(AttachVolumes { account_id, workspace_id, wanted, now }).await
    }

    async fn detach_volume(
        &self,
        workspace_id: WorkspaceId,
        volume_id: VolumeId,
    ) -> Result<bool, Error> {
        self.writer.run(DetachVolume { workspace_id, volume_id }).await
    }

    async fn mounts_of(&self, workspace_id: WorkspaceId) -> Result<Vec<VolumeMount>, Error> {
        let rows = sqlx::query(&format!("{ATTACHMENT} WHERE workspace_id = ? ORDER BY slot"))
            .bind(workspace_id.to_string())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| Ok(attachment_from(row)?.mount)).collect()
    }

    async fn mounts_between(
        &self,
        after: Option<WorkspaceId>,
        through: WorkspaceId,
    ) -> Result<Vec<Attachment>, Error> {
        let text = format!("{ATTACHMENT} WHERE workspace_id > ? AND workspace_id <= ?");
        let rows = sqlx::query(&text)
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(through.to_string())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(attachment_from).collect()
    }

    async fn attachments_of(&self, volume_id: VolumeId) -> Result<Vec<Attachment>, Error> {
        let rows = sqlx::query(&format!("{ATTACHMENT} WHERE volume_id = ? ORDER BY workspace_id"))
            .bind(volume_id.to_string())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(attachment_from).collect()
    }

    async fn insert_checkpoint(
        &self,
        checkpoint: &Checkpoint,
    ) -> Result<CheckpointInsertion, Error> {
        self.writer.run(checkpoints::Insert(checkpoint.clone())).await
    }

    async fn update_checkpoint(&self, checkpoint: &Checkpoint) -> Result<Write<Checkpoint>, Error> {
        self.writer.run(checkpoints::Update(checkpoint.clone())).await
    }

    async fn begin_checkpoint_deletion(
        &self,
        checkpoint: &Checkpoint,
    ) -> Result<CheckpointDeletion, Error> {
        self.writer.run(checkpoints::BeginDeletion(checkpoint.clone())).await
    }

    async fn remove_checkpoint(&self, id: CheckpointId, revision: u64) -> Result<Write<()>, Error> {
        self.writer.run(checkpoints::Remove { id, revision }).await
    }

    async fn checkpoint(&self, id: CheckpointId) -> Result<Option<Checkpoint>, Error> {
        checkpoints::one(&self.readers, id).await
    }

    async fn list_checkpoints(&self, volume_id: VolumeId) -> Result<Vec<Checkpoint>, Error> {
        checkpoints::of_volume(&self.readers, volume_id).await
    }

    async fn checkpoints_after(
        &self,
        after: Option<CheckpointId>,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, Error> {
        checkpoints::after(&self.readers, after, limit).await
    }

    async fn detach_from_unrecorded(&self, before: Timestamp) -> Result<u64, Error> {
        self.writer.run(DetachFromUnrecorded { before }).await
    }
}
