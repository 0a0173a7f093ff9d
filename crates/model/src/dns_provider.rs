//! Who serves a name in the DNS, and by what right records are put there: for certificates of names
//! that are shown to be somebody's by a record (ACME's DNS-01; RFC 8555, section 8.4).

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::{HostName, Invalid, Secret};

/// The port of name servers (RFC 1035, 4.2).
const DNS_PORT: u16 = 53;
/// The longest credential. A TSIG key of 64 bytes has 88 characters, a token 40.
const CREDENTIAL_MAX_CHARS: usize = 512;
/// The pause after a record was put in place, for the servers that copy it from there.
const SETTLE_SECONDS: u64 = 10;
const SETTLE_MAX_SECONDS: u64 = 300;

/// By whose interface records are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsProviderKind {
    /// Cloudflare's API, version 4.
    Cloudflare,
    /// Dynamic updates (RFC 2136) with transaction signatures (RFC 8945).
    Rfc2136,
}

impl DnsProviderKind {
    /// All of them, by their words.
    pub const ALL: [Self; 2] = [Self::Cloudflare, Self::Rfc2136];

    /// The word every dialect uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cloudflare => "cloudflare",
            Self::Rfc2136 => "rfc2136",
        }
    }

    /// Reads the word.
    ///
    /// # Errors
    /// [`Invalid`] with field `dns_provider`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| Invalid {
            field: "dns_provider",
            problem: "is not known here".to_owned(),
            allowed: Self::ALL.map(Self::as_str).join(", "),
        })
    }
}

/// A provider and what was said to be used with it, checked.
#[derive(Clone, PartialEq, Eq)]
pub struct DnsAccess {
    kind: DnsProviderKind,
    credentials: BTreeMap<String, Secret>,
}

/// Who mistakes a value for a key must not find it in a log either.
impl fmt::Debug for DnsAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsAccess").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl DnsAccess {
    /// Checks what was said.
    ///
    /// # Errors
    /// [`Invalid`] with field `dns_credentials`; it repeats none of them.
    pub fn new(
        kind: DnsProviderKind,
        credentials: BTreeMap<String, Secret>,
    ) -> Result<Self, Invalid> {
        let access = Self { kind, credentials };
        access.provider()?;
        Ok(access)
    }

    /// By whose interface.
    #[must_use]
    pub const fn kind(&self) -> DnsProviderKind {
        self.kind
    }

    /// What was said, to be kept.
    #[must_use]
    pub const fn credentials(&self) -> &BTreeMap<String, Secret> {
        &self.credentials
    }

    /// What it means.
    ///
    /// # Errors
    /// As [`DnsAccess::new`]: for one that was kept by a version that knew more.
    pub fn provider(&self) -> Result<DnsProvider, Invalid> {
        let mut said = Said { left: self.credentials.clone(), kind: self.kind };
        let provider = match self.kind {
            DnsProviderKind::Cloudflare => DnsProvider::Cloudflare(CloudflareAccess {
                token: said.needed("CLOUDFLARE_API_TOKEN", is_token)?,
                settle: said.settle("CLOUDFLARE_PROPAGATION_SECONDS")?,
            }),
            DnsProviderKind::Rfc2136 => DnsProvider::Rfc2136(DynamicUpdates {
                server: said.read("RFC2136_NAMESERVER", NameServer::parse)?,
                key_name: said.read("RFC2136_TSIG_KEY", host_name)?,
                algorithm: match said.left.contains_key("RFC2136_TSIG_ALGORITHM") {
                    true => said.read("RFC2136_TSIG_ALGORITHM", TsigAlgorithm::parse)?,
                    false => TsigAlgorithm::HmacSha256,
                },
                key: said.needed("RFC2136_TSIG_SECRET", is_base64)?,
                zone: match said.left.contains_key("RFC2136_ZONE") {
                    true => Some(said.read("RFC2136_ZONE", host_name)?),
                    false => None,
                },
                settle: said.settle("RFC2136_PROPAGATION_SECONDS")?,
            }),
        };
        said.end()?;
        Ok(provider)
    }
}

/// How records are changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsProvider {
    /// By Cloudflare's API.
    Cloudflare(CloudflareAccess),
    /// By dynamic updates.
    Rfc2136(DynamicUpdates),
}

impl DnsProvider {
    /// How long to wait between a record's being put in place and the first look at it.
    #[must_use]
    pub const fn settle(&self) -> Duration {
        match self {
            Self::Cloudflare(access) => access.settle,
            Self::Rfc2136(updates) => updates.settle,
        }
    }
}

/// What Cloudflare's API asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudflareAccess {
    /// A token that may read zones and edit the DNS of the name's zone.
    pub token: Secret,
    /// See [`DnsProvider::settle`].
    pub settle: Duration,
}

