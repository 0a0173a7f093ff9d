//! The network of the node's VMs: a namespace for each, made ahead, joined by a hub of our own. The
//! host's own namespace is touched only where it is the uplink ([`UplinkChoice`]).
//!
//! Nothing passes but what a VM's [`NetworkPolicy`] says. What there is of a VM carries a number:
//! namespace `skerry-<tag>-<number>`, hub's interface `vm<number>`. Both are in the VM's ledger before
//! they are made, and both can be removed by name alone.

mod addresses;
mod certificates;
mod filter;
mod forwarder;
mod guards;
mod inspector;
mod interception;
mod links;
mod names;
mod namespace;
mod outside;
pub mod places;
mod prefix;
mod proxy;
mod rules;
mod serving;
mod slots;
mod tap;
#[cfg(test)]
mod tests;
mod tracked;
mod uplink;
mod upstream;
mod wiring;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use skerry_internal_api::{EgressRefusals, InjectedRequest, NodeError};
use skerry_model::{NetworkPolicy, OutboundProxy, PrivateAddress, WorkspaceId};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use self::{
    addresses::{AddressBook, AddressLease},
    guards::Guards,
    namespace::Namespace,
    outside::Doors,
    rules::Terrain,
    slots::Slots,
    uplink::{Cable, Outer},
};
use crate::{
    Error,
    error::{blocking, chain},
};

pub(crate) use self::wiring::{GUEST_ADDRESS, GUEST_GATEWAY, GUEST_MAC, GUEST_PREFIX_BITS};
pub use prefix::AddressPrefix;
pub use uplink::{ProxyTarget, UplinkChoice, UplinkSettings};

/// What of the host a VM's place on the network is, as its ledger has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkHolding {
    /// The namespace.
    pub namespace: String,
    /// The hub's interface that leads to it.
    pub port: String,
}

/// A place for a VM: its namespace and the tap that its VMM reads and writes. Nobody's until it is
/// dressed; released by [`Network::release`], not by being dropped.
#[derive(Debug)]
pub(crate) struct Place {
    number: u32,
    tap: OwnedFd,
}

impl Place {
    /// The guest's frames.
    pub fn into_tap(self) -> OwnedFd {
        self.tap
    }
}

/// A number for a place that is made, or has to be.
#[derive(Debug)]
pub(crate) enum Reserved {
    /// It was made ahead.
    Made(Place),
    /// Only its names are known.
    Named(u32),
}

/// The network of one node.
#[derive(Debug)]
pub(crate) struct Network {
    tag: String,
    hub: Namespace,
    terrain: Terrain,
    cable: Cable,
    /// The namespace through which guests reach the world, if they do.
    outer: Option<Arc<Outer>>,
    guards: Arc<Guards>,
    /// To where proxies are asked for a connection when they are named.
    proxy_check_target: ProxyTarget,
    /// By whom hosts of vaults may be certified, beside those whom the system trusts.
    trusted_certificates: Option<PathBuf>,
    /// Requests that were given something.
    injected: broadcast::Sender<InjectedRequest>,
    /// What guests are served at the hub; taken by who serves it.
    service: Mutex<Option<Service>>,
    addresses: AddressBook,
    /// By the directories of the VMs that have them.
    assigned: Mutex<BTreeMap<PathBuf, AddressLease>>,
    slots: Slots,
}

/// What guests are served at the hub, and whom it is asked of.
#[derive(Debug)]
struct Service {
    servers: Vec<IpAddr>,
    doors: Doors,
}

/// A place that is somebody's, but not yet in a ledger: given back when dropped before it is.
#[derive(Debug)]
pub(crate) struct Reservation {
    network: Arc<Network>,
    holding: NetworkHolding,
    reserved: Option<Reserved>,
    in_ledger: bool,
}

impl Reservation {
    /// What the ledger is to say. From here on the place is released by it.
    pub fn enter_in_ledger(&mut self) -> NetworkHolding {
        self.in_ledger = true;
        self.holding.clone()
    }

