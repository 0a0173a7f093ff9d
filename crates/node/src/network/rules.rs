//! What passes between a guest and the rest. Everything but the contents of three sets is the same
//! for every VM, so that its namespace can be made before anybody knows whose it will be.
//!
//! ```text
//!   guest 10.0.2.15 ── tap0 │ VM's namespace │ up0 ── vm<n> │ hub's namespace │ vm<m>, out0 ── ...
//!        guard: who the guest says it is   policy, 1:1 NAT        what is nobody's to reach
//! ```
//!
//! Connection tracking tells replies apart; it decides nothing: the policy is asked about every
//! packet, so that what is taken back ends at once, also for connections that exist.

use std::{collections::BTreeSet, io, net::Ipv4Addr, time::Duration};

use nix::libc;
use serde::{Deserialize, Serialize};
use skerry_model::{
    Ipv4Network, NetworkPolicy, OutboundProxy, PortRange, PrivateAddress, Transport,
    network::{Reachable, reserved},
};

use super::{
    filter::{
        Direction, Elements, End, Family, Hook, Otherwise, Services, Transaction, packets_counted,
    },
    wiring::{GUEST_ADDRESS, GUEST_GATEWAY, GUEST_MAC, HUB_PORT_PREFIX, OUTSIDE, TAP, UPLINK},
};

const TABLE: &str = "skerry";
const GUARD: &str = "skerry-guard";
/// What of the world outside is permitted; made anew with every policy.
const EGRESS: &str = "skerry-egress";

/// Sets: to whom the guest may connect; who may connect to it, and where; both together.
const LINKS: &str = "links";
const OPENINGS: &str = "openings";
const PEERS: &str = "peers";

/// Chains: from the guest, to the guest; what the guest is refused.
const OUT: &str = "out";
const IN: &str = "in";
const REFUSED: &str = "refused";
/// Every frame of the guest.
const FROM_GUEST: &str = "from-guest";
/// The same, as far as it depends on names.
const NAMED_OUT: &str = "named-out";
const NAMED_IN: &str = "named-in";

/// Connections by TLS, where all of them go to the hub.
const TLS: &str = "tls";

/// On packets that [`EGRESS`] permits.
const PERMITTED: u32 = 1;

/// 169.254.0.0/16 (RFC 3927): where clouds keep their metadata services.
const LINK_LOCAL: &[u8] = &[169, 254];

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;

/// The resolver's port (RFC 1035).
pub(super) const DNS_PORT: u16 = 53;
/// Ports of TCP that names alone open only to who says there which name he means: HTTP, TLS.
pub(super) const INSPECTED_PORTS: [u16; 2] = [80, TLS_PORT];
/// The second of them (RFC 9110, 4.2.2).
pub(super) const TLS_PORT: u16 = 443;
/// Where at the hub what is for a proxy comes in.
pub(super) const PROXIED_PORT: u16 = 3128;

/// What is the same for all VMs of the node.
#[derive(Clone, Debug)]
pub(super) struct Terrain {
    /// From where workspaces have their addresses.
    pub own: Ipv4Network,
    /// The hub's address.
    pub gateway: Ipv4Addr,
    /// Whether there is a world outside.
    pub uplink: bool,
    /// Private networks that rules may open.
    pub private_networks: Vec<Ipv4Network>,
}

impl Terrain {
    /// What the hub itself serves to guests.
    fn served(&self) -> impl Iterator<Item = (u8, u16)> {
        let tcp = INSPECTED_PORTS.map(|port| (TCP, port));
        let served = [(UDP, DNS_PORT), (TCP, DNS_PORT), (TCP, PROXIED_PORT)].into_iter().chain(tcp);
        served.filter(|_| self.uplink)
    }
}

/// The addresses that names of a policy turned out to have, and for how long connections to them may
/// yet be opened: by the places of [`NetworkPolicy::reach`].
pub(super) type Pinned = Vec<Vec<(Ipv4Addr, Duration)>>;

