//! Connections as the kernel tracks them: to where a guest meant to connect that was led elsewhere.

use std::{io, net::SocketAddrV4};

use netlink_bindings::conntrack::{IterableTupleAttrs, Nfgenmsg, Request};
use netlink_socket2::NetlinkSocket;
use nix::libc;

const TCP: u8 = libc::IPPROTO_TCP as u8;

/// To where a connection was opened, in the calling thread's namespace, that is answered by `by` to
/// `to` there. Blocks.
///
/// # Errors
/// `NotFound` when there is none.
pub(super) fn meant(by: SocketAddrV4, to: SocketAddrV4) -> io::Result<SocketAddrV4> {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = libc::NFPROTO_IPV4 as u8;
    let mut request = Request::new().op_get_do(&header);
    request
        .encode()
        .nested_tuple_reply()
        .nested_tuple_ip()
        .push_ip_v4_src(*by.ip())
        .push_ip_v4_dst(*to.ip())
        .end_nested()
        .nested_tuple_proto()
        .push_proto_num(TCP)
        .push_proto_src_port(by.port())
        .push_proto_dst_port(to.port())
        .end_nested()
        .end_nested();
    let mut socket = NetlinkSocket::new();
    let mut reply = socket.request(&request)?;
    let (_, tracked) = reply.recv_one().map_err(io::Error::from)?;
    let opened = tracked.get_tuple_orig().map_err(io::Error::other)?;
    destination(&opened)
}

fn destination(opened: &IterableTupleAttrs<'_>) -> io::Result<SocketAddrV4> {
    let address = opened.get_tuple_ip().and_then(|ip| ip.get_ip_v4_dst());
    let port = opened.get_tuple_proto().and_then(|protocol| protocol.get_proto_dst_port());
    Ok(SocketAddrV4::new(address.map_err(io::Error::other)?, port.map_err(io::Error::other)?))
}
