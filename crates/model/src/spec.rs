//! What a tenant asks for: the superset that every dialect's create request maps onto.
//!
//! A field is here when something in the engine honours it. What later work will honour is refused
//! by the dialects today and is not in this struct.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

pub use crate::lifecycle::{Expiry, ExpiryAction};
use crate::{
    DiskMib, IdlePolicy, Invalid, MadeFrom, MemMib, NetworkWish, RestartPolicy, SnapshotId,
    SnapshotOnTerminate, VaultId, VcpuCount, Workloads,
};

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

impl EnvVar {
    /// The most variables of one workspace.
    pub const MAX_COUNT: usize = 256;
    /// The most characters of a name.
    pub const MAX_KEY_LEN: usize = 256;
    /// The most bytes of a value.
    pub const MAX_VALUE_BYTES: usize = 32 * 1024;
    /// The most bytes of all names and values together.
    pub const MAX_TOTAL_BYTES: usize = 128 * 1024;

    /// Checks an environment: names, sizes, no name twice.
    ///
    /// # Errors
    /// [`Invalid`] with field `env`; values are never repeated in it.
    pub fn check_all(env: &[Self]) -> Result<(), Invalid> {
        let refuse =
            |problem: String, allowed: String| Err(Invalid { field: "env", problem, allowed });
        if env.len() > Self::MAX_COUNT {
            let problem = format!("has {} variables", env.len());
            return refuse(problem, format!("at most {} variables", Self::MAX_COUNT));
        }
        let mut seen = std::collections::BTreeSet::new();
        let mut total = 0_usize;
        for variable in env {
            let key = &variable.key;
            let shown: String = key.chars().take(64).flat_map(char::escape_default).collect();
            if !is_env_name(key) {
                let problem = format!("{shown:?} is not a name of a variable");
                let rule = "names of at most 256 characters matching [A-Za-z_][A-Za-z0-9_]*";
                return refuse(problem, rule.to_owned());
            }
            if !seen.insert(key) {
                return refuse(format!("{shown} is there twice"), "each name once".to_owned());
            }
            if variable.value.len() > Self::MAX_VALUE_BYTES || variable.value.contains('\0') {
                let problem = format!("the value of {shown} is too long or contains NUL");
                return refuse(problem, "values of at most 32 KiB without NUL".to_owned());
            }
            total += key.len() + variable.value.len();
        }
        if total > Self::MAX_TOTAL_BYTES {
            let problem = format!("takes {total} bytes");
            return refuse(problem, "at most 128 KiB in all".to_owned());
        }
        Ok(())
    }
}

fn is_env_name(key: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    key.len() <= EnvVar::MAX_KEY_LEN
        && key.bytes().all(word)
        && key.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

/// The most bytes of a workspace's labels, written as JSON.
pub const MAX_METADATA_BYTES: usize = 64 * 1024;

/// Checks the size of a workspace's labels.
///
/// # Errors
/// [`Invalid`] with field `metadata`.
pub fn check_metadata(metadata: &BTreeMap<String, serde_json::Value>) -> Result<(), Invalid> {
    let size = serde_json::to_vec(metadata).map_or(usize::MAX, |text| text.len());
    if size <= MAX_METADATA_BYTES {
        return Ok(());
    }
    Err(Invalid {
        field: "metadata",
        problem: "is too large".to_owned(),
        allowed: "at most 64 KiB as JSON".to_owned(),
    })
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

/// What a workspace's disk was made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// Its image.
    #[default]
    Image,
    /// A snapshot, which may be gone by now; a fork's is gone as soon as nothing needs it.
    Snapshot {
        /// Which.
        snapshot_id: SnapshotId,
    },
}

/// Everything that decides what the machine is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceSpec {
    /// What its disk was made from. With a snapshot, `image` and `image_digest` are the snapshot's.
    #[serde(default)]
    pub origin: Origin,
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
    /// Exempt from what the idle policy would do.
    pub keep_active: bool,
    /// What happens when nobody uses it.
    #[serde(default)]
    pub idle: Option<IdlePolicy>,
    /// What happens when its VM ends by itself.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// It is deleted when its VM ends by itself: the guest powered off or rebooted, or the VM died.
    /// Comes before the restart policy. A VM that was lost with its host does not count.
    #[serde(default)]
    pub remove_on_exit: bool,
    /// A deletion takes a snapshot first.
    #[serde(default)]
    pub snapshot_on_terminate: Option<SnapshotOnTerminate>,
    /// Using its inside wakes it when it is paused, suspended, or was stopped by its idle policy.
    #[serde(default)]
    pub auto_resume: bool,
    /// Console log across starts.
    pub log_retention: LogRetention,
    /// What it asks of the network.
    #[serde(default)]
    pub network: NetworkWish,
    /// What its guest supervises.
    #[serde(default, skip_serializing_if = "Workloads::were_never")]
    pub workloads: Workloads,
    /// Whose credentials its guest may use, the first before the others. One that is gone is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vaults: Vec<VaultId>,
    /// What it was made from beside that.
    #[serde(default, skip_serializing_if = "MadeFrom::is_nothing")]
    pub made_from: MadeFrom,
    /// The tenant's own labels, returned as given: at most 64 KiB as JSON.
    pub metadata: BTreeMap<String, serde_json::Value>,
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
