//! Apps that were installed from the catalogue: starting, stopping, and what they say.

use axum::{Json, extract::State};
use serde::Serialize;
use skerry_control::{Error, InstalledApp, WorkloadVerb, WorkspaceRef, internal_api::LogPart};
use skerry_model::{ErrorKind, WorkloadRef};

use super::{
    Rigbox,
    apps::{self, AppView},
    error_body::RigboxError,
    services::{Lines, LinesQuery, lines},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{PathOf, QueryOf},
};

/// Answer of starting, stopping and restarting.
#[derive(Serialize)]
pub(super) struct Commanded {
    message: String,
    service_name: String,
    app: AppView,
}

/// Answer of the log of an app.
#[derive(Serialize)]
pub(super) struct AppLines {
    #[serde(flatten)]
    lines: Lines,
    /// What said it: `service`, or `install` where nothing runs.
    source: &'static str,
}

async fn command(
    state: &ApiState,
    auth: &Authenticated<Rigbox>,
    id: &str,
    verb: WorkloadVerb,
) -> Result<Json<Commanded>, RigboxError> {
    let (installed, workspace) = apps::managed(state, &auth.caller, id).await?;
    let Some(service) = &installed.service else {
        let why = "the app is a program: nothing of it runs by itself".to_owned();
        return Err(Error::from(ErrorKind::Conflict(why)).into());
    };
    let which = WorkspaceRef::Id(workspace.id);
    let workload = WorkloadRef::Id(service.workload.id);
    let view = state.control.command_workload(&auth.caller, &which, &workload, verb).await?;
    let service_name = view.workload.name.clone();
    let changed = InstalledApp { service: Some(view), ..installed };
    let app = apps::of_installed(state, &auth.caller, workspace, &changed).await?;
    let message = match verb {
        WorkloadVerb::Start => "the app is being started",
        WorkloadVerb::Stop => "the app is being stopped",
        WorkloadVerb::Restart => "the app is being restarted",
    };
    Ok(Json(Commanded { message: message.to_owned(), service_name, app }))
}

/// `POST /apps/{id}/start`.
pub(super) async fn start(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<Commanded>, RigboxError> {
    command(&state, &auth, &id.value, WorkloadVerb::Start).await
}

/// `POST /apps/{id}/stop`: it stays stopped over boots too.
pub(super) async fn stop(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<Commanded>, RigboxError> {
    command(&state, &auth, &id.value, WorkloadVerb::Stop).await
}

/// `POST /apps/{id}/restart`.
pub(super) async fn restart(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<Commanded>, RigboxError> {
    command(&state, &auth, &id.value, WorkloadVerb::Restart).await
}

/// `GET /apps/{id}/logs`: the end of what the app says.
pub(super) async fn logs(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
    query: QueryOf<LinesQuery, Rigbox>,
) -> Result<Json<AppLines>, RigboxError> {
    let part = LogPart::Tail { lines: query.value.count()? };
    let (installed, workspace) = apps::managed(&state, &auth.caller, &id.value).await?;
    let (of, source) = match &installed.service {
        Some(service) => (service, "service"),
        None => (&installed.install, "install"),
    };
    let which = WorkspaceRef::Id(workspace.id);
    let workload = WorkloadRef::Id(of.workload.id);
    let log = state.control.workload_log(&auth.caller, &which, &workload, part).await?;
    Ok(Json(AppLines { lines: lines(log), source }))
}
