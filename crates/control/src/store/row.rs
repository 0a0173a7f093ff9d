//! Between a workspace and its row, for any database: what is a column of its own, what is JSON and
//! what is sealed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use skerry_model::{
    Desired, DisplayName, EnvVar, Incarnation, Lifecycle, Lifetime, PrivateAddress,
    ProxyCredentials, Secret, Slug, State, Workloads, Workspace, WorkspaceId, WorkspaceSpec,
};

use super::sealing::KeyRing;
use crate::Error;

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

pub(super) fn address(text: &str) -> Result<PrivateAddress, Error> {
    text.parse().map_err(Error::internal)
}

pub(super) const fn lifetime_word(lifetime: Lifetime) -> &'static str {
    match lifetime {
        Lifetime::Permanent => "permanent",
        Lifetime::Temporary => "temporary",
    }
}

pub(super) fn desired(word: &str) -> Result<Desired, Error> {
    Ok(match word {
        "running" => Desired::Running,
        "paused" => Desired::Paused,
        "suspended" => Desired::Suspended,
        "stopped" => Desired::Stopped,
        "deleted" => Desired::Deleted,
        other => return Err(Error::internal(format!("desired is {other:?} in the store"))),
    })
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(Error::internal)
}

pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(Error::internal)
}

/// What a row keeps sealed.
#[derive(Serialize)]
struct Sealed<'a> {
    env: &'a [EnvVar],
    preview_token: &'a str,
    /// Their commands and variables may hold secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    workloads: Option<&'a Workloads>,
    /// What its own proxy is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<SealedProxy<'a>>,
}

#[derive(Serialize)]
struct SealedProxy<'a> {
    username: &'a str,
    password: &'a str,
}

/// The same, opened.
#[derive(Deserialize)]
struct Opened {
    env: Vec<EnvVar>,
    preview_token: String,
    #[serde(default)]
    workloads: Workloads,
    #[serde(default)]
    proxy: Option<OpenedProxy>,
}

#[derive(Deserialize)]
struct OpenedProxy {
    username: String,
    password: String,
}

impl OpenedProxy {
    fn credentials(self) -> ProxyCredentials {
        ProxyCredentials { username: self.username, password: Secret::new(self.password) }
    }
}

/// Whose secrets these are, so that they open in no other row.
fn owner(id: WorkspaceId) -> String {
    format!("workspace {id}")
}

/// Seals what a workspace keeps secret.
pub(super) fn seal_secrets(
    id: WorkspaceId,
    env: &[EnvVar],
    workloads: &Workloads,
    proxy: Option<&ProxyCredentials>,
    preview_token: &str,
    keys: &KeyRing,
) -> Result<Vec<u8>, Error> {
    let workloads = workloads.were_ever().then_some(workloads);
    let proxy =
        proxy.map(|own| SealedProxy { username: &own.username, password: own.password.expose() });
    let sealed = Sealed { env, preview_token, workloads, proxy };
    let plain = serde_json::to_vec(&sealed).map_err(Error::internal)?;
    keys.seal(&owner(id), &plain)
}

/// Opens what a workspace keeps secret and seals it with the current key.
pub(super) fn seal_again(id: WorkspaceId, sealed: &[u8], keys: &KeyRing) -> Result<Vec<u8>, Error> {
    keys.seal(&owner(id), &keys.open_sealed(&owner(id), sealed)?)
}

/// A workspace as it is written: whatever takes computing is done before it waits for its turn.
#[derive(Debug)]
pub(super) struct WorkspaceRow {
    pub(super) record: Workspace,
    pub(super) due_at: Option<Timestamp>,
    pub(super) spec_json: String,
    pub(super) state_json: String,
    pub(super) lifecycle_json: String,
    pub(super) sealed: Vec<u8>,
}

