//! What is known of each VM that runs: who may ask for which names, which addresses those names have
//! turned out to have, and what was refused.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use skerry_internal_api::{EgressRefusal, EgressRefusals, Injections, RefusedEgress};
use skerry_model::{
    HostName, NetworkPolicy, OutboundProxy, PrivateAddress, Transport, WorkspaceId,
    network::Reachable,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    namespace::Namespace,
    rules::{self, Pinned, Terrain},
};
use crate::Error;

/// How long an address may be connected to at the least and at the most, whatever its record says:
/// a resolver in the guest keeps what is shorter, and names move.
const SHORTEST_PIN: Duration = Duration::from_secs(60);
const LONGEST_PIN: Duration = Duration::from_secs(3600);
/// The most addresses that are remembered for one VM; what ends first goes first.
const MAX_PINS: usize = 1024;
/// The most refusals that are remembered for one VM.
const MAX_REFUSALS: usize = 64;
/// Lines of the log about refusals of one VM within a while; the others are counted only.
const LOGGED_AT_MOST: u32 = 20;
const LOGGED_WITHIN: Duration = Duration::from_secs(60);
/// Connections of one VM that are inspected at a time.
const MAX_INSPECTED: usize = 256;
/// Connections of one VM that go through its proxy at a time, besides those.
const MAX_PROXIED: usize = 512;

/// Every VM's guard.
#[derive(Debug, Default)]
pub(super) struct Guards {
    by_address: Mutex<BTreeMap<Ipv4Addr, Arc<Guard>>>,
}

/// One VM's.
#[derive(Debug)]
pub(super) struct Guard {
    namespace: String,
    /// Whose VM it is, once that is known: a VM waits in a pool for somebody.
    owner: OnceLock<WorkspaceId>,
    policy: watch::Sender<Arc<NetworkPolicy>>,
    injections: watch::Sender<Arc<Injections>>,
    /// Held while the kernel is told: what it is told last is what holds.
    pins: Mutex<Pins>,
    refusals: Mutex<Refusals>,
    pub inspected: Arc<Semaphore>,
    pub proxied: Arc<Semaphore>,
}

/// Until when which name's address may be connected to.
type Pins = BTreeMap<(HostName, Ipv4Addr), Instant>;

#[derive(Debug, Default)]
struct Refusals {
    total: u64,
    last: VecDeque<Refused>,
    /// Since when how many lines were logged.
    logged: Option<(Instant, u32)>,
}

#[derive(Debug)]
struct Refused {
    what: RefusedEgress,
    name: Option<HostName>,
    times: u64,
    at: Instant,
}

impl Refusals {
    fn may_log(&mut self, now: Instant) -> bool {
        let since = self.logged.filter(|(since, _)| now.duration_since(*since) < LOGGED_WITHIN);
        let (since, lines) = since.unwrap_or((now, 0));
        self.logged = Some((since, lines.saturating_add(1)));
        lines < LOGGED_AT_MOST
    }
}

