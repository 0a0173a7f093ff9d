//! The pool: VMs that wait for a workspace, restored from a template, exercised once and paused; and,
//! as a second tier, processes that have not loaded their state yet.
//!
//! A claim takes one and asks for another; the keeper makes it in the background, one or a few at a
//! time, at the lowest weight. How many wait of which template follows the claims ([`demand`]); what
//! they take of the host's memory is booked as it is, and given up at once when a workspace needs it.
//!
//! ```text
//! <data-dir>/pool/<number>/ledger.jsonl, machine-id, disk.json, <layer id>.qcow2, console.log
//! ```
//! Every one of them is in its ledger like a workspace's VM, and nothing of them outlives this life of
//! the server. A claim is one rename of that directory (`vm/bring_up/claim.rs`).

mod demand;
mod keeper;
mod nobody;
mod slot;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use skerry_internal_api::StartStatistics;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::demand::{Bounds, Demand, Target, Wanted, targets};
use crate::{
    NodeConfig,
    host::Host,
    templates::{Template, TemplateKey, Templates},
};

pub(crate) use self::{keeper::keep, nobody::Nobodys, slot::Waiting};

/// What a VM that is restored, exercised and paused really takes of the host: its emulator and the
/// pages in which it differs from its template (17 to 25 MiB measured).
const WARM_MIB: u64 = 24;
/// What a process takes that has not loaded its state.
const PARKED_MIB: u64 = 12;
/// After memory ran short for a workspace, nothing is made for so long.
const HOLD_AFTER_SHORTAGE: Duration = Duration::from_secs(30);
/// After the first failure to make a VM nothing is made of its template for so long, after each
/// further one twice as long, at most 64 times.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(2);
/// Templates whose claims are remembered.
const MAX_SHELVES: usize = 256;
/// How long a start waits for memory that is being given up.
const ROOM_WITHIN: Duration = Duration::from_secs(20);

/// The pool of a node.
pub(crate) struct Pool {
    bounds: Bounds,
    books: Mutex<Books>,
    /// Something has changed that the keeper may have to do something about.
    changed: Notify,
    progress: watch::Sender<Progress>,
    /// Cancelled when the node ends.
    shutdown: CancellationToken,
}

struct Books {
    shelves: BTreeMap<TemplateKey, Shelf>,
    /// What could not be released.
    leftovers: Vec<Nobodys>,
    /// Nothing is made before.
    hold_until: Option<Instant>,
    /// Cancelled to stop what is being made, templates included; replaced by a new one at once.
    making: CancellationToken,
}

/// How far the keeper is with what it was asked for.
#[derive(Clone, Copy, Debug)]
struct Progress {
    asked: u64,
    /// Everything that was asked for until then is done.
    answered: u64,
}

/// What is known of one template.
struct Shelf {
    demand: Demand,
    preset: bool,
    warm: VecDeque<Waiting>,
    parked: VecDeque<Waiting>,
    making_warm: u32,
    making_parked: u32,
    failures: u32,
    not_before: Option<Instant>,
}

impl Shelf {
    fn new(now: Instant) -> Self {
        Self {
            demand: Demand::none(now),
            preset: false,
            warm: VecDeque::new(),
            parked: VecDeque::new(),
            making_warm: 0,
            making_parked: 0,
            failures: 0,
            not_before: None,
        }
    }

    fn is_idle(&self) -> bool {
        self.warm.is_empty()
            && self.parked.is_empty()
            && self.making_warm == 0
            && self.making_parked == 0
    }
}

/// Something the keeper should do now.
enum Order {
    /// This one is not needed any more, or dead.
    Release(Waiting),
    /// This one is to load its state.
    Warm(Waiting),
    /// One is to be made, up to that tier.
    Make(Arc<Template>, Tier),
}

/// How ready a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Its process waits for its state.
    Parked,
    /// Restored, exercised, paused.
    Warm,
}

/// Clears away what an earlier life of the server left: nobody knows what of it was exercised, and
/// making it again takes less than a second.
pub(crate) async fn sweep(host: &Host) -> Result<(), crate::Error> {
    let left = nobody::sweep(host).await?;
    left.into_iter().for_each(|one| host.pool.leave(one));
    Ok(())
}