    /// What has to be made, once; and its names.
    pub fn take(&mut self) -> (Option<Reserved>, NetworkHolding) {
        (self.reserved.take(), self.holding.clone())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved.take().filter(|_| !self.in_ledger) {
            self.network.slots.put_back(reserved);
        }
    }
}

/// Requests that were given something and that nobody has noted yet; the oldest go first.
const INJECTED_KEPT: usize = 1024;

/// In a VM's directory: its private address. It goes where the VM's disk goes.
const ADDRESS_FILE: &str = "private-address";

impl Network {
    /// Makes or finds the hub of the node that is known by `tag`, eight hexadecimal digits, and joins
    /// it to the world. `ahead` is how many places are kept ready. Blocks.
    ///
    /// # Errors
    /// When the host does not permit it ([`Network::unavailable`] says why beforehand), or when there
    /// is no such uplink.
    pub fn open(
        tag: &str,
        prefix: AddressPrefix,
        ahead: usize,
        uplink: &UplinkSettings,
        data_dir: &Path,
    ) -> Result<Self, Error> {
        let addresses = AddressBook::new(prefix);
        let terrain = Terrain {
            own: prefix.network(),
            gateway: addresses.gateway(),
            uplink: uplink.choice != UplinkChoice::None,
            private_networks: uplink.private_networks.clone(),
        };
        let hub = wiring::open_hub(&hub_name(tag), &terrain)?;
        let cable = Cable::of(tag, data_dir);
        let outer = cable.plug_in(&hub, &addresses, &uplink.choice)?.map(Arc::new);
        let service = match &outer {
            None => None,
            Some(_) => Some(Service {
                servers: names::servers_of(uplink)?,
                doors: hub.enter(|| Doors::open(terrain.gateway))?,
            }),
        };
        Ok(Self {
            tag: tag.to_owned(),
            hub,
            terrain,
            cable,
            outer,
            guards: Arc::default(),
            proxy_check_target: uplink.proxy_check_target.clone(),
            trusted_certificates: uplink.trusted_certificates.clone(),
            injected: broadcast::Sender::new(INJECTED_KEPT),
            service: Mutex::new(service),
            addresses,
            assigned: Mutex::default(),
            slots: Slots::new(ahead),
        })
    }

