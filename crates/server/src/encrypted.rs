//! The encrypted listener: what it shows, and how that stays fresh.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use skerry_gateway::tls::{self, CertificateFiles, Certificates};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::MissedTickBehavior,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::{CertificatePaths, TlsConfig};

/// How often the certificate's files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A listener for TLS, with what it takes.
pub struct Encrypted {
    /// Where it listens.
    pub listener: TcpListener,
    /// Speaks TLS with what is shown.
    pub acceptor: TlsAcceptor,
    /// The files that the default comes from, if there is one.
    pub certificate: Option<WatchedCertificate>,
}

impl Encrypted {
    /// Listens and shows `certificates`, with the configuration's as the default.
    ///
    /// # Errors
    /// The address is taken; the certificate is of no use.
    pub async fn open(config: &TlsConfig, certificates: &Arc<Certificates>) -> Result<Self> {
        let certificate = match config.certificate.clone() {
            Some(CertificatePaths { certificate, key }) => {
                let mut files = CertificateFiles::new(certificate, key);
                let first = files.read().context("the certificate of --tls-cert and --tls-key")?;
                certificates.set_default(first);
                Some(WatchedCertificate { files, certificates: Arc::clone(certificates) })
            }
            None => None,
        };
        let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(certificates)?));
        let address = config.listen;
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen for TLS on {address}; choose another with --tls-listen")
        })?;
        Ok(Self { listener, acceptor, certificate })
    }
}

/// A certificate that somebody else renews.
pub struct WatchedCertificate {
    files: CertificateFiles,
    certificates: Arc<Certificates>,
}

impl WatchedCertificate {
    /// Takes over what is in the files whenever it has changed, at SIGHUP at once, until `shutdown`.
    /// What is of no use is told in the log, and the one before is shown on.
    pub async fn watch(mut self, shutdown: CancellationToken) {
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => Some(hangups),
            Err(error) => {
                tracing::warn!(%error, "SIGHUP cannot be heard");
                None
            }
        };
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let hangup = async {
                match &mut hangups {
                    Some(hangups) => hangups.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = look.tick() => {}
                _ = hangup => tracing::info!("SIGHUP: looking at the certificate's files"),
            }
            self.look();
        }
    }

    fn look(&mut self) {
        match self.files.read_if_changed() {
            Ok(None) => {}
            Ok(Some(certificate)) => {
                self.certificates.set_default(certificate);
                tracing::info!("the certificate's files have changed: the new one is shown");
            }
            Err(error) => {
                tracing::error!(%error, "the certificate's files cannot be used; the one before is shown");
            }
        }
    }
}
