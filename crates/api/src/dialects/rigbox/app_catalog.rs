//! The catalogue of apps, and installing from it.

use std::collections::BTreeMap;

use axum::{Json, extract};
use serde::{Deserialize, Serialize};
use skerry_control::{AppParam, AppParamKind, CatalogApp};

use super::{
    Rigbox,
    apps::{self, AppView},
    convert,
    error_body::RigboxError,
    workspaces::WorkspaceId,
};
use crate::{ApiState, auth::Authenticated, extract::JsonBody, object::Object};

/// What an app is.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum KindView {
    /// It serves HTTP.
    Service { port: u16, exec_start: String },
    /// It is a program for whoever comes by a shell.
    Cli,
}

/// Something to decide.
#[derive(Serialize)]
pub(super) struct ParamView {
    key: String,
    label: String,
    param_type: &'static str,
    default: String,
    description: String,
    order: usize,
    required: bool,
    sensitive: bool,
    options: Vec<OptionView>,
}

/// A value of a select.
#[derive(Serialize)]
struct OptionView {
    value: String,
    label: String,
}

/// An app.
#[derive(Serialize)]
pub(super) struct ItemView {
    id: String,
    name: String,
    description: String,
    icon: String,
    category: String,
    min_ram_mb: u32,
    min_disk_mb: u32,
    app_kind: KindView,
    configurable_params: Vec<ParamView>,
    system_tags: [&'static str; 1],
    preview: bool,
    destructive_delete: bool,
    incompatible_templates: Vec<String>,
}

/// Answer of `GET /app-catalog`.
#[derive(Serialize)]
pub(super) struct Catalogue {
    items: Vec<ItemView>,
}

/// Body of `POST /workspaces/{id}/install-app`. No `Debug`: values may be secrets.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InstallBody {
    #[serde(default)]
    catalog_id: Option<String>,
    #[serde(default)]
    params: Option<BTreeMap<String, String>>,
}

/// Answer of `POST /workspaces/{id}/install-app`.
#[derive(Serialize)]
pub(super) struct Installation {
    app: AppView,
    message: String,
    /// Whether it is being installed now, and not by the next start.
    live_installed: bool,
    job_id: String,
}

/// Answer of `POST /workspaces/{id}/reconcile-apps`.
#[derive(Serialize)]
pub(super) struct ReconciledView {
    created: Vec<AppView>,
    existing: Vec<AppView>,
    /// App to job.
    install_jobs: BTreeMap<String, String>,
}

fn param(order: usize, param: &AppParam) -> ParamView {
    let option = |value: &String| OptionView { value: value.clone(), label: value.clone() };
    ParamView {
        key: param.key.clone(),
        label: param.label.clone(),
        param_type: match param.kind {
            AppParamKind::String => "string",
            AppParamKind::Secret => "secret",
            AppParamKind::Number => "number",
            AppParamKind::Boolean => "boolean",
            AppParamKind::Select => "select",
        },
        default: param.default.clone(),
        description: param.description.clone(),
        order,
        required: param.required,
        sensitive: param.kind == AppParamKind::Secret,
        options: param.options.iter().map(option).collect(),
    }
}

fn item(app: &CatalogApp) -> ItemView {
    ItemView {
        id: app.id.clone(),
        name: app.name.clone(),
        description: app.description.clone(),
        icon: app.icon.clone(),
        category: app.category.clone(),
        min_ram_mb: app.min_memory_mib,
        min_disk_mb: app.min_disk_mib,
        app_kind: match &app.service {
            Some(service) => {
                KindView::Service { port: service.port, exec_start: service.command.clone() }
            }
            None => KindView::Cli,
        },
        configurable_params: (0..).zip(&app.params).map(|(order, one)| param(order, one)).collect(),
        system_tags: ["catalog"],
        preview: false,
        destructive_delete: false,
        incompatible_templates: app.incompatible_templates.clone(),
    }
}

/// `GET /app-catalog`: for everybody.
pub(super) async fn list(extract::State(state): extract::State<ApiState>) -> Json<Catalogue> {
    Json(Catalogue { items: state.control.app_catalogue().apps().iter().map(item).collect() })
}

/// `POST /workspaces/{id}/install-app`.
pub(super) async fn install(
    extract::State(state): extract::State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
    body: JsonBody<Object<InstallBody>, Rigbox>,
) -> Result<Json<Installation>, RigboxError> {
    let InstallBody { catalog_id, params } = body.value.0;
    let id = catalog_id.ok_or_else(|| convert::required("catalog_id", "an id of the catalogue"))?;
    let params = params.unwrap_or_default();
    let installed = state.control.install_app(&auth.caller, &which, &id, &params).await?;
    let workspace = state.control.get_workspace(&auth.caller, &which).await?;
    let live = convert::status_of(&workspace) == super::wire::VmStatus::Running;
    let job_id = installed.install.workload.id.to_string();
    let app = apps::of_installed(&state, &auth.caller, workspace, &installed).await?;
    let message = if live { "the installation has begun" } else { "installed by the next start" };
    Ok(Json(Installation { app, message: message.to_owned(), live_installed: live, job_id }))
}

/// `POST /workspaces/{id}/reconcile-apps`: apps get the addresses they lack.
pub(super) async fn reconcile(
    extract::State(state): extract::State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<ReconciledView>, RigboxError> {
    let done = state.control.reconcile_apps(&auth.caller, &which).await?;
    let workspace = state.control.get_workspace(&auth.caller, &which).await?;
    let installed = state.control.installed_apps(&auth.caller, &which).await?;
    let mut view =
        ReconciledView { created: Vec::new(), existing: Vec::new(), install_jobs: BTreeMap::new() };
    for app in &installed {
        let is_new = done.created.iter().any(|port| Some(port.port) == app.port);
        let shown = apps::of_installed(&state, &auth.caller, workspace.clone(), app).await?;
        if is_new { &mut view.created } else { &mut view.existing }.push(shown);
        view.install_jobs.insert(app.app_id.clone(), app.install.workload.id.to_string());
    }
    Ok(Json(view))
}
