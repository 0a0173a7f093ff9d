//! Whether the server answers, for whoever asks: no credential needed, nothing revealed but the
//! version.
//!
//! `/healthz` belongs to no dialect. `/health` is claimed by several (Oblien's runtime answers
//! `{"status":"ok"}`, Aether adds `version`); one object satisfies all of them, so on the shared origin
//! and on every dialect host that has no `/health` of its own, it is this one.

use axum::{Json, extract::State};
use serde::Serialize;

use crate::ApiState;

/// The answer.
#[derive(Debug, Serialize)]
pub struct Health {
    /// Always `ok`: a server that is not does not answer.
    pub status: &'static str,
    /// The server's version.
    pub version: &'static str,
}

/// `GET /healthz`, `GET /health`.
pub async fn get(State(state): State<ApiState>) -> Json<Health> {
    Json(Health { status: "ok", version: state.config.version })
}
