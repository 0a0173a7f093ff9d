//! The Rigbox dialect: `/api/v1/...` as documented, `/api/...` as in its earlier documentation, and
//! `/v1/...`, the base path of its public clients, on the host `rigbox.<base>` alone.

mod account;
mod app_catalog;
mod apps;
mod catalog;
mod convert;
mod error_body;
mod jobs;
mod listening;
mod logs;
mod managed_apps;
mod metrics;
mod paging;
mod quick_deploy;
mod service_specs;
mod services;
mod setup_scripts;
mod snapshots;
mod ssh_keys;
mod templates;
mod unsupported;
mod wire;
mod workspaces;

use axum::{
    Router,
    routing::{delete, get, post, put},
};

use crate::ApiState;

/// The Rigbox dialect.
#[derive(Clone, Copy, Debug)]
pub struct Rigbox;

/// The routes on the shared origin. Never `/health` and `/healthz`: those are answered for everybody.
pub fn router() -> Router<ApiState> {
    routes("/api/v1").merge(routes("/api"))
}

/// The routes on this dialect's own host (`rigbox.<base>`): those of [`router`] and `/v1/...`, which
/// InstaVM has elsewhere.
pub fn host_router() -> Router<ApiState> {
    router().merge(routes("/v1"))
}

fn routes(prefix: &str) -> Router<ApiState> {
    let at = |path: &str| format!("{prefix}{path}");
    Router::new()
        .route(&at("/workspaces"), get(workspaces::list).post(workspaces::create))
        .route(&at("/workspaces/{id}"), get(workspaces::get).delete(workspaces::delete))
        .route(&at("/workspaces/{id}/start"), post(workspaces::start))
        .route(&at("/workspaces/{id}/stop"), post(workspaces::stop))
        .route(&at("/workspaces/{id}/cancel"), post(workspaces::cancel))
        .route(&at("/workspaces/{id}/retry"), post(workspaces::retry))
        .route(&at("/workspaces/{id}/resources"), put(workspaces::set_resources))
        .route(&at("/workspaces/{id}/env"), post(workspaces::set_env))
        .route(&at("/workspaces/{id}/metrics"), get(metrics::get))
        .route(&at("/workspaces/{id}/logs"), get(logs::get))
        .route(
            &at("/workspaces/{id}/snapshots"),
            get(snapshots::list_of_workspace).post(snapshots::create),
        )
        .route(&at("/workspaces/{id}/snapshots/{sid}"), delete(snapshots::delete_of_workspace))
        .route(
            &at("/workspaces/{id}/snapshots/{sid}/restore"),
            post(snapshots::restore_of_workspace),
        )
        .route(&at("/snapshots"), get(snapshots::list))
        .route(&at("/snapshots/{sid}"), delete(snapshots::delete))
        .route(&at("/snapshots/{sid}/restore"), post(snapshots::restore))
        .route(&at("/capacity"), get(catalog::capacity))
        .route(&at("/templates"), get(templates::list).post(templates::create))
        .route(
            &at("/templates/{id}"),
            get(templates::get).put(templates::change).delete(templates::delete),
        )
        .route(&at("/service-specs"), get(service_specs::list).post(service_specs::create))
        .route(
            &at("/service-specs/{id}"),
            get(service_specs::get).put(service_specs::change).delete(service_specs::delete),
        )
        .route(&at("/setup-scripts"), get(setup_scripts::list).post(setup_scripts::create))
        .route(
            &at("/setup-scripts/{id}"),
            get(setup_scripts::get).put(setup_scripts::change).delete(setup_scripts::delete),
        )
        .route(&at("/apps/{id}/start"), post(managed_apps::start))
        .route(&at("/apps/{id}/stop"), post(managed_apps::stop))
        .route(&at("/apps/{id}/restart"), post(managed_apps::restart))
        .route(&at("/apps/{id}/logs"), get(managed_apps::logs))
        .route(&at("/workspaces/{id}/listening-ports"), get(listening::list))
        .route(&at("/app-catalog"), get(app_catalog::list))
        .route(&at("/workspaces/{id}/install-app"), post(app_catalog::install))
        .route(&at("/workspaces/{id}/reconcile-apps"), post(app_catalog::reconcile))
        .route(&at("/quick-deploy"), post(quick_deploy::deploy))
        .route(&at("/workspaces/{id}/services"), get(services::list))
        .route(&at("/workspaces/{id}/services/{name}"), get(services::get))
        .route(&at("/workspaces/{id}/services/{name}/logs"), get(services::logs))
        .route(&at("/workspaces/{id}/jobs"), get(jobs::list))
        .route(&at("/workspaces/{id}/jobs/{job}"), get(jobs::get))
        .route(&at("/workspaces/{id}/jobs/{job}/cancel"), post(jobs::cancel))
        .route(&at("/users/me/limits"), get(account::limits))
        .route(&at("/api-keys"), get(account::list_keys).post(account::create_key))
        .route(&at("/api-keys/{id}"), delete(account::delete_key))
        .route(&at("/ssh-keys"), get(ssh_keys::list).post(ssh_keys::add))
        .route(&at("/ssh-keys/{id}"), delete(ssh_keys::delete))
        .route(&at("/workspaces/{id}/ssh-keys"), get(ssh_keys::list_of_workspace))
        .route(&at("/workspaces/{id}/ssh-keys/sync"), post(ssh_keys::sync))
        .route(&at("/apps"), get(apps::list).post(apps::create))
        .route(&at("/apps/{id}"), get(apps::get).patch(apps::change).delete(apps::delete))
        .route(&at("/apps/{id}/visibility"), put(apps::set_visibility))
        .route(&at("/apps/{id}/health"), get(apps::health))
        .merge(unsupported::routes(prefix))
}
