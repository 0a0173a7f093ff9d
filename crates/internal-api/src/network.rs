//! What a node gives its VMs of the network, and what it refuses them.

use std::{fmt, net::Ipv4Addr, time::Duration};

use skerry_model::HostName;

/// What a node gives its VMs of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeNetwork {
    /// The guests' way out, at the address that each of them sees.
    pub gateway: Ipv4Addr,
    /// Whether there is a way to the world; without one, egress rules open nothing.
    pub has_uplink: bool,
}

/// What a guest wanted of the network, and was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressRefusals {
    /// How many that concern names, since the VM was started, or since the server was.
    pub total: u64,
    /// The last of them, the newest at the end; a bounded number.
    pub last: Vec<EgressRefusal>,
    /// Packets to addresses and ports that are not permitted, since the VM was started.
    pub refused_packets: u64,
    /// Frames that are neither IPv4 nor ARP, or in which the guest says that it is somebody else, since
    /// the VM was started. Every guest with IPv6 sends some by itself.
    pub dropped_frames: u64,
}

/// Something that a guest wanted and was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRefusal {
    /// What it wanted.
    pub what: RefusedEgress,
    /// The name that it gave; `None` when it gave none that could be read.
    pub name: Option<HostName>,
    /// How often in a row.
    pub times: u64,
    /// How long ago it was, the last time.
    pub ago: Duration,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedEgress {
    /// To resolve the name.
    Resolution,
    /// To use an address that the name was said to have, and that is not of the internet.
    PrivateAnswer,
    /// To connect to this TCP port, to the name that it asked for there.
    Connection(u16),
}

impl fmt::Display for RefusedEgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolution => f.write_str("to resolve a name"),
            Self::PrivateAnswer => f.write_str("an address of a name that is not of the internet"),
            Self::Connection(port) => write!(f, "a connection by name to port {port}"),
        }
    }
}
