//! Forking: several new workspaces that go on where one is.

use std::{collections::BTreeMap, sync::Arc};

use skerry_model::{
    Demand, Desired, DisplayName, ErrorKind, Incarnation, Lifecycle, Origin, Secret, Slug,
    Snapshot, SnapshotId, SnapshotPurpose, SnapshotState, StartFrom, State, Workspace, WorkspaceId,
    WorkspaceSpec, spec::check_metadata,
};

use super::{StartPolicy, Wait, WorkspaceRef, create::SLUG_DRAWS};
use crate::{
    Caller, Control, Error,
    control::Inner,
    store::{Admission, Write},
};

/// The most forks of one call.
pub const MAX_FORKS: u32 = 256;

/// What a fork should be. Everything else is the source's: image, size, environment, rules of its
/// life, project and namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct ForkWorkspace {
    /// How many: 1 to 256.
    pub count: u32,
    /// The forks' name, numbered from 1 when there are several; `None`: made from the source's.
    pub name: Option<String>,
    /// `None`: the source's labels.
    pub metadata: Option<BTreeMap<String, serde_json::Value>>,
    /// The snapshot is kept under this name, as one the tenant made; `None`: it is deleted once no
    /// fork needs it.
    pub snapshot_name: Option<String>,
    /// Start at once or later.
    pub start: StartPolicy,
}

/// What came of a fork.
#[derive(Clone, Debug, PartialEq)]
pub struct Forked {
    /// The snapshot that the forks are made from.
    pub snapshot_id: SnapshotId,
    /// It as it is now; `None` once it is deleted because no fork needs it any more.
    pub snapshot: Option<Snapshot>,
    /// The forks, in order of their numbers. A start that failed is in its workspace's state, and can
    /// be repeated.
    pub workspaces: Vec<Workspace>,
}

impl Control {
    /// Makes workspaces that go on where this one is: from its memory and disk while it runs or is
    /// paused, from its disk otherwise. The source goes on as before.
    ///
    /// Either all forks are recorded or none. If the snapshot then cannot be taken, all are removed
    /// again and the call fails. With [`StartPolicy::Now`] and a wait, answers when all have settled or
    /// the wait is over; in any case not before the snapshot is there.
    ///
    /// # Errors
    /// `NotFound` (`workspace`), `Invalid` (`count`, `name`, `metadata`, `snapshot_name`), `Quota` for
    /// all together, `RefusedByState` as for [`Control::create_snapshot`], `Unavailable` when the
    /// snapshot could not be taken, `Timeout` when that took too long: it goes on, and the forks stay.
    pub async fn fork_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        request: ForkWorkspace,
    ) -> Result<Forked, Error> {
        let start = request.start;
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        let (snapshot, forks) = self
            .inner
            .to_the_end(async move {
                let recorded = inner.record_fork(&caller, &which, request).await?;
                inner.wake_snapshot(recorded.0.id);
                Ok(recorded)
            })
            .await?;
        self.inner.fork_snapshot_taken(&snapshot, &forks).await?;
        let wait = match start {
            StartPolicy::Later => Wait::No,
            StartPolicy::Now(wait) => wait,
        };
        let settled = forks.into_iter().map(|fork| self.inner.until_settled(fork, wait));
        let workspaces = futures::future::try_join_all(settled).await?;
        let snapshot_id = snapshot.id;
        let snapshot = self.inner.store.snapshot(snapshot_id).await?;
        Ok(Forked { snapshot_id, snapshot, workspaces })
    }
}

