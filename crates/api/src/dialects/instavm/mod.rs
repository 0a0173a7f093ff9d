//! The InstaVM dialect: VMs and sessions as the Python package `instavm` 0.26.1 uses them. What is
//! served, refused and different: `docs/dialects/instavm.md`.
//!
//! A session and its VM are one workspace here: the session id is the workspace's UUID, the VM id its
//! number behind `vm_`, followed by that of the start from the second one on.

mod account;
mod convert;
mod error_body;
mod execute;
mod request;
mod rest;
mod rules;
mod sessions;
mod snapshots;
mod unserved;
mod validation;
mod vms;
mod wire;

use axum::{
    Router,
    routing::{any, get, post},
};

use crate::ApiState;

/// The InstaVM dialect.
#[derive(Clone, Copy, Debug)]
pub struct Instavm;

/// The routes on the shared origin. `/v1/vms` and `/v1/vms/` are two endpoints.
pub fn router() -> Router<ApiState> {
    Router::new()
        .route("/v1/vms", post(vms::create).get(vms::list_live))
        .route("/v1/vms/", get(vms::list_all))
        .route("/v1/vms/{vm}", get(vms::get).patch(vms::update).delete(vms::delete))
        .route("/v1/vms/{vm}/suspend", post(rest::suspend))
        .route("/v1/vms/{vm}/resume", post(rest::resume))
        .route("/v1/vms/{vm}/clone", post(rest::clone))
        .route("/v1/vms/{vm}/snapshot", post(snapshots::take))
        .route("/v1/snapshots", get(snapshots::list).post(snapshots::build))
        .route("/v1/snapshots/{snapshot}", get(snapshots::get).delete(snapshots::delete))
        .route("/v1/sessions/session", post(sessions::create))
        .route("/v1/sessions/session/{session}", get(sessions::get))
        .route("/v1/sessions/status/{session}", get(sessions::status))
        .route("/v1/users/me", get(account::me))
        .route("/v1/ssh-keys", get(account::ssh_keys).post(unserved::refuse))
        .route("/kill", post(sessions::kill))
        .route("/execute", post(execute::execute))
        .route("/execute_async", any(unserved::refuse))
        .route("/upload", any(unserved::refuse))
        .route("/download", any(unserved::refuse))
        .route("/v1/{*rest}", any(unserved::refuse))
}

/// The routes on this dialect's own host, `instavm.<base>`: the same.
pub fn host_router() -> Router<ApiState> {
    router()
}
