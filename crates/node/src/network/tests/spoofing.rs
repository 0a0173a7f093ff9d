//! A guest cannot be anybody else. Each forged frame is followed by an honest one: when that arrives
//! and nothing arrived before it, the forged one was dropped.

use std::net::{Ipv4Addr, UdpSocket};

use skerry_model::{NetworkPolicy, PrivateAddress, Transport};

use super::{
    super::{
        GUEST_ADDRESS, GUEST_GATEWAY, GUEST_MAC,
        filter::{Family, Transaction},
        links::Links,
        wiring::GATEWAY_MAC,
    },
    ground::{Booted, Ground, Guest, arp_request, datagram, policy},
};

/// Somebody who listens at UDP port 9, also for an address that nobody has.
fn listener<'a>(ground: &'a Ground, from: &Guest<'_>) -> (Booted<'a>, UdpSocket) {
    let forged = PrivateAddress(Ipv4Addr::new(10, 201, 9, 9));
    let open = [from.address(), forged].map(|peer| (peer, Transport::Udp, 9, 9));
    let server = ground.guest(&policy(&[], &open)).boot();
    from.apply(&policy(&[server.address()], &[]));
    let socket = server.udp(9);
    (server, socket)
}

fn next(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 64];
    let count = socket.recv(&mut buffer).unwrap();
    buffer[..count].to_vec()
}

#[test]
fn every_guest_has_the_same_gateway_which_a_clone_knows_already() {
    let ground = Ground::new();
    let guests = [ground.guest(&NetworkPolicy::default()), ground.guest(&NetworkPolicy::default())];
    for guest in &guests {
        assert_eq!(guest.gateway_station(), GATEWAY_MAC);
    }
}

#[test]
fn frames_with_another_address_or_station_or_protocol_are_dropped() {
    let ground = Ground::new();
    let guest = ground.guest(&NetworkPolicy::default());
    let (server, socket) = listener(&ground, &guest);
    let to = server.address().0;
    let gateway = guest.gateway_station();
    let honest = datagram(gateway, GUEST_MAC, GUEST_ADDRESS, to, b"honest");
    guest.send(&honest);
    assert_eq!(next(&socket), b"honest");

    let other_station = [0x52, 0x54, 0, 0, 0, 1];
    let other =
        |address: [u8; 4]| datagram(gateway, GUEST_MAC, Ipv4Addr::from(address), to, b"forged");
    let mut ipv6 = honest.clone();
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    let mut tagged = honest.clone();
    tagged.splice(12..12, [0x81, 0, 0, 1]);
    let forged = [
        other([10, 0, 2, 77]),
        other([10, 201, 9, 9]),
        other([127, 0, 0, 1]),
        other([169, 254, 169, 254]),
        other(guest.address().0.octets()),
        datagram(gateway, other_station, GUEST_ADDRESS, to, b"forged"),
        ipv6,
        tagged,
    ];
    for frame in forged {
        guest.send(&frame);
        guest.send(&honest);
        assert_eq!(next(&socket), b"honest", "{frame:02x?}");
    }
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 64]).is_err(), "more came than was honest");
    let counted = ground.network.egress_refusals(guest.address()).unwrap().unwrap();
    assert_eq!((counted.dropped_frames, counted.refused_packets), (8, 0));
    // By its port it is honest and not permitted; the guest is told.
    let elsewhere = Ipv4Addr::new(198, 18, 0, 1);
    guest.send(&datagram(gateway, GUEST_MAC, GUEST_ADDRESS, elsewhere, b"refused"));
    while guest.receive()[23] != 1 {}
    let counted = ground.network.egress_refusals(guest.address()).unwrap().unwrap();
    assert_eq!((counted.dropped_frames, counted.refused_packets), (8, 1));
}

#[test]
fn a_guest_cannot_say_that_it_is_its_gateway() {
    let ground = Ground::new();
    let guest = ground.guest(&NetworkPolicy::default());
    let gateway = guest.gateway_station();
    // Answered only if it was heard; the next answer is the one to the honest question.
    guest.send(&arp_request(GUEST_MAC, Ipv4Addr::new(10, 0, 2, 99), GUEST_GATEWAY));
    guest.send(&arp_request([2, 0, 0, 0, 0, 9], GUEST_ADDRESS, GUEST_GATEWAY));
    guest.send(&arp_request(GUEST_MAC, GUEST_ADDRESS, GUEST_GATEWAY));
    let answer = guest.receive();
    assert_eq!(answer[22..28], gateway);
    assert_eq!(answer[32..42], [&GUEST_MAC[..], &GUEST_ADDRESS.octets()].concat());
}

#[test]
fn a_namespace_that_says_it_is_another_is_not_believed_by_the_hub() {
    let ground = Ground::new();
    let guest = ground.guest(&NetworkPolicy::default());
    let (server, socket) = listener(&ground, &guest);
    let (forged, own) = (Ipv4Addr::new(10, 201, 9, 9), guest.address().0);
    let to = (server.address().0, 9);
    guest.around(|| {
        // Somebody got out of the guest and into its namespace: no rule binds him there.
        Transaction::replace(Family::Ip, "skerry").commit()?;
        Links::open().add_address("up0", forged, 32)?;
        UdpSocket::bind((forged, 7))?.send_to(b"forged", to)?;
        UdpSocket::bind((own, 7))?.send_to(b"honest", to)?;
        Ok(())
    });
    assert_eq!(next(&socket), b"honest");
}

#[test]
fn no_namespace_speaks_ipv6() {
    let ground = Ground::new();
    let guest = ground.guest(&NetworkPolicy::default());
    let own = |path: &str| {
        std::fs::read_to_string(path).map(|text| text.lines().count()).or_else(|error| match error
            .kind()
        {
            std::io::ErrorKind::NotFound => Ok(0),
            _ => Err(error),
        })
    };
    let addresses = "/proc/thread-self/net/if_inet6";
    assert_eq!(guest.around(|| own(addresses)), 0);
    assert_eq!(ground.network.hub.enter(|| own(addresses)).unwrap(), 0);
}
