//! A policy's egress rules as a packet filter takes them: for every protocol and range of ports, the
//! addresses that may be reached there, none of them twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::{Destination, Ipv4Network, NamePattern, NetworkPolicy, PortRange, Transport, reserved};

/// Addresses from the first to the second, both included.
pub type AddressRange = (Ipv4Addr, Ipv4Addr);

/// What may be reached by some protocols at some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachable {
    /// The protocols with ports.
    pub transports: &'static [Transport],
    /// Which ports.
    pub ports: PortRange,
    /// Whether protocols without ports are meant, too.
    pub every_protocol: bool,
    /// The addresses, in order, no two ranges of which touch.
    pub addresses: Vec<AddressRange>,
    /// The names whose addresses may be reached, too, as they come to be known.
    pub names: BTreeSet<NamePattern>,
}

impl NetworkPolicy {
    /// What may be reached outside; never an address of `own`, from which workspaces have theirs:
    /// links are about those.
    #[must_use]
    pub fn reach(&self, own: Ipv4Network) -> Vec<Reachable> {
        let mut classes: BTreeMap<_, Reachable> = BTreeMap::new();
        for rule in &self.egress {
            let (transports, ports) = (rule.transports(), rule.ports);
            let every_protocol = rule.is_about_every_protocol();
            let class = classes.entry((transports, ports, every_protocol)).or_insert_with(|| {
                let (addresses, names) = (Vec::new(), BTreeSet::new());
                Reachable { transports, ports, every_protocol, addresses, names }
            });
            match &rule.to {
                Destination::Anywhere => class.addresses.extend(internet_of(Ipv4Network::ALL, own)),
                Destination::Network(network) if reserved::is_private(network) => {
                    class.addresses.extend(without([range(*network)], &never(own)));
                }
                Destination::Network(network) => {
                    class.addresses.extend(internet_of(*network, own));
                }
                Destination::Name(pattern) => {
                    class.names.insert(pattern.clone());
                }
            }
        }
        let mut reach: Vec<Reachable> = classes.into_values().collect();
        reach.iter_mut().for_each(|class| class.addresses = merged(&class.addresses));
        reach
    }
}

fn range(network: Ipv4Network) -> AddressRange {
    (network.first(), network.last())
}

fn never(own: Ipv4Network) -> Vec<AddressRange> {
    reserved::NEVER.into_iter().chain([own]).map(range).collect()
}

fn internet_of(network: Ipv4Network, own: Ipv4Network) -> Vec<AddressRange> {
    let mut holes = never(own);
    holes.extend(reserved::PRIVATE.map(range));
    without([range(network)], &holes)
}

/// `ranges` less `holes`.
fn without(
    ranges: impl IntoIterator<Item = AddressRange>,
    holes: &[AddressRange],
) -> Vec<AddressRange> {
    let mut left: Vec<AddressRange> = ranges.into_iter().collect();
    for (from, to) in holes.iter().map(|(from, to)| (from.to_bits(), to.to_bits())) {
        let cut = |(first, last): AddressRange| {
            let (first, last) = (first.to_bits(), last.to_bits());
            let before = from.checked_sub(1).map(|end| (first, last.min(end)));
            let after = to.checked_add(1).map(|begin| (first.max(begin), last));
            [before, after].into_iter().flatten().filter(|(first, last)| first <= last)
        };
        let parts = left.into_iter().flat_map(cut);
        left = parts.map(|(a, b)| (Ipv4Addr::from_bits(a), Ipv4Addr::from_bits(b))).collect();
    }
    left
}

/// The same addresses in order, none twice.
fn merged(ranges: &[AddressRange]) -> Vec<AddressRange> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<AddressRange> = Vec::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some((_, end)) if first.to_bits() <= end.to_bits().saturating_add(1) => {
                *end = last.max(*end);
            }
            Some(_) | None => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::EgressRule;

    fn own() -> Ipv4Network {
        "10.201.0.0/16".parse().unwrap()
    }

    fn network(text: &str) -> Destination {
        Destination::Network(text.parse().unwrap())
    }

    fn reach(rules: &[EgressRule]) -> Vec<Reachable> {
        let egress = rules.iter().cloned().collect();
        NetworkPolicy { egress, ..NetworkPolicy::default() }.reach(own())
    }

    fn reaches(rules: &[EgressRule], address: &str) -> bool {
        let address: Ipv4Addr = address.parse().unwrap();
        let mut all = reach(rules).into_iter().flat_map(|class| class.addresses);
        all.any(|(first, last)| (first..=last).contains(&address))
    }

    #[test]
    fn anywhere_is_the_internet_and_nothing_private() {
        for to in [Destination::Anywhere, network("0.0.0.0/0")] {
            let rules = [EgressRule::all(to)];
            for address in ["1.1.1.1", "9.255.255.255", "11.0.0.0", "198.18.0.1", "223.255.255.255"]
            {
                assert!(reaches(&rules, address), "{address}");
            }
            for address in ["10.0.0.1", "10.201.0.1", "192.168.1.1", "169.254.169.254", "224.0.0.1"]
            {
                assert!(!reaches(&rules, address), "{address}");
            }
        }
    }

    #[test]
    fn a_private_network_is_reached_when_it_is_named_but_never_other_workspaces_or_metadata() {
        let rules =
            [EgressRule::all(network("10.0.0.0/8")), EgressRule::all(network("100.64.0.0/10"))];
        assert!(reaches(&rules, "10.1.2.3") && reaches(&rules, "100.100.100.199"));
        assert!(!reaches(&rules, "10.201.3.4") && !reaches(&rules, "100.100.100.200"));
    }

    #[test]
    fn rules_of_the_same_protocol_and_ports_are_one_and_what_overlaps_is_there_once() {
        let rules = ["198.51.100.0/24", "198.51.0.0/16", "198.52.0.0/16", "203.0.113.7"]
            .map(|text| EgressRule::tcp(network(text), 443).unwrap());
        let [class] = &reach(&rules)[..] else { panic!("one class") };
        let text: Vec<String> = class.addresses.iter().map(|(a, b)| format!("{a}-{b}")).collect();
        assert_eq!(text, ["198.51.0.0-198.52.255.255", "203.0.113.7-203.0.113.7"]);
    }

    proptest! {
        #[test]
        fn what_is_cut_out_is_not_there_and_the_rest_is(
            whole in prop::collection::vec((0_u8..40, 0_u8..10), 0..6),
            holes in prop::collection::vec((0_u8..40, 0_u8..10), 0..6),
        ) {
            let range = |(first, more): &(u8, u8)| {
                (Ipv4Addr::from_bits(u32::from(*first)), Ipv4Addr::from_bits(u32::from(first + more)))
            };
            let (whole, holes): (Vec<_>, Vec<_>) =
                (whole.iter().map(range).collect(), holes.iter().map(range).collect());
            let left = merged(&without(whole.clone(), &holes));
            let is_in = |ranges: &[AddressRange], n: u32| {
                ranges.iter().any(|(a, b)| (a.to_bits()..=b.to_bits()).contains(&n))
            };
            for n in 0..60 {
                prop_assert_eq!(is_in(&left, n), is_in(&whole, n) && !is_in(&holes, n));
            }
            for pair in left.windows(2) {
                prop_assert!(pair[0].1.to_bits() + 1 < pair[1].0.to_bits());
            }
        }
    }
}
