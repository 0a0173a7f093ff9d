//! Promoted memory: that of a snapshot in the form of a template's, from which any number of VMs
//! start by mapping it, copied on write, instead of each loading a copy of its own.
//!
//! ```text
//! <data-dir>/snapshots/<id>/promoted/manifest.json, state, ram     sealed; goes with its snapshot
//! ```
//! A snapshot's memory is a stream, because it was written while the guest ran. The first start from
//! it loads the stream and waits for nothing. Who forks a snapshot forks it more than once: a fork's
//! start that has succeeded, or a second one that comes meanwhile, has the memory promoted in the
//! background, and forks that come until that is done wait for it. Whoever restores a workspace to
//! its own snapshot waits for nothing; the second such start has it promoted too.
//!
//! It is only ever a faster way to the same: what cannot be made, is damaged or does not start is
//! passed over, and the stream is loaded. It can be made again at any time, and is removed under the
//! budget of templates.

mod make;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use skerry_model::SnapshotId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    error::chain,
    host::Host,
    layout::names_in,
    saved::{About, Sealed},
    templates::Trouble,
    vm::bring_up::machine_of,
};

pub(crate) use self::make::promote;

/// From what a workspace starts when it starts from a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// From another workspace's.
    Fork,
    /// From its own.
    Own,
}

/// What a start from a snapshot that is not promoted does.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// It loads the stream.
    Load,
    /// Its memory is being promoted: it waits until this is cancelled and looks again.
    Wait(CancellationToken),
}

/// The promotions of a node.
#[derive(Debug)]
pub(crate) struct Promotions {
    /// Nothing is promoted, and what is there is not used.
    off: bool,
    books: Mutex<BTreeMap<SnapshotId, Entry>>,
}

/// What is known of a snapshot that was started from.
#[derive(Debug, Default)]
struct Entry {
    stage: Stage,
    /// Starts that loaded its stream.
    loads: u32,
    trouble: Option<Trouble>,
    /// Cancelled when the promotion that is wanted or under way is over, whatever came of it.
    over: CancellationToken,
    /// Cancelled when a start waits for the promotion that is wanted or under way.
    waited_for: CancellationToken,
    /// Cancelled to give up the promotion under way.
    cancel: CancellationToken,
}

/// A promotion that is to be made now.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The snapshot.
    pub id: SnapshotId,
    /// Cancelled when it is not wanted any more.
    pub cancel: CancellationToken,
    /// Cancelled when somebody waits for it: from then on it is not work of the background.
    pub waited_for: CancellationToken,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    Wanted,
    Making,
}

impl Entry {
    fn is_in_trouble(&self, now: Instant) -> bool {
        self.trouble.is_some_and(|trouble| now < trouble.not_before)
    }

    /// Who waits looks again.
    fn over(&mut self) {
        self.stage = Stage::Idle;
        self.waited_for = CancellationToken::new();
        std::mem::take(&mut self.over).cancel();
    }
}

impl Promotions {
    /// On where memory can be cloned and templates may take room.
    pub fn new(on: bool) -> Self {
        Self { off: !on, books: Mutex::default() }
    }

    /// Whether the promoted memory of this snapshot may be used now.
    pub fn may_use(&self, id: SnapshotId, now: Instant) -> bool {
        !self.off && !self.lock().get(&id).is_some_and(|entry| entry.is_in_trouble(now))
    }

    /// A start from this snapshot begins, and there is no promoted memory.
    pub fn arrive(&self, id: SnapshotId, relation: Relation, now: Instant) -> Arrival {
        if self.off {
            return Arrival::Load;
        }
        let mut books = self.lock();
        let is_first = !books.contains_key(&id);
        let entry = books.entry(id).or_default();
        if is_first || relation == Relation::Own || entry.is_in_trouble(now) {
            return Arrival::Load;
        }
        match entry.stage {
            Stage::Idle => entry.stage = Stage::Wanted,
            Stage::Wanted | Stage::Making => {}
        }
        entry.waited_for.cancel();
        Arrival::Wait(entry.over.clone())
    }

    /// A start that loaded the stream has succeeded. True when its memory is to be promoted now.
    pub fn loaded(&self, id: SnapshotId, relation: Relation) -> bool {
        if self.off {
            return false;
        }
        let mut books = self.lock();
        let entry = books.entry(id).or_default();
        entry.loads = entry.loads.saturating_add(1);
        let wanted = relation == Relation::Fork || entry.loads > 1;
        if !wanted || entry.stage != Stage::Idle {
            return false;
        }
        entry.stage = Stage::Wanted;
        true
    }

