//! The catalogue of apps: programs that are installed in workspaces, at create or later. An installation
//! is a workload that runs to its end once, and what an app runs is one that is supervised, so that both
//! stand in the workspace's record and go on without the server.

mod install;

use std::collections::BTreeMap;

use serde::Deserialize;
use skerry_model::{EnvVar, Floor, Slug};

pub use install::{InstalledApp, Reconciled};

/// MiB of memory and of disk that a workspace has beside what its apps ask for.
const HEADROOM_MIB: u32 = 256;
/// The most bytes of a parameter's value.
const MAX_VALUE_BYTES: usize = 4096;
const MAX_ID_CHARS: usize = 32;
/// The most characters of an address.
const SLUG_CHARS: usize = 63;
const MAX_SCRIPT_BYTES: usize = 64 * 1024;

/// What a value of a parameter may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppParamKind {
    /// Any text.
    #[default]
    String,
    /// Text that is not shown again.
    Secret,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// One of `options`.
    Select,
}

/// Something that whoever installs an app decides.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppParam {
    /// Its name: `[a-z][a-z0-9_]*`. The app finds it as the variable `PARAM_` and the name in capitals.
    pub key: String,
    /// Its name for people.
    pub label: String,
    /// What a value may be.
    #[serde(default)]
    pub kind: AppParamKind,
    /// The value when none is given.
    #[serde(default)]
    pub default: String,
    /// What it decides.
    #[serde(default)]
    pub description: String,
    /// Whether it has to be given.
    #[serde(default)]
    pub required: bool,
    /// The values of a select.
    #[serde(default)]
    pub options: Vec<String>,
}

impl AppParam {
    fn accepts(&self, value: &str) -> bool {
        let is_text = value.len() <= MAX_VALUE_BYTES && !value.contains('\0');
        is_text
            && match self.kind {
                AppParamKind::String | AppParamKind::Secret => true,
                AppParamKind::Number => value.parse::<f64>().is_ok_and(f64::is_finite),
                AppParamKind::Boolean => value == "true" || value == "false",
                AppParamKind::Select => self.options.iter().any(|option| option == value),
            }
    }

    fn variable(&self) -> String {
        format!("PARAM_{}", self.key.to_ascii_uppercase())
    }
}

/// What an app runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppService {
    /// Where it serves HTTP.
    pub port: u16,
    /// Program and arguments, split as a shell splits words. `{PARAM_NAME}` in a word is the value.
    pub command: String,
    /// A login name; without it the image's, or else root.
    #[serde(default)]
    pub user: Option<String>,
}

/// An app of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogApp {
    /// Its identity: 1 to 32 characters of `[a-z0-9-]`, the first and last no `-`.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// A picture for it, a word or an address.
    #[serde(default)]
    pub icon: String,
    /// `tools`, `editors`...
    #[serde(default)]
    pub category: String,
    /// MiB of memory it needs.
    #[serde(default)]
    pub min_memory_mib: u32,
    /// MiB of disk it needs.
    #[serde(default)]
    pub min_disk_mib: u32,
    /// What installs it: `bash` runs it once, as the image's user or else root. Code 0 means installed.
    pub install: String,
    /// What it runs; without it the app is a program for whoever comes by a shell.
    #[serde(default)]
    pub service: Option<AppService>,
    /// What whoever installs it decides.
    #[serde(default)]
    pub params: Vec<AppParam>,
    /// Templates whose workspaces cannot have it.
    #[serde(default)]
    pub incompatible_templates: Vec<String>,
}

