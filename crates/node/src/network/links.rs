//! Interfaces, addresses and routes, by rtnetlink(7), in the calling thread's namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_bindings::{
    rt_addr::{self, Ifaddrmsg},
    rt_link::{self, Ifinfomsg},
    rt_route::{self, Rtmsg},
    traits::Pusher,
    utils::{finalize_nested_header, push_header, push_nested_header},
};
use netlink_socket2::NetlinkSocket;
use nix::libc;
use skerry_model::Ipv4Network;

/// An open rtnetlink socket of one namespace.
pub(super) struct Links {
    socket: NetlinkSocket,
}

impl Links {
    /// Of the calling thread's namespace.
    pub fn open() -> Self {
        Self { socket: NetlinkSocket::new() }
    }

    /// The index of an interface; `None` when there is none of this name.
    pub fn index(&mut self, name: &str) -> io::Result<Option<u32>> {
        let mut request = rt_link::Request::new().op_getlink_do(&Ifinfomsg::new());
        request.encode().push_ifname_bytes(name.as_bytes());
        let mut reply = self.socket.request(&request)?;
        match reply.recv_one() {
            Ok((header, _)) => Ok(Some(header.ifi_index.cast_unsigned())),
            Err(error) => match error.as_io_error().raw_os_error() {
                Some(libc::ENODEV) => Ok(None),
                Some(_) | None => Err(error.into()),
            },
        }
    }

    /// The index of an interface that has to be there.
    fn must_index(&mut self, name: &str) -> io::Result<u32> {
        self.index(name)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// The names of all interfaces.
    pub fn names(&mut self) -> io::Result<Vec<String>> {
        let request = rt_link::Request::new().op_getlink_dump(&Ifinfomsg::new());
        let mut reply = self.socket.request(&request)?;
        let mut names = Vec::new();
        while let Some(link) = reply.recv() {
            let (_, attributes) = link.map_err(io::Error::from)?;
            let name = attributes.get_ifname().map_err(io::Error::other)?;
            names.push(name.to_string_lossy().into_owned());
        }
        Ok(names)
    }

    /// A pair of Ethernet interfaces joined by a cable, one end here, the other in `peer_namespace`.
    pub fn make_pair(
        &mut self,
        name: &str,
        peer: &str,
        peer_namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        // Linux, include/uapi/linux/veth.h and if_link.h. The kernel's own description of rtnetlink,
        // from which the bindings are made, leaves the pair's data out.
        const IFLA_INFO_DATA: u16 = 2;
        const VETH_INFO_PEER: u16 = 1;
        let peer_namespace = peer_namespace.as_raw_fd().cast_unsigned();
        let mut request =
            rt_link::Request::new().set_create().set_excl().op_newlink_do(&Ifinfomsg::new());
        let mut link_info = request
            .encode()
            .push_ifname_bytes(name.as_bytes())
            .nested_linkinfo()
            .push_kind(c"veth");
        let bytes = link_info.as_vec_mut();
        let data = push_nested_header(bytes, IFLA_INFO_DATA);
        let other = push_nested_header(bytes, VETH_INFO_PEER);
        bytes.extend_from_slice(Ifinfomsg::new().as_slice());
        push_text(bytes, libc::IFLA_IFNAME, peer);
        push_header(bytes, libc::IFLA_NET_NS_FD, 4);
        bytes.extend_from_slice(&peer_namespace.to_ne_bytes());
        finalize_nested_header(bytes, other);
        finalize_nested_header(bytes, data);
        link_info.end_nested();
        self.socket.request(&request)?.recv_ack()?;
        Ok(())
    }

    /// Removes an interface, and the other end of its pair with it. That there is none is a success.
    pub fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut request = rt_link::Request::new().op_dellink_do(&Ifinfomsg::new());
        request.encode().push_ifname_bytes(name.as_bytes());
        match self.socket.request(&request)?.recv_ack() {
            Ok(()) => Ok(()),
            Err(error) => match error.as_io_error().raw_os_error() {
                Some(libc::ENODEV) => Ok(()),
                Some(_) | None => Err(error.into()),
            },
        }
    }

    /// The longest IP packet that an interface carries, in bytes.
    pub fn mtu(&mut self, name: &str) -> io::Result<u32> {
        let mut request = rt_link::Request::new().op_getlink_do(&Ifinfomsg::new());
        request.encode().push_ifname_bytes(name.as_bytes());
        let mut reply = self.socket.request(&request)?;
        let (_, attributes) = reply.recv_one().map_err(io::Error::from)?;
        attributes.get_mtu().map_err(io::Error::other)
    }

