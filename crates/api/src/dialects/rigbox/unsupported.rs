//! The parts of Rigbox's API that this server does not have. They answer 501 rather than 404, so
//! that a client learns that the path is right and the feature is missing.

use axum::{Router, routing::any};
use http::{Method, Uri};

use super::{Rigbox, error_body::RigboxError};
use crate::{ApiState, auth::Authenticated};

/// Roots of resources, each with everything below it.
const ROOTS: &[&str] = &[
    "/access-control",
    "/auth/cli-session",
    "/builds",
    "/catalog",
    "/community",
    "/dashboard",
    "/deploy/preview",
    "/feature-flags",
    "/metrics",
    "/roadmap/votes",
    "/traces",
    "/tunnels",
    "/users/me/ai-defaults",
    "/users/me/ai-mode",
    "/users/me/ai-usage",
    "/users/me/credits",
    "/users/me/regions",
    "/users/me/settings",
];

/// The same below a workspace.
const WORKSPACE_ROOTS: &[&str] = &[
    "/ai-config",
    "/ai-usage/metrics",
    "/app-releases",
    "/deploy/launch",
    "/deploy/launch-from-manifest",
    "/expose-port",
    "/logs/stream",
    "/metrics/series",
    "/metrics/summary",
    "/mode",
    "/rollback",
    "/tasks",
    "/tools",
    "/volumes",
];

/// The same of an app.
const APP_ROOTS: &[&str] =
    &["/env", "/log-sources", "/logs/stream", "/metrics", "/params", "/status", "/verify-domain"];

/// The routes under `prefix`.
pub(super) fn routes(prefix: &str) -> Router<ApiState> {
    let roots = ROOTS.iter().map(|root| format!("{prefix}{root}"));
    let workspace_roots =
        WORKSPACE_ROOTS.iter().map(|root| format!("{prefix}/workspaces/{{id}}{root}"));
    let app_roots = APP_ROOTS.iter().map(|root| format!("{prefix}/apps/{{id}}{root}"));
    roots
        .chain(workspace_roots)
        .chain(app_roots)
        .chain([format!("{prefix}/workspaces/from-definition")])
        .fold(Router::new(), |router, root| {
            router.route(&root, any(refuse)).route(&format!("{root}/{{*below}}"), any(refuse))
        })
}

async fn refuse(method: Method, uri: Uri, _auth: Authenticated<Rigbox>) -> RigboxError {
    RigboxError::not_supported(&format!("{method} {}", uri.path()))
}