impl CatalogApp {
    /// Checks an entry of somebody's configuration.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("app {:?}: {what}", self.id));
        let is_word = |text: &str| {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            (1..=MAX_ID_CHARS).contains(&text.len())
                && text.bytes().all(inner)
                && !text.starts_with('-')
                && !text.ends_with('-')
        };
        if !is_word(&self.id) {
            return wrong("the id is not 1 to 32 characters of a-z, 0-9 and -");
        }
        if self.install.trim().is_empty()
            || self.install.len() > MAX_SCRIPT_BYTES
            || self.install.contains('\0')
        {
            return wrong("install is not a script of at most 64 KiB");
        }
        if let Some(service) = &self.service {
            if service.port == 0 {
                return wrong("the port of the service is 0");
            }
            if shlex::split(&service.command).is_none_or(|words| words.is_empty()) {
                return wrong("the command of the service is not one command");
            }
        }
        for param in &self.params {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            let starts = param.key.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
            if !starts || param.key.len() > MAX_ID_CHARS || !param.key.bytes().all(inner) {
                return wrong("the key of a parameter is not [a-z][a-z0-9_]*");
            }
            if !param.required && !param.default.is_empty() && !param.accepts(&param.default) {
                return wrong("the default of a parameter is none of its values");
            }
        }
        Ok(())
    }

    /// What its workspace has at least.
    pub(crate) fn floor(apps: &[Self]) -> Floor {
        if apps.is_empty() {
            return Floor::default();
        }
        let sum = |of: fn(&Self) -> u32| {
            apps.iter().fold(HEADROOM_MIB, |sum, app| sum.saturating_add(of(app)))
        };
        Floor {
            vcpu_count: 0,
            memory_mib: sum(|app| app.min_memory_mib),
            disk_mib: sum(|app| app.min_disk_mib),
        }
    }

    /// The variables that say what was decided.
    fn variables(&self, given: &BTreeMap<String, String>) -> Result<Vec<EnvVar>, crate::Error> {
        let keys = || self.params.iter().map(|param| param.key.as_str()).collect::<Vec<_>>();
        if let Some(unknown) = given.keys().find(|key| !keys().contains(&key.as_str())) {
            let shown: String = unknown.chars().take(64).flat_map(char::escape_default).collect();
            let allowed = format!("parameters of {}: {}", self.id, keys().join(", "));
            return Err(crate::Error::invalid("params", format!("{shown} is unknown"), allowed));
        }
        let variable = |param: &AppParam| {
            let value = given.get(&param.key);
            let is_fine = match value {
                Some(value) => param.accepts(value),
                None => !param.required,
            };
            if !is_fine {
                let problem = format!("{} is missing or no value of it", param.key);
                let allowed = match param.kind {
                    AppParamKind::String | AppParamKind::Secret => "a text of at most 4 KiB".into(),
                    AppParamKind::Number => "a number".into(),
                    AppParamKind::Boolean => "true or false".into(),
                    AppParamKind::Select => param.options.join(", "),
                };
                return Err(crate::Error::invalid("params", problem, allowed));
            }
            let value = value.unwrap_or(&param.default).clone();
            Ok(EnvVar { key: param.variable(), value })
        };
        self.params.iter().map(variable).collect()
    }

    /// What its port is called, in a workspace of this name.
    fn slug(&self, workspace: &str) -> Option<String> {
        let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let room = SLUG_CHARS.saturating_sub(self.id.len() + 1);
        let stem: String = workspace.chars().map(fit).take(room).collect();
        let slug = format!("{}-{}", stem.trim_matches('-'), self.id);
        Slug::parse(&slug).is_ok().then_some(slug)
    }
}

/// An app, and what whoever wants it has decided.
#[derive(Clone, PartialEq, Eq)]
pub struct ChosenApp {
    /// Its id in the catalogue.
    pub id: String,
    /// Values of its parameters, by their keys. May be secrets.
    pub params: BTreeMap<String, String>,
}

/// No values: they may be secrets.
impl std::fmt::Debug for ChosenApp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChosenApp").field("id", &self.id).finish_non_exhaustive()
    }
}

/// All apps there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppCatalogue(Vec<CatalogApp>);

impl AppCatalogue {
    /// The apps that are there by themselves: they need nothing but the built-in images, and no network.
    #[must_use]
    pub fn built_in() -> Self {
        Self(vec![CatalogApp {
            id: "static-files".to_owned(),
            name: "Static files".to_owned(),
            description: "Shows a directory of the workspace in a browser".to_owned(),
            icon: "folder".to_owned(),
            category: "tools".to_owned(),
            min_memory_mib: 64,
            min_disk_mib: 16,
            install: "set -e\npython3 -c 'import http.server'\n\
                      install -d -o developer -g developer /home/developer/public\n\
                      echo \"installed for $PARAM_DIRECTORY\"\n"
                .to_owned(),
            service: Some(AppService {
                port: 8080,
                command: "python3 -m http.server 8080 --directory {PARAM_DIRECTORY}".to_owned(),
                user: Some("developer".to_owned()),
            }),
            params: vec![AppParam {
                key: "directory".to_owned(),
                label: "Directory".to_owned(),
                kind: AppParamKind::String,
                default: "/home/developer/public".to_owned(),
                description: "What is shown".to_owned(),
                required: false,
                options: Vec::new(),
            }],
            incompatible_templates: Vec::new(),
        }])
    }

