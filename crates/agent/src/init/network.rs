//! The loopback interface, over which programs talk to themselves even without a network, and the
//! machine's one network card.
//!
//! Every guest has the same addresses, so a clone has the right ones from its template's boot on:
//! they are on the kernel's command line.

use std::{
    fs, io, mem,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// On the kernel's command line: `skerry.net=<address>/<prefix length>,<gateway>`.
const ARGUMENT: &str = "skerry.net=";
/// As the kernel calls the only card when it is told not to think of other names (`net.ifnames=0`).
const CARD: &[u8] = b"eth0\0";

nix::ioctl_write_ptr_bad!(set_interface_flags, libc::SIOCSIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_interface_address, libc::SIOCSIFADDR, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_interface_mask, libc::SIOCSIFNETMASK, libc::ifreq);
nix::ioctl_write_ptr_bad!(add_route, libc::SIOCADDRT, libc::rtentry);

/// What the card is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    address: Ipv4Addr,
    mask: Ipv4Addr,
    gateway: Ipv4Addr,
}

impl Addresses {
    /// Those on the kernel's command line; `None` when the machine is to have no network.
    ///
    /// # Errors
    /// The word that names them, when it cannot be understood.
    pub(super) fn in_arguments(arguments: &str) -> Result<Option<Self>, String> {
        let word = arguments.split_whitespace().find_map(|word| word.strip_prefix(ARGUMENT));
        word.map(|word| Self::parse(word).ok_or_else(|| word.to_owned())).transpose()
    }

    fn parse(word: &str) -> Option<Self> {
        let (own, gateway) = word.split_once(',')?;
        let (address, prefix_bits) = own.split_once('/')?;
        let prefix_bits: u32 = prefix_bits.parse().ok().filter(|bits| (1..=31).contains(bits))?;
        let mask = Ipv4Addr::from_bits(u32::MAX << (32 - prefix_bits));
        let address: Ipv4Addr = address.parse().ok()?;
        let gateway: Ipv4Addr = gateway.parse().ok()?;
        Some(Self { address, mask, gateway })
    }
}

/// Sets `lo` up; the kernel gives it its addresses.
pub(super) fn bring_up_loopback() -> io::Result<()> {
    set_up(&control_socket()?, b"lo\0")
}

/// Gives the card its address, sets it up and sends everything else to the gateway.
pub(super) fn bring_up_card(addresses: Addresses) -> io::Result<()> {
    let socket = control_socket()?;
    let mut request = interface(CARD);
    request.ifr_ifru.ifru_addr = socket_address(addresses.address);
    // SAFETY: the descriptor is a socket and the kernel reads one `ifreq`.
    unsafe { set_interface_address(socket.as_raw_fd(), &raw const request) }?;
    request.ifr_ifru.ifru_netmask = socket_address(addresses.mask);
    // SAFETY: as above.
    unsafe { set_interface_mask(socket.as_raw_fd(), &raw const request) }?;
    set_up(&socket, CARD)?;

    // SAFETY: all zeroes is a valid `rtentry`.
    let mut route: libc::rtentry = unsafe { mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(addresses.gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the descriptor is a socket and the kernel reads one `rtentry`.
    unsafe { add_route(socket.as_raw_fd(), &raw const route) }?;
    Ok(())
}

/// Where the C library and others look for whom to ask for names (resolv.conf(5)).
pub(super) const RESOLVERS: &str = "/etc/resolv.conf";

/// Names are asked of the gateway, unless the image names somebody else.
pub(super) fn name_resolver(addresses: Addresses, file: &Path) -> io::Result<()> {
    match fs::read(file) {
        Ok(content) if !content.trim_ascii().is_empty() => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::write(file, format!("nameserver {}\n", addresses.gateway))
}

fn set_up(socket: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let mut request = interface(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the descriptor is a socket and the kernel reads one `ifreq`.
    unsafe { set_interface_flags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

fn control_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

fn interface(name: &[u8]) -> libc::ifreq {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request
}

/// An IPv4 address as the old calls take it: family, port, address (ip(7)).
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..].iter_mut().zip(address.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_read_from_the_command_line() {
        let line = "console=ttyS0 quiet skerry.net=10.0.2.15/24,10.0.2.1 panic=-1\n";
        let addresses = Addresses::in_arguments(line).unwrap().unwrap();
        assert_eq!(addresses.address, Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(addresses.mask, Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(addresses.gateway, Ipv4Addr::new(10, 0, 2, 1));
        assert_eq!(Addresses::in_arguments("quiet"), Ok(None));
    }

    #[test]
    fn the_gateway_is_asked_for_names_unless_the_image_says_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let addresses =
            Addresses::in_arguments("skerry.net=10.0.2.15/24,10.0.2.1").unwrap().unwrap();
        let after = |before: Option<&str>| {
            before.into_iter().for_each(|text| fs::write(&file, text).unwrap());
            name_resolver(addresses, &file).unwrap();
            fs::read_to_string(&file).unwrap()
        };
        assert_eq!(after(None), "nameserver 10.0.2.1\n");
        assert_eq!(after(Some("\n")), "nameserver 10.0.2.1\n");
        assert_eq!(after(Some("nameserver 192.0.2.1\n")), "nameserver 192.0.2.1\n");
    }

    #[test]
    fn what_is_no_address_is_reported_and_not_guessed() {
        for bad in [
            "",
            "10.0.2.15",
            "10.0.2.15/24",
            "10.0.2.15/0,10.0.2.1",
            "a/24,b",
            "1.2.3.4/99,1.2.3.1",
        ] {
            let line = format!("skerry.net={bad}");
            assert_eq!(Addresses::in_arguments(&line), Err(bad.to_owned()), "{line}");
        }
    }
}
