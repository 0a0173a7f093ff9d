//! `skerry serve`: from configuration to a listening server, and back to nothing.

use std::{
    env::VarError,
    fs,
    io::{ErrorKind, IsTerminal, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use skerry_model::Secret;
use skerry_node::Faults;
use skerry_vmm::Vmm;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    ambient, assemble,
    config::{Settings, check_key},
    hypervisor, serving, signals,
};

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
    start_log(arguments.log_format)?;
    let settings = match &arguments.config {
        Some(path) => arguments.settings.or(Settings::from_file(path)?),
        None => arguments.settings,
    };
    let mut config = settings.resolve()?;
    config.faults = planned_faults()?;
    let environment = ambient::environment();
    make_data_dir(&config.data_dir)?;
    if config.bootstrap_key.is_none() {
        config.bootstrap_key =
            Some(kept_key(&config.data_dir, || ambient::fresh_key(&*environment.rng))?);
    }
    let shutdown = CancellationToken::new();
    let signals = tokio::spawn(signals::cancel_on_termination(shutdown.clone()));

    // Before the hypervisor, which may boot a guest to know itself: a port in use is told at once.
    let listener = bind(config.listen).await?;
    let address = listener.local_addr().context("asking for the listener's address")?;
    let vmm: Arc<dyn Vmm> = hypervisor::open(&config).await?;
    let url = config.public_url.clone().unwrap_or_else(|| url_of(address));
    let accelerator = vmm.capabilities().accelerator;
    let assembled = assemble::assemble(&config, &url, vmm, environment, shutdown.clone()).await?;
    let ssh = assembled.ssh.as_ref().map(|ssh| ssh.listener.local_addr()).transpose()?;
    let tls = assembled.encrypted.as_ref().map(|tls| tls.listener.local_addr()).transpose()?;
    announce(&url, &[("ssh", ssh), ("tls", tls)], accelerator)?;
    let served = serving::serve_until(listener, assembled, &config, shutdown.clone()).await;
    shutdown.cancel();
    signals.await.context("the signal task")??;
    served
}

/// For tests of crash safety: a planned death at a named step. Nothing is planned unless
/// `SKERRY_FAULT` says so.
fn planned_faults() -> Result<Faults> {
    match std::env::var("SKERRY_FAULT") {
        Ok(plan) => {
            tracing::warn!(%plan, "failures are planned");
            Faults::parse(&plan).context("in SKERRY_FAULT")
        }
        Err(VarError::NotPresent) => Ok(Faults::default()),
        Err(error @ VarError::NotUnicode(_)) => Err(error).context("in SKERRY_FAULT"),
    }
}

/// Listens.
async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::AddrInUse => {
                "another program (another skerry?) has this port; choose one with --listen or \
                 SKERRY_LISTEN, port 0 for a free one"
            }
            ErrorKind::AddrNotAvailable => "this machine has no such address",
            ErrorKind::PermissionDenied => "ports below 1024 are for root",
            _ => "choose another address with --listen or SKERRY_LISTEN",
        };
        anyhow::Error::new(error).context(format!("cannot listen on {address}: {hint}"))
    })
}

