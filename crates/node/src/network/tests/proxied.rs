//! Guests whose policy names a proxy, one in the world that makes real connections, and what they try
//! to get round it.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use skerry_internal_api::NodeError;
use skerry_model::{
    Destination, EgressRule, NetworkPolicy, OutboundProxy, ProxyCredentials, ProxyProtocol, Secret,
};

use super::{
    super::{ProxyTarget, UplinkSettings, rules},
    ground::{Booted, Ground, PATIENCE},
    names::{NamedWorld, client_hello, get, name, only},
    world::{OTHER_SITE, SITE, World, permits},
};

const PROXY_PORT: u16 = 8888;
const USER: &str = "tenant";
const PASSWORD: &str = "hunter2";

/// A proxy at [`OTHER_SITE`] that takes one pair of credentials, and to where it was asked to connect.
struct Proxy {
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn of_http(world: &World) -> Self {
        Self::new(world, connect_by_http)
    }

    fn of_socks(world: &World) -> Self {
        Self::new(world, connect_by_socks)
    }

    /// Until the test's process ends.
    fn new(world: &World, ask: fn(&mut TcpStream) -> io::Result<Option<String>>) -> Self {
        let listener = world.listen(OTHER_SITE, PROXY_PORT);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        // A thread in the world, so that what the proxy connects to is there, too.
        world.inside(|| {
            thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    let noted = Arc::clone(&noted);
                    thread::spawn(move || carry(stream, ask, &noted));
                }
            });
            Ok(())
        });
        Self { asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn carry(
    mut client: TcpStream,
    ask: fn(&mut TcpStream) -> io::Result<Option<String>>,
    noted: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let Some(to) = ask(&mut client)? else { return Ok(()) };
    noted.lock().unwrap().push(to.clone());
    // The only name that proxies are asked for here is that of the check.
    let address: SocketAddr = to.replace("check.test", "198.18.0.1").parse().unwrap();
    let server = TcpStream::connect_timeout(&address, PATIENCE)?;
    let (mut from, mut into) = (server.try_clone()?, client.try_clone()?);
    let back = thread::spawn(move || {
        let _ = io::copy(&mut from, &mut into);
        let _ = into.shutdown(Shutdown::Both);
    });
    let mut server = server;
    let _ = io::copy(&mut client, &mut server);
    let _ = server.shutdown(Shutdown::Write);
    back.join().unwrap();
    Ok(())
}

/// RFC 9110, 9.3.6.
fn connect_by_http(client: &mut TcpStream) -> io::Result<Option<String>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let own = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let says = |line: &str| {
        line.to_ascii_lowercase().starts_with("proxy-authorization:") && line.ends_with(&own)
    };
    if !head.lines().any(says) {
        client.write_all(
            b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        )?;
        return Ok(None);
    }
    let to = head.strip_prefix("CONNECT ").and_then(|rest| rest.split_once(' ')).unwrap().0;
    if to.ends_with(":9") {
        client.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nsecret")?;
        return Ok(None);
    }
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    Ok(Some(to.to_owned()))
}

/// RFC 1928 with RFC 1929.
fn connect_by_socks(client: &mut TcpStream) -> io::Result<Option<String>> {
    let mut read = |count: usize| {
        let mut bytes = vec![0; count];
        client.read_exact(&mut bytes).map(|()| bytes)
    };
    let count = read(2)?[1];
    let offers_password = read(count.into())?.contains(&2);
    client.write_all(&[5, if offers_password { 2 } else { 0xff }])?;
    if !offers_password {
        return Ok(None);
    }
    let mut read = |count: usize| {
        let mut bytes = vec![0; count];
        client.read_exact(&mut bytes).map(|()| bytes)
    };
    let user = read(2)?[1];
    let user = read(user.into())?;
    let password = read(1)?[0];
    let password = read(password.into())?;
    let good = user == USER.as_bytes() && password == PASSWORD.as_bytes();
    client.write_all(&[1, u8::from(!good)])?;
    if !good {
        return Ok(None);
    }
    let mut read = |count: usize| {
        let mut bytes = vec![0; count];
        client.read_exact(&mut bytes).map(|()| bytes)
    };
    let host = match read(4)?[3] {
        1 => Ipv4Addr::from(<[u8; 4]>::try_from(read(4)?).unwrap()).to_string(),
        3 => {
            let length = read(1)?[0];
            String::from_utf8(read(length.into())?).unwrap()
        }
        other => panic!("no such address: {other}"),
    };
    let port = u16::from_be_bytes(read(2)?.try_into().unwrap());
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    Ok(Some(format!("{host}:{port}")))
}

