//! Blueprints: parts of workspaces-to-be that an account keeps. A service and a setup script become
//! workloads of the workspaces that name them, a template is a size, an image and what comes with it.
//! A workspace keeps what it was made with: nothing of it changes when its blueprint does.

use serde::{Deserialize, Serialize};

use crate::{
    AccountId, BlueprintId, EnvVar, Invalid, RequestedShape, RestartMode, Timestamp, limits::Plan,
};

/// The most blueprints of one kind that an account keeps.
pub const MAX_BLUEPRINTS: u32 = 100;
/// The most services, and the most setup scripts, that a workspace or a template names.
pub const MAX_NAMED_BLUEPRINTS: usize = 12;
/// The most bytes of a script.
pub const MAX_SCRIPT_BYTES: usize = 64 * 1024;
/// The most bytes of all scripts that a workspace is made with.
pub const MAX_SCRIPTS_BYTES: usize = 256 * 1024;
const MAX_SERVICE_NAME_BYTES: usize = 48;
const MAX_NAME_CHARS: usize = 128;
const MAX_COMMAND_BYTES: usize = 8 * 1024;
const MAX_PATH_BYTES: usize = 4095;
const MAX_TEXT_CHARS: usize = 1024;
const MAX_APPS: usize = 16;
const MAX_WORD_BYTES: usize = 256;

/// What a blueprint is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlueprintKind {
    /// A service.
    Service,
    /// A setup script.
    Setup,
    /// A template.
    Template,
}

impl BlueprintKind {
    /// The word for it in the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Setup => "setup",
            Self::Template => "template",
        }
    }

    /// What an answer calls it that says that there is none.
    #[must_use]
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Service => "service spec",
            Self::Setup => "setup script",
            Self::Template => "template",
        }
    }
}

/// When a setup script runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetupRuns {
    /// Once in the life of the disk, at its first boot.
    #[default]
    Once,
    /// At every boot.
    AtBoot,
}

/// A service: a supervised process.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Program and arguments in one line, split as a shell splits words; nothing in it is expanded.
    pub command_line: String,
    /// Added to the workspace's environment. May hold secrets.
    pub env: Vec<EnvVar>,
    /// After which exits it is started again.
    pub restart: RestartMode,
    /// Whether a workspace that is made with it starts it by itself.
    pub starts_by_itself: bool,
    /// A file in the guest with more variables, a `NAME=value` a line, read at each start. With a `-`
    /// before it, it need not be there.
    pub environment_file: Option<String>,
    /// A script that runs once before.
    pub setup: Option<String>,
    /// A login name; `None`: the image's, or else root.
    pub user: Option<String>,
    /// Absolute; `None`: the image's, or else the user's home.
    pub working_dir: Option<String>,
}

impl ServiceSpec {
    /// The words of its command.
    ///
    /// # Errors
    /// [`Invalid`] with field `command`.
    pub fn words(&self) -> Result<Vec<String>, Invalid> {
        let line = &self.command_line;
        let is_line =
            !line.trim().is_empty() && line.len() <= MAX_COMMAND_BYTES && is_one_line(line);
        let words = if is_line { shlex::split(line) } else { None };
        words.filter(|words| words.first().is_some_and(|program| !program.is_empty())).ok_or_else(
            || Invalid {
                field: "command",
                problem: "is not one command".to_owned(),
                allowed: format!(
                    "a program and its arguments in one line of at most {MAX_COMMAND_BYTES} bytes, \
                     quotes closed"
                ),
            },
        )
    }
}

/// A setup script.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupScript {
    /// What `bash` runs. May hold secrets.
    pub script: String,
    /// When.
    pub runs: SetupRuns,
    /// Where its owner wants it in lists; a workspace runs scripts in the order it names them.
    pub order: i32,
    /// A login name; `None`: the image's, or else root.
    pub user: Option<String>,
    /// Absolute; `None`: the image's, or else the user's home.
    pub working_dir: Option<String>,
}

