//! What the operator permits: from which registries, how they are reached, and how large things may be.

use std::{collections::BTreeMap, path::PathBuf};

use oci_spec::distribution::Reference;

use super::PullError;

/// Rules for pulling images. The default permits no registry at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullPolicy {
    /// The registries that images may come from, as `host` or `host:port`; `docker.io` is Docker Hub.
    pub registries: Vec<String>,
    /// Those of the registries and mirrors that are spoken to without TLS. A loopback address needs
    /// no mention.
    pub insecure: Vec<String>,
    /// Registry to the hosts that are asked first, in this order.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Credentials in the form of Docker's `config.json`; read at every pull.
    pub auth_file: Option<PathBuf>,
    /// How large an image may be.
    pub limits: PullLimits,
}

/// Bounds on what a registry or an image may make this host do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullLimits {
    /// All layers as they are transferred, in bytes.
    pub transfer_bytes: u64,
    /// All layers unpacked, in bytes.
    pub unpacked_bytes: u64,
    /// Entries of all layers.
    pub entries: u64,
}

impl Default for PullLimits {
    fn default() -> Self {
        Self { transfer_bytes: 8 << 30, unpacked_bytes: 16 << 30, entries: 500_000 }
    }
}

/// A host that may have an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// `host` or `host:port`, under which credentials are looked up.
    pub host: String,
    /// Where its API is, without a slash at the end.
    pub origin: String,
    /// Spoken to without TLS.
    pub plain: bool,
}

impl PullPolicy {
    /// Reads a reference as people write it: `alpine` is `docker.io/library/alpine:latest`.
    pub(super) fn reference(text: &str) -> Result<Reference, PullError> {
        let wrong = |problem: String| PullError::Reference { problem };
        if text.len() > 512 {
            return Err(wrong("it is longer than 512 bytes".to_owned()));
        }
        let reference: Reference = text.parse().map_err(|error| wrong(format!("{error}")))?;
        match reference.digest() {
            Some(digest) if !is_sha256(digest) => {
                Err(wrong("its digest is not `sha256:` and 64 hexadecimal digits".to_owned()))
            }
            Some(_) | None => Ok(reference),
        }
    }

    /// Where to ask for this image, best first.
    pub(super) fn sources(&self, reference: &Reference) -> Result<Vec<Source>, PullError> {
        let registry = reference.registry();
        if !self.registries.iter().any(|permitted| permitted == registry) {
            return Err(PullError::NotPermitted { registry: registry.to_owned() });
        }
        let mirrors = self.mirrors.get(registry).into_iter().flatten();
        Ok(mirrors.map(String::as_str).chain([registry]).map(|host| self.source(host)).collect())
    }

    fn source(&self, host: &str) -> Source {
        let plain = is_loopback(host) || self.insecure.iter().any(|insecure| insecure == host);
        // Docker Hub's API is not at the name that is written.
        let address = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let scheme = if plain { "http" } else { "https" };
        Source { host: host.to_owned(), origin: format!("{scheme}://{address}"), plain }
    }
}

pub(super) fn is_sha256(digest: &str) -> bool {
    let digits = digest.strip_prefix("sha256:").unwrap_or_default();
    digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// By address or by the one name that means nothing else.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> PullPolicy {
        PullPolicy {
            registries: ["docker.io", "127.0.0.1:5000", "inside:80", "ghcr.io"]
                .map(str::to_owned)
                .into(),
            insecure: vec!["inside:80".to_owned()],
            mirrors: [("docker.io".to_owned(), vec!["mirror.example".to_owned()])].into(),
            ..PullPolicy::default()
        }
    }

    fn origins(reference: &str) -> Vec<String> {
        let reference = PullPolicy::reference(reference).unwrap();
        policy().sources(&reference).unwrap().into_iter().map(|source| source.origin).collect()
    }

    #[test]
    fn a_registry_that_is_not_named_is_not_asked() {
        for text in ["quay.io/a/b", "169.254.169.254/latest/meta", "localhost:5000/x"] {
            let refused = policy().sources(&PullPolicy::reference(text).unwrap());
            assert!(matches!(refused, Err(PullError::NotPermitted { .. })), "{text}");
        }
        let nothing = PullPolicy::default().sources(&PullPolicy::reference("alpine").unwrap());
        assert!(matches!(nothing, Err(PullError::NotPermitted { .. })));
    }

    #[test]
    fn mirrors_come_first_and_only_what_was_named_is_asked_without_tls() {
        assert_eq!(origins("alpine"), ["https://mirror.example", "https://registry-1.docker.io"]);
        assert_eq!(origins("ghcr.io/a/b:1"), ["https://ghcr.io"]);
        assert_eq!(origins("127.0.0.1:5000/a"), ["http://127.0.0.1:5000"]);
        assert_eq!(origins("inside:80/a"), ["http://inside:80"]);
    }

    #[test]
    fn a_reference_is_read_as_people_write_it() {
        let whole = |text| PullPolicy::reference(text).map(|reference| reference.whole());
        assert_eq!(whole("alpine").unwrap(), "docker.io/library/alpine:latest");
        assert_eq!(whole("ghcr.io/a/b:1").unwrap(), "ghcr.io/a/b:1");
        let pinned = format!("alpine@sha256:{}", "a".repeat(64));
        assert_eq!(whole(&pinned).unwrap(), format!("docker.io/library/{pinned}"));
        for wrong in ["", "A", "a b", "../x", "a@sha256:00", "-x", "http://a/b"] {
            assert!(matches!(whole(wrong), Err(PullError::Reference { .. })), "{wrong}");
        }
    }

    #[test]
    fn loopback_is_an_address_and_not_a_name_that_looks_like_one() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:80"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "127.0.0.1.example", "10.0.0.1", "host:5000"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
