//! What a tenant asks for: the superset that every dialect's create request maps onto.
//!
//! A field is here when something in the engine honours it. What later work will honour is refused
//! by the dialects today and is not in this struct.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{DiskMib, MemMib, VcpuCount};

/// The name of an image as the catalogue knows it (`base`, `node-20`): 1 to 128 characters of
/// `[a-z0-9._-]`, first one alphanumeric.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageRef(pub String);

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The content digest of an image, `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageDigest(pub String);

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How physical CPU time is given to the virtual CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuKind {
    /// Virtual CPUs share physical ones; a weight decides under contention.
    #[default]
    Shared,
    /// Virtual CPUs get four times the weight of shared ones under contention.
    Performance,
}

/// The size of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Number of virtual CPUs.
    pub vcpu_count: VcpuCount,
    /// Guest memory.
    pub memory_mib: MemMib,
    /// Writable disk space beyond the image.
    pub disk_mib: DiskMib,
    /// CPU share class.
    pub cpu_kind: CpuKind,
}

/// One environment variable of every process the workspace runs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name: `[A-Za-z_][A-Za-z0-9_]*`, at most 256 characters.
    pub key: String,
    /// Value: no NUL, at most 32 KiB. May be a secret.
    pub value: String,
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=…", self.key)
    }
}

/// Whether the tenant thinks of the workspace as lasting. Shown by the dialects that ask for it;
/// the engine treats both alike until there is a time to live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifetime {
    /// Lives until deleted.
    #[default]
    Permanent,
    /// May carry a time to live.
    Temporary,
}

/// What happens when a workspace's time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpiryAction {
    /// It is stopped; the disk is kept.
    Stop,
    /// It is deleted.
    Delete,
}

/// A time to live, counted from each moment the workspace becomes running; it does not pass while
/// there is no VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Expiry {
    /// Seconds, 1 to 31,536,000 (a year).
    pub after_seconds: u32,
    /// What then happens.
    pub action: ExpiryAction,
}

/// What happens to the console log when the workspace starts again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogRetention {
    /// Each start appends.
    #[default]
    AcrossStarts,
    /// Each start begins with an empty log.
    ThisStart,
}

/// Everything that decides what the machine is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceSpec {
    /// The image as it was asked for.
    pub image: ImageRef,
    /// The digest that name meant when the workspace was created; never changes afterwards.
    pub image_digest: ImageDigest,
    /// The size.
    pub shape: Shape,
    /// Environment of every process started in the workspace, in the order given; names are unique.
    pub env: Vec<EnvVar>,
    /// Permanent or temporary.
    pub lifetime: Lifetime,
    /// Time to live.
    pub expiry: Option<Expiry>,
    /// Exempt from stopping when idle.
    pub keep_active: bool,
    /// Console log across starts.
    pub log_retention: LogRetention,
    /// The tenant's own labels, returned as given: at most 64 KiB as JSON.
    pub metadata: BTreeMap<String, serde_json::Value>,
}
