//! How many may stand at the door.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};

use super::neighbourhood;

/// Connections in all.
const CONNECTIONS: usize = 1024;
/// Connections nobody has logged in on, in all.
const STRANGERS: usize = 128;
/// The same of one address (of one /64 of IPv6).
const STRANGERS_OF_ONE: u32 = 32;
/// Refusals of one address within [`MEMORY`]; after that its connections are not answered.
const REFUSALS_OF_ONE: u32 = 100;
const MEMORY: Duration = Duration::from_secs(60);
/// Addresses remembered. Beyond that those with nobody at the door are forgotten.
const ADDRESSES: usize = 4096;

/// Counts who is there.
pub(super) struct Guard {
    connections: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    addresses: Arc<Mutex<HashMap<IpAddr, Neighbour>>>,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            addresses: Arc::default(),
        }
    }
}

struct Neighbour {
    strangers: u32,
    refusals: u32,
    counted_from: Instant,
}

fn locked(
    addresses: &Mutex<HashMap<IpAddr, Neighbour>>,
) -> MutexGuard<'_, HashMap<IpAddr, Neighbour>> {
    // The guarded sections cannot panic halfway through a change.
    addresses.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guard {
    /// Lets a connection in, unless there are too many.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Visit> {
        let connection = Arc::clone(&self.connections).try_acquire_owned().ok()?;
        let stranger = Arc::clone(&self.strangers).try_acquire_owned().ok()?;
        let address = neighbourhood(address);
        let now = Instant::now();
        let mut addresses = locked(&self.addresses);
        if addresses.len() >= ADDRESSES {
            addresses.retain(|_, seen| {
                seen.strangers > 0 || now.duration_since(seen.counted_from) < MEMORY
            });
        }
        if addresses.len() >= ADDRESSES && !addresses.contains_key(&address) {
            return None;
        }
        let fresh = Neighbour { strangers: 0, refusals: 0, counted_from: now };
        let seen = addresses.entry(address).or_insert(fresh);
        if now.duration_since(seen.counted_from) >= MEMORY {
            (seen.refusals, seen.counted_from) = (0, now);
        }
        if seen.strangers >= STRANGERS_OF_ONE || seen.refusals >= REFUSALS_OF_ONE {
            return None;
        }
        seen.strangers += 1;
        drop(addresses);
        Some(Visit {
            address,
            addresses: Arc::clone(&self.addresses),
            stranger: Mutex::new(Some(stranger)),
            recognised: watch::Sender::new(false),
            _connection: connection,
        })
    }
}

/// A connection that was let in.
pub(super) struct Visit {
    address: IpAddr,
    addresses: Arc<Mutex<HashMap<IpAddr, Neighbour>>>,
    stranger: Mutex<Option<OwnedSemaphorePermit>>,
    recognised: watch::Sender<bool>,
    _connection: OwnedSemaphorePermit,
}

impl Visit {
    /// Somebody has logged in.
    pub(super) fn recognise(&self) {
        self.no_stranger();
        self.recognised.send_replace(true);
    }

    /// Completes once somebody has logged in.
    pub(super) async fn recognised(&self) {
        // The sender is ours: there is no error.
        let _ = self.recognised.subscribe().wait_for(|recognised| *recognised).await;
    }

    /// Somebody has tried and was refused.
    pub(super) fn refuse(&self) {
        if let Some(seen) = locked(&self.addresses).get_mut(&self.address) {
            seen.refusals = seen.refusals.saturating_add(1);
        }
    }

    fn no_stranger(&self) {
        let permit = self.stranger.lock().unwrap_or_else(PoisonError::into_inner).take();
        if permit.is_some()
            && let Some(seen) = locked(&self.addresses).get_mut(&self.address)
        {
            seen.strangers = seen.strangers.saturating_sub(1);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.no_stranger();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn v6(last: u16, network: u16) -> IpAddr {
        IpAddr::V6([0x2001, 0xdb8, 0, network, 0, 0, 0, last].into())
    }

    #[test]
    fn one_address_has_a_bounded_number_of_strangers_at_the_door() {
        let guard = Guard::default();
        let mut visits: Vec<Visit> =
            (0..STRANGERS_OF_ONE).map(|_| guard.admit(HERE).unwrap()).collect();
        assert!(guard.admit(HERE).is_none());
        // Another one gets in, and so does the next after somebody has logged in or left.
        assert!(guard.admit(v6(1, 1)).is_some());
        visits[0].recognise();
        visits.push(guard.admit(HERE).unwrap());
        assert!(guard.admit(HERE).is_none());
        visits.truncate(3);
        assert!(guard.admit(HERE).is_some());
    }

    #[test]
    fn the_addresses_of_one_site_are_one() {
        let guard = Guard::default();
        let visits: Vec<_> =
            (0..STRANGERS_OF_ONE).map(|n| guard.admit(v6(n as u16, 1)).unwrap()).collect();
        assert!(guard.admit(v6(999, 1)).is_none());
        assert!(guard.admit(v6(999, 2)).is_some());
        drop(visits);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_refused_too_often_is_not_answered_for_a_while() {
        let guard = Guard::default();
        let visit = guard.admit(HERE).unwrap();
        for _ in 0..REFUSALS_OF_ONE {
            visit.refuse();
        }
        assert!(guard.admit(HERE).is_none());
        tokio::time::advance(MEMORY).await;
        assert!(guard.admit(HERE).is_some());
    }
}
