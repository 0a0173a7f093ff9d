//! What the encrypted listener is told.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Result, anyhow, bail};

use super::values::absolute;

/// The encrypted listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What it shows to whoever asks for a name without a certificate of its own.
    pub certificate: CertificatePaths,
}

/// A certificate in files; absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificatePaths {
    /// The chain.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// Checks what was said of it.
pub(super) fn resolve(
    listen: Option<&str>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<TlsConfig>> {
    let files = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            Some(CertificatePaths { certificate: absolute(certificate)?, key: absolute(key)? })
        }
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            bail!("tls_cert and tls_key are given together or not at all")
        }
    };
    let listen = match listen.unwrap_or_default() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            anyhow!("tls_listen must be an address and a port such as 0.0.0.0:443, or empty")
        })?),
    };
    match (listen, files) {
        (Some(listen), Some(certificate)) => Ok(Some(TlsConfig { listen, certificate })),
        (None, None) => Ok(None),
        (Some(_), None) => bail!("tls_listen needs tls_cert and tls_key"),
        (None, Some(_)) => bail!("tls_cert and tls_key are of no use without tls_listen"),
    }
}
