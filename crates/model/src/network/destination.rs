//! Host names and networks, checked when they are read.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::Invalid;

/// A host name in the form that DNS compares: ASCII (RFC 5891), lower case, without the root's dot.
/// Labels of 1 to 63 letters, digits, `-` and `_`, 253 characters in all; never an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl HostName {
    /// The longest name in presentation form (RFC 1035, 2.3.4, less the root's length and dot).
    pub const MAX_CHARS: usize = 253;
    /// The longest label (RFC 1035, 2.3.4).
    pub const MAX_LABEL_CHARS: usize = 63;

    /// Checks `text`; one dot at the end is the root's.
    ///
    /// # Errors
    /// [`Invalid`] with field `host_name`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        checked(text).map(Self).map_err(|problem| Invalid {
            field: "host_name",
            problem: problem.to_owned(),
            allowed: NAME_RULE.to_owned(),
        })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const NAME_RULE: &str = "a host name such as example.org: at most 253 characters, labels of 1 to 63 \
     letters, digits and hyphens, no address";

fn checked(text: &str) -> Result<String, &'static str> {
    // Unicode names become longer, never shorter than a fourth: more is not looked at.
    if text.len() > 4 * HostName::MAX_CHARS {
        return Err("is too long");
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() {
        return Err("is empty");
    }
    let name = idna::domain_to_ascii_cow(name.as_bytes(), idna::AsciiDenyList::URL)
        .map_err(|_| "is not a host name")?;
    if name.len() > HostName::MAX_CHARS {
        return Err("is too long");
    }
    let is_label = |label: &str| {
        (1..=HostName::MAX_LABEL_CHARS).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !name.split('.').all(is_label) {
        return Err("has a label that is none");
    }
    // WHATWG URL, "ends in a number": such a text is an address or an error, never a name.
    let last = name.rsplit('.').next().unwrap_or_default();
    let hexadecimal =
        last.strip_prefix("0x").is_some_and(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
    if hexadecimal || last.bytes().all(|b| b.is_ascii_digit()) {
        return Err("is an address, or looks like one");
    }
    Ok(name.into_owned())
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for HostName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text)
    }
}

impl TryFrom<String> for HostName {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::parse(&text)
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

/// A host name (`example.org`), or everything below one at any depth (`*.example.org`, which does not
/// include `example.org` itself).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NamePattern {
    /// This name.
    Exactly(HostName),
    /// Every name that ends in a dot and this one.
    Below(HostName),
}

impl NamePattern {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`Invalid`] with field `name_pattern`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let made = match text.strip_prefix("*.") {
            Some(below) => checked(below).map(|name| Self::Below(HostName(name))),
            None => checked(text).map(|name| Self::Exactly(HostName(name))),
        };
        made.map_err(|problem| Invalid {
            field: "name_pattern",
            problem: problem.to_owned(),
            allowed: format!("{NAME_RULE}; with `*.` before it: every name below it"),
        })
    }

    /// Whether `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &HostName) -> bool {
        match self {
            Self::Exactly(own) => own == name,
            Self::Below(own) => {
                name.0.strip_suffix(own.as_str()).is_some_and(|before| before.ends_with('.'))
            }
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(name) => name.fmt(f),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

impl FromStr for NamePattern {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text)
    }
}

impl TryFrom<String> for NamePattern {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::parse(&text)
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.to_string()
    }
}

/// IPv4 addresses that begin alike, in CIDR notation (RFC 4632): `198.51.100.0/24`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Network(Ipv4Net);

impl Ipv4Network {
    /// Every address.
    pub const ALL: Self = Self::of([0, 0, 0, 0], 0);

    /// For constants, whose mistakes the compiler finds.
    pub(super) const fn of([a, b, c, d]: [u8; 4], bits: u8) -> Self {
        Self(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits))
    }

    /// The network of this length (32 at most) around an address.
    #[must_use]
    pub fn around(address: Ipv4Addr, prefix_bits: u8) -> Self {
        Self(Ipv4Net::new_assert(address, prefix_bits.min(32)).trunc())
    }

    /// Checks `text`; an address alone is a network of 32 bits.
    ///
    /// # Errors
    /// [`Invalid`] with field `network`, also when bits are set beyond the length.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let invalid = |problem: String| Invalid {
            field: "network",
            problem,
            allowed: "an IPv4 network such as 198.51.100.0/24, or an IPv4 address".to_owned(),
        };
        let no_network = || invalid("is not an IPv4 network".to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, bits.parse().map_err(|_| no_network())?),
            None => (text, 32),
        };
        // The standard library's parser: others take a leading zero for decimal or for octal.
        let address: Ipv4Addr = address.parse().map_err(|_| no_network())?;
        let network = Ipv4Net::new(address, bits).map_err(|_| no_network())?;
        if network.trunc() != network {
            let meant = network.trunc();
            return Err(invalid(format!("{network} has bits beyond its length; {meant} has not")));
        }
        Ok(Self(network))
    }

    /// The first address.
    #[must_use]
    pub fn first(&self) -> Ipv4Addr {
        self.0.network()
    }

    /// The last address.
    #[must_use]
    pub fn last(&self) -> Ipv4Addr {
        self.0.broadcast()
    }

    /// How many bits its addresses have in common, 0 to 32.
    #[must_use]
    pub fn prefix_bits(&self) -> u8 {
        self.0.prefix_len()
    }

    /// Whether the address is one of these.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.0.contains(&address)
    }

    /// Whether all of `other` is in here.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }
}