/// For how long connections that exist go on to an address that a name once had.
const KNOWN_FOR: Duration = Duration::from_secs(24 * 3600);

/// The rules of a VM's namespace, which names nobody yet. Its tap exists. Blocks.
pub(super) fn install_in_vm(terrain: &Terrain) -> io::Result<()> {
    guard().commit()?;
    let mut table = Transaction::replace(Family::Ip, TABLE);
    let sets = sets_of(&NetworkPolicy::default());
    for ((name, elements), id) in sets.iter().zip(1..) {
        table.set(name, id, elements);
    }
    table.base_chain("input", Hook::Input, Otherwise::Drop);
    table.base_chain("forward", Hook::Forward, Otherwise::Drop);
    table.chain(OUT);
    table.chain(IN);
    table.chain(REFUSED);

    table.rule(REFUSED).address_begins(End::Destination, LINK_LOCAL).counted().drop();
    // The guest is told; who knocks from outside is not.
    table.rule(REFUSED).counted().reject();

    let to_metadata = table.rule("forward").arrived_by(TAP);
    to_metadata.address_begins(End::Destination, LINK_LOCAL).jump(REFUSED);
    for end in [End::Source, End::Destination] {
        table.rule("forward").address_begins(end, LINK_LOCAL).counted().drop();
    }
    table.rule("forward").invalid().counted().drop();
    table.rule("forward").arrived_by(TAP).leaves_by(UPLINK).jump(OUT);
    table.rule("forward").arrived_by(UPLINK).leaves_by(TAP).jump(IN);
    table.rule("forward").arrived_by(TAP).jump(REFUSED);
    table.rule("forward").counted().drop();

    let (near, far) = (End::Source, End::Destination);
    table.rule(OUT).marked(PERMITTED).accept();
    table.rule(OUT).direction(Direction::Original).address_in(far, LINKS).accept();
    table.rule(OUT).direction(Direction::Reply).service_in(far, near, OPENINGS).accept();
    table.rule(OUT).icmp().related().address_in(far, PEERS).accept();
    for (protocol, port) in terrain.served() {
        let served = table.rule(OUT).direction(Direction::Original).address(far, terrain.gateway);
        served.protocol(protocol).port(far, port).accept();
    }
    let (near, far) = (End::Destination, End::Source);
    table.rule(IN).marked(PERMITTED).accept();
    table.rule(IN).direction(Direction::Reply).address_in(far, LINKS).accept();
    table.rule(IN).direction(Direction::Original).service_in(far, near, OPENINGS).accept();
    table.rule(IN).icmp().related().address_in(far, PEERS).accept();
    for (protocol, port) in terrain.served() {
        let served = table.rule(IN).direction(Direction::Reply).address(far, terrain.gateway);
        served.protocol(protocol).port(far, port).accept();
    }

    table.base_chain("arriving", Hook::DestinationNat, Otherwise::Accept);
    table.rule("arriving").arrived_by(UPLINK).redirect_to(GUEST_ADDRESS);
    table.base_chain("leaving", Hook::SourceNat, Otherwise::Accept);
    table.rule("leaving").leaves_by(UPLINK).masquerade();
    table.commit()?;
    no_ipv6().commit()
}

