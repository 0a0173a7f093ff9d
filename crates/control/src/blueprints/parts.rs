//! What a new workspace is made of: blueprints become workloads, sizes and an image. They are copied: a
//! workspace needs its blueprints no more than a house its plans.

use std::collections::{BTreeMap, BTreeSet};

use skerry_model::{
    Blueprint, BlueprintBody, BlueprintId, BlueprintKind, Floor, Invalid, MAX_SCRIPTS_BYTES,
    MadeFrom, ServiceSpec, SetupRuns, SetupScript, Template, WorkloadDesired, WorkloadKind,
    WorkloadOrigin, WorkloadRestart, blueprint::check_count,
};

use crate::{Caller, CatalogApp, CreateWorkspace, Error, NewWorkload, control::Inner};

/// Reads a file of variables as systemd's `EnvironmentFile` has them, then becomes the command.
const WITH_ENVIRONMENT_FILE: &str = r#"file=$1
shift
case $file in
-*) file=${file#-}; [ -r "$file" ] || exec "$@" ;;
esac
while IFS= read -r line || [ -n "$line" ]; do
  case $line in
  '' | '#'* | ';'*) continue ;;
  *=*) ;;
  *) continue ;;
  esac
  value=${line#*=}
  case $value in
  \"*\") value=${value#\"}; value=${value%\"} ;;
  \'*\') value=${value#\'}; value=${value%\'} ;;
  esac
  export "${line%%=*}=$value"
done < "$file" || exit 1
exec "$@""#;
/// The most characters of a blueprint's name within a workload's.
const NAME_CHARS: usize = 40;

/// An app, and what was decided of it.
type FoundApp = (CatalogApp, BTreeMap<String, String>);

/// What blueprints say of a new workspace.
#[derive(Default)]
pub(crate) struct Parts {
    /// The template's image.
    pub(crate) image: Option<String>,
    /// The template's sizes, for a request that asks for none.
    pub(crate) defaults: Floor,
    /// What the record remembers.
    pub(crate) made_from: MadeFrom,
    /// What the guest supervises.
    pub(crate) workloads: Vec<NewWorkload>,
}

impl Inner {
    /// What a request's blueprints say. All of them have to be there; nothing is recorded.
    pub(crate) async fn parts_of_new(
        &self,
        caller: &Caller,
        request: &CreateWorkspace,
    ) -> Result<Parts, Error> {
        let mut template = None;
        if let Some(id) = &request.template {
            if request.from_snapshot.is_some() {
                let problem = "is given together with a snapshot";
                return Err(Error::invalid("template", problem, "one of both"));
            }
            template = Some(self.template_named(caller, id).await?);
        }
        let template = template.unwrap_or_default();
        let mut setups = self.setups(caller, "template", &template.setup).await?;
        for one in self.setups(caller, "setup_scripts", &request.setup).await? {
            if setups.iter().all(|(there, _)| there.id != one.0.id) {
                setups.push(one);
            }
        }
        let mut services = self.services(caller, "template", &template.services).await?;
        for one in self.services(caller, "service_specs", &request.services).await? {
            if services.iter().all(|(there, _)| there.id != one.0.id) {
                services.push(one);
            }
        }
        let apps = self.apps_of(request, &template)?;
        check_scripts(&setups, &services)?;
        let mut workloads = Vec::new();
        for (number, (blueprint, script)) in (1_usize..).zip(&setups) {
            workloads.push(setup_workload(number, blueprint, script));
        }
        for (app, params) in &apps {
            workloads.extend(app.workloads(params)?);
        }
        for (blueprint, service) in &services {
            workloads.extend(service_workloads(blueprint, service)?);
        }
        let apps: Vec<CatalogApp> = apps.into_iter().map(|(app, _)| app).collect();
        let floor = template.least.with(CatalogApp::floor(&apps));
        Ok(Parts {
            image: request.template.is_some().then_some(template.image),
            defaults: template.least,
            made_from: MadeFrom { template: request.template.clone(), floor },
            workloads,
        })
    }

    /// The apps a request names, and those of its template.
    fn apps_of(
        &self,
        request: &CreateWorkspace,
        template: &Template,
    ) -> Result<Vec<FoundApp>, Error> {
        let of_template = template.apps.iter().map(|id| (id, BTreeMap::new()));
        let of_template = of_template
            .filter(|(id, _)| request.apps.iter().all(|asked| asked.id != **id))
            .map(|(id, params)| ("template", id, params));
        let asked = request.apps.iter().map(|asked| ("apps", &asked.id, asked.params.clone()));
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        for (field, id, params) in of_template.chain(asked) {
            let shown: String = id.chars().take(64).flat_map(char::escape_default).collect();
            let apps = self.config.apps.apps();
            let Some(app) = apps.iter().find(|app| app.id == *id) else {
                let known: Vec<&str> = apps.iter().map(|app| app.id.as_str()).collect();
                return Err(Error::invalid(
                    field,
                    format!("there is no {shown}"),
                    known.join(", "),
                ));
            };
            if !seen.insert(id) {
                return Err(Error::invalid(field, format!("name {shown} twice"), "each once"));
            }
            if let Some(template) = &request.template
                && app.incompatible_templates.contains(template)
            {
                let problem = format!("{shown} cannot be installed with this template");
                return Err(Error::invalid(field, problem, "apps that go with the template"));
            }
            all.push((app.clone(), params));
        }
        Ok(all)
    }

    /// The template a request names: the account's own by its identifier, or one that is there by
    /// itself.
    async fn template_named(&self, caller: &Caller, name: &str) -> Result<Template, Error> {
        let found = match name.parse::<BlueprintId>() {
            Ok(id) => {
                let kind = BlueprintKind::Template;
                let own = self.store.blueprint(caller.account_id, kind, id).await?;
                own.and_then(|own| match own.body {
                    BlueprintBody::Template(template) => Some(template),
                    BlueprintBody::Service(_) | BlueprintBody::Setup(_) => None,
                })
            }
            Err(_) => self.built_in_template(name).await?,
        };
        found.ok_or_else(|| {
            let allowed = "the id of a template of the account, or the name of an image";
            Error::invalid("template", "names no template", allowed)
        })
    }

    /// These setup scripts of the account, in this order.
    pub(super) async fn setups(
        &self,
        caller: &Caller,
        field: &'static str,
        ids: &[BlueprintId],
    ) -> Result<Vec<(Blueprint, SetupScript)>, Error> {
        let all = self.named(caller, BlueprintKind::Setup, field, ids).await?;
        let setup = |blueprint: Blueprint| match blueprint.body.clone() {
            BlueprintBody::Setup(setup) => Some((blueprint, setup)),
            BlueprintBody::Service(_) | BlueprintBody::Template(_) => None,
        };
        Ok(all.into_iter().filter_map(setup).collect())
    }

    /// These services of the account, in this order.
    pub(super) async fn services(
        &self,
        caller: &Caller,
        field: &'static str,
        ids: &[BlueprintId],
    ) -> Result<Vec<(Blueprint, ServiceSpec)>, Error> {
        let all = self.named(caller, BlueprintKind::Service, field, ids).await?;
        let service = |blueprint: Blueprint| match blueprint.body.clone() {
            BlueprintBody::Service(service) => Some((blueprint, service)),
            BlueprintBody::Setup(_) | BlueprintBody::Template(_) => None,
        };
        Ok(all.into_iter().filter_map(service).collect())
    }

    async fn named(
        &self,
        caller: &Caller,
        kind: BlueprintKind,
        field: &'static str,
        ids: &[BlueprintId],
    ) -> Result<Vec<Blueprint>, Error> {
        check_count(field, ids.len())?;
        let mut seen = BTreeSet::new();
        let mut all = Vec::with_capacity(ids.len());
        for id in ids {
            if !seen.insert(*id) {
                return Err(Error::invalid(field, format!("name {id} twice"), "each once"));
            }
            let found = self.store.blueprint(caller.account_id, kind, *id).await?;
            all.push(found.ok_or_else(|| {
                let allowed = format!("ids of the account, kind {}", kind.noun());
                Error::invalid(field, format!("there is no {} {id}", kind.noun()), allowed)
            })?);
        }
        Ok(all)
    }
}

fn check_scripts(
    setups: &[(Blueprint, SetupScript)],
    services: &[(Blueprint, ServiceSpec)],
) -> Result<(), Invalid> {
    let scripts = setups.iter().map(|(_, setup)| setup.script.len());
    let setups_of_services = services.iter().filter_map(|(_, service)| service.setup.as_ref());
    let bytes: usize = scripts.chain(setups_of_services.map(String::len)).sum();
    if bytes <= MAX_SCRIPTS_BYTES {
        return Ok(());
    }
    Err(Invalid {
        field: "setup_scripts",
        problem: format!("take {bytes} bytes"),
        allowed: format!("at most {} KiB of scripts together", MAX_SCRIPTS_BYTES / 1024),
    })
}

fn script(text: &str) -> Vec<String> {
    ["/bin/bash", "-c", text].map(str::to_owned).into()
}

/// A name for people within one for machines.
fn word(name: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    name.chars().take(NAME_CHARS).map(fit).collect()
}

fn setup_workload(number: usize, blueprint: &Blueprint, setup: &SetupScript) -> NewWorkload {
    NewWorkload {
        name: Some(format!("setup.{number}.{}", word(&blueprint.name))),
        kind: match setup.runs {
            SetupRuns::Once => WorkloadKind::SetupOnce,
            SetupRuns::AtBoot => WorkloadKind::SetupAtBoot,
        },
        user: setup.user.clone(),
        working_dir: setup.working_dir.clone(),
        origin: WorkloadOrigin::Setup { blueprint_id: blueprint.id },
        ..NewWorkload::new(script(&setup.script))
    }
}

/// A service, and before it what it needs first.
fn service_workloads(
    blueprint: &Blueprint,
    service: &ServiceSpec,
) -> Result<Vec<NewWorkload>, Invalid> {
    let (blueprint_id, name) = (blueprint.id, &blueprint.name);
    let mut all = Vec::with_capacity(2);
    if let Some(text) = &service.setup {
        all.push(NewWorkload {
            name: Some(format!("service-setup.{name}")),
            kind: WorkloadKind::SetupOnce,
            env: service.env.clone(),
            user: service.user.clone(),
            working_dir: service.working_dir.clone(),
            origin: WorkloadOrigin::ServiceSetup { blueprint_id },
            ..NewWorkload::new(script(text))
        });
    }
    let mut argv = service.words()?;
    if let Some(file) = &service.environment_file {
        let reading = ["/bin/sh", "-c", WITH_ENVIRONMENT_FILE, "environment-file", file];
        argv = reading.map(str::to_owned).into_iter().chain(argv).collect();
    }
    all.push(NewWorkload {
        name: Some(format!("service.{name}")),
        env: service.env.clone(),
        user: service.user.clone(),
        working_dir: service.working_dir.clone(),
        restart: WorkloadRestart { mode: service.restart, ..WorkloadRestart::default() },
        desired: if service.starts_by_itself {
            WorkloadDesired::Running
        } else {
            WorkloadDesired::Stopped
        },
        origin: WorkloadOrigin::Service { blueprint_id },
        ..NewWorkload::new(argv)
    });
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::WITH_ENVIRONMENT_FILE;

    fn run(file: &str) -> (bool, String) {
        let shown = ["/bin/sh", "-c", "echo \"[$A][$B]\""];
        let out = Command::new("/bin/sh")
            .args(["-c", WITH_ENVIRONMENT_FILE, "environment-file", file])
            .args(shown)
            .env_clear()
            .output()
            .unwrap();
        (out.status.success(), String::from_utf8(out.stdout).unwrap())
    }

    #[test]
    fn a_file_of_variables_is_read_as_a_unit_would_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        let text = "# a comment\n\nA=$HOME `id` 'x'\nno variable\nB=\"two words\"";
        std::fs::write(&path, text).unwrap();
        let file = path.to_str().unwrap();
        let read = (true, "[$HOME `id` 'x'][two words]\n".to_owned());
        assert_eq!(run(file), read);
        assert_eq!(run(&format!("-{file}")), read);
    }

    #[test]
    fn a_file_of_variables_is_needed_unless_it_is_said_not_to_be() {
        assert_eq!(run("/nonexistent/env"), (false, String::new()));
        assert_eq!(run("-/nonexistent/env"), (true, "[][]\n".to_owned()));
    }
}
