//! The network of the node's VMs: a namespace for each, made ahead, joined by a hub of our own; the
//! host's own namespace is never touched.
//!
//! Nothing passes but what a VM's [`NetworkPolicy`] says. What there is of a VM carries a number:
//! namespace `skerry-<tag>-<number>`, hub's interface `vm<number>`. Both are in the VM's ledger before
//! they are made, and both can be removed by name alone.

mod addresses;
mod filter;
mod links;
mod namespace;
mod prefix;
mod rules;
mod slots;
mod tap;
#[cfg(test)]
mod tests;
mod wiring;

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use skerry_model::{NetworkPolicy, PrivateAddress};

use self::{addresses::AddressBook, namespace::Namespace, slots::Slots};
use crate::{
    Error,
    error::{blocking, chain},
};

#[cfg_attr(not(test), expect(unused_imports, reason = "VMs are joined by the next change"))]
pub(crate) use self::{
    addresses::AddressLease,
    wiring::{GUEST_ADDRESS, GUEST_GATEWAY, GUEST_MAC, GUEST_PREFIX_BITS},
};
pub use prefix::AddressPrefix;

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
    pub fn tap(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.tap.as_fd()
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
    addresses: AddressBook,
    slots: Slots,
}

impl Network {
    /// Makes or finds the hub of the node that is known by `tag`, eight hexadecimal digits. `ahead`
    /// is how many places are kept ready. Blocks.
    ///
    /// # Errors
    /// When the host does not permit it: [`Network::unavailable`] says why beforehand.
    pub fn open(tag: &str, prefix: AddressPrefix, ahead: usize) -> Result<Self, Error> {
        let addresses = AddressBook::new(prefix);
        let hub = wiring::open_hub(&hub_name(tag), addresses.gateway())?;
        Ok(Self { tag: tag.to_owned(), hub, addresses, slots: Slots::new(ahead) })
    }

    /// Why VMs cannot have a network here, where they cannot. Makes nothing.
    pub fn unavailable() -> Option<String> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        missing_capability(&status)
            .map(|name| format!("the server runs without {name}"))
            .or_else(tap::unavailable)
    }

    /// The addresses of this node's workspaces.
    pub fn addresses(&self) -> &AddressBook {
        &self.addresses
    }

    /// How many places wait.
    pub fn ready(&self) -> usize {
        self.slots.ready()
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
        let gateway = self.addresses.gateway();
        wiring::dress(&namespace, &holding.port, &self.hub, gateway, address, policy)
    }

    /// Changes what a VM may do while it runs, all at the same moment. What is not permitted any more
    /// ends, also in connections that exist; the others go on. Blocks.
    pub fn apply(&self, holding: &NetworkHolding, policy: &NetworkPolicy) -> Result<(), Error> {
        Namespace::open(&holding.namespace)?.enter(|| rules::apply(policy))
    }

    /// Undoes [`Network::make`] and everything after it; that nothing is there is a success. Blocks.
    pub fn release(&self, holding: &NetworkHolding) -> Result<(), Error> {
        wiring::remove_vm_side(&holding.namespace, &holding.port, &self.hub)?;
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

    /// Keeps places ready until it is dropped.
    pub async fn keep_ready(self: Arc<Self>) {
        loop {
            let network = Arc::clone(&self);
            match blocking(move || network.refill_one()).await {
                Ok(true) => {}
                Ok(false) => self.slots.changed().await,
                Err(error) => {
                    // A VM makes its own place and says what is wrong.
                    tracing::error!(error = chain(&error), "no network place could be made ahead");
                    self.slots.changed().await;
                }
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
            Namespace::remove(self.hub.name())?;
        }
        Ok(())
    }

    fn make_place(&self, number: u32) -> Result<Place, Error> {
        let names = self.names(number);
        let (_, tap) = wiring::make_vm_side(&names.namespace, &names.port, &self.hub)?;
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
