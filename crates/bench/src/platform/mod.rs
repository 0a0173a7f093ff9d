//! The platform as its users have it: the built server, over its public HTTP API.

mod api;
mod server;

pub use api::Api;
pub use server::{Mode, Server, ServerPlan};
