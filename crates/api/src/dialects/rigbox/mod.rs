//! The Rigbox dialect.

mod error_body;

use axum::Router;

use crate::ApiState;

/// The Rigbox dialect.
#[derive(Clone, Copy, Debug)]
pub struct Rigbox;

/// The routes on the shared origin. Never `/health` and `/healthz`: those are answered for everybody.
pub fn router() -> Router<ApiState> {
    Router::new()
}

/// The routes on this dialect's own host (`rigbox.<base>`): those of [`router`] and what only that host may
/// serve.
pub fn host_router() -> Router<ApiState> {
    router()
}
