//! Installing apps, looking at them and taking them away.

use std::collections::BTreeMap;

use skerry_internal_api::WorkloadPhase;
use skerry_model::{
    ErrorKind, RestartMode, Workload, WorkloadDesired, WorkloadId, WorkloadKind, WorkloadOrigin,
    WorkloadRestart, Workspace,
};

use super::{AppCatalogue, CatalogApp};
use crate::{
    Caller, Control, Error, NewWorkload, PortVisibility, PublishPort, PublishedPort, WorkloadView,
    WorkspaceRef,
};

/// Runs an installation, and notes that it has succeeded for what the app runs.
const INSTALL: &str = r#"/bin/bash -c "$2" || exit
mkdir -p /var/lib/skerry-apps && touch "/var/lib/skerry-apps/$1""#;
/// Becomes what an app runs, once that is installed.
const RUN: &str = r#"[ -e "/var/lib/skerry-apps/$1" ] || { echo "$1 is not installed" >&2; exit 1; }
shift
exec "$@""#;

/// An app of a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledApp {
    /// Its id in the catalogue, where it may be gone by now.
    pub app_id: String,
    /// Where it serves HTTP, if it does.
    pub port: Option<u16>,
    /// Its installation.
    pub install: WorkloadView,
    /// What it runs, if it does.
    pub service: Option<WorkloadView>,
}

/// What came of comparing apps with addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Apps that have got an address.
    pub created: Vec<PublishedPort>,
    /// Apps that had one.
    pub existing: Vec<PublishedPort>,
}

impl CatalogApp {
    /// The workloads of an installation.
    pub(crate) fn workloads(
        &self,
        params: &BTreeMap<String, String>,
    ) -> Result<Vec<NewWorkload>, Error> {
        let env = self.variables(params)?;
        let id = &self.id;
        let mut all = vec![NewWorkload {
            name: Some(format!("app-install.{id}")),
            kind: WorkloadKind::SetupOnce,
            env: env.clone(),
            origin: WorkloadOrigin::AppInstall {
                app_id: id.clone(),
                port: self.service.as_ref().map(|service| service.port),
            },
            ..NewWorkload::new(
                ["/bin/bash", "-c", INSTALL, "install", id, &self.install]
                    .map(str::to_owned)
                    .into(),
            )
        }];
        if let Some(service) = &self.service {
            let words = shlex::split(&service.command).unwrap_or_default();
            let filled = words.into_iter().map(|word| {
                env.iter().fold(word, |word, variable| {
                    word.replace(&format!("{{{}}}", variable.key), &variable.value)
                })
            });
            let head = ["/bin/sh", "-c", RUN, "run", id].map(str::to_owned);
            let argv = head.into_iter().chain(filled).collect();
            all.push(NewWorkload {
                name: Some(format!("app.{id}")),
                user: service.user.clone(),
                restart: WorkloadRestart {
                    mode: RestartMode::Always,
                    ..WorkloadRestart::default()
                },
                origin: WorkloadOrigin::App { app_id: id.clone() },
                env,
                ..NewWorkload::new(argv)
            });
        }
        Ok(all)
    }
}

/// The app that an installation is of, and where it serves.
fn installation(workload: &Workload) -> Option<(&str, Option<u16>)> {
    if let WorkloadOrigin::AppInstall { app_id, port } = &workload.origin {
        return Some((app_id, *port));
    }
    None
}

fn is_of(workload: &Workload, id: &str) -> bool {
    match &workload.origin {
        WorkloadOrigin::AppInstall { app_id, .. } | WorkloadOrigin::App { app_id } => app_id == id,
        WorkloadOrigin::Direct
        | WorkloadOrigin::Main
        | WorkloadOrigin::Service { .. }
        | WorkloadOrigin::ServiceSetup { .. }
        | WorkloadOrigin::Setup { .. } => false,
    }
}

impl Control {
    /// The apps there are, without a caller: Rigbox publishes its catalogue to everybody.
    #[must_use]
    pub fn app_catalogue(&self) -> &AppCatalogue {
        &self.inner.config.apps
    }

