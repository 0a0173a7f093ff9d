//! The VM's place on the network, if the node has one.

use skerry_model::NetworkPolicy;
use skerry_vmm::{Cable, Tap};

use super::BringUp;
use crate::{
    error::{Error, blocking},
    network::{
        GUEST_ADDRESS, GUEST_GATEWAY, GUEST_MAC, GUEST_PREFIX_BITS, NetworkHolding, Reservation,
    },
};

/// A place that is being taken.
pub(super) struct Joining {
    reservation: Reservation,
    /// Once it is made.
    tap: Option<Tap>,
}

impl BringUp<'_> {
    pub(super) fn reserve_place(&mut self) -> Result<(), Error> {
        if let Some(network) = &self.host.network
            && self.place.is_none()
            // One of the pool has its own.
            && !self.source()?.brings_uid()
        {
            self.place = Some(Joining { reservation: network.reservation()?, tap: None });
        }
        Ok(())
    }

    /// What the ledger is to name.
    pub(super) fn place_to_hold(&mut self) -> Option<NetworkHolding> {
        self.place.as_mut().map(|place| place.reservation.enter_in_ledger())
    }

    /// Makes the place and gives it an address and the policy that permits nothing: what is more is
    /// said when the VM runs.
    pub(super) async fn join_network(&mut self) -> Result<(), Error> {
        let (Some(network), Some(place)) = (self.host.network.clone(), &mut self.place) else {
            return Ok(());
        };
        let (reserved, holding) = place.reservation.take();
        let dir = self.paths.dir.clone();
        let made = blocking(move || {
            let made = reserved.map(|reserved| network.make(reserved)).transpose()?;
            let address = network.address_in(&dir)?;
            network.dress(&holding, address, &NetworkPolicy::default())?;
            Ok(made)
        });
        if let Some(made) = made.await? {
            place.tap = Some(Tap::new(made.into_tap()));
        }
        Ok(())
    }

    /// What the machine's card is plugged into, and its address there.
    pub(super) fn card(&self, own_mac: [u8; 6]) -> Result<([u8; 6], Cable), Error> {
        match (&self.host.network, &self.place) {
            (None, _) => Ok((own_mac, Cable::Loose)),
            (Some(_), Some(Joining { tap: Some(tap), .. })) => {
                Ok((GUEST_MAC, Cable::Tap { tap: Some(tap.clone()) }))
            }
            (Some(_), _) => Err(Error::StepMissing("network")),
        }
    }

    /// What the guest's kernel is told: a clone of it has been told with its template.
    pub(super) fn network_arguments(&self) -> Vec<String> {
        let networked = self.host.network.iter();
        networked
            .map(|_| format!("skerry.net={GUEST_ADDRESS}/{GUEST_PREFIX_BITS},{GUEST_GATEWAY}"))
            .collect()
    }
}
