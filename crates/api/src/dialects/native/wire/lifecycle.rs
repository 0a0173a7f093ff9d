//! The rules of a workspace's life, and what its record remembers for them.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::{Expiry, ExpiryAction, Lifetime, SnapshotContents};

/// What happens to a workspace nobody uses. Calls to its inside and sessions that are open are use;
/// work that goes on inside without anybody connected is not.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IdlePolicy {
    /// Seconds without use.
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub after_seconds: u32,
    /// What then happens.
    pub action: IdleAction,
    /// How long the memory of a workspace that was paused or suspended by this policy is kept, in
    /// seconds; then it is stopped. Absent: for good.
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub discard_memory_after_seconds: Option<u32>,
}

/// What happens to a workspace nobody uses.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdleAction {
    /// It is stopped; its disk is kept.
    Stop,
    /// Its virtual CPUs are stopped; memory stays resident.
    Pause,
    /// Its memory goes to disk and its VM ends.
    Suspend,
}

/// What happens when the VM ends without being asked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestartPolicy {
    /// After which ends it is started again.
    pub mode: RestartMode,
    /// How many restarts in a row at most; 0 or absent: without limit. The count begins anew with a
    /// start that was asked for and after a VM that ran for ten minutes.
    #[serde(default)]
    pub max_restarts: u32,
    /// The pauses between them; absent: 1 s, doubled up to 300 s.
    pub backoff: Option<Backoff>,
}

/// After which ends a VM is started again.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartMode {
    /// After none.
    Never,
    /// When it died or was lost with its host.
    OnFailure,
    /// Also when the guest powered off or rebooted.
    Always,
}

/// The pause before a restart, doubled for each one in a row.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Backoff {
    /// Before the first one, in seconds.
    #[schema(maximum = 3600)]
    pub first_seconds: u32,
    /// Never longer than this, in seconds; at least `first_seconds`.
    #[schema(maximum = 3600)]
    pub most_seconds: u32,
}

/// The snapshot that a deletion takes first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotOnTerminate {
    /// The snapshot's name; absent: made from the workspace's.
    #[schema(min_length = 1, max_length = 255)]
    pub name: Option<String>,
    /// What it contains; absent: disk and memory. Without a VM it is the disk alone.
    pub contents: Option<SnapshotContents>,
}

/// What a workspace's disk was made from.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// Its image.
    Image,
    /// A snapshot, which may be gone by now.
    Snapshot {
        /// Which: a UUID.
        snapshot_id: String,
    },
}

/// What the record remembers for the rules of the workspace's life.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LifecycleStatus {
    /// Who or what decided what is desired now: `user`, `operator`, `expiry`, `idle`, `auto_resume`,
    /// `restart_policy`, `remove_on_exit`, `guest_exit`, `crash`, `lost` or `start_failed`.
    pub desired_by: &'static str,
    /// How the last VM ended.
    pub last_end: Option<LastEnd>,
    /// When somebody last used the workspace, to the minute.
    #[schema(format = DateTime, value_type = Option<String>)]
    pub last_active_at: Option<String>,
    /// Since when it is paused or suspended.
    #[schema(format = DateTime, value_type = Option<String>)]
    pub resting_since: Option<String>,
    /// When the idle policy acts if nobody uses it before.
    #[schema(format = DateTime, value_type = Option<String>)]
    pub idle_at: Option<String>,
    /// When the restart policy starts it again.
    #[schema(format = DateTime, value_type = Option<String>)]
    pub restart_at: Option<String>,
    /// When the memory that is kept is discarded.
    #[schema(format = DateTime, value_type = Option<String>)]
    pub discard_memory_at: Option<String>,
    /// How many restarts in a row the restart policy has made.
    pub restart_count: u32,
    /// Why the last pause or suspension did not come about.
    pub rest_failure: Option<super::Failure>,
}

/// The end of a VM.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LastEnd {
    /// Why, in the words of `desired_by`.
    pub cause: &'static str,
    /// When it was noticed.
    #[schema(format = DateTime)]
    pub at: String,
}

/// Which rules to change. What is absent stays; `null` takes a rule away where that is possible.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeLifecycle {
    /// Permanent or temporary.
    pub lifetime: Option<Lifetime>,
    /// Time to live; it begins now. `null`: none.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Expiry>)]
    pub expiry: Option<Option<Expiry>>,
    /// Another action for the time to live there is, whose end stays. Not together with `expiry`.
    pub expiry_action: Option<ExpiryAction>,
    /// Idle policy. `null`: none.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<IdlePolicy>)]
    pub idle: Option<Option<IdlePolicy>>,
    /// Restart policy.
    pub restart: Option<RestartPolicy>,
    /// Whether it is deleted when its VM ends by itself.
    pub remove_on_exit: Option<bool>,
    /// The snapshot that a deletion takes first. `null`: none.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<SnapshotOnTerminate>)]
    pub snapshot_on_terminate: Option<Option<SnapshotOnTerminate>>,
    /// Whether using its inside wakes it.
    pub auto_resume: Option<bool>,
    /// Exempt from the idle policy.
    pub keep_active: Option<bool>,
}

/// Tells `null` from what is absent.
fn given<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}

/// How to renew a time to live: at most one of the three. With none it begins anew, with its own length.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewExpiry {
    /// It begins anew with this length, this once.
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub after_seconds: Option<u32>,
    /// It ends this much later than it would.
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub by_seconds: Option<u32>,
    /// It ends then: RFC 3339, in the future.
    #[schema(format = DateTime, value_type = Option<String>)]
    pub at: Option<String>,
}