/// What of the world outside a policy permits, in place of what was.
///
/// What is permitted by address is marked. Of what is permitted only by name, the ports where a
/// client says whom it means go to the hub, which asks; the others are marked for the addresses that
/// the resolver gave out.
///
/// With a proxy nothing is marked: what would have been goes to the hub, as far as it is TCP, and the
/// hub asks the proxy. Everything else is refused. Without a server at the hub nothing answers there.
fn egress(table: &mut Transaction, terrain: &Terrain, policy: &NetworkPolicy, pinned: &Pinned) {
    // Above the identifiers of what else may be in the transaction.
    const FIRST_ID: u32 = 100;
    table.replace_also(EGRESS);
    let reach = policy.reach(terrain.own);
    for ((class, n), id) in reach.iter().zip(0..).zip((FIRST_ID..).step_by(3)) {
        table.set(&addresses_of(n), id, &services_of(class, policy.proxy.as_ref()));
        let pinned = pinned.get(n).map(Vec::as_slice).unwrap_or_default();
        table.set(&names_of(n), id + 1, &fresh(pinned));
        table.set(&known_of(n), id + 2, &known(pinned));
    }

    let (permitted, inspected) = ("permitted", "inspected");
    table.base_chain(permitted, Hook::BeforeForward, Otherwise::Accept);
    table.base_chain(inspected, Hook::DestinationNat, Otherwise::Accept);
    let far = End::Destination;
    table.rule(inspected).arrived_by(TAP).address_within(far, terrain.own).accept();
    for (protocol, port) in terrain.served().filter(|(_, port)| *port == DNS_PORT) {
        let asked = table.rule(inspected).arrived_by(TAP).address(far, GUEST_GATEWAY);
        asked.protocol(protocol).port(far, port).redirect_to(terrain.gateway);
    }
    if reach.is_empty() {
        return;
    }
    if policy.inspects_tls && terrain.uplink {
        inspect_tls(table, terrain, inspected);
    }
    if policy.proxy.is_some() {
        proxied(table, terrain, &reach, inspected);
        return;
    }
    for (chain, far) in [(NAMED_OUT, End::Destination), (NAMED_IN, End::Source)] {
        table.chain(chain);
        for port in INSPECTED_PORTS {
            table.rule(chain).protocol(TCP).port(far, port).back();
        }
    }
    let out = |table: &mut Transaction, n| {
        let rule = table.rule(permitted).arrived_by(TAP).direction(Direction::Original);
        rule.service_in(End::Destination, End::Destination, &addresses_of(n)).mark(PERMITTED);
    };
    let back = |table: &mut Transaction, n| {
        let rule = table.rule(permitted).arrived_by(UPLINK).direction(Direction::Reply);
        rule.service_in(End::Source, End::Source, &addresses_of(n)).mark(PERMITTED);
    };
    for (class, n) in reach.iter().zip(0..) {
        if !class.addresses.is_empty() {
            out(table, n);
            back(table, n);
            let direct = table.rule(inspected).arrived_by(TAP);
            direct.service_in(End::Destination, End::Destination, &addresses_of(n)).accept();
        }
        for transport in class.transports.iter().filter(|_| !class.names.is_empty()) {
            for (chain, far) in [(NAMED_OUT, End::Destination), (NAMED_IN, End::Source)] {
                let number = protocol(*transport);
                let new = table.rule(chain).protocol(number).port_within(far, class.ports);
                new.address_in(far, &names_of(n)).mark(PERMITTED);
                let old = table.rule(chain).protocol(number).port_within(far, class.ports);
                old.established().address_in(far, &known_of(n)).mark(PERMITTED);
            }
        }
    }
    let to_named = table.rule(permitted).arrived_by(TAP).direction(Direction::Original);
    to_named.jump(NAMED_OUT);
    let from_named = table.rule(permitted).arrived_by(UPLINK).direction(Direction::Reply);
    from_named.jump(NAMED_IN);
    // That a packet is too long is said by a router on the way, whoever that is.
    table.rule(permitted).icmp().related().mark(PERMITTED);
    inspect(table, terrain, &reach, inspected);
}

/// What goes to the hub when there is a proxy: by address, and by name where nobody looks at names.
fn proxied(table: &mut Transaction, terrain: &Terrain, reach: &[Reachable], chain: &str) {
    let (far, hub) = (End::Destination, terrain.gateway);
    for (class, n) in reach.iter().zip(0..) {
        if !class.addresses.is_empty() {
            let direct = table.rule(chain).arrived_by(TAP).service_in(far, far, &addresses_of(n));
            direct.redirect_to_port(hub, PROXIED_PORT);
        }
    }
    inspect(table, terrain, reach, chain);
    for (class, n) in reach.iter().zip(0..).filter(|(class, _)| is_named(class)) {
        let named = table.rule(chain).arrived_by(TAP).protocol(TCP).port_within(far, class.ports);
        named.address_in(far, &names_of(n)).redirect_to_port(hub, PROXIED_PORT);
    }
}