impl WorkspaceRow {
    pub(super) fn of(mut record: Workspace, keys: &KeyRing) -> Result<Self, Error> {
        let token = record.preview_token.expose();
        let spec = &record.spec;
        let proxy = spec.network.outbound.credentials();
        let sealed = seal_secrets(record.id, &spec.env, &spec.workloads, proxy, token, keys)?;
        // What is sealed is not written twice, and the second time for everybody to read.
        let env = std::mem::take(&mut record.spec.env);
        let workloads = std::mem::take(&mut record.spec.workloads);
        let spec_json = json(&record.spec);
        (record.spec.env, record.spec.workloads) = (env, workloads);
        Ok(Self {
            due_at: record.due_at(),
            spec_json: spec_json?,
            state_json: json(&record.state)?,
            lifecycle_json: json(&record.lifecycle)?,
            sealed,
            record,
        })
    }

    /// Keeps a later use than the record knows of: use does not count as a change of the record, so
    /// it may have been noted since that was read.
    pub(super) fn keep_activity(&mut self, noted: Timestamp) {
        if self.record.last_active_at.is_none_or(|known| known < noted) {
            self.record.last_active_at = Some(noted);
            self.due_at = self.record.due_at();
        }
    }
}

/// A row as it was read.
pub(super) struct WorkspaceColumns<'r> {
    pub(super) id: &'r str,
    pub(super) account_id: &'r str,
    pub(super) project_id: &'r str,
    pub(super) namespace: Option<String>,
    pub(super) name: &'r str,
    pub(super) slug: &'r str,
    pub(super) desired: &'r str,
    pub(super) incarnation: i64,
    pub(super) replace_through: i64,
    pub(super) failed_starts: i64,
    pub(super) start_began_at: Option<i64>,
    pub(super) node_id: Option<&'r str>,
    pub(super) private_address: Option<&'r str>,
    pub(super) expires_at: Option<i64>,
    pub(super) last_active_at: Option<i64>,
    pub(super) spec_json: &'r str,
    pub(super) state_json: &'r str,
    pub(super) lifecycle_json: &'r str,
    pub(super) sealed: &'r [u8],
    pub(super) created_at: i64,
    pub(super) updated_at: i64,
    pub(super) revision: i64,
}

impl WorkspaceColumns<'_> {
    /// The record.
    pub(super) fn record(self, keys: &KeyRing) -> Result<Workspace, Error> {
        let id: WorkspaceId = id(self.id)?;
        let opened = keys.open_sealed(&owner(id), self.sealed)?;
        // The words of a parser may repeat what they could not read.
        let opened: Opened = serde_json::from_slice(&opened).map_err(|_| {
            Error::internal("the secrets of a workspace are not as they were written")
        })?;
        let mut spec: WorkspaceSpec = parse(self.spec_json)?;
        (spec.env, spec.workloads) = (opened.env, opened.workloads);
        spec.network.outbound.restore(opened.proxy.map(OpenedProxy::credentials));
        Ok(Workspace {
            id,
            account_id: self::id(self.account_id)?,
            project_id: self::id(self.project_id)?,
            namespace: self.namespace,
            name: DisplayName::parse(self.name).map_err(Error::internal)?,
            slug: Slug::parse(self.slug).map_err(Error::internal)?,
            spec,
            desired: desired(self.desired)?,
            state: parse::<State>(self.state_json)?,
            incarnation: Incarnation(unsigned(self.incarnation)?),
            replace_through: Incarnation(unsigned(self.replace_through)?),
            failed_starts: u32::try_from(self.failed_starts).map_err(Error::internal)?,
            start_began_at: self.start_began_at.map(time).transpose()?,
            node_id: self.node_id.map(self::id).transpose()?,
            private_address: self.private_address.map(address).transpose()?,
            expires_at: self.expires_at.map(time).transpose()?,
            last_active_at: self.last_active_at.map(time).transpose()?,
            lifecycle: parse::<Lifecycle>(self.lifecycle_json)?,
            preview_token: Secret::new(opened.preview_token),
            created_at: time(self.created_at)?,
            updated_at: time(self.updated_at)?,
            revision: unsigned(self.revision)?,
        })
    }
}
