//! The native API, `/skerry/v1`: what the command-line client and the dashboard speak.
//!
//! Its shapes are Skerry's own words. Every error is `{"error":{"code","message",...}}`; commands and
//! files belong to `root` unless the request names a user; times are RFC 3339 in UTC; sizes carry
//! their unit in their name. The OpenAPI document is made from the handlers and served at
//! `/skerry/v1/openapi.json`.

mod account;
mod convert;
mod convert_saved;
mod domains;
mod error_body;
mod exec;
mod exec_stream;
mod files;
mod images;
mod inspect;
mod lifecycle;
mod network;
mod ports;
mod rest;
mod snapshots;
mod ssh;
mod verb;
mod volume_files;
mod volumes;
pub mod wire;
mod workloads;
mod workspaces;

use axum::{Json, Router, routing::get};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        OpenApi as Document,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf, QueryOf},
};

/// The native dialect.
#[derive(Clone, Copy, Debug)]
pub struct Native;

type Login = Authenticated<Native>;
type Body<T> = JsonBody<T, Native>;
type Query<T> = QueryOf<T, Native>;
type Params<T> = PathOf<T, Native>;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Skerry",
        description = "Micro-VM workspaces. Every workspace of an account is here, through whichever API it was made.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(wire::ExecStart, wire::ExecClientMessage, wire::ExecServerMessage)),
    security(("bearer" = []), ("api_key" = [])),
    modifiers(&Credentials),
)]
struct Description;

/// Adds the ways of presenting a key, which the macro cannot express.
struct Credentials;

impl Modify for Credentials {
    fn modify(&self, document: &mut Document) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(
            "bearer",
            SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
        );
        components.add_security_scheme(
            "api_key",
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key"))),
        );
    }
}

fn described() -> (Router<ApiState>, Document) {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(workspaces::list, workspaces::create))
        .routes(routes!(workspaces::get, workspaces::update, workspaces::delete))
        .routes(routes!(workspaces::start))
        .routes(routes!(workspaces::stop))
        .routes(routes!(workspaces::restart))
        .routes(routes!(rest::pause))
        .routes(routes!(rest::resume))
        .routes(routes!(rest::suspend))
        .routes(routes!(rest::restore))
        .routes(routes!(rest::fork))
        .routes(routes!(network::show, network::replace))
        .routes(routes!(network::refusals))
        .routes(routes!(network::proxies))
        .routes(routes!(lifecycle::change))
        .routes(routes!(lifecycle::renew))
        .routes(routes!(lifecycle::touch))
        .routes(routes!(snapshots::create))
        .routes(routes!(snapshots::list))
        .routes(routes!(snapshots::get, snapshots::update, snapshots::delete))
        .routes(routes!(exec::run))
        .routes(routes!(exec_stream::open))
        .routes(routes!(files::list, files::remove))
        .routes(routes!(files::read, files::write))
        .routes(routes!(files::read_tree, files::write_tree))
        .routes(routes!(files::make_directory))
        .routes(routes!(files::rename))
        .routes(routes!(inspect::logs))
        .routes(routes!(inspect::stats))
        .routes(routes!(inspect::ports))
        .routes(routes!(ports::list, ports::publish))
        .routes(routes!(ports::update, ports::revoke))
        .routes(routes!(domains::list, domains::add))
        .routes(routes!(domains::get, domains::remove))
        .routes(routes!(domains::verify))
        .routes(routes!(account::images, images::pull))
        .routes(routes!(images::pulls))
        .routes(routes!(account::list_keys, account::create_key))
        .routes(routes!(account::delete_key))
        .routes(routes!(ssh::endpoint))
        .routes(routes!(ssh::list, ssh::add))
        .routes(routes!(ssh::delete))
        .routes(routes!(ssh::access))
        .routes(routes!(ssh::open))
        .routes(routes!(ssh::close))
        .routes(routes!(ssh::set_password))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::get, volumes::update, volumes::delete))
        .routes(routes!(volume_files::list, volume_files::remove))
        .routes(routes!(volume_files::read, volume_files::write))
        .routes(routes!(volumes::list_checkpoints, volumes::create_checkpoint))
        .routes(routes!(volumes::delete_checkpoint))
        .routes(routes!(volumes::list_of_workspace, volumes::attach))
        .routes(routes!(volumes::detach))
        .routes(routes!(workloads::list, workloads::create))
        .routes(routes!(workloads::get, workloads::update, workloads::delete))
        .routes(routes!(workloads::start))
        .routes(routes!(workloads::stop))
        .routes(routes!(workloads::restart_one))
        .routes(routes!(workloads::log, workloads::clear_log))
        .routes(routes!(account::list_projects, account::create_project))
        .routes(routes!(account::get_project))
        .routes(routes!(account::quota))
        .routes(routes!(account::doctor))
        .routes(routes!(account::starts))
        .split_for_parts()
}

/// The OpenAPI document of the native API.
#[must_use]
pub fn openapi() -> Document {
    described().1
}

/// The routes on the shared origin.
pub fn router() -> Router<ApiState> {
    let (routes, document) = described();
    routes.route("/skerry/v1/openapi.json", get(async move || Json(document.clone())))
}