/// All of TLS that is not for a private network goes to the hub, which asks whom a client means, and does
/// itself what the policy permits by address.
fn inspect_tls(table: &mut Transaction, terrain: &Terrain, chain: &str) {
    let far = End::Destination;
    table.chain(TLS);
    for network in reserved::PRIVATE.into_iter().chain(reserved::NEVER) {
        table.rule(TLS).address_within(far, network).back();
    }
    table.rule(TLS).address_begins(far, LINK_LOCAL).back();
    table.rule(TLS).arrived_by(TAP).redirect_to(terrain.gateway);
    table.rule(chain).arrived_by(TAP).protocol(TCP).port(far, TLS_PORT).jump(TLS);
}

/// What goes to the hub because a client has to say there whom it means.
fn inspect(table: &mut Transaction, terrain: &Terrain, reach: &[Reachable], chain: &str) {
    let is_inspected = |port: &u16| {
        let has = |ports: PortRange| (ports.first()..=ports.last()).contains(port);
        terrain.uplink && reach.iter().any(|class| is_named(class) && has(class.ports))
    };
    for port in INSPECTED_PORTS.into_iter().filter(is_inspected) {
        let asked = table.rule(chain).arrived_by(TAP).protocol(TCP);
        asked.port(End::Destination, port).redirect_to(terrain.gateway);
    }
}

/// Whether names open something by TCP.
fn is_named(class: &Reachable) -> bool {
    !class.names.is_empty() && class.transports.contains(&Transport::Tcp)
}

fn addresses_of(class: usize) -> String {
    format!("addresses-{class}")
}

fn names_of(class: usize) -> String {
    format!("names-{class}")
}

fn known_of(class: usize) -> String {
    format!("known-{class}")
}

fn fresh(pinned: &[(Ipv4Addr, Duration)]) -> Elements {
    Elements::Expiring(pinned.iter().filter(|(_, left)| !left.is_zero()).copied().collect())
}

fn known(pinned: &[(Ipv4Addr, Duration)]) -> Elements {
    Elements::Expiring(pinned.iter().map(|(address, _)| (*address, KNOWN_FOR)).collect())
}

fn services_of(class: &Reachable, proxy: Option<&OutboundProxy>) -> Elements {
    let ports = (class.ports.first(), class.ports.last());
    let by = |wanted: &[Transport]| {
        let permitted = class.transports.iter().filter(|one| wanted.contains(*one));
        permitted.map(|one| (protocol(*one), ports)).map(twice).collect::<Vec<_>>()
    };
    let kinds: Vec<((u8, u8), (u16, u16))> = match (proxy, class.every_protocol) {
        // Proxies make connections of TCP, and nothing goes round them.
        (Some(_), _) => by(&[Transport::Tcp]),
        // Where others have ports, these have anything.
        (None, true) => vec![((0, u8::MAX), (0, u16::MAX))],
        (None, false) => by(&[Transport::Tcp, Transport::Udp]),
    };
    let services = class.addresses.iter().flat_map(|addresses| {
        kinds.iter().map(|(protocols, ports)| Services {
            addresses: *addresses,
            protocols: *protocols,
            ports: *ports,
        })
    });
    Elements::Services(services.collect())
}

fn twice((protocol, ports): (u8, (u16, u16))) -> ((u8, u8), (u16, u16)) {
    ((protocol, protocol), ports)
}

