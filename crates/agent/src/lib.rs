//! The guest agent: what runs as PID 1 inside every VM and does what the node asks of it.
//!
//! As PID 1 ([`init`]) it mounts, loads modules, moves into the root disk and reaps orphans; on the
//! serial port it then serves the calls of `skerry-agent-protocol` ([`serve`]). The same session code
//! runs inside an ordinary process for tests ([`Guest::hosted`]), with every effect on the machine
//! left out.
//!
//! This crate refuses to know the host, the hypervisor and what a workspace is.

mod body;
mod children;
mod configure;
mod connect;
mod error;
mod exec;
mod files;
mod freeze;
mod guest;
mod host_keys;
pub mod init;
mod listen;
mod ports;
mod prepare;
mod session;
mod signals;
mod stats;
mod tree;
mod users;
mod volume_files;
mod volumes;
mod workloads;
mod write;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite};

pub use error::AgentError;
pub use guest::Guest;
pub use session::serve;

/// Commands of a lost connection are hung up on, then killed.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

/// Serves one connection of a hosted guest: waits for the handshake, then answers calls until the
/// stream ends. `on_power_off` runs if the host asked for power off.
///
/// A guest that outlives its connections is made once with [`Guest::hosted`] and given to [`serve`]
/// for each of them.
pub async fn serve_hosted(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    home: PathBuf,
    on_power_off: impl FnOnce() + Send,
) {
    let guest = Arc::new(Guest::hosted(home));
    // However the connection ended, there is nobody left to tell.
    let _ = serve(io, &guest).await;
    guest.settle(SETTLED_WITHIN).await;
    if guest.power_off_requested() {
        on_power_off();
    }
}
