//! Published ports: ports of workspaces with an address of their own.

use axum::{Json, extract::State};
use http::StatusCode;
use skerry_control::{self as control, PortVisibility, Publication, PublishPort, PublishedPort};

use super::{
    Body, Login, Params, convert,
    error_body::{NativeError, NativeResult},
    wire,
};
use crate::{ApiConfig, ApiState, ids::parse_workspace_ref};

fn shown(config: &ApiConfig, port: PublishedPort) -> wire::PublishedPort {
    wire::PublishedPort {
        port: port.port,
        url: config.preview_url(port.slug.as_str()),
        slug: port.slug.as_str().to_owned(),
        label: port.label,
        visibility: match port.visibility {
            PortVisibility::Public => wire::Visibility::Public,
            PortVisibility::Private => wire::Visibility::Private,
        },
        created_at: convert::time(port.created_at),
        token: None,
    }
}

fn published(config: &ApiConfig, Publication { port, token }: Publication) -> wire::PublishedPort {
    let token = token.map(|token| token.expose().to_owned());
    wire::PublishedPort { token, ..shown(config, port) }
}

const fn visibility(visibility: wire::Visibility) -> PortVisibility {
    match visibility {
        wire::Visibility::Public => PortVisibility::Public,
        wire::Visibility::Private => PortVisibility::Private,
    }
}

/// Lists the ports that a workspace publishes.
#[utoipa::path(
    operation_id = "list_published_ports",
    get, path = "/skerry/v1/workspaces/{workspace}/published-ports", tag = "previews",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    responses(
        (status = 200, body = wire::PublishedPortList),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
    ),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
) -> NativeResult<Json<wire::PublishedPortList>> {
    let which = parse_workspace_ref(&workspace.value);
    let ports = state.control.list_published_ports(&login.caller, &which).await?;
    let published_ports = ports.into_iter().map(|port| shown(&state.config, port)).collect();
    Ok(Json(wire::PublishedPortList { published_ports }))
}

/// Publishes a port of a workspace; of one that is published already, changes what is given. The token
/// of a private port is shown in this answer alone; asking for a private port again makes another.
#[utoipa::path(
    operation_id = "publish_port",
    post, path = "/skerry/v1/workspaces/{workspace}/published-ports", tag = "previews",
    params(("workspace" = String, Path, description = "Slug, name, or identity in any API's form")),
    request_body = wire::PublishPort,
    responses(
        (status = 201, body = wire::PublishedPort),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace"),
        (status = 409, body = wire::ErrorBody, description = "The slug is taken, or there are too many"),
    ),
)]
pub(super) async fn publish(
    State(state): State<ApiState>,
    login: Login,
    workspace: Params<String>,
    body: Body<wire::PublishPort>,
) -> NativeResult<(StatusCode, Json<wire::PublishedPort>)> {
    let which = parse_workspace_ref(&workspace.value);
    let wire::PublishPort { port, slug, label, visibility: who } = body.value;
    let request = PublishPort { port, slug, label, visibility: who.map(visibility) };
    let made = state.control.publish_port(&login.caller, &which, request).await?;
    Ok((StatusCode::CREATED, Json(published(&state.config, made))))
}

/// Changes a published port. What was opened under conditions that no longer hold is closed.
#[utoipa::path(
    operation_id = "update_published_port",
    patch, path = "/skerry/v1/workspaces/{workspace}/published-ports/{port}", tag = "previews",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        ("port" = u16, Path, description = "The port inside"),
    ),
    request_body = wire::UpdatePublishedPort,
    responses(
        (status = 200, body = wire::PublishedPort),
        (status = 400, body = wire::ErrorBody, description = "A field is not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace, or the port is not published"),
        (status = 409, body = wire::ErrorBody, description = "The slug is taken"),
    ),
)]
pub(super) async fn update(
    State(state): State<ApiState>,
    login: Login,
    path: Params<(String, String)>,
    body: Body<wire::UpdatePublishedPort>,
) -> NativeResult<Json<wire::PublishedPort>> {
    let (workspace, port) = path.value;
    let which = parse_workspace_ref(&workspace);
    let wire::UpdatePublishedPort { slug, label, visibility: who } = body.value;
    let visibility = who.map(visibility);
    let request = PublishPort { port: number(&port)?, slug, label, visibility };
    let changed = state.control.update_port(&login.caller, &which, request).await?;
    Ok(Json(published(&state.config, changed)))
}

/// Revokes a published port: its address leads nowhere from then on, and what is open through it is
/// closed.
#[utoipa::path(
    operation_id = "revoke_port",
    delete, path = "/skerry/v1/workspaces/{workspace}/published-ports/{port}", tag = "previews",
    params(
        ("workspace" = String, Path, description = "Slug, name, or identity in any API's form"),
        ("port" = u16, Path, description = "The port inside"),
    ),
    responses(
        (status = 204, description = "Revoked"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace, or the port is not published"),
    ),
)]
pub(super) async fn revoke(
    State(state): State<ApiState>,
    login: Login,
    path: Params<(String, String)>,
) -> NativeResult<StatusCode> {
    let (workspace, port) = path.value;
    let which = parse_workspace_ref(&workspace);
    state.control.revoke_port(&login.caller, &which, number(&port)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What is no port is not published either.
fn number(text: &str) -> NativeResult<u16> {
    text.parse().map_err(|_| NativeError::from(control::Error::not_found("port")))
}
