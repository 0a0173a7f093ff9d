//! The user: profile and settings.

use axum::Json;

use super::{Aether, convert, wire};
use crate::auth::Authenticated;

/// `GET /profile`.
pub(super) async fn profile(auth: Authenticated<Aether>) -> Json<wire::Profile> {
    Json(wire::Profile {
        id: auth.caller.account_id().to_string(),
        display_name: auth.caller.account_handle().to_owned(),
        onboarding_completed: true,
    })
}

/// `GET /user/settings`: what a request that names no hardware gets, for every user alike.
pub(super) async fn settings(_auth: Authenticated<Aether>) -> Json<wire::Settings> {
    Json(wire::Settings {
        default_hardware: convert::default_hardware(),
        default_idle_timeout_minutes: convert::IDLE_MINUTES,
    })
}
