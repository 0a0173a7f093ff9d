//! What the policies of an account's VMs follow from.

use skerry_model::{AccountId, Neighbour, Neighbourhood, NetworkWish, PrivateAddress, WorkspaceId};
use sqlx::{Row as _, SqlitePool, sqlite::SqliteRow};

use crate::{
    Error,
    store::row::{address, id, parse},
};

pub(super) async fn admits_anybody(
    readers: &SqlitePool,
    account_id: AccountId,
) -> Result<bool, Error> {
    let text = "SELECT EXISTS (SELECT 1 FROM workspaces WHERE account_id = ? AND admits_peers = 1)";
    Ok(sqlx::query_scalar(text).bind(account_id.to_string()).fetch_one(readers).await?)
}

pub(super) async fn neighbourhood(
    readers: &SqlitePool,
    account_id: AccountId,
) -> Result<Neighbourhood, Error> {
    let rows = sqlx::query(
        "SELECT id, private_address, \
         CASE admits_peers WHEN 1 THEN json_extract(spec_json, '$.network') END FROM workspaces \
         WHERE account_id = ? AND private_address IS NOT NULL AND state <> 'deleting'",
    )
    .bind(account_id.to_string())
    .fetch_all(readers)
    .await?;
    Ok(Neighbourhood(rows.iter().map(neighbour).collect::<Result<_, Error>>()?))
}

fn neighbour(row: &SqliteRow) -> Result<(WorkspaceId, Neighbour), Error> {
    let wish: Option<&str> = row.try_get(2)?;
    let wish = wish.map_or_else(|| Ok(NetworkWish::default()), parse)?;
    let address = address(row.try_get(1)?)?;
    Ok((id(row.try_get(0)?)?, Neighbour { address, wish }))
}

pub(super) async fn workspaces_at(
    readers: &SqlitePool,
    address: PrivateAddress,
) -> Result<Vec<WorkspaceId>, Error> {
    sqlx::query("SELECT id FROM workspaces WHERE private_address = ? ORDER BY seq")
        .bind(address.to_string())
        .fetch_all(readers)
        .await?
        .iter()
        .map(|row| id(row.try_get(0)?))
        .collect()
}
