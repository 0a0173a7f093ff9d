//! How a visitor names a port of a workspace, and what they may show.

use std::{fmt, sync::Arc};

use skerry_model::{HostName, Secret, Slug, WorkspaceId};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::GuestApi;

/// Labels below the base domain that belong to the server itself: no port is published under them.
pub const RESERVED_LABELS: [&str; 10] = [
    "aether",
    "instavm",
    "oblien",
    "rigbox",
    "admin",
    "api",
    "dashboard",
    "preview",
    "skerry",
    "www",
];

/// Length of a workspace's preview token.
pub const PREVIEW_TOKEN_CHARS: usize = 32;

/// The port a visitor means, read from the host they came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreviewAddress {
    /// A published port.
    Published(Slug),
    /// Any port of a workspace, by its preview token: `<port>-<id>-<token>`.
    Token(TokenAddress),
    /// The port that a custom domain leads to.
    Domain(HostName),
}

/// What `<port>-<id>-<token>` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenAddress {
    /// The port, not 0.
    pub port: u16,
    /// The first 32 bits of the workspace's identifier, or of its project's.
    pub id_prefix: u32,
    /// [`PREVIEW_TOKEN_CHARS`] of `[a-z0-9]`.
    pub token: Secret,
}

impl PreviewAddress {
    /// The address that `label` (lower case) prints; `None` if it can be none.
    #[must_use]
    pub fn parse(label: &str) -> Option<Self> {
        if let Some(address) = TokenAddress::parse(label) {
            return Some(Self::Token(address));
        }
        let free = !RESERVED_LABELS.contains(&label);
        Slug::parse(label).ok().filter(|_| free).map(Self::Published)
    }
}

impl TokenAddress {
    fn parse(label: &str) -> Option<Self> {
        let mut parts = label.split('-');
        let (port, prefix, token) = (parts.next()?, parts.next()?, parts.next()?);
        let is_hex = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let formed = parts.next().is_none()
            && !port.starts_with('0')
            && port.bytes().all(|b| b.is_ascii_digit())
            && prefix.len() == 8
            && prefix.bytes().all(is_hex)
            && token.len() == PREVIEW_TOKEN_CHARS
            && token.bytes().all(is_plain);
        if !formed {
            return None;
        }
        Some(Self {
            port: port.parse().ok()?,
            id_prefix: u32::from_str_radix(prefix, 16).ok()?,
            token: Secret::new(token),
        })
    }
}

/// What a visitor has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreviewCredential {
    /// The token of a private port.
    PortToken(Secret),
    /// An API key of the account.
    ApiKey(Secret),
}

/// A port somebody may visit, of a workspace that runs.
#[derive(Clone)]
pub struct OpenPreview {
    /// Whose port.
    pub workspace: WorkspaceId,
    /// The port.
    pub port: u16,
    /// The inside of the workspace. Use of it counts as use of the workspace.
    pub guest: Arc<dyn GuestApi>,
    /// Whether the workspace was woken, or waited for, on the way: its server may need a moment.
    pub was_woken: bool,
    /// Cancelled when the port is revoked or may not be visited any more under the same conditions.
    pub closed: Arc<CancellationToken>,
}

impl fmt::Debug for OpenPreview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenPreview")
            .field("workspace", &self.workspace)
            .field("port", &self.port)
            .field("was_woken", &self.was_woken)
            .finish_non_exhaustive()
    }
}

/// Why a visitor does not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PreviewRefusal {
    /// Nothing is published there.
    #[error("no such port")]
    NotFound,
    /// It is there, and not for them.
    #[error("not allowed")]
    Forbidden,
    /// The workspace does not run and is not woken by visits.
    #[error("the workspace does not run")]
    NotRunning,
    /// The workspace could not be woken, or not now.
    #[error("the workspace cannot be reached")]
    Unavailable,
    /// A fault of ours; the cause is in the log.
    #[error("internal error")]
    Internal,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "abcdefghijklmnopqrstuvwxyz012345";

    #[test]
    fn a_label_with_port_prefix_and_token_names_any_port() {
        let label = format!("3000-9f1c0de5-{TOKEN}");
        let Some(PreviewAddress::Token(address)) = PreviewAddress::parse(&label) else {
            panic!("{label}")
        };
        assert_eq!((address.port, address.id_prefix), (3000, 0x9f1c_0de5));
        assert_eq!(address.token.expose(), TOKEN);
        assert!(!format!("{address:?}").contains(TOKEN));
    }

    #[test]
    fn what_only_resembles_such_a_label_is_a_slug() {
        for label in [
            format!("0-9f1c0de5-{TOKEN}"),
            format!("03000-9f1c0de5-{TOKEN}"),
            format!("65536-9f1c0de5-{TOKEN}"),
            format!("3000-9f1c0dex-{TOKEN}"),
            format!("3000-9f1c0de5-{TOKEN}x"),
            format!("3000-9f1c0de5-{TOKEN}-x"),
            "3000-9f1c0de5".to_owned(),
            "blog".to_owned(),
        ] {
            let parsed = PreviewAddress::parse(&label);
            assert_eq!(parsed, Some(PreviewAddress::Published(Slug::parse(&label).unwrap())));
        }
    }

    #[test]
    fn reserved_words_and_what_is_no_label_name_nothing() {
        for label in RESERVED_LABELS.into_iter().chain(["", "ab", "-abc", "Abc", "a_b_c", "a.b"]) {
            assert_eq!(PreviewAddress::parse(label), None, "{label}");
        }
    }
}