    /// With these beside them; one of an id that is there takes its place.
    ///
    /// # Errors
    /// A sentence that names what is wrong with one of them.
    pub fn with(mut self, more: Vec<CatalogApp>) -> Result<Self, String> {
        for app in more {
            app.check()?;
            self.0.retain(|there| there.id != app.id);
            self.0.push(app);
        }
        self.0.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(self)
    }

    /// The apps, by id.
    #[must_use]
    pub fn apps(&self) -> &[CatalogApp] {
        &self.0
    }

    /// The app of this id.
    #[must_use]
    pub fn app(&self, id: &str) -> Option<&CatalogApp> {
        self.0.iter().find(|app| app.id == id)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_is_built_in_is_as_it_must_be() {
        for app in AppCatalogue::built_in().apps() {
            app.check().unwrap();
            assert!(app.variables(&BTreeMap::new()).is_ok(), "{}", app.id);
        }
    }

    #[test]
    fn an_entry_of_an_id_that_is_there_takes_its_place() {
        let other =
            CatalogApp { name: "Ours".to_owned(), ..AppCatalogue::built_in().apps()[0].clone() };
        let all = AppCatalogue::built_in().with(vec![other]).unwrap();
        assert_eq!(all.apps().len(), 1);
        assert_eq!(all.app("static-files").unwrap().name, "Ours");
    }

    #[test]
    fn a_wrong_entry_is_refused_by_its_id() {
        let good = AppCatalogue::built_in().apps()[0].clone();
        let param = good.params[0].clone();
        let service = good.service.clone().unwrap();
        for wrong in [
            CatalogApp { id: "Upper".to_owned(), ..good.clone() },
            CatalogApp { id: "-x".to_owned(), ..good.clone() },
            CatalogApp { install: " ".to_owned(), ..good.clone() },
            CatalogApp { service: Some(AppService { port: 0, ..service.clone() }), ..good.clone() },
            CatalogApp {
                service: Some(AppService { command: "a 'b".to_owned(), ..service }),
                ..good.clone()
            },
            CatalogApp {
                params: vec![AppParam { key: "A".to_owned(), ..param.clone() }],
                ..good.clone()
            },
            CatalogApp {
                params: vec![AppParam { kind: AppParamKind::Number, ..param }],
                ..good.clone()
            },
        ] {
            let refused = AppCatalogue::built_in().with(vec![wrong.clone()]).unwrap_err();
            assert!(refused.contains(&format!("{:?}", wrong.id)), "{refused}");
        }
    }

    #[test]
    fn a_value_that_is_none_is_refused_and_one_that_is_missing_is_the_default() {
        let mut app = AppCatalogue::built_in().apps()[0].clone();
        app.params.push(AppParam {
            key: "size".to_owned(),
            label: String::new(),
            kind: AppParamKind::Select,
            default: "small".to_owned(),
            description: String::new(),
            required: false,
            options: ["small", "large"].map(str::to_owned).into(),
        });
        let given = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let large = app.variables(&given("size", "large")).unwrap();
        assert_eq!((large[1].key.as_str(), large[1].value.as_str()), ("PARAM_SIZE", "large"));
        assert_eq!(large[0].value, "/home/developer/public");
        assert!(app.variables(&given("size", "huge")).is_err());
        assert!(app.variables(&given("colour", "red")).is_err());
        app.params[1].required = true;
        assert!(app.variables(&BTreeMap::new()).is_err());
    }

    #[test]
    fn the_address_of_an_app_has_the_name_of_its_workspace() {
        let app = AppCatalogue::built_in().apps()[0].clone();
        assert_eq!(app.slug("My Project").as_deref(), Some("my-project-static-files"));
        let long = app.slug(&"x".repeat(255)).unwrap();
        assert_eq!(long.len(), 63);
        assert_eq!(app.slug("ä").as_deref(), None);
    }
}
