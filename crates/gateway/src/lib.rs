//! Traffic into workspaces: whoever stands at the door is recognised, the workspace is found and woken,
//! and the two are joined.
//!
//! Whom somebody may see, and the inside of it, is asked of [`skerry_internal_api::RouteApi`]. This crate
//! refuses to know dialects, records and hypervisors.

pub mod domains;
pub mod http;
pub mod ssh;
pub mod tls;
