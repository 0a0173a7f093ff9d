//! To whom a workspace may connect, and who may connect to it.

mod destination;
mod egress;
mod proxy;
mod reach;
pub mod reserved;

use std::{collections::BTreeSet, fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Invalid;

pub use self::{
    destination::{HostName, Ipv4Network, NamePattern},
    egress::{Destination, EgressRule},
    proxy::{OutboundProxy, ProxyCredentials, ProxyProtocol},
    reach::{AddressRange, Reachable},
};

/// The most links, openings and egress rules of one policy together.
pub const MAX_POLICY_ENTRIES: usize = 512;

/// The most different combinations of protocol and ports in the egress rules of one policy.
pub const MAX_PORT_CLASSES: usize = 32;

/// The address under which other workspaces of the node see a workspace. It has it as long as it
/// exists; inside, every workspace has the same address and knows nothing of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PrivateAddress(pub Ipv4Addr);

impl fmt::Display for PrivateAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for PrivateAddress {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

/// Ports from `first` to `last`, both included; `first` is at least 1 and at most `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 1, last: u16::MAX };

    /// The ports from `first` to `last`.
    ///
    /// # Errors
    /// When `first` is 0 or above `last`.
    pub fn new(first: u16, last: u16) -> Result<Self, Invalid> {
        if first == 0 || first > last {
            return Err(Invalid {
                field: "ports",
                problem: format!("{first} to {last} is no range of ports"),
                allowed: "1 to 65535, the first not above the last".to_owned(),
            });
        }
        Ok(Self { first, last })
    }

    /// One port.
    ///
    /// # Errors
    /// When `port` is 0.
    pub fn one(port: u16) -> Result<Self, Invalid> {
        Self::new(port, port)
    }

    /// The lowest.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }
}

impl TryFrom<(u16, u16)> for PortRange {
    type Error = Invalid;

    fn try_from((first, last): (u16, u16)) -> Result<Self, Invalid> {
        Self::new(first, last)
    }
}

impl From<PortRange> for (u16, u16) {
    fn from(ports: PortRange) -> Self {
        (ports.first, ports.last)
    }
}

/// Somebody may connect to some ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Opening {
    /// Who.
    pub from: PrivateAddress,
    /// By which protocol.
    pub transport: Transport,
    /// To which ports.
    pub ports: PortRange,
}

/// What a workspace may do on the network. A connection between two workspaces exists when the one
/// that opens it has a link to the other *and* the other has an opening for it: each side decides
/// for itself. The default is that nothing comes in and nothing goes out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// To whom it may open connections.
    #[serde(default)]
    pub links: BTreeSet<PrivateAddress>,
    /// Who may open connections to it.
    #[serde(default)]
    pub ingress: BTreeSet<Opening>,
    /// What of the world outside it may reach, in addition to its links: what any of these permits.
    #[serde(default)]
    pub egress: BTreeSet<EgressRule>,
    /// Through what it reaches that. With a proxy TCP is all that leaves for the world, and nothing goes
    /// round it.
    #[serde(default)]
    pub proxy: Option<OutboundProxy>,
    /// Whether every connection by TCP to port 443 of the internet is asked for the name that is meant,
    /// also where the address alone would permit it.
    #[serde(default)]
    pub inspects_tls: bool,
}

impl NetworkPolicy {
    /// Checks the size, and that no rule opens what is nobody's to open.
    ///
    /// # Errors
    /// When there are more than [`MAX_POLICY_ENTRIES`] entries, or more than [`MAX_PORT_CLASSES`]
    /// different combinations of protocol and ports, when an egress rule is about nothing but
    /// addresses that no workspace ever reaches ([`reserved::is_never_reachable`]), or when the proxy
    /// cannot be asked ([`OutboundProxy::check`]).
    pub fn check(&self) -> Result<(), Invalid> {
        let entries = self.links.len() + self.ingress.len() + self.egress.len();
        if entries > MAX_POLICY_ENTRIES {
            return Err(Invalid {
                field: "network_policy",
                problem: format!("{entries} links, openings and egress rules"),
                allowed: format!("at most {MAX_POLICY_ENTRIES} in all"),
            });
        }
        let classes: BTreeSet<_> =
            self.egress.iter().map(|rule| (rule.transports(), rule.ports)).collect();
        if classes.len() > MAX_PORT_CLASSES {
            return Err(Invalid {
                field: "egress",
                problem: format!("{} different combinations of protocol and ports", classes.len()),
                allowed: format!("at most {MAX_PORT_CLASSES}"),
            });
        }
        self.proxy.iter().try_for_each(OutboundProxy::check)?;
        self.egress.iter().try_for_each(EgressRule::check)
    }