/// Where dynamic updates go, and how they are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicUpdates {
    /// The zone's primary server.
    pub server: NameServer,
    /// The key's name, which the server knows.
    pub key_name: HostName,
    /// What the key is used with.
    pub algorithm: TsigAlgorithm,
    /// The key, in base64.
    pub key: Secret,
    /// The zone that is changed; `None`: the one of which the server says that the name is in it.
    pub zone: Option<HostName>,
    /// See [`DnsProvider::settle`].
    pub settle: Duration,
}

/// What messages are signed with (RFC 8945, section 6): those that are neither weak nor shortened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TsigAlgorithm {
    /// `hmac-sha256`.
    HmacSha256,
    /// `hmac-sha384`.
    HmacSha384,
    /// `hmac-sha512`.
    HmacSha512,
}

impl TsigAlgorithm {
    fn parse(text: &str) -> Option<Self> {
        match text.trim_end_matches('.') {
            "hmac-sha256" => Some(Self::HmacSha256),
            "hmac-sha384" => Some(Self::HmacSha384),
            "hmac-sha512" => Some(Self::HmacSha512),
            _ => None,
        }
    }
}

/// A name server, as somebody wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// Who.
    pub host: NameServerHost,
    /// The port of TCP.
    pub port: u16,
}

/// Who a name server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameServerHost {
    /// By its address.
    Address(IpAddr),
    /// By its name.
    Name(HostName),
}

impl NameServer {
    /// `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1`, `[2001:db8::1]:5353`, `ns.example.com`,
    /// `ns.example.com:5353`.
    fn parse(text: &str) -> Option<Self> {
        let of = |host, port| Some(Self { host, port });
        if let Ok(address) = text.parse() {
            return of(NameServerHost::Address(address), DNS_PORT);
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
            None => (text, DNS_PORT),
        };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match bracketed {
            Some(address) => {
                of(NameServerHost::Address(address.parse::<Ipv6Addr>().ok()?.into()), port)
            }
            None => match host.parse() {
                Ok(IpAddr::V4(address)) => of(NameServerHost::Address(address.into()), port),
                Ok(IpAddr::V6(_)) => None,
                Err(_) => of(NameServerHost::Name(host_name(host)?), port),
            },
        }
    }
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            NameServerHost::Address(address) => SocketAddr::from((*address, self.port)).fmt(f),
            NameServerHost::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// What has not been read yet.
struct Said {
    left: BTreeMap<String, Secret>,
    kind: DnsProviderKind,
}

impl Said {
    fn invalid(&self, problem: String) -> Invalid {
        let (needed, possible): (&str, &str) = match self.kind {
            DnsProviderKind::Cloudflare => {
                ("CLOUDFLARE_API_TOKEN", "CLOUDFLARE_PROPAGATION_SECONDS (0 to 300)")
            }
            DnsProviderKind::Rfc2136 => (
                "RFC2136_NAMESERVER (host or host:port), RFC2136_TSIG_KEY (its name), \
                 RFC2136_TSIG_SECRET (base64)",
                "RFC2136_TSIG_ALGORITHM (hmac-sha256, hmac-sha384, hmac-sha512), RFC2136_ZONE, \
                 RFC2136_PROPAGATION_SECONDS (0 to 300)",
            ),
        };
        Invalid {
            field: "dns_credentials",
            problem,
            allowed: format!("{needed}; and if need be {possible}"),
        }
    }

    fn needed(&mut self, key: &str, is_one: fn(&str) -> bool) -> Result<Secret, Invalid> {
        let Some(value) = self.left.remove(key) else {
            return Err(self.invalid(format!("{key} is missing")));
        };
        let text = value.expose();
        if text.len() > CREDENTIAL_MAX_CHARS || !is_one(text) {
            return Err(self.invalid(format!("{key} is not acceptable")));
        }
        Ok(value)
    }

    fn read<T>(&mut self, key: &str, parse: fn(&str) -> Option<T>) -> Result<T, Invalid> {
        let value = self.needed(key, |_| true)?;
        parse(value.expose()).ok_or_else(|| self.invalid(format!("{key} is not acceptable")))
    }

    fn settle(&mut self, key: &str) -> Result<Duration, Invalid> {
        let seconds = match self.left.contains_key(key) {
            true => self.read(key, |text| text.parse().ok().filter(is_pause))?,
            false => SETTLE_SECONDS,
        };
        Ok(Duration::from_secs(seconds))
    }

    /// What was not asked for is not passed over in silence, nor repeated: it may be a value.
    fn end(self) -> Result<(), Invalid> {
        match self.left.len() {
            0 => Ok(()),
            count => Err(self.invalid(format!("{count} of the entries are not known"))),
        }
    }
}

fn is_pause(seconds: &u64) -> bool {
    *seconds <= SETTLE_MAX_SECONDS
}

fn host_name(text: &str) -> Option<HostName> {
    HostName::parse(text).ok()
}

/// What can stand in a header.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// RFC 4648, section 4, padded.
fn is_base64(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    !digits.is_empty()
        && text.len().is_multiple_of(4)
        && text.len() - digits.len() <= 2
        && digits.bytes().all(is_digit)
}

#[cfg(test)]
#[path = "dns_provider_tests.rs"]
mod tests;