    /// Sets the longest IP packet that an interface carries.
    pub fn set_mtu(&mut self, name: &str, bytes: u32) -> io::Result<()> {
        let mut header = Ifinfomsg::new();
        header.ifi_index = self.must_index(name)?.cast_signed();
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        request.encode().push_mtu(bytes);
        self.socket.request(&request)?.recv_ack()?;
        Ok(())
    }

    /// Sets an interface in operation.
    pub fn up(&mut self, name: &str) -> io::Result<()> {
        let up = rt_link::IfinfoFlags::Up as u32;
        let mut header = Ifinfomsg::new();
        header.ifi_index = self.must_index(name)?.cast_signed();
        header.ifi_flags = up;
        header.ifi_change = up;
        let request = rt_link::Request::new().op_setlink_do(&header);
        self.socket.request(&request)?.recv_ack()?;
        Ok(())
    }

    /// Gives an interface an address; that it has it already is a success.
    pub fn add_address(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        prefix_bits: u8,
    ) -> io::Result<()> {
        let mut header = Ifaddrmsg::new();
        header.ifa_family = FAMILY;
        header.ifa_index = self.must_index(name)?;
        header.ifa_prefixlen = prefix_bits;
        let mut request = rt_addr::Request::new().set_create().set_replace().op_newaddr_do(&header);
        let (local, address) = (IpAddr::V4(address), IpAddr::V4(address));
        request.encode().push_local(local).push_address(address);
        self.socket.request(&request)?.recv_ack()?;
        Ok(())
    }

    /// Sends what is for `to` through an interface, to whoever answers there.
    pub fn add_route_on_link(&mut self, name: &str, to: Ipv4Addr) -> io::Result<()> {
        let index = self.must_index(name)?;
        let header = route_header(32, libc::RT_SCOPE_LINK);
        let mut request =
            rt_route::Request::new().set_create().set_replace().op_newroute_do(&header);
        request.encode().push_dst(IpAddr::V4(to)).push_oif(index);
        self.socket.request(&request)?.recv_ack()?;
        Ok(())
    }

    /// Sends everything else through an interface to `gateway`.
    pub fn add_default_route(&mut self, name: &str, gateway: Ipv4Addr) -> io::Result<()> {
        self.add_route(name, Ipv4Network::ALL, gateway)
    }

    /// Sends what is for a network through an interface to `gateway`.
    pub fn add_route(&mut self, name: &str, to: Ipv4Network, gateway: Ipv4Addr) -> io::Result<()> {
        let index = self.must_index(name)?;
        let header = route_header(to.prefix_bits(), libc::RT_SCOPE_UNIVERSE);
        let mut request =
            rt_route::Request::new().set_create().set_replace().op_newroute_do(&header);
        let mut route = request.encode();
        if to != Ipv4Network::ALL {
            route = route.push_dst(IpAddr::V4(to.first()));
        }
        route.push_gateway(IpAddr::V4(gateway)).push_oif(index);
        self.socket.request(&request)?.recv_ack()?;
        Ok(())
    }
}

const FAMILY: u8 = libc::AF_INET as u8;

fn route_header(prefix_bits: u8, scope: u8) -> Rtmsg {
    let mut header = Rtmsg::new();
    header.rtm_family = FAMILY;
    header.rtm_dst_len = prefix_bits;
    header.rtm_table = libc::RT_TABLE_MAIN;
    header.rtm_protocol = libc::RTPROT_STATIC;
    header.rtm_scope = scope;
    header.rtm_type = libc::RTN_UNICAST;
    header
}

fn push_text(bytes: &mut Vec<u8>, kind: u16, text: &str) {
    // Names are at most IFNAMSIZ bytes long.
    let len = u16::try_from(text.len() + 1).unwrap_or(u16::MAX);
    push_header(bytes, kind, len);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
}

impl Links {
    /// Gives an interface another station address.
    pub fn set_station(&mut self, name: &str, mac: [u8; 6]) -> io::Result<()> {
        let mut header = Ifinfomsg::new();
        header.ifi_index = self.must_index(name)?.cast_signed();
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        request.encode().push_address(&mac);
        self.socket.request(&request)?.recv_ack()?;
        Ok(())
    }
}
