//! The Aether dialect.

mod error_body;

use axum::Router;

use crate::ApiState;

/// The Aether dialect.
#[derive(Clone, Copy, Debug)]
pub struct Aether;

/// The routes on the shared origin. Never `/health` and `/healthz`: those are answered for everybody.
pub fn router() -> Router<ApiState> {
    Router::new()
}

/// The routes on this dialect's own host (`aether.<base>`): those of [`router`] and what only that host may
/// serve.
pub fn host_router() -> Router<ApiState> {
    router()
}