fn proxy(protocol: ProxyProtocol, password: &str) -> OutboundProxy {
    let credentials =
        ProxyCredentials { username: USER.to_owned(), password: Secret::new(password) };
    OutboundProxy {
        address: OTHER_SITE,
        port: PROXY_PORT,
        protocol,
        credentials: Some(credentials),
    }
}

/// `policy`, through the proxy.
fn through(policy: NetworkPolicy) -> NetworkPolicy {
    NetworkPolicy { proxy: Some(proxy(ProxyProtocol::Http, PASSWORD)), ..policy }
}

fn everything() -> NetworkPolicy {
    permits([EgressRule::all(Destination::Anywhere)])
}

impl Booted<'_> {
    /// Connects to what takes the connection and does not keep it.
    fn reset_by(&self, to: Ipv4Addr, port: u16) -> io::ErrorKind {
        let ended = self.connect(to, port).and_then(|mut stream| {
            // Nothing is said: what the other side closes in order is no error.
            stream.read(&mut [0; 8])
        });
        ended.expect_err("the connection is kept, or closed in order").kind()
    }
}

fn nobody_came(to: &TcpListener) {
    to.set_nonblocking(true).unwrap();
    assert_eq!(to.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn what_a_guest_sends_by_tcp_goes_through_its_proxy() {
    let named = NamedWorld::new();
    for (protocol, make) in [
        (ProxyProtocol::Http, Proxy::of_http as fn(&World) -> Proxy),
        (ProxyProtocol::Socks5, Proxy::of_socks),
    ] {
        let named = match protocol {
            ProxyProtocol::Http => &named,
            ProxyProtocol::Socks5 => &NamedWorld::new(),
        };
        let made = make(&named.world);
        let ground = named.ground();
        let policy = NetworkPolicy { proxy: Some(proxy(protocol, PASSWORD)), ..everything() };
        let guest = ground.guest(&policy).boot();
        assert_eq!(guest.exchange(SITE, 8080, b"who"), "site");
        let large = vec![b'x'; 300_000];
        assert!(guest.exchange(SITE, 8080, &large).starts_with("site"));
        assert_eq!(made.asked(), ["198.18.0.1:8080", "198.18.0.1:8080"]);
    }
}

#[test]
fn names_hold_with_a_proxy_as_they_do_without() {
    let named = NamedWorld::new();
    let made = Proxy::of_http(&named.world);
    let ground = named.ground();
    let guest = ground.guest(&through(only(&["site.test"]))).boot();
    assert_eq!(guest.told(SITE, 8080), io::ErrorKind::HostUnreachable, "nobody resolved it");
    assert_eq!(guest.resolve("site.test."), Ok(vec![SITE]));
    assert_eq!(guest.exchange(SITE, 8080, b"who"), "site");
    assert!(guest.exchange(SITE, 80, get("site.test").as_bytes()).ends_with("site"));
    assert!(guest.exchange(SITE, 80, get("other.test").as_bytes()).contains("403"));
    assert!(guest.exchange(SITE, 443, &client_hello(Some("site.test"))).starts_with("site"));
    assert_eq!(guest.exchange(SITE, 443, &client_hello(Some("other.test"))), "");
    assert_eq!(guest.told(OTHER_SITE, 8080), io::ErrorKind::HostUnreachable);
    let asked = made.asked();
    assert_eq!(asked, ["198.18.0.1:8080", "198.18.0.1:80", "198.18.0.1:443"]);
}

#[test]
fn nothing_goes_round_the_proxy() {
    let named = NamedWorld::new();
    let made = Proxy::of_http(&named.world);
    let ground = named.ground();
    let guest = ground.guest(&through(everything())).boot();
    let (datagrams, own) = (named.world.udp(SITE, 9), guest.udp(0));
    let before = ground.network.egress_refusals(guest.address()).unwrap().unwrap();
    for _ in 0..3 {
        // It may be told at once that this is forbidden.
        let _ = own.send_to(b"round", (SITE, 9));
    }
    // The gate itself serves nobody who was not led to it.
    let gateway = ground.network.addresses().gateway();
    assert_eq!(guest.reset_by(gateway, rules::PROXIED_PORT), io::ErrorKind::ConnectionReset);
    // The proxy itself is reached through the proxy, where a guest has no credentials for it.
    let said = guest.exchange(OTHER_SITE, PROXY_PORT, b"\r\n\r\n");
    assert!(said.starts_with("HTTP/1.1 407 "), "{said}");
    assert_eq!(guest.exchange(SITE, 8080, b"who"), "site");
    assert!(made.asked().contains(&format!("{OTHER_SITE}:{PROXY_PORT}")));
    let counted = ground.network.egress_refusals(guest.address()).unwrap().unwrap();
    assert!(counted.refused_packets >= before.refused_packets + 3, "{counted:?}");
    // What was sent before would be here before this.
    guest.guest.apply(&everything());
    guest.udp(0).send_to(b"direct", (SITE, 9)).unwrap();
    let mut heard = [0; 16];
    let count = datagrams.recv(&mut heard).unwrap();
    assert_eq!(&heard[..count], b"direct");
}

#[test]
fn a_guest_without_a_proxy_is_served_nothing_where_proxied_ones_are() {
    let named = NamedWorld::new();
    let ground = named.ground();
    let guest = ground.guest(&everything()).boot();
    let gateway = ground.network.addresses().gateway();
    assert_eq!(guest.reset_by(gateway, rules::PROXIED_PORT), io::ErrorKind::ConnectionReset);
}

#[test]
fn without_the_proxy_connections_are_reset_and_none_is_direct() {
    let world = World::new();
    let ground = Ground::serving(world.uplink());
    let site = world.listen(SITE, 8081);
    let guest = ground.guest(&through(everything())).boot();
    // Nobody listens there.
    assert_eq!(guest.reset_by(SITE, 8081), io::ErrorKind::ConnectionReset);
    let refuses = Proxy::of_http(&world);
    let policy = NetworkPolicy {
        proxy: Some(proxy(ProxyProtocol::Http, "another password")),
        ..everything()
    };
    guest.guest.apply(&policy);
    assert_eq!(guest.reset_by(SITE, 8081), io::ErrorKind::ConnectionReset);
    guest.guest.apply(&through(everything()));
    // The proxy answers that it may not.
    assert_eq!(guest.reset_by(SITE, 9), io::ErrorKind::ConnectionReset);
    assert_eq!(refuses.asked(), [""; 0]);
    nobody_came(&site);
}

#[test]
fn without_a_server_proxied_guests_reach_nothing() {
    let world = World::new();
    let ground = Ground::joined(world.uplink());
    // As when its process has ended.
    drop(ground.network.service.lock().unwrap().take());
    let site = world.listen(SITE, 8081);
    let guest = ground.guest(&through(everything())).boot();
    assert_eq!(guest.told(SITE, 8081), io::ErrorKind::ConnectionRefused);
    nobody_came(&site);
}

#[test]
fn a_proxy_that_comes_or_goes_ends_the_connections_that_went_the_other_way() {
    let named = NamedWorld::new();
    let _made = Proxy::of_http(&named.world);
    let ground = named.ground();
    let guest = ground.guest(&everything()).boot();
    let heard = |stream: &mut TcpStream| {
        stream.write_all(b"who")?;
        stream.read_exact(&mut [0; 4])
    };
    let mut direct = guest.connect(SITE, 8080).unwrap();
    heard(&mut direct).unwrap();
    guest.guest.apply(&through(everything()));
    let mut proxied = guest.connect(SITE, 8080).unwrap();
    heard(&mut proxied).unwrap();
    // A connection that exists is told nothing; nothing is heard.
    direct.set_read_timeout(Some(std::time::Duration::from_millis(400))).unwrap();
    assert_eq!(heard(&mut direct).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    // Another change leaves it alone.
    let more = [EgressRule::all(Destination::Anywhere), EgressRule::all(name("site.test"))];
    guest.guest.apply(&through(permits(more)));
    heard(&mut proxied).unwrap();
    guest.guest.apply(&everything());
    assert!(proxied.read(&mut [0; 8]).map_or(true, |count| count == 0), "it goes on");
    let mut direct = guest.connect(SITE, 8080).unwrap();
    heard(&mut direct).unwrap();
}

#[test]
fn a_connection_through_a_proxy_ends_with_its_permission() {
    let named = NamedWorld::new();
    let _made = Proxy::of_http(&named.world);
    let ground = named.ground();
    let guest = ground.guest(&through(everything())).boot();
    let mut stream = guest.connect(SITE, 8080).unwrap();
    stream.write_all(b"who").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    guest.guest.apply(&through(only(&["other.test"])));
    assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_proxy_is_asked_for_a_connection_before_it_is_used() {
    let named = NamedWorld::new();
    let made = Proxy::of_http(&named.world);
    let target = |port| ProxyTarget { name: "check.test".to_owned(), port };
    let check = |target, proxy: &OutboundProxy| {
        let uplink = UplinkSettings { proxy_check_target: target, ..named.world.uplink() };
        let ground = Ground::joined(uplink);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        match runtime.block_on(ground.network.check_proxy(proxy)) {
            Ok(()) => Ok(()),
            Err(NodeError::Invalid { field: "proxy", problem }) => Err(problem),
            Err(other) => panic!("{other}"),
        }
    };
    let good = proxy(ProxyProtocol::Http, PASSWORD);
    check(target(8080), &good).unwrap();
    assert_eq!(made.asked(), ["check.test:8080"]);
    let refused = [
        check(target(8080), &proxy(ProxyProtocol::Http, "wrong")),
        check(target(9), &good),
        check(target(8080), &OutboundProxy { port: 8889, ..good.clone() }),
        // A site that is no proxy.
        check(target(8080), &OutboundProxy { address: SITE, port: 8080, ..good.clone() }),
        check(target(8080), &OutboundProxy { address: Ipv4Addr::LOCALHOST, ..good }),
    ];
    insta::assert_debug_snapshot!(refused.map(Result::unwrap_err));
}

#[test]
fn a_proxy_of_socks_takes_its_own_credentials_alone() {
    let world = World::new();
    let _made = Proxy::of_socks(&world);
    let target = ProxyTarget { name: "check.test".to_owned(), port: 8081 };
    let _listening = world.listen(SITE, 8081);
    let ground = Ground::joined(UplinkSettings { proxy_check_target: target, ..world.uplink() });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let check = |proxy: &OutboundProxy| {
        runtime.block_on(ground.network.check_proxy(proxy)).map_err(|error| error.to_string())
    };
    let good = proxy(ProxyProtocol::Socks5, PASSWORD);
    check(&good).unwrap();
    let refused = [
        check(&proxy(ProxyProtocol::Socks5, "wrong")),
        check(&OutboundProxy { credentials: None, ..good }),
    ];
    for problem in refused.map(Result::unwrap_err) {
        assert_eq!(problem, "proxy: socks5://198.19.0.1:8888 asks for other credentials");
    }
}