/// The log goes to stderr; `SKERRY_LOG` says how much of it.
fn start_log(format: LogFormat) -> Result<()> {
    let filter = match std::env::var("SKERRY_LOG") {
        Ok(text) => log_filter(&text).context("in SKERRY_LOG")?,
        Err(VarError::NotPresent) => EnvFilter::new("info"),
        Err(error @ VarError::NotUnicode(_)) => return Err(error).context("in SKERRY_LOG"),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

fn log_filter(text: &str) -> Result<EnvFilter> {
    let hint = "a level (error, warn, info, debug, trace), or such as info,skerry_node=debug";
    EnvFilter::try_new(text).with_context(|| format!("{text:?} is not {hint}"))
}

/// Makes the data directory, or looks at the one that is there: where everybody may write, somebody may
/// have put links under our names before us.
fn make_data_dir(dir: &Path) -> Result<()> {
    let hint = "choose another place with --data-dir or SKERRY_DATA_DIR";
    let name = dir.display();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .with_context(|| format!("cannot make the data directory {name}; {hint}"))?;
    let found = fs::metadata(dir).with_context(|| format!("looking at {name}"))?;
    if found.mode() & 0o002 != 0 {
        bail!(
            "everybody may write in the data directory {name}: take a directory of your own below \
             it, or chmod o-w"
        );
    }
    let us = nix::unistd::geteuid().as_raw();
    if found.uid() != us && found.uid() != 0 {
        let owner = found.uid();
        tracing::warn!(dir = %name, owner, "the data directory is another user's");
    }
    // Asked now, because later it would be the failure of some file in it.
    tempfile::tempfile_in(dir)
        .map(drop)
        .with_context(|| format!("cannot write in the data directory {name}; {hint}"))
}

/// The key in `<data-dir>/bootstrap-key`, made with `fresh` the first time; only the owner can read it.
fn kept_key(data_dir: &Path, fresh: impl FnOnce() -> String) -> Result<Secret> {
    let path = data_dir.join("bootstrap-key");
    let context = || format!("the bootstrap key kept in {}", path.display());
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => {
            let key = Secret::new(text.trim());
            check_key(&key).with_context(context)?;
            return Ok(key);
        }
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
    tracing::info!(path = %path.display(), "a bootstrap key was made");
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

/// The ready line on stdout: one JSON object, with the listeners there are beside the main one.
fn announce(
    url: &str,
    beside: &[(&str, Option<SocketAddr>)],
    accelerator: skerry_vmm::Accelerator,
) -> Result<()> {
    let mut line = serde_json::json!({
        "url": url,
        "version": env!("CARGO_PKG_VERSION"),
        "accelerator": accelerator,
    });
    for (name, address) in beside {
        if let Some(address) = address {
            line[*name] = address.to_string().into();
        }
    }
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
    fn a_kept_key_that_no_client_could_send_is_refused_without_being_shown() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bootstrap-key"), "two words\n").unwrap();
        let error = kept_key(dir.path(), || unreachable!()).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("bootstrap-key") && error.contains("without spaces"), "{error}");
        assert!(!error.contains("two words"), "{error}");
    }

    #[test]
    fn an_empty_kept_key_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bootstrap-key"), "\n").unwrap();
        assert_eq!(kept_key(dir.path(), || "sk_new".to_owned()).unwrap().expose(), "sk_new");
    }

    #[tokio::test]
    async fn a_port_in_use_is_told_with_what_to_do() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = format!("{:#}", bind(address).await.unwrap_err());
        assert!(error.contains(&address.to_string()) && error.contains("--listen"), "{error}");
        let elsewhere = bind("192.0.2.1:7070".parse().unwrap()).await.unwrap_err();
        assert!(format!("{elsewhere:#}").contains("no such address"), "{elsewhere:#}");
    }

    #[test]
    fn a_data_directory_that_cannot_be_made_or_written_is_told_with_what_to_do() {
        let error = make_data_dir(Path::new("/proc/skerry/data")).unwrap_err();
        assert!(format!("{error:#}").contains("--data-dir"), "{error:#}");
        let unwritable = make_data_dir(Path::new("/proc")).unwrap_err();
        let unwritable = format!("{unwritable:#}");
        assert!(unwritable.contains("cannot write") && unwritable.contains("--data-dir"));
    }

    #[test]
    fn a_data_directory_in_which_everybody_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        make_data_dir(&dir.path().join("new/deep")).unwrap();
        make_data_dir(&dir.path().join("new/deep")).unwrap();
        for mode in [0o777, 0o1777] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = make_data_dir(dir.path()).unwrap_err().to_string();
            assert!(error.contains("everybody may write"), "{error}");
        }
    }

    #[test]
    fn a_misspelt_log_filter_is_an_error_and_not_another_filter() {
        let error = format!("{:#}", log_filter("a=b=c").unwrap_err());
        assert!(error.contains("a=b=c") && error.contains("debug"), "{error}");
        log_filter("info,skerry_node=debug").unwrap();
    }

    #[test]
    fn an_unspecified_listen_address_is_announced_as_loopback() {
        assert_eq!(url_of("0.0.0.0:7070".parse().unwrap()), "http://127.0.0.1:7070");
        assert_eq!(url_of("[::]:80".parse().unwrap()), "http://[::1]:80");
        assert_eq!(url_of("127.0.0.1:1".parse().unwrap()), "http://127.0.0.1:1");
    }
}