    /// Why VMs cannot have a network here, where they cannot. Makes nothing.
    pub fn unavailable() -> Option<String> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        missing_capability(&status)
            .map(|name| format!("the server runs without {name}"))
            .or_else(tap::unavailable)
    }

    /// The addresses of this node's workspaces.
    #[cfg(test)]
    pub fn addresses(&self) -> &AddressBook {
        &self.addresses
    }

    /// How many workspaces have an address.
    pub fn addresses_in_use(&self) -> usize {
        self.addresses.in_use()
    }

    /// How many places wait.
    pub fn ready(&self) -> usize {
        self.slots.ready()
    }

    /// [`Network::reserve`] for whoever may be dropped before a ledger names the place.
    pub fn reservation(self: &Arc<Self>) -> Result<Reservation, Error> {
        let reserved = self.reserve()?;
        let holding = self.holding(&reserved);
        let network = Arc::clone(self);
        Ok(Reservation { network, holding, reserved: Some(reserved), in_ledger: false })
    }

    /// The address of the VM in `dir`, which it gets if it has none. Blocks.
    pub fn address_in(&self, dir: &Path) -> Result<PrivateAddress, Error> {
        if let Some(address) = self.known_address(dir) {
            return Ok(address);
        }
        if let Some(address) = self.adopt_address(dir)? {
            return Ok(address);
        }
        let lease = self.addresses.lease()?;
        let address = lease.address();
        let content = format!("{address}\n");
        crate::layout::write_durably(&dir.join(ADDRESS_FILE), content.as_bytes())?;
        self.assigned().insert(dir.to_owned(), lease);
        Ok(address)
    }

    /// Notes the address that the VM in `dir` has; `None` when it has none, or one that cannot be its
    /// own any more. Blocks.
    pub fn adopt_address(&self, dir: &Path) -> Result<Option<PrivateAddress>, Error> {
        let file = dir.join(ADDRESS_FILE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::path("reading", &file)(error)),
        };
        let address = text.trim().parse::<Ipv4Addr>().ok().map(PrivateAddress);
        let Some(lease) = address.and_then(|address| self.addresses.claim(address)) else {
            tracing::warn!(file = %file.display(), "an address that cannot be kept");
            return Ok(None);
        };
        let address = lease.address();
        self.assigned().insert(dir.to_owned(), lease);
        Ok(Some(address))
    }

    /// The address of the VM in `dir`, as far as that is known without looking.
    pub fn known_address(&self, dir: &Path) -> Option<PrivateAddress> {
        self.assigned().get(dir).map(AddressLease::address)
    }

    /// A VM's directory has another name.
    pub fn moved(&self, from: &Path, to: &Path) {
        let mut assigned = self.assigned();
        if let Some(lease) = assigned.remove(from) {
            assigned.insert(to.to_owned(), lease);
        }
    }

    /// A VM's directory is gone, and with it its right to the address.
    pub fn forget(&self, dir: &Path) {
        self.assigned().remove(dir);
    }

    fn assigned(&self) -> MutexGuard<'_, BTreeMap<PathBuf, AddressLease>> {
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place: one that was made ahead, or a number for a new one. Its names can be written down
    /// ([`Network::holding`]) before [`Network::make`].
    pub fn reserve(&self) -> Result<Reserved, Error> {
        self.slots.take()
    }

    /// What a reserved place is, for the ledger.
    pub fn holding(&self, reserved: &Reserved) -> NetworkHolding {
        match reserved {
            Reserved::Made(place) => self.names(place.number),
            Reserved::Named(number) => self.names(*number),
        }
    }

    /// The place itself. What a failure leaves is named by the holding, and released like any other.
    /// Blocks.
    pub fn make(&self, reserved: Reserved) -> Result<Place, Error> {
        match reserved {
            Reserved::Made(place) => Ok(place),
            Reserved::Named(number) => self.make_place(number),
        }
    }

    /// Makes a place a workspace's: it has this address and may do what `policy` says, from now on.
    /// Again changes nothing, or the policy. Blocks.
    pub fn dress(
        &self,
        holding: &NetworkHolding,
        address: PrivateAddress,
        policy: &NetworkPolicy,
    ) -> Result<(), Error> {
        let namespace = Namespace::open(&holding.namespace)?;
        let (hub, terrain) = (&self.hub, &self.terrain);
        // What was known of its last owner is not about this one.
        self.guards.place(address, &holding.namespace).change(terrain, policy, |pinned| {
            wiring::dress(&namespace, &holding.port, hub, terrain, address, policy, pinned)
        })
    }

    /// Whether there is a way out to the world.
    pub fn has_uplink(&self) -> bool {
        self.outer.is_some()
    }

    /// Why a policy cannot be honoured here; `None` when it can.
    pub fn unsupported(&self, policy: &NetworkPolicy) -> Option<&'static str> {
        (!policy.egress.is_empty() && self.outer.is_none())
            .then_some("egress: the node has no uplink")
    }

    /// Whether a proxy makes connections, with these credentials.
    ///
    /// # Errors
    /// Why not, in words for whoever named it.
    pub async fn check_proxy(&self, proxy: &OutboundProxy) -> Result<(), NodeError> {
        if self.outer.is_none() {
            return Err(NodeError::Unsupported("egress: the node has no uplink".to_owned()));
        }
        let refused = |problem| NodeError::Invalid { field: "proxy", problem };
        proxy.check().map_err(|invalid| refused(invalid.problem))?;
        let hub = self.hub_to_dial().map_err(|error| {
            tracing::error!(error = chain(&error), "a proxy could not be asked");
            NodeError::Step { step: "check_proxy" }
        })?;
        let ProxyTarget { name, port } = self.proxy_check_target.clone();
        let asked = proxy::connect(&hub, proxy, &proxy::To::Name(name, port)).await;
        asked.map(drop).map_err(|error| refused(error.to_string()))
    }

    /// The hub, to connect from.
    fn hub_to_dial(&self) -> Result<Arc<Outer>, Error> {
        Ok(Arc::new(Outer::Named(Namespace::open(self.hub.name())?)))
    }

    /// What the VM with this address wanted and was refused; `None` when nothing is known of it. Blocks.
    pub fn egress_refusals(
        &self,
        address: PrivateAddress,
    ) -> Result<Option<EgressRefusals>, Error> {
        let Some(guard) = self.guards.at(address.0) else { return Ok(None) };
        let counted = Namespace::open(guard.namespace())?.enter(rules::counted)?;
        Ok(Some(EgressRefusals {
            refused_packets: counted.refused_packets,
            dropped_frames: counted.dropped_frames,
            ..guard.refusals()
        }))
    }

    /// Changes what a VM may do while it runs, all at the same moment. What is not permitted any more
    /// ends, also in connections that exist; the others go on. Blocks.
    pub fn apply(
        &self,
        owner: WorkspaceId,
        holding: &NetworkHolding,
        address: PrivateAddress,
        policy: &NetworkPolicy,
    ) -> Result<(), Error> {
        let namespace = Namespace::open(&holding.namespace)?;
        let terrain = &self.terrain;
        let guard = self.guards.of(address, &holding.namespace);
        guard.belongs_to(owner);
        guard.change(terrain, policy, |pinned| {
            namespace.enter(|| rules::apply(terrain, policy, pinned))
        })
    }

    /// Undoes [`Network::make`] and everything after it; that nothing is there is a success. Blocks.
    pub fn release(&self, holding: &NetworkHolding) -> Result<(), Error> {
        self.guards.dismiss(&holding.namespace);
        release(holding)?;
        if let Some(number) = self.number_of(&holding.namespace) {
            self.slots.give_back(number);
        }
        Ok(())
    }

    /// Notes the place of a VM that runs already, so that nobody gets its number.
    pub fn adopt(&self, holding: &NetworkHolding) {
        if let Some(number) = self.number_of(&holding.namespace) {
            self.slots.adopt(number);
        }
    }

    /// Removes every place that nobody has: what was made ahead by a server that died, and what it
    /// died making. Those of VMs that run were adopted before. Blocks.
    pub fn sweep(&self) -> Result<(), Error> {
        let known: BTreeSet<u32> = self.slots.numbers();
        let is_known = |number: Option<u32>| number.is_none_or(|number| known.contains(&number));
        let ports = self.hub.enter(|| links::Links::open().names())?;
        for port in ports.iter().filter(|port| !is_known(number_of_port(port))) {
            self.hub.enter(|| links::Links::open().remove(port))?;
            tracing::warn!(port, "stray interface of the hub removed");
        }
        let names = Namespace::names(&format!("{}-", hub_name(&self.tag)))?;
        for name in names.iter().filter(|name| !is_known(self.number_of(name))) {
            Namespace::remove(name)?;
            tracing::info!(name, "stray network namespace removed");
        }
        Ok(())
    }

    /// Makes one place if there are too few; whether there were. Blocks.
    pub fn refill_one(&self) -> Result<bool, Error> {
        let Some(number) = self.slots.to_make()? else { return Ok(false) };
        match self.make_place(number) {
            Ok(place) => {
                self.slots.put(place);
                Ok(true)
            }
            Err(error) => {
                let names = self.names(number);
                match wiring::remove_vm_side(&names.namespace, &names.port, &self.hub) {
                    Ok(()) => self.slots.not_made(number),
                    Err(left) => {
                        tracing::error!(error = chain(&left), "half a network place is left");
                        self.slots.left();
                    }
                }
                Err(error)
            }
        }
    }

    /// Keeps places ready until one of `ends` is cancelled. Not to be dropped before that: what is
    /// being made is made to its end.
    pub async fn keep_ready(self: Arc<Self>, ends: [CancellationToken; 2]) {
        let [one, other] = ends;
        while !one.is_cancelled() && !other.is_cancelled() {
            let network = Arc::clone(&self);
            match blocking(move || network.refill_one()).await {
                Ok(true) => continue,
                Ok(false) => {}
                // A VM makes its own place and says what is wrong.
                Err(error) => {
                    tracing::error!(error = chain(&error), "no network place could be made ahead");
                }
            }
            tokio::select! {
                () = one.cancelled() => {}
                () = other.cancelled() => {}
                () = self.slots.changed() => {}
            }
        }
    }

    /// Removes the places that wait and the hub. For the end of a node whose VMs have all ended;
    /// with VMs running, only the places. Blocks.
    pub fn close(&self) -> Result<(), Error> {
        for place in self.slots.drain() {
            self.release(&self.names(place.number))?;
        }
        if self.slots.numbers().is_empty() {
            self.cable.pull_out(&self.hub)?;
            Namespace::remove(self.hub.name())?;
        }
        Ok(())
    }

    fn make_place(&self, number: u32) -> Result<Place, Error> {
        let names = self.names(number);
        let (_, tap) =
            wiring::make_vm_side(&names.namespace, &names.port, &self.hub, &self.terrain)?;
        Ok(Place { number, tap })
    }

    fn names(&self, number: u32) -> NetworkHolding {
        NetworkHolding {
            namespace: format!("{}-{number}", hub_name(&self.tag)),
            port: format!("{}{number}", wiring::HUB_PORT_PREFIX),
        }
    }

    fn number_of(&self, namespace: &str) -> Option<u32> {
        let number = namespace.strip_prefix(&hub_name(&self.tag))?.strip_prefix('-')?;
        number.parse().ok()
    }
}

