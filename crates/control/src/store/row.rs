//! Between a workspace and its row.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use skerry_model::{
    Desired, DisplayName, Incarnation, Lifetime, Secret, Slug, State, Workspace, WorkspaceSpec,
};
use sqlx::{Row, sqlite::SqliteRow};

use crate::Error;

/// The columns of a workspace, in the order of [`from_row`]'s reading.
pub(super) const COLUMNS: &str = "id, account_id, project_id, namespace, name, slug, desired, \
     incarnation, replace_through, failed_starts, start_began_at, node_id, expires_at, \
     preview_token, spec_json, state_json, created_at, updated_at, revision";

/// Nanoseconds since 1970: until the year 2262, beyond which a time is stored as that limit.
pub(super) fn nanos(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(if at > Timestamp::UNIX_EPOCH {
        i64::MAX
    } else {
        i64::MIN
    })
}

pub(super) fn time(nanos: i64) -> Result<Timestamp, Error> {
    Timestamp::from_nanosecond(i128::from(nanos)).map_err(Error::internal)
}

/// A column's whole number as ours; the database knows only signed ones.
pub(super) fn unsigned(number: i64) -> Result<u64, Error> {
    u64::try_from(number).map_err(Error::internal)
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn id<T: std::str::FromStr<Err = uuid::Error>>(text: &str) -> Result<T, Error> {
    text.parse().map_err(Error::internal)
}

pub(super) const fn desired_word(desired: Desired) -> &'static str {
    match desired {
        Desired::Running => "running",
        Desired::Stopped => "stopped",
        Desired::Deleted => "deleted",
    }
}

pub(super) const fn lifetime_word(lifetime: Lifetime) -> &'static str {
    match lifetime {
        Lifetime::Permanent => "permanent",
        Lifetime::Temporary => "temporary",
    }
}

pub(super) fn json<T: serde::Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(Error::internal)
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(Error::internal)
}

pub(super) fn from_row(row: &SqliteRow) -> Result<Workspace, Error> {
    let text = |column: &str| row.try_get::<String, _>(column);
    let number = |column: &str| row.try_get::<i64, _>(column);
    let optional_time = |column: &str| -> Result<Option<Timestamp>, Error> {
        row.try_get::<Option<i64>, _>(column)?.map(time).transpose()
    };
    let node_id: Option<String> = row.try_get("node_id")?;
    Ok(Workspace {
        id: id(&text("id")?)?,
        account_id: id(&text("account_id")?)?,
        project_id: id(&text("project_id")?)?,
        namespace: row.try_get("namespace")?,
        name: DisplayName::parse(&text("name")?).map_err(Error::internal)?,
        slug: Slug::parse(&text("slug")?).map_err(Error::internal)?,
        spec: parse::<WorkspaceSpec>(&text("spec_json")?)?,
        desired: match text("desired")?.as_str() {
            "running" => Desired::Running,
            "stopped" => Desired::Stopped,
            "deleted" => Desired::Deleted,
            other => return Err(Error::internal(format!("desired is {other:?} in the store"))),
        },
        state: parse::<State>(&text("state_json")?)?,
        incarnation: Incarnation(unsigned(number("incarnation")?)?),
        replace_through: Incarnation(unsigned(number("replace_through")?)?),
        failed_starts: u32::try_from(number("failed_starts")?).map_err(Error::internal)?,
        start_began_at: optional_time("start_began_at")?,
        node_id: node_id.as_deref().map(id).transpose()?,
        expires_at: optional_time("expires_at")?,
        preview_token: Secret::new(text("preview_token")?),
        created_at: time(number("created_at")?)?,
        updated_at: time(number("updated_at")?)?,
        revision: unsigned(number("revision")?)?,
    })
}