    /// The openings such that no two of one peer and protocol touch: what a filter needs that takes
    /// no range twice.
    #[must_use]
    pub fn openings_merged(&self) -> Vec<Opening> {
        let mut merged: Vec<Opening> = Vec::new();
        // In the order of peer, protocol, first port: what touches is adjacent.
        for next in &self.ingress {
            match merged.last_mut() {
                Some(last)
                    if (last.from, last.transport) == (next.from, next.transport)
                        && next.ports.first <= last.ports.last.saturating_add(1) =>
                {
                    last.ports.last = last.ports.last.max(next.ports.last);
                }
                Some(_) | None => merged.push(*next),
            }
        }
        merged
    }

    /// Everybody it may have to do with, in either direction.
    #[must_use]
    pub fn peers(&self) -> BTreeSet<PrivateAddress> {
        self.ingress.iter().map(|opening| opening.from).chain(self.links.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opening(last_octet: u8, transport: Transport, first: u16, last: u16) -> Opening {
        Opening {
            from: PrivateAddress(Ipv4Addr::new(10, 201, 0, last_octet)),
            transport,
            ports: PortRange::new(first, last).unwrap(),
        }
    }

    #[test]
    fn the_default_policy_names_nobody() {
        let policy = NetworkPolicy::default();
        assert!(policy.peers().is_empty() && policy.openings_merged().is_empty());
        assert!(policy.egress.is_empty());
        assert_eq!(serde_json::from_str::<NetworkPolicy>("{}").unwrap(), policy);
    }

    #[test]
    fn ranges_that_are_none_are_refused_also_when_they_are_read() {
        assert!(PortRange::new(0, 5).is_err() && PortRange::new(6, 5).is_err());
        assert!(serde_json::from_str::<PortRange>("[9,8]").is_err());
        assert_eq!(serde_json::from_str::<PortRange>("[8,9]").unwrap().last(), 9);
    }

    #[test]
    fn a_policy_has_a_largest_size() {
        let links = |count: u32| NetworkPolicy {
            links: (0..count).map(|n| PrivateAddress(Ipv4Addr::from_bits(n))).collect(),
            ..NetworkPolicy::default()
        };
        let most = u32::try_from(MAX_POLICY_ENTRIES).unwrap();
        assert!(links(most).check().is_ok() && links(most + 1).check().is_err());
    }

    proptest! {
        #[test]
        fn merging_keeps_what_is_open_and_leaves_no_two_that_touch(
            raw in prop::collection::btree_set((0_u8..3, prop::bool::ANY, 1_u16..40, 0_u16..10), 0..30)
        ) {
            let transport = |udp| if udp { Transport::Udp } else { Transport::Tcp };
            let ingress: BTreeSet<Opening> = raw
                .into_iter()
                .map(|(peer, udp, first, more)| opening(peer, transport(udp), first, first + more))
                .collect();
            let policy = NetworkPolicy { ingress, ..NetworkPolicy::default() };
            let open = |openings: &mut dyn Iterator<Item = Opening>| -> BTreeSet<_> {
                openings
                    .flat_map(|one| {
                        (one.ports.first..=one.ports.last).map(move |p| (one.from, one.transport, p))
                    })
                    .collect()
            };
            let merged = policy.openings_merged();
            prop_assert_eq!(
                open(&mut policy.ingress.iter().copied()),
                open(&mut merged.iter().copied())
            );
            for pair in merged.windows(2) {
                prop_assert!(
                    (pair[0].from, pair[0].transport) != (pair[1].from, pair[1].transport)
                        || u32::from(pair[0].ports.last) + 1 < u32::from(pair[1].ports.first)
                );
            }
        }
    }
}
