//! Writes of workspaces, many in one go: one statement finds out about all the records they touch,
//! the decisions are made in memory, and few statements write what was decided.

use std::{collections::HashSet, sync::LazyLock};

use async_trait::async_trait;
use skerry_model::{AccountId, Pool, SnapshotId, Timestamp, WorkspaceId};
use sqlx::{
    Arguments as _, Row as _, SqliteConnection,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::{
    picture::{Effect, Footprint, Identity, Known, Picture, Verdict, WorkspaceWrite},
    recent::Recent,
    usage::{self, USAGE_COLUMNS},
    writer::{Broken, Operation},
};
use crate::{
    Error,
    store::{
        Write,
        row::{WorkspaceRow, id, lifetime_word, nanos, signed, time, unsigned},
    },
};

/// How many rows one statement writes at most; a power of two.
const MOST_ROWS: usize = 64;

/// The columns of a row, in the order in which [`bind`] binds them.
const COLUMNS: [&str; 31] = [
    "id",
    "account_id",
    "project_id",
    "namespace",
    "name",
    "slug",
    "lifetime",
    "created_at",
    "private_address",
    "admits_peers",
    "vcpu_count",
    "memory_mib",
    "disk_mib",
    "desired",
    "state",
    "runs",
    "incarnation",
    "replace_through",
    "failed_starts",
    "start_began_at",
    "node_id",
    "expires_at",
    "last_active_at",
    "due_at",
    "needed_snapshot_id",
    "spec_json",
    "state_json",
    "lifecycle_json",
    "sealed",
    "updated_at",
    "revision",
];
/// So many of them, from the first on, are left alone by an update that does not change the identity:
/// a column that is assigned is written to its indexes, changed or not.
const STEADY: usize = 10;

/// The statements that write rows: the one at `n` writes `2^n`.
static UPSERTS: LazyLock<Vec<String>> =
    LazyLock::new(|| (0..=MOST_ROWS.ilog2()).map(|power| upsert(1 << power)).collect());

fn upsert(rows: usize) -> String {
    let places = format!("({})", vec!["?"; COLUMNS.len()].join(", "));
    let changing = COLUMNS.iter().skip(STEADY);
    let assignments: Vec<String> =
        changing.map(|column| format!("{column} = excluded.{column}")).collect();
    format!(
        "INSERT INTO workspaces ({}) VALUES {} ON CONFLICT (id) DO UPDATE SET {}",
        COLUMNS.join(", "),
        vec![places; rows].join(", "),
        assignments.join(", ")
    )
}

/// The longest statement for at most this many rows, and for how many it is.
fn upsert_for(rows: usize) -> Option<(&'static str, usize)> {
    let power = rows.min(MOST_ROWS).checked_ilog2()?;
    let text = UPSERTS.get(usize::try_from(power).ok()?)?;
    Some((text, 1 << power))
}

/// Decides all writes in order and writes what was decided. An error means that the transaction has to
/// be rolled back.
pub(super) async fn write_all(
    db: &mut SqliteConnection,
    writes: &mut [&mut WorkspaceWrite],
) -> Result<Vec<Verdict>, Broken> {
    let mut picture = picture_of(db, writes).await?;
    let verdicts: Vec<Verdict> = writes.iter_mut().map(|write| picture.decide(write)).collect();
    apply(db, writes, &verdicts, &picture).await?;
    Ok(verdicts)
}

/// Writes what was decided.
pub(super) async fn apply(
    db: &mut SqliteConnection,
    writes: &[&mut WorkspaceWrite],
    verdicts: &[Verdict],
    picture: &Picture,
) -> Result<(), Broken> {
    let mut pending = Pending::default();
    for (write, verdict) in writes.iter().zip(verdicts) {
        let effect = match verdict {
            Verdict::Done(effect) => *effect,
            Verdict::Stale | Verdict::Taken | Verdict::Refused(_) => continue,
        };
        // A statement sees one state of each record, so a second change of one waits until the first
        // is written; and a slug passes on only after it was given up.
        if effect == Effect::Renamed || pending.ids.contains(&write.id()) {
            pending.flush(db).await?;
        }
        match &**write {
            WorkspaceWrite::Insert { row, .. } => pending.upsert(row),
            WorkspaceWrite::Update { row, .. } => {
                if effect == Effect::Renamed {
                    rename(db, row).await?;
                }
                pending.upsert(row);
            }
            WorkspaceWrite::Remove { id, .. } => pending.remove(*id),
        }
    }
    pending.flush(db).await?;
    for (account_id, change) in picture.usage_changes() {
        usage::change(db, account_id, change).await?;
    }
    Ok(())
}

/// What is decided and not yet written: each record once.
#[derive(Default)]
struct Pending<'w> {
    ids: HashSet<WorkspaceId>,
    removals: Vec<WorkspaceId>,
    upserts: Vec<&'w WorkspaceRow>,
}