/// A template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// What it is for.
    pub description: String,
    /// The owner's picture for it, a word or an address.
    pub icon: String,
    /// The owner's grouping word.
    pub category: String,
    /// The image, as a request would name it.
    pub image: String,
    /// The sizes of a workspace that asks for none, and the least of one that does.
    pub least: Floor,
    /// Setup scripts of the account that run before those a request names.
    pub setup: Vec<BlueprintId>,
    /// Services of the account.
    pub services: Vec<BlueprintId>,
    /// Apps of the catalogue.
    pub apps: Vec<String>,
}

/// What a blueprint says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BlueprintBody {
    /// A service.
    Service(ServiceSpec),
    /// A setup script.
    Setup(SetupScript),
    /// A template.
    Template(Template),
}

/// A part of workspaces-to-be.
#[derive(Clone, PartialEq, Eq)]
pub struct Blueprint {
    /// Its identity.
    pub id: BlueprintId,
    /// Whose.
    pub account_id: AccountId,
    /// Unique among the account's of one kind. A service's: 1 to 48 characters of `[A-Za-z0-9._-]`;
    /// others': 1 to 128 characters, no control characters.
    pub name: String,
    /// What it says.
    pub body: BlueprintBody,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts its changes.
    pub revision: u64,
}

/// Neither commands nor scripts: they may hold secrets.
impl std::fmt::Debug for Blueprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blueprint")
            .field("id", &self.id)
            .field("kind", &self.kind())
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Blueprint {
    /// What it is of.
    #[must_use]
    pub const fn kind(&self) -> BlueprintKind {
        match self.body {
            BlueprintBody::Service(_) => BlueprintKind::Service,
            BlueprintBody::Setup(_) => BlueprintKind::Setup,
            BlueprintBody::Template(_) => BlueprintKind::Template,
        }
    }

    /// Checks everything that can be said of it alone.
    ///
    /// # Errors
    /// [`Invalid`]: `name`, `command`, `env`, `environment_file`, `setup`, `script`, `image`,
    /// `description`, `icon`, `category`, `setup_scripts`, `service_specs`, `apps`.
    pub fn check(&self) -> Result<(), Invalid> {
        match &self.body {
            BlueprintBody::Service(service) => {
                check_service_name(&self.name)?;
                service.words()?;
                EnvVar::check_all(&service.env)?;
                if let Some(file) = &service.environment_file {
                    check_environment_file(file)?;
                }
                service.setup.as_deref().map_or(Ok(()), |script| check_script("setup", script))
            }
            BlueprintBody::Setup(setup) => {
                check_name(&self.name)?;
                check_script("script", &setup.script)
            }
            BlueprintBody::Template(template) => {
                check_name(&self.name)?;
                template.check()
            }
        }
    }
}

impl Template {
    fn check(&self) -> Result<(), Invalid> {
        let texts = [
            ("description", &self.description),
            ("icon", &self.icon),
            ("category", &self.category),
        ];
        for (field, text) in texts {
            if text.chars().count() > MAX_TEXT_CHARS || text.contains('\0') {
                let allowed = format!("at most {MAX_TEXT_CHARS} characters");
                return Err(Invalid { field, problem: "is too long".to_owned(), allowed });
            }
        }
        let is_name = |name: &str| {
            !name.is_empty() && name.len() <= MAX_WORD_BYTES && !name.chars().any(char::is_control)
        };
        if !is_name(&self.image) {
            return Err(Invalid {
                field: "image",
                problem: "is not the name of an image".to_owned(),
                allowed: format!("1 to {MAX_WORD_BYTES} bytes"),
            });
        }
        check_count("setup_scripts", self.setup.len())?;
        check_count("service_specs", self.services.len())?;
        if self.apps.len() > MAX_APPS || !self.apps.iter().all(|app| is_name(app)) {
            return Err(Invalid {
                field: "apps",
                problem: "are too many, or one is not an id".to_owned(),
                allowed: format!("at most {MAX_APPS} ids of the catalogue"),
            });
        }
        Ok(())
    }
}

/// Checks how many blueprints of a kind are named.
///
/// # Errors
/// [`Invalid`] with this field.
pub fn check_count(field: &'static str, count: usize) -> Result<(), Invalid> {
    if count <= MAX_NAMED_BLUEPRINTS {
        return Ok(());
    }
    let allowed = format!("at most {MAX_NAMED_BLUEPRINTS}");
    Err(Invalid { field, problem: format!("are {count}"), allowed })
}