impl Inner {
    async fn record_fork(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        request: ForkWorkspace,
    ) -> Result<(Snapshot, Vec<Workspace>), Error> {
        if !(1..=MAX_FORKS).contains(&request.count) {
            let problem = format!("{} is out of range", request.count);
            return Err(Error::invalid("count", problem, format!("1 to {MAX_FORKS}")));
        }
        if let Some(metadata) = &request.metadata {
            check_metadata(metadata)?;
        }
        let kept_name = request.snapshot_name.as_deref().map(DisplayName::parse).transpose();
        let kept_name = kept_name
            .map_err(|invalid| Error::invalid("snapshot_name", invalid.problem, invalid.allowed))?;
        let source = self.find(caller, which).await?;
        let contents = self.contents_of(&source, None).await?;
        let purpose =
            if kept_name.is_some() { SnapshotPurpose::User } else { SnapshotPurpose::Fork };
        let snapshot = self.new_snapshot(&source, purpose, contents, kept_name)?;
        let demand = match request.start {
            StartPolicy::Later => Demand::Create,
            StartPolicy::Now(Wait::No | Wait::UpTo(_)) => Demand::CreateAndStart,
        };
        let admission = Admission { plan: &self.config.plan, demand };
        for _ in 0..SLUG_DRAWS {
            let forks = (1..=request.count)
                .map(|number| self.new_fork(&source, &snapshot, &request, number))
                .collect::<Result<Vec<_>, _>>()?;
            if let Write::Done(made) = self.store.insert_fork(&snapshot, &forks, admission).await? {
                return Ok((Snapshot { revision: 1, ..snapshot }, made));
            }
        }
        Err(Error::internal("no free slugs were found"))
    }

    fn new_fork(
        &self,
        source: &Workspace,
        snapshot: &Snapshot,
        request: &ForkWorkspace,
        number: u32,
    ) -> Result<Workspace, Error> {
        let now = self.now();
        let stem = request.name.as_deref().unwrap_or(source.name.as_str());
        // A name that is too long only because of its number loses its end instead.
        let room = DisplayName::MAX_CHARS - "-256".len();
        let name = match (&request.name, request.count) {
            (Some(name), 1) => DisplayName::parse(name)?,
            (Some(name), _) => {
                DisplayName::parse(name)?;
                let stem: String = stem.chars().take(room).collect();
                DisplayName::parse(&format!("{stem}-{number}"))?
            }
            (None, _) => {
                let stem: String = stem.chars().take(DisplayName::MAX_CHARS - 6).collect();
                DisplayName::parse(&format!("{stem}-{}", self.random_word(5)))?
            }
        };
        let origin = Origin::Snapshot { snapshot_id: snapshot.id };
        let start_from = StartFrom::Snapshot { snapshot_id: snapshot.id };
        Ok(Workspace {
            id: WorkspaceId::from_random(self.random()),
            account_id: source.account_id,
            project_id: source.project_id,
            namespace: source.namespace.clone(),
            slug: Slug::from_name(name.as_str(), &self.random_word(5)),
            name,
            spec: WorkspaceSpec {
                origin,
                metadata: request.metadata.clone().unwrap_or_else(|| source.spec.metadata.clone()),
                ..source.spec.clone()
            },
            desired: match request.start {
                StartPolicy::Later => Desired::Stopped,
                StartPolicy::Now(_) => Desired::Running,
            },
            state: State::Provisioned,
            incarnation: Incarnation::default(),
            replace_through: Incarnation::default(),
            failed_starts: 0,
            start_began_at: None,
            node_id: None,
            private_address: None,
            expires_at: None,
            last_active_at: None,
            lifecycle: Lifecycle { start_from, ..Lifecycle::default() },
            preview_token: Secret::new(self.random_word(32)),
            created_at: now,
            updated_at: now,
            revision: 0,
        })
    }

    /// Waits for the snapshot of a fork, for as long as a call to the node may take.
    async fn fork_snapshot_taken(
        &self,
        snapshot: &Snapshot,
        forks: &[Workspace],
    ) -> Result<(), Error> {
        let bound = self.config.node_call_timeout;
        let done = |record: &Snapshot| record.state != SnapshotState::Creating;
        let failed = |why: &str| -> Error {
            ErrorKind::Unavailable(format!("the snapshot of the source: {why}")).into()
        };
        match self.wait_for_snapshot(snapshot.id, bound, done).await?.map(|taken| taken.state) {
            Some(SnapshotState::Ready) => Ok(()),
            Some(SnapshotState::Creating) => {
                Err(ErrorKind::Timeout("the snapshot of the source".to_owned()).into())
            }
            Some(SnapshotState::Failed(failure)) => Err(failed(&failure.message)),
            // It came about and is needed no more, or did not and the forks went with it.
            Some(SnapshotState::Deleting) | None => {
                for fork in forks {
                    let now = self.store.workspace(fork.id).await?;
                    if now.is_some_and(|fork| fork.desired != Desired::Deleted) {
                        return Ok(());
                    }
                }
                Err(failed("it was deleted"))
            }
        }
    }
}
