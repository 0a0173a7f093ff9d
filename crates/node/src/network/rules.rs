//! What passes between a guest and the rest. Everything but the contents of three sets is the same
//! for every VM, so that its namespace can be made before anybody knows whose it will be.
//!
//! ```text
//!   guest 10.0.2.15 ── tap0 │ VM's namespace │ up0 ── vm<n> │ hub's namespace │ vm<m> ── ...
//!        guard: who the guest says it is   policy, 1:1 NAT        only between VMs
//! ```
//!
//! Connection tracking tells replies apart; it decides nothing: the policy is asked about every
//! packet, so that what is taken back ends at once, also for connections that exist.

use std::{collections::BTreeSet, io, net::Ipv4Addr};

use nix::libc;
use skerry_model::{NetworkPolicy, PrivateAddress, Transport};

use super::{
    filter::{Direction, Elements, End, Family, Hook, Otherwise, Transaction},
    wiring::{GUEST_ADDRESS, GUEST_MAC, HUB_PORT_PREFIX, TAP, UPLINK},
};

const TABLE: &str = "skerry";
const GUARD: &str = "skerry-guard";

/// Sets: to whom the guest may connect; who may connect to it, and where; both together.
const LINKS: &str = "links";
const OPENINGS: &str = "openings";
const PEERS: &str = "peers";

/// Chains: from the guest, to the guest.
const OUT: &str = "out";
const IN: &str = "in";

/// 169.254.0.0/16 (RFC 3927): where clouds keep their metadata services.
const LINK_LOCAL: &[u8] = &[169, 254];

/// The rules of a VM's namespace, which names nobody yet. Its tap exists. Blocks.
pub(super) fn install_in_vm() -> io::Result<()> {
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

    let ends = [End::Source, End::Destination];
    ends.into_iter().for_each(|end| {
        table.rule("forward").address_begins(end, LINK_LOCAL).counted().drop();
    });
    table.rule("forward").invalid().counted().drop();
    table.rule("forward").arrived_by(TAP).leaves_by(UPLINK).jump(OUT);
    table.rule("forward").arrived_by(UPLINK).leaves_by(TAP).jump(IN);
    // The guest is told; who knocks from outside is not.
    table.rule("forward").arrived_by(TAP).counted().reject();
    table.rule("forward").counted().drop();

    let far = End::Destination;
    table.rule(OUT).direction(Direction::Original).address_in(far, LINKS).accept();
    table.rule(OUT).direction(Direction::Reply).service_in(far, End::Source, OPENINGS).accept();
    table.rule(OUT).icmp().related().address_in(far, PEERS).accept();
    let far = End::Source;
    table.rule(IN).direction(Direction::Reply).address_in(far, LINKS).accept();
    let near_port = End::Destination;
    table.rule(IN).direction(Direction::Original).service_in(far, near_port, OPENINGS).accept();
    table.rule(IN).icmp().related().address_in(far, PEERS).accept();

    table.base_chain("arriving", Hook::DestinationNat, Otherwise::Accept);
    table.rule("arriving").arrived_by(UPLINK).redirect_to(GUEST_ADDRESS);
    table.base_chain("leaving", Hook::SourceNat, Otherwise::Accept);
    table.rule("leaving").leaves_by(UPLINK).masquerade();
    table.commit()?;
    no_ipv6().commit()
}

/// Frames of a guest that says it is somebody else, or that are neither IPv4 nor ARP.
fn guard() -> Transaction {
    let mut table = Transaction::replace(Family::Netdev, GUARD);
    let chain = "from-guest";
    table.base_chain(chain, Hook::Ingress(TAP), Otherwise::Drop);
    table.rule(chain).not_from_station(GUEST_MAC).counted().drop();
    let arp = u16::try_from(libc::ETH_P_ARP).unwrap_or_default();
    table.rule(chain).ether_type(arp).arp_sender(GUEST_MAC, GUEST_ADDRESS).accept();
    let ipv4 = u16::try_from(libc::ETH_P_IP).unwrap_or_default();
    table.rule(chain).ether_type(ipv4).address(End::Source, GUEST_ADDRESS).accept();
    table.rule(chain).counted().drop();
    table
}

/// The rules of the hub: from one VM to another, and nowhere else. That a packet comes from where its
/// sender is, is the kernel's own strict check (RFC 3704), switched on in [`super::wiring`].
/// Blocks.
pub(super) fn install_in_hub() -> io::Result<()> {
    let mut table = Transaction::replace(Family::Ip, TABLE);
    table.base_chain("input", Hook::Input, Otherwise::Drop);
    table.base_chain("forward", Hook::Forward, Otherwise::Drop);
    for end in [End::Source, End::Destination] {
        table.rule("forward").address_begins(end, LINK_LOCAL).counted().drop();
    }
    table.rule("forward").arrived_by_any(HUB_PORT_PREFIX).leaves_by_any(HUB_PORT_PREFIX).accept();
    table.commit()?;
    no_ipv6().commit()
}

fn no_ipv6() -> Transaction {
    let mut table = Transaction::replace(Family::Inet, TABLE);
    table.base_chain("prerouting", Hook::Prerouting, Otherwise::Accept);
    table.rule("prerouting").ipv6().counted().drop();
    table
}

/// Puts a policy in force in the calling thread's namespace, all of it at the same moment. Blocks.
pub(super) fn apply(policy: &NetworkPolicy) -> io::Result<()> {
    let mut table = Transaction::change(Family::Ip, TABLE);
    for (name, elements) in &sets_of(policy) {
        table.refill(name, elements);
    }
    table.commit()
}

fn sets_of(policy: &NetworkPolicy) -> [(&'static str, Elements); 3] {
    let services = policy.openings_merged().into_iter().map(|opening| {
        (opening.from.0, protocol(opening.transport), opening.ports.first(), opening.ports.last())
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

fn protocol(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => libc::IPPROTO_TCP as u8,
        Transport::Udp => libc::IPPROTO_UDP as u8,
    }
}
