//! What the encrypted listener is told, and whoever gets certificates for it.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Result, anyhow, bail, ensure};
use clap::ValueEnum;
use serde::Deserialize;
use skerry_gateway::domains::{AcmeChallenge, AcmeSettings};

use super::values::{absolute, network};

/// How names are shown to an ACME server to lead here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AcmeChallengeSetting {
    /// By a request that comes to port 80 and is led to the listener in the clear.
    #[default]
    #[value(name = "http-01")]
    #[serde(rename = "http-01")]
    Http01,
    /// By a handshake that comes to port 443 and is led to the encrypted listener.
    #[value(name = "tls-alpn-01")]
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

/// The encrypted listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What it shows to whoever asks for a name without a certificate of its own; without it such a
    /// handshake fails.
    pub certificate: Option<CertificatePaths>,
}

/// A certificate in files; absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificatePaths {
    /// The chain.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// What was said of it.
pub(super) struct Said {
    pub(super) listen: Option<String>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) acme_directory: Option<String>,
    pub(super) acme_contact: Option<String>,
    pub(super) acme_root: Option<PathBuf>,
    pub(super) acme_challenge: Option<AcmeChallengeSetting>,
    pub(super) dns_update_networks: Option<Vec<String>>,
}

impl Said {
    /// Checks it.
    pub(super) fn resolve(self) -> Result<(Option<TlsConfig>, Option<AcmeSettings>)> {
        let files = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => {
                Some(CertificatePaths { certificate: absolute(certificate)?, key: absolute(key)? })
            }
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                bail!("tls_cert and tls_key are given together or not at all")
            }
        };
        let listen = match self.listen.as_deref().unwrap_or_default() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                anyhow!("tls_listen must be an address and a port such as 0.0.0.0:443, or empty")
            })?),
        };
        let acme = match self.acme_directory.filter(|url| !url.is_empty()) {
            Some(directory) => {
                ensure!(
                    directory.starts_with("https://"),
                    "acme_directory must be a URL that begins with https://"
                );
                if let Some(address) = &self.acme_contact {
                    ensure!(
                        address.contains('@')
                            && address.bytes().all(|byte| byte.is_ascii_graphic()),
                        "acme_contact must be an e-mail address"
                    );
                }
                Some(AcmeSettings {
                    directory,
                    contact: self.acme_contact,
                    root: self.acme_root.map(absolute).transpose()?,
                    challenge: match self.acme_challenge.unwrap_or_default() {
                        AcmeChallengeSetting::Http01 => AcmeChallenge::Http01,
                        AcmeChallengeSetting::TlsAlpn01 => AcmeChallenge::TlsAlpn01,
                    },
                    update_networks: self
                        .dns_update_networks
                        .unwrap_or_default()
                        .iter()
                        .map(|text| network("dns_update_networks", text))
                        .collect::<Result<_>>()?,
                })
            }
            None => {
                ensure!(
                    self.acme_contact.is_none()
                        && self.acme_root.is_none()
                        && self.acme_challenge.is_none()
                        && self.dns_update_networks.is_none(),
                    "acme_contact, acme_root, acme_challenge and dns_update_networks are of no use \
                     without acme_directory"
                );
                None
            }
        };
        let tls = match (listen, files) {
            (Some(listen), certificate) => {
                ensure!(
                    certificate.is_some() || acme.is_some(),
                    "tls_listen needs tls_cert and tls_key, or acme_directory"
                );
                Some(TlsConfig { listen, certificate })
            }
            (None, None) => None,
            (None, Some(_)) => bail!("tls_cert and tls_key are of no use without tls_listen"),
        };
        ensure!(
            tls.is_some() || acme.is_none(),
            "acme_directory needs tls_listen, where its certificates are shown"
        );
        Ok((tls, acme))
    }
}
