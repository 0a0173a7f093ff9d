//! Addresses that are not the internet (IANA's registry of special-purpose IPv4 addresses, RFC 6890),
//! and those that no workspace ever reaches.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Ipv4Network;

/// What an operator may use for networks of his own: not the internet, and reached only by a rule
/// that names such a network.
pub const PRIVATE: [Ipv4Network; 5] = [
    // RFC 1918.
    Ipv4Network::of([10, 0, 0, 0], 8),
    Ipv4Network::of([172, 16, 0, 0], 12),
    Ipv4Network::of([192, 168, 0, 0], 16),
    // RFC 6598: between a provider and its customers.
    Ipv4Network::of([100, 64, 0, 0], 10),
    // RFC 6890: protocol assignments.
    Ipv4Network::of([192, 0, 0, 0], 24),
];

/// What no rule opens.
pub const NEVER: [Ipv4Network; 7] = [
    // RFC 1122: this host on this network, and its loopback interface.
    Ipv4Network::of([0, 0, 0, 0], 8),
    Ipv4Network::of([127, 0, 0, 0], 8),
    // RFC 3927: one link. Where clouds keep their metadata services.
    Ipv4Network::of([169, 254, 0, 0], 16),
    // Metadata services at other addresses: of Azure, Alibaba Cloud, Oracle Cloud.
    Ipv4Network::of([168, 63, 129, 16], 32),
    Ipv4Network::of([100, 100, 100, 200], 32),
    Ipv4Network::of([192, 0, 0, 192], 32),
    // RFC 1112: groups, reserved, broadcast.
    Ipv4Network::of([224, 0, 0, 0], 3),
];

/// Whether this is an address of the internet.
#[must_use]
pub fn is_internet(address: Ipv4Addr) -> bool {
    !PRIVATE.iter().chain(&NEVER).any(|network| network.contains(address))
}

/// Whether this is an address of the internet by which no IPv4 address is meant (IANA's registry of
/// special-purpose IPv6 addresses: global unicast without documentation, 6to4 and protocol assignments).
#[must_use]
pub fn is_internet_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let is_assigned_to_protocols = first == 0x2001 && second < 0x0200;
    let is_documentation = (first, second) == (0x2001, 0x0db8) || first == 0x3fff;
    first & 0xe000 == 0x2000 && first != 0x2002 && !is_assigned_to_protocols && !is_documentation
}

/// Whether these are private addresses, all of them.
#[must_use]
pub fn is_private(network: &Ipv4Network) -> bool {
    PRIVATE.iter().any(|private| private.covers(network)) && !is_never_reachable(network)
}

/// Whether no workspace reaches any of them, whatever its policy says.
#[must_use]
pub fn is_never_reachable(network: &Ipv4Network) -> bool {
    NEVER.iter().any(|never| never.covers(network))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_internet_is_what_is_reserved_for_nothing_else() {
        for not in [
            "10.1.2.3",
            "172.31.255.255",
            "192.168.0.1",
            "100.127.0.1",
            "169.254.169.254",
            "127.0.0.53",
            "0.0.0.0",
            "224.0.0.251",
            "255.255.255.255",
            "168.63.129.16",
        ] {
            assert!(!is_internet(not.parse().unwrap()), "{not}");
        }
        for address in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.1.1", "223.255.255.255"] {
            assert!(is_internet(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn the_internet_of_ipv6_leads_round_no_rule_for_ipv4() {
        for not in [
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "fd00::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!is_internet_v6(not.parse().unwrap()), "{not}");
        }
        for address in ["2606:4700:4700::1111", "2001:4860:4860::8888", "2a00::1"] {
            assert!(is_internet_v6(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_network_is_private_only_as_a_whole() {
        let is = |text: &str| is_private(&text.parse().unwrap());
        assert!(is("10.0.0.0/8") && is("192.168.7.0/24") && is("100.64.0.0/10"));
        assert!(!is("0.0.0.0/0") && !is("8.0.0.0/5") && !is("100.100.100.200") && !is("1.1.1.1"));
    }
}
