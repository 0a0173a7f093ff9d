//! The rules of a workspace's life: how long it lives, what happens when nobody uses it, when it ends
//! by itself and before it is deleted; and what a record remembers for them.

use serde::{Deserialize, Serialize};

use crate::{Failure, Invalid, SnapshotContents, SnapshotId, StartFrom, StartPath, Timestamp};

/// What happens when a workspace's time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpiryAction {
    /// It is stopped; the disk is kept.
    Stop,
    /// It is deleted.
    Delete,
    /// Its virtual CPUs are stopped; memory stays resident.
    Pause,
    /// Its memory goes to disk and its process ends.
    Suspend,
}

/// A time to live, counted from each moment the workspace becomes running. It goes on while the
/// workspace is paused and does not pass while there is no VM: the next start begins a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Expiry {
    /// Seconds, 1 to 31,536,000 (a year).
    pub after_seconds: u32,
    /// What then happens.
    pub action: ExpiryAction,
}

impl Expiry {
    /// The longest time to live: a year.
    pub const MAX_SECONDS: u32 = 31_536_000;

    /// Checks the range.
    ///
    /// # Errors
    /// [`Invalid`] with field `expiry`.
    pub fn check(self) -> Result<Self, Invalid> {
        in_range("expiry", self.after_seconds, 1, Self::MAX_SECONDS)?;
        Ok(self)
    }

    /// When the time is over if it began at `since`; the end of representable time at the latest.
    #[must_use]
    pub fn end_after(self, since: Timestamp) -> Timestamp {
        after(since, self.after_seconds)
    }
}

/// What happens to a workspace nobody uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdleAction {
    /// It is stopped; the disk is kept.
    Stop,
    /// Its virtual CPUs are stopped; memory stays resident.
    Pause,
    /// Its memory goes to disk and its process ends.
    Suspend,
}

/// When a workspace counts as idle, and what then happens. Calls to its inside and sessions that are
/// open are use; work that goes on inside without anybody connected is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdlePolicy {
    /// Seconds without use, 1 to 31,536,000 (a year).
    pub after_seconds: u32,
    /// What then happens.
    pub action: IdleAction,
    /// How many seconds the memory of a workspace that this policy paused or suspended is kept; then
    /// it is stopped, and its next start boots. 1 to 31,536,000; `None` keeps it for good.
    #[serde(default)]
    pub discard_memory_after_seconds: Option<u32>,
}

impl IdlePolicy {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Invalid`] with field `idle`.
    pub fn check(self) -> Result<Self, Invalid> {
        in_range("idle", self.after_seconds, 1, Expiry::MAX_SECONDS)?;
        if let Some(kept) = self.discard_memory_after_seconds {
            in_range("idle", kept, 1, Expiry::MAX_SECONDS)?;
        }
        Ok(self)
    }
}

/// After which ends a VM is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartMode {
    /// After none.
    #[default]
    Never,
    /// When it died or was lost with its host.
    OnFailure,
    /// Also when the guest powered off or rebooted.
    Always,
}

/// How long to wait before a restart: doubled for each one in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Backoff {
    /// Before the first one: seconds, 0 to 3,600.
    pub first_seconds: u32,
    /// Never longer than this: seconds, `first_seconds` to 3,600.
    pub most_seconds: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first_seconds: 1, most_seconds: 300 }
    }
}

impl Backoff {
    const MAX_SECONDS: u32 = 3600;

    /// Seconds before the restart with this number, counted from 1.
    #[must_use]
    pub fn seconds_before(self, restart: u32) -> u32 {
        let doublings = restart.saturating_sub(1).min(31);
        let doubled = self.first_seconds.checked_shl(doublings).unwrap_or(u32::MAX);
        // A shift that lost bits is beyond the longest pause too.
        let lost = doubled >> doublings != self.first_seconds;
        if lost { self.most_seconds } else { doubled.min(self.most_seconds) }
    }
}

/// What happens when the VM of a workspace that should run ends without being asked. A start that a request asked for is never repeated
/// by this policy; one that this policy made is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// After which ends.
    pub mode: RestartMode,
    /// How many restarts in a row at most; 0 means without limit. The count begins anew with a start
    /// that a request asked for, and after a VM that ran for [`RestartPolicy::STEADY_SECONDS`].
    #[serde(default)]
    pub max_restarts: u32,
    /// The pauses between them.
    #[serde(default)]
    pub backoff: Backoff,
}

impl RestartPolicy {
    /// A VM that ran this long does not continue a series of restarts: ten minutes.
    pub const STEADY_SECONDS: i64 = 600;

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Invalid`] with field `restart`.
    pub fn check(self) -> Result<Self, Invalid> {
        in_range("restart", self.backoff.most_seconds, 0, Backoff::MAX_SECONDS)?;
        in_range("restart", self.backoff.first_seconds, 0, self.backoff.most_seconds)?;
        Ok(self)
    }
}

