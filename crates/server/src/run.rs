//! `skerry serve`: from configuration to a listening server, and back to nothing.

use std::{
    fs,
    io::{IsTerminal, Write},
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use skerry_model::Secret;
use skerry_vmm::Vmm;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    ambient,
    assemble::{self, Assembled},
    config::{Config, OnShutdown, Settings},
    hypervisor,
    listener::{self, Limits},
    signals,
};

/// How long requests under way may take after the wish to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long stopping all workspaces may take (`--on-shutdown stop`) beyond their own grace.
const STOP_ALL_MARGIN: Duration = Duration::from_secs(10);
/// How long the background tasks may take to finish their step.
const SETTLE: Duration = Duration::from_secs(10);

/// Arguments of `skerry serve`.
#[derive(Args, Debug)]
pub struct ServeArguments {
    /// A TOML file with the same names as the flags, with `_` for `-`
    #[arg(long, env = "SKERRY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the log is written to stderr
    #[arg(long, env = "SKERRY_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    #[command(flatten)]
    settings: Settings,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// Runs the server until it is told to end.
///
/// # Errors
/// Configuration, or a part that cannot be opened. Requests that fail are not errors here.
pub async fn serve(arguments: ServeArguments) -> Result<()> {
    start_log(arguments.log_format);
    let settings = match &arguments.config {
        Some(path) => arguments.settings.or(Settings::from_file(path)?),
        None => arguments.settings,
    };
    let mut config = settings.resolve()?;
    fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("making {}", config.data_dir.display()))?;
    let environment = ambient::environment();
    if config.bootstrap_key.is_none() {
        config.bootstrap_key =
            Some(kept_key(&config.data_dir, || ambient::fresh_key(&*environment.rng))?);
    }
    let shutdown = CancellationToken::new();
    let signals = tokio::spawn(signals::cancel_on_termination(shutdown.clone()));

    let vmm: Arc<dyn Vmm> = hypervisor::open(&config).await?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listening on {}", config.listen))?;
    let address = listener.local_addr().context("asking for the listener's address")?;
    let url = config.public_url.clone().unwrap_or_else(|| url_of(address));
    let accelerator = vmm.capabilities().accelerator;
    let assembled = assemble::assemble(&config, &url, vmm, environment, shutdown.clone()).await?;
    announce(&url, accelerator)?;
    let served = serve_until(listener, assembled, &config, shutdown.clone()).await;
    shutdown.cancel();
    signals.await.context("the signal task")??;
    served
}

/// Serves until `shutdown`, then brings everything to its end within bounds.
async fn serve_until(
    listener: TcpListener,
    assembled: Assembled,
    config: &Config,
    shutdown: CancellationToken,
) -> Result<()> {
    let Assembled { control, node, router } = assembled;
    // The reconciler outlives the listener: stopping workspaces at the end is its work too.
    let background = CancellationToken::new();
    let reconciling = tokio::spawn({
        let (control, background) = (control.clone(), background.clone());
        async move { control.run(background).await }
    });
    let limits = Limits::for_this_process();
    let mut serving = tokio::spawn(listener::serve(listener, router, limits, shutdown.clone()));
    tokio::select! {
        ended = &mut serving => ended.context("the listener's task")?,
        () = shutdown.cancelled() => {
            if tokio::time::timeout(DRAIN, &mut serving).await.is_err() {
                tracing::warn!("requests still under way after {DRAIN:?} are cut off");
                serving.abort();
            }
        }
    }
    if config.on_shutdown == OnShutdown::Stop {
        match control.stop_all(config.stop_grace + STOP_ALL_MARGIN).await {
            Ok(count) => tracing::info!(count, "workspaces stopped"),
            Err(error) => tracing::error!(%error, "not every workspace could be stopped"),
        }
    }
    background.cancel();
    if tokio::time::timeout(SETTLE, reconciling).await.is_err() {
        tracing::error!("the reconciler did not end within {SETTLE:?}");
    }
    if tokio::time::timeout(SETTLE, node.shutdown()).await.is_err() {
        tracing::error!("the node did not end within {SETTLE:?}");
    }
    tracing::info!("ended");
    Ok(())
}

fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SKERRY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

/// The key in `<data-dir>/bootstrap-key`, made with `fresh` the first time; only the owner can read it.
fn kept_key(data_dir: &Path, fresh: impl FnOnce() -> String) -> Result<Secret> {
    let path = data_dir.join("bootstrap-key");
    let context = || format!("the bootstrap key in {}", path.display());
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(Secret::new(text.trim())),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(context),
    }
    let key = fresh();
    // Written whole under another name first: a crash must not leave half a key.
    let temporary = data_dir.join("bootstrap-key.new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(context)?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).with_context(context)?;
    writeln!(file, "{key}").with_context(context)?;
    file.sync_all().with_context(context)?;
    fs::rename(&temporary, &path).with_context(context)?;
    Ok(Secret::new(key))
}

/// A URL a client on this machine can use: an unspecified address is reached by loopback.
fn url_of(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr = if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        };
        address.set_ip(loopback);
    }
    format!("http://{address}")
}

/// The ready line on stdout: one JSON object.
fn announce(url: &str, accelerator: skerry_vmm::Accelerator) -> Result<()> {
    let line = serde_json::json!({
        "url": url,
        "version": env!("CARGO_PKG_VERSION"),
        "accelerator": accelerator,
    });
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("printing the ready line")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kept_key_is_made_once_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = kept_key(dir.path(), || "sk_first".to_owned()).unwrap();
        let second = kept_key(dir.path(), || "sk_second".to_owned()).unwrap();
        assert_eq!(first.expose(), "sk_first");
        assert_eq!(first, second);
        let mode = fs::metadata(dir.path().join("bootstrap-key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_unspecified_listen_address_is_announced_as_loopback() {
        assert_eq!(url_of("0.0.0.0:7070".parse().unwrap()), "http://127.0.0.1:7070");
        assert_eq!(url_of("[::]:80".parse().unwrap()), "http://[::1]:80");
        assert_eq!(url_of("127.0.0.1:1".parse().unwrap()), "http://127.0.0.1:1");
    }
}
