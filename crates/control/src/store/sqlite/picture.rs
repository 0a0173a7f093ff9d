//! What a transaction knows of the records it touches, kept current while writes are decided: each
//! write is judged as if those before it in the transaction were in the database already.

use std::collections::{HashMap, HashSet};

use skerry_model::{
    AccountId, Demand, Incarnation, Plan, Pool, ProjectId, SnapshotId, Timestamp, Usage, Workspace,
    WorkspaceId, limits,
};

use crate::{
    Error,
    store::row::{WorkspaceRow, lifetime_word},
};

/// What a workspace takes of its account's pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footprint {
    pub(super) size: Pool,
    /// Whether it counts as running, too.
    pub(super) runs: bool,
}

impl Footprint {
    pub(super) fn of(record: &Workspace) -> Self {
        let size = Pool::default().plus(&record.spec.shape);
        Self { size, runs: record.counts_as_running() }
    }
}

/// What changes seldom and is indexed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) project_id: ProjectId,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) slug: String,
    pub(super) lifetime: String,
    pub(super) private_address: Option<String>,
    pub(super) admits_peers: bool,
}

impl Identity {
    fn of(record: &Workspace) -> Self {
        Self {
            project_id: record.project_id,
            namespace: record.namespace.clone(),
            name: record.name.as_str().to_owned(),
            slug: record.slug.as_str().to_owned(),
            lifetime: lifetime_word(record.spec.lifetime).to_owned(),
            private_address: record.private_address.map(|address| address.to_string()),
            admits_peers: record.spec.network.admits_peers(),
        }
    }
}

/// A workspace's row, as far as decisions need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) account_id: AccountId,
    pub(super) identity: Identity,
    pub(super) footprint: Footprint,
    pub(super) incarnation: Incarnation,
    pub(super) last_active_at: Option<Timestamp>,
    pub(super) needed_snapshot: Option<SnapshotId>,
    pub(super) revision: u64,
}

impl Known {
    fn of(record: &Workspace) -> Self {
        Self {
            account_id: record.account_id,
            identity: Identity::of(record),
            footprint: Footprint::of(record),
            incarnation: record.incarnation,
            last_active_at: record.last_active_at,
            needed_snapshot: record.needed_snapshot(),
            revision: record.revision,
        }
    }
}

/// What is to be done to one workspace's record.
#[derive(Debug)]
pub(super) enum WorkspaceWrite {
    /// It is new.
    Insert { row: Box<WorkspaceRow>, admission: Asked },
    /// It replaces the record of the revision before its own.
    Update { row: Box<WorkspaceRow>, admission: Option<Asked> },
    /// The record of this revision goes.
    Remove { id: WorkspaceId, revision: u64 },
}

/// What the plan has to admit.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) plan: Plan,
    pub(super) demand: Demand,
}

impl WorkspaceWrite {
    pub(super) fn id(&self) -> WorkspaceId {
        match self {
            Self::Insert { row, .. } | Self::Update { row, .. } => row.record.id,
            Self::Remove { id, .. } => *id,
        }
    }

    /// The record as it is written, unless it goes.
    pub(super) fn record(&self) -> Option<&Workspace> {
        match self {
            Self::Insert { row, .. } | Self::Update { row, .. } => Some(&row.record),
            Self::Remove { .. } => None,
        }
    }

    /// The same, as a value.
    pub(super) fn into_record(self) -> Option<Workspace> {
        match self {
            Self::Insert { row, .. } | Self::Update { row, .. } => Some(row.record),
            Self::Remove { .. } => None,
        }
    }

    /// The slug that must be free.
    pub(super) fn slug(&self) -> Option<&str> {
        self.record().map(|record| record.slug.as_str())
    }

    /// The account whose use decides.
    pub(super) fn judged_account(&self) -> Option<AccountId> {
        match self {
            Self::Insert { row, .. } | Self::Update { row, admission: Some(_) } => {
                Some(row.record.account_id)
            }
            Self::Update { admission: None, .. } | Self::Remove { .. } => None,
        }
    }

    /// The snapshot that may have to be there.
    pub(super) fn needed_snapshot(&self) -> Option<SnapshotId> {
        self.record()?.needed_snapshot()
    }
}

/// What a write does to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// A row is added.
    Added,
    /// A row changes, its identity does not.
    Progressed,
    /// A row changes, and its identity with it.
    Renamed,
    /// A row goes.
    Removed,
}

/// What is decided of a write.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is done.
    Done(Effect),
    /// The record has changed since it was read, or is gone.
    Stale,
    /// The slug belongs to another record.
    Taken,
    /// The plan does not admit it, or the snapshot it needs is not there.
    Refused(Error),
}

#[derive(Debug, Default)]
pub(super) struct Picture {
    pub(super) records: HashMap<WorkspaceId, Known>,
    pub(super) slugs: HashMap<String, WorkspaceId>,
    pub(super) usage: HashMap<AccountId, Usage>,
    /// The ready ones among the snapshots that are needed, and whose they are.
    pub(super) snapshots: HashSet<(SnapshotId, AccountId)>,
    /// What the writes decided so far change of each account's use.
    changes: HashMap<AccountId, UsageChange>,
}

impl Picture {
    /// Adds a row that is in the database.
    pub(super) fn learn(&mut self, id: WorkspaceId, known: Known) {
        self.slugs.insert(known.identity.slug.clone(), id);
        self.records.insert(id, known);
    }

