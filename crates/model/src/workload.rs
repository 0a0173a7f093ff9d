//! Workloads: processes that a workspace's guest supervises.
//!
//! What should run stands in the workspace's record, in one list with one revision, so that it is made,
//! copied by a fork and restored with everything else that the workspace is. How it goes (process
//! numbers, exits, restarts) is known in the guest alone, which keeps its processes while no server
//! runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Backoff, BlueprintId, EnvVar, Invalid, RestartMode, Timestamp, WorkloadId};

/// The most workloads of one workspace.
pub const MAX_WORKLOADS: usize = 32;
/// The most bytes of all workloads of a workspace, written as JSON.
pub const MAX_WORKLOADS_BYTES: usize = 512 * 1024;
/// The most characters of a name.
const MAX_NAME_CHARS: usize = 64;
/// The most words of a command.
const MAX_WORDS: usize = 1024;
/// The longest absolute path, in bytes.
const MAX_PATH_BYTES: usize = 4095;
/// The longest login name, in bytes.
const MAX_USER_BYTES: usize = 64;
/// The most labels, and the most annotations.
const MAX_LABELS: usize = 64;
/// The most bytes of a label's key, and of its value.
const MAX_LABEL_BYTES: usize = 1024;
/// The smallest and the largest bound of a workload's log, in KiB.
const LOG_LIMIT_KIB: std::ops::RangeInclusive<u32> = 16..=100 * 1024;

/// What a workload is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadKind {
    /// Runs on, and is started again as its restart policy says.
    #[default]
    Service,
    /// Runs to its end once in the life of the disk, however it ends.
    SetupOnce,
    /// Runs to its end at every boot.
    SetupAtBoot,
}

impl WorkloadKind {
    /// Whether services wait for its end.
    #[must_use]
    pub const fn is_setup(self) -> bool {
        match self {
            Self::Service => false,
            Self::SetupOnce | Self::SetupAtBoot => true,
        }
    }
}

/// What happens to the workspace when a workload has ended for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExit {
    /// Nothing.
    #[default]
    Nothing,
    /// It is paused.
    Pause,
    /// It is stopped, as if it had been asked for.
    Stop,
    /// Its VM ends as if by itself: the workspace's own rules (remove on exit, restart policy) say what
    /// follows. An exit other than code 0 counts as a failure.
    Exit,
}

/// Whether a workload should run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadDesired {
    /// Also after the guest was booted again.
    #[default]
    Running,
    /// Until it is started.
    Stopped,
}

/// After which exits a workload is started again, and how long it waits before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WorkloadRestart {
    /// After which exits. A failure is every exit but code 0, and a start that failed.
    pub mode: RestartMode,
    /// How many restarts in a row at most; 0 means without limit. A run of
    /// [`WorkloadRestart::STEADY_SECONDS`] begins a new row.
    #[serde(default)]
    pub max_restarts: u32,
    /// The pauses between them.
    #[serde(default)]
    pub backoff: Backoff,
}

impl WorkloadRestart {
    /// A run this long does not continue a row of restarts.
    pub const STEADY_SECONDS: u32 = 60;
}

/// What a workload was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WorkloadOrigin {
    /// A request of its own.
    #[default]
    Direct,
    /// The workspace's main command.
    Main,
    /// A service that the account keeps, or kept.
    Service {
        /// Which.
        blueprint_id: BlueprintId,
    },
    /// What such a service needs first.
    ServiceSetup {
        /// Which service.
        blueprint_id: BlueprintId,
    },
    /// A setup script that the account keeps, or kept.
    Setup {
        /// Which.
        blueprint_id: BlueprintId,
    },
    /// The installation of an app of the catalogue.
    AppInstall {
        /// Its id there.
        app_id: String,
        /// Where it serves HTTP, if it does.
        port: Option<u16>,
    },
    /// What runs of such an app.
    App {
        /// Its id in the catalogue.
        app_id: String,
    },
}

