//! Volumes: file systems that outlive workspaces. The record of one, its small state machine, what to
//! do next with it, and how a workspace has one mounted.
//!
//! ```text
//!   creating ──made──▶ ready ◀──found again── failed
//!      │                 │ └──lost──▶ failed    ▲
//!      └──────failed─────┼─────────────────────┘
//!   every state ──deletion begun──▶ deleting ──▶ (the record is gone)
//! ```
//!
//! A volume belongs to an account. At most one workspace has it mounted for writing, and then no other
//! has it mounted; for reading, as many as like. A workspace that is stopped or suspended still has
//! what it has mounted.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    AccountId, CheckpointId, DisplayName, Failure, FailureCode, Invalid, Timestamp, VolumeId,
    WorkspaceId,
};

const MIB: u64 = 1024 * 1024;

/// The least a volume may have, MiB: a file system with a journal needs some room for itself.
pub const MIN_VOLUME_MIB: u64 = 16;
/// The most, MiB: what a disk's table of clusters can address.
pub const MAX_VOLUME_MIB: u64 = 4 * 1024 * 1024;

/// One of the places of a machine for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct VolumeSlot(u8);

impl VolumeSlot {
    /// How many a machine has: so many volumes a workspace can have at a time.
    pub const COUNT: u8 = 4;

    /// The slot of this number, counted from 0.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// The serial number of the slot's disk, by which the guest finds it.
    #[must_use]
    pub fn device_serial(self) -> String {
        format!("volume-{self}")
    }
}

impl fmt::Display for VolumeSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u8> for VolumeSlot {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        Self::new(number).ok_or_else(|| format!("there is no slot {number}"))
    }
}

impl From<VolumeSlot> for u8 {
    fn from(slot: VolumeSlot) -> Self {
        slot.0
    }
}

/// What a workspace may do with a volume it has mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountMode {
    /// Read and write.
    ReadWrite,
    /// Read what was there when its VM started, or when the volume was attached to a running one.
    ReadOnly,
}

impl MountMode {
    /// The stable word, also that of the APIs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadWrite => "rw",
            Self::ReadOnly => "ro",
        }
    }

    /// The mode of this word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::ReadWrite, Self::ReadOnly].into_iter().find(|mode| mode.as_str() == word)
    }
}

/// Where in a workspace a volume is mounted: an absolute path of at most 255 bytes without `.`, `..`,
/// empty parts and control characters, and not one that the guest needs for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MountPath(String);

/// Nothing is mounted here or below: the kernel's views, and what the agent keeps there.
const RESERVED_TREES: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];
/// Nothing is mounted here itself: the guest would lose its programs.
const RESERVED: [&str; 12] = [
    "/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/root", "/sbin", "/tmp",
    "/usr", "/var",
];

impl MountPath {
    /// The most bytes of a path.
    pub const MAX_BYTES: usize = 255;

    /// Checks a path; a slash at its end is cut off.
    ///
    /// # Errors
    /// `mount_path`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let refused = |problem: &str| Invalid {
            field: "mount_path",
            problem: problem.to_owned(),
            allowed: format!(
                "an absolute path of at most {} bytes, outside of what the system needs",
                Self::MAX_BYTES
            ),
        };
        let path = text.strip_suffix('/').unwrap_or(text);
        let Some(relative) = path.strip_prefix('/') else {
            return Err(refused("is not absolute, or is the root"));
        };
        if path.len() > Self::MAX_BYTES {
            return Err(refused("is too long"));
        }
        if relative.chars().any(char::is_control) {
            return Err(refused("has control characters"));
        }
        if relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(refused("has empty parts, or leads upwards"));
        }
        let reserved = RESERVED.contains(&path)
            || RESERVED_TREES
                .iter()
                .any(|tree| path == *tree || path.starts_with(&format!("{tree}/")));
        if reserved {
            return Err(refused("is a place the system needs"));
        }
        Ok(Self(path.to_owned()))
    }

    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether one is the other, or lies below it.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let below = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        below(&self.0, &other.0) || below(&other.0, &self.0)
    }
}

impl fmt::Display for MountPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for MountPath {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<MountPath> for String {
    fn from(path: MountPath) -> Self {
        path.0
    }
}

/// A volume that a workspace has mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Which.
    pub volume_id: VolumeId,
    /// In which of the machine's slots.
    pub slot: VolumeSlot,
    /// Where in the guest.
    pub path: MountPath,
    /// For what.
    pub mode: MountMode,
    /// Which of its checkpoints, to be read; `None`: the volume as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_id: Option<CheckpointId>,
}

