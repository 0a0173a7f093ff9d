//! The network of a workspace.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How much of the internet is open while nothing is listed.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InternetScope {
    /// Nothing.
    Nothing,
    /// Port 80 of TCP.
    Http,
    /// Port 443 of TCP.
    Https,
    /// Both.
    Web,
    /// Every address and port.
    Everything,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Something outside that may be reached.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressEntry {
    /// A host name, `*.` and a host name for everything below it, an IPv4 address, an IPv4 network in
    /// CIDR notation, or `anywhere`.
    #[schema(example = "api.example.org")]
    pub to: String,
    /// Absent: both; to a name TCP alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// A port, or two with a hyphen between; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "443")]
    pub ports: Option<String>,
}

/// What of the world it may reach.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// What is open while `allow` is empty; means nothing with a list.
    pub internet: InternetScope,
    /// Whether the hosts of package managers are open, with a list and without; see the documentation
    /// for which.
    #[serde(default)]
    pub package_managers: bool,
    /// What is open; nothing else is, unless it is empty. At most 100.
    #[serde(default)]
    pub allow: Vec<EgressEntry>,
}

/// Ports that callers may reach.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenPorts {
    /// By which protocol; absent: TCP.
    pub transport: Option<Transport>,
    /// A port, or two with a hyphen between.
    #[schema(example = "8080")]
    pub ports: String,
}

/// Text that is not printed.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct SecretText(pub String);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// A proxy that makes connections for others.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyWish {
    /// A public IPv4 address.
    #[schema(example = "203.0.113.7")]
    pub address: String,
    /// Its port of TCP.
    pub port: u16,
    /// `http` (CONNECT) or `socks5`; absent: `http`.
    pub protocol: Option<String>,
    /// Who it is told to be asked by. Absent: as it was, when address, port and protocol are what they
    /// were and there is no password; otherwise nobody.
    pub username: Option<String>,
    /// What proves that. It is never shown.
    #[schema(value_type = Option<String>)]
    pub password: Option<SecretText>,
}

/// Through what it reaches the world.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OutboundWish {
    /// A proxy of its own. It is asked for a connection first.
    pub proxy: Option<ProxyWish>,
    /// The name of one of the server's; not both.
    pub server_proxy: Option<String>,
}

/// A proxy, without what it is told.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Proxy {
    /// Its address.
    pub address: String,
    /// Its port of TCP.
    pub port: u16,
    /// `http` (CONNECT) or `socks5`.
    pub protocol: String,
    /// Whether it is told who asks.
    pub has_credentials: bool,
}

/// Through what a workspace reaches the world. By the server's own way when both are absent.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Outbound {
    /// A proxy of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// One of the server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_proxy: Option<String>,
}

/// A proxy of the server's.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ServerProxy {
    /// What workspaces ask for.
    pub name: String,
    /// Under which address the world sees who goes through it; `null` when that is not known.
    pub exit_address: Option<String>,
}

/// The proxies of the server.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ServerProxies {
    /// In the order of their names.
    pub proxies: Vec<ServerProxy>,
}

/// What a workspace asks of the network.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkWish {
    /// Absent: what the server gives who does not ask.
    pub egress: Option<Egress>,
    /// Workspaces of the same account, by name, slug or id, that may connect to the open ports. At
    /// most 50.
    #[serde(default)]
    pub callers: Vec<String>,
    /// So may workspaces of the same account whose private address is in one of these IPv4 networks.
    /// At most 50.
    #[serde(default)]
    pub caller_networks: Vec<String>,
    /// What callers may reach. At most 100.
    #[serde(default)]
    pub open_ports: Vec<OpenPorts>,
    /// Absent: by the server's own way.
    pub outbound: Option<OutboundWish>,
}

/// Another workspace of the account.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Peer {
    /// Its identity.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its slug.
    pub slug: String,
    /// Its private address; `null` before its first start.
    pub private_address: Option<String>,
}

/// What was refused.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    /// To resolve a name.
    Resolution,
    /// The addresses of a name that are not of the internet.
    PrivateAnswer,
    /// A connection by name to a port where names are looked at.
    Connection,
}

/// Something that a workspace wanted of the network and was refused.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NetworkRefusal {
    /// What.
    pub what: Refused,
    /// The name that was given; `null` when there was none that could be read.
    pub name: Option<String>,
    /// Of a connection, its port.
    pub port: Option<u16>,
    /// How often in a row.
    pub times: u64,
    /// The last time.
    pub last_at: String,
}

/// What a workspace wanted of the network and was refused since its VM was started.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NetworkRefusals {
    /// How often that concerned names; counted anew when the server is restarted.
    pub total: u64,
    /// The last of these, the newest first; at most 64.
    pub last: Vec<NetworkRefusal>,
    /// Packets to addresses and ports that were not permitted.
    pub refused_packets: u64,
    /// Frames that were neither IPv4 nor ARP, or said to be from somebody else. A guest with IPv6 sends
    /// some by itself.
    pub dropped_frames: u64,
}

/// The network of a workspace.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Network {
    /// Whether workspaces of this server have a network. If not, nothing can be asked of it.
    pub available: bool,
    /// Whether this server has a way to the world.
    pub uplink: bool,
    /// Under which address other workspaces see it, from its first start until it is deleted.
    pub private_address: Option<String>,
    /// The way out as the guest sees it.
    pub gateway: Option<String>,
    /// What of the world it may reach.
    pub egress: Egress,
    /// Through what it reaches that.
    pub outbound: Outbound,
    /// Who is named as a caller and is there.
    pub callers: Vec<Peer>,
    /// Networks of callers.
    pub caller_networks: Vec<String>,
    /// What callers may reach.
    pub open_ports: Vec<OpenPorts>,
    /// Whose open ports it may reach itself.
    pub links: Vec<Peer>,
}
