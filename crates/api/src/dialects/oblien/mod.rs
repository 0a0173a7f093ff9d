//! The Oblien dialect: the control plane of Oblien's workspace API (`/workspace`) and its data plane, the
//! runtimes of workspaces, as its client 2.4.0 and its reference page use them. What is served, refused and
//! different: `docs/dialects/oblien.md`.

mod convert;
mod domain_routes;
mod domains;
mod error_body;
mod images;
mod life;
mod lifecycle;
mod network;
mod object;
mod power;
mod public_access;
mod quota;
mod reads;
mod resources;
mod rest;
mod runtime;
mod ssh;
mod unserved;
mod wire;
mod workload_parse;
mod workload_streams;
mod workloads;
mod workspaces;

use axum::{
    Router,
    routing::{any, get, patch, post, put},
};

pub(crate) use runtime::Runtimes;

use crate::ApiState;

/// The Oblien dialect.
#[derive(Clone, Copy, Debug)]
pub struct Oblien;

/// The routes on the shared origin.
pub fn router() -> Router<ApiState> {
    let mut routes = Router::new()
        .route("/workspace", post(workspaces::create).get(workspaces::list))
        .route("/workspace/quota", get(quota::get))
        .route("/workspace/images", get(images::list))
        .route(
            "/workspace/{workspace}",
            get(workspaces::get).put(workspaces::update).delete(workspaces::delete),
        )
        .route("/workspace/{workspace}/details", get(workspaces::details))
        .route("/workspace/{workspace}/start", post(power::start))
        .route("/workspace/{workspace}/stop", post(power::stop))
        .route("/workspace/{workspace}/restart", post(power::restart))
        .route("/workspace/{workspace}/pause", post(rest::pause))
        .route("/workspace/{workspace}/resume", post(rest::resume))
        .route("/workspace/{workspace}/ping", post(rest::ping))
        .route("/workspace/{workspace}/snapshot", post(rest::snapshot))
        .route("/workspace/{workspace}/restore", post(rest::restore))
        .route(
            "/workspace/{workspace}/public-access",
            get(public_access::list).post(public_access::expose),
        )
        .route(
            "/workspace/{workspace}/public-access/{port}",
            patch(public_access::rename).delete(public_access::revoke),
        )
        .route("/workspace/{workspace}/lifecycle", get(lifecycle::get).delete(workspaces::delete))
        .route("/workspace/{workspace}/lifecycle/permanent", post(lifecycle::permanent))
        .route("/workspace/{workspace}/lifecycle/temporary", post(lifecycle::temporary))
        .route("/workspace/{workspace}/lifecycle/ttl", put(lifecycle::ttl))
        .route("/workspace/{workspace}/lifecycle/idle", put(lifecycle::idle))
        .route(
            "/workspace/{workspace}/network",
            get(network::get).patch(network::change).put(network::change),
        )
        .route("/workspace/{workspace}/network/ip", post(network::assign_ip))
        .route(
            "/workspace/{workspace}/domain",
            get(domains::get).post(domains::connect).delete(domains::disconnect),
        )
        .route("/domain/check-slug", post(domain_routes::check_slug))
        .route("/domain/verify", post(domain_routes::verify))
        .route("/domain/routes", get(domain_routes::routes))
        .route("/workspace/{workspace}/domain/check", post(domains::check))
        .route("/workspace/{workspace}/domain/ssl/renew", post(domains::renew))
        .route("/workspace/{workspace}/ssh", get(ssh::get))
        .route("/workspace/{workspace}/ssh/enable", post(ssh::enable))
        .route("/workspace/{workspace}/ssh/disable", post(ssh::disable))
        .route("/workspace/{workspace}/ssh/password", post(ssh::set_password))
        .route("/workspace/{workspace}/ssh/key", post(ssh::add_key))
        .route("/workspace/{workspace}/stats", get(reads::stats))
        .route("/workspace/{workspace}/stats/stream", get(reads::stats_stream))
        .route(
            "/workspace/{workspace}/resources",
            get(reads::resources).put(resources::update).patch(resources::update),
        )
        .route("/workspace/{workspace}/logs", get(reads::logs))
        .route(
            "/workspace/{workspace}/workloads",
            post(workloads::create).get(workloads::list).delete(workloads::delete_all),
        )
        .route("/workspace/{workspace}/workloads/stats/stream", get(workload_streams::stats_of_all))
        .route(
            "/workspace/{workspace}/workloads/{workload}",
            get(workloads::get)
                .put(workloads::update)
                .patch(workloads::update)
                .delete(workloads::delete),
        )
        .route("/workspace/{workspace}/workloads/{workload}/start", post(workloads::start))
        .route("/workspace/{workspace}/workloads/{workload}/stop", post(workloads::stop))
        .route("/workspace/{workspace}/workloads/{workload}/status", get(workloads::show_status))
        .route("/workspace/{workspace}/workloads/{workload}/logs", get(workloads::logs))
        .route(
            "/workspace/{workspace}/workloads/{workload}/logs/stream",
            get(workload_streams::logs),
        )
        .route("/workspace/{workspace}/workloads/{workload}/stats", get(workloads::show_stats))
        .route(
            "/workspace/{workspace}/workloads/{workload}/stats/stream",
            get(workload_streams::stats_of_one),
        )
        .route("/workspace/{workspace}/provisioning/retry", post(power::retry));
    for name in ["runtime-api-access", "internal-api-access"] {
        let at = format!("/workspace/{{workspace}}/{name}");
        routes = routes
            .route(&at, get(runtime::status))
            .route(&format!("{at}/enable"), post(runtime::enable))
            .route(&format!("{at}/disable"), post(runtime::disable))
            .route(&format!("{at}/token"), get(runtime::show).post(runtime::rotate));
    }
    routes = routes.merge(runtime::routes());
    for path in unserved::PATHS {
        routes = routes.route(path, any(unserved::refuse));
    }
    routes
}

/// The routes on this dialect's own host, `oblien.<base>`: the same.
pub fn host_router() -> Router<ApiState> {
    router()
}