impl Pool {
    /// With the bounds of `config`; off when there are no templates.
    pub fn new(
        config: &NodeConfig,
        guest_memory_mib: u64,
        templates: &Templates,
        shutdown: &CancellationToken,
    ) -> Self {
        let memory_mib = config.pool_memory_mib.unwrap_or(guest_memory_mib / 10);
        let off = templates.off().is_some() || config.pool_max_warm == 0 || memory_mib == 0;
        let bounds = Bounds {
            max_warm: if off { 0 } else { config.pool_max_warm },
            memory_mib: if off { 0 } else { memory_mib },
            warm_mib: WARM_MIB,
            parked_mib: PARKED_MIB,
        };
        let books = Books {
            shelves: BTreeMap::new(),
            leftovers: Vec::new(),
            hold_until: None,
            making: shutdown.child_token(),
        };
        Self {
            bounds,
            books: Mutex::new(books),
            changed: Notify::new(),
            // Opening the templates is due at once.
            progress: watch::Sender::new(Progress {
                asked: u64::from(templates.off().is_none()),
                answered: 0,
            }),
            shutdown: shutdown.clone(),
        }
    }

    /// Whether VMs may wait at all.
    pub fn is_on(&self) -> bool {
        self.bounds.max_warm > 0
    }

    /// Takes the readiest VM of this template, if one waits, and remembers that one was wanted.
    pub fn claim(&self, key: &TemplateKey) -> Option<Waiting> {
        if !self.is_on() {
            return None;
        }
        let now = Instant::now();
        let mut books = self.lock();
        books.make_room_for_shelf(key, now);
        let shelf = books.shelves.entry(key.clone()).or_insert_with(|| Shelf::new(now));
        shelf.demand.claim(now);
        let mut dead = Vec::new();
        let found = loop {
            let Some(waiting) = shelf.warm.pop_front().or_else(|| shelf.parked.pop_front()) else {
                break None;
            };
            if waiting.is_alive() {
                break Some(waiting);
            }
            dead.push(waiting);
        };
        books.leftovers.extend(dead.into_iter().map(Waiting::into_nobodys));
        drop(books);
        self.wake();
        found
    }

    /// Remembers a claim of an earlier life.
    fn remember(&self, key: &TemplateKey, age: Duration) {
        let now = Instant::now();
        let mut books = self.lock();
        let shelf = books.shelves.entry(key.clone()).or_insert_with(|| Shelf::new(now));
        if shelf.demand.level(now) == 0.0 {
            shelf.demand = Demand::claimed_ago(age, now);
        }
    }

    /// Whether one of this template waits whatever the demand.
    fn set_presets(&self, presets: &[TemplateKey]) {
        let now = Instant::now();
        let mut books = self.lock();
        for shelf in books.shelves.values_mut() {
            shelf.preset = false;
        }
        for key in presets {
            let shelf = books.shelves.entry(key.clone()).or_insert_with(|| Shelf::new(now));
            shelf.preset = true;
        }
    }

    /// Tells the keeper that there may be something to do.
    pub fn wake(&self) {
        self.progress.send_modify(|progress| progress.asked += 1);
        self.changed.notify_one();
    }

    /// How often the keeper was woken.
    fn asked(&self) -> u64 {
        self.progress.borrow().asked
    }

    /// Everything that was due after so many wakings is done.
    fn answered(&self, asked: u64) {
        self.progress.send_modify(|progress| progress.answered = asked);
    }

    /// Completes when nothing is being made or removed, and nothing is due.
    pub async fn settled(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = progress.wait_for(|progress| progress.asked == progress.answered).await;
    }

    /// Cancelled when what is being made has to stop.
    fn making(&self) -> CancellationToken {
        self.lock().making.clone()
    }

    fn made(&self, key: &TemplateKey, tier: Tier, outcome: Outcome) {
        let now = Instant::now();
        let mut books = self.lock();
        let shelf = books.shelves.entry(key.clone()).or_insert_with(|| Shelf::new(now));
        shelf.made(tier, now, outcome);
    }

