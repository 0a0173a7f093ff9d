//! Use cases on workspaces.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use skerry_internal_api::{ByteStream, GuestApi, GuestStats, LogSource};
use skerry_model::{
    EnvVar, Expiry, Lifetime, ProjectId, Workspace, WorkspaceId,
    spec::{CpuKind, LogRetention},
};

use crate::{Caller, Control, Error};

/// How a request names a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkspaceRef {
    /// By identity.
    Id(WorkspaceId),
    /// By slug.
    Slug(String),
    /// By slug, else by name when the caller has exactly one of that name (`Conflict` when there
    /// are more).
    SlugOrName(String),
}

/// Whether creating also starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartPolicy {
    /// Stays provisioned until started.
    Later,
    /// Starts.
    Now(Wait),
}

/// How long a call stays for the work it asked for. The work goes on when the wait is over; the
/// answer then shows the state reached so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Answer as soon as the wish is recorded.
    No,
    /// Answer when the workspace has settled (running, stopped, failed, gone), or after this long.
    UpTo(Duration),
}

/// What a new workspace should be. Numbers are as the request gave them: they are checked here.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateWorkspace {
    /// `None`: a name is made from the image's.
    pub name: Option<String>,
    /// `None`: a slug is made from the name.
    pub slug: Option<String>,
    /// `None`: the default project.
    pub project_id: Option<ProjectId>,
    /// Oblien's grouping word.
    pub namespace: Option<String>,
    /// `None`: the configured default.
    pub image: Option<String>,
    /// `None`: the plan's default. So for the next two.
    pub vcpu_count: Option<u64>,
    /// MiB.
    pub memory_mib: Option<u64>,
    /// MiB of writable space.
    pub disk_mib: Option<u64>,
    /// CPU share class.
    pub cpu_kind: CpuKind,
    /// Environment.
    pub env: Vec<EnvVar>,
    /// Permanent or temporary.
    pub lifetime: Lifetime,
    /// Time to live.
    pub expiry: Option<Expiry>,
    /// Exempt from idle stop.
    pub keep_active: bool,
    /// Console log across starts.
    pub log_retention: LogRetention,
    /// Labels.
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// Start at once or later.
    pub start: StartPolicy,
}

impl CreateWorkspace {
    /// A request in which everything is left to the defaults.
    #[must_use]
    pub fn new(start: StartPolicy) -> Self {
        Self {
            name: None,
            slug: None,
            project_id: None,
            namespace: None,
            image: None,
            vcpu_count: None,
            memory_mib: None,
            disk_mib: None,
            cpu_kind: CpuKind::default(),
            env: Vec::new(),
            lifetime: Lifetime::default(),
            expiry: None,
            keep_active: false,
            log_retention: LogRetention::default(),
            metadata: BTreeMap::new(),
            start,
        }
    }
}

/// Which workspaces to list; newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListWorkspaces {
    /// Only of this project.
    pub project_id: Option<ProjectId>,
    /// Only of this namespace.
    pub namespace: Option<String>,
    /// Only permanent or temporary ones.
    pub lifetime: Option<Lifetime>,
    /// Only in a state of one of these names ([`skerry_model::State::name`]); empty means all.
    pub states: Vec<&'static str>,
    /// Skip this many.
    pub offset: u64,
    /// At most this many; `None` means all.
    pub limit: Option<u64>,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// How many there are without `offset` and `limit`.
    pub total: u64,
}

/// What to change; `None` leaves as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpdateWorkspace {
    /// New name.
    pub name: Option<String>,
    /// New slug.
    pub slug: Option<String>,
    /// New size; only while no VM is there. MiB; disk may only grow.
    pub vcpu_count: Option<u64>,
    /// See `vcpu_count`.
    pub memory_mib: Option<u64>,
    /// See `vcpu_count`.
    pub disk_mib: Option<u64>,
    /// New CPU share class; only while no VM is there.
    pub cpu_kind: Option<CpuKind>,
    /// New environment (replaces); takes effect at the next start.
    pub env: Option<Vec<EnvVar>>,
    /// Exempt from idle stop.
    pub keep_active: Option<bool>,
    /// New labels (replace).
    pub metadata: Option<BTreeMap<String, serde_json::Value>>,
}