impl<'w> Pending<'w> {
    fn upsert(&mut self, row: &'w WorkspaceRow) {
        self.ids.insert(row.record.id);
        self.upserts.push(row);
    }

    fn remove(&mut self, id: WorkspaceId) {
        self.ids.insert(id);
        self.removals.push(id);
    }

    /// Removals first: a new row may have the slug of one that goes.
    async fn flush(&mut self, db: &mut SqliteConnection) -> Result<(), Broken> {
        if !self.removals.is_empty() {
            sqlx::query("DELETE FROM workspaces WHERE id IN (SELECT value FROM json_each(?))")
                .bind(list(self.removals.drain(..)))
                .execute(&mut *db)
                .await?;
        }
        upsert_rows(db, &self.upserts).await?;
        self.upserts.clear();
        self.ids.clear();
        Ok(())
    }
}

/// Writes rows, none of them twice, that are new or keep their identity.
pub(super) async fn upsert_rows(
    db: &mut SqliteConnection,
    mut rows: &[&WorkspaceRow],
) -> Result<(), Broken> {
    while let Some((text, count)) = upsert_for(rows.len()) {
        let (now, later) = rows.split_at(count);
        let mut arguments = SqliteArguments::default();
        arguments.reserve(count * COLUMNS.len(), 0);
        for row in now {
            bind(row, &mut arguments).map_err(Error::internal)?;
        }
        sqlx::query_with(text, arguments).execute(&mut *db).await?;
        rows = later;
    }
    Ok(())
}

/// Notes that a workspace was used.
pub(super) struct NoteActivity {
    pub(super) id: WorkspaceId,
    pub(super) revision: u64,
    pub(super) at: Timestamp,
    pub(super) due_at: Option<Timestamp>,
}

#[async_trait]
impl Operation for NoteActivity {
    type Answer = Write<()>;

    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken> {
        let done = sqlx::query(
            "UPDATE workspaces SET last_active_at = ?1, due_at = ?2 \
             WHERE id = ?3 AND revision = ?4 \
             AND (last_active_at IS NULL OR last_active_at <= ?1)",
        )
        .bind(nanos(self.at))
        .bind(self.due_at.map(nanos))
        .bind(self.id.to_string())
        .bind(signed(self.revision))
        .execute(&mut *db)
        .await?;
        if done.rows_affected() == 1 {
            return Ok(Ok(Write::Done(())));
        }
        // A later use is noted already, or there is no such record.
        let there = sqlx::query("SELECT 1 FROM workspaces WHERE id = ? AND revision = ?")
            .bind(self.id.to_string())
            .bind(signed(self.revision))
            .fetch_optional(&mut *db)
            .await?;
        Ok(Ok(if there.is_some() { Write::Done(()) } else { Write::Stale }))
    }

    fn settle(&self, recent: &Recent) {
        recent.note_activity(self.id, self.revision, self.at);
    }
}

/// Identifiers or slugs as JSON, for `json_each`: there is nothing in them that would have to be
/// escaped.
fn list<T: std::fmt::Display>(words: impl IntoIterator<Item = T>) -> String {
    let quoted: Vec<String> = words.into_iter().map(|word| format!("\"{word}\"")).collect();
    format!("[{}]", quoted.join(","))
}

/// Everything the decisions need to know.
pub(super) async fn picture_of(
    db: &mut SqliteConnection,
    writes: &[&mut WorkspaceWrite],
) -> Result<Picture, Broken> {
    let mut picture = Picture::default();
    let rows = sqlx::query(
        "SELECT id, account_id, project_id, namespace, name, slug, lifetime, vcpu_count, \
         memory_mib, disk_mib, runs, incarnation, last_active_at, needed_snapshot_id, revision, \
         private_address, admits_peers \
         FROM workspaces WHERE id IN (SELECT value FROM json_each(?)) \
         OR slug IN (SELECT value FROM json_each(?))",
    )
    .bind(list(writes.iter().map(|write| write.id())))
    .bind(list(writes.iter().filter_map(|write| write.slug())))
    .fetch_all(&mut *db)
    .await?;
    for row in &rows {
        picture.learn(id(row.try_get(0)?)?, known(row)?);
    }
    let judged: HashSet<AccountId> =
        writes.iter().filter_map(|write| write.judged_account()).collect();
    if !judged.is_empty() {
        let rows = sqlx::query(&format!(
            "SELECT {USAGE_COLUMNS}, account_id FROM account_usage \
             WHERE account_id IN (SELECT value FROM json_each(?))"
        ))
        .bind(list(judged))
        .fetch_all(&mut *db)
        .await?;
        for row in &rows {
            picture.usage.insert(id(row.try_get("account_id")?)?, usage::from_row(row)?);
        }
    }
    let needed: HashSet<SnapshotId> =
        writes.iter().filter_map(|write| write.needed_snapshot()).collect();
    if !needed.is_empty() {
        let rows = sqlx::query(
            "SELECT id, account_id FROM snapshots \
             WHERE state = 'ready' AND id IN (SELECT value FROM json_each(?))",
        )
        .bind(list(needed))
        .fetch_all(&mut *db)
        .await?;
        for row in &rows {
            picture.snapshots.insert((id(row.try_get(0)?)?, id(row.try_get(1)?)?));
        }
    }
    Ok(picture)
}

