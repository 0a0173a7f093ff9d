//! What accounts use: sums that are kept, so that admitting a workspace does not add up all others.

use skerry_model::{AccountId, Pool, Usage};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{picture::UsageChange, writer::Broken};
use crate::{Error, store::row::unsigned};

/// The columns of an account's use, in the order in which [`from_row`] reads them.
pub(super) const USAGE_COLUMNS: &str = "workspaces, owned_vcpu_count, owned_memory_mib, \
     owned_disk_mib, running_vcpu_count, running_memory_mib, running_disk_mib, snapshots, \
     snapshot_bytes";

/// The same, added up from the records.
const COUNTED: &str = "SELECT account_id, sum(workspaces), sum(owned_vcpu_count), \
     sum(owned_memory_mib), sum(owned_disk_mib), sum(running_vcpu_count), \
     sum(running_memory_mib), sum(running_disk_mib), sum(snapshots), sum(snapshot_bytes) FROM ( \
     SELECT account_id, 1 AS workspaces, vcpu_count AS owned_vcpu_count, \
     memory_mib AS owned_memory_mib, disk_mib AS owned_disk_mib, \
     vcpu_count * runs AS running_vcpu_count, memory_mib * runs AS running_memory_mib, \
     disk_mib * runs AS running_disk_mib, 0 AS snapshots, 0 AS snapshot_bytes FROM workspaces \
     UNION ALL SELECT account_id, 0, 0, 0, 0, 0, 0, 0, purpose <> 'fork', size_bytes \
     FROM snapshots) GROUP BY account_id";

pub(super) fn from_row(row: &SqliteRow) -> Result<Usage, Error> {
    let number = |index: usize| unsigned(row.try_get::<i64, _>(index)?);
    let pool = |first: usize| -> Result<Pool, Error> {
        Ok(Pool {
            vcpu_count: number(first)?,
            memory_mib: number(first + 1)?,
            disk_mib: number(first + 2)?,
        })
    };
    Ok(Usage {
        workspaces: number(0)?,
        owned: pool(1)?,
        running: pool(4)?,
        snapshots: number(7)?,
        snapshot_bytes: number(8)?,
    })
}

/// The account's use as it is kept.
pub(super) async fn of(db: &mut SqliteConnection, account_id: AccountId) -> Result<Usage, Error> {
    let text = format!("SELECT {USAGE_COLUMNS} FROM account_usage WHERE account_id = ?");
    let row = sqlx::query(&text).bind(account_id.to_string()).fetch_optional(db).await?;
    // An account that never had anything has no row.
    row.as_ref().map_or_else(|| Ok(Usage::default()), from_row)
}

/// Adds what workspaces change of an account's use.
pub(super) async fn change(
    db: &mut SqliteConnection,
    account_id: AccountId,
    change: UsageChange,
) -> Result<(), Broken> {
    sqlx::query(
        "INSERT INTO account_usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0) \
         ON CONFLICT (account_id) DO UPDATE SET workspaces = workspaces + excluded.workspaces, \
         owned_vcpu_count = owned_vcpu_count + excluded.owned_vcpu_count, \
         owned_memory_mib = owned_memory_mib + excluded.owned_memory_mib, \
         owned_disk_mib = owned_disk_mib + excluded.owned_disk_mib, \
         running_vcpu_count = running_vcpu_count + excluded.running_vcpu_count, \
         running_memory_mib = running_memory_mib + excluded.running_memory_mib, \
         running_disk_mib = running_disk_mib + excluded.running_disk_mib",
    )
    .bind(account_id.to_string())
    .bind(change.workspaces)
    .bind(change.owned.vcpu_count)
    .bind(change.owned.memory_mib)
    .bind(change.owned.disk_mib)
    .bind(change.running.vcpu_count)
    .bind(change.running.memory_mib)
    .bind(change.running.disk_mib)
    .execute(db)
    .await?;
    Ok(())
}

/// Adds what snapshots change of an account's use.
pub(super) async fn change_snapshots(
    db: &mut SqliteConnection,
    account_id: AccountId,
    count: i64,
    bytes: i64,
) -> Result<(), Broken> {
    sqlx::query(
        "INSERT INTO account_usage VALUES (?, 0, 0, 0, 0, 0, 0, 0, ?, ?) \
         ON CONFLICT (account_id) DO UPDATE SET snapshots = snapshots + excluded.snapshots, \
         snapshot_bytes = snapshot_bytes + excluded.snapshot_bytes",
    )
    .bind(account_id.to_string())
    .bind(count)
    .bind(bytes)
    .execute(db)
    .await?;
    Ok(())
}

/// Adds everything up and puts right what is kept; answers for how many accounts it was wrong.
pub(super) async fn recount(db: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let removed = sqlx::query(&format!(
        "DELETE FROM account_usage WHERE account_id IN (SELECT account_id FROM (          SELECT * FROM account_usage          WHERE ({USAGE_COLUMNS}) <> (0, 0, 0, 0, 0, 0, 0, 0, 0) EXCEPT {COUNTED}))"
    ))
    .execute(&mut *db)
    .await?;
    let added = sqlx::query(&format!(
        "INSERT OR REPLACE INTO account_usage          SELECT * FROM ({COUNTED}) EXCEPT SELECT * FROM account_usage"
    ))
    .execute(&mut *db)
    .await?;
    Ok(removed.rows_affected().max(added.rows_affected()))
}