impl Control {
    /// Makes a workspace and, as asked, starts it.
    ///
    /// # Errors
    /// `Invalid` (`name`, `slug`, `namespace`, `image`, `vcpu_count`, `memory_mib`, `disk_mib`,
    /// `env`, `metadata`, `expiry`), `Quota`, `NotFound` (`project`), `Conflict` (slug taken). Nothing is
    /// recorded on an error. A start that fails is not an error of create: the answer's state says
    /// it.
    pub async fn create_workspace(
        &self,
        caller: &Caller,
        request: CreateWorkspace,
    ) -> Result<Workspace, Error> {
        unimplemented!("{caller:?} {request:?}")
    }

    /// One workspace.
    ///
    /// # Errors
    /// `NotFound`, also for another account's and for one whose deletion is complete.
    pub async fn get_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Workspace, Error> {
        unimplemented!("{caller:?} {which:?}")
    }

    /// The caller's workspaces.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn list_workspaces(
        &self,
        caller: &Caller,
        filter: &ListWorkspaces,
    ) -> Result<Page<Workspace>, Error> {
        unimplemented!("{caller:?} {filter:?}")
    }

    /// Changes a workspace.
    ///
    /// # Errors
    /// As create; `RefusedByState` for a new size while a VM is there.
    pub async fn update_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        update: UpdateWorkspace,
    ) -> Result<Workspace, Error> {
        unimplemented!("{caller:?} {which:?} {update:?}")
    }

    /// Starts a workspace; one that runs or starts already is a success.
    ///
    /// # Errors
    /// `NotFound`, `Quota` (running pool), `RefusedByState` while it is deleted.
    pub async fn start_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wait: Wait,
    ) -> Result<Workspace, Error> {
        unimplemented!("{caller:?} {which:?} {wait:?}")
    }

    /// Stops a workspace; one that is stopped already is a success.
    ///
    /// # Errors
    /// `NotFound`, `RefusedByState` while it is deleted.
    pub async fn stop_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wait: Wait,
    ) -> Result<Workspace, Error> {
        unimplemented!("{caller:?} {which:?} {wait:?}")
    }

    /// Stops and starts again, durably: a crash in between does not lose the start.
    ///
    /// # Errors
    /// As [`Control::start_workspace`].
    pub async fn restart_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wait: Wait,
    ) -> Result<Workspace, Error> {
        unimplemented!("{caller:?} {which:?} {wait:?}")
    }

    /// Deletes a workspace from any state. Returns the record as it was last; with
    /// [`Wait::UpTo`], after everything is gone unless the wait was over first (state `deleting`).
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        wait: Wait,
    ) -> Result<Deleted, Error> {
        unimplemented!("{caller:?} {which:?} {wait:?}")
    }

    /// The inside of a running workspace: exec, files, ports.
    ///
    /// # Errors
    /// `NotFound`, `RefusedByState` unless running.
    pub async fn guest(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Arc<dyn GuestApi>, Error> {
        unimplemented!("{caller:?} {which:?}")
    }

    /// Resource use as the guest sees it.
    ///
    /// # Errors
    /// As [`Control::guest`].
    pub async fn workspace_stats(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<GuestStats, Error> {
        unimplemented!("{caller:?} {which:?}")
    }

    /// The end of a log, in any state.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn workspace_log(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        source: LogSource,
        tail_bytes: u64,
    ) -> Result<ByteStream, Error> {
        unimplemented!("{caller:?} {which:?} {source:?} {tail_bytes}")
    }
}

/// What is left of a workspace that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The record as it was last.
    pub workspace: Workspace,
    /// Whether everything is gone already; `false` means it goes on in the background.
    pub complete: bool,
}