/// A mount, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The workspace that has it.
    pub workspace_id: WorkspaceId,
    /// What it has.
    pub mount: VolumeMount,
}

/// How far a volume is in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountProgress {
    /// The guest has it mounted.
    Mounted,
    /// It was on its way in or out when that was broken off.
    Unsettled,
}

/// A volume that a VM has, or may have, as its node says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldMount {
    /// What it has.
    pub mount: VolumeMount,
    /// How far it is.
    pub progress: MountProgress,
}

/// The next step towards a VM having the volumes of its workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountStep {
    /// Have the node take this out of the VM.
    Detach(VolumeId),
    /// Have the node put this into the VM (a repetition is harmless).
    Attach(VolumeMount),
    /// The VM has what it should have.
    Nothing,
}

/// Decides the next step from what a workspace should have and from what its running VM has. Pure and
/// total: what should not be there goes first, so that the place is free for what should.
#[must_use]
pub fn next_mount_step(wished: &[VolumeMount], held: &[HeldMount]) -> MountStep {
    if let Some(strange) = held.iter().find(|held| !wished.contains(&held.mount)) {
        return MountStep::Detach(strange.mount.volume_id);
    }
    let is_mounted = |wish: &VolumeMount| {
        held.iter().any(|held| held.mount == *wish && held.progress == MountProgress::Mounted)
    };
    match wished.iter().find(|wish| !is_mounted(wish)) {
        Some(missing) => MountStep::Attach(missing.clone()),
        None => MountStep::Nothing,
    }
}

/// Why a volume cannot be attached now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachRefusal {
    /// Somebody has it for writing.
    HasWriter(WorkspaceId),
    /// It was asked for writing and somebody reads it.
    HasReader(WorkspaceId),
    /// The workspace has it already.
    Already,
    /// The workspace has a volume there, or above or below that place.
    PathTaken,
    /// The workspace has as many as it can have.
    NoSlot,
}

/// Decides whether and in which slot a workspace gets a volume. `of_volume` is who has the volume,
/// `of_workspace` what the workspace has.
///
/// # Errors
/// [`AttachRefusal`].
pub fn admit_attachment(
    workspace_id: WorkspaceId,
    path: &MountPath,
    mode: MountMode,
    checkpoint_id: Option<CheckpointId>,
    of_volume: &[Attachment],
    of_workspace: &[VolumeMount],
) -> Result<VolumeSlot, AttachRefusal> {
    if of_volume.iter().any(|held| held.workspace_id == workspace_id) {
        return Err(AttachRefusal::Already);
    }
    // A checkpoint never changes: whoever reads one is in nobody's way.
    let of_itself = of_volume.iter().filter(|held| held.mount.checkpoint_id.is_none());
    for held in of_itself.filter(|_| checkpoint_id.is_none()) {
        match (held.mount.mode, mode) {
            (MountMode::ReadWrite, _) => return Err(AttachRefusal::HasWriter(held.workspace_id)),
            (MountMode::ReadOnly, MountMode::ReadWrite) => {
                return Err(AttachRefusal::HasReader(held.workspace_id));
            }
            (MountMode::ReadOnly, MountMode::ReadOnly) => {}
        }
    }
    if of_workspace.iter().any(|held| held.path.overlaps(path)) {
        return Err(AttachRefusal::PathTaken);
    }
    VolumeSlot::all()
        .find(|slot| of_workspace.iter().all(|held| held.slot != *slot))
        .ok_or(AttachRefusal::NoSlot)
}

/// How far a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum VolumeState {
    /// Being made.
    Creating,
    /// It can be attached.
    Ready,
    /// It did not come about, or is gone from its node.
    Failed(Failure),
    /// Being removed.
    Deleting,
}

impl VolumeState {
    /// The state's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Failed(_) => "failed",
            Self::Deleting => "deleting",
        }
    }
}

impl VolumeState {
    /// Applies something that happened; answers whether anything changed.
    pub(crate) fn apply(&mut self, event: &VolumeEvent) -> bool {
        let next = match (&*self, event) {
            (Self::Deleting, _)
            | (Self::Ready, VolumeEvent::Made | VolumeEvent::Failed(_))
            | (Self::Creating, VolumeEvent::Lost(_))
            | (Self::Failed(_), VolumeEvent::Failed(_) | VolumeEvent::Lost(_)) => return false,
            (Self::Creating | Self::Ready | Self::Failed(_), VolumeEvent::DeletionBegun) => {
                Self::Deleting
            }
            (Self::Creating | Self::Failed(_), VolumeEvent::Made) => Self::Ready,
            (Self::Creating, VolumeEvent::Failed(failure))
            | (Self::Ready, VolumeEvent::Lost(failure)) => Self::Failed(failure.clone()),
        };
        *self = next;
        true
    }

