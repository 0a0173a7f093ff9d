//! What a VM's namespace and the hub consist of, and how they are joined.

use std::{fs, io, net::Ipv4Addr, os::fd::AsFd, os::fd::OwnedFd, path::Path};

use skerry_model::{NetworkPolicy, PrivateAddress};

use super::{
    links::Links,
    namespace::Namespace,
    rules::{self, Pinned, Terrain},
    tap,
};
use crate::Error;

/// Every guest's own address, and its prefix length: a clone needs no new one.
pub(crate) const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The length of the guest's network prefix.
pub(crate) const GUEST_PREFIX_BITS: u8 = 24;
/// Where every guest sends what is not for its own network.
pub(crate) const GUEST_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
/// Every guest's station address: it is alone on its network. A restored guest has it already.
pub(crate) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x0a, 0x02, 0x0f];

/// Every gateway's station address: a restored guest remembers it, and asks again only after a while
/// without answers.
pub(super) const GATEWAY_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x0a, 0x02, 0x01];

/// Interfaces of a VM's namespace.
pub(super) const TAP: &str = "tap0";
pub(super) const UPLINK: &str = "up0";
/// The hub's end of the cable to the world.
pub(super) const OUTSIDE: &str = "out0";
/// What the hub's ends are called, with a number behind.
pub(super) const HUB_PORT_PREFIX: &str = "vm";

/// The hub, made or found: forwards between VMs, and has another way out only when it gets one. Blocks.
pub(super) fn open_hub(name: &str, terrain: &Terrain) -> Result<Namespace, Error> {
    let hub = match Namespace::exists(name) {
        false => Namespace::make(name)?,
        true => match Namespace::open(name) {
            Ok(hub) if hub.enter(|| Ok(())).is_ok() => hub,
            // A name that was never given to a namespace: its maker died.
            Ok(_) | Err(_) => {
                Namespace::remove(name)?;
                Namespace::make(name)?
            }
        },
    };
    hub.enter(|| {
        // Rules first: from the moment it forwards, it forwards only this.
        rules::install_in_hub(terrain)?;
        no_ipv6()?;
        set("ipv4/conf/all/rp_filter", "1")?;
        set("ipv4/conf/default/rp_filter", "1")?;
        set("ipv4/conf/all/accept_redirects", "0")?;
        set("ipv4/conf/all/send_redirects", "0")?;
        set("ipv4/conf/default/send_redirects", "0")?;
        let mut links = Links::open();
        links.up("lo")?;
        links.add_address("lo", terrain.gateway, 32)?;
        set("ipv4/ip_forward", "1")
    })?;
    Ok(hub)
}

/// A VM's namespace, joined to the hub by `port` and otherwise nobody's yet: nothing passes. Blocks.
pub(super) fn make_vm_side(
    name: &str,
    port: &str,
    hub: &Namespace,
    terrain: &Terrain,
) -> Result<(Namespace, OwnedFd), Error> {
    let namespace = Namespace::make(name)?;
    let tap = namespace.enter(|| {
        no_ipv6()?;
        let tap = tap::make(TAP)?;
        rules::install_in_vm(terrain)?;
        let mut links = Links::open();
        links.make_pair(UPLINK, port, hub.as_fd())?;
        links.set_station(TAP, GATEWAY_MAC)?;
        links.add_address(TAP, GUEST_GATEWAY, GUEST_PREFIX_BITS)?;
        links.up(TAP)?;
        links.up(UPLINK)?;
        set("ipv4/conf/all/accept_redirects", "0")?;
        set("ipv4/conf/all/send_redirects", "0")?;
        set("ipv4/conf/default/send_redirects", "0")?;
        set("ipv4/ip_forward", "1")?;
        Ok(tap)
    })?;
    hub.enter(|| Links::open().up(port))?;
    Ok((namespace, tap))
}

/// Gives a VM's namespace its address and its policy; again changes nothing. Blocks.
pub(super) fn dress(
    namespace: &Namespace,
    port: &str,
    hub: &Namespace,
    terrain: &Terrain,
    address: PrivateAddress,
    policy: &NetworkPolicy,
    pinned: &Pinned,
) -> Result<(), Error> {
    let gateway = terrain.gateway;
    namespace.enter(|| {
        rules::apply(terrain, policy, pinned)?;
        let mut links = Links::open();
        links.add_address(UPLINK, address.0, 32)?;
        links.add_route_on_link(UPLINK, gateway)?;
        links.add_default_route(UPLINK, gateway)
    })?;
    hub.enter(|| Links::open().add_route_on_link(port, address.0))
}

/// Removes a VM's side, whatever there is of it. Blocks.
pub(super) fn remove_vm_side(name: &str, port: &str, hub: &Namespace) -> Result<(), Error> {
    // The cable goes now, with its other end, its addresses and its routes; the namespace may live on
    // for a moment in a process that is being taken apart.
    hub.enter(|| Links::open().remove(port))?;
    Namespace::remove(name)
}

pub(super) fn no_ipv6() -> io::Result<()> {
    for which in ["all", "default"] {
        match set(&format!("ipv6/conf/{which}/disable_ipv6"), "1") {
            // This kernel has none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Sets a parameter of the calling thread's namespace.
pub(super) fn set(parameter: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net").join(parameter);
    fs::write(&path, value)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
