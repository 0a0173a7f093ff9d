//! The platform as its users have it: the built server, over its public HTTP API.

mod api;
mod server;
mod ssh;

pub use api::Api;
pub use server::{Mode, Server, ServerPlan};
pub use ssh::SshSession;