    /// Ends everything that waits: the node ends. What cannot be released is found by its next life.
    async fn empty(&self, host: &Host) {
        let waiting: Vec<Nobodys> = {
            let mut books = self.lock();
            let shelves = std::mem::take(&mut books.shelves).into_values();
            let waiting = shelves.flat_map(|shelf| shelf.warm.into_iter().chain(shelf.parked));
            waiting.map(Waiting::into_nobodys).chain(std::mem::take(&mut books.leftovers)).collect()
        };
        join_all(waiting.into_iter().map(|one| self.discard(host, one))).await;
    }

    /// Is rid of a VM; what cannot be released now is kept and tried again.
    pub async fn discard(&self, host: &Host, mut nobodys: Nobodys) {
        if let Err(failed) = nobodys.release(host).await {
            failed.report("releasing a VM that is nobody's");
            self.leave(nobodys);
        }
    }

    fn leave(&self, nobodys: Nobodys) {
        self.lock().leftovers.push(nobodys);
    }

    /// Gives up what waits, and what is being made, until `needed_mib` are free for a workspace or
    /// nothing is left to give. Nothing new is made for a while. Does nothing when it would not help.
    pub async fn make_room(&self, host: &Host, needed_mib: u64) {
        let mut booked = host.memory.subscribe();
        let deadline = Instant::now() + ROOM_WITHIN;
        loop {
            booked.mark_unchanged();
            let (free_mib, waiting_mib) = (host.memory.free_mib(), host.memory.waiting_mib());
            if free_mib >= needed_mib || free_mib.saturating_add(waiting_mib) < needed_mib {
                return;
            }
            let given_up = self.give_up(needed_mib - free_mib);
            if given_up.is_empty() {
                // What takes the memory is being made or released: the first is stopped.
                if tokio::time::timeout_at(deadline, booked.changed()).await.is_err() {
                    return;
                }
            } else {
                tracing::info!(count = given_up.len(), "the pool gives up VMs for a workspace");
                join_all(given_up.into_iter().map(|one| self.discard(host, one))).await;
            }
        }
    }

    /// Takes VMs off the shelves that together have so much memory, the least ready and least wanted
    /// first. When none are left, what is being made is stopped.
    fn give_up(&self, mib: u64) -> Vec<Nobodys> {
        let now = Instant::now();
        let mut books = self.lock();
        books.hold_until = Some(now + HOLD_AFTER_SHORTAGE);
        let (mut given_up, mut gained_mib) = (Vec::new(), 0);
        while gained_mib < mib
            && let Some(waiting) = books.take_least_wanted(now)
        {
            gained_mib += waiting.memory_mib();
            given_up.push(waiting.into_nobodys());
        }
        if given_up.is_empty() {
            std::mem::replace(&mut books.making, self.shutdown.child_token()).cancel();
        }
        given_up
    }

