//! Places on a network by themselves, without VMs: for who measures what they cost.

use std::{path::Path, sync::Arc};

use skerry_model::{Destination, EgressRule, NetworkPolicy};

use super::{
    AddressPrefix, Network, NetworkHolding, Place, UplinkSettings, addresses::AddressLease,
};
use crate::Error;

/// A network of its own without a way to the world. Everything in it blocks, and is removed when it is
/// closed.
#[derive(Debug)]
pub struct Places {
    network: Arc<Network>,
}

/// A place that somebody has.
#[derive(Debug)]
pub struct TakenPlace {
    holding: NetworkHolding,
    /// The guest's end, which nobody reads.
    _tap: Place,
}

/// The address of a place.
#[derive(Debug)]
pub struct PlaceAddress {
    _lease: AddressLease,
}

impl Places {
    /// A network that is known by `tag`, eight hexadecimal digits, of which one place can be made ahead.
    ///
    /// # Errors
    /// When the host does not permit it.
    pub fn open(tag: &str, prefix: AddressPrefix, data_dir: &Path) -> Result<Self, Error> {
        if let Some(problem) = Network::unavailable() {
            return Err(Error::Config { setting: "network", problem });
        }
        let network = Network::open(tag, prefix, 1, &UplinkSettings::default(), data_dir)?;
        Ok(Self { network: Arc::new(network) })
    }

    /// Makes one that waits, unless one does.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_ahead(&self) -> Result<(), Error> {
        self.network.refill_one().map(drop)
    }

    /// The one that waits; else a new one is made: its namespace, interfaces and rules.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn take(&self) -> Result<TakenPlace, Error> {
        let reserved = self.network.reserve()?;
        let holding = self.network.holding(&reserved);
        Ok(TakenPlace { holding, _tap: self.network.make(reserved)? })
    }

    /// Makes it a workspace's, which may reach the whole internet: gives it an address and a policy.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn dress(&self, place: &TakenPlace) -> Result<PlaceAddress, Error> {
        let lease = self.network.addresses.lease()?;
        let policy = NetworkPolicy {
            egress: [EgressRule::all(Destination::Anywhere)].into(),
            ..NetworkPolicy::default()
        };
        self.network.dress(&place.holding, lease.address(), &policy)?;
        Ok(PlaceAddress { _lease: lease })
    }

    /// Removes it.
    ///
    /// # Errors
    /// When something of it is left.
    pub fn release(&self, place: TakenPlace) -> Result<(), Error> {
        let TakenPlace { holding, _tap } = place;
        self.network.release(&holding)
    }

    /// Removes the network.
    ///
    /// # Errors
    /// When something of it is left.
    pub fn close(self) -> Result<(), Error> {
        self.network.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Namespace;

    #[test]
    fn places_come_with_and_without_being_made_ahead_and_nothing_is_left() {
        let data_dir = tempfile::tempdir().unwrap();
        let tag = format!("{:08x}", 0xfeed_0000 | (std::process::id() & 0xffff));
        let places = Places::open(&tag, AddressPrefix::DEFAULT, data_dir.path()).unwrap();
        for ahead in [true, false] {
            if ahead {
                places.make_ahead().unwrap();
            }
            assert_eq!(places.network.ready(), usize::from(ahead));
            let place = places.take().unwrap();
            assert!(Namespace::exists(&place.holding.namespace));
            let address = places.dress(&place).unwrap();
            places.release(place).unwrap();
            drop(address);
        }
        places.close().unwrap();
        assert_eq!(Namespace::names(&format!("skerry-{tag}")).unwrap(), [""; 0]);
    }
}
