//! What a tenant asks of the network, and the policies that follow for the VMs of an account.
//!
//! A wish names workspaces; a policy names addresses. The way from one to the other is a pure function
//! of all the account's wishes and addresses, so that what a VM should have can be found anew at any
//! time, from the store alone.

mod egress;
mod outbound;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    Invalid, WorkspaceId,
    network::{Ipv4Network, NetworkPolicy, Opening, PortRange, PrivateAddress, Transport},
};

pub use self::{
    egress::{EgressWish, InternetScope, MAX_ALLOWED, PACKAGE_HOSTS},
    outbound::{Outbound, ProxyName, Way},
};

/// The most workspaces that a wish names as callers.
pub const MAX_CALLERS: usize = 50;
/// The most networks of a wish whose workspaces are callers.
pub const MAX_CALLER_NETWORKS: usize = 50;
/// The most entries of a wish's open ports.
pub const MAX_OPEN_PORTS: usize = 100;
/// The most openings that follow from one wish: callers times ranges of ports.
pub const MAX_OPENINGS: usize = 200;
/// The most workspaces that one may call; the others that would admit it are not linked.
pub const MAX_LINKS: usize = 128;

/// Ports that callers may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpenPorts {
    /// By which protocol.
    pub transport: Transport,
    /// Which.
    pub ports: PortRange,
}

/// What a tenant asks of the network for one workspace. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkWish {
    /// Which workspaces of the same account may open connections to `open_ports`. One that is not
    /// there, or no longer, is admitted once it is: identifiers are never used again.
    #[serde(default)]
    pub callers: BTreeSet<WorkspaceId>,
    /// So may workspaces of the same account whose private address is in one of these.
    #[serde(default)]
    pub caller_networks: BTreeSet<Ipv4Network>,
    /// What callers may reach.
    #[serde(default)]
    pub open_ports: BTreeSet<OpenPorts>,
    /// What of the world it may reach.
    #[serde(default)]
    pub egress: EgressWish,
    /// Through what it reaches that.
    #[serde(default)]
    pub outbound: Outbound,
}