fn known(row: &SqliteRow) -> Result<Known, Error> {
    let number = |index: usize| unsigned(row.try_get::<i64, _>(index)?);
    Ok(Known {
        account_id: id(row.try_get(1)?)?,
        identity: Identity {
            project_id: id(row.try_get(2)?)?,
            namespace: row.try_get(3)?,
            name: row.try_get(4)?,
            slug: row.try_get(5)?,
            lifetime: row.try_get(6)?,
            private_address: row.try_get(15)?,
            admits_peers: row.try_get(16)?,
        },
        footprint: Footprint {
            size: Pool { vcpu_count: number(7)?, memory_mib: number(8)?, disk_mib: number(9)? },
            runs: row.try_get(10)?,
        },
        incarnation: skerry_model::Incarnation(number(11)?),
        last_active_at: row.try_get::<Option<i64>, _>(12)?.map(time).transpose()?,
        needed_snapshot: row.try_get::<Option<&str>, _>(13)?.map(id).transpose()?,
        revision: number(14)?,
    })
}

async fn rename(db: &mut SqliteConnection, row: &WorkspaceRow) -> Result<(), Broken> {
    let record = &row.record;
    sqlx::query(
        "UPDATE workspaces SET project_id = ?, namespace = ?, name = ?, slug = ?, lifetime = ?, \
         private_address = ?, admits_peers = ? WHERE id = ?",
    )
    .bind(record.project_id.to_string())
    .bind(&record.namespace)
    .bind(record.name.as_str())
    .bind(record.slug.as_str())
    .bind(lifetime_word(record.spec.lifetime))
    .bind(record.private_address.map(|address| address.to_string()))
    .bind(record.spec.network.admits_peers())
    .bind(record.id.to_string())
    .execute(db)
    .await?;
    Ok(())
}

/// Binds a row's values in the order of [`COLUMNS`].
fn bind<'r>(
    row: &'r WorkspaceRow,
    to: &mut SqliteArguments<'r>,
) -> Result<(), sqlx::error::BoxDynError> {
    let record = &row.record;
    let Footprint { size, runs } = Footprint::of(record);
    to.add(record.id.to_string())?;
    to.add(record.account_id.to_string())?;
    to.add(record.project_id.to_string())?;
    to.add(&record.namespace)?;
    to.add(record.name.as_str())?;
    to.add(record.slug.as_str())?;
    to.add(lifetime_word(record.spec.lifetime))?;
    to.add(nanos(record.created_at))?;
    to.add(record.private_address.map(|address| address.to_string()))?;
    to.add(record.spec.network.admits_peers())?;
    to.add(signed(size.vcpu_count))?;
    to.add(signed(size.memory_mib))?;
    to.add(signed(size.disk_mib))?;
    to.add(record.desired.as_str())?;
    to.add(record.state.name())?;
    to.add(runs)?;
    to.add(signed(record.incarnation.0))?;
    to.add(signed(record.replace_through.0))?;
    to.add(i64::from(record.failed_starts))?;
    to.add(record.start_began_at.map(nanos))?;
    to.add(record.node_id.map(|node| node.to_string()))?;
    to.add(record.expires_at.map(nanos))?;
    to.add(record.last_active_at.map(nanos))?;
    to.add(row.due_at.map(nanos))?;
    to.add(record.needed_snapshot().map(|snapshot| snapshot.to_string()))?;
    to.add(&row.spec_json)?;
    to.add(&row.state_json)?;
    to.add(&row.lifecycle_json)?;
    to.add(&row.sealed)?;
    to.add(nanos(record.updated_at))?;
    to.add(signed(record.revision))
}