/// One supervised process.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Its identity, unique within the workspace; a fork's workloads have those of their source.
    pub id: WorkloadId,
    /// Its name: 1 to 64 characters of `[A-Za-z0-9._-]`, unique within the workspace.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub kind: WorkloadKind,
    /// Program and arguments. May hold secrets.
    pub argv: Vec<String>,
    /// Added to the workspace's environment. May hold secrets.
    pub env: Vec<EnvVar>,
    /// Absolute; `None`: the image's, or else the user's home.
    pub working_dir: Option<String>,
    /// A login name; `None`: the image's, or else root.
    pub user: Option<String>,
    /// When it is started again.
    pub restart: WorkloadRestart,
    /// What its end means for the workspace.
    pub on_exit: OnExit,
    /// The most of its output that is kept, in KiB: 16 to 102,400. The oldest goes first.
    pub log_limit_kib: u32,
    /// Whether output of before the last boot is kept.
    pub keeps_log: bool,
    /// The tenant's own labels.
    pub labels: BTreeMap<String, String>,
    /// The tenant's own notes.
    pub annotations: BTreeMap<String, String>,
    /// Whether it should run.
    pub desired: WorkloadDesired,
    /// Counts the starts that were asked for: another number than the guest's makes it run anew.
    pub turn: u64,
    /// What it was made from.
    #[serde(default)]
    pub origin: WorkloadOrigin,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

impl Workload {
    /// What is kept of its output when nobody says how much: 1 MiB.
    pub const DEFAULT_LOG_LIMIT_KIB: u32 = 1024;

    fn check(&self) -> Result<(), Invalid> {
        let invalid = |field: &'static str, problem: String, allowed: String| {
            Err(Invalid { field, problem, allowed })
        };
        let name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if self.name.is_empty()
            || self.name.len() > MAX_NAME_CHARS
            || !self.name.bytes().all(name_byte)
        {
            let allowed = format!("1 to {MAX_NAME_CHARS} characters of A-Z, a-z, 0-9, ., _ and -");
            return invalid("workload_name", "is not a name of a workload".to_owned(), allowed);
        }
        if self.argv.is_empty()
            || self.argv.len() > MAX_WORDS
            || self.argv.first().is_some_and(String::is_empty)
            || self.argv.iter().any(|word| word.contains('\0'))
        {
            let allowed = format!("1 to {MAX_WORDS} words without NUL, the first not empty");
            return invalid("command", "is not a command".to_owned(), allowed);
        }
        EnvVar::check_all(&self.env)?;
        if let Some(dir) = &self.working_dir
            && (!dir.starts_with('/') || dir.len() > MAX_PATH_BYTES || dir.contains('\0'))
        {
            let allowed = "an absolute path".to_owned();
            return invalid("working_dir", "is not an absolute path".to_owned(), allowed);
        }
        if let Some(user) = &self.user
            && (user.is_empty() || user.len() > MAX_USER_BYTES || user.contains(['\0', ':', '\n']))
        {
            let allowed = format!("a login name of at most {MAX_USER_BYTES} bytes");
            return invalid("user", "is not a login name".to_owned(), allowed);
        }
        crate::RestartPolicy {
            mode: self.restart.mode,
            max_restarts: self.restart.max_restarts,
            backoff: self.restart.backoff,
        }
        .check()?;
        if !LOG_LIMIT_KIB.contains(&self.log_limit_kib) {
            let (least, most) = (LOG_LIMIT_KIB.start(), LOG_LIMIT_KIB.end());
            let problem = format!("{} is out of range", self.log_limit_kib);
            return invalid("log_limit_kib", problem, format!("{least} to {most} KiB"));
        }
        check_labels("labels", &self.labels)?;
        check_labels("annotations", &self.annotations)
    }
}

/// Neither arguments nor values of variables: both may be secrets.
impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("program", &self.argv.first())
            .field("desired", &self.desired)
            .field("turn", &self.turn)
            .finish_non_exhaustive()
    }
}

