//! A guest that may reach only what has a name, and tries everything else.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket},
    sync::Arc,
    thread,
};

use hickory_resolver::proto::{
    op::{Message, MessageType, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use skerry_internal_api::{EgressRefusal, RefusedEgress};
use skerry_model::{Destination, EgressRule, NetworkPolicy, PortRange, Transport};

use super::{
    super::UplinkSettings,
    ground::{Booted, Ground},
    world::{API_SITE, INTERNAL, OTHER_SITE, SITE, World, permits},
};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const NAME_SERVER: Ipv4Addr = SITE;

/// The internet with a name server and two sites, which say which they are.
pub(super) struct NamedWorld {
    pub world: World,
}

impl NamedWorld {
    pub fn new() -> Self {
        let world = World::new();
        let records = BTreeMap::from([
            ("site.test.", vec![SITE]),
            ("a.below.test.", vec![SITE]),
            ("other.test.", vec![OTHER_SITE]),
            ("api.test.", vec![API_SITE]),
            ("rebound.test.", vec![INTERNAL, Ipv4Addr::LOCALHOST, SITE]),
            ("inside.test.", vec![INTERNAL]),
        ]);
        let socket = world.inside(|| UdpSocket::bind((NAME_SERVER, 53)));
        thread::spawn(move || answer_names(&socket, &records));
        for (address, name) in [(SITE, "site"), (OTHER_SITE, "other"), (INTERNAL, "inside")] {
            for port in [80, 443, 8080] {
                let listener = world.listen(address, port);
                thread::spawn(move || {
                    while let Ok((stream, _)) = listener.accept() {
                        thread::spawn(move || say_who(stream, name));
                    }
                });
            }
        }
        Self { world }
    }

    pub fn ground(&self) -> Ground {
        Ground::serving(self.uplink())
    }

    pub fn uplink(&self) -> UplinkSettings {
        let name_servers = vec![IpAddr::V4(NAME_SERVER)];
        UplinkSettings { name_servers, ..self.world.uplink() }
    }
}

/// Until its namespace ends with the test's process.
fn answer_names(socket: &UdpSocket, records: &BTreeMap<&str, Vec<Ipv4Addr>>) {
    let mut buffer = [0; 1500];
    while let Ok((count, from)) = socket.recv_from(&mut buffer) {
        let asked = Message::from_vec(&buffer[..count]).unwrap();
        let query = asked.queries[0].clone();
        let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
        answer.metadata.recursion_available = true;
        match records.get(query.name().to_ascii().to_lowercase().as_str()) {
            None => answer.metadata.response_code = ResponseCode::NXDomain,
            Some(addresses) if query.query_type() == RecordType::A => {
                for address in addresses {
                    let data = RData::A(A(*address));
                    answer.add_answer(Record::from_rdata(query.name().clone(), 5, data));
                }
            }
            Some(_) => {}
        }
        answer.add_query(query);
        let _ = socket.send_to(&answer.to_vec().unwrap(), from);
    }
}

/// Answers every request, or every byte, with its name.
fn say_who(mut stream: TcpStream, name: &str) -> io::Result<()> {
    let mut heard = [0; 2048];
    loop {
        let count = stream.read(&mut heard)?;
        if count == 0 {
            return Ok(());
        }
        if heard.starts_with(b"GET ") {
            let length = name.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}")?;
        } else {
            stream.write_all(name.as_bytes())?;
        }
    }
}

pub(super) fn name(text: &str) -> Destination {
    Destination::Name(text.parse().unwrap())
}

pub(super) fn only(names: &[&str]) -> NetworkPolicy {
    permits(names.iter().map(|text| EgressRule::all(name(text))))
}

impl Booted<'_> {
    fn ask(&self, text: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(text).unwrap(), kind));
        let socket = self.udp(0);
        socket.send_to(&message.to_vec().unwrap(), (GATEWAY, 53)).unwrap();
        let mut buffer = [0; 1500];
        let count = socket.recv(&mut buffer).unwrap();
        let answer = Message::from_vec(&buffer[..count]).unwrap();
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        answer
    }

    /// The addresses that a name has for the guest.
    pub(super) fn resolve(&self, text: &str) -> Result<Vec<Ipv4Addr>, ResponseCode> {
        let answer = self.ask(text, RecordType::A);
        match answer.metadata.response_code {
            ResponseCode::NoError => Ok(answer
                .answers
                .iter()
                .filter_map(|record| match &record.data {
                    RData::A(address) => Some(address.0),
                    _ => None,
                })
                .collect()),
            other => Err(other),
        }
    }

    /// What is answered to some bytes, until the other side ends or is silent.
    pub(super) fn exchange(&self, to: Ipv4Addr, port: u16, said: &[u8]) -> String {
        let mut stream = self.connect(to, port).unwrap();
        stream.write_all(said).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        String::from_utf8_lossy(&heard).into_owned()
    }

    fn refusals(&self, ground: &Ground) -> Vec<EgressRefusal> {
        ground.network.guards.at(self.address().0).unwrap().refusals().last
    }
}

