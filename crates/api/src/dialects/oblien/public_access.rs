//! `/workspace/:id/public-access`: ports with an address of their own.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skerry_control::{
    Caller, PortVisibility, PublishPort, PublishedPort, ports::PUBLISHED_PORTS_MAX,
};
use skerry_model::{State as WorkspaceState, Workspace};

use super::{
    Oblien,
    error_body::{Problem, Refusal},
};
use crate::{
    ApiConfig, ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf},
    ids,
    object::Object,
};

type Login = Authenticated<Oblien>;

/// A port with an address of its own.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PublicPort {
    port: u16,
    /// The first label of its host, chosen or random.
    hash: String,
    label: Option<String>,
    url: String,
}

/// `POST …/public-access`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ExposeBody {
    port: Option<Value>,
    label: Option<String>,
    slug: Option<String>,
    domain: Option<Value>,
}

/// `PATCH …/public-access/:port`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct SlugBody {
    slug: Option<String>,
}

fn shown(config: &ApiConfig, port: PublishedPort) -> PublicPort {
    PublicPort {
        port: port.port,
        url: config.preview_url(port.slug.as_str()),
        hash: port.slug.as_str().to_owned(),
        label: port.label,
    }
}

/// What these workspaces expose, in their order. Ports that another dialect has published for a few
/// alone are not public and not shown.
pub(super) async fn exposed_by(
    state: &ApiState,
    caller: &Caller,
    workspaces: &[Workspace],
) -> Result<Vec<Vec<PublicPort>>, Problem> {
    let ports = state.control.published_ports_of(caller, workspaces).await?;
    let of = |workspace: &Workspace| {
        let ports = ports.iter().filter(|port| {
            port.workspace_id == workspace.id && port.visibility == PortVisibility::Public
        });
        ports.map(|port| shown(&state.config, port.clone())).collect()
    };
    Ok(workspaces.iter().map(of).collect())
}

pub(super) async fn list(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&caller, &which).await?;
    let ports = exposed_by(&state, &caller, &[workspace]).await?.pop().unwrap_or_default();
    Ok(Json(json!({ "success": true, "ports": ports })).into_response())
}

/// Exposes a port, or refreshes it. Only of a workspace that runs.
pub(super) async fn expose(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
    JsonBody { value: body, .. }: JsonBody<Object<ExposeBody>, Oblien>,
) -> Result<Response, Problem> {
    let Object(ExposeBody { port, label, slug, domain }) = body;
    let port = port_number(port.as_ref())?;
    if domain.is_some_and(|domain| !domain.is_null() && domain != "") {
        return Err(refused("domain", "is not available on this server yet", "leave it out"));
    }
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&caller, &which).await?;
    must_run(&workspace)?;
    let label = label.filter(|label| !label.is_empty());
    let request = PublishPort { port, slug, label, visibility: Some(PortVisibility::Public) };
    let made = state.control.publish_port(&caller, &which, request).await?;
    Ok(one(&state, made.port))
}

/// Gives an exposed port another slug; the address before leads nowhere from then on.
pub(super) async fn rename(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: (reference, port), .. }: PathOf<(String, String), Oblien>,
    JsonBody { value: body, .. }: JsonBody<Object<SlugBody>, Oblien>,
) -> Result<Response, Problem> {
    let port = port_number(Some(&Value::String(port)))?;
    let Object(SlugBody { slug }) = body;
    let slug = slug.ok_or_else(|| refused("slug", "is missing", "3 to 63 of a-z, 0-9 and -"))?;
    let which = ids::parse_workspace_ref(&reference);
    let request = PublishPort { port, slug: Some(slug), label: None, visibility: None };
    let changed = state.control.update_port(&caller, &which, request).await?;
    Ok(one(&state, changed.port))
}

pub(super) async fn revoke(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: (reference, port), .. }: PathOf<(String, String), Oblien>,
) -> Result<Response, Problem> {
    let port = port_number(Some(&Value::String(port)))?;
    let which = ids::parse_workspace_ref(&reference);
    state.control.revoke_port(&caller, &which, port).await?;
    Ok(Json(json!({ "success": true })).into_response())
}

fn one(state: &ApiState, port: PublishedPort) -> Response {
    Json(json!({ "success": true, "port": shown(&state.config, port) })).into_response()
}

fn refused(field: &str, problem: &str, allowed: &str) -> Problem {
    Problem::Refused(Refusal {
        code: "validation_error",
        field: field.to_owned(),
        problem: problem.to_owned(),
        allowed: allowed.to_owned(),
    })
}

pub(super) fn port_number(value: Option<&Value>) -> Result<u16, Problem> {
    let number = match value {
        Some(Value::Number(number)) => number.as_u64().and_then(|number| number.try_into().ok()),
        Some(Value::String(text)) => text.parse().ok(),
        Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => None,
    };
    let allowed = format!("1 to 65535; at most {PUBLISHED_PORTS_MAX} ports of a workspace");
    number.filter(|port| *port > 0).ok_or_else(|| refused("port", "is not a port", &allowed))
}

fn must_run(workspace: &Workspace) -> Result<(), Problem> {
    match &workspace.state {
        WorkspaceState::Running { .. } => Ok(()),
        other @ (WorkspaceState::Provisioned
        | WorkspaceState::Starting
        | WorkspaceState::Paused { .. }
        | WorkspaceState::Suspending
        | WorkspaceState::Suspended
        | WorkspaceState::Stopping
        | WorkspaceState::Stopped
        | WorkspaceState::Failed(_)
        | WorkspaceState::Deleting) => Err(Problem::NotRunning { state: other.name() }),
    }
}
