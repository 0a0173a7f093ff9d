//! What passes between guests, and what does not.

use std::{
    io::{self, Read, Write},
    net::Ipv4Addr,
};

use skerry_model::{NetworkPolicy, Transport};

use super::ground::{Booted, Ground, policy};

/// Two guests; the first may connect to TCP port 80 and UDP ports 5000 to 5009 of the second.
fn linked(ground: &Ground) -> (Booted<'_>, Booted<'_>) {
    let (client, server) =
        (ground.guest(&NetworkPolicy::default()), ground.guest(&NetworkPolicy::default()));
    client.apply(&policy(&[server.address()], &[]));
    let from = client.address();
    let openings = [(from, Transport::Tcp, 80, 80), (from, Transport::Udp, 5000, 5009)];
    server.apply(&policy(&[], &openings));
    (client.boot(), server.boot())
}

fn say(from: &mut impl Write, to: &mut impl Read, text: &[u8]) -> io::Result<()> {
    from.write_all(text)?;
    let mut heard = vec![0; text.len()];
    to.read_exact(&mut heard)?;
    assert_eq!(heard, text);
    Ok(())
}

#[test]
fn an_open_port_is_reached_by_who_is_linked_and_by_its_private_address() {
    let ground = Ground::new();
    let (client, server) = linked(&ground);
    let listener = server.listen(80);
    let mut out = client.connect(server.address().0, 80).unwrap();
    let (mut accepted, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), client.address().0, "the other one sees its private address");
    say(&mut out, &mut accepted, b"question").unwrap();
    say(&mut accepted, &mut out, b"answer").unwrap();

    let socket = server.udp(5009);
    client.udp(1).send_to(b"datagram", (server.address().0, 5009)).unwrap();
    let (count, from) = socket.recv_from(&mut [0; 64]).unwrap();
    assert_eq!((count, from.ip()), (8, client.address().0.into()));
}

#[test]
fn other_ports_other_protocols_and_the_other_direction_stay_closed() {
    let ground = Ground::new();
    let (client, server) = linked(&ground);
    let _listening = [server.listen(81), server.listen(5000), client.listen(80)];
    assert_eq!(client.knock(server.address().0, 81), io::ErrorKind::TimedOut);
    assert_eq!(client.knock(server.address().0, 5000), io::ErrorKind::TimedOut);
    // No link back: the own side forbids it, and says so.
    assert_eq!(server.knock(client.address().0, 80), io::ErrorKind::HostUnreachable);
}

#[test]
fn a_link_alone_and_an_opening_alone_open_nothing() {
    let ground = Ground::new();
    let (client, server) = linked(&ground);
    let _listening = server.listen(80);
    client.guest.apply(&NetworkPolicy::default());
    assert_eq!(client.knock(server.address().0, 80), io::ErrorKind::HostUnreachable);
    client.guest.apply(&policy(&[server.address()], &[]));
    server.guest.apply(&NetworkPolicy::default());
    assert_eq!(client.knock(server.address().0, 80), io::ErrorKind::TimedOut);
}

#[test]
fn an_opening_is_for_one_guest_and_not_for_its_neighbour() {
    let ground = Ground::new();
    let (client, server) = linked(&ground);
    let _listening = server.listen(80);
    let neighbour = ground.guest(&policy(&[server.address()], &[])).boot();
    assert_eq!(neighbour.knock(server.address().0, 80), io::ErrorKind::TimedOut);
    client.connect(server.address().0, 80).unwrap();
}

#[test]
fn what_is_taken_back_ends_in_connections_that_exist_and_the_others_go_on() {
    let ground = Ground::new();
    let (client, server) = linked(&ground);
    let other = ground.guest(&policy(&[server.address()], &[])).boot();
    let open =
        [(client.address(), Transport::Tcp, 80, 80), (other.address(), Transport::Tcp, 80, 80)];
    server.guest.apply(&policy(&[], &open));
    let listener = server.listen(80);
    let mut first = client.connect(server.address().0, 80).unwrap();
    let (mut first_accepted, _) = listener.accept().unwrap();
    let mut second = other.connect(server.address().0, 80).unwrap();
    let (mut second_accepted, _) = listener.accept().unwrap();
    say(&mut first, &mut first_accepted, b"before").unwrap();
    say(&mut second, &mut second_accepted, b"before").unwrap();

    server.guest.apply(&policy(&[], &open[1..]));
    // Only the server speaks, which a connection that was forgotten would not survive.
    say(&mut second_accepted, &mut second, b"still there").unwrap();
    first.write_all(b"lost").unwrap();
    first_accepted.set_read_timeout(Some(std::time::Duration::from_millis(400))).unwrap();
    let lost = first_accepted.read(&mut [0; 8]).unwrap_err();
    assert_eq!(lost.kind(), io::ErrorKind::WouldBlock);
    first_accepted.write_all(b"lost too").unwrap();
    first.set_read_timeout(Some(std::time::Duration::from_millis(400))).unwrap();
    assert_eq!(first.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn nothing_else_can_be_reached() {
    let ground = Ground::new();
    let (client, server) = linked(&ground);
    let _listening = server.listen(80);
    let hub = Ipv4Addr::new(10, 201, 0, 1);
    let (metadata, world) = (Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(192, 0, 2, 1));
    for forbidden in [hub, metadata, world] {
        client.knock(forbidden, 80);
    }
    // Not even if a policy says so: these are never a workspace's.
    client.guest.apply(&policy(&[hub, metadata, world].map(skerry_model::PrivateAddress), &[]));
    for forbidden in [hub, metadata, world] {
        client.knock(forbidden, 80);
    }
    // The gateway that a guest sees serves nothing.
    client.knock(Ipv4Addr::new(10, 0, 2, 1), 80);
}

#[test]
fn a_policy_as_large_as_can_be_is_put_in_force_at_once() {
    let ground = Ground::new();
    let (client, server) = linked(&ground);
    let _listening = server.listen(443);
    let own = (client.address(), Transport::Tcp, 443, 443);
    let others =
        (0..511_u16).map(|n| (client.address(), Transport::Tcp, 1000 + 3 * n, 1001 + 3 * n));
    let large = policy(&[], &others.chain([own]).collect::<Vec<_>>());
    large.check().unwrap();
    server.guest.apply(&large);
    client.connect(server.address().0, 443).unwrap();
}