pub(super) fn get(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// A ClientHello (RFC 8446, 4.1.2; RFC 6066, 3).
pub(super) fn client_hello(server_name: Option<&str>) -> Vec<u8> {
    fn sized(width: usize, content: &[u8]) -> Vec<u8> {
        let length = content.len().to_be_bytes();
        [&length[length.len() - width..], content].concat()
    }
    let extension =
        |number: u16, content: &[u8]| [&number.to_be_bytes()[..], &sized(2, content)].concat();
    let mut extensions = [
        extension(43, &sized(1, &[3, 4])),
        extension(13, &sized(2, &[4, 3, 8, 4])),
        extension(10, &sized(2, &[0, 29])),
        extension(51, &sized(2, &[&[0, 29][..], &sized(2, &[9; 32])].concat())),
    ]
    .concat();
    if let Some(server_name) = server_name {
        let entry = [&[0][..], &sized(2, server_name.as_bytes())].concat();
        extensions.extend(extension(0, &sized(2, &entry)));
    }
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &sized(2, &[0x13, 0x01]),
        &sized(1, &[0]),
        &sized(2, &extensions),
    ]
    .concat();
    let handshake = [&[1][..], &sized(3, &body)].concat();
    [&[0x16, 3, 1][..], &sized(2, &handshake)].concat()
}

#[test]
fn names_are_resolved_as_far_as_the_policy_permits() {
    let world = NamedWorld::new();
    let ground = world.ground();
    let guest = ground.guest(&NetworkPolicy::default()).boot();
    assert_eq!(guest.resolve("site.test."), Err(ResponseCode::Refused));
    guest.guest.apply(&only(&["site.test", "*.below.test", "missing.test"]));
    assert_eq!(guest.resolve("site.test."), Ok(vec![SITE]));
    assert_eq!(guest.resolve("SITE.test."), Ok(vec![SITE]));
    assert_eq!(guest.resolve("a.below.test."), Ok(vec![SITE]));
    assert_eq!(guest.resolve("missing.test."), Err(ResponseCode::NXDomain));
    for refused in ["below.test.", "other.test.", "x.site.test.", "test.", "."] {
        assert_eq!(guest.resolve(refused), Err(ResponseCode::Refused), "{refused}");
    }
    for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
        let answer = guest.ask("site.test.", kind);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{kind}");
        assert!(answer.answers.is_empty(), "{kind}");
    }
    guest.guest.apply(&permits([EgressRule::all(Destination::Anywhere)]));
    assert_eq!(guest.resolve("other.test."), Ok(vec![OTHER_SITE]));
    let refusals = guest.refusals(&ground);
    let refused = refusals.iter().find(|one| one.name == Some("other.test".parse().unwrap()));
    let refused = refused.expect("it was refused");
    assert_eq!((refused.what, refused.times), (RefusedEgress::Resolution, 1));
}