    /// A snapshot whose memory is to be promoted now; it counts as begun, until [`Promotions::made`]
    /// or [`Promotions::not_made`].
    fn take_wanted(&self, now: Instant, making: &CancellationToken) -> Option<Wanted> {
        let mut books = self.lock();
        let (id, entry) = books
            .iter_mut()
            .find(|(_, entry)| entry.stage == Stage::Wanted && !entry.is_in_trouble(now))?;
        entry.stage = Stage::Making;
        entry.cancel = making.child_token();
        let (cancel, waited_for) = (entry.cancel.clone(), entry.waited_for.clone());
        Some(Wanted { id: *id, cancel, waited_for })
    }

    /// It is there.
    fn made(&self, id: SnapshotId) {
        if let Some(mut entry) = self.lock().remove(&id) {
            entry.over();
        }
    }

    /// It could not be made: starts load the stream for a while.
    fn not_made(&self, id: SnapshotId, now: Instant) {
        let mut books = self.lock();
        // One whose snapshot was deleted meanwhile is forgotten.
        if let Some(entry) = books.get_mut(&id) {
            entry.trouble = Some(Trouble::after(entry.trouble, now));
            entry.over();
        }
    }

    /// A start from it failed, or it was removed as soon as it was made: starts load the stream for a
    /// while, and then it is made anew.
    pub fn not_kept(&self, id: SnapshotId, now: Instant) {
        let mut books = self.lock();
        let entry = books.entry(id).or_default();
        entry.trouble = Some(Trouble::after(entry.trouble, now));
    }

    /// A clone of it runs.
    pub fn worked(&self, id: SnapshotId) {
        let mut books = self.lock();
        if books.get(&id).is_some_and(|entry| entry.stage == Stage::Idle) {
            books.remove(&id);
        }
    }

    /// Its snapshot is to be deleted.
    pub fn forget(&self, id: SnapshotId) {
        if let Some(mut entry) = self.lock().remove(&id) {
            entry.cancel.cancel();
            entry.over();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, Entry>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Promotes what is wanted most, if anything is: the future does it.
pub(crate) fn begin_wanted(
    host: &std::sync::Arc<Host>,
    making: &CancellationToken,
) -> Option<impl Future<Output = ()> + Send + use<>> {
    let wanted = host.promotions.take_wanted(Instant::now(), making)?;
    let host = std::sync::Arc::clone(host);
    Some(async move {
        match promote(&host, &wanted).await {
            Ok(()) => host.promotions.made(wanted.id),
            Err(failed) => {
                failed.report("promoting a snapshot's memory");
                host.promotions.not_made(wanted.id, Instant::now());
            }
        }
    })
}

/// The promoted memory of a snapshot; `None` when there is none that can be used.
pub(crate) fn of_snapshot(host: &Host, id: SnapshotId) -> Option<Sealed> {
    let found = host.storage.states.open(&host.layout.promoted(id));
    let sealed = found.unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "a snapshot's promoted memory is not usable");
        None
    })?;
    match sealed.manifest.about {
        About::PromotedMemory { snapshot_id } if snapshot_id == id => Some(sealed),
        About::PromotedMemory { .. }
        | About::Template
        | About::Snapshot { .. }
        | About::SuspendedMemory { .. } => None,
    }
}

/// All promoted memory. Blocks.
pub(crate) fn all(host: &Host) -> Result<Vec<Sealed>, Error> {
    let ids = names_in(&host.layout.snapshots_dir())?.into_iter();
    let ids = ids.filter_map(|name| name.parse::<SnapshotId>().ok());
    Ok(ids.filter_map(|id| of_snapshot(host, id)).collect())
}

/// Of which snapshot the promoted memory at `place` is.
pub(crate) fn snapshot_at(host: &Host, place: &Path) -> Option<SnapshotId> {
    let id = place.parent()?.file_name()?.to_str()?.parse().ok()?;
    (host.layout.promoted(id) == place).then_some(id)
}

