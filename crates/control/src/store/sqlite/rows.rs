//! Reading workspaces.

use skerry_model::{AccountId, Workspace};
use sqlx::{QueryBuilder, Row as _, Sqlite as Db, sqlite::SqliteRow};

use crate::{
    Error, ListWorkspaces,
    store::{
        row::{WorkspaceColumns, lifetime_word},
        sealing::KeyRing,
    },
};

/// The columns a record is made from, in the order in which [`workspace_from`] reads them.
pub(super) const WORKSPACES: &str = "id, account_id, project_id, namespace, name, slug, desired, \
     incarnation, replace_through, failed_starts, start_began_at, node_id, expires_at, \
     last_active_at, spec_json, state_json, lifecycle_json, sealed, created_at, updated_at, \
     revision, private_address";

pub(super) fn workspace_from(row: &SqliteRow, keys: &KeyRing) -> Result<Workspace, Error> {
    WorkspaceColumns {
        id: row.try_get(0)?,
        account_id: row.try_get(1)?,
        project_id: row.try_get(2)?,
        namespace: row.try_get(3)?,
        name: row.try_get(4)?,
        slug: row.try_get(5)?,
        desired: row.try_get(6)?,
        incarnation: row.try_get(7)?,
        replace_through: row.try_get(8)?,
        failed_starts: row.try_get(9)?,
        start_began_at: row.try_get(10)?,
        node_id: row.try_get(11)?,
        expires_at: row.try_get(12)?,
        last_active_at: row.try_get(13)?,
        spec_json: row.try_get(14)?,
        state_json: row.try_get(15)?,
        lifecycle_json: row.try_get(16)?,
        sealed: row.try_get(17)?,
        created_at: row.try_get(18)?,
        updated_at: row.try_get(19)?,
        revision: row.try_get(20)?,
        private_address: row.try_get(21)?,
    }
    .record(keys)
}

/// Only columns of the index `workspaces_listing` occur in it.
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
