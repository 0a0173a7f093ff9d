//! A namespace that plays the internet, and what guests may do there.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
};

use skerry_model::{Destination, EgressRule, Ipv4Network, NetworkPolicy, PortRange, Transport};

use super::{
    super::{Namespace, UplinkChoice, UplinkSettings, links::Links},
    ground::{Ground, PATIENCE},
};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Addresses for measurements (RFC 2544): no host of the real internet has one.
pub(super) const SITE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub(super) const OTHER_SITE: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// One at which nothing is unless a test puts it there.
pub(super) const API_SITE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// A host of the operator's own network.
pub(super) const INTERNAL: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 1);
pub(super) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The internet: every address of it is this namespace's own.
pub(super) struct World {
    namespace: Namespace,
}

impl World {
    pub fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-world-{:x}-{number}", std::process::id());
        let namespace = Namespace::make(&name).unwrap();
        namespace
            .enter(|| {
                let mut links = Links::open();
                links.up("lo")?;
                for address in [SITE, OTHER_SITE, API_SITE, INTERNAL, METADATA] {
                    links.add_address("lo", address, 32)?;
                }
                Ok(())
            })
            .unwrap();
        Self { namespace }
    }

    pub fn uplink(&self) -> UplinkSettings {
        UplinkSettings {
            choice: UplinkChoice::Namespace(self.namespace.name().to_owned()),
            ..UplinkSettings::default()
        }
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        self.namespace.enter(work).unwrap()
    }

    /// A server at one address.
    pub fn listen(&self, address: Ipv4Addr, port: u16) -> TcpListener {
        self.inside(|| TcpListener::bind((address, port)))
    }

    /// A socket at one address.
    pub fn udp(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        let socket = self.inside(|| UdpSocket::bind((address, port)));
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    pub fn interfaces(&self) -> Vec<String> {
        self.inside(|| Links::open().names())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Namespace::remove(self.namespace.name());
    }
}

pub(super) fn network(text: &str) -> Destination {
    Destination::Network(text.parse().unwrap())
}

pub(super) fn permits(rules: impl IntoIterator<Item = EgressRule>) -> NetworkPolicy {
    NetworkPolicy { egress: rules.into_iter().collect(), ..NetworkPolicy::default() }
}

fn everything() -> NetworkPolicy {
    permits([EgressRule::all(Destination::Anywhere)])
}

#[test]
fn a_guest_reaches_nothing_of_the_world_until_a_rule_says_so() {
    let world = World::new();
    let ground = Ground::joined(world.uplink());
    let _listening = world.listen(SITE, 8080);
    let guest = ground.guest(&NetworkPolicy::default()).boot();
    assert_eq!(guest.told(SITE, 8080), io::ErrorKind::HostUnreachable);
    guest.guest.apply(&everything());
    guest.connect(SITE, 8080).unwrap();
}

#[test]
fn anywhere_is_the_internet_and_neither_private_networks_nor_metadata_nor_other_workspaces() {
    let world = World::new();
    let ground = Ground::joined(world.uplink());
    let guest = ground.guest(&everything()).boot();
    let other = ground.guest(&everything()).boot();
    let _listening = [
        world.listen(INTERNAL, 8080),
        world.listen(METADATA, 80),
        world.listen(Ipv4Addr::UNSPECIFIED, 81),
        other.listen(8080),
    ];
    let beyond = ground.network.addresses().beyond();
    for (address, port) in [
        (INTERNAL, 8080),
        (METADATA, 80),
        (beyond, 81),
        (ground.network.addresses().gateway(), 81),
        (other.address().0, 8080),
        (Ipv4Addr::new(10, 0, 2, 1), 81),
    ] {
        guest.knock(address, port);
    }
    // Nobody out there connects in either.
    let to = (guest.address().0, 9);
    let from = world.udp(SITE, 9);
    let socket = guest.udp(9);
    from.send_to(b"knock", to).unwrap();
    socket.send_to(b"question", (SITE, 9)).unwrap();
    let (count, _) = from.recv_from(&mut [0; 16]).unwrap();
    from.send_to(b"answer", (guest.address().0, 9)).unwrap();
    let mut heard = [0; 16];
    let answer = socket.recv(&mut heard).unwrap();
    assert_eq!((count, &heard[..answer]), (8, &b"answer"[..]), "the knock was not heard");
}