#[test]
fn an_address_can_be_connected_to_when_its_name_was_resolved_and_only_that_one() {
    let world = NamedWorld::new();
    let ground = world.ground();
    let guest = ground.guest(&permits([EgressRule::tcp(name("site.test"), 8080).unwrap()])).boot();
    assert_eq!(guest.told(SITE, 8080), io::ErrorKind::HostUnreachable);
    assert_eq!(guest.resolve("site.test."), Ok(vec![SITE]));
    assert_eq!(guest.exchange(SITE, 8080, b"who"), "site");
    assert_eq!(guest.told(OTHER_SITE, 8080), io::ErrorKind::HostUnreachable);
    // What is inspected is not opened by a pin, nor is anything else.
    for port in [80, 443, 8081] {
        assert_eq!(guest.told(SITE, port), io::ErrorKind::HostUnreachable, "{port}");
    }
    // Another's pin is his own.
    let neighbour = ground.guest(&permits([EgressRule::tcp(name("site.test"), 8080).unwrap()]));
    assert_eq!(neighbour.boot().told(SITE, 8080), io::ErrorKind::HostUnreachable);
}

#[test]
fn what_was_resolved_stays_known_when_the_policy_changes_as_far_as_it_is_still_permitted() {
    let world = NamedWorld::new();
    let ground = world.ground();
    let guest = ground.guest(&only(&["site.test", "other.test"])).boot();
    guest.resolve("site.test.").unwrap();
    guest.resolve("other.test.").unwrap();
    let mut kept = guest.connect(SITE, 8080).unwrap();
    guest.guest.apply(&only(&["site.test"]));
    kept.write_all(b"who").unwrap();
    let mut heard = [0; 4];
    kept.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"site");
    assert_eq!(guest.exchange(SITE, 8080, b"who"), "site");
    assert_eq!(guest.told(OTHER_SITE, 8080), io::ErrorKind::HostUnreachable);
}

#[test]
fn answers_that_lead_to_private_networks_are_not_passed_on() {
    let world = NamedWorld::new();
    let ground = world.ground();
    let guest = ground.guest(&permits([EgressRule::all(Destination::Anywhere)])).boot();
    assert_eq!(guest.resolve("rebound.test."), Ok(vec![SITE]));
    assert_eq!(guest.resolve("inside.test."), Ok(Vec::new()));
    guest.guest.apply(&only(&["inside.test"]));
    assert_eq!(guest.resolve("inside.test."), Ok(Vec::new()));
    assert_eq!(guest.told(INTERNAL, 8080), io::ErrorKind::HostUnreachable);
    // Nor does the one that connects in the guest's name go there.
    assert!(guest.exchange(INTERNAL, 80, get("inside.test").as_bytes()).contains("502"));
    assert_eq!(guest.exchange(INTERNAL, 443, &client_hello(Some("inside.test"))), "");
    let answers = guest.refusals(&ground).into_iter().map(|one| one.what);
    assert!(answers.into_iter().any(|what| what == RefusedEgress::PrivateAnswer));
}

#[test]
fn http_by_name_goes_to_the_host_that_each_request_names() {
    let world = NamedWorld::new();
    let ground = world.ground();
    let guest = ground.guest(&only(&["site.test"])).boot();
    // Whatever address the guest believes the name to have.
    for address in [SITE, OTHER_SITE, Ipv4Addr::new(198, 18, 9, 9)] {
        let answer = guest.exchange(address, 80, get("site.test").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("site"), "{answer}");
    }
    for host in ["other.test", "198.18.0.1", "site.test.other.test", "site.test:8080", ""] {
        let answer = guest.exchange(SITE, 80, get(host).as_bytes());
        assert!(answer.starts_with("HTTP/1.1 403"), "{host}: {answer}");
    }
    // Two requests on one connection, the second for another.
    let twice = format!("GET / HTTP/1.1\r\nHost: site.test\r\n\r\n{}", get("other.test"));
    let answer = guest.exchange(SITE, 80, twice.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("403"), "{answer}");
    let two_hosts = "GET / HTTP/1.1\r\nHost: site.test\r\nHost: other.test\r\n\r\n";
    assert!(!guest.exchange(SITE, 80, two_hosts.as_bytes()).contains("200"));
    let absolute = "GET http://other.test/ HTTP/1.1\r\nHost: site.test\r\n\r\n";
    assert!(!guest.exchange(SITE, 80, absolute.as_bytes()).contains("200"));
}

