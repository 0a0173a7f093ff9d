//! Which private address belongs to which workspace.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use skerry_model::PrivateAddress;

use crate::{AddressPrefix, Error};

/// The addresses of the node. Clones are the same book.
#[derive(Clone, Debug)]
pub(crate) struct AddressBook {
    prefix: AddressPrefix,
    leased: Arc<Mutex<Leased>>,
}

#[derive(Debug, Default)]
struct Leased {
    offsets: BTreeSet<u32>,
    /// Where the next search begins: an address that was just given back is used last, so that who
    /// still sends to its old owner does not reach another.
    next: u32,
}

/// An address in use; given back when dropped.
#[derive(Debug)]
pub(crate) struct AddressLease {
    address: PrivateAddress,
    offset: u32,
    leased: Arc<Mutex<Leased>>,
}

impl AddressBook {
    pub fn new(prefix: AddressPrefix) -> Self {
        Self { prefix, leased: Arc::default() }
    }

    /// The node's own, at which every workspace's traffic arrives.
    pub fn gateway(&self) -> Ipv4Addr {
        self.prefix.at(1)
    }

    /// The end of the uplink that is not ours: the last of the prefix, which is nobody's.
    pub fn beyond(&self) -> Ipv4Addr {
        self.prefix.at(self.prefix.size() - 1)
    }

    /// Where all of them are from.
    pub fn prefix(&self) -> AddressPrefix {
        self.prefix
    }

    /// One that is nobody's.
    pub fn lease(&self) -> Result<AddressLease, Error> {
        let mut leased = self.leased.lock().unwrap_or_else(PoisonError::into_inner);
        // The first is the prefix's own, the second the gateway, the last the uplink's other end.
        let offsets = 2..self.prefix.size() - 1;
        let from = leased.next.clamp(offsets.start, offsets.end);
        let found = (from..offsets.end)
            .chain(offsets.start..from)
            .find(|offset| !leased.offsets.contains(offset));
        let offset = found.ok_or_else(|| {
            Error::NoCapacity(format!("every address of {} is in use", self.prefix))
        })?;
        leased.offsets.insert(offset);
        leased.next = offset + 1;
        Ok(self.lease_of(offset))
    }

    /// The one that a workspace has; `None` when it is another's or not of our prefix, which only a
    /// changed configuration or a copied directory can cause.
    pub fn claim(&self, address: PrivateAddress) -> Option<AddressLease> {
        let offset = self.prefix.offset_of(address.0)?;
        let mut leased = self.leased.lock().unwrap_or_else(PoisonError::into_inner);
        (offset >= 2 && offset < self.prefix.size() - 1 && leased.offsets.insert(offset))
            .then(|| self.lease_of(offset))
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner).offsets.len()
    }

    fn lease_of(&self, offset: u32) -> AddressLease {
        let address = PrivateAddress(self.prefix.at(offset));
        AddressLease { address, offset, leased: Arc::clone(&self.leased) }
    }
}

impl AddressLease {
    pub fn address(&self) -> PrivateAddress {
        self.address
    }
}

impl Drop for AddressLease {
    fn drop(&mut self) {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner).offsets.remove(&self.offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book() -> AddressBook {
        AddressBook::new("10.201.0.0/29".parse().unwrap())
    }

    #[test]
    fn no_two_leases_share_an_address_and_the_ends_of_the_prefix_are_nobodys() {
        let book = book();
        let leases: Vec<AddressLease> = (0..5).map(|_| book.lease().unwrap()).collect();
        let last_octets: Vec<u8> =
            leases.iter().map(|lease| lease.address().0.octets()[3]).collect();
        assert_eq!(last_octets, [2, 3, 4, 5, 6]);
        assert!(matches!(book.lease(), Err(Error::NoCapacity(_))));
        assert_eq!(book.gateway(), Ipv4Addr::new(10, 201, 0, 1));
    }

    #[test]
    fn an_address_that_was_given_back_is_used_last() {
        let book = book();
        drop(book.lease().unwrap());
        assert_eq!(book.lease().unwrap().address().0.octets()[3], 3);
        assert_eq!(book.in_use(), 0);
    }

    #[test]
    fn a_workspace_keeps_its_address_and_nobody_else_gets_it() {
        let book = book();
        let at = |last| PrivateAddress(Ipv4Addr::new(10, 201, 0, last));
        let kept = book.claim(at(2)).unwrap();
        assert!(book.claim(at(2)).is_none());
        assert_ne!(book.lease().unwrap().address(), kept.address());
        for others in [at(0), at(1), at(7), at(8), PrivateAddress(Ipv4Addr::LOCALHOST)] {
            assert!(book.claim(others).is_none(), "{others}");
        }
    }
}
