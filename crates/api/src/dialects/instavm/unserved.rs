//! InstaVM's areas that this server does not serve (yet), told apart from mistyped paths.

use axum::response::{IntoResponse, Response};
use http::Uri;

use super::{Instavm, error_body::Problem};
use crate::{Dialect, Fault, auth::Authenticated, dialect::owns_path};

/// Path prefixes of these areas; other paths do not exist.
const AREAS: [&str; 24] = [
    "/execute_async",
    "/upload",
    "/download",
    "/v1/vms",
    "/v1/sessions",
    "/v1/executions",
    "/v1/snapshots",
    "/v1/volumes",
    "/v1/shares",
    "/v1/custom-domains",
    "/v1/egress",
    "/v1/vaults",
    "/v1/ssh-keys",
    "/v1/api-keys",
    "/v1/templates",
    "/v1/computeruse",
    "/v1/recordings",
    "/v1/browser",
    "/v1/webhooks",
    "/v1/audit",
    "/v1/tapes",
    "/v1/credits",
    "/v1/users/me",
    "/v1/app",
];

/// Any method on any path that no other route has.
pub(super) async fn refuse(_: Authenticated<Instavm>, uri: Uri) -> Response {
    if owns_path(&AREAS, uri.path()) {
        Problem::NotServed.into_response()
    } else {
        Instavm::fault(&Fault::NoSuchRoute)
    }
}