#[test]
fn a_private_network_needs_a_rule_and_the_operators_consent_and_metadata_is_never_reached() {
    let world = World::new();
    let rules = ["192.168.7.0/24", "100.100.0.0/16"].map(|text| EgressRule::all(network(text)));
    let _listening = world.listen(INTERNAL, 8080);
    let closed = Ground::joined(world.uplink());
    let guest = closed.guest(&permits(rules.clone())).boot();
    guest.knock(INTERNAL, 8080);
    drop(guest);
    drop(closed);
    let private_networks = vec!["192.168.7.0/24".parse().unwrap()];
    let ground = Ground::joined(UplinkSettings { private_networks, ..world.uplink() });
    let guest = ground.guest(&permits(rules)).boot();
    guest.connect(INTERNAL, 8080).unwrap();
    guest.knock(METADATA, 8080);
    guest.guest.apply(&everything());
    guest.knock(INTERNAL, 8080);
}

#[test]
fn rules_open_their_ports_and_protocols_of_their_networks_and_no_others() {
    let world = World::new();
    let ground = Ground::joined(world.uplink());
    let rule = |text: &str, transport, first, last| EgressRule {
        to: network(text),
        transport: Some(transport),
        ports: PortRange::new(first, last).unwrap(),
    };
    let rules = [
        rule("198.18.0.0/16", Transport::Tcp, 8000, 8010),
        // Overlaps, in addresses and in ports.
        rule("198.18.0.0/15", Transport::Tcp, 8005, 8020),
        rule("198.18.0.1", Transport::Udp, 9, 9),
    ];
    let guest = ground.guest(&permits(rules)).boot();
    let _listening: Vec<TcpListener> =
        [(SITE, 8000), (SITE, 8020), (SITE, 8021), (OTHER_SITE, 8000), (OTHER_SITE, 8020)]
            .map(|(address, port)| world.listen(address, port))
            .into();
    for (address, port) in [(SITE, 8000), (SITE, 8020), (OTHER_SITE, 8020)] {
        guest.connect(address, port).unwrap();
    }
    for (address, port) in [(SITE, 8021), (OTHER_SITE, 8000)] {
        assert_eq!(guest.told(address, port), io::ErrorKind::HostUnreachable, "{address}:{port}");
    }
    let (sockets, own) = ([world.udp(OTHER_SITE, 9), world.udp(SITE, 9)], guest.udp(9));
    for address in [OTHER_SITE, SITE] {
        // The first may be refused at once.
        let _ = own.send_to(b"datagram", (address, 9));
    }
    sockets[1].recv(&mut [0; 16]).unwrap();
    sockets[0].set_nonblocking(true).unwrap();
    assert!(sockets[0].recv(&mut [0; 16]).is_err());
}

