//! The runtime, Oblien's data plane: commands, files, terminals and ports of one workspace, which the token
//! of a request says. On the same origin as the control plane: their paths have nothing in common.
//!
//! Tasks and terminals are the server's: a restart of it ends them, as does everything that ends the
//! workspace's machine.

mod access;
mod exec;
mod files;
mod info;
mod listing;
mod paths;
mod problem;
mod proxy;
mod search;
mod socket;
mod state;
mod task;
mod terminals;
mod transfer;
mod visitor;
mod walk;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{any, delete, get, post},
};
use tower_http::cors::{AllowHeaders, AllowMethods, Any as AnyOrigin, CorsLayer};

pub(super) use access::{disable, enable, rotate, show, status};
pub(super) use problem::RuntimeProblem;
pub(crate) use state::Runtimes;

use crate::ApiState;

/// The only guest of a workspace, under the names that the client may give it.
const TARGETS: [&str; 2] = ["default", "local"];

/// The routes on every host that has the control plane's.
pub(super) fn routes() -> Router<ApiState> {
    let mut routes = of_one_guest()
        .route("/runtimes", get(info::targets))
        .route("/runtime/redirect.mjs", get(info::redirect))
        .route("/runtimes/{target}", any(info::no_target))
        .route("/runtimes/{target}/{*rest}", any(info::no_target));
    for target in TARGETS {
        routes = routes.nest(&format!("/runtimes/{target}"), of_one_guest());
    }
    // Called from browsers of any origin; tokens travel in a header or the query, never in a cookie.
    routes.layer(
        CorsLayer::new()
            .allow_origin(AnyOrigin)
            .allow_methods(AllowMethods::mirror_request())
            .allow_headers(AllowHeaders::mirror_request()),
    )
}

fn of_one_guest() -> Router<ApiState> {
    Router::new()
        .route("/runtime", get(info::get))
        .route("/exec", post(exec::run).get(exec::list).delete(exec::delete_all))
        .route("/exec/stream", post(exec::stream).get(exec::subscribe))
        .route("/exec/{task}", get(exec::get).delete(exec::delete))
        .route("/exec/{task}/input", post(exec::input))
        .route("/files", get(listing::list))
        .route("/files/stream", get(listing::stream))
        .route("/files/read", get(files::read))
        .route(
            "/files/write",
            post(files::write)
                .put(files::write)
                .layer(DefaultBodyLimit::max(files::WRITE_BODY_BYTES)),
        )
        .route("/files/mkdir", post(files::mkdir))
        .route("/files/stat", get(files::stat))
        .route("/files/delete", post(files::delete).delete(files::delete))
        .route("/files/transfer/download", post(transfer::download))
        .route("/files/transfer/upload", post(transfer::upload).layer(DefaultBodyLimit::disable()))
        .route("/files/search", get(search::content))
        .route("/files/search/files", get(search::names))
        .route("/files/search/init", get(search::status).post(search::status))
        .route("/terminals", post(terminals::create).get(terminals::list))
        .route("/terminals/{terminal}", delete(terminals::close))
        .route("/terminals/{terminal}/scrollback", get(terminals::scrollback))
        .route("/ws", get(socket::connect))
        .route("/proxy", any(proxy::carry))
        .route("/proxy/", any(proxy::carry))
        .route("/proxy/{*rest}", any(proxy::carry))
        .route("/watchers", any(info::no_watchers))
        .route("/watchers/{*rest}", any(info::no_watchers))
        .route("/desktop", any(info::no_desktop))
        .route("/desktop/status", get(info::desktop))
        .route("/desktop/{*rest}", any(info::no_desktop))
}
