//! `POST /quick-deploy`: a workspace from a template, with its apps, started at once.

use std::collections::BTreeMap;

use axum::{Json, extract};
use serde::{Deserialize, Serialize};
use skerry_control::{ChosenApp, CreateWorkspace, StartPolicy, Wait, WorkspaceRef};
use skerry_model::EnvVar;

use super::{
    Rigbox,
    apps::{self, AppView},
    convert,
    error_body::RigboxError,
    wire,
};
use crate::{
    ApiState, auth::Authenticated, extract::JsonBody, number::WholeNumber, object::Object,
};

/// Body of `POST /quick-deploy`. No `Debug`: values may be secrets.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuickDeployBody {
    #[serde(default)]
    template_id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    ram_mb: Option<WholeNumber>,
    #[serde(default)]
    vcpu_count: Option<WholeNumber>,
    #[serde(default)]
    disk_size_mb: Option<WholeNumber>,
    #[serde(default)]
    env_vars: Option<BTreeMap<String, String>>,
    #[serde(default)]
    catalog_ids: Option<Vec<String>>,
    /// App to parameter to value.
    #[serde(default)]
    app_params: Option<BTreeMap<String, BTreeMap<String, String>>>,
    #[serde(default)]
    service_spec_ids: Option<Vec<String>>,
    #[serde(default)]
    setup_script_ids: Option<Vec<String>>,
}

/// Answer of `POST /quick-deploy`.
#[derive(Serialize)]
pub(super) struct Deployed {
    workspace: wire::Vm,
    message: String,
    installed_apps: Vec<String>,
    expected_apps: Vec<AppView>,
}

/// `POST /quick-deploy`.
pub(super) async fn deploy(
    extract::State(state): extract::State<ApiState>,
    auth: Authenticated<Rigbox>,
    body: JsonBody<Object<QuickDeployBody>, Rigbox>,
) -> Result<Json<Deployed>, RigboxError> {
    let body = body.value.0;
    let template_id =
        body.template_id.ok_or_else(|| convert::required("template_id", "a template's id"))?;
    let template = state.control.template(&auth.caller, &template_id).await?;
    let mut params = body.app_params.unwrap_or_default();
    let ids = body.catalog_ids.unwrap_or_default();
    let apps = ids.into_iter().map(|id| {
        let given = params.remove(&id).unwrap_or_default();
        ChosenApp { id, params: given }
    });
    let apps: Vec<_> = apps.collect();
    if let Some(unused) = params.keys().next() {
        let problem = format!("is for {unused}, which is not in catalog_ids");
        return Err(RigboxError::invalid("app_params", &problem, "apps of catalog_ids"));
    }
    let create = wire::CreateWorkspaceBody {
        name: Some(body.name.unwrap_or_else(|| template.name.clone())),
        template_id: Some(template_id),
        image: None,
        ram_mb: body.ram_mb,
        vcpu_count: body.vcpu_count,
        disk_size_mb: body.disk_size_mb,
        catalog_ids: None,
        service_spec_ids: body.service_spec_ids,
        setup_script_ids: body.setup_script_ids,
    };
    let env = body.env_vars.unwrap_or_default().into_iter();
    let request = CreateWorkspace {
        env: env.map(|(key, value)| EnvVar { key, value }).collect(),
        apps,
        start: StartPolicy::Now(Wait::No),
        ..convert::create(create, state.control.plan())?
    };
    let workspace = state.control.create_workspace(&auth.caller, request).await?;
    let which = WorkspaceRef::Id(workspace.id);
    let installed = state.control.installed_apps(&auth.caller, &which).await?;
    let mut expected = Vec::with_capacity(installed.len());
    for app in &installed {
        let app = apps::of_installed(&state, &auth.caller, workspace.clone(), app).await?;
        expected.push(app.expected());
    }
    Ok(Json(Deployed {
        workspace: convert::vm(&workspace),
        message: "the workspace is being started".to_owned(),
        installed_apps: installed.into_iter().map(|app| app.app_id).collect(),
        expected_apps: expected,
    }))
}
