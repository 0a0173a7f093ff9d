//! The operating system's wish that we end, as a cancellation.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancels `shutdown` at the first SIGTERM or SIGINT. Returns when that happened or `shutdown` was
/// cancelled from elsewhere.
///
/// # Errors
/// The handlers cannot be installed.
pub async fn cancel_on_termination(shutdown: CancellationToken) -> Result<()> {
    let mut terminate =
        signal(SignalKind::terminate()).context("installing the SIGTERM handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("installing the SIGINT handler")?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
        _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
        () = shutdown.cancelled() => {}
    }
    shutdown.cancel();
    Ok(())
}
