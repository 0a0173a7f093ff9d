//! The InstaVM dialect: VMs and sessions as the Python package `instavm` 0.26.1 uses them. What is
//! served, refused and different: `docs/dialects/instavm.md`.
//!
//! A session and its VM are one workspace here: the session id is the workspace's UUID, the VM id its
//! number behind `vm_`, followed by that of the start from the second one on.

mod account;
mod checkpoints;
mod convert;
mod domains;
mod egress;
mod error_body;
mod execute;
mod executions;
mod python;
mod request;
mod rest;
mod rules;
mod run;
mod sessions;
mod shares;
mod snapshots;
mod staging;
mod terminals;
mod transfer;
mod unserved;
mod validation;
mod vaults;
mod vms;
mod volume_files;
mod volumes;
mod wire;

pub(crate) use executions::Executions;
pub(crate) use terminals::Terminals;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{any, delete, get, patch, post},
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
        .route("/v1/volumes", post(volumes::create).get(volumes::list))
        .route(
            "/v1/volumes/{volume}",
            get(volumes::get).patch(volumes::update).delete(volumes::delete),
        )
        .route("/v1/volumes/{volume}/files", get(volume_files::list).delete(volume_files::delete))
        .route(
            "/v1/volumes/{volume}/files/upload",
            post(volume_files::upload).layer(DefaultBodyLimit::disable()),
        )
        .route("/v1/volumes/{volume}/files/download", post(volume_files::download))
        .route("/v1/volumes/{volume}/checkpoints", post(checkpoints::create).get(checkpoints::list))
        .route("/v1/volumes/{volume}/checkpoints/{checkpoint}", delete(checkpoints::delete))
        .route("/v1/vms/{vm}/volumes", post(volumes::mount).get(volumes::mounts))
        .route("/v1/vms/{vm}/volumes/{volume}", delete(volumes::unmount))
        .route("/v1/sessions/session", post(sessions::create))
        .route("/v1/sessions/session/{session}", get(sessions::get))
        .route("/v1/sessions/status/{session}", get(sessions::status))
        .route("/v1/sessions/usage/{session}", get(sessions::usage))
        .route("/v1/sessions/sandboxes", get(sessions::sandboxes))
        .merge(ptys("/v1/sessions/{session}/pty"))
        .merge(ptys("/v1/vms/{vm}/pty"))
        .route("/v1/vms/{vm}/stage-env", post(staging::stage))
        .route("/v1/shares", post(shares::create))
        .route("/v1/shares/{share}", patch(shares::update))
        .route("/v1/custom-domains", get(domains::list).post(domains::create))
        .route("/v1/custom-domains/{domain}", get(domains::get).delete(domains::delete))
        .route("/v1/custom-domains/{domain}/health", get(domains::health))
        .route("/v1/custom-domains/{domain}/verify", post(domains::verify))
        .merge(vault_routes())
        .route(
            "/v1/egress/vm/{vm}",
            get(egress::of_vm).post(egress::set_of_vm).patch(egress::set_of_vm),
        )
        .route(
            "/v1/egress/session/{session}",
            get(egress::of_session).post(egress::set_of_session).patch(egress::set_of_session),
        )
        .route("/v1/users/me", get(account::me))
        .route("/v1/ssh-keys", get(account::ssh_keys).post(account::add_ssh_key))
        .route("/v1/ssh-keys/{key}", delete(account::delete_ssh_key))
        .route("/v1/api-keys/", get(account::api_keys).post(account::create_api_key))
        .route("/v1/api-keys", get(account::api_keys).post(account::create_api_key))
        .route("/v1/api-keys/{key}", get(account::get_api_key).delete(account::delete_api_key))
        .route("/kill", post(sessions::kill))
        .route("/execute", post(execute::execute))
        .route("/execute_async", post(executions::begin))
        .route("/v1/executions/", get(executions::list))
        .route("/v1/executions", get(executions::list))
        .route("/v1/executions/{execution}", get(executions::get))
        // Goes through to the guest as it comes: its disk is the bound.
        .route("/upload", post(transfer::upload).layer(DefaultBodyLimit::disable()))
        .route("/download", post(transfer::download))
        .route("/v1/{*rest}", any(unserved::refuse))
}

fn vault_routes() -> Router<ApiState> {
    let vault = "/v1/vaults/{vault}";
    Router::new()
        .route("/v1/vaults", get(vaults::list).post(vaults::create))
        .route("/v1/vaults/catalog", get(vaults::catalog))
        .route(vault, get(vaults::get).patch(vaults::update).delete(vaults::delete))
        .route(&format!("{vault}/discover"), get(vaults::discover))
        .route(
            &format!("{vault}/credentials"),
            get(vaults::credentials).post(vaults::add_credential),
        )
        .route(&format!("{vault}/credentials/{{credential}}"), delete(vaults::delete_credential))
        .route(
            &format!("{vault}/credentials/{{credential}}/rotate"),
            post(vaults::rotate_credential),
        )
        .route(&format!("{vault}/services"), get(vaults::services).post(vaults::add_service))
        .route(
            &format!("{vault}/services:from_template"),
            post(vaults::add_services_from_templates),
        )
        .route(&format!("{vault}/services/{{service}}"), delete(vaults::delete_service))
        .route(&format!("{vault}/request-logs"), get(vaults::request_logs))
}

/// A session's terminals and its VM's are the same.
fn ptys(below: &str) -> Router<ApiState> {
    let one = format!("{below}/sessions/{{terminal}}");
    Router::new()
        .route(&format!("{below}/sessions"), get(terminals::list).post(terminals::create))
        .route(&one, get(terminals::get).delete(terminals::kill))
        .route(&format!("{one}/resize"), post(terminals::resize))
        .route(&format!("{below}/{{terminal}}/connect"), get(terminals::connect))
}

/// The routes on this dialect's own host, `instavm.<base>`: the same.
pub fn host_router() -> Router<ApiState> {
    router()
}
