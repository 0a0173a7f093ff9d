//! The native API's types as they are on the wire. Unknown fields in requests are refused, so that a
//! misspelt one is never silently without effect.

mod account;
mod error;
mod exec;
mod files;
mod lifecycle;
mod snapshots;
mod ssh;
mod workspaces;

pub use account::*;
pub use error::*;
pub use exec::*;
pub use files::*;
pub use lifecycle::*;
pub use snapshots::*;
pub use ssh::*;
pub use workspaces::*;
