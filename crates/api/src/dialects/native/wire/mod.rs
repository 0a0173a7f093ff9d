//! The native API's types as they are on the wire. Unknown fields in requests are refused, so that a
//! misspelt one is never silently without effect.

mod account;
mod domains;
mod error;
mod exec;
mod files;
mod lifecycle;
mod network;
mod ports;
mod snapshots;
mod ssh;
mod volumes;
mod workloads;
mod workspaces;

pub use account::*;
pub use domains::*;
pub use error::*;
pub use exec::*;
pub use files::*;
pub use lifecycle::*;
pub use network::*;
pub use ports::*;
pub use snapshots::*;
pub use ssh::*;
pub use volumes::*;
pub use workloads::*;
pub use workspaces::*;