/// Frames of a guest that says it is somebody else, or that are neither IPv4 nor ARP.
fn guard() -> Transaction {
    let mut table = Transaction::replace(Family::Netdev, GUARD);
    let chain = FROM_GUEST;
    table.base_chain(chain, Hook::Ingress(TAP), Otherwise::Drop);
    table.rule(chain).not_from_station(GUEST_MAC).counted().drop();
    let arp = u16::try_from(libc::ETH_P_ARP).unwrap_or_default();
    table.rule(chain).ether_type(arp).arp_sender(GUEST_MAC, GUEST_ADDRESS).accept();
    let ipv4 = u16::try_from(libc::ETH_P_IP).unwrap_or_default();
    table.rule(chain).ether_type(ipv4).address(End::Source, GUEST_ADDRESS).accept();
    table.rule(chain).counted().drop();
    table
}

/// The rules of the hub: from one VM to another, from VMs to the world and back. That a packet comes
/// from where its sender is, is the kernel's own strict check (RFC 3704), switched on in
/// [`super::wiring`]. What no workspace may reach is forbidden here once more, also to somebody who
/// got out of a guest into its namespace, and to ourselves. Blocks.
pub(super) fn install_in_hub(terrain: &Terrain) -> io::Result<()> {
    let mut table = Transaction::replace(Family::Ip, TABLE);
    table.base_chain("input", Hook::Input, Otherwise::Drop);
    table.base_chain("forward", Hook::Forward, Otherwise::Drop);
    table.base_chain("output", Hook::Output, Otherwise::Accept);
    let far = End::Destination;
    for (protocol, port) in terrain.served() {
        let asked = table.rule("input").arrived_by_any(HUB_PORT_PREFIX);
        asked.address(far, terrain.gateway).protocol(protocol).port(far, port).accept();
    }
    for network in reserved::NEVER {
        for end in [End::Source, End::Destination] {
            table.rule("forward").address_within(end, network).counted().drop();
        }
    }
    table.rule("forward").arrived_by_any(HUB_PORT_PREFIX).leaves_by_any(HUB_PORT_PREFIX).accept();
    if terrain.uplink {
        // What we ourselves asked for.
        table.rule("input").arrived_by(OUTSIDE).direction(Direction::Reply).accept();
        table.rule("input").arrived_by(OUTSIDE).icmp().related().accept();
        for network in &terrain.private_networks {
            let opened = table.rule("forward").arrived_by_any(HUB_PORT_PREFIX).leaves_by(OUTSIDE);
            opened.address_within(far, *network).accept();
        }
        for network in reserved::PRIVATE.into_iter().chain([terrain.own]) {
            let private = table.rule("forward").leaves_by(OUTSIDE).address_within(far, network);
            private.counted().reject();
            table.rule("output").leaves_by(OUTSIDE).address_within(far, network).counted().drop();
        }
        for network in reserved::NEVER {
            table.rule("output").leaves_by(OUTSIDE).address_within(far, network).counted().drop();
        }
        table.rule("forward").arrived_by_any(HUB_PORT_PREFIX).leaves_by(OUTSIDE).accept();
        let back = table.rule("forward").arrived_by(OUTSIDE).leaves_by_any(HUB_PORT_PREFIX);
        back.direction(Direction::Reply).accept();
        let error = table.rule("forward").arrived_by(OUTSIDE).leaves_by_any(HUB_PORT_PREFIX);
        error.icmp().related().accept();
    }
    table.commit()?;
    no_ipv6().commit()
}

