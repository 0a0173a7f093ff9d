//! `/v1/users/me` and `/v1/ssh-keys`.

use axum::Json;

use super::{
    Instavm,
    wire::{Me, SshKeys},
};
use crate::auth::Authenticated;

pub(super) async fn me(Authenticated { caller, .. }: Authenticated<Instavm>) -> Json<Me> {
    Json(Me {
        id: caller.account_id().to_string(),
        email: None,
        name: caller.account_handle().to_owned(),
        is_verified: true,
    })
}

/// None: there is no SSH here, so no account has a key for it. InstaVM's command line asks for them
/// whenever it shows the account.
pub(super) async fn ssh_keys(_: Authenticated<Instavm>) -> Json<SshKeys> {
    Json(SshKeys { keys: [] })
}