impl fmt::Display for Ipv4Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Ipv4Network {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Ipv4Network {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::parse(&text)
    }
}

impl From<Ipv4Network> for String {
    fn from(network: Ipv4Network) -> Self {
        network.to_string()
    }
}

impl From<Ipv4Addr> for Ipv4Network {
    fn from(address: Ipv4Addr) -> Self {
        Self(address.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    fn pattern(text: &str) -> NamePattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_kept_as_dns_compares_it() {
        assert_eq!(name("Example.ORG.").as_str(), "example.org");
        assert_eq!(name("Bücher.example").as_str(), "xn--bcher-kva.example");
        assert_eq!(name("_dmarc.example.org").as_str(), "_dmarc.example.org");
        assert_eq!(pattern("*.Example.org").to_string(), "*.example.org");
    }

    #[test]
    fn what_is_no_host_name_is_refused_and_the_field_is_named() {
        let long = format!("{}.example", "a.".repeat(130));
        let label = format!("{}.example", "a".repeat(64));
        for bad in [
            "",
            ".",
            "..",
            "*",
            "*.",
            "*.*.org",
            "a.*.org",
            "a*.org",
            "a..b",
            "-a.org",
            "a-.org",
            "a b.org",
            "10.0.0.1",
            "1.2.3",
            "0x7f.1",
            "x.0x7f",
            "[::1]",
            "::1",
            "a/b",
            "a:80",
            "http://a.org",
            "xn--a.org",
            "example.org..",
            &long,
            &label,
        ] {
            let error = NamePattern::parse(bad).unwrap_err();
            assert_eq!(error.field, "name_pattern", "{bad}");
            assert_eq!(HostName::parse(bad).unwrap_err().field, "host_name", "{bad}");
            assert!(serde_json::from_value::<NamePattern>(bad.into()).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_asterisk_means_what_is_below_at_any_depth_and_nothing_that_only_looks_like_it() {
        let below = pattern("*.example.org");
        assert!(below.matches(&name("a.example.org")) && below.matches(&name("b.a.example.org")));
        for other in ["example.org", "badexample.org", "a.example.org.evil.net", "org"] {
            assert!(!below.matches(&name(other)), "{other}");
        }
        let exactly = pattern("example.org");
        assert!(exactly.matches(&name("EXAMPLE.org")) && !exactly.matches(&name("a.example.org")));
    }

    #[test]
    fn networks_read_as_they_are_written_and_bits_beyond_the_length_are_refused() {
        for good in ["198.51.100.0/24", "0.0.0.0/0", "10.0.0.1/32"] {
            assert_eq!(good.parse::<Ipv4Network>().unwrap().to_string(), good);
        }
        let one: Ipv4Network = "198.51.100.7".parse().unwrap();
        assert_eq!((one.prefix_bits(), one.first(), one.last()), (32, one.first(), one.first()));
        let error = Ipv4Network::parse("198.51.100.7/24").unwrap_err();
        assert!(error.problem.contains("198.51.100.0/24"), "{error}");
        for bad in
            ["", "x", "1.2.3.4/33", "1.2.3.4/-1", "1.2.3/24", "::/0", "010.0.0.0/8", "1.2.3.4/"]
        {
            assert_eq!(Ipv4Network::parse(bad).unwrap_err().field, "network", "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_accepted_again_as_it_is_shown(text in "\\PC{0,40}") {
            if let Ok(read) = NamePattern::parse(&text) {
                prop_assert_eq!(NamePattern::parse(&read.to_string()), Ok(read));
            }
            if let Ok(read) = Ipv4Network::parse(&text) {
                prop_assert_eq!(Ipv4Network::parse(&read.to_string()), Ok(read));
            }
        }

        #[test]
        fn a_network_contains_what_lies_between_its_ends(
            bits in 0_u8..=32, network in any::<u32>(), address in any::<u32>()
        ) {
            let first = u64::from(network) >> (32 - bits) << (32 - bits);
            let first = Ipv4Addr::from_bits(u32::try_from(first).unwrap());
            let network = Ipv4Network::parse(&format!("{first}/{bits}")).unwrap();
            let address = Ipv4Addr::from_bits(address);
            prop_assert_eq!(
                network.contains(address),
                (network.first()..=network.last()).contains(&address)
            );
        }
    }
}
