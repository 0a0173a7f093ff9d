//! Single values: how they are read and what they may be.

use std::{fmt, path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use skerry_model::{Ipv4Network, Secret};

/// The longest bound that can be configured.
const MAX_SECONDS: u64 = 3600;

pub(super) fn seconds_within(setting: &str, seconds: u64, least: u64) -> Result<Duration> {
    let allowed = least..=MAX_SECONDS;
    ensure!(allowed.contains(&seconds), "{setting} must be {least} to {MAX_SECONDS} seconds");
    Ok(Duration::from_secs(seconds))
}

pub(super) fn network(setting: &str, text: &str) -> Result<Ipv4Network> {
    Ipv4Network::parse(text).map_err(|invalid| anyhow!("{setting}: {invalid}"))
}

pub(super) fn private_network(text: &str) -> Result<Ipv4Network> {
    let network = network("private_networks", text)?;
    ensure!(
        skerry_model::network::reserved::is_private(&network),
        "private_networks: {text} is not in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, \
         100.64.0.0/10 or 192.0.0.0/24; others are reached by rules for anywhere"
    );
    Ok(network)
}

/// Labels are put before it, so it is a bare name.
pub(super) fn check_domain(setting: &str, domain: &str) -> Result<()> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    ensure!(
        domain.len() <= 190 && domain.split('.').all(is_label),
        "{setting} must be a domain name such as workspaces.example.com, without scheme and port"
    );
    Ok(())
}

/// Shown to clients and put before paths.
pub(super) fn check_url(url: &str) -> Result<()> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let authority = rest.unwrap_or_default().trim_end_matches('/');
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"/?#@".contains(&byte);
    ensure!(
        !authority.is_empty() && authority.bytes().all(is_plain),
        "public_url must be http:// or https:// with a host and perhaps a port, and nothing else"
    );
    Ok(())
}

/// An odd key would be mangled by a client's shell or header.
///
/// # Errors
/// It is empty, too long, or holds something else than printable ASCII; the message does not show it.
pub fn check_key(key: &Secret) -> Result<()> {
    let text = key.expose();
    if !(1..=256).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("bootstrap_key must be 1 to 256 printable ASCII characters without spaces");
    }
    if text.len() < 16 {
        tracing::warn!("the bootstrap key is shorter than 16 characters: it could be guessed");
    }
    Ok(())
}

/// A key on its way in: read from text, never printed.
#[derive(Clone, Debug)]
pub struct KeyText(pub(super) Secret);

impl std::str::FromStr for KeyText {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Secret::new(text)))
    }
}

impl<'de> Deserialize<'de> for KeyText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl serde::de::Visitor<'_> for Text {
            type Value = KeyText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key in quotes")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<KeyText, E> {
                Ok(KeyText(Secret::new(text)))
            }

            // The usual messages for these show what was found.
            fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<KeyText, E> {
                Err(E::custom("a key must be in quotes"))
            }

            fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<KeyText, E> {
                Err(E::custom("a key must be in quotes"))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

pub(super) fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("resolving {}", path.display()))
}