impl NetworkWish {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Invalid`] with field `callers`, `caller_networks`, `open_ports`, `egress` or `proxy`.
    pub fn check(&self) -> Result<(), Invalid> {
        for (field, entries, most) in [
            ("callers", self.callers.len(), MAX_CALLERS),
            ("caller_networks", self.caller_networks.len(), MAX_CALLER_NETWORKS),
            ("open_ports", self.open_ports.len(), MAX_OPEN_PORTS),
        ] {
            if entries > most {
                let problem = format!("{entries} entries");
                return Err(Invalid { field, problem, allowed: format!("at most {most}") });
            }
        }
        let openings = self.callers.len() * self.open_ports_merged().len();
        if openings > MAX_OPENINGS {
            return Err(Invalid {
                field: "open_ports",
                problem: format!("{openings} openings: each range of ports for each caller"),
                allowed: format!("at most {MAX_OPENINGS} openings; fewer or adjacent ports"),
            });
        }
        self.outbound.check()?;
        self.egress.check()
    }

    /// Whether any other workspace may open a connection to this one.
    #[must_use]
    pub fn admits_peers(&self) -> bool {
        let callers = !self.callers.is_empty() || !self.caller_networks.is_empty();
        callers && !self.open_ports.is_empty()
    }

    /// Whether it asks for anything.
    #[must_use]
    pub fn asks_for_something(&self) -> bool {
        *self != Self::default()
    }

    fn admits(&self, caller: WorkspaceId, address: PrivateAddress) -> bool {
        self.admits_peers()
            && (self.callers.contains(&caller)
                || self.caller_networks.iter().any(|network| network.contains(address.0)))
    }

    /// The open ports such that no two of one protocol touch.
    #[must_use]
    pub fn open_ports_merged(&self) -> Vec<OpenPorts> {
        // The peer means nothing here; what is merged is merged for each of them alike.
        let nobody = PrivateAddress(std::net::Ipv4Addr::UNSPECIFIED);
        let opening = |open: &OpenPorts| Opening {
            from: nobody,
            transport: open.transport,
            ports: open.ports,
        };
        let policy = NetworkPolicy {
            ingress: self.open_ports.iter().map(opening).collect(),
            ..NetworkPolicy::default()
        };
        let merged = policy.openings_merged().into_iter();
        merged.map(|open| OpenPorts { transport: open.transport, ports: open.ports }).collect()
    }
}

/// A workspace as its neighbours' policies need to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Under which address it is seen.
    pub address: PrivateAddress,
    /// What it asks for.
    pub wish: NetworkWish,
}

/// The workspaces of *one* account that have an address and are not being deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbourhood(pub BTreeMap<WorkspaceId, Neighbour>);

impl Neighbourhood {
    /// What the VM of a workspace may do, by its own wish and its neighbours'.
    ///
    /// Each side of a connection has it in its policy only while the other is in the neighbourhood, so
    /// an address that was somebody's is in no policy any more once both are derived anew.
    ///
    /// Whoever asks for a proxy of the server's reaches nothing of the world by this: the server puts
    /// in the proxy, and what it may be used for ([`NetworkPolicy::through`]).
    #[must_use]
    pub fn policy_of(
        &self,
        id: WorkspaceId,
        address: PrivateAddress,
        wish: &NetworkWish,
    ) -> NetworkPolicy {
        let open = wish.open_ports_merged();
        let openings =
            self.others(id).filter(|(other, caller)| wish.admits(*other, caller.address));
        let openings = openings.flat_map(|(_, caller)| {
            open.iter().map(|open| Opening {
                from: caller.address,
                transport: open.transport,
                ports: open.ports,
            })
        });
        NetworkPolicy {
            links: self.linked(id, address).map(|(_, to)| to.address).take(MAX_LINKS).collect(),
            ingress: openings.take(MAX_OPENINGS).collect(),
            ..NetworkPolicy::through(wish.outbound.own_way(), &wish.egress)
        }
    }

    /// Whose policies may depend on this workspace, which need not be in the neighbourhood: who is
    /// admitted by it and who admits it.
    #[must_use]
    pub fn concerned(
        &self,
        id: WorkspaceId,
        address: PrivateAddress,
        wish: &NetworkWish,
    ) -> BTreeSet<WorkspaceId> {
        let admitted = self.others(id).filter(|(other, of)| wish.admits(*other, of.address));
        admitted.chain(self.linked(id, address)).map(|(other, _)| other).collect()
    }

    /// The workspaces that admit this one.
    pub fn linked(
        &self,
        id: WorkspaceId,
        address: PrivateAddress,
    ) -> impl Iterator<Item = (WorkspaceId, &Neighbour)> {
        self.others(id).filter(move |(_, other)| other.wish.admits(id, address))
    }

    fn others(&self, id: WorkspaceId) -> impl Iterator<Item = (WorkspaceId, &Neighbour)> {
        self.0.iter().map(|(other, of)| (*other, of)).filter(move |(other, _)| *other != id)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> WorkspaceId {
        WorkspaceId::from_u128(u128::from(number))
    }

    fn address(number: u8) -> PrivateAddress {
        PrivateAddress(Ipv4Addr::new(10, 201, 0, number))
    }

    fn open(first: u16, last: u16) -> OpenPorts {
        OpenPorts { transport: Transport::Tcp, ports: PortRange::new(first, last).unwrap() }
    }

    fn wish(callers: &[u8], ports: &[(u16, u16)]) -> NetworkWish {
        NetworkWish {
            callers: callers.iter().map(|caller| id(*caller)).collect(),
            open_ports: ports.iter().map(|(first, last)| open(*first, *last)).collect(),
            ..NetworkWish::default()
        }
    }

    fn neighbourhood(wishes: &[(u8, NetworkWish)]) -> Neighbourhood {
        let neighbour = |(number, wish): &(u8, NetworkWish)| {
            (id(*number), Neighbour { address: address(*number), wish: wish.clone() })
        };
        Neighbourhood(wishes.iter().map(neighbour).collect())
    }

    #[test]
    fn who_asks_for_nothing_gets_nothing_and_concerns_nobody() {
        let nothing = NetworkWish::default();
        let all = neighbourhood(&[(1, nothing.clone()), (2, wish(&[3], &[(80, 80)]))]);
        assert_eq!(all.policy_of(id(1), address(1), &nothing), NetworkPolicy::default());
        assert!(all.concerned(id(1), address(1), &nothing).is_empty());
        assert_eq!(serde_json::from_str::<NetworkWish>("{}").unwrap(), nothing);
    }

    #[test]
    fn a_caller_is_linked_to_whom_it_may_call_and_to_nobody_else() {
        let server = wish(&[2], &[(80, 80), (443, 443)]);
        let all = neighbourhood(&[
            (1, server.clone()),
            (2, NetworkWish::default()),
            (3, NetworkWish::default()),
        ]);
        let of_server = all.policy_of(id(1), address(1), &server);
        assert!(of_server.links.is_empty());
        assert_eq!(of_server.ingress.len(), 2);
        assert!(of_server.ingress.iter().all(|opening| opening.from == address(2)));
        let of_caller = all.policy_of(id(2), address(2), &NetworkWish::default());
        assert_eq!(of_caller.links, [address(1)].into());
        assert!(of_caller.ingress.is_empty());
        assert_eq!(
            all.policy_of(id(3), address(3), &NetworkWish::default()),
            NetworkPolicy::default()
        );
        assert_eq!(all.concerned(id(1), address(1), &server), [id(2)].into());
        assert_eq!(all.concerned(id(2), address(2), &NetworkWish::default()), [id(1)].into());
    }

    #[test]
    fn callers_without_an_open_port_are_not_linked_and_open_ports_without_callers_open_nothing() {
        let no_port = wish(&[2], &[]);
        let no_caller = wish(&[], &[(80, 80)]);
        let all = neighbourhood(&[(1, no_port.clone()), (2, no_caller.clone())]);
        assert_eq!(all.policy_of(id(1), address(1), &no_port), NetworkPolicy::default());
        assert_eq!(all.policy_of(id(2), address(2), &no_caller), NetworkPolicy::default());
    }

    #[test]
    fn nobody_is_its_own_neighbour() {
        let own = wish(&[1], &[(80, 80)]);
        let all = neighbourhood(&[(1, own.clone())]);
        assert_eq!(all.policy_of(id(1), address(1), &own), NetworkPolicy::default());
    }

    #[test]
    fn wishes_have_a_largest_size_and_adjacent_ports_count_once() {
        let callers: Vec<u8> = (1..=50).collect();
        let apart: Vec<(u16, u16)> = (1..=6).map(|n| (n * 2, n * 2)).collect();
        let refused = wish(&callers, &apart).check().unwrap_err();
        assert_eq!(refused.field, "open_ports");
        let adjacent: Vec<(u16, u16)> = (1..=50).map(|port| (port, port)).collect();
        assert!(wish(&callers, &adjacent).check().is_ok());
        let many: Vec<u8> = (1..=51).collect();
        assert_eq!(wish(&many, &[]).check().unwrap_err().field, "callers");
        let ranges: Vec<(u16, u16)> = (1..=101).map(|port| (port, port)).collect();
        assert_eq!(wish(&[], &ranges).check().unwrap_err().field, "open_ports");
    }

    #[test]
    fn a_network_admits_the_accounts_workspaces_in_it() {
        let block = "10.201.0.2/31".parse().unwrap();
        let server = NetworkWish { caller_networks: [block].into(), ..wish(&[], &[(80, 80)]) };
        let nothing = NetworkWish::default();
        let all = neighbourhood(&[
            (1, server.clone()),
            (2, nothing.clone()),
            (3, nothing.clone()),
            (4, nothing.clone()),
        ]);
        let from: Vec<_> =
            all.policy_of(id(1), address(1), &server).ingress.iter().map(|o| o.from).collect();
        assert_eq!(from, [address(2), address(3)]);
        assert_eq!(all.policy_of(id(3), address(3), &nothing).links, [address(1)].into());
        assert_eq!(all.policy_of(id(4), address(4), &nothing), NetworkPolicy::default());
    }

    #[test]
    fn the_largest_policy_that_can_follow_is_one_that_a_node_takes() {
        let packages: usize = PACKAGE_HOSTS.iter().map(|(_, ports)| ports.len()).sum();
        let entries = MAX_LINKS + MAX_OPENINGS + MAX_ALLOWED + packages;
        assert!(entries <= crate::network::MAX_POLICY_ENTRIES, "{entries}");
    }

    fn any_wish() -> impl Strategy<Value = NetworkWish> {
        let callers = prop::collection::btree_set((1_u8..12).prop_map(id), 0..6);
        let networks = (0_u8..10).prop_map(|at| Ipv4Network::from(address(at).0));
        let networks = prop::collection::btree_set(networks, 0..3);
        let ports = prop::collection::btree_set((1_u16..60, 0_u16..9), 0..4);
        (callers, networks, ports).prop_map(|(callers, caller_networks, ports)| NetworkWish {
            callers,
            caller_networks,
            open_ports: ports.into_iter().map(|(port, more)| open(port, port + more)).collect(),
            ..NetworkWish::default()
        })
    }

    fn policies_of(all: &Neighbourhood) -> BTreeMap<WorkspaceId, NetworkPolicy> {
        let policy = |id: &WorkspaceId, of: &Neighbour| all.policy_of(*id, of.address, &of.wish);
        all.0.iter().map(|(id, of)| (*id, policy(id, of))).collect()
    }

    proptest! {
        #[test]
        fn links_and_openings_fit_together_and_a_change_concerns_all_it_changes(
            wishes in prop::collection::btree_map(1_u8..9, any_wish(), 1..8),
            changed in any_wish(),
        ) {
            let before = neighbourhood(&wishes.clone().into_iter().collect::<Vec<_>>());
            let policies: BTreeMap<WorkspaceId, NetworkPolicy> =
                policies_of(&before);
            for (one, policy) in &policies {
                prop_assert!(policy.check().is_ok());
                for (other, of_other) in &policies {
                    let at = before.0[one].address;
                    let linked = policy.links.contains(&before.0[other].address);
                    let admitted = of_other.ingress.iter().any(|opening| opening.from == at);
                    prop_assert_eq!(linked, admitted, "{} to {}", one, other);
                }
            }
            // The first of them changes its mind.
            let first = *before.0.keys().next().unwrap();
            let mut after = before.clone();
            after.0.get_mut(&first).unwrap().wish = changed.clone();
            let address = before.0[&first].address;
            let mut concerned = before.concerned(first, address, &before.0[&first].wish);
            concerned.extend(after.concerned(first, address, &changed));
            for (id, policy) in policies_of(&after) {
                if id != first && !concerned.contains(&id) {
                    prop_assert_eq!(&policies[&id], &policy);
                }
            }
        }
    }
}