impl Guards {
    /// The next connection of a guest at a door of the hub; `None` at the end. Whoever is no guest is let go.
    pub async fn accepted(
        &self,
        listener: &TcpListener,
        end: &CancellationToken,
    ) -> Option<(TcpStream, SocketAddrV4, Arc<Guard>)> {
        loop {
            let accepted = tokio::select! {
                () = end.cancelled() => return None,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, SocketAddr::V4(from))) => {
                    let Some(guard) = self.at(*from.ip()) else { continue };
                    return Some((stream, from, guard));
                }
                Ok((_, SocketAddr::V6(_))) => {}
                Err(error) => {
                    // Too many open files, mostly: the next attempt may find some.
                    tracing::warn!(%error, "a guest's connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// The guard of a VM, for packets that come from its address.
    pub fn at(&self, address: Ipv4Addr) -> Option<Arc<Guard>> {
        self.lock().get(&address).cloned()
    }

    /// A new one: what was known of the address was about somebody else.
    pub fn place(&self, address: PrivateAddress, namespace: &str) -> Arc<Guard> {
        let guard = Arc::new(Guard {
            namespace: namespace.to_owned(),
            owner: OnceLock::new(),
            policy: watch::Sender::new(Arc::default()),
            injections: watch::Sender::new(Arc::default()),
            pins: Mutex::default(),
            refusals: Mutex::default(),
            inspected: Arc::new(Semaphore::new(MAX_INSPECTED)),
            proxied: Arc::new(Semaphore::new(MAX_PROXIED)),
        });
        self.lock().insert(address.0, Arc::clone(&guard));
        guard
    }

    /// The one of the VM in this namespace, which gets one if it has none.
    pub fn of(&self, address: PrivateAddress, namespace: &str) -> Arc<Guard> {
        match self.at(address.0).filter(|guard| guard.namespace == namespace) {
            Some(guard) => guard,
            None => self.place(address, namespace),
        }
    }

    /// The VM is gone; what goes on in its name ends.
    pub fn dismiss(&self, namespace: &str) {
        self.lock().retain(|_, guard| {
            let gone = guard.namespace == namespace;
            if gone {
                guard.policy.send_replace(Arc::default());
                guard.injections.send_replace(Arc::default());
            }
            !gone
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Ipv4Addr, Arc<Guard>>> {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    /// Notes whose VM it is.
    pub fn belongs_to(&self, owner: WorkspaceId) {
        let _ = self.owner.set(owner);
    }

    /// The namespace that it is about.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What holds now, and every change of it.
    pub fn policy(&self) -> watch::Receiver<Arc<NetworkPolicy>> {
        self.policy.subscribe()
    }

    /// Whose VM it is, if that is known.
    pub fn owner(&self) -> Option<WorkspaceId> {
        self.owner.get().copied()
    }

    /// What requests are given now, and every change of it.
    pub fn injections(&self) -> watch::Receiver<Arc<Injections>> {
        self.injections.subscribe()
    }

    /// From now on requests are given this.
    pub fn inject(&self, injections: Injections) {
        self.injections.send_replace(Arc::new(injections));
    }

    /// Logs that a host was not reached in a guest's name, unless there are very many lines about it.
    pub fn host_failed(&self, host: &HostName, problem: &str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.may_log(Instant::now()) {
            let owner = self.owner.get();
            tracing::warn!(
                workspace.id = owner.map(tracing::field::display),
                %host,
                problem,
                "a request by a vault was not made"
            );
        }
    }

    /// Puts a policy in force by `tell`, which tells the kernel. Blocks.
    pub fn change(
        &self,
        terrain: &Terrain,
        policy: &NetworkPolicy,
        tell: impl FnOnce(&Pinned) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut pins = self.pins();
        pins.retain(|(name, _), _| policy.rules_for(name).next().is_some());
        tell(&pinned(&policy.reach(terrain.own), &pins, Instant::now()))?;
        self.policy.send_replace(Arc::new(policy.clone()));
        Ok(())
    }

    /// The name has these addresses for so long: from when this returns the guest may connect to them
    /// as far as its policy permits it for the name. Blocks.
    pub fn pin(
        &self,
        terrain: &Terrain,
        name: &HostName,
        addresses: &[Ipv4Addr],
        time_to_live: Duration,
    ) -> Result<(), Error> {
        let mut pins = self.pins();
        let policy = Arc::clone(&self.policy.borrow());
        if addresses.is_empty() || policy.rules_for(name).next().is_none() {
            return Ok(());
        }
        let now = Instant::now();
        let until = now + time_to_live.clamp(SHORTEST_PIN, LONGEST_PIN);
        let new: Pins = addresses.iter().map(|one| ((name.clone(), *one), until)).collect();
        let pinned = pinned(&policy.reach(terrain.own), &new, now);
        Namespace::open(&self.namespace)?.enter(|| rules::pin(&pinned))?;
        pins.extend(new);
        while pins.len() > MAX_PINS {
            let Some(first) = pins.iter().min_by_key(|(_, until)| **until) else { break };
            let first = first.0.clone();
            pins.remove(&first);
        }
        Ok(())
    }

    /// Whether a policy of it permits connections by TCP to this address: itself, or because a name has
    /// it. The kernel has asked whether that name was resolved of late; this asks whether it ever was.
    pub fn permits(&self, terrain: &Terrain, policy: &NetworkPolicy, to: SocketAddrV4) -> bool {
        let pins = self.pins();
        policy.reach(terrain.own).iter().any(|class| {
            let ports = class.ports.first()..=class.ports.last();
            let listed = |(first, last): &(Ipv4Addr, Ipv4Addr)| (first..=last).contains(&to.ip());
            let named = |(name, address): &(HostName, Ipv4Addr)| {
                address == to.ip() && class.names.iter().any(|pattern| pattern.matches(name))
            };
            class.transports.contains(&Transport::Tcp)
                && ports.contains(&to.port())
                && (class.addresses.iter().any(listed) || pins.keys().any(named))
        })
    }

    /// Logs that its proxy made no connection, unless there are very many lines about it.
    pub fn proxy_failed(&self, proxy: &OutboundProxy, error: &io::Error) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.may_log(Instant::now()) {
            let owner = self.owner.get();
            tracing::warn!(
                workspace.id = owner.map(tracing::field::display),
                %proxy,
                %error,
                "a guest's connection was not made: its proxy does not make it"
            );
        }
    }

    /// Notes a refusal, and logs it unless it is the same once more or there are very many.
    pub fn refused(&self, what: RefusedEgress, name: Option<HostName>) {
        let now = Instant::now();
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.total += 1;
        if let Some(last) = refusals.last.back_mut()
            && (last.what, &last.name) == (what, &name)
        {
            last.times += 1;
            last.at = now;
            return;
        }
        if refusals.may_log(now) {
            let (owner, shown) = (self.owner.get(), name.as_ref().map(HostName::as_str));
            tracing::info!(
                workspace.id = owner.map(tracing::field::display),
                name = shown,
                "refused to a guest: {what}"
            );
        }
        if refusals.last.len() == MAX_REFUSALS {
            refusals.last.pop_front();
        }
        refusals.last.push_back(Refused { what, name, times: 1, at: now });
    }

    /// How many refusals there were that concern names, and the last of them, the newest at the end.
    pub fn refusals(&self) -> EgressRefusals {
        let now = Instant::now();
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = |one: &Refused| EgressRefusal {
            what: one.what,
            name: one.name.clone(),
            times: one.times,
            ago: now.saturating_duration_since(one.at),
        };
        EgressRefusals {
            total: refusals.total,
            last: refusals.last.iter().map(shown).collect(),
            ..EgressRefusals::default()
        }
    }

    fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the kernel is to know of `pins`.
fn pinned(reach: &[Reachable], pins: &Pins, now: Instant) -> Pinned {
    let of_class = |class: &Reachable| {
        let mut addresses: BTreeMap<Ipv4Addr, Duration> = BTreeMap::new();
        for ((name, address), until) in pins {
            if class.names.iter().any(|pattern| pattern.matches(name)) {
                let left = addresses.entry(*address).or_default();
                *left = (*left).max(until.saturating_duration_since(now));
            }
        }
        addresses.into_iter().collect()
    };
    reach.iter().map(of_class).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_and_only_the_last_are_kept() {
        let guards = Guards::default();
        let guard = guards.place(PrivateAddress(Ipv4Addr::LOCALHOST), "x");
        for port in 0..100 {
            guard.refused(RefusedEgress::Connection(port), None);
            guard.refused(RefusedEgress::Connection(port), None);
        }
        let EgressRefusals { total, last, .. } = guard.refusals();
        assert_eq!((total, last.len(), last[63].times), (200, MAX_REFUSALS, 2));
        assert_eq!(last[63].what, RefusedEgress::Connection(99));
    }

    #[test]
    fn a_guest_cannot_fill_the_log_with_its_refusals() {
        let (mut refusals, began) = (Refusals::default(), Instant::now());
        let logged = (0..100).filter(|_| refusals.may_log(began)).count();
        assert_eq!(logged, 20);
        assert!(!refusals.may_log(began + Duration::from_secs(59)));
        assert!(refusals.may_log(began + Duration::from_secs(60)));
    }

    #[test]
    fn a_guard_goes_with_its_namespace_and_what_it_permitted_ends() {
        let guards = Guards::default();
        let address = PrivateAddress(Ipv4Addr::LOCALHOST);
        let policy = guards.place(address, "x").policy();
        guards.dismiss("y");
        assert!(guards.at(address.0).is_some() && !policy.has_changed().unwrap());
        guards.dismiss("x");
        assert!(guards.at(address.0).is_none());
        let again = guards.of(address, "z");
        assert!(Arc::ptr_eq(&again, &guards.of(address, "z")));
    }
}