/// The snapshot that a deletion takes before it removes anything.
///
/// A deletion that a request asked for goes on when the snapshot fails: somebody is there to read why,
/// and a workspace must never resist its deletion. One that nobody watches (an expiry, an exit) then
/// stops the workspace instead, so that what was to be kept is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SnapshotOnTerminate {
    /// The snapshot's name; `None`: made from the workspace's.
    pub name: Option<String>,
    /// What it has to contain. Without a running or paused VM it is the disk alone.
    pub contents: SnapshotContents,
}

/// Who or what decided that a workspace should be as it is desired, or ended its VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A request of the tenant's.
    #[default]
    User,
    /// Whoever runs the server, who stops everything.
    Operator,
    /// The time to live was over.
    Expiry,
    /// The idle policy.
    Idle,
    /// Somebody used it while it slept.
    AutoResume,
    /// The restart policy.
    RestartPolicy,
    /// The VM ended by itself and the workspace is removed on exit.
    RemoveOnExit,
    /// The guest powered off or rebooted.
    GuestExit,
    /// The VM died.
    Crash,
    /// The VM was no longer on its node: the host was restarted.
    Lost,
    /// The start failed.
    StartFailed,
}

impl Cause {
    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Operator => "operator",
            Self::Expiry => "expiry",
            Self::Idle => "idle",
            Self::AutoResume => "auto_resume",
            Self::RestartPolicy => "restart_policy",
            Self::RemoveOnExit => "remove_on_exit",
            Self::GuestExit => "guest_exit",
            Self::Crash => "crash",
            Self::Lost => "lost",
            Self::StartFailed => "start_failed",
        }
    }

    /// Whether somebody waits for what was asked, and reads what became of it.
    #[must_use]
    pub const fn is_attended(self) -> bool {
        match self {
            Self::User | Self::Operator | Self::AutoResume => true,
            Self::Expiry
            | Self::Idle
            | Self::RestartPolicy
            | Self::RemoveOnExit
            | Self::GuestExit
            | Self::Crash
            | Self::Lost
            | Self::StartFailed => false,
        }
    }
}

/// The last end of a VM (a suspension is one too; a pause is not).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastEnd {
    /// Why.
    pub cause: Cause,
    /// When it was noticed.
    pub at: Timestamp,
}

/// How far the snapshot before a deletion is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum FinalSnapshot {
    /// Not begun.
    #[default]
    NotBegun,
    /// To be taken under this identifier.
    Begun {
        /// Its identifier.
        snapshot_id: SnapshotId,
    },
    /// Taken, or given up: the deletion goes on.
    Settled,
}

/// What a record remembers of its starts and for the rules of its life. Stored as one value; what an
/// older server did not know is at its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lifecycle {
    /// What the start under way, or else the next one, begins with.
    pub start_from: StartFrom,
    /// How the VM there is, or else the last one, came to run; `None` while it is brought up and
    /// where the node does not know.
    pub start_path: Option<StartPath>,
    /// Whether the workspace has a disk of its own already: a start has succeeded.
    pub has_disk: bool,
    /// Who decided what is desired now.
    pub desired_by: Cause,
    /// How the last VM ended.
    pub last_end: Option<LastEnd>,
    /// Since when it is paused or suspended.
    pub resting_since: Option<Timestamp>,
    /// When the restart policy starts it again.
    pub restart_at: Option<Timestamp>,
    /// How many restarts in a row the policy has made.
    pub restart_count: u32,
    /// Why the last pause or suspension did not come about; gone with the next wish or start.
    pub rest_failure: Option<Failure>,
    /// The snapshot before the deletion.
    pub final_snapshot: FinalSnapshot,
}

/// A rule that acts at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timer {
    /// The time to live is over.
    Expiry,
    /// The restart policy starts it again.
    Restart,
    /// Nobody has used it for long enough.
    Idle,
    /// Its memory was kept for long enough.
    DiscardMemory,
}

/// `seconds` after `since`; the end of representable time at the latest.
pub(crate) fn after(since: Timestamp, seconds: u32) -> Timestamp {
    let length = jiff::SignedDuration::from_secs(i64::from(seconds));
    since.saturating_add(length).unwrap_or(Timestamp::MAX)
}

fn in_range(field: &'static str, seconds: u32, min: u32, max: u32) -> Result<(), Invalid> {
    if (min..=max).contains(&seconds) {
        return Ok(());
    }
    Err(Invalid {
        field,
        problem: format!("{seconds} is out of range"),
        allowed: format!("{min} to {max} seconds"),
    })
}