fn is_one_line(text: &str) -> bool {
    !text.contains(['\0', '\n', '\r'])
}

fn check_service_name(name: &str) -> Result<(), Invalid> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=MAX_SERVICE_NAME_BYTES).contains(&name.len()) && name.bytes().all(inner) {
        return Ok(());
    }
    Err(Invalid {
        field: "name",
        problem: "is not a name of a service".to_owned(),
        allowed: format!("1 to {MAX_SERVICE_NAME_BYTES} characters of A-Z, a-z, 0-9, ., _ and -"),
    })
}

fn check_name(name: &str) -> Result<(), Invalid> {
    if !name.trim().is_empty()
        && name.chars().count() <= MAX_NAME_CHARS
        && !name.chars().any(char::is_control)
    {
        return Ok(());
    }
    Err(Invalid {
        field: "name",
        problem: "is not a name".to_owned(),
        allowed: format!("1 to {MAX_NAME_CHARS} characters, no control characters"),
    })
}

fn check_environment_file(file: &str) -> Result<(), Invalid> {
    let path = file.strip_prefix('-').unwrap_or(file);
    if path.starts_with('/') && path.len() <= MAX_PATH_BYTES && is_one_line(path) {
        return Ok(());
    }
    Err(Invalid {
        field: "environment_file",
        problem: "is not an absolute path".to_owned(),
        allowed: "an absolute path, with a - before it when it need not be there".to_owned(),
    })
}

fn check_script(field: &'static str, script: &str) -> Result<(), Invalid> {
    if !script.trim().is_empty() && script.len() <= MAX_SCRIPT_BYTES && !script.contains('\0') {
        return Ok(());
    }
    Err(Invalid {
        field,
        problem: "is empty, too long or contains NUL".to_owned(),
        allowed: format!("a script of at most {} KiB", MAX_SCRIPT_BYTES / 1024),
    })
}

/// Sizes below which a workspace is raised; 0 raises nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Floor {
    /// Virtual CPUs.
    pub vcpu_count: u32,
    /// MiB.
    pub memory_mib: u32,
    /// MiB.
    pub disk_mib: u32,
}

impl Floor {
    /// The larger of both, of each size.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            vcpu_count: self.vcpu_count.max(other.vcpu_count),
            memory_mib: self.memory_mib.max(other.memory_mib),
            disk_mib: self.disk_mib.max(other.disk_mib),
        }
    }

    /// What a request asks for, no less than this. Where it asks for nothing it gets what the plan
    /// gives, no less than this.
    #[must_use]
    pub fn raise_new(&self, plan: &Plan, asked: &RequestedShape) -> RequestedShape {
        let raised = |asked: Option<u64>, least: u32, default: u32| {
            let asked = asked.or_else(|| (least > 0).then_some(u64::from(default)));
            asked.map(|asked| asked.max(u64::from(least)))
        };
        RequestedShape {
            vcpu_count: raised(asked.vcpu_count, self.vcpu_count, plan.vcpu_count.default),
            memory_mib: raised(asked.memory_mib, self.memory_mib, plan.memory_mib.default),
            disk_mib: raised(asked.disk_mib, self.disk_mib, plan.disk_mib.default),
            cpu_kind: asked.cpu_kind,
        }
    }

    /// What a change asks for, no less than this. What it does not ask for stays so.
    #[must_use]
    pub fn raise_change(&self, asked: &RequestedShape) -> RequestedShape {
        let raised = |asked: Option<u64>, least: u32| asked.map(|asked| asked.max(least.into()));
        RequestedShape {
            vcpu_count: raised(asked.vcpu_count, self.vcpu_count),
            memory_mib: raised(asked.memory_mib, self.memory_mib),
            disk_mib: raised(asked.disk_mib, self.disk_mib),
            cpu_kind: asked.cpu_kind,
        }
    }
}

/// What a workspace was made from, beyond its image and its workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeFrom {
    /// The template, as the request named it. It may be gone by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// What its sizes are not made smaller than.
    #[serde(default)]
    pub floor: Floor,
}

impl MadeFrom {
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
#[path = "blueprint_tests.rs"]
mod tests;