fn check_labels(field: &'static str, labels: &BTreeMap<String, String>) -> Result<(), Invalid> {
    let fits = labels.len() <= MAX_LABELS
        && labels
            .iter()
            .all(|(key, value)| key.len() <= MAX_LABEL_BYTES && value.len() <= MAX_LABEL_BYTES);
    if fits {
        return Ok(());
    }
    Err(Invalid {
        field,
        problem: "has too many entries, or one that is too long".to_owned(),
        allowed: format!(
            "at most {MAX_LABELS}, keys and values of at most {MAX_LABEL_BYTES} bytes"
        ),
    })
}

/// All workloads of a workspace, in the order in which they are started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workloads {
    /// Counts the changes of the list; 0 as long as there never was one. A guest of a workspace that
    /// once had workloads may still have some that are none any more, so it goes on being told.
    pub revision: u64,
    /// The workloads. Setup comes first: services wait for it.
    pub items: Vec<Workload>,
}

impl Workloads {
    /// A first list.
    ///
    /// # Errors
    /// As [`Workloads::change`].
    pub fn new(items: Vec<Workload>) -> Result<Self, Invalid> {
        let mut all = Self::default();
        if !items.is_empty() {
            all.change(|list| *list = items)?;
        }
        Ok(all)
    }

    /// Whether a guest has to be told of them.
    #[must_use]
    pub const fn were_ever(&self) -> bool {
        self.revision > 0
    }

    pub(crate) const fn were_never(&self) -> bool {
        !self.were_ever()
    }

    /// The workload that is named by its identifier or its name.
    #[must_use]
    pub fn find(&self, which: &WorkloadRef) -> Option<&Workload> {
        self.items.iter().find(|workload| which.names(workload))
    }

    /// Changes the list, unless what came of it is refused.
    ///
    /// # Errors
    /// [`Invalid`] with field `workloads` (how many, how large together, a name twice) or what is wrong
    /// with one of them: `workload_name`, `command`, `env`, `working_dir`, `user`, `restart`,
    /// `log_limit_kib`, `labels`, `annotations`.
    pub fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Vec<Workload>) -> T,
    ) -> Result<T, Invalid> {
        let mut items = self.items.clone();
        let answer = change(&mut items);
        if items == self.items {
            return Ok(answer);
        }
        items.sort_by_key(|workload| !workload.kind.is_setup());
        let refuse = |problem: String, allowed: String| {
            Err(Invalid { field: "workloads", problem, allowed })
        };
        if items.len() > MAX_WORKLOADS {
            return refuse(format!("are {}", items.len()), format!("at most {MAX_WORKLOADS}"));
        }
        for (index, workload) in items.iter().enumerate() {
            workload.check()?;
            let earlier = items.iter().take(index);
            if earlier.clone().any(|other| other.name == workload.name) {
                let problem = format!("have the name {} twice", workload.name);
                return refuse(problem, "each name once".to_owned());
            }
            if earlier.clone().any(|other| other.id == workload.id) {
                return refuse("have an identifier twice".to_owned(), "each once".to_owned());
            }
        }
        let size = serde_json::to_vec(&items).map_or(usize::MAX, |text| text.len());
        if size > MAX_WORKLOADS_BYTES {
            let allowed = format!("at most {} KiB as JSON", MAX_WORKLOADS_BYTES / 1024);
            return refuse(format!("take {size} bytes"), allowed);
        }
        self.items = items;
        self.revision += 1;
        Ok(answer)
    }
}

/// How a request names a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkloadRef {
    /// By identity.
    Id(WorkloadId),
    /// By name.
    Name(String),
}

impl WorkloadRef {
    /// Whether it is this one that is meant.
    #[must_use]
    pub fn names(&self, workload: &Workload) -> bool {
        match self {
            Self::Id(id) => workload.id == *id,
            Self::Name(name) => workload.name == *name,
        }
    }
}

#[cfg(test)]
#[path = "workload_tests.rs"]
mod tests;
