//! Networks for tests, and guests without a machine.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{read, write},
};
use skerry_model::{NetworkPolicy, Opening, PortRange, PrivateAddress, Transport, WorkspaceId};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::super::{
    GUEST_ADDRESS, GUEST_GATEWAY, GUEST_MAC, GUEST_PREFIX_BITS, Namespace, Network, NetworkHolding,
    Place, UplinkSettings, addresses::AddressLease, links::Links, tap,
};

const VNET_HEADER_BYTES: usize = 10;

/// How long what has to come may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE_MS: u16 = 20_000;
/// How long nothing has to come.
const SILENCE: Duration = Duration::from_millis(400);

/// Whose every guest is.
pub(super) const OWNER: WorkspaceId =
    WorkspaceId::from_u128(0x5eed_0000_0000_4000_8000_0000_0000_0007);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A network of its own, gone when dropped.
pub(super) struct Ground {
    pub network: Arc<Network>,
    pub tag: String,
    uplink: UplinkSettings,
    data_dir: TempDir,
    serving: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Ground {
    pub fn new() -> Self {
        Self::with_places_ahead(0)
    }

    pub fn with_places_ahead(ahead: usize) -> Self {
        Self::with(ahead, UplinkSettings::default())
    }

    /// One that is joined to a world.
    pub fn joined(uplink: UplinkSettings) -> Self {
        Self::with(0, uplink)
    }

    fn with(ahead: usize, uplink: UplinkSettings) -> Self {
        assert_eq!(Network::unavailable(), None, "these tests make network namespaces");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{:05x}{number:03x}", std::process::id() & 0xf_ffff);
        let data_dir = tempfile::tempdir().unwrap();
        let prefix = "10.201.0.0/16".parse().unwrap();
        let network = Network::open(&tag, prefix, ahead, &uplink, data_dir.path()).unwrap();
        let network = Arc::new(network);
        Self { network, tag, uplink, data_dir, serving: None }
    }

    /// One that is joined to a world and serves names.
    pub fn serving(uplink: UplinkSettings) -> Self {
        let mut ground = Self::joined(uplink);
        let (network, end) = (Arc::clone(&ground.network), CancellationToken::new());
        let ends = [end.clone(), end.clone()];
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(network.serve(ends)).unwrap();
        });
        ground.serving = Some((end, server));
        ground
    }

    /// The same network as the next server has it: this one's sockets are gone.
    pub fn reopened(&self) -> Network {
        self.network.service.lock().unwrap().take();
        let prefix = "10.201.0.0/16".parse().unwrap();
        Network::open(&self.tag, prefix, 0, &self.uplink, self.data_dir.path()).unwrap()
    }

    /// A VM's place with an address, and the guest in it.
    pub fn guest(&self, policy: &NetworkPolicy) -> Guest<'_> {
        let reserved = self.network.reserve().unwrap();
        let holding = self.network.holding(&reserved);
        let place = self.network.make(reserved).unwrap();
        let lease = self.network.addresses().lease().unwrap();
        self.network.dress(&holding, lease.address(), policy).unwrap();
        Guest { network: &self.network, holding, place, lease }
    }

    /// The namespaces of this network.
    pub fn namespaces(&self) -> Vec<String> {
        Namespace::names(&format!("skerry-{}", self.tag)).unwrap()
    }

    /// The interfaces of its hub.
    pub fn ports(&self) -> Vec<String> {
        let mut names = self.network.hub.enter(|| Links::open().names()).unwrap();
        names.retain(|name| name.starts_with("vm"));
        names
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some((end, server)) = self.serving.take() {
            end.cancel();
            server.join().unwrap();
        }
        for number in self.network.slots.numbers() {
            let holding = self.network.names(number);
            let _ = self.network.release(&holding);
        }
        let _ = self.network.close();
    }
}

/// A VM's place with a guest that consists of the frames it sends and receives, until it is booted.
pub(super) struct Guest<'a> {
    network: &'a Network,
    pub holding: NetworkHolding,
    place: Place,
    lease: AddressLease,
}

impl<'a> Guest<'a> {
    pub fn address(&self) -> PrivateAddress {
        self.lease.address()
    }

    pub fn apply(&self, policy: &NetworkPolicy) {
        self.network.apply(OWNER, &self.holding, self.address(), policy).unwrap();
    }

    /// Does something in the namespace around the guest.
    pub fn around<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        Namespace::open(&self.holding.namespace).unwrap().enter(work).unwrap()
    }

    /// Sends one Ethernet frame.
    pub fn send(&self, frame: &[u8]) {
        // The header of virtio_net: nothing is left to the receiver.
        let packet = [&[0; VNET_HEADER_BYTES], frame].concat();
        assert_eq!(write(self.place.tap.as_fd(), &packet).unwrap(), packet.len());
    }

    /// The next frame for the guest.
    pub fn receive(&self) -> Vec<u8> {
        let mut ready = [PollFd::new(self.place.tap.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ready, PATIENCE_MS).unwrap(), 1, "no frame came");
        let mut buffer = [0; 2048];
        let count = read(self.place.tap.as_fd(), &mut buffer).unwrap();
        buffer[VNET_HEADER_BYTES..count].to_vec()
    }

    /// The station address of the gateway, asked for by ARP as a guest does.
    pub fn gateway_station(&self) -> [u8; 6] {
        self.send(&arp_request(GUEST_MAC, GUEST_ADDRESS, GUEST_GATEWAY));
        loop {
            let frame = self.receive();
            if frame[12..14] == [0x08, 0x06] && frame[20..22] == [0, 2] {
                return frame[22..28].try_into().unwrap();
            }
        }
    }

    /// The guest becomes a Linux of its own: a namespace at the other end of the tap.
    pub fn boot(self) -> Booted<'a> {
        Booted::new(self)
    }
}