    /// The apps of a workspace, in the order of their installation.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn installed_apps(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Vec<InstalledApp>, Error> {
        let all = self.workloads(caller, which).await?;
        let app = |install: &WorkloadView| {
            let (app_id, port) = installation(&install.workload)?;
            let of = WorkloadOrigin::App { app_id: app_id.to_owned() };
            Some(InstalledApp {
                app_id: app_id.to_owned(),
                port,
                install: install.clone(),
                service: all.iter().find(|view| view.workload.origin == of).cloned(),
            })
        };
        Ok(all.iter().filter_map(app).collect())
    }

    /// Installs an app. In a workspace that runs it begins at once, else with the next start. An
    /// installation that has failed or was cancelled is begun anew.
    ///
    /// # Errors
    /// `NotFound` (`workspace`, `catalog app`); `Invalid` (`params`, `workloads`); `Conflict` when the
    /// workspace has the app, or its template forbids it.
    pub async fn install_app(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        app_id: &str,
        params: &BTreeMap<String, String>,
    ) -> Result<InstalledApp, Error> {
        let workspace = self.inner.find(caller, which).await?;
        let app = self.inner.config.apps.app(app_id);
        let app = app.ok_or_else(|| Error::not_found("catalog app"))?;
        if let Some(template) = &workspace.spec.made_from.template
            && app.incompatible_templates.contains(template)
        {
            let why = format!("{app_id} cannot be installed where the template is {template}");
            return Err(ErrorKind::Conflict(why).into());
        }
        let there = self.installed_apps(caller, which).await?;
        let there = there.into_iter().find(|there| there.app_id == app_id);
        if there.as_ref().is_some_and(|there| !has_failed(&there.install)) {
            let why = format!("{app_id} is there already, or is being installed");
            return Err(ErrorKind::Conflict(why).into());
        }
        let again = there.map(|there| (there.install.workload.id, there.install.workload.turn));
        let new = self.inner.workloads_of_new(app.workloads(params)?)?.items;
        let of = app.id.clone();
        let changed = self
            .inner
            .change_workloads(caller, which, move |items| put(items, &of, &new, again))
            .await?;
        self.publish_apps(&changed).await?;
        let all = self.installed_apps(caller, which).await?;
        let found = all.into_iter().find(|there| there.app_id == app_id);
        found.ok_or_else(|| Error::not_found("app"))
    }

    /// Takes an app away: what it runs ends, and its address with it. Its files stay.
    ///
    /// # Errors
    /// `NotFound` (`workspace`, `app`).
    pub async fn uninstall_app(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        app_id: &str,
    ) -> Result<(), Error> {
        let all = self.installed_apps(caller, which).await?;
        let app = all.into_iter().find(|there| there.app_id == app_id);
        let app = app.ok_or_else(|| Error::not_found("app"))?;
        if let Some(port) = app.port {
            match self.revoke_port(caller, which, port).await {
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let id = app_id.to_owned();
        let gone = move |items: &mut Vec<Workload>| {
            items.retain(|workload| !is_of(workload, &id));
            Ok(())
        };
        self.inner.change_workloads(caller, which, gone).await.map(drop)
    }

    /// Gives apps that serve HTTP the addresses they lack: a server that died after it had recorded a
    /// workspace, or an app, may have left some without.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when the workspace publishes as much as it may.
    pub async fn reconcile_apps(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Reconciled, Error> {
        let workspace = self.inner.find(caller, which).await?;
        self.publish_apps(&workspace).await
    }

    /// Gives each app of the workspace that serves HTTP an address, unless it has one.
    pub(crate) async fn publish_apps(&self, workspace: &Workspace) -> Result<Reconciled, Error> {
        let mut done = Reconciled::default();
        let served = workspace.spec.workloads.items.iter().filter_map(installation);
        let served: Vec<_> = served.filter_map(|(id, port)| Some((id, port?))).collect();
        if served.is_empty() {
            return Ok(done);
        }
        let there = self.inner.store.list_ports(&[workspace.id]).await?;
        for (id, port) in served {
            match there.iter().find(|stored| stored.port.port == port) {
                Some(stored) => done.existing.push(stored.port.clone()),
                None => done.created.push(self.publish_app(workspace, id, port).await?),
            }
        }
        Ok(done)
    }

    /// Under the workspace's name and the app's; under another where that is taken.
    async fn publish_app(
        &self,
        workspace: &Workspace,
        id: &str,
        port: u16,
    ) -> Result<PublishedPort, Error> {
        let app = self.inner.config.apps.app(id);
        let slugs = [workspace.name.as_str(), workspace.slug.as_str()]
            .map(|name| app.and_then(|app| app.slug(name)));
        let mut last = None;
        for slug in slugs.into_iter().flatten().map(Some).chain([None]) {
            let request = PublishPort {
                port,
                slug,
                label: Some(id.to_owned()),
                visibility: Some(PortVisibility::Private),
            };
            match self.publish_port_of(workspace, &request).await {
                Ok(published) => return Ok(published.port),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::internal("no address was tried")))
    }
}

/// Whether an installation is to be begun anew when it is asked for again.
fn has_failed(install: &WorkloadView) -> bool {
    if install.workload.desired == WorkloadDesired::Stopped {
        return true;
    }
    let report = install.report.as_ref().filter(|one| one.turn == install.workload.turn);
    report.is_some_and(|report| {
        report.phase == WorkloadPhase::Ended && report.last_end.is_some_and(|end| !end.is_success())
    })
}

/// Puts an app's workloads into a list that has them not, or of which the installation has failed.
fn put(
    items: &mut Vec<Workload>,
    app_id: &str,
    new: &[Workload],
    again: Option<(WorkloadId, u64)>,
) -> Result<(), Error> {
    let there = items.iter().find(|one| installation(one).is_some_and(|(id, _)| id == app_id));
    let turn = match (there, again) {
        (None, _) => None,
        (Some(there), Some((id, turn))) if (there.id, there.turn) == (id, turn) => Some(turn),
        (Some(_), _) => {
            let why = format!("{app_id} is being installed by somebody else");
            return Err(ErrorKind::Conflict(why).into());
        }
    };
    for workload in new {
        let mut workload = workload.clone();
        match items.iter_mut().find(|one| one.name == workload.name) {
            Some(before) => {
                workload.id = before.id;
                workload.created_at = before.created_at;
                workload.turn = turn.unwrap_or(before.turn) + 1;
                *before = workload;
            }
            None => items.push(workload),
        }
    }
    Ok(())
}
