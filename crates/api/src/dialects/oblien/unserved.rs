//! Oblien's areas that this server does not serve (yet): told apart from a mistyped path, so that a
//! caller learns that the request was right and the server is what lacks.

use super::{Oblien, error_body::Problem};
use crate::auth::Authenticated;

/// Every path of these areas.
pub(super) const PATHS: [&str; 37] = [
    "/workspace/archived",
    "/workspace/activity",
    "/workspace/estimate",
    "/workspace/usage",
    "/workspace/{workspace}/archives",
    "/workspace/{workspace}/archives/{*rest}",
    "/workspace/{workspace}/config",
    "/workspace/{workspace}/desktop/{*rest}",
    "/workspace/{workspace}/info",
    "/workspace/{workspace}/internal-api-access/{*rest}",
    "/workspace/{workspace}/logs/{*rest}",
    "/workspace/{workspace}/metadata",
    "/workspace/{workspace}/network/{*rest}",
    "/workspace/{workspace}/overlay",
    "/workspace/{workspace}/overlay/{*rest}",
    "/workspace/{workspace}/reinstall",
    "/workspace/{workspace}/runtime-api-access/{*rest}",
    "/workspace/{workspace}/stats/{*rest}",
    "/workspace/{workspace}/usage",
    "/workspace/{workspace}/usage/{*rest}",
    "/namespaces",
    "/namespaces/{*rest}",
    "/tokens",
    "/webhooks",
    "/webhooks/{*rest}",
    "/credits",
    "/credits/{*rest}",
    "/pages",
    "/pages/{*rest}",
    "/cdn",
    "/cdn/{*rest}",
    "/domain/{*rest}",
    "/edge/{*rest}",
    "/billing/{*rest}",
    "/analytics",
    "/analytics/{*rest}",
    "/notifications/{*rest}",
];

/// Any method on any of [`PATHS`].
pub(super) async fn refuse(_: Authenticated<Oblien>) -> Problem {
    Problem::NotServed
}