    /// Decides a write and takes it over. A row that is done is as it has to be written.
    pub(super) fn decide(&mut self, write: &mut WorkspaceWrite) -> Verdict {
        let decided = match write {
            WorkspaceWrite::Insert { row, admission } => self.insert(&row.record, admission),
            WorkspaceWrite::Update { row, admission } => self.update(row, admission.as_ref()),
            WorkspaceWrite::Remove { id, revision } => Ok(self.remove(*id, *revision)),
        };
        decided.unwrap_or_else(Verdict::Refused)
    }

    /// What the writes decided so far change of each account's use.
    pub(super) fn usage_changes(&self) -> impl Iterator<Item = (AccountId, UsageChange)> {
        let changes = self.changes.iter().map(|(account, change)| (*account, *change));
        changes.filter(|(_, change)| *change != UsageChange::default())
    }

    fn insert(&mut self, record: &Workspace, admission: &Asked) -> Result<Verdict, Error> {
        self.require_snapshot(record)?;
        self.admit(record, admission, None)?;
        if self.records.contains_key(&record.id) || self.slugs.contains_key(record.slug.as_str()) {
            return Ok(Verdict::Taken);
        }
        self.learn(record.id, Known::of(record));
        self.changes.entry(record.account_id).or_default().add(Footprint::of(record));
        Ok(Verdict::Done(Effect::Added))
    }

    fn update(
        &mut self,
        row: &mut WorkspaceRow,
        admission: Option<&Asked>,
    ) -> Result<Verdict, Error> {
        let id = row.record.id;
        let current = self.records.get(&id);
        let Some(known) = current.filter(|known| known.revision + 1 == row.record.revision) else {
            return Ok(Verdict::Stale);
        };
        let known = known.clone();
        if row.record.needed_snapshot() != known.needed_snapshot {
            self.require_snapshot(&row.record)?;
        }
        if let Some(admission) = admission {
            self.admit(&row.record, admission, Some(known.footprint))?;
        }
        if self.slugs.get(row.record.slug.as_str()).is_some_and(|owner| *owner != id) {
            return Ok(Verdict::Taken);
        }
        if known.incarnation == row.record.incarnation
            && let Some(noted) = known.last_active_at
        {
            row.keep_activity(noted);
        }
        let new = Known { account_id: known.account_id, ..Known::of(&row.record) };
        let effect =
            if known.identity == new.identity { Effect::Progressed } else { Effect::Renamed };
        let change = self.changes.entry(known.account_id).or_default();
        change.subtract(known.footprint);
        change.add(new.footprint);
        self.slugs.remove(&known.identity.slug);
        self.learn(id, new);
        Ok(Verdict::Done(effect))
    }

    fn remove(&mut self, id: WorkspaceId, revision: u64) -> Verdict {
        let Some(known) = self.records.get(&id).filter(|known| known.revision == revision) else {
            return Verdict::Stale;
        };
        self.slugs.remove(&known.identity.slug);
        self.changes.entry(known.account_id).or_default().subtract(known.footprint);
        self.records.remove(&id);
        Verdict::Done(Effect::Removed)
    }

    fn require_snapshot(&self, record: &Workspace) -> Result<(), Error> {
        let needed = record.needed_snapshot();
        if needed.is_none_or(|snapshot| self.snapshots.contains(&(snapshot, record.account_id))) {
            return Ok(());
        }
        Err(Error::not_found("snapshot"))
    }

    /// Whether the plan admits the record, given what the account uses without it.
    fn admit(
        &self,
        record: &Workspace,
        Asked { plan, demand }: &Asked,
        own: Option<Footprint>,
    ) -> Result<(), Error> {
        let mut change = self.changes.get(&record.account_id).copied().unwrap_or_default();
        if let Some(own) = own {
            change.subtract(own);
        }
        let recorded = self.usage.get(&record.account_id).copied().unwrap_or_default();
        let others = change.applied_to(recorded)?;
        Ok(limits::admit(plan, &others, &record.spec.shape, *demand)?)
    }
}

/// What is added to an account's use, or taken from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UsageChange {
    pub(super) workspaces: i64,
    pub(super) owned: PoolChange,
    pub(super) running: PoolChange,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PoolChange {
    pub(super) vcpu_count: i64,
    pub(super) memory_mib: i64,
    pub(super) disk_mib: i64,
}

impl UsageChange {
    fn add(&mut self, footprint: Footprint) {
        self.apply(footprint, 1);
    }

    fn subtract(&mut self, footprint: Footprint) {
        self.apply(footprint, -1);
    }

    fn apply(&mut self, Footprint { size, runs }: Footprint, sign: i64) {
        self.workspaces += sign;
        self.owned.apply(size, sign);
        if runs {
            self.running.apply(size, sign);
        }
    }

    fn applied_to(self, usage: Usage) -> Result<Usage, Error> {
        Ok(Usage {
            workspaces: sum(usage.workspaces, self.workspaces)?,
            owned: self.owned.applied_to(usage.owned)?,
            running: self.running.applied_to(usage.running)?,
            ..usage
        })
    }
}

impl PoolChange {
    fn apply(&mut self, size: Pool, sign: i64) {
        self.vcpu_count += sign * size.vcpu_count.cast_signed();
        self.memory_mib += sign * size.memory_mib.cast_signed();
        self.disk_mib += sign * size.disk_mib.cast_signed();
    }

    fn applied_to(self, pool: Pool) -> Result<Pool, Error> {
        Ok(Pool {
            vcpu_count: sum(pool.vcpu_count, self.vcpu_count)?,
            memory_mib: sum(pool.memory_mib, self.memory_mib)?,
            disk_mib: sum(pool.disk_mib, self.disk_mib)?,
        })
    }
}

fn sum(recorded: u64, change: i64) -> Result<u64, Error> {
    let fault = || Error::internal("an account's recorded use is less than its workspaces'");
    recorded.checked_add_signed(change).ok_or_else(fault)
}
