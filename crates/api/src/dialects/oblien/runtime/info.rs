//! `/runtime`, `/runtimes` and `/desktop`: what there is.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use serde_json::{Value, json};

use super::{TARGETS, problem::RuntimeProblem, visitor::Visitor};
use crate::{ApiState, dialects::oblien::error_body::Problem};

/// What the client's own host is replaced with, for programs that cannot be told another.
const REDIRECT: &str = include_str!("redirect.mjs");

async fn runtime(state: &ApiState, visitor: &Visitor) -> Result<Value, Problem> {
    // Answered for a guest that answers alone.
    let guest = visitor.guest(state).await?;
    let stats = guest.stats().await?;
    Ok(json!({
        "os": "linux",
        "arch": "amd64",
        "cpus": stats.cpus_online,
        "home": "/root",
        "shell": "/bin/sh",
        "protocol_version": 1,
        "capabilities": ["files", "search", "exec", "terminal", "transfer", "proxy"],
    }))
}

pub(super) async fn get(
    State(state): State<ApiState>,
    visitor: Visitor,
) -> Result<Json<Value>, Problem> {
    Ok(Json(runtime(&state, &visitor).await?))
}

/// A workspace has one guest.
pub(super) async fn targets(
    State(state): State<ApiState>,
    visitor: Visitor,
) -> Result<Json<Value>, Problem> {
    let [default, local] = TARGETS;
    let runtime = runtime(&state, &visitor).await?;
    Ok(Json(json!({
        "success": true,
        "version": 1,
        "default_target": default,
        "aliases": { local: default },
        "targets": [{ "id": default, "local": true, "available": true, "runtime": runtime }],
    })))
}

pub(super) async fn no_target(_: Visitor) -> Problem {
    RuntimeProblem::NoSuch("target").into()
}

pub(super) async fn no_watchers(_: Visitor) -> Problem {
    RuntimeProblem::NotHere("changes of files are not watched by this server").into()
}

/// No image brings one.
pub(super) async fn desktop(_: Visitor) -> Json<Value> {
    Json(json!({ "success": true, "supported": false, "enabled": false, "available": false }))
}

pub(super) async fn no_desktop() -> Problem {
    RuntimeProblem::NoSuch("desktop").into()
}

/// Nothing of it is secret.
pub(super) async fn redirect() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], REDIRECT).into_response()
}
