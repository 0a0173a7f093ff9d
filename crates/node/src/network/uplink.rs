//! The way out: a cable from the hub into the namespace through which guests reach the world.
//!
//! ```text
//!   hub │ out0 ── sk-<tag> │ the host's namespace: forwarding and one translation to an interface
//!                            or a namespace with a name, whose owner decides what comes next
//! ```
//!
//! What is changed in the host's namespace is written down before, in a file of the data directory,
//! and undone when the hub ends, or by the next server.

use std::{
    fmt,
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use skerry_model::{HostName, Ipv4Network};

use super::{
    addresses::AddressBook,
    links::Links,
    namespace::{Namespace, in_new_thread},
    rules::{self, Forwarding},
    wiring::{self, OUTSIDE},
};
use crate::Error;

/// Through what guests reach the world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UplinkChoice {
    /// Nothing: there is no world.
    #[default]
    None,
    /// The interface of the host's default route.
    Auto,
    /// This interface of the host.
    Interface(String),
    /// The network namespace of this name (`ip netns`): its owner decides what comes next.
    Namespace(String),
}

impl FromStr for UplinkChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |name: &str, longest: usize| {
            (1..=longest).contains(&name.len())
                && !name.starts_with('.')
                && name.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b))
        };
        match (text, text.strip_prefix("netns:")) {
            ("none", _) => Ok(Self::None),
            ("auto", _) => Ok(Self::Auto),
            (_, Some(name)) if is_name(name, 200) => Ok(Self::Namespace(name.to_owned())),
            // As long as the kernel lets an interface's name be.
            (name, None) if is_name(name, 15) => Ok(Self::Interface(name.to_owned())),
            _ => {
                Err(format!("{text:?} is none of none, auto, an interface's name and netns:<name>"))
            }
        }
    }
}

impl fmt::Display for UplinkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Auto => f.write_str("auto"),
            Self::Interface(name) => f.write_str(name),
            Self::Namespace(name) => write!(f, "netns:{name}"),
        }
    }
}

/// The way out and what may be reached on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkSettings {
    /// Through what.
    pub choice: UplinkChoice,
    /// Private networks that the rules of workspaces may open; no others.
    pub private_networks: Vec<Ipv4Network>,
    /// Who is asked for the addresses of names; when empty, those of the uplink's `resolv.conf`.
    pub name_servers: Vec<IpAddr>,
    /// A PEM file with authorities that hosts of vaults may be certified by, beside those whom the system
    /// trusts.
    pub trusted_certificates: Option<PathBuf>,
    /// To where a proxy that somebody names is asked for a connection, before it is used.
    pub proxy_check_target: ProxyTarget,
}

/// To where a proxy is asked for a connection, so that it is seen to make some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyTarget {
    /// A name, which the proxy resolves.
    pub name: String,
    /// A port of TCP.
    pub port: u16,
}

impl Default for ProxyTarget {
    /// A host that is there for examples (RFC 2606), at the port that proxies open first of all.
    fn default() -> Self {
        Self { name: "example.com".to_owned(), port: 443 }
    }
}

impl FromStr for ProxyTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once(':');
        let target = parts.and_then(|(name, port)| {
            let port = port.parse().ok().filter(|port| *port != 0)?;
            Some(Self { name: HostName::parse(name).ok()?.as_str().to_owned(), port })
        });
        target.ok_or_else(|| format!("{text:?} is no name and port such as example.com:443"))
    }
}

/// The namespace at the far end of the cable.
#[derive(Debug)]
pub(super) enum Outer {
    /// The server's own.
    Own,
    /// Another.
    Named(Namespace),
}

impl Outer {
    /// Does `work` inside. Blocks.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, Error> {
        match self {
            Self::Own => in_new_thread(work).map_err(Error::io("in the host's network namespace")),
            Self::Named(namespace) => namespace.enter(work),
        }
    }
}