/// A guest with a network stack.
pub(super) struct Booted<'a> {
    pub guest: Guest<'a>,
    inside: Namespace,
    stop: Option<OwnedFd>,
    pump: Option<JoinHandle<()>>,
}

impl<'a> Booted<'a> {
    fn new(guest: Guest<'a>) -> Self {
        let name = format!("test-{}", guest.holding.namespace);
        let inside = Namespace::make(&name).unwrap();
        let own = inside
            .enter(|| {
                let tap = tap::make("eth0")?;
                let mut links = Links::open();
                links.set_station("eth0", GUEST_MAC)?;
                links.add_address("eth0", GUEST_ADDRESS, GUEST_PREFIX_BITS)?;
                links.up("lo")?;
                links.up("eth0")?;
                links.add_default_route("eth0", GUEST_GATEWAY)?;
                Ok(tap)
            })
            .unwrap();
        let outer = guest.place.tap.try_clone().unwrap();
        let (stopped, stop) = nix::unistd::pipe().unwrap();
        let pump = std::thread::spawn(move || pump(&own, &outer, &stopped));
        Self { guest, inside, stop: Some(stop), pump: Some(pump) }
    }

    pub fn address(&self) -> PrivateAddress {
        self.guest.address()
    }

    /// Does something as a program in the guest.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        // The cause itself, as a program sees it.
        match self.inside.enter(|| Ok(work())) {
            Ok(result) => result,
            Err(error) => panic!("{error}"),
        }
    }

    /// A server in the guest.
    pub fn listen(&self, port: u16) -> TcpListener {
        self.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap()
    }

    /// A socket in the guest.
    pub fn udp(&self, port: u16) -> UdpSocket {
        let socket = self.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Connects from the guest.
    pub fn connect(&self, to: impl Into<Ipv4Addr>, port: u16) -> io::Result<TcpStream> {
        let to = SocketAddr::from((to.into(), port));
        let stream = self.inside(|| TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Connects to what is expected to be refused: how the program is told.
    pub fn told(&self, to: impl Into<Ipv4Addr>, port: u16) -> io::ErrorKind {
        match self.connect(to, port) {
            Ok(stream) => panic!("{stream:?} answers"),
            Err(error) => error.kind(),
        }
    }

    /// Connects to what is expected not to answer.
    pub fn knock(&self, to: impl Into<Ipv4Addr>, port: u16) -> io::ErrorKind {
        let to = SocketAddr::from((to.into(), port));
        match self.inside(|| TcpStream::connect_timeout(&to, SILENCE)) {
            Ok(_) => panic!("{to} answers"),
            Err(error) => error.kind(),
        }
    }
}

impl Drop for Booted<'_> {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(pump) = self.pump.take() {
            pump.join().unwrap();
        }
        Namespace::remove(self.inside.name()).unwrap();
    }
}

/// Carries frames both ways until `stop` is closed.
fn pump(one: &OwnedFd, other: &OwnedFd, stop: &OwnedFd) {
    let mut buffer = vec![0; 65536 + VNET_HEADER_BYTES];
    loop {
        let [from_one, from_other, stopped] = {
            let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut ready = [watch(one.as_fd()), watch(other.as_fd()), watch(stop.as_fd())];
            poll(&mut ready, PollTimeout::NONE).unwrap();
            ready.map(|one| one.any().unwrap_or_default())
        };
        if stopped {
            return;
        }
        for (ready, from, to) in [(from_one, one, other), (from_other, other, one)] {
            if ready && let Ok(count) = read(from, &mut buffer) {
                // A full or closed device loses frames, as a cable does.
                let _ = write(to, &buffer[..count]);
            }
        }
    }
}

/// A policy with these links and these openings.
pub(super) fn policy(
    links: &[PrivateAddress],
    openings: &[(PrivateAddress, Transport, u16, u16)],
) -> NetworkPolicy {
    let opening =
        |(from, transport, first, last): &(PrivateAddress, Transport, u16, u16)| Opening {
            from: *from,
            transport: *transport,
            ports: PortRange::new(*first, *last).unwrap(),
        };
    NetworkPolicy {
        links: links.iter().copied().collect(),
        ingress: openings.iter().map(opening).collect(),
        ..NetworkPolicy::default()
    }
}

/// What a guest under test says on its cable (RFC 826).
pub(super) fn arp_request(mac: [u8; 6], own: Ipv4Addr, whose: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let (own, whose) = (own.octets(), whose.octets());
    [&[0xff; 6], &mac[..], &[8, 6], &head, &mac, &own, &[0; 6], &whose].concat()
}

/// A frame with a UDP datagram to port 9 (RFC 768, 791).
pub(super) fn datagram(
    to_station: [u8; 6],
    from_station: [u8; 6],
    from: Ipv4Addr,
    to: Ipv4Addr,
    text: &[u8],
) -> Vec<u8> {
    let udp_length = u16::try_from(8 + text.len()).unwrap().to_be_bytes();
    let length = u16::try_from(28 + text.len()).unwrap().to_be_bytes();
    let mut ip =
        [&[0x45, 0], &length[..], &[0, 0, 0, 0, 64, 17, 0, 0], &from.octets(), &to.octets()]
            .concat();
    let sum: u32 = ip.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    // A checksum of 0 is none.
    let udp = [&[0, 7, 0, 9], &udp_length[..], &[0, 0]].concat();
    [&to_station[..], &from_station, &[8, 0], &ip, &udp, text].concat()
}