/// Removes what a node that has no network any more has of one: every place but those in `held`, and
/// the hub and its uplink when there are none. Blocks.
pub(crate) fn clear(tag: &str, data_dir: &Path, held: &[NetworkHolding]) -> Result<(), Error> {
    for namespace in Namespace::names(&format!("{}-", hub_name(tag)))? {
        let Some((_, number)) = namespace.rsplit_once('-') else { continue };
        let port = format!("{}{number}", wiring::HUB_PORT_PREFIX);
        let place = NetworkHolding { namespace, port };
        if !held.contains(&place) {
            tracing::info!(name = place.namespace, "a network place of before is removed");
            release(&place)?;
        }
    }
    match held {
        [] => {
            if Namespace::exists(&hub_name(tag)) {
                Namespace::remove(&hub_name(tag))?;
            }
            Cable::of(tag, data_dir).undo()
        }
        _ => Ok(()),
    }
}

/// Undoes everything that was done for a place; that nothing is there is a success. Blocks.
pub(crate) fn release(holding: &NetworkHolding) -> Result<(), Error> {
    let hub = holding.namespace.rsplit_once('-').map(|(hub, _)| hub);
    match hub.filter(|hub| Namespace::exists(hub)) {
        Some(hub) => {
            wiring::remove_vm_side(&holding.namespace, &holding.port, &Namespace::open(hub)?)
        }
        // The cable has gone with it.
        None => Namespace::remove(&holding.namespace),
    }
}

fn hub_name(tag: &str) -> String {
    format!("skerry-{tag}")
}

fn number_of_port(name: &str) -> Option<u32> {
    name.strip_prefix(wiring::HUB_PORT_PREFIX)?.parse().ok()
}

/// capabilities(7): namespaces are made with `CAP_SYS_ADMIN` (21), and filled with `CAP_NET_ADMIN`
/// (12).
fn missing_capability(status: &str) -> Option<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")]
        .into_iter()
        .find(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| name)
}