/// What was changed in the host's namespace.
#[derive(Debug, Serialize, Deserialize)]
struct Changed {
    interface: String,
    forwarding_before: Forwarding,
}

/// The cable of one node.
#[derive(Debug)]
pub(super) struct Cable {
    tag: String,
    /// Where [`Changed`] is written down.
    record: PathBuf,
}

impl Cable {
    pub fn of(tag: &str, data_dir: &Path) -> Self {
        Self { tag: tag.to_owned(), record: data_dir.join("uplink.json") }
    }

    /// Joins the hub to the world; `None` when there is to be none. What an earlier server left is
    /// undone before. Blocks.
    pub fn plug_in(
        &self,
        hub: &Namespace,
        addresses: &AddressBook,
        choice: &UplinkChoice,
    ) -> Result<Option<Outer>, Error> {
        hub.enter(|| Links::open().remove(OUTSIDE))?;
        self.undo()?;
        let config = |problem: String| Error::Config { setting: "uplink", problem };
        let (outer, interface) = match choice {
            UplinkChoice::None => return Ok(None),
            UplinkChoice::Namespace(name) => {
                let missing = |error| config(format!("{choice}: {}", crate::error::chain(&error)));
                (Outer::Named(Namespace::open(name).map_err(missing)?), None)
            }
            UplinkChoice::Auto => {
                let found = default_interface()?;
                let none = || config("auto: the host has no default route".to_owned());
                (Outer::Own, Some(found.ok_or_else(none)?))
            }
            UplinkChoice::Interface(name) => (Outer::Own, Some(name.clone())),
        };
        // Never more than a guest's own interface carries.
        let mut mtu = 1500;
        if let Some(interface) = &interface {
            let missing = |error| config(format!("the interface {interface}: {error}"));
            let of_interface =
                outer.enter(|| Ok(Links::open().mtu(interface)))?.map_err(missing)?;
            mtu = mtu.min(of_interface);
            self.open_host(addresses, interface)?;
        }
        self.lay(hub, &outer, addresses, mtu)?;
        Ok(Some(outer))
    }

    /// Undoes all of it; that nothing is there is a success. Blocks.
    pub fn pull_out(&self, hub: &Namespace) -> Result<(), Error> {
        hub.enter(|| Links::open().remove(OUTSIDE))?;
        self.undo()
    }

    /// The host's namespace lets pass what the hub sends. Nothing has an address yet.
    fn open_host(&self, addresses: &AddressBook, interface: &str) -> Result<(), Error> {
        let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
        let now = fs::read_to_string(&path).map_err(Error::path("reading", Path::new(&path)))?;
        let before = if now.trim() == "1" { Forwarding::On } else { Forwarding::Off };
        let changed = Changed { interface: interface.to_owned(), forwarding_before: before };
        let text = serde_json::to_vec(&changed)
            .map_err(|error| Error::io("writing the uplink's record")(error.into()))?;
        crate::layout::write_durably(&self.record, &text)?;
        let own = addresses.prefix().network();
        Outer::Own.enter(|| {
            rules::install_in_host(&self.table(), own, &self.far_end(), interface, before)?;
            wiring::set(&forwarding_of(interface), "1")
        })
    }

    fn lay(
        &self,
        hub: &Namespace,
        outer: &Outer,
        addresses: &AddressBook,
        mtu: u32,
    ) -> Result<(), Error> {
        let (far_end, gateway, beyond) = (self.far_end(), addresses.gateway(), addresses.beyond());
        let own_path = Path::new("/proc/thread-self/ns/net");
        let own;
        let far = match outer {
            Outer::Own => {
                own = File::open(own_path).map_err(Error::path("opening", own_path))?;
                own.as_fd()
            }
            Outer::Named(namespace) => namespace.as_fd(),
        };
        hub.enter(|| {
            let mut links = Links::open();
            links.make_pair(OUTSIDE, &far_end, far)?;
            links.set_mtu(OUTSIDE, mtu)
        })?;
        outer.enter(|| {
            let mut links = Links::open();
            no_ipv6_on(&far_end)?;
            links.set_mtu(&far_end, mtu)?;
            links.add_address(&far_end, beyond, 32)?;
            links.up(&far_end)?;
            links.add_route_on_link(&far_end, gateway)?;
            links.add_route(&far_end, addresses.prefix().network(), gateway)?;
            wiring::set(&forwarding_of(&far_end), "1")
        })?;
        hub.enter(|| {
            let mut links = Links::open();
            links.up(OUTSIDE)?;
            links.add_route_on_link(OUTSIDE, beyond)?;
            links.add_default_route(OUTSIDE, beyond)
        })
    }