#[test]
fn tls_by_name_goes_to_the_server_that_is_named_in_it() {
    let world = NamedWorld::new();
    let ground = world.ground();
    let guest = ground.guest(&only(&["site.test"])).boot();
    for address in [SITE, OTHER_SITE] {
        assert_eq!(guest.exchange(address, 443, &client_hello(Some("site.test"))), "site");
    }
    // In pieces, as a slow or sly client sends it.
    let mut stream = guest.connect(OTHER_SITE, 443).unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in client_hello(Some("site.test")).chunks(20) {
        stream.write_all(piece).unwrap();
    }
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"site");
    let wrong =
        [client_hello(Some("other.test")), client_hello(None), b"GET / HTTP/1.1\r\n\r\n".to_vec()];
    for said in wrong {
        assert_eq!(guest.exchange(SITE, 443, &said), "");
    }
    let refusals = guest.refusals(&ground);
    let names: Vec<_> =
        refusals.iter().map(|one| (one.what, one.name.clone(), one.times)).collect();
    let refused = RefusedEgress::Connection(443);
    assert_eq!(names, [(refused, Some("other.test".parse().unwrap()), 1), (refused, None, 2)]);
}

#[test]
fn an_inspected_connection_ends_with_its_permission_and_not_before() {
    let world = NamedWorld::new();
    let ground = world.ground();
    let guest = ground.guest(&only(&["site.test", "other.test"])).boot();
    let open = |host| {
        let mut stream = guest.connect(SITE, 443).unwrap();
        stream.write_all(&client_hello(Some(host))).unwrap();
        let mut heard = vec![0; host.len() - 5];
        stream.read_exact(&mut heard).unwrap();
        stream
    };
    let (mut lost, mut kept) = (open("other.test"), open("site.test"));
    guest.guest.apply(&only(&["site.test"]));
    // Ended, not merely silent.
    assert_eq!(lost.read(&mut [0; 8]).unwrap_or(0), 0);
    kept.write_all(b"who").unwrap();
    let mut heard = [0; 4];
    kept.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"site");
}

#[test]
fn no_other_resolver_and_no_quic_goes_round_the_names() {
    let world = NamedWorld::new();
    let ground = world.ground();
    let guest = ground.guest(&only(&["site.test"])).boot();
    guest.resolve("site.test.").unwrap();
    let (quic, dns) = (world.world.udp(SITE, 443), world.world.udp(OTHER_SITE, 53));
    let own = guest.udp(0);
    for (address, port) in [(SITE, 443), (OTHER_SITE, 53), (SITE, 53)] {
        // It may be told at once that this is forbidden.
        let _ = own.send_to(b"hello", (address, port));
    }
    for port in [53, 853] {
        assert_eq!(guest.told(OTHER_SITE, port), io::ErrorKind::HostUnreachable, "{port}");
    }
    // QUIC to a name needs a rule that says so. What was sent before would be here before this.
    let rule = EgressRule {
        to: name("site.test"),
        transport: Some(Transport::Udp),
        ports: PortRange::one(443).unwrap(),
    };
    guest.guest.apply(&permits([rule]));
    guest.resolve("site.test.").unwrap();
    guest.udp(0).send_to(b"quic", (SITE, 443)).unwrap();
    let mut heard = [0; 16];
    let count = quic.recv(&mut heard).unwrap();
    assert_eq!(&heard[..count], b"quic");
    dns.set_nonblocking(true).unwrap();
    assert!(dns.recv(&mut heard).is_err());
}

#[test]
fn a_guest_that_is_gone_has_no_names_any_more() {
    let world = NamedWorld::new();
    let ground = world.ground();
    let guest = ground.guest(&only(&["site.test"])).boot();
    let guards = Arc::clone(&ground.network.guards);
    let (address, holding) = (guest.address().0, guest.guest.holding.clone());
    assert!(guards.at(address).is_some());
    drop(guest);
    ground.network.release(&holding).unwrap();
    assert!(guards.at(address).is_none());
}