    /// The next step with what is in this state. `lost` is the sentence for what is no longer on its
    /// node.
    pub(crate) fn next_step(&self, observed: OnNode, lost: &str, now: Timestamp) -> VolumeStep {
        match (self, observed) {
            (Self::Deleting, _) => VolumeStep::Delete,
            (Self::Creating, OnNode::Absent) => VolumeStep::Make,
            // Its outcome was not heard, or it came about after it was given up.
            (Self::Creating | Self::Failed(_), OnNode::Present | OnNode::Smaller) => {
                VolumeStep::Record(VolumeEvent::Made)
            }
            (Self::Ready, OnNode::Smaller) => VolumeStep::Grow,
            (Self::Ready, OnNode::Absent) => {
                let failure = Failure::new(FailureCode::SavedStateUnusable, lost, now);
                VolumeStep::Record(VolumeEvent::Lost(failure))
            }
            (Self::Ready, OnNode::Present) | (Self::Failed(_), OnNode::Absent) => {
                VolumeStep::Nothing
            }
        }
    }
}

/// A volume. `control::store` is the only writer.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// Its identity; dialects render it in their own form.
    pub id: VolumeId,
    /// Who owns it.
    pub account_id: AccountId,
    /// The name for people, unique in the account.
    pub name: DisplayName,
    /// How large its file system's disk is, MiB.
    pub size_mib: u64,
    /// How far it is.
    pub state: VolumeState,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When the record last changed.
    pub updated_at: Timestamp,
    /// Counts the writes of this record; a write with a stale number is refused.
    pub revision: u64,
}

/// Checks a size.
///
/// # Errors
/// `size_mib`.
pub fn check_volume_size(size_mib: u64) -> Result<(), Invalid> {
    if (MIN_VOLUME_MIB..=MAX_VOLUME_MIB).contains(&size_mib) {
        return Ok(());
    }
    Err(Invalid {
        field: "size_mib",
        problem: format!("{size_mib} is out of range"),
        allowed: format!("{MIN_VOLUME_MIB} to {MAX_VOLUME_MIB} MiB"),
    })
}

/// Checks that a volume of `now_mib` may become one of `size_mib`.
///
/// # Errors
/// `size_mib`.
pub fn check_volume_growth(now_mib: u64, size_mib: u64) -> Result<(), Invalid> {
    if (now_mib..=MAX_VOLUME_MIB).contains(&size_mib) {
        return Ok(());
    }
    let problem = match size_mib < now_mib {
        true => format!("{size_mib} is less than it has: volumes grow and do not shrink"),
        false => format!("{size_mib} is out of range"),
    };
    let allowed = format!("{now_mib} to {MAX_VOLUME_MIB} MiB");
    Err(Invalid { field: "size_mib", problem, allowed })
}

/// Something that happened to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeEvent {
    /// It is complete on its node.
    Made,
    /// It did not come about; the node has nothing of it.
    Failed(Failure),
    /// It was ready and is no longer on its node.
    Lost(Failure),
    /// Its deletion begins.
    DeletionBegun,
}

impl Volume {
    /// Its size in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_mib.saturating_mul(MIB)
    }

    /// Applies something that happened; answers whether the record changed. A deletion is accepted in
    /// every state and nothing after it.
    pub fn apply(&mut self, event: &VolumeEvent) -> bool {
        self.state.apply(event)
    }
}

/// Whether the node has a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnNode {
    /// Complete.
    Present,
    /// Complete, and smaller than it is to be.
    Smaller,
    /// Nothing of it, or only a beginning.
    Absent,
}

/// The next step with one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeStep {
    /// Have the node make it (a repetition is harmless) and record what came of it.
    Make,
    /// Have the node make it as large as the record says (a repetition is harmless).
    Grow,
    /// Have the node remove it, then remove the record.
    Delete,
    /// Record this and decide again.
    Record(VolumeEvent),
    /// It is as it should be.
    Nothing,
}

/// Decides the next step from the record and from what its node has under its identifier. Pure and
/// total.
#[must_use]
pub fn next_volume_step(volume: &Volume, observed: OnNode, now: Timestamp) -> VolumeStep {
    volume.state.next_step(observed, "the volume is no longer on its node", now)
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