    /// Undoes what was done to the host, as far as something was. Blocks.
    pub fn undo(&self) -> Result<(), Error> {
        let text = match fs::read(&self.record) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::path("reading", &self.record)(error)),
        };
        let changed: Changed = serde_json::from_slice(&text)
            .map_err(|error| Error::path("reading", &self.record)(error.into()))?;
        Outer::Own.enter(|| {
            Links::open().remove(&self.far_end())?;
            // It forwards nothing else until the host is as it was.
            let restored = match changed.forwarding_before {
                Forwarding::On => Ok(()),
                Forwarding::Off => wiring::set(&forwarding_of(&changed.interface), "0"),
            };
            match restored {
                // It went away in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
            rules::remove_from_host(&self.table())
        })?;
        crate::layout::remove_file(&self.record)
    }

    fn far_end(&self) -> String {
        format!("sk-{}", self.tag)
    }

    fn table(&self) -> String {
        format!("skerry-{}", self.tag)
    }
}

fn forwarding_of(interface: &str) -> String {
    format!("ipv4/conf/{interface}/forwarding")
}

fn no_ipv6_on(interface: &str) -> io::Result<()> {
    match wiring::set(&format!("ipv6/conf/{interface}/disable_ipv6"), "1") {
        // This kernel has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The interface of the default route with the lowest metric, by proc_net_route(5). Blocks.
fn default_interface() -> Result<Option<String>, Error> {
    let path = Path::new("/proc/thread-self/net/route");
    let text = fs::read_to_string(path).map_err(Error::path("reading", path))?;
    Ok(default_interface_in(&text))
}

fn default_interface_in(text: &str) -> Option<String> {
    let routes = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [interface, to, _, flags, _, _, metric, mask, ..] = fields[..] else { return None };
        // Linux, include/uapi/linux/route.h: RTF_UP, RTF_REJECT.
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let usable = flags & 0x1 != 0 && flags & 0x200 == 0;
        let everything = Ipv4Addr::UNSPECIFIED.to_bits();
        let is_default =
            [to, mask].iter().all(|hex| u32::from_str_radix(hex, 16) == Ok(everything));
        (usable && is_default).then(|| Some((metric.parse::<u32>().ok()?, interface)))?
    });
    routes.min().map(|(_, interface)| interface.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uplink_reads_as_it_is_written_and_nothing_else_is_one() {
        for good in ["none", "auto", "eth0", "enp3s0.7", "netns:internet"] {
            assert_eq!(good.parse::<UplinkChoice>().unwrap().to_string(), good);
        }
        for bad in ["", "netns:", "netns:../x", "a/b", "..", "an-interface-of-16", "wlan 0", "x:1"]
        {
            assert!(bad.parse::<UplinkChoice>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_default_route_is_the_one_of_the_lowest_metric_that_leads_somewhere() {
        let heading =
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        let routes = "wlan0\t00000000\t0102A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                      eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                      lo\t00000000\t00000000\t0203\t0\t0\t0\t00000000\t0\t0\t0\n\
                      eth1\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let found = default_interface_in(&format!("{heading}{routes}"));
        assert_eq!(found.as_deref(), Some("eth0"));
        assert_eq!(default_interface_in(heading), None);
    }
}
