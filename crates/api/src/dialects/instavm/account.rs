//! `/v1/users/me`.

use axum::Json;

use super::{Instavm, wire::Me};
use crate::auth::Authenticated;

pub(super) async fn me(Authenticated { caller, .. }: Authenticated<Instavm>) -> Json<Me> {
    Json(Me {
        id: caller.account_id().to_string(),
        email: None,
        name: caller.account_handle().to_owned(),
        is_verified: true,
    })
}