    /// What waits, for people.
    pub fn count(&self, statistics: &mut StartStatistics) {
        let books = self.lock();
        let count =
            |of: fn(&Shelf) -> usize| books.shelves.values().map(|shelf| of(shelf) as u64).sum();
        statistics.pool_warm = count(|shelf| shelf.warm.len());
        statistics.pool_parked = count(|shelf| shelf.parked.len());
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// What should be done next, if anything; it counts as begun.
    fn next_order(
        &mut self,
        now: Instant,
        bounds: Bounds,
        template: impl Fn(&TemplateKey) -> Option<Arc<Template>>,
    ) -> Option<Order> {
        let mut wanted: Vec<Wanted> = Vec::new();
        for (key, shelf) in self.shelves.iter().filter(|(key, _)| template(key).is_some()) {
            let level = shelf.demand.level(now);
            wanted.push(Wanted { key: key.clone(), level, preset: shelf.preset });
        }
        wanted.sort_by(|one, other| other.level.total_cmp(&one.level));
        let targets = targets(wanted.clone(), bounds);
        for (key, shelf) in &mut self.shelves {
            let target = targets.get(key).copied().unwrap_or_default();
            if let Some(surplus) = shelf.take_surplus(target) {
                return Some(Order::Release(surplus));
            }
        }
        if self.hold_until.is_some_and(|until| now < until) {
            return None;
        }
        for tier in [Tier::Warm, Tier::Parked] {
            for key in wanted.iter().map(|one| &one.key) {
                let (Some(shelf), Some(target)) = (self.shelves.get_mut(key), targets.get(key))
                else {
                    continue;
                };
                if let Some(order) = shelf.next_order(now, *target, tier, || template(key)) {
                    return Some(order);
                }
            }
        }
        None
    }

    /// The next VM to be given up: of the template that is wanted least, the least ready.
    fn take_least_wanted(&mut self, now: Instant) -> Option<Waiting> {
        let level = |shelf: &Shelf| shelf.demand.level(now);
        let mut shelves: Vec<&mut Shelf> = self.shelves.values_mut().collect();
        shelves.sort_by(|one, other| level(one).total_cmp(&level(other)));
        let mut tiers =
            shelves.iter_mut().map(|shelf| &mut shelf.parked).filter(|tier| !tier.is_empty());
        if let Some(parked) = tiers.next() {
            return parked.pop_back();
        }
        shelves.into_iter().find_map(|shelf| shelf.warm.pop_back())
    }

    /// Forgets a template that nobody has asked for in a long time before there are too many.
    fn make_room_for_shelf(&mut self, key: &TemplateKey, now: Instant) {
        if self.shelves.len() < MAX_SHELVES || self.shelves.contains_key(key) {
            return;
        }
        let idle = self.shelves.iter().filter(|(_, shelf)| shelf.is_idle() && !shelf.preset);
        let least = idle.min_by(|(_, one), (_, other)| {
            one.demand.level(now).total_cmp(&other.demand.level(now))
        });
        if let Some(least) = least.map(|(key, _)| key.clone()) {
            self.shelves.remove(&least);
        }
    }
}

impl Shelf {
    fn take_surplus(&mut self, target: Target) -> Option<Waiting> {
        for (tier, most) in [(&mut self.warm, target.warm), (&mut self.parked, target.parked)] {
            if let Some(dead) = tier.iter().position(|waiting| !waiting.is_alive()) {
                return tier.remove(dead);
            }
            if tier.len() > usize::try_from(most).unwrap_or(usize::MAX) {
                return tier.pop_back();
            }
        }
        None
    }

    fn next_order(
        &mut self,
        now: Instant,
        target: Target,
        tier: Tier,
        template: impl Fn() -> Option<Arc<Template>>,
    ) -> Option<Order> {
        let count = |tier: &VecDeque<Waiting>| u32::try_from(tier.len()).unwrap_or(u32::MAX);
        let (there, making, wanted) = match tier {
            Tier::Warm => (count(&self.warm), &mut self.making_warm, target.warm),
            Tier::Parked => (count(&self.parked), &mut self.making_parked, target.parked),
        };
        if there + *making >= wanted || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let order = match tier {
            Tier::Warm => match self.parked.pop_front() {
                Some(parked) => Order::Warm(parked),
                None => Order::Make(template()?, tier),
            },
            Tier::Parked => Order::Make(template()?, tier),
        };
        *making += 1;
        Some(order)
    }

    /// What was ordered is over.
    fn made(&mut self, tier: Tier, now: Instant, outcome: Outcome) {
        match tier {
            Tier::Warm => self.making_warm = self.making_warm.saturating_sub(1),
            Tier::Parked => self.making_parked = self.making_parked.saturating_sub(1),
        }
        match outcome {
            Outcome::Made(waiting) => {
                self.failures = 0;
                match tier {
                    Tier::Warm => self.warm.push_back(*waiting),
                    Tier::Parked => self.parked.push_back(*waiting),
                }
            }
            Outcome::Failed => {
                let pause = PAUSE_AFTER_FAILURE.saturating_mul(1 << self.failures.min(6));
                self.failures = self.failures.saturating_add(1);
                self.not_before = Some(now + pause);
            }
            Outcome::GivenUp => {}
        }
    }
}

/// What came of making a VM.
enum Outcome {
    Made(Box<Waiting>),
    Failed,
    /// It was stopped, or there was no room.
    GivenUp,
}