/// The rules of the host's own namespace, in a table of their own: what the hub sends goes out through
/// `interface` under that one's address, and nowhere else, not to the host itself either; from outside
/// comes only what was asked for. Where the host did not forward before, it forwards nothing else now.
/// Blocks.
pub(super) fn install_in_host(
    table: &str,
    own: Ipv4Network,
    cable: &str,
    interface: &str,
    forwarded_before: Forwarding,
) -> io::Result<()> {
    let mut table = Transaction::replace(Family::Ip, table);
    table.base_chain("input", Hook::Input, Otherwise::Accept);
    table.rule("input").arrived_by(cable).counted().drop();
    table.base_chain("forward", Hook::Forward, Otherwise::Accept);
    let near = End::Source;
    let out = table.rule("forward").arrived_by(cable).leaves_by(interface);
    out.address_within(near, own).accept();
    table.rule("forward").arrived_by(cable).counted().drop();
    let back = table.rule("forward").arrived_by(interface).leaves_by(cable);
    back.direction(Direction::Reply).accept();
    let error = table.rule("forward").arrived_by(interface).leaves_by(cable);
    error.icmp().related().accept();
    table.rule("forward").leaves_by(cable).counted().drop();
    match forwarded_before {
        Forwarding::On => {}
        Forwarding::Off => table.rule("forward").arrived_by(interface).counted().drop(),
    }
    table.base_chain("leaving", Hook::SourceNat, Otherwise::Accept);
    table.rule("leaving").leaves_by(interface).address_within(near, own).masquerade();
    table.commit()
}

/// Removes what [`install_in_host`] made. Blocks.
pub(super) fn remove_from_host(table: &str) -> io::Result<()> {
    Transaction::remove(Family::Ip, table).commit()
}

/// Whether a host passes on what arrives by an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Forwarding {
    On,
    Off,
}

fn no_ipv6() -> Transaction {
    let mut table = Transaction::replace(Family::Inet, TABLE);
    table.base_chain("prerouting", Hook::Prerouting, Otherwise::Accept);
    table.rule("prerouting").ipv6().counted().drop();
    table
}

/// Puts a policy in force in the calling thread's namespace, all of it at the same moment. Blocks.
pub(super) fn apply(terrain: &Terrain, policy: &NetworkPolicy, pinned: &Pinned) -> io::Result<()> {
    let mut table = Transaction::change(Family::Ip, TABLE);
    for (name, elements) in &sets_of(policy) {
        table.refill(name, elements);
    }
    egress(&mut table, terrain, policy, pinned);
    table.commit()
}

/// How much of what a guest sent went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// Packets that the policy does not permit.
    pub refused_packets: u64,
    /// Frames of another kind, or of somebody else.
    pub dropped_frames: u64,
}

/// What was counted in the calling thread's namespace since it was made. Blocks.
pub(super) fn counted() -> io::Result<Counted> {
    Ok(Counted {
        refused_packets: packets_counted(Family::Ip, TABLE, REFUSED)?,
        dropped_frames: packets_counted(Family::Netdev, GUARD, FROM_GUEST)?,
    })
}

/// Puts addresses of names in force beside those that are, in the calling thread's namespace. Blocks.
pub(super) fn pin(pinned: &Pinned) -> io::Result<()> {
    let mut table = Transaction::change(Family::Ip, EGRESS);
    for (addresses, n) in pinned.iter().zip(0..).filter(|(addresses, _)| !addresses.is_empty()) {
        table.renew(&names_of(n), &fresh(addresses));
        table.renew(&known_of(n), &known(addresses));
    }
    table.commit()
}

fn sets_of(policy: &NetworkPolicy) -> [(&'static str, Elements); 3] {
    let services = policy.openings_merged().into_iter().map(|opening| {
        let (number, ports) = (protocol(opening.transport), opening.ports);
        Services {
            addresses: (opening.from.0, opening.from.0),
            protocols: (number, number),
            ports: (ports.first(), ports.last()),
        }
    });
    [
        (LINKS, addresses(&policy.links)),
        (OPENINGS, Elements::Services(services.collect())),
        (PEERS, addresses(&policy.peers())),
    ]
}

fn addresses(of: &BTreeSet<PrivateAddress>) -> Elements {
    Elements::Addresses(of.iter().map(|address| address.0).collect::<Vec<Ipv4Addr>>())
}

const fn protocol(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => TCP,
        Transport::Udp => UDP,
    }
}
