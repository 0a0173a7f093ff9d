//! Plain OpenSSH against the gateway.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ground;
mod logins;
mod remote;
mod sessions;