/// Removes what was saved of machines that do not exist here any more. Blocks.
pub(crate) fn remove_outdated(host: &Host) -> Result<(), Error> {
    for sealed in all(host)? {
        let fingerprint = host.vmm.fingerprint(&machine_of(&sealed.manifest.shape, host.cable()));
        if sealed.manifest.fingerprint.as_ref() != Some(&fingerprint) {
            tracing::info!(place = %sealed.place().display(), "outdated promoted memory removed");
            host.storage.states.delete(sealed.place())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SnapshotId = SnapshotId::from_u128(1);

    fn waits(arrival: &Arrival) -> bool {
        match arrival {
            Arrival::Wait(_) => true,
            Arrival::Load => false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_start_loads_and_a_fork_that_comes_meanwhile_has_it_promoted_and_waits() {
        let promotions = Promotions::new(true);
        let (now, making) = (Instant::now(), CancellationToken::new());
        assert!(!waits(&promotions.arrive(ID, Relation::Fork, now)));
        assert!(promotions.take_wanted(now, &making).is_none());
        let Arrival::Wait(over) = promotions.arrive(ID, Relation::Fork, now) else { panic!() };
        assert!(!waits(&promotions.arrive(ID, Relation::Own, now)), "nobody else waits");
        assert!(promotions.take_wanted(now, &making).unwrap().waited_for.is_cancelled());
        assert!(promotions.take_wanted(now, &making).is_none(), "it is under way");
        assert!(waits(&promotions.arrive(ID, Relation::Fork, now)));
        promotions.made(ID);
        assert!(over.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_workspaces_own_snapshot_is_promoted_with_its_second_use() {
        let promotions = Promotions::new(true);
        assert!(!promotions.loaded(ID, Relation::Own));
        assert!(promotions.loaded(ID, Relation::Own));
        assert!(!promotions.loaded(ID, Relation::Own), "it is wanted already");
        let other = SnapshotId::from_u128(2);
        assert!(promotions.loaded(other, Relation::Fork));
    }

    #[tokio::test(start_paused = true)]
    async fn a_promotion_is_work_of_the_background_until_somebody_waits_for_it() {
        let promotions = Promotions::new(true);
        let (now, making) = (Instant::now(), CancellationToken::new());
        promotions.loaded(ID, Relation::Fork);
        let wanted = promotions.take_wanted(now, &making).unwrap();
        assert!(!wanted.waited_for.is_cancelled());
        assert!(waits(&promotions.arrive(ID, Relation::Fork, now)));
        assert!(wanted.waited_for.is_cancelled());
        promotions.made(ID);
        promotions.loaded(ID, Relation::Fork);
        let next = promotions.take_wanted(now, &making).unwrap();
        assert!(!next.waited_for.is_cancelled(), "nobody waits for the next one");
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_made_or_used_is_left_alone_for_a_while() {
        let promotions = Promotions::new(true);
        let (now, making) = (Instant::now(), CancellationToken::new());
        assert!(promotions.loaded(ID, Relation::Fork));
        let Arrival::Wait(over) = promotions.arrive(ID, Relation::Fork, now) else { panic!() };
        promotions.take_wanted(now, &making).unwrap();
        promotions.not_made(ID, now);
        assert!(over.is_cancelled());
        assert!(!waits(&promotions.arrive(ID, Relation::Fork, now)));
        let later = now + std::time::Duration::from_secs(61);
        assert!(waits(&promotions.arrive(ID, Relation::Fork, later)));

        promotions.not_kept(ID, later);
        assert!(!promotions.may_use(ID, later));
        promotions.forget(ID);
        assert!(promotions.may_use(ID, later));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_snapshot_that_is_deleted_waits_no_more() {
        let promotions = Promotions::new(true);
        let (now, making) = (Instant::now(), CancellationToken::new());
        promotions.loaded(ID, Relation::Fork);
        let Arrival::Wait(over) = promotions.arrive(ID, Relation::Fork, now) else { panic!() };
        let wanted = promotions.take_wanted(now, &making).unwrap();
        promotions.forget(ID);
        assert!(wanted.cancel.is_cancelled() && over.is_cancelled());
        promotions.not_made(ID, now);
        assert!(promotions.may_use(ID, now), "nothing is remembered of it");
    }

    #[test]
    fn where_memory_cannot_be_shared_nothing_is_promoted() {
        let promotions = Promotions::new(false);
        let now = Instant::now();
        assert!(!promotions.loaded(ID, Relation::Fork) && !promotions.may_use(ID, now));
        for _ in 0..3 {
            assert!(!waits(&promotions.arrive(ID, Relation::Fork, now)));
        }
    }
}
