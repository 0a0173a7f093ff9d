//! The Aether dialect: `/projects`, `/workspaces`, `/user`, `/profile`; on the host `aether.<base>`
//! also below `/v1`, as one of its clients has it.

mod connect;
mod convert;
mod error_body;
mod hardware;
mod projects;
mod socket;
mod user;
mod wire;
mod workspaces;

use axum::{
    Router,
    routing::{any, get, post},
};
use http::{Method, Uri};

use self::error_body::AetherError;
pub(crate) use self::socket::Terminals;
use crate::{ApiState, auth::Authenticated};

/// The Aether dialect.
#[derive(Clone, Copy, Debug)]
pub struct Aether;

/// The routes on the shared origin. Never `/health` and `/healthz`: those are answered for everybody.
pub fn router() -> Router<ApiState> {
    routes("")
}

/// The routes on this dialect's own host (`aether.<base>`): those of [`router`], and the same below
/// `/v1`, which InstaVM has elsewhere.
pub fn host_router() -> Router<ApiState> {
    router().merge(routes("/v1"))
}

fn routes(prefix: &str) -> Router<ApiState> {
    let at = |path: &str| format!("{prefix}{path}");
    Router::new()
        .route(&at("/projects"), get(projects::list).post(projects::create))
        .route(&at("/projects/{id}"), get(projects::get).patch(not_supported).delete(not_supported))
        .route(
            &at("/projects/{id}/workspaces"),
            get(workspaces::list_of_project).post(workspaces::create),
        )
        .route(&at("/workspaces"), get(workspaces::list_all))
        .route(
            &at("/workspaces/{id}"),
            get(workspaces::get).patch(workspaces::update).delete(workspaces::delete),
        )
        .route(&at("/workspaces/{id}/start"), post(workspaces::start))
        .route(&at("/workspaces/{id}/stop"), post(workspaces::stop))
        .route(&at("/profile"), get(user::profile))
        .route(&at("/user/settings"), get(user::settings).put(not_supported))
        .route(&at("/user/api-keys"), any(not_supported))
        .route(&at("/user/api-keys/{provider}"), any(not_supported))
        .route(&at("/projects/{id}/env-vars"), any(not_supported))
        .route(&at("/projects/{id}/env-vars/{key}"), any(not_supported))
        .route(&at("/workspaces/{id}/connect"), post(connect::connect))
        .route(&at("/workspaces/{id}/ws"), any(socket::connect))
        .route(&at("/tasks"), any(not_supported))
        .route(&at("/tasks/{*below}"), any(not_supported))
}

/// The parts of Aether's API that this server does not have. They answer 501 rather than 404, so that
/// a client learns that the path is right and the feature is missing.
async fn not_supported(method: Method, uri: Uri, _auth: Authenticated<Aether>) -> AetherError {
    AetherError::not_supported(&format!("{method} {}", uri.path()))
}