#[test]
fn what_is_taken_back_ends_at_once_and_what_is_kept_goes_on() {
    use std::io::{Read, Write};
    let world = World::new();
    let ground = Ground::joined(world.uplink());
    let guest = ground.guest(&everything()).boot();
    let listeners = [SITE, OTHER_SITE].map(|address| world.listen(address, 8080));
    let mut lost = guest.connect(SITE, 8080).unwrap();
    let mut kept = guest.connect(OTHER_SITE, 8080).unwrap();
    let (mut lost_there, _) = listeners[0].accept().unwrap();
    let (mut kept_there, _) = listeners[1].accept().unwrap();
    guest.guest.apply(&permits([EgressRule::all(network("198.19.0.0/16"))]));
    kept_there.write_all(b"still").unwrap();
    let mut heard = [0; 5];
    kept.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still");
    lost_there.write_all(b"lost").unwrap();
    lost.set_read_timeout(Some(std::time::Duration::from_millis(400))).unwrap();
    assert_eq!(lost.read(&mut heard).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_policy_as_large_as_can_be_is_put_in_force_at_once() {
    let world = World::new();
    let ground = Ground::joined(world.uplink());
    let _listening = world.listen(SITE, 8080);
    let last = u32::from(SITE);
    let rules = (0..512_u32).map(|n| EgressRule {
        // Every second address, so that nothing can be merged.
        to: Destination::Network(Ipv4Network::from(Ipv4Addr::from(last - 2 * n))),
        transport: None,
        ports: PortRange::new(8080, u16::try_from(8080 + n % 32).unwrap()).unwrap(),
    });
    let policy = permits(rules);
    policy.check().unwrap();
    let guest = ground.guest(&policy).boot();
    guest.connect(SITE, 8080).unwrap();
    assert_eq!(guest.told(SITE, 8081), io::ErrorKind::HostUnreachable);
}

#[test]
fn the_cable_goes_with_the_hub_and_is_laid_anew_by_the_next_server() {
    let world = World::new();
    let ground = Ground::joined(world.uplink());
    let _listening = world.listen(SITE, 8080);
    let guest = ground.guest(&everything()).boot();
    assert_eq!(world.interfaces().len(), 2);
    // The server died and another came, while the guest goes on.
    let next = ground.reopened();
    next.adopt(&guest.guest.holding);
    assert_eq!(world.interfaces().len(), 2);
    guest.connect(SITE, 8080).unwrap();
    let holding = guest.guest.holding.clone();
    drop(guest);
    next.release(&holding).unwrap();
    next.close().unwrap();
    assert_eq!(world.interfaces(), ["lo"]);
}

/// A host of its own that plays the server's: with an interface to the world and its default route.
#[test]
fn a_host_passes_on_what_is_permitted_under_its_own_address_and_is_left_as_it_was() {
    let world = World::new();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let host = Namespace::make(&format!("test-host-{:x}-{number}", std::process::id())).unwrap();
    let (own, far) = (Ipv4Addr::new(198, 18, 5, 2), Ipv4Addr::new(198, 18, 5, 1));
    host.enter(|| {
        Links::open().make_pair("wan0", "lan0", std::os::fd::AsFd::as_fd(&world.namespace))?;
        Links::open().set_mtu("wan0", 1400)
    })
    .unwrap();
    world.inside(|| {
        let mut links = Links::open();
        links.add_address("lan0", far, 32)?;
        links.up("lan0")?;
        links.add_route_on_link("lan0", own)
    });
    host.enter(|| {
        let mut links = Links::open();
        links.up("lo")?;
        links.add_address("wan0", own, 32)?;
        links.up("wan0")?;
        links.add_route_on_link("wan0", far)?;
        links.add_default_route("wan0", far)
    })
    .unwrap();
    let forwards = || {
        let path = "/proc/sys/net/ipv4/conf/wan0/forwarding";
        host.enter(|| std::fs::read_to_string(path)).unwrap().trim().to_owned()
    };
    assert_eq!(forwards(), "0");
    let in_host = |work: &(dyn Fn() -> Ground + Sync)| host.enter(|| Ok(work())).unwrap();
    let uplink = UplinkSettings { choice: UplinkChoice::Auto, ..UplinkSettings::default() };
    let ground = in_host(&|| Ground::joined(uplink.clone()));
    let listener = world.listen(SITE, 8080);
    let _listening = host.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8081))).unwrap();
    let guest = ground.guest(&everything()).boot();
    guest.connect(SITE, 8080).unwrap();
    let (_, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), own, "the world sees the host");
    assert_eq!(forwards(), "1");
    assert_eq!(ground.network.hub.enter(|| Links::open().mtu("out0")).unwrap(), 1400);
    // The host itself is none of the guest's business.
    for address in [own, ground.network.addresses().beyond()] {
        guest.knock(address, 8081);
    }
    drop(guest);
    // The server dies and another comes and goes.
    host.enter(|| {
        let next = ground.reopened();
        for number in ground.network.slots.numbers() {
            next.release(&next.names(number)).unwrap();
        }
        next.close().unwrap();
        Ok(())
    })
    .unwrap();
    assert_eq!(forwards(), "0");
    let left = host.enter(|| Links::open().names()).unwrap();
    assert_eq!(left, ["lo", "wan0"]);
    Namespace::remove(host.name()).unwrap();
}
